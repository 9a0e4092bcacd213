"""plateau-train schedule: replays of lists, files and runs, and the rules of other libraries."""

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from helpers import command, record_of
from hypothesis import given, strategies
from matplotlib.backends.backend_agg import FigureCanvasAgg

from plateau_train import config
from plateau_train.api.replays import translate_flags
from plateau_train.commands.schedule import ScheduleOptions, run_schedule
from plateau_train.config import RawValue
from plateau_train.data import csv_files
from plateau_train.errors import ConfigError, RunError
from plateau_train.numerics import translation
from plateau_train.numerics.replay import replay
from plateau_train.plots import draw_replay
from plateau_train.report.progress import describe_end
from plateau_train.run.reader import Run
from plateau_train.run.records import Drop, ObservedValue
from plateau_train.run.series import Position, Series

SEQUENCES = json.loads((Path(__file__).parent / "plateau_sequences.json").read_text())["rows"]


class Output(NamedTuple):
    """What the command printed and logged."""

    lines: list[str]
    log: str  # header and messages, warnings marked

    @property
    def objects(self):
        return json.loads("\n".join(self.lines))


@pytest.fixture
def schedule(capsys, caplog):
    """Return a function that runs the command in this process."""
    caplog.set_level("INFO", "plateau_train")

    def run(settings=None, *, file=None, as_json=False, **options):
        given = {key: RawValue(str(value), "flag") for key, value in (settings or {}).items()}
        caplog.clear()
        form = "json" if as_json else None
        resolved = config.resolve(given, file=file)
        run_schedule(resolved, ScheduleOptions(**options), config.FigureOptions(), form)
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err
        messages = [
            f"{'WARNING: ' * (record.levelname == 'WARNING')}{record.getMessage()}"
            for record in caplog.records
        ]
        return Output(printed.out.splitlines(), printed.err + "\n".join(messages))

    return run


def flags_of(row):
    return {key: row[key] for key in row.keys() - {"id", "values", "scales"}}


@pytest.mark.parametrize("row", SEQUENCES, ids=lambda row: row["id"])
def test_json_has_the_measured_scale_after_each_value(row, schedule):
    values = ",".join(map(str, row["values"]))
    output = schedule(flags_of(row), values=values, as_json=True)
    assert [each["scale"] for each in output.objects] == pytest.approx(row["scales"])
    assert [each["number"] for each in output.objects] == list(range(1, len(row["values"]) + 1))
    assert [each["value"] for each in output.objects] == row["values"]
    is_drop = [scale < before for before, scale in itertools.pairwise([1, *row["scales"]])]
    assert [each["reason"] is not None for each in output.objects] == is_drop
    assert output.log == ""


