"""``--json`` and ``--csv``: what the commands print for other programs, and its fields."""

import contextlib
import csv
import io
import json
import math
import re
import shutil
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from helpers import SMALL, call, command

import plateau_train as pt
from plateau_train import cli
from plateau_train.config import SETTINGS
from plateau_train.errors import ConfigError
from plateau_train.report import rows as rows_module
from plateau_train.report.rows import to_columns, to_csv, to_json
from plateau_train.run.directory import RunDirectory

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tables.md"


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def read_json(*words):
    """Return what a command prints with --json, which must be JSON and nothing else."""
    return json.loads(call(*words, "--json"), parse_constant=refuse_constant)


pytestmark = pytest.mark.usefixtures("no_saved_plots")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """A folder with a run of one seed, and one of two seeds with held-out images."""
    folder = tmp_path_factory.mktemp("tables") / "runs"
    more = f"--runs-dir={folder}", "--quiet"
    call(*SMALL, *more, "--epochs=4", "--name=one")
    call(*SMALL, *more, "--epochs=2", "--name=two", "--seed=3,5", "--val-fraction=0.1")
    return folder


@pytest.fixture(scope="module")
def one(runs_dir):
    (path,) = runs_dir.glob("*-one")
    return path


@pytest.fixture(scope="module")
def two(runs_dir):
    (path,) = runs_dir.glob("*-two")
    return path


@pytest.fixture(scope="module")
def sweep(runs_dir):
    """The rows of a sweep whose second run diverges."""
    words = *SMALL, f"--runs-dir={runs_dir.parent / 'sweeps'}", "--epochs=1"
    return read_json("sweep", *words, "--learning-rate=0.03,1e30", "--seed=0,1")


