"""plateau-train schedule: the rule over lists, files and runs, and the rules of other libraries."""

import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import command
from matplotlib.backends.backend_agg import FigureCanvasAgg

from plateau_train import config
from plateau_train.commands.schedule import Asked, answer, step
from plateau_train.config import RawValue
from plateau_train.data import csv_files
from plateau_train.errors import ConfigError, RunError
from plateau_train.numerics import translation
from plateau_train.plots.replay import draw_replay
from plateau_train.report.console import Report
from plateau_train.report.replays import Place, Series
from plateau_train.run.directory import RunDirectory
from plateau_train.run.records import read_drops

SEQUENCES = json.loads((Path(__file__).parent / "plateau_sequences.json").read_text())["rows"]


def ask(capsys, settings=None, *, file=None, wants_json=False, **asked):
    """Call what the command calls; return the lines of standard output, and what was told."""
    given = {key: RawValue(str(value), "flag") for key, value in (settings or {}).items()}
    resolved = config.resolve(given, file=file)
    lines = list(answer(resolved, Asked(**asked), Report(), wants_json=wants_json))
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    return lines + printed.out.splitlines(), printed.err


def replayed(capsys, settings=None, **asked):
    """Return the JSON objects, one for each value, and what was told."""
    lines, told = ask(capsys, settings, wants_json=True, **asked)
    return [json.loads(line) for line in lines], told


def flags_of(row):
    return {key: row[key] for key in row.keys() - {"id", "values", "scales"}}


@pytest.mark.parametrize("row", SEQUENCES, ids=lambda row: row["id"])
def test_the_json_has_the_measured_scale_after_each_value(row, capsys):
    values = ",".join(map(str, row["values"]))
    objects, told = replayed(capsys, flags_of(row), values=values)
    assert [each["scale"] for each in objects] == pytest.approx(row["scales"])
    assert [each["number"] for each in objects] == list(range(1, len(row["values"]) + 1))
    assert [each["value"] for each in objects] == row["values"]
    before = [1, *row["scales"]]
    fell = [scale < old for old, scale in zip(before, row["scales"], strict=False)]
    assert [each["reason"] is not None for each in objects] == fell
    assert told == ""


def test_the_command_prints_a_json_object_a_value_with_what_the_rule_weighed(tmp_path):
    row = next(row for row in SEQUENCES if row["id"].startswith("best value seen inside"))
    values = ",".join(map(str, row["values"]))
    shown = command(
        "schedule", "--values", values, "--patience=2", "--cooldown=2", "--json", cwd=tmp_path
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    objects = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [each["scale"] for each in objects] == row["scales"]
    assert [each["wait"] for each in objects] == [0, 1, 2, 0, 0, 1, 2, 0, 0, 1]
    assert [each["cooldown"] for each in objects] == [0, 0, 2, 1, 0, 0, 2, 1, 0, 0]
    assert [each["best"] for each in objects] == [None, 1, 1, 1, *[0.5] * 6]
    assert [each["to_beat"] for each in objects[1:5]] == pytest.approx([0.9999] * 3 + [0.49995])
    assert objects[2]["reason"] == (
        "2 observations in a row (value) were not below 0.9999 (best 1); the last was 1"
    )


def test_the_command_reads_standard_input_and_prints_a_table_with_reasons(tmp_path):
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


def test_inside_a_window_there_is_no_observation_and_the_table_has_a_row_a_window(capsys):
    settings = {"patience": 1, "accumulation_size": 2}
    objects, _ = replayed(capsys, settings, values="4,2,3,3,5")
    assert [each["observation"] for each in objects] == [None, 3, None, 3, None]
    assert [each["scale"] for each in objects] == [1, 1, 1, 0.5, 0.5]
    assert "(value, mean of 2)" in objects[3]["reason"]
    lines, told = ask(capsys, settings, values="4,2,3,3,5")
    assert [line.split()[:2] for line in lines[:3]] == [
        ["numbers", "mean"],
        ["1-2", "3"],
        ["3-4", "3"],
    ]
    assert "the last 1 of 5 values do not fill a window of 2" in told


def test_of_very_many_observations_the_table_shows_the_drops(capsys):
    lines, told = ask(capsys, {"patience": 1500}, values=",".join(["1"] * 2000))
    assert [line.split()[0] for line in lines] == ["number", "1501", "2000", "drop", "scale"]
    assert "2,000 observations" in told


def test_settings_come_from_a_file_too_and_flags_outrank_it(tmp_path, capsys):
    file = tmp_path / "rule.toml"
    file.write_text("[plateau]\npatience = 2\nfactor = 0.25\n")
    objects, _ = replayed(capsys, {"factor": 0.125}, values="1,1,1", file=file)
    assert objects[-1]["scale"] == 0.125


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
    ],
    ids=["bom", "quotes", "tabs", "semicolons", "bare", "no names", "gaps"],
)
def test_a_column_is_found_in_the_files_that_programs_write(tmp_path, content, column, values):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    read = csv_files.read_column(str(path), column)
    assert read.values == values
    assert read.num_empty == (2 if b",\n" in content else 0)