def test_json_has_the_state_of_the_rule_at_each_value(tmp_path):
    row = next(row for row in SEQUENCES if row["id"].startswith("best value seen inside"))
    values = ",".join(map(str, row["values"]))
    shown = command(
        "schedule", "--values", values, "--patience=2", "--cooldown=2", "--json", cwd=tmp_path
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    objects = json.loads(shown.stdout)
    assert [each["scale"] for each in objects] == row["scales"]
    assert [each["wait"] for each in objects] == [0, 1, 2, 0, 0, 1, 2, 0, 0, 1]
    assert [each["cooldown"] for each in objects] == [0, 0, 2, 1, 0, 0, 2, 1, 0, 0]
    assert [each["best"] for each in objects] == [None, 1, 1, 1, *[0.5] * 6]
    assert [each["to_beat"] for each in objects[1:5]] == pytest.approx([0.9999] * 3 + [0.49995])
    assert objects[2]["reason"] == (
        "2 observations in a row (value) were not below 0.9999 (best 1); the last was 1"
    )


def test_standard_input_is_read_and_the_table_gives_reasons(tmp_path):
    (tmp_path / "losses.txt").write_text("loss\n1\n1\n1\n")
    with (tmp_path / "losses.txt").open() as losses:
        descriptor = os.dup(0)
        os.dup2(losses.fileno(), 0)
        try:
            read = csv_files.read_column("-", None)
        finally:
            os.dup2(descriptor, 0)
            os.close(descriptor)
    assert read == ("loss", [1, 1, 1], 0)
    shown = command("schedule", "losses.txt", "--patience=2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert [" ".join(line.split()) for line in shown.stdout.splitlines()] == [
        "number value best to beat wait cooldown scale drop",
        "1 1 0/2 0 1",
        "2 1 1 0.9999 1/2 0 1",
        "3 1 1 0.9999 2/2 0 -> 0.5 1",
        "drop 1 value 3: scale 1 -> 0.5, because 2 observations in a row (loss) were not below "
        "0.9999 (best 1); the last was 1",
        "scale 0.5 at the end, 1 drop at value 3",
    ]
    assert "rule      patience 2, cooldown 0, factor 0.5, rtol 0.0001, atol 0\n" in shown.stderr


@pytest.mark.parametrize(
    ("values", "settings", "number", "text"),
    [
        (
            "1,1,1,0.5",
            {"patience": 4, "rtol": 0.01},
            3,
            "wait 2 of 4 until value 3: 2 observations short; then 0.5 was below 0.99. "
            "--patience 2 would have lowered the rate",
        ),
        (
            "1,1,1,0.5,0.9,0.9",
            {"patience": 2, "cooldown": 2},
            6,
            "wait 1 of 2 until value 6: 1 observation short. "
            "From value 4 on, --patience 1 or --cooldown 1 would have lowered the rate",
        ),
    ],
)
def test_the_nearest_miss_is_a_row_and_a_field_of_its_last_value(
    values, settings, number, text, schedule
):
    output = schedule(settings, values=values, as_json=True)
    assert {
        row["number"]: row["nearest_miss"] for row in output.objects if row["nearest_miss"]
    } == {number: text}
    lines = schedule(settings, values=values).lines
    assert lines[-2] == f"nearest miss  {text}"
    assert lines[-1].startswith("scale  ")
    assert not any("nearest" in line for line in schedule(settings, values="2,1").lines)


def test_the_table_has_one_row_per_window(schedule):
    settings = {"patience": 1, "accumulation_size": 2}
    output = schedule(settings, values="4,2,3,3,5", as_json=True)
    assert [each["observation"] for each in output.objects] == [None, 3, None, 3, None]
    assert [each["scale"] for each in output.objects] == [1, 1, 1, 0.5, 0.5]
    assert "(value, mean of 2)" in output.objects[3]["reason"]
    output = schedule(settings, values="4,2,3,3,5")
    assert [line.split()[:2] for line in output.lines[:3]] == [
        ["numbers", "mean"],
        ["1-2", "3"],
        ["3-4", "3"],
    ]
    assert "the last 1 of 5 values do not fill a window of 2" in output.log
    warm = schedule({"accumulation_size": 3, "warmup_epochs": 2}, values=",".join("1" * 10))
    assert "the last 2 of 10 values do not fill a window of 3" in warm.log


def test_a_long_table_is_reduced_to_the_drops_and_the_last_row(schedule):
    output = schedule({"patience": 1500}, values=",".join(["1"] * 2000))
    assert [line.split()[0] for line in output.lines] == [
        "number",
        "1501",
        "2000",
        "drop",
        "nearest",
        "scale",
    ]
    assert "2,000 observations" in output.log


def test_flags_override_settings_of_a_file(tmp_path, schedule):
    file = tmp_path / "rule.toml"
    file.write_text("[plateau]\npatience = 2\nfactor = 0.25\n")
    output = schedule({"factor": 0.125}, values="1,1,1", file=file, as_json=True)
    assert output.objects[-1]["scale"] == 0.125


def test_jax_uses_the_cpu_whatever_the_variable_says():
    script = (
        "import jax; from jax._src import xla_bridge; from plateau_train import cli, config; "
        "from plateau_train.commands.schedule import ScheduleOptions, run_schedule; "
        "assert not xla_bridge._backends, 'importing the command starts the devices'; "
        "figure = config.FigureOptions(); "
        "run_schedule(config.resolve({}), ScheduleOptions(values='1'), figure, 'csv'); "
        "print(jax.config.jax_platforms or 'any')"
    )
    others = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    for chosen in ({}, {"JAX_PLATFORMS": ""}, {"JAX_PLATFORMS": "cuda"}):
        shown = subprocess.run(
            [sys.executable, "-c", script], env=others | chosen, capture_output=True, text=True
        )
        assert shown.stdout.splitlines()[-1:] == ["cpu"], shown.stderr


# Files


@pytest.mark.parametrize(
    ("content", "column", "values"),
    [
        (b"\xef\xbb\xbfloss\r\n0.5\r\n0.25\r\n\r\n", None, [0.5, 0.25]),  # as Excel writes it
        (b'epoch, val loss\n1, "0.5"\n2,"2.5e-1"', "val loss", [0.5, 0.25]),
        (b"name\tloss \na\t0.5\nb\t0.25\n", None, [0.5, 0.25]),
        (b"a;loss\nx;0.5\ny;0.25\n", "loss", [0.5, 0.25]),
        (b"0.5\n0.25\n", None, [0.5, 0.25]),
        (b"1,0.5\n2,0.25\n", "2", [0.5, 0.25]),
        (b"step,loss,val\n1,3,\n2,3,0.5\n3,3,\n4,3,0.25\n", "val", [0.5, 0.25]),
        (b"epoch  loss\n1  .5\n\n 2  25E-2\n", "loss", [0.5, 0.25]),
        (b"\n1 +0.5\n2 0.25\n", "2", [0.5, 0.25]),
        (b"0.5 0.25", None, [0.5, 0.25]),
        (b"0.5\t0.25\n", "value", [0.5, 0.25]),
        (b"val loss\n0.5\n0.25\n", "val loss", [0.5, 0.25]),
        (b"loss,\n0.5,\n0.25,\n", None, [0.5, 0.25]),
        (b",step\n0.5,x\n0.25,y\n", "value", [0.5, 0.25]),
        (b"0.5\n0.25\n", "value", [0.5, 0.25]),
        (b"0.5,\n0.25,\n", None, [0.5, 0.25]),
        (b"0.5, 0.25", None, [0.5, 0.25]),
        (b"2026-11-26,0.5\n2026-11-27,0.25\n", None, [0.5, 0.25]),
        (b",value\n0,0.5\n1,0.25\n", "value", [0.5, 0.25]),
        (b",0\n0,0.5\n1,0.25\n", "0", [0.5, 0.25]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_column_is_read_from_files_of_common_programs(tmp_path, content, column, values):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    read = csv_files.read_column(str(path), column)
    assert read.values == values
    assert read.num_empty == (2 if b"3,\n" in content else 0)


@given(strategies.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read(number):
    assert csv_files.parse_number(repr(number), "") == number


@given(strategies.text("0123456789.eE+-_ ,x\u0661", max_size=12))
def test_a_text_is_refused_or_means_the_same_number_to_python(text):
    try:
        number = csv_files.parse_number(text, "")
    except ConfigError:
        return
    assert number == float(text)
    assert not set(text) & set("_,x\u0661")


def test_a_long_cell_is_refused_at_once(tmp_path):
    path = tmp_path / "digits.csv"
    path.write_text("loss\n" + "1" * 100_000 + "x\n")
    with pytest.raises(ConfigError, match="line 2, loss, is '111"):
        csv_files.read_column(str(path), None)


@pytest.mark.parametrize(
    ("content", "column", "problem", "hint"),
    [
        (b"step,loss\n1,2\n", "los", "no column los (did you mean loss?)", "step, loss"),
        (b"epoch,loss\n1,2\n", None, "2 columns of numbers", "--column NAME: epoch, loss"),
        (b"a,b\nx,y\n", None, "no column of numbers", "a, b"),
        (b"loss\n0,5\n", None, "line 2 has 2 cells for 1 column: loss", "no comma"),
        (b"loss\n1\n\n1,234.5\n", None, "line 4 has 2 cells", "no comma"),
        (b"step,loss\n1,2\n1,2,,3\n", "loss", "line 3 has 4 cells", "no comma"),
        (b"loss;acc\n0,5;0,9\n", None, "no column of numbers", "0.25 or 2.5e-1; its columns"),
        (b"loss;acc\n0,5;0,9\n", "loss", "line 2, loss, is '0,5'", "0.25 or 2.5e-1"),
        (b"loss\n1_000\n", None, "line 2, loss, is '1_000'", "0.25"),
        (b"1_000\n900\n", None, "line 1, value, is '1_000'", "0.25"),
        (b"0.5 1_0 0.3", None, "line 1, value, is '0.5 1_0 0.3'", "0.25"),
        (b"a b c\n1 2 3\n1 2,3\n", "c", "line 3, c, is empty", "0.25"),
        (b"a b\n1 2\n1 2,3\n", "b", "line 3, b, is '2,3'", "0.25"),
        (b"epoch,val\n1,\n2,3\n", None, "line 3 has a number outside the column epoch", "val"),
        (b"loss\n0x10\n", None, "line 2, loss, is '0x10'", "0.25"),
        ("loss\n\u0661\n".encode(), None, "line 2, loss, is '\u0661'", "0.25"),
        (b"loss\n1\nInfinity\n", None, "line 3, loss, is inf", "diverged"),
        (b"a,a\n1,2\n", "a", "two columns a", "a, a"),
        (b"loss\n1\n\nfast\n", None, "line 4, loss, is 'fast', not a number", "0.25"),
        (b"a,loss\nx,1\ny\n", "loss", "line 3, loss, is empty", "0.25"),
        (b"loss\n1\nNaN\n", None, "line 3, loss, is nan, which would count as no", "diverged"),
        (b"loss\n1\n-inf\n", None, "line 3, loss, is -inf", "diverged"),
        (b"", None, "has no values", "one value per line"),
        (b"loss\n", "loss", "has no values", "one value per line"),
        (b"a,loss\n1,\n", "loss", "no value in the column loss", "a, loss"),
        (b"\x89PNG\r\n\x1a\n\xff", None, "is not UTF-8 text", "CSV"),
        (b"loss\n" + b"1" * 1_100_000, None, "a line of more than 1,000,000 characters", "CSV"),
        (b'loss\n"' + b"1\n" * 200_000, None, "is not valid CSV: field larger than", "quote"),
        (b"1\n" * 1001, None, "more than 1,000 values", "leave some"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:30],
)
def test_an_unusable_file_is_refused_with_its_line_and_a_hint(
    tmp_path, monkeypatch, content, column, problem, hint
):
    monkeypatch.setattr(csv_files, "MAX_VALUES", 1000)
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        csv_files.read_column(str(path), column)
    (said,) = refused.value.problems
    assert said.startswith(str(path))
    assert problem in said
    assert hint in refused.value.hint


def test_missing_and_endless_files_are_refused(tmp_path):
    for source, problem in (
        (str(tmp_path / "none.csv"), "does not exist"),
        ("/dev/zero", "a line of more than"),
        (str(tmp_path / ("x" * 300)), "cannot be read: File name too long"),
    ):
        with pytest.raises(ConfigError, match=problem):
            csv_files.read_column(source, None)


@pytest.mark.parametrize(
    ("settings", "options", "problem"),
    [
        ({}, {}, "there are no values"),
        ({}, {"values": "1,2", "source": "log.csv"}, "both log.csv and --values"),
        ({}, {"values": ""}, "value 1 is empty, not a number"),
        ({}, {"values": "1,,2"}, "value 2 is empty"),
        ({}, {"values": "1,x"}, "value 2 is 'x', not a number"),
        ({}, {"values": "1,nan"}, "value 2 is nan"),
        ({}, {"values": "1,1e39"}, "value 2 is 1e.39, too large"),
        ({"accumulation_size": 10}, {"values": "1,1e38"}, "value 2 is 1e.38, too large"),
        (
            {},
            {"values": "1", "compare": "optax,keres"},
            r"has no rule keres \(did you mean keras\?\)",
        ),
        ({}, {"values": "1", "compare": ""}, "has no rule without a name"),
        ({}, {"values": "1", "column": "loss"}, "--column is for a CSV file"),
        ({}, {"values": "1", "mode": "test-loss"}, "--mode is for a run"),
        ({}, {"values": "1", "replica": 0}, "--replica is for a run"),
        ({}, {"values": "1", "plot": Path("a.jpg")}, "a plot cannot be written as a.jpg"),
        ({}, {"from_torch": "", "plot": Path("a.png")}, "--plot is for values"),
        ({}, {"from_torch": "", "from_keras": ""}, "--from-torch and --from-keras both"),
        (
            {},
            {"values": "1", "from_torch": "", "compare": "torch"},
            "--compare is for rules without --from-torch",
        ),
        ({"patience": 3}, {"from_torch": ""}, "--from-torch and --patience both"),
        ({}, {"from_torch": "patients=3"}, r"no parameter patients \(did you mean patience\?\)"),
        ({}, {"from_keras": "threshold=3"}, "--from-keras has no parameter threshold"),
        ({}, {"from_torch": "patience=2.5"}, "patience must be a whole number, got 2.5"),
        ({}, {"from_torch": "threshold="}, "threshold must be a finite number, got nothing"),
        ({}, {"from_torch": "threshold_mode=both"}, "must be one of rel, abs, got both"),
        ({}, {"from_torch": "factor=1"}, "factor=1: --factor must be a number above 0 below 1"),
        ({}, {"from_torch": "patience=-1"}, "--patience must be a whole number from 1"),
        ({}, {"from_keras": "min_delta=nan"}, "min_delta must be a finite number, got nan"),
        ({}, {"from_torch": "eps=nan"}, "eps must be a finite number, got nan"),
        ({}, {"from_torch": "min_lr=inf"}, "min_lr must be a finite number, got inf"),
        ({}, {"from_torch": "factor=nan"}, "factor must be a finite number, got nan"),
        ({}, {"from_torch": "min_lr=0.1"}, "--min-scale must be a number from 0 below 1, got 10"),
        ({}, {"from_keras": "mode=max"}, "mode=max has no counterpart"),
        ({"rtol": 0}, {"values": "1"}, "--rtol and --atol are both 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unusable_options_are_refused(settings, options, problem, schedule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run is the latest
    with pytest.raises(ConfigError, match=problem) as refused:
        schedule(settings, **options)
    assert refused.value.hint


def test_a_refusal_is_one_line_a_hint_and_an_exit_code(tmp_path):
    (tmp_path / "folder").mkdir()
    for words, code in ((["--values", "1,x"], 2), (["folder"], 4)):
        refused = command("schedule", *words, cwd=tmp_path)
        assert refused.returncode == code
        assert [line.partition(":")[0] for line in refused.stderr.splitlines()] == ["error", "hint"]
        assert refused.stdout == ""


def test_values_are_separated_by_commas_or_white_space(schedule):
    for values in ("1,1,0.5", "1, 1, 0.5", " 1 1\t0.5 "):
        output = schedule(values=values, as_json=True)
        assert [each["value"] for each in output.objects] == [1, 1, 0.5]


def test_equal_negative_values_are_a_plateau_here_and_not_for_optax_and_torch(schedule):
    output = schedule({"patience": 2}, values="-1,-1,-1,-1", compare="optax,torch,keras")
    ends = {line.split()[0]: line for line in output.lines[-4:]}
    assert "0.5 at the end, 1 drop at value 3" in ends["scale"]
    for name in ("optax", "torch"):
        assert "1 at the end, no drops" in ends[name]
    assert "pull request 1767" in output.log
    output = schedule(
        {"patience": 2, "rtol": 0, "atol": 0.1}, values="-1,-1,-1,-1", compare="optax"
    )
    assert "optax 0.5 at the end, 1 drop at value 3" in " ".join(output.lines[-1].split())


def test_without_negative_values_a_replay_of_the_rule_of_optax_has_the_same_rows():
    settings = config.PlateauSettings(
        patience=1, cooldown=1, accumulation_size=2, rtol=0.25, min_scale=0.3
    )
    values = [4, 2, 3, 3, 2, 4, 1, 1, 2, 2, 3, 3, 1, 1, 5]
    rows = replay(settings, values)
    assert replay(settings, values, as_optax=True) == rows
    assert [row.number for row in rows if row.is_drop] == [4, 10]


# Other libraries

ONES = [1.0] * 10
COOLING = next(row["values"] for row in SEQUENCES if "inside the cooldown" in row["id"])
FALLING = next(row["values"] for row in SEQUENCES if row["id"].startswith("falling"))

# The learning rate after each value, 1 at the start, as measured with ``real_torch`` and
# ``real_keras`` below: torch 2.13.0, keras 3.15.1.
MEASURED = [
    ("torch", "patience=2,factor=.5", ONES, "1 1 1 .5 .5 .5 .25 .25 .25 .125"),
    ("torch", "patience=0", ONES[:4], "1 .1 .01 .001"),
    ("torch", "patience=1,cooldown=2,factor=.5", COOLING, "1 1 .5 .5 .5 .5 .25 .25 .25 .25"),
    (
        "torch",
        "patience=1,factor=.5,threshold=.125,threshold_mode=abs",
        FALLING,
        "1 1 1 1 1 1 .5 .5 .25 .25 .125",
    ),
    ("torch", "patience=0,factor=.5,cooldown=1,min_lr=.3", ONES, "1 .5 .5" + 7 * " .3"),
    ("torch", "patience=0,factor=.5,threshold=.25", [1, 0.75, 0.75, 0.5, 0.25], "1 .5 .25 .25 .25"),
    ("torch", "patience=0,factor=.5,threshold=0", [1, 0.75, 0.75, 0.5, 0.5], "1 1 .5 .5 .25"),
    ("keras", "patience=0,factor=.5", ONES[:5], "1 .5 .25 .125 .0625"),
    ("keras", "patience=2,factor=.5", ONES, "1 1 .5 .5 .25 .25 .125 .125 .0625 .0625"),
    ("keras", "patience=2,cooldown=2,factor=.5", COOLING, "1 1 .5 .5 .5 .25 .25 .25 .125 .125"),
    ("keras", "patience=2,cooldown=1,factor=.5", COOLING, "1 1 .5 .5 .5 .25 .25 .125 .125 .0625"),
    ("keras", "patience=2,factor=.5,min_delta=.125", FALLING, "1 1 1 1 1 1 .5 .5 .25 .25 .125"),
    ("keras", "patience=1,factor=.5,cooldown=3,min_lr=.3", ONES, "1 .5 .5 .5" + 6 * " .3"),
    ("keras", "patience=1,factor=.5,min_delta=0", [1, 0.75, 0.75, 0.5, 0.5], "1 1 .5 .5 .25"),
]


def translated(library, text):
    """Return the plateau rule for a library's parameters, at a learning rate of 1."""
    parameters = translation.read_parameters(library, text)
    settings: Any = translation.translate(library, parameters, learning_rate=1.0)
    return config.PlateauSettings(mode="test-loss", **settings)


def scales(rule, values):
    return [row.scale for row in replay(rule, values)]


@pytest.mark.parametrize(("library", "parameters", "values", "expected"), MEASURED)
def test_translations_lower_the_rate_as_measured_with_the_libraries(
    library, parameters, values, expected
):
    measured = [float(scale) for scale in expected.split()]
    assert scales(translated(library, parameters), values) == pytest.approx(measured)


def real_torch(parameters, values):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **parameters)
    rates = []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def real_keras(parameters, values):
    os.environ.setdefault("KERAS_BACKEND", "jax")  # which is there already; tensorflow takes 5 s
    keras = pytest.importorskip("keras")
    callback = keras.callbacks.ReduceLROnPlateau(monitor="loss", mode="min", **parameters)
    optimizer = SimpleNamespace(learning_rate=1.0)
    callback.set_model(SimpleNamespace(optimizer=optimizer))
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"loss": value})
        rates.append(float(optimizer.learning_rate))
    return rates


@pytest.mark.parametrize("library", ["torch", "keras"])
def test_translations_agree_with_the_libraries_on_random_sequences(library):
    real = {"torch": real_torch, "keras": real_keras}[library]
    drawn = random.Random(0)
    drops = 0
    for setting in range(8):
        parameters = {"patience": drawn.randrange(4), "cooldown": drawn.randrange(5)}
        parameters |= {"factor": 0.5, "min_lr": drawn.choice([0.0, 0.125, 0.3])}
        # Thresholds and values are sums of few powers of 2, so that float32 and float64 agree
        # also where a value lies on its threshold.
        threshold = drawn.choice([0.0, 0.0625, 0.25])
        if library == "keras":
            parameters["min_delta"] = threshold
        else:
            parameters |= {"threshold": threshold, "threshold_mode": ["rel", "abs"][setting % 2]}
        text = ",".join(f"{name}={value}" for name, value in parameters.items())
        rule = translated(library, text)
        for _ in range(15):
            values = [drawn.randrange(1, 32) / 8 for _ in range(25)]
            expected = real(parameters, values)
            assert scales(rule, values) == pytest.approx(expected), (parameters, values)
            drops += len(set(expected)) - 1
    assert drops > 100  # of 120 sequences, or nothing was compared


def reference_torch(factor, min_lr, eps, learning_rate, num_drops=3000):
    """Lower a rate as PyTorch's _reduce_lr does, as often as possible."""
    rate = learning_rate
    for _ in range(num_drops):
        new_rate = max(rate * factor, min_lr)
        if rate - new_rate > eps:
            rate = new_rate
    return rate / learning_rate


def final_scale(factor, min_lr, eps, learning_rate):
    parameters = {"factor": factor, "min_lr": min_lr, "eps": eps}
    return translation.final_scale(parameters, learning_rate=learning_rate)


@given(
    factor=strategies.floats(0.05, 0.95),
    min_lr=strategies.sampled_from((0.0, 1e-7, 1e-5, 1e-3)) | strategies.floats(0, 0.1),
    eps=strategies.sampled_from((1e-12, 1e-8, 1e-5, 1e-2)) | strategies.floats(1e-300, 0.1),
    learning_rate=strategies.sampled_from((1e-6, 1e-3, 0.1, 1.0)),
)
def test_the_last_scale_with_eps_is_that_of_pytorchs_rule(factor, min_lr, eps, learning_rate):
    min_lr = min(min_lr, learning_rate)
    lowest = reference_torch(factor, min_lr, eps, learning_rate)
    assert final_scale(factor, min_lr, eps, learning_rate) == pytest.approx(lowest, rel=1e-12)


@given(
    factor=strategies.sampled_from((0.1, 0.5)) | strategies.floats(max_value=0.99),
    others=strategies.tuples(*[strategies.floats() | strategies.floats(0, 1)] * 3),
    learning_rate=strategies.sampled_from((1e-30, 1e-3, 1e30)),
)
def test_no_number_of_a_translation_raises_another_error(factor, others, learning_rate):
    numbers = {"factor": factor} | dict(zip(("min_lr", "threshold", "eps"), others, strict=True))
    text = ",".join(f"{name}={value}" for name, value in numbers.items())
    with contextlib.suppress(ConfigError):
        translate_flags("torch", text, {}, learning_rate)


def test_the_last_scale_is_found_for_every_eps():
    assert final_scale(0.9, 1e-7, 1e-8, 1e-6) == pytest.approx(0.1094, abs=5e-5)
    assert final_scale(0.9999, 0.0, 1e-8, 1e-5) == 1
    assert final_scale(0.1, 0.0, 1e-300, 1e30) < 1e-300
    assert final_scale(0.5, 0.25, 0.0, 1.0) == 0.25


def test_pytorch_ends_at_the_scale_of_its_reference():
    for factor, values in ((0.1, [1.0] * 12), (0.5, [1.0] * 40)):
        lowest = real_torch({"patience": 0, "factor": factor}, values)[-1]
        assert reference_torch(factor, 0.0, 1e-8, 1.0) == pytest.approx(lowest)


@pytest.mark.parametrize(
    ("options", "settings", "flags", "notes"),
    [
        (
            {"from_torch": "patience=10,threshold=1e-3"},
            {},
            "--patience 11 --cooldown 0 --factor 0.1 --rtol 0.001 --atol 0 --min-scale 0",
            ["its scale ends as with --min-scale 1e-06"],
        ),
        (
            {
                "from_torch": "factor=0.9,patience=0,min_lr=1e-7,eps=1e-8,threshold=0,"
                "threshold_mode=abs"
            },
            {"learning_rate": 1e-6},
            "--patience 1 --cooldown 0 --factor 0.9 --rtol 0 --atol 1e-30 --min-scale 0.1",
            ["rate of 1e-06\n", "cannot both be 0", "its scale ends as with --min-scale 0.1094"],
        ),
        (
            {"from_torch": " threshold_mode='abs', cooldown = 3, eps=0"},
            {},
            "--patience 11 --cooldown 3 --factor 0.1 --rtol 0 --atol 0.0001 --min-scale 0",
            [],
        ),
        (
            {"from_keras": "patience=10,min_delta=1e-4,cooldown=2,mode=auto"},
            {},
            "--patience 10 --cooldown 1 --factor 0.1 --rtol 0 --atol 0.0001 --min-scale 0",
            [],
        ),
        (
            {"from_keras": "patience=0,min_lr=0.001,min_delta=0"},
            {"learning_rate": 0.008},
            "--patience 1 --cooldown 0 --factor 0.1 --rtol 0 --atol 1e-30 --min-scale 0.125",
            ["for a --learning-rate of 0.008", "cannot both be 0"],
        ),
    ],
)
def test_a_translation_is_one_line_of_valid_flags(options, settings, flags, notes, schedule):
    output = schedule(settings, **options)
    assert output.lines == [flags]
    assert len(output.log.splitlines()) == len(notes) + 1
    assert "count epochs in" in output.log
    for note in notes:
        assert note in output.log
    words = flags.split()
    given = {
        flag[2:].replace("-", "_"): RawValue(value, "flag")
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    rule = config.resolve(given).settings.plateau
    assert rule.count(rule.patience, 1) >= 1


def test_a_translation_is_replayed_over_values(schedule):
    output = schedule(values="1,1,1,1,1", from_torch="patience=2,factor=0.25", as_json=True)
    assert [each["scale"] for each in output.objects] == [1, 1, 1, 0.25, 0.25]
    assert "as flags: --patience 3 " in output.log


def test_compare_uses_the_same_numbers_and_names_differences(schedule):
    settings = {"patience": 2, "cooldown": 2}
    values = ",".join(map(str, COOLING))
    output = schedule(settings, values=values, compare="optax,torch,keras", as_json=True)
    expected = {
        name: scales(translated(name, "patience=2,cooldown=2,factor=0.5"), COOLING)
        for name in ("torch", "keras")
    }
    for name, column in expected.items():
        assert [each[f"{name}_scale"] for each in output.objects] == column
    assert [each["scale"] for each in output.objects] == [1, 1, *[0.5] * 4, *[0.25] * 4]
    output = schedule(settings, values=values, compare=" keras, torch")
    assert output.lines[0].split()[-4:] == ["optax", "drop", "keras", "torch"]
    assert [line.split()[0] for line in output.lines[-3:]] == ["optax", "keras", "torch"]
    assert "rtol is used as min_delta, which is absolute" in output.log
    assert "here --patience 3 --cooldown 2 " in output.log
    output = schedule(settings | {"atol": 0.5}, values="1", compare="keras,torch")
    assert "rtol left out" in output.log
    assert "atol left out" in output.log


# Runs


def drops_of(path):
    return [event for event in Run.open(path).events if isinstance(event, Drop)]


def copy_run(run, to):
    """Copy a run without its checkpoints, against which its files would be verified."""
    return shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints"))


def test_a_replay_with_the_settings_of_a_run_reproduces_its_drops(small_run, schedule):
    drops = drops_of(small_run)
    assert drops
    output = schedule(source=str(small_run), as_json=True)
    fell = [each for each in output.objects if each["reason"]]
    assert [(each["epoch"], each["step"], each["scale"]) for each in fell] == [
        (drop.epoch, drop.step, drop.scale_after) for drop in drops
    ]
    assert [each["position"] for each in fell] == [drop.position for drop in drops]
    assert [each["reason"] for each in fell] == [drop.reason for drop in drops]
    assert f"all drops are those of the run: {len(drops)}" in output.log
    assert "WARNING" not in output.log


def test_the_end_of_a_run_names_the_nearest_miss_of_its_replay(small_run, schedule):
    output = schedule(source=str(small_run), as_json=True)
    ((step, text),) = (
        (each["step"], each["nearest_miss"]) for each in output.objects if each["nearest_miss"]
    )
    assert describe_end(Run.open(small_run), "")["nearest miss"] == text
    assert re.match(rf"wait 1 of 2 until epoch \d, after {step} steps: 1 observation short", text)
    assert re.search(r"--patience 1.* would have lowered the rate$", text)


def test_values_after_the_first_different_drop_are_counterfactual(small_run, tmp_path, schedule):
    first = drops_of(small_run)[0]
    output = schedule({"patience": 1000}, source=str(small_run))
    place = f"(epoch {first.epoch}, after {first.step:,} steps)"
    assert f"{place} is counterfactual" in output.log  # the first one is missing
    output = schedule({"factor": 0.3}, source=str(small_run))
    assert f"{place} is counterfactual" in output.log  # it fell to another scale
    output = schedule({"patience": 1}, source=str(small_run), as_json=True)
    fell = next(each for each in output.objects if each["reason"])
    assert fell["step"] < first.step
    assert f"(epoch {fell['epoch']}, after {fell['step']:,} steps) is counterfactual" in output.log
    # A run under another schedule has observations and no drop.
    run = copy_run(small_run, tmp_path / "cosine")
    text = (run / "config.toml").read_text()
    assert 'schedule = "plateau"' in text
    (run / "config.toml").write_text(text.replace('schedule = "plateau"', 'schedule = "cosine"'))
    (run / "events.jsonl").write_text("")
    output = schedule(source=str(run))
    assert "The whole replay is counterfactual" in output.log
    assert "nearest miss" not in describe_end(Run.open(run), "")
    (run / "config.toml").write_text(text.replace('schedule = "plateau"', 'schedule = "constant"'))
    output = schedule(source=str(run))
    assert f"{place} is counterfactual" in output.log


def test_any_run_can_be_replayed_over_its_evaluations(small_run, schedule):
    records = [
        json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()[1:]
    ]
    output = schedule(
        {"accumulation_size": 2}, source=str(small_run), mode="test-loss", as_json=True
    )
    assert [each["value"] for each in output.objects] == [record["test_loss"] for record in records]
    assert [each["observation"] is None for each in output.objects] == [True, False] * 3
    assert [each["step"] for each in output.objects] == [record["step"] for record in records]
    # In windows of one epoch, not of as many as the run's steps.
    output = schedule(source=str(small_run), mode="test-accuracy", as_json=True)
    assert [each["observation"] for each in output.objects] == pytest.approx(
        [1 - record["test_accuracy"] for record in records]
    )


@pytest.mark.parametrize(
    ("settings", "options", "problem"),
    [
        ({}, {"mode": "train-accuracy"}, "recorded no windows of the train accuracy"),
        ({"accumulation_size": 5}, {}, "recorded means of 4 steps, not of 5"),
        ({}, {"mode": "trainloss"}, r"--mode must be one of .* \(did you mean train-loss\?\)"),
        ({}, {"mode": "val-loss"}, "held out no images for val-loss"),
        ({}, {"replica": 3}, "has no replica 3"),
        ({}, {"column": "loss"}, "--column is for a CSV file"),
    ],
)
def test_values_that_a_run_did_not_record_are_refused(
    settings, options, problem, small_run, schedule
):
    with pytest.raises((ConfigError, RunError), match=problem) as refused:
        schedule(settings, source=str(small_run), **options)
    assert refused.value.hint


@pytest.fixture
def two_seeds(small_run, tmp_path):
    """Return a copy of the small run whose seeds 0 and 4 recorded the same."""
    run = copy_run(small_run, tmp_path / "several")
    text = (run / "config.toml").read_text()
    assert "\nseed = 0 " in text
    (run / "config.toml").write_text(text.replace("\nseed = 0 ", '\nseed = "0,4" '))
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = (run / name).read_text().splitlines()
        again = [json.dumps(json.loads(line) | {"replica": 1, "seed": 4}) for line in lines]
        both = sum(zip(lines, again, strict=True), ())
        (run / name).write_text("\n".join([*both, ""]))
    return run


def test_one_replica_is_replayed_at_a_time(two_seeds, schedule):
    with pytest.raises(ConfigError, match="has 2 replicas"):
        schedule(source=str(two_seeds))
    with pytest.raises(ConfigError, match="has no replica 2"):
        schedule(source=str(two_seeds), replica=2)
    output = schedule(source=str(two_seeds), replica=1)
    assert "replica 1 with seed 4" in output.log
    assert "all drops are those of the run: " in output.log


def test_of_several_seeds_the_one_with_the_longest_wait_is_named(two_seeds):
    run = Run.open(two_seeds)
    nearest = describe_end(run, "")["nearest miss"]
    assert nearest.startswith("seed 0: wait 1 of 2 ")  # the first one of equal seeds
    falling = [ObservedValue(step=step, value=-step) for step in range(1, 5)]
    first, *others = run.histories
    records = [first.records[0], record_of(1, observations=falling)]
    run.histories = [first._replace(records=records), *others]
    assert describe_end(run, "")["nearest miss"] == nearest.replace("seed 0", "seed 4")


# The plot


@pytest.mark.parametrize("num_values", [1, 6, 400])
def test_the_plot_marks_each_drop_and_no_text_leaves_it(num_values):
    rule = config.PlateauSettings(mode="test-loss", patience=2, min_scale=2**-20)
    values = [0.5 + 3 / number + number % 3 / 50 for number in range(1, num_values + 1)]
    rows, other = replay(rule, values), replay(rule.model_copy(update={"patience": 3}), values)
    positions = [Position(number, number * 10, number) for number in range(1, num_values + 1)]
    series = Series("runs/" + "$long_name$" * 12, "val_loss", values, rule, positions=positions)
    drops = [row.number for row in rows if row.is_drop]
    figure: Any = draw_replay(
        series,
        {"optax": rows, "torch": other},
        rule="patience 2",
        reasons=["a long $reason$ " * 20 for _ in drops],
        ending="",
        change=rows[-1],
    )
    top, bottom = figure.axes
    curve = next(line for line in top.lines if line.get_label() == "observed")
    marks = [line for line in top.lines if line.get_label() == "drop of the scale"]
    assert curve.get_ydata().tolist() == [row.mean for row in rows]
    assert [number for line in marks for number in line.get_xdata()] == drops
    ours, torch = bottom.lines[:2]
    assert ours.get_ydata()[-1] == rows[-1].scale
    assert torch.get_ydata()[-1] == other[-1].scale
    FigureCanvasAgg(figure).draw()
    assert [text.get_text() for text in bottom.texts] == ["counterfactual"]
    for text in filter(None, (figure._supxlabel, figure._suptitle)):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1, "a text leaves the plot"


def test_the_command_writes_the_plot(tmp_path, schedule):
    path = tmp_path / "replay.svg"
    output = schedule({"patience": 2}, values="3,2,2,2", plot=path, compare="keras")
    assert output.lines[-1].split() == ["plot", str(path)]
    assert path.read_bytes().startswith(b"<?xml")
