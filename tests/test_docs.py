"""README.md and docs: their links, command lines, printed examples and names of tests are right."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from plateau_train import config
from plateau_train.cli import app
from plateau_train.cli import main as run_command_line
from plateau_train.config import SETTINGS, RawValue
from scripts import reproduce

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# A line of a block of code, without its comment or where its output goes, or code in a sentence.
# Only a prompt has output.
COMMAND = r"(?:scripts/)?plateau-train(?: (.*?))?"
TYPED = re.compile(rf"^(?:\$ |.*--gpus-per-node 8 )?{COMMAND}(?:  +#.*| [|>] .*)?$", re.MULTILINE)
QUOTED = re.compile(rf"`{COMMAND}`")
EXAMPLE = re.compile(r"^\$ plateau-train (.*)\n((?:(?!\$ |```).*\n)+)", re.MULTILINE)
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def find_commands(page):
    text = page.read_text()
    typed = [match for block in BLOCK.findall(text) for match in TYPED.finditer(block)]
    return [shlex.split(match[1] or "") for match in (*typed, *QUOTED.finditer(text))]


def find_command(words):
    """Return the command that words begin with, and the words after its name."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        name, *words = words
        command = command.commands[name]
    return command, words


def parse(words):
    """Return the options and arguments of a command line by name; raise where it is wrong."""
    command, words = find_command(words)
    context = command.context_class(command, info_name="plateau-train")
    values, rest, _ = command.make_parser(context).parse_args(args=list(words))
    assert not rest, f"{words}: {rest} is left over"
    return values


def test_the_readme_has_at_most_200_lines_and_begins_with_commands_and_a_picture():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    first_screen = "\n".join(lines[:24])
    for text in ("scripts/plateau-train --mode train-loss --patience 5", "scripts/test", "!["):
        assert f"\n{text}" in first_screen


@every_page
def test_every_link_of_a_page_leads_to_a_file_a_folder_or_a_heading(page):
    text = page.read_text()
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_every_page_and_picture_is_linked():
    links = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
    }
    unlinked = {*PAGES, *(ROOT / "docs").iterdir()} - links - {ROOT / "README.md"}
    assert not unlinked


@every_page
def test_every_command_line_of_a_page_has_values_that_are_accepted(page):
    """What the commands do is tested elsewhere and in .ci/run."""
    for words in find_commands(page):
        command, rest = find_command(words)
        if rest == ["--help"]:
            continue
        values = parse(words)
        raw = {
            setting.key: RawValue(values[setting.key], "flag")
            for setting in SETTINGS
            if isinstance(values.get(setting.key), str)
        }
        resolve = config.resolve_sweep if command.name == "sweep" else config.resolve
        file = values.get("config_file")
        resolve(raw, file=ROOT / file if file else None)


def test_command_lines_are_found_in_all_their_forms():
    assert len(find_commands(ROOT / "README.md")) >= 20
    assert ["--batch-size", "4096"] in find_commands(ROOT / "docs" / "devices.md")
    assert ["plot", "--replica", "3"] in find_commands(ROOT / "docs" / "seeds-and-sweeps.md")
    with pytest.raises(Exception, match="--patiense"):
        parse(["--patiense", "5"])
    with pytest.raises(AssertionError, match="left over"):
        parse(["runs", "ONE", "TWO"])


def test_the_readme_has_every_command():
    commands: Any = typer.main.get_command(app)
    first_words = {words[0] for words in find_commands(ROOT / "README.md") if words}
    assert set(commands.commands) <= first_words


@every_page
def test_every_example_with_its_output_prints_what_the_page_shows(page, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for words, output in EXAMPLE.findall(page.read_text()):
        monkeypatch.setattr("sys.argv", ["plateau-train", *shlex.split(words)])
        assert run_command_line() == 0
        assert capsys.readouterr().out == output


def test_every_test_and_file_that_a_page_names_exists():
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`(test_\w+_\w+)`", text))
    assert len(named) >= 8
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert named <= set(re.findall(r"^def (test_\w+)\(", tests, re.MULTILINE))
    files = re.findall(r"`((?:plateau_train|tests|scripts|configs|docs)/[\w./]*)[` ]", text)
    assert len(files) >= 20
    assert not [file for file in files if "NAME" not in file and not (ROOT / file).exists()]


def test_the_map_of_the_code_names_every_file_in_its_folder():
    block = (ROOT / "docs" / "development.md").read_text().partition("```\nplateau_train/\n")[2]
    entries = re.split(r"^  (?=\w)", block.partition("```")[0], flags=re.MULTILINE)
    named = {
        (folder.strip("/"), name)
        for entry in entries
        for folder in [entry.split()[0] if entry else ""]
        for name in re.findall(r"\b\w+\.py\b", entry)
        if folder.endswith("/")
    }
    existing = {
        (path.parent.name, path.name)
        for path in (ROOT / "plateau_train").glob("*/*.py")
        if path.name != "__init__.py" and path.parent.name != "commands"
    }
    assert named == existing


def test_each_generated_section_is_on_the_page_that_its_script_writes(tmp_path):
    scripts = [(ROOT / "scripts" / name).read_text() for name in ("reproduce.py", "benchmark.py")]
    written = re.findall(r'rewrite\((?:(README)|DOCS / "([\w.]+)"), "(\w+)"', "".join(scripts))
    assert len(written) == 9
    for readme, page, section in written:
        content = (ROOT / "README.md" if readme else ROOT / "docs" / page).read_text()
        copy = tmp_path / "page.md"
        copy.write_text(content)
        before, _, rest = content.partition(f"<!-- begin {section} -->\n")
        text, _, after = rest.partition(f"\n<!-- end {section} -->")
        assert text.strip(), section
        reproduce.rewrite(copy, section, "new\ntext")
        assert copy.read_text() == (
            f"{before}<!-- begin {section} -->\nnew\ntext\n<!-- end {section} -->{after}"
        )


def test_every_setting_is_in_the_default_file_and_in_the_table_as_declared():
    assert (ROOT / "configs" / "default.toml").read_text() == reproduce.default_toml()
    assert reproduce.settings_table() in (ROOT / "docs" / "settings.md").read_text()
    assert reproduce.figures_table() in (ROOT / "docs" / "figures.md").read_text()