@pytest.mark.parametrize(
    ("content", "column", "problem", "hint"),
    [
        (b"step,loss\n1,2\n", "los", "no column los (did you mean loss?)", "step, loss"),
        (b"epoch,loss\n1,2\n", None, "2 columns of numbers", "--column NAME: epoch, loss"),
        (b"a,b\nx,y\n", None, "no columns of numbers", "a, b"),
        (b"a,a\n1,2\n", "a", "two columns a", "a, a"),
        (b"loss\n1\n\nfast\n", None, "line 4, loss, holds 'fast', which is no number", "0.25"),
        (b"a,loss\nx,1\ny\n", "loss", "line 3, loss, holds nothing", "0.25"),
        (b"loss\n1\nNaN\n", None, "line 3, loss, is nan, which the rule would take", "diverged"),
        (b"loss\n1\n-inf\n", None, "line 3, loss, is -inf", "diverged"),
        (b"", None, "holds no values", "one line"),
        (b"loss\n", "loss", "holds no values", "one line"),
        (b"a,loss\n1,\n", "loss", "no value in it", "a, loss"),
        (b"\x89PNG\r\n\x1a\n\xff", None, "no text in UTF-8", "CSV"),
        (b"loss\n" + b"1" * 1_100_000, None, "a line of more than 1,000,000 characters", "CSV"),
        (b'loss\n"' + b"1\n" * 200_000, None, "is no CSV: field larger than", "quote"),
        (b"1\n" * 1001, None, "more than 1,000 values", "part"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:30],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_with_its_line_and_a_way_out(
    tmp_path, monkeypatch, content, column, problem, hint
):
    monkeypatch.setattr(csv_files, "MOST_VALUES", 1000)
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        csv_files.read_column(str(path), column)
    (said,) = refused.value.problems
    assert said.startswith(str(path))
    assert problem in said
    assert hint in refused.value.hint


def test_what_is_no_file_or_without_end_is_refused_before_memory_is_full(tmp_path):
    for source, problem in (
        (str(tmp_path / "none.csv"), "does not exist"),
        ("/dev/zero", "a line of more than"),
        (str(tmp_path / ("x" * 300)), "cannot be read: File name too long"),
    ):
        with pytest.raises(ConfigError, match=problem):
            csv_files.read_column(source, None)


@pytest.mark.parametrize(
    ("settings", "asked", "problem"),
    [
        ({}, {}, "there are no values"),
        ({}, {"values": "1,2", "source": "log.csv"}, "both log.csv and --values"),
        ({}, {"values": ""}, "number 1 holds nothing, which is no number"),
        ({}, {"values": "1,,2"}, "number 2 holds nothing"),
        ({}, {"values": "1,x"}, "number 2 holds 'x', which is no number"),
        ({}, {"values": "1,nan"}, "number 2 is nan"),
        ({}, {"values": "1,1e39"}, "value 2 is 1e.39, too large"),
        ({"accumulation_size": 10}, {"values": "1,1e38"}, "value 2 is 1e.38, too large"),
        ({}, {"values": "1", "compare": "optax,keres"}, r"knows no keres \(did you mean keras\?\)"),
        ({}, {"values": "1", "compare": ""}, "knows no rule of no name"),
        ({}, {"values": "1", "column": "loss"}, "--column is for a CSV file"),
        ({}, {"values": "1", "mode": "test-loss"}, "--mode is for a run"),
        ({}, {"values": "1", "replica": 0}, "--replica is for a run"),
        ({}, {"values": "1", "plot": Path("a.jpg")}, "a plot cannot be written as a.jpg"),
        ({}, {"from_torch": "", "plot": Path("a.png")}, "--plot is for values"),
        ({}, {"from_torch": "", "from_keras": ""}, "--from-torch and --from-keras both"),
        ({}, {"values": "1", "from_torch": "", "compare": "torch"}, "not for --from-torch"),
        ({"patience": 3}, {"from_torch": ""}, "--from-torch and --patience both"),
        ({}, {"from_torch": "patients=3"}, r"no patients \(did you mean patience\?\)"),
        ({}, {"from_keras": "threshold=3"}, "--from-keras knows no threshold"),
        ({}, {"from_torch": "patience=2.5"}, "patience must be a whole number, got 2.5"),
        ({}, {"from_torch": "threshold="}, "threshold must be a number, got nothing"),
        ({}, {"from_torch": "threshold_mode=both"}, "must be one of rel, abs, got both"),
        ({}, {"from_torch": "factor=1"}, "factor=1: --factor must be a number above 0 below 1"),
        ({}, {"from_torch": "patience=-1"}, "--patience must be a whole number from 1"),
        ({}, {"from_keras": "min_delta=nan"}, "--atol must be a number"),
        ({}, {"from_torch": "min_lr=0.1"}, "--min-scale must be a number from 0 below 1, got 10"),
        ({}, {"from_keras": "mode=max"}, "mode=max has no counterpart"),
        ({"rtol": 0}, {"values": "1"}, "--rtol and --atol are both 0"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_words_that_cannot_be_used_are_refused(settings, asked, problem, capsys):
    with pytest.raises(ConfigError, match=problem) as refused:
        ask(capsys, settings, **asked)
    assert refused.value.hint


def test_a_refusal_is_a_line_and_a_hint_and_an_exit_code(tmp_path):
    (tmp_path / "folder").mkdir()
    for words, code in ((["--values", "1,x"], 2), (["folder"], 4)):
        refused = command("schedule", *words, cwd=tmp_path)
        assert refused.returncode == code
        assert [line.partition(":")[0] for line in refused.stderr.splitlines()] == ["error", "hint"]
        assert refused.stdout == ""


def test_negative_values_are_warned_of_only_where_optax_misjudges_them(capsys):
    lines, told = ask(capsys, {"patience": 2}, values="-1,-1,-1,-1")
    assert "1 at the end, no drop" in lines[-1]
    assert "NOTICE: There are negative values, such as -1" in told
    lines, told = ask(capsys, {"patience": 2, "rtol": 0, "atol": 0.1}, values="-1,-1,-1,-1")
    assert "0.5 at the end, 1 drop at value 3" in lines[-1]
    assert "NOTICE" not in told


# Other libraries

ONES = [1.0] * 10
COOLING = next(row["values"] for row in SEQUENCES if "inside the cooldown" in row["id"])
FALLING = next(row["values"] for row in SEQUENCES if row["id"].startswith("falling"))

# The learning rate, 1 at the start, after each value: written down from torch 2.13.0 and
# keras 3.15.1 as ``real_torch`` and ``real_keras`` below step them.
MEASURED = [
    (
        "torch", {"patience": 2, "factor": 0.5}, ONES,
        [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125],
    ),
    ("torch", {"patience": 0}, ONES[:4], [1, 0.1, 0.01, 0.001]),
    (
        "torch", {"patience": 1, "cooldown": 2, "factor": 0.5}, COOLING,
        [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25],
    ),
    (
        "torch", {"patience": 1, "factor": 0.5, "threshold": 0.125, "threshold_mode": "abs"},
        FALLING, [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125],
    ),
    (
        "torch", {"patience": 0, "factor": 0.5, "cooldown": 1, "min_lr": 0.3}, ONES,
        [1, 0.5, 0.5, *[0.3] * 7],
    ),
    (
        "torch", {"patience": 0, "factor": 0.5, "threshold": 0.25}, [1, 0.75, 0.75, 0.5, 0.25],
        [1, 0.5, 0.25, 0.25, 0.25],
    ),
    (
        "torch", {"patience": 0, "factor": 0.5, "threshold": 0}, [1, 0.75, 0.75, 0.5, 0.5],
        [1, 1, 0.5, 0.5, 0.25],
    ),
    ("keras", {"patience": 0, "factor": 0.5}, ONES[:5], [1, 0.5, 0.25, 0.125, 0.0625]),
    (
        "keras", {"patience": 2, "factor": 0.5}, ONES,
        [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625],
    ),
    (
        "keras", {"patience": 2, "cooldown": 2, "factor": 0.5}, COOLING,
        [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125],
    ),
    (
        "keras", {"patience": 2, "cooldown": 1, "factor": 0.5}, COOLING,
        [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625],
    ),
    (
        "keras", {"patience": 2, "factor": 0.5, "min_delta": 0.125}, FALLING,
        [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125],
    ),
    (
        "keras", {"patience": 1, "factor": 0.5, "cooldown": 3, "min_lr": 0.3}, ONES,
        [1, 0.5, 0.5, 0.5, *[0.3] * 6],
    ),
    (
        "keras", {"patience": 1, "factor": 0.5, "min_delta": 0}, [1, 0.75, 0.75, 0.5, 0.5],
        [1, 1, 0.5, 0.5, 0.25],
    ),
]  # fmt: skip


def translated(library, parameters):
    """Return our rule for what a library's is called with, at a learning rate of 1."""
    text = ",".join(f"{name}={value}" for name, value in parameters.items())
    whole = translation.read_parameters(library, text)
    return config.PlateauSettings(
        mode="test-loss", **translation.translate(library, whole, learning_rate=1.0)
    )


def scales(rule, values):
    return [row.scale for row in step(rule, values)]


@pytest.mark.parametrize(("library", "parameters", "values", "expected"), MEASURED)
def test_the_translations_step_as_the_libraries_were_measured(
    library, parameters, values, expected
):
    assert scales(translated(library, parameters), values) == pytest.approx(expected)


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
def test_the_translations_step_as_the_real_libraries_on_random_sequences(library):
    real = {"torch": real_torch, "keras": real_keras}[library]
    drawn = random.Random(0)
    drops = 0
    for setting in range(8):
        parameters = {
            "patience": drawn.randrange(4), "cooldown": drawn.randrange(5), "factor": 0.5,
            "min_lr": drawn.choice([0.0, 0.125, 0.3]),
        }  # fmt: skip
        # Thresholds and values are sums of few powers of 2, so that float32 and float64 agree
        # also where a value lies on its threshold.
        threshold = drawn.choice([0.0, 0.0625, 0.25])
        if library == "keras":
            parameters["min_delta"] = threshold
        else:
            parameters |= {"threshold": threshold, "threshold_mode": ["rel", "abs"][setting % 2]}
        rule = translated(library, parameters)
        for _ in range(15):
            values = [drawn.randrange(1, 32) / 8 for _ in range(25)]
            expected = real(parameters, values)
            assert scales(rule, values) == pytest.approx(expected), (parameters, values)
            drops += len(set(expected)) - 1
    assert drops > 100  # of 120 sequences, or nothing was compared


def test_pytorch_ends_at_the_scale_that_eps_leaves():
    assert translation.find_rest(0.9999, 1e-8, learning_rate=1e-5) == 1
    assert translation.find_rest(0.5, 0.0, learning_rate=1.0) == 0
    for factor, values in ((0.1, [1.0] * 12), (0.5, [1.0] * 40)):
        rest = real_torch({"patience": 0, "factor": factor}, values)[-1]
        assert translation.find_rest(factor, 1e-8, learning_rate=1.0) == pytest.approx(rest)


@pytest.mark.parametrize(
    ("asked", "settings", "flags", "notes"),
    [
        (
            {"from_torch": "patience=10,threshold=1e-3"}, {},
            "--patience 11 --cooldown 0 --factor 0.1 --rtol 0.001 --atol 0 --min-scale 0",
            ["its scale ends as with --min-scale 1e-06"],
        ),
        (
            {"from_torch": " threshold_mode='abs', cooldown = 3, eps=0"}, {},
            "--patience 11 --cooldown 3 --factor 0.1 --rtol 0 --atol 0.0001 --min-scale 0",
            [],
        ),
        (
            {"from_keras": "patience=10,min_delta=1e-4,cooldown=2,mode=auto"}, {},
            "--patience 10 --cooldown 1 --factor 0.1 --rtol 0 --atol 0.0001 --min-scale 0",
            [],
        ),
        (
            {"from_keras": "patience=0,min_lr=0.001,min_delta=0"}, {"learning_rate": 0.008},
            "--patience 1 --cooldown 0 --factor 0.1 --rtol 0 --atol 1e-30 --min-scale 0.125",
            ["for a --learning-rate of 0.008", "cannot both be 0"],
        ),
    ],
)  # fmt: skip
def test_a_translation_is_a_line_of_flags_that_are_read_back(asked, settings, flags, notes, capsys):
    (line,), told = ask(capsys, settings, **asked)
    assert line == flags
    assert len(told.splitlines()) == len(notes) + 1
    assert "count epochs in" in told
    for note in notes:
        assert note in told
    words = line.split()
    given = {
        flag[2:].replace("-", "_"): RawValue(value, "flag")
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    assert config.resolve(given).settings.plateau.patience >= 1


def test_a_translation_is_stepped_over_values_where_there_are_some(capsys):
    objects, told = replayed(
        capsys, values="1,1,1,1,1", from_torch="patience=2,factor=0.25", source=None
    )
    assert [each["scale"] for each in objects] == [1, 1, 1, 0.25, 0.25]
    assert "in flags: --patience 3 " in told


def test_compare_gives_each_library_the_same_numbers_and_says_what_it_cannot_take(capsys):
    settings = {"patience": 2, "cooldown": 2}
    values = ",".join(map(str, COOLING))
    objects, _ = replayed(capsys, settings, values=values, compare="optax,torch,keras")
    expected = {
        name: scales(translated(name, {"patience": 2, "cooldown": 2, "factor": 0.5}), COOLING)
        for name in ("torch", "keras")
    }
    for name, column in expected.items():
        assert [each[name]["scale"] for each in objects] == column
    assert [each["scale"] for each in objects] == [1, 1, *[0.5] * 4, *[0.25] * 4]
    lines, told = ask(capsys, settings, values=values, compare=" keras, torch")
    assert lines[0].split()[-4:] == ["optax", "drop", "keras", "torch"]
    assert [line.split()[0] for line in lines[-3:]] == ["optax", "keras", "torch"]
    assert "rtol's number in min_delta, which is absolute" in told
    assert "here --patience 3 --cooldown 2 " in told
    _, told = ask(capsys, settings | {"atol": 0.5}, values="1", compare="keras,torch")
    assert "rtol left out" in told
    assert "atol left out" in told


# Runs


def test_a_run_replayed_with_its_own_settings_drops_where_it_dropped(small_run, capsys):
    drops = read_drops(RunDirectory.open(small_run).events)
    assert drops
    objects, told = replayed(capsys, source=str(small_run))
    fell = [each for each in objects if each["reason"]]
    assert [(each["epoch"], each["step"], each["scale"]) for each in fell] == [
        (drop.epoch, drop.step, drop.scale_after) for drop in drops
    ]
    assert [each["position"] for each in fell] == [drop.position for drop in drops]
    assert [each["reason"] for each in fell] == [drop.reason for drop in drops]
    assert f"all {len(drops)} drops are those that happened" in told
    assert "NOTICE" not in told


def test_what_follows_the_first_changed_drop_is_said_to_be_counterfactual(
    small_run, tmp_path, capsys
):
    first = read_drops(RunDirectory.open(small_run).events)[0]
    _, told = ask(capsys, {"patience": 1000}, source=str(small_run))
    place = f"(epoch {first.epoch}, after {first.step:,} steps)"
    assert f"{place} is counterfactual" in told  # the first one is missing
    _, told = ask(capsys, {"factor": 0.3}, source=str(small_run))
    assert f"{place} is counterfactual" in told  # it fell to another scale
    objects, told = replayed(capsys, {"patience": 1}, source=str(small_run))
    fell = next(each for each in objects if each["reason"])
    assert fell["step"] < first.step
    assert f"(epoch {fell['epoch']}, after {fell['step']:,} steps) is counterfactual" in told
    # A run under another schedule has observations and no drop.
    run = tmp_path / "cosine"
    shutil.copytree(small_run, run)
    text = (run / "config.toml").read_text()
    assert 'schedule = "plateau"' in text
    (run / "config.toml").write_text(text.replace('schedule = "plateau"', 'schedule = "cosine"'))
    (run / "events.jsonl").write_text("")
    _, told = ask(capsys, source=str(run))
    assert "All of this is counterfactual" in told
    (run / "config.toml").write_text(text.replace('schedule = "plateau"', 'schedule = "constant"'))
    _, told = ask(capsys, source=str(run))
    assert f"{place} is counterfactual" in told


def test_any_run_can_be_replayed_on_its_evaluations(small_run, capsys):
    records = [
        json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()[1:]
    ]
    objects, _ = replayed(capsys, {"accumulation_size": 2}, source=str(small_run), mode="test-loss")
    assert [each["value"] for each in objects] == [record["test_loss"] for record in records]
    assert [each["observation"] is None for each in objects] == [True, False] * 3
    assert [each["step"] for each in objects] == [record["step"] for record in records]
    # In windows of one epoch, not of as many as the run's steps.
    objects, _ = replayed(capsys, source=str(small_run), mode="test-accuracy")
    assert [each["observation"] for each in objects] == pytest.approx(
        [1 - record["test_accuracy"] for record in records]
    )


@pytest.mark.parametrize(
    ("settings", "asked", "problem"),
    [
        ({}, {"mode": "train-accuracy"}, "recorded no windows of the train accuracy"),
        ({"accumulation_size": 5}, {}, "recorded means of 4 steps, and no others"),
        ({}, {"mode": "trainloss"}, r"--mode must be one of .* \(did you mean train-loss\?\)"),
        ({}, {"mode": "val-loss"}, "held no images out for val-loss"),
        ({}, {"replica": 3}, "has no replica 3"),
        ({}, {"column": "loss"}, "--column is for a CSV file"),
    ],
)  # fmt: skip
def test_what_a_run_did_not_record_is_refused(settings, asked, problem, small_run, capsys):
    with pytest.raises((ConfigError, RunError), match=problem) as refused:
        ask(capsys, settings, source=str(small_run), **asked)
    assert refused.value.hint


def test_of_several_replicas_one_is_replayed_at_a_time(small_run, tmp_path, capsys):
    run = tmp_path / "several"
    shutil.copytree(small_run, run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[run]", "[run]\nseeds = [3, 4]"))
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = (run / name).read_text().splitlines()
        again = [json.dumps(json.loads(line) | {"replica": 1}) for line in lines]
        both = sum(zip(lines, again, strict=True), ())
        (run / name).write_text("\n".join([*both, ""]))
    with pytest.raises(ConfigError, match="has 2 replicas"):
        ask(capsys, source=str(run))
    with pytest.raises(ConfigError, match="has no replica 2"):
        ask(capsys, source=str(run), replica=2)
    _, told = ask(capsys, source=str(run), replica=1)
    assert "replica 1 with seed 4" in told
    assert "drops are those that happened" in told


# The picture


@pytest.mark.parametrize("num_values", [1, 6, 400])
def test_the_picture_marks_each_drop_on_the_curve_and_fits(num_values):
    rule = config.PlateauSettings(mode="test-loss", patience=2, min_scale=2**-20)
    values = [0.5 + 3 / number + number % 3 / 50 for number in range(1, num_values + 1)]
    rows = step(rule, values, "val_loss")
    places = [Place(number, number * 10, number) for number in range(1, num_values + 1)]
    series = Series("runs/" + "$long_name$" * 12, "val_loss", values, rule, places=places)
    other = step(rule.model_copy(update={"patience": 3}), values)
    figure = draw_replay(series, {"optax": rows, "torch": other})
    top, bottom = figure.axes
    curve = next(line for line in top.lines if line.get_label() == "observed")
    marks = next(line for line in top.lines if line.get_label() == "lowers the scale")
    assert curve.get_ydata().tolist() == [row.observation for row in rows]
    assert marks.get_xdata().tolist() == [row.number for row in rows if row.reason]
    ours, torch = bottom.lines[:2]
    assert ours.get_ydata()[-1] == rows[-1].scale
    assert torch.get_ydata()[-1] == other[-1].scale
    FigureCanvasAgg(figure).draw()
    texts = [figure._supxlabel, figure._suptitle]
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1, "a text leaves the picture"


def test_the_command_writes_the_picture(tmp_path, capsys):
    path = tmp_path / "replay.svg"
    lines, _ = ask(capsys, {"patience": 2}, values="3,2,2,2", plot=path, compare="keras")
    assert lines[-1].split() == ["plot", str(path)]
    assert path.read_bytes().startswith(b"<?xml")
