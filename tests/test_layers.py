"""Imports between the folders go one way, and commands that need no jax load none."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "plateau_train"
HEAVY = {
    "jax", "flax", "optax", "tensorflow", "tensorflow_datasets", "matplotlib", "safetensors",
    "tensorboardX",
}  # fmt: skip

# Each layer may import from itself and from the layers after it.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"commands"},
    {"api"},
    {"training", "report", "plots", "exports"},
    {"numerics", "data", "run"},
    {"process"},
    {"config"},
    {"errors"},
)
# Which folders may import a library that is slow to import, or that one of them needs alone.
HOMES = {
    "jax": {"numerics", "training", "process", "commands", "exports"},
    "flax": {"numerics"},
    "optax": {"numerics"},
    "tensorflow": {"data"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"plots", "api"},  # api: as a type only
    "safetensors": {"exports"},
    "tensorboardX": {"exports"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Return the dotted names of all modules that a file imports, at its top or inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def folder(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name):
    (number,) = (number for number, names in enumerate(LAYERS) if name in names)
    return number


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_between_folders_go_one_way(path):
    own = folder(path)
    if own == "__init__":
        return
    others = {
        name.split(".")[1] for name in imported(path) if name.startswith("plateau_train.")
    } - {own}
    wrong = {other for other in others if layer(other) <= layer(own)}
    assert not wrong, f"{own} may not import {', '.join(wrong)}"


def test_commands_never_import_each_other():
    for path in (PACKAGE / "commands").glob("*.py"):
        wrong = {name for name in imported(path) if name.startswith("plateau_train.commands")}
        assert not wrong, f"{path.name} imports {', '.join(wrong)}"


def test_imports_stand_at_the_top_of_a_file_but_for_cli_and_init():
    for path in FILES:
        if path.name in ("cli.py", "__init__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                late = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not late, f"{path.name}: {node.name} imports late"


def test_each_folder_says_what_belongs_there():
    for path in PACKAGE.glob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert "Imports" in text, f"{path} does not say what it may import"


def test_heavy_libraries_are_imported_by_their_folders_only():
    for path in FILES:
        for root in {name.partition(".")[0] for name in imported(path)} & HEAVY:
            assert folder(path) in HOMES[root], f"{root} in {path}"


def test_numerics_touch_no_file_clock_or_terminal():
    banned = {"os", "sys", "pathlib", "time", "datetime", "rich", "logging", "subprocess", "io"}
    for path in (PACKAGE / "numerics").glob("*.py"):
        assert not {name.partition(".")[0] for name in imported(path)} & banned, path.name
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"print", "open", "input"}, path.name


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("from plateau_train import cli", HEAVY | {"numpy", "tomlkit"}),
        ("from plateau_train.commands import plot", HEAVY),
        ("from plateau_train.commands import runs", HEAVY | {"scipy"}),
        ("from plateau_train.commands import compare", HEAVY),
        ("from plateau_train import data", HEAVY),
        ("from plateau_train.data import garments", HEAVY),
        ("from plateau_train.numerics import replicas", {"tensorflow", "matplotlib"}),
        ("from plateau_train import exports", HEAVY),
    ],
)
def test_importing_one_part_does_not_load_what_it_does_not_need(code, unwanted):
    script = f"{code}; import sys; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert not unwanted & set(loaded.stdout.split())


def test_the_loop_over_epochs_exists_once():
    loops = [
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.For) and re.match(r"range\(.*epochs", ast.unparse(node.iter)))
        or (isinstance(node, ast.While) and "is_active" in ast.unparse(node.test))
    ]
    assert loops == ["loop.py"]
