"""The walls of the house: imports go one way, and the commands that need no jax load none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "plateau_train"
HEAVY = {"jax", "flax", "optax", "tensorflow", "tensorflow_datasets", "matplotlib"}

# Which rooms each room may import from.
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "numerics": {"config", "errors"},
    "data": {"config", "errors"},
    "run": {"config", "errors"},
    "wording": {"data", "run", "config", "errors"},
    "groups": {"numerics", "run", "config", "errors"},
    "training": {"groups", "wording", "numerics", "data", "run", "config", "errors"},
    "launching": {"training", "data", "run", "config", "errors"},
    "evaluation": {"launching", "training", "numerics", "data", "run", "config", "errors"},
    "schedule": {"wording", "numerics", "run", "config", "errors"},
    "differences": set(),
    "comparing": {"differences", "run", "config", "errors"},
    "sweeping": {"launching", "training", "numerics", "data", "run", "config", "errors"},
    "cli": {
        "sweeping",
        "comparing",
        "schedule",
        "launching",
        "evaluation",
        "data",
        "run",
        "config",
        "errors",
    },
    "__main__": {"cli", "run", "errors"},
    "__init__": set(),
}


def imported(path):
    """Return the dotted names of all modules that a file imports, at its top or inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_between_rooms_go_one_way(path):
    rooms = {
        name.split(".")[1]
        for name in imported(path)
        if name.startswith("plateau_train.") and name.count(".") >= 1
    }
    own = room(path)
    assert own in ALLOWED, f"{path.name} stands in a room that this test does not know"
    assert rooms - {own} <= ALLOWED[own]


def test_the_heavy_libraries_stay_in_their_rooms():
    homes = {"tensorflow": {"data"}, "tensorflow_datasets": {"data"}, "matplotlib": {"run"}}
    for path in FILES:
        roots = {name.partition(".")[0] for name in imported(path)} & HEAVY
        for root in roots:
            allowed = homes.get(root, {"numerics", "groups", "training"})
            if path.name == "cluster.py":  # the processes of a run find each other through jax
                allowed = {"run"} if root == "jax" else set()
            assert room(path) in allowed, f"{root} in {path.name}"


def test_the_numerics_touch_no_file_clock_or_terminal():
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
        ("from plateau_train.run import plots", HEAVY - {"matplotlib"}),
        ("from plateau_train.run import listing", HEAVY | {"numpy"}),
        ("from plateau_train import evaluation", HEAVY - {"matplotlib"}),
        ("from plateau_train import comparing", HEAVY | {"numpy", "scipy"}),
        ("from plateau_train import data", HEAVY),
        ("from plateau_train.data import garments", HEAVY),
        ("from plateau_train.numerics import program", {"tensorflow", "matplotlib"}),
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
        if isinstance(node, ast.For) and "epochs" in ast.unparse(node.iter)
    ]
    assert loops == ["training.py"]
