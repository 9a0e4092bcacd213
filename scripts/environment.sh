# Sourced by scripts/plateau-train and scripts/test: makes an environment on first use, and again
# whenever pyproject.toml or constraints.txt have changed. Needs Python and its pip, nothing else.

# ensure_environment STAMP REQUIREMENT: install REQUIREMENT in .venv, with the versions of
# constraints.txt, unless .venv/STAMP says it is there.
ensure_environment() {
    local stamp=".venv/$1" python
    if cat pyproject.toml constraints.txt | cmp --silent - "$stamp"; then
        return
    fi
    python=$(find_python python3 python3.13 python3.12 python3.11)
    install_into .venv "$python" --constraint constraints.txt --editable "$2"
    cat pyproject.toml constraints.txt > "$stamp"
}

# install_into FOLDER PYTHON ARGUMENTS: run pip with these arguments in an environment of its own.
install_into() {
    local folder="$1" python="$2"
    shift 2
    echo "Setting up $folder with $("$python" --version): a few minutes, this once" >&2
    # Without pip inside: some systems ship Python's venv without what that needs.
    [ -x "$folder/bin/python" ] || "$python" -m venv --without-pip "$folder"
    "$python" -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check \
        --no-warn-script-location "$@" >&2
}

# find_python CANDIDATES: print the first one that is of a supported version and has pip.
find_python() {
    local candidate
    for candidate in "$@"; do
        if "$candidate" -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
            2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11, 3.12 or 3.13 with pip was found" >&2
    echo "hint: install one, so that python3 -m pip --version works" >&2
    return 1
}