@pytest.fixture(scope="module")
def images(runs_dir):
    """A file with three images."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    np.savez(runs_dir.parent / "images.npz", images=pixels)
    return runs_dir.parent / "images.npz"


@pytest.fixture(scope="module")
def tables(runs_dir, one, two, sweep, images):
    """The rows of every table that the commands print."""
    compared, evaluated = read_json("compare", one, two), read_json("evaluate", two)
    return {
        "runs": read_json("runs", runs_dir),
        "compare": compared["results"],
        "differences": compared["differences"],
        "evaluate": evaluated["results"],
        "scores": evaluated["scores"],
        "predict": read_json("predict", two, images, "--top=2"),
        "schedule": read_json("schedule", one, "--compare=torch,keras,optax"),
        "values": read_json("schedule", "--values=1,1,1,0.5", "--patience=2"),
        "translation": read_json("schedule", "--from-torch=patience=10"),
        "negative": read_json("schedule", "--values=-1,-1", "--compare=optax"),
        "sweep": sweep,
        "config": read_json("config", "--patience=3"),
    }


def test_every_row_of_a_table_has_every_field(tables):
    for name, rows in tables.items():
        assert rows, name
        assert {tuple(row) for row in rows} == {tuple(rows[0])}, name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("runs {runs_dir}", "runs"),
        ("compare {one} {two}", "compare"),
        ("evaluate {two}", "evaluate"),
        ("predict {two} {images} --top=2", "predict"),
        ("schedule {one} --compare=torch,keras,optax", "schedule"),
        ("schedule --values=1,1,1,0.5 --patience=2", "values"),
        ("schedule --from-torch=patience=10", "translation"),
        ("config --patience=3", "config"),
    ],
)
def test_csv_reads_back_as_the_values_of_json(words, name, tables, runs_dir, one, two, images):
    paths = {"runs_dir": runs_dir, "one": one, "two": two, "images": images}
    printed = call(*(word.format(**paths) for word in words.split()), "--csv")
    rows = list(csv.DictReader(io.StringIO(printed, newline="")))
    assert [list(row) for row in rows] == [list(row) for row in tables[name]]
    for row, expected in zip(rows, tables[name], strict=True):
        assert row == {field: as_cell(value) for field, value in expected.items()}
        for field, value in expected.items():
            if type(value) in (int, float):
                assert type(value)(row[field]) == value, field


def as_cell(value):
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def test_the_rows_of_a_sweep_have_a_diverged_seed(sweep):
    assert [(row["learning_rate"], row["seed"], row["ending"]) for row in sweep] == [
        (0.03, 0, "epochs"), (0.03, 1, "epochs"), (1e30, 0, "diverged"), (1e30, 1, "diverged"),
    ]  # fmt: skip
    assert [row["last_epoch"] for row in sweep] == [1, 1, 0, 0]


def test_the_rows_have_the_numbers_of_the_run(tables, one, two):
    for path, name in ((one, "one"), (two, "two")):
        run, rows = pt.load(path), [row for row in tables["runs"] if row["folder"] == str(path)]
        assert [row["seed"] for row in rows] == list(run.settings["seed"])
        for row, replica in zip(rows, run.summary["replicas"], strict=True):
            assert row["run"].endswith(name)
            assert (row["status"], row["problems"], row["mode"]) == ("done", None, "train-loss")
            for when in ("final", "best"):
                for metric in ("train_loss", "val_accuracy", "test_accuracy"):
                    assert row[f"{when}_{metric}"] == replica[when][metric]
            for key in ("num_drops", "drop_epochs", "ending"):
                assert row[key] == replica[key]


def test_the_rows_of_a_comparison_have_the_settings_that_differ(tables, one):
    rows, differences = tables["compare"], tables["differences"]
    assert [(row["val_fraction"], row["run"]) for row in rows] == [
        (0.0, "one"), (0.1, "two"), (0.1, "two"),
    ]  # fmt: skip
    assert len({row["level"] for row in rows}) == 1
    assert [row["metric"] for row in differences] == ["final_test_accuracy", "final_test_loss"]
    final = [row["final_test_loss"] for row in rows]
    assert differences[1]["difference"] == pytest.approx(sum(final[1:]) / 2 - final[0])


def test_an_evaluation_has_classes_scores_and_a_confusion_matrix(two):
    evaluated = read_json("evaluate", two, "--checkpoint=last", "--replica=1")
    assert {*evaluated} == {"results", "scores", "confusion"}
    assert [row["split"] for row in evaluated["scores"]] == ["val", "test"]
    assert {row["seed"] for row in evaluated["results"] + evaluated["scores"]} == {5}
    counts = [sum(counts) for counts in evaluated["confusion"]]
    assert counts == [row["num_images"] for row in evaluated["results"]]


def test_a_replay_has_the_reason_of_each_drop(tables):
    assert [row["scale"] for row in tables["values"]] == [1, 1, 0.5, 0.5]
    assert [row["reason"] is None for row in tables["values"]] == [True, True, False, True]
    assert "seed" not in tables["values"][0]
    assert {row["seed"] for row in tables["schedule"]} == {0}
    assert tables["translation"] == [
        {"patience": 11, "cooldown": 0, "factor": 0.1, "rtol": 1e-4, "atol": 0, "min_scale": 0}
    ]


def test_the_rows_of_the_settings_have_their_types_and_origins(tables):
    rows = {row["key"]: row for row in tables["config"]}
    assert list(rows) == [setting.key for setting in SETTINGS]
    assert rows["patience"] == {
        "table": "plateau", "key": "patience", "value": 3, "origin": "flag"
    }  # fmt: skip
    assert (rows["seed"]["value"], rows["name"]["value"]) == ([0], None)


def test_runs_that_are_damaged_running_or_have_no_epoch_are_rows(one, tmp_path):
    names = "damaged", "done", "empty", "running"
    for name in names:
        shutil.copytree(one, tmp_path / name)
    metrics = tmp_path / "damaged" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-9] + b"x" * 9)
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    for name in ("metrics.jsonl", "events.jsonl", "timings.jsonl"):
        (tmp_path / "empty" / name).write_bytes(b"")
    (tmp_path / "empty" / "summary.json").unlink()
    with RunDirectory(tmp_path / "running").locked():
        rows = read_json("runs", tmp_path)
        columns = pt.runs(tmp_path).results
    assert [row["run"] for row in rows] == list(names)
    assert [row["status"] for row in rows] == ["damaged", "done", "stopped", "running"]
    assert [row["last_epoch"] for row in rows] == [None, 4, None, 4]
    assert [row["epochs"] for row in rows] == [4] * 4
    assert {tuple(row) for row in rows} == {tuple(columns)}
    assert "metrics.jsonl" in rows[0]["problems"]
    assert [row["problems"] for row in rows[1:]] == [None] * 3
    assert math.isnan(columns["final_test_loss"][0])
    assert columns["drop_epochs"][0] is None


def test_a_folder_without_runs_has_no_rows_but_the_names(tmp_path):
    assert read_json("runs", tmp_path) == []
    assert call("runs", tmp_path, "--csv").startswith("run,folder,status,problems,epochs,")
    assert call("runs", tmp_path, "--csv").count("\n") == 1


def test_standard_output_is_json_alone_in_a_process_of_its_own(one):
    shown = command("schedule", one.name, f"--runs-dir={one.parent}", "--json", cwd=one.parent)
    assert (shown.returncode, len(json.loads(shown.stdout)) > 0) == (0, True)
    assert "all drops are those of the run" in shown.stderr


@pytest.mark.parametrize(
    "words",
    [
        "runs --json --csv", "schedule --values 1 --json --csv", "config --schema --csv",
        "config --describe --json", "compare a b --json --csv", "evaluate --json --csv",
        "sweep --patience 1,2 --json --csv",
    ],
)  # fmt: skip
def test_two_forms_of_one_output_are_refused(words, one):
    words = [str(one) if word == "evaluate" else word for word in words.split()]
    with pytest.raises(ConfigError, match="are different forms of the same output"):
        call(*(["evaluate", *words] if words[0] == str(one) else words))


def test_numbers_that_json_cannot_have_are_null():
    rows = [{"a": math.nan, "b": [math.inf, 1.5]}, {"a": -math.inf, "b": []}]
    assert json.loads(to_json(rows)) == [{"a": None, "b": [None, 1.5]}, {"a": None, "b": []}]
    assert to_csv(rows) == "a,b\n,None 1.5\n,\n"


def test_tuples_of_one_length_are_the_objects_of_a_column():
    columns = to_columns([{"a": (1, 2), "b": "x"}, {"a": (3, 4), "b": None}])
    assert columns["a"].tolist() == [(1, 2), (3, 4)]
    assert columns["b"].tolist() == ["x", None]


@pytest.mark.parametrize("name", ["default", "train_loss", "test_loss"])
def test_the_files_of_configs_are_valid_under_the_schema(name):
    schema = json.loads(call("config", "--schema"))
    content = tomllib.loads((ROOT / "configs" / f"{name}.toml").read_text())
    jsonschema.validate(content, schema)


@pytest.mark.parametrize(
    "text",
    [
        "[plateau]\npatiense = 3", "[plateau]\npatience = 0", "[plateau]\npatience = '3'",
        "[plateau]\nmode = 'loss'", "[run]\nseed = -1", "[other]", "format = 2",
    ],
)  # fmt: skip
def test_a_wrong_file_is_not_valid_under_the_schema(text):
    schema = json.loads(call("config", "--schema"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), schema)


def test_the_help_of_each_command_with_tables_mentions_the_forms():
    for name in ("runs", "compare", "evaluate", "predict", "schedule", "sweep", "config"):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            cli.app([name, "--help"], prog_name="plateau-train", standalone_mode=False)
        assert "--json" in shown.getvalue(), name
        assert "--csv" in shown.getvalue(), name
    assert "--schema" in shown.getvalue()


def test_the_page_has_every_field_and_no_other(tables, one):
    run = pt.load(one)
    columns = run.metrics, run.drops, run.observations, pt.runs(one.parent).results
    rows = [row for name, rows in tables.items() if name != "translation" for row in rows]
    used = {field for row in (*rows, *columns) for field in row}
    text = PAGE.read_text().partition("<!-- begin fields -->")[2].partition("<!-- end fields -->")
    cells = re.findall(r"^\| (`.*?) \|", text[0], re.MULTILINE)
    listed = [field for cell in cells for field in re.findall(r"`(\w+)`", cell)]
    assert len(set(listed)) == len(listed), "a field is listed twice"
    assert set(listed) == used - {"val_fraction"}, "the setting that differs between the runs"
    texts = re.findall(r"^\| (`.*?) \| (?:text|path) \|", text[0], re.MULTILINE)
    fields = {field for cell in texts for field in re.findall(r"`(\w+)`", cell)}
    assert fields == rows_module.TEXTS | {"table", "key", "origin"}, "of config"
