# Sourced by scripts/plateau-train and scripts/test: makes .venv on first use, and again whenever
# pyproject.toml or constraints.txt have changed. Needs Python and its pip, nothing else.

# ensure_environment STAMP REQUIREMENT: install REQUIREMENT unless .venv/STAMP says it is there.
ensure_environment() {
    local stamp=".venv/$1" requirement="$2" python
    if cat pyproject.toml constraints.txt | cmp --silent - "$stamp"; then
        return
    fi
    python=$(find_python)
    echo "Setting up .venv with $($python --version): a few minutes, this once" >&2
    # Without pip inside: some systems ship Python's venv without what that needs.
    [ -x .venv/bin/python ] || "$python" -m venv --without-pip .venv
    "$python" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check \
        --no-warn-script-location --constraint constraints.txt --editable "$requirement" >&2
    cat pyproject.toml constraints.txt > "$stamp"
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
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
