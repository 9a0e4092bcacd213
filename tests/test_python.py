"""``import plateau_train``: what the functions return, and the words of their errors."""

import contextlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
import pytest
from helpers import SMALL

import plateau_train as pt
from plateau_train import config
from plateau_train.api import evaluation
from plateau_train.api.options import SettingOptions, SweepOptions
from plateau_train.config import SETTINGS
from plateau_train.data import garments
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"

# SMALL as arguments; a text is read as on the command line.
SMALL_ARGUMENTS: Any = {
    **{flag[2:].replace("-", "_"): text for flag, text in (each.split("=") for each in SMALL)},
    "quiet": True,
}


pytestmark = pytest.mark.usefixtures("no_saved_plots")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("python")


@pytest.fixture(scope="module")
def one(folder):
    """A run with one seed and some drops."""
    return pt.train(**SMALL_ARGUMENTS, epochs=4, runs_dir=folder / "runs", name="one")


@pytest.fixture(scope="module")
def several(folder):
    """A run with several seeds, and with held-out images."""
    return pt.train(
        **SMALL_ARGUMENTS,
        epochs=2,
        seed=[3, 5],
        val_fraction=0.1,
        runs_dir=folder / "runs",
        name="several",
    )


@pytest.fixture(scope="module")
def sweep(folder):
    return pt.sweep(
        **SMALL_ARGUMENTS | {"learning_rate": [0.03, 1e30]},
        epochs=1,
        seed=range(2),
        runs_dir=folder / "runs",
    )


def run_python(code, **environment):
    """Run code in a process of its own, and return what it prints."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_import_takes_less_than_a_tenth_of_a_second_and_loads_no_library():
    measured = run_python(
        "import sys, time; start = time.perf_counter(); import plateau_train; "
        "print(time.perf_counter() - start, *sys.modules)"
    )
    seconds, *modules = measured.split()
    assert float(seconds) < 0.1
    assert not {"jax", "matplotlib", "tensorflow", "numpy", "pydantic"} & {*modules}


def test_the_names_of_the_package_are_listed_and_exist():
    assert {"train", "Run", "errors", "__version__"} <= {*dir(pt)} >= {*pt.__all__}
    assert all(inspect.getdoc(getattr(pt, name)) for name in pt.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", pt.__version__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        pt.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_types_of_the_arguments_are_those_of_the_settings():
    assert tuple(SettingOptions.__annotations__) == config.ARGUMENTS
    assert tuple(SweepOptions.__annotations__) == config.ARGUMENTS


def test_signatures_show_every_setting_with_its_default():
    for function in (pt.train, pt.sweep):
        parameters = inspect.signature(function).parameters
        assert [name for name in parameters if name in config.ARGUMENTS] == [*config.ARGUMENTS]
        for setting in SETTINGS:
            if setting.table != "cluster":
                default = None if setting.may_be_unset else setting.field.default
                assert parameters[setting.key].default == default
    assert inspect.signature(pt.Run.resume).parameters["epochs"].default is None
    assert inspect.signature(pt.Run.plot).parameters["dpi"].default == 150
    assert inspect.signature(pt.replay).parameters["factor"].default == 0.5


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", range(4), (0, 1, 2, 3)),
        ("seed", [0, 5], (0, 5)),
        ("seed", (7,), (7,)),
        ("seed", np.arange(3), (0, 1, 2)),
        ("seed", "0-2", (0, 1, 2)),
        ("seed", (seed for seed in (1, 2)), (1, 2)),
        ("patience", np.int64(3), 3),
        ("patience", np.array(3), 3),
        ("factor", np.float32(0.1), 0.1),
        ("learning_rate", 1e-30, 1e-30),
        ("hidden_sizes", [], ()),
        ("hidden_sizes", (8, np.int32(4)), (8, 4)),
        ("runs_dir", Path("a") / "b", Path("a/b")),
        ("runs_dir", "a/b", Path("a/b")),
        ("quiet", True, True),
        ("quiet", np.bool_(False), False),
        ("name", "a,b", "a,b"),
        ("train_examples", None, None),
        ("patience", None, 5),
    ],
)
def test_values_of_all_kinds_become_the_settings_that_they_mean(name, value, expected):
    (setting,) = (setting for setting in SETTINGS if setting.key == name)
    resolved = config.resolve(config.read_arguments({name: value}))
    assert setting.value_in(resolved.settings) == expected


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        ({"patience": [2, 5]}, "patience", [2, 5]),
        ({"patience": range(1, 4)}, "patience", [1, 2, 3]),
        ({"factor": np.array([0.1, 0.5])}, "factor", [0.1, 0.5]),
        ({"hidden_sizes": [[16], [8, 8], []]}, "hidden_sizes", [(16,), (8, 8), ()]),
        ({"optimizer": ["adam", "sgd"], "seed": range(2)}, "optimizer", ["adam", "sgd"]),
        ({"learning_rate": "0.1,0.2", "hidden_sizes": [4, 4]}, "learning_rate", [0.1, 0.2]),
    ],
)
def test_lists_become_the_values_of_a_sweep(arguments, name, expected):
    sweep = config.resolve_sweep(config.read_arguments(arguments))
    (setting,) = sweep.varied
    assert setting.key == name
    assert [setting.value_in(cell.settings) for cell in sweep.cells] == expected


def test_a_run_is_that_of_the_command_line_and_of_its_own_settings(one, folder, small_run):
    longer = pt.train(**one.settings | {"epochs": 6, "name": "longer"})
    expected = (small_run / "metrics.jsonl").read_bytes()
    assert (longer.path / "metrics.jsonl").read_bytes() == expected
    one_epochs = expected.splitlines(keepends=True)[:5]
    assert (one.path / "metrics.jsonl").read_bytes() == b"".join(one_epochs)


def test_a_resumed_run_is_that_of_the_command_line(folder, small_run):
    run = pt.train(**SMALL_ARGUMENTS, epochs=5, runs_dir=folder / "runs", name="resumed")
    assert run.metrics["epoch"].max() == 5
    assert run.resume(epochs=6, quiet=True) is run
    assert run.metrics["epoch"].max() == 6
    expected = (small_run / "metrics.jsonl").read_bytes()
    assert (run.path / "metrics.jsonl").read_bytes() == expected
    assert run.resume(quiet=True) is run  # done


def test_an_interrupted_run_is_continued_after_its_last_epoch(folder, small_run, monkeypatch):
    def interrupt(_, lines, settings):
        if lines[0].records[0].epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("plateau_train.report.notebook.PlainReport.on_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pt.train(**SMALL_ARGUMENTS, epochs=6, runs_dir=folder / "interrupted")
    run = pt.load(folder / "interrupted" / "latest")
    assert (run.status, run.metrics["epoch"].max()) == ("stopped", 2)
    run.resume(quiet=True)
    expected = (small_run / "metrics.jsonl").read_bytes()
    assert (run.status, (run.path / "metrics.jsonl").read_bytes()) == ("done", expected)


def test_a_time_limit_stops_a_run_which_continues_to_the_same_bytes(folder, small_run, capsys):
    values = SMALL_ARGUMENTS | {"quiet": False, "runs_dir": folder / "limited"}
    run = pt.train(**values, epochs=6, max_time=0.01)
    assert (run.status, run.metrics["epoch"].max()) == ("stopped", 1)
    message, hint, _ = capsys.readouterr().err.splitlines()[-3:]
    assert message == "stopped after epoch 1 (max_time=0.01)"
    assert hint == f"hint: load('{run.path}').resume() continues it"
    run.resume(max_time="none", quiet=True)
    expected = (small_run / "metrics.jsonl").read_bytes()
    assert (run.status, (run.path / "metrics.jsonl").read_bytes()) == ("done", expected)


def test_a_time_limit_stops_a_sweep_and_names_the_call_that_continues_it(folder, capsys):
    values = SMALL_ARGUMENTS | {"patience": [1, 2], "epochs": 2, "runs_dir": folder / "limited"}
    sweep = pt.sweep(**values | {"quiet": False}, max_time="0.01s")
    assert [run.status for run in sweep.runs] == ["stopped", "stopped"]
    hint = f"hint: load_sweep('{sweep.path}').resume() continues it"
    assert capsys.readouterr().err.splitlines()[-1] == hint
    resumed = sweep.resume(max_time="none", quiet=True)
    assert [run.status for run in resumed.runs] == ["done", "done"]


def test_environment_variables_count_as_on_the_command_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PLATEAU_TRAIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NPROC", "3")
    settings = config.resolve(config.read_arguments({})).settings
    assert settings.data.cache_dir == tmp_path / "cache"
    assert settings.data.data_dir == tmp_path / "data"
    assert settings.run.threads == 3
    assert config.resolve(config.read_arguments({"threads": 2})).settings.run.threads == 2


def test_a_training_is_refused_inside_of_a_context_that_changes_results(tmp_path):
    for context, name in (
        (jax.enable_x64(True), "jax_enable_x64"),
        (jax.default_matmul_precision("bfloat16"), None),  # the programs name their precision
        (jax.default_device(jax.devices()[0]), "jax_default_device"),
        (jax.disable_jit(), "jax_disable_jit"),
    ):
        with context, contextlib.ExitStack() as stack:
            if name is not None:
                problem = f"a context manager of JAX sets {name} to "
                stack.enter_context(pytest.raises(pt.errors.ConfigError, match=problem))
            pt.train(**SMALL_ARGUMENTS, epochs=1, runs_dir=tmp_path / "runs")
    assert len(pt.runs(tmp_path / "runs")) == 1


def test_a_sweep_prints_a_line_for_each_run(folder, capsys):
    values = SMALL_ARGUMENTS | {"epochs": 1, "patience": [1, 2], "runs_dir": folder / "sweeps"}
    pt.sweep(**values | {"quiet": False})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": test accuracy")[0] for line in lines] == [
        "001-patience=1",
        "002-patience=2",
    ]
    pt.sweep(**values)
    assert capsys.readouterr().out == ""


def test_a_quiet_training_prints_nothing_and_another_a_line_an_epoch(folder, capsys):
    capsys.readouterr()
    small = SMALL_ARGUMENTS | {"epochs": 1, "runs_dir": folder / "runs"}
    pt.train(**small)
    assert capsys.readouterr().out == ""
    pt.train(**small | {"quiet": False})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["0/1", "1/1"]


api: Any = pt  # its arguments are wrong on purpose

BAD_CALLS = [
    (lambda: api.train(patience=0), "^patience must be a whole number from 1", "docs/settings.md"),
    (lambda: api.train(patience=[1, 2]), "^patience must be .* got 1,2", r"^sweep\(...\) with"),
    (lambda: api.train(patience=True), "^patience must be .* got true", ""),
    (lambda: api.train(lr=0.1), "^there is no setting lr$", "^write learning_rate$"),
    (lambda: api.train(seeds=4), "^there is no setting seeds", "as seed='0-7'$"),
    (lambda: api.train(patiense=3), r"patiense \(did you mean patience\?\)", "docs/settings.md"),
    (lambda: api.train(coordinator="a:1"), "^there is no setting coordinator", ""),
    (lambda: api.train(mode="val-loss"), "add val_fraction=0.1$", ""),
    (lambda: api.train(weight_decay=0.1), "^weight_decay=0.1 has no meaning for adam", ""),
    (lambda: api.train(threads=999), "^threads must be .*, the number of this process", "NPROC"),
    (lambda: api.train(seed=[1, 1]), "^seed must be .* got 1,1", ""),
    (lambda: api.train(config_file="no.toml"), "^no.toml does not exist", "plateau-train config"),
    (lambda: api.sweep(patience=3), "each setting has one value", r"patience=\[2, 5, 10\]"),
    (lambda: api.sweep(patience=[1, 2], metric="x"), "^metric must be one of", ""),
    (lambda: api.sweep(patience=[1, 2], metric="val-loss"), "^metric val-loss needs", "=0.1$"),
    (lambda: api.load("nowhere"), "there is no folder nowhere", r"runs\(\) lists them$"),
    (lambda: api.compare("nowhere"), "at least two runs, got 1", r"^compare\('runs/ONE', "),
    (lambda: api.replay([]), "there are no values", ""),
    (lambda: api.replay([1, float("nan")]), "^value 2 is nan", ""),
    (lambda: api.replay(["a"]), "^value 1 is 'a', not a number", ""),
    (lambda: api.replay([1e39]), "^value 1 is 1e.39, too large", ""),
    (lambda: api.replay([1], compare="tensorflow"), "^compare has no rule tensorflow", "keras"),
    (lambda: api.replay([1], mode="x"), "^there is no setting mode", ""),
    (lambda: api.replay([1, 2], accumulation_size=5).plot(), "^2 values fill no window of 5", ""),
    (lambda: api.load(None), "^a path must be text, got None", "pathlib"),
    (lambda: api.replay([1]).plot(path=3), "^a path must be text, got 3", "pathlib"),
    (lambda: api.train(config_file=3), "^a path must be text, got 3", "pathlib"),
    (lambda: api.train(name=b"x"), "^name must be .* got b'x'$", "not bytes"),
    (lambda: api.resolve_settings(seed=range(10**12)), "^seed must .* than 100,000 items$", ""),
    (lambda: api.replay(None), "^values must be numbers, got None", ""),
    (lambda: api.replay([1], compare=3), "^compare must be names of libraries, got 3", "keras"),
    (lambda: api.replay([1], from_torch="patience=1"), "^from_torch must be a dict", r'\{"pat'),
    (lambda: api.replay([1]).plot(title="a\x00"), "^the title has a control character", ""),
    (lambda: api.replay([1]).plot(panels="scale"), "^this figure has no option panels", "size"),
    (lambda: api.compare([1, 2]), "^compare takes runs, sweeps and paths, got list", r"\(\*runs"),
    (lambda: api.describe_data(dataset="garments", patience=3), "^there is no setting pat", ""),
    (lambda: api.replay([1], patience=3, from_torch={}), "^from_torch and patience both", ""),
    (lambda: api.replay([1], from_torch={}, from_keras={}), "^from_torch and from_keras both", ""),
    (lambda: api.replay([1], from_torch={"mode": "max"}), "^from_torch mode=max has no", ""),
]


@pytest.mark.parametrize(("call", "problem", "hint"), BAD_CALLS)
def test_an_error_names_arguments_and_calls(call, problem, hint):
    refuse(call, problem, hint)


def refuse(call, problem, hint=""):
    """Assert that a call fails with a problem and a hint that match, and names no option."""
    with pytest.raises(pt.errors.PlateauTrainError) as refusal:
        call()
    error = refusal.value
    assert re.search(problem, error.problems[0])
    assert re.search(hint, error.hint)
    assert "--" not in str(error)


def test_the_errors_of_a_run_name_arguments_and_calls(one, several, sweep, tmp_path):
    for call, problem, hint in (
        (several.params, "has several seeds", "^give one of its seeds, 3,5, as the number seed$"),
        (several.replay, "has several seeds", "^give one of its seeds"),
        (lambda: several.params(seed=0), "has no seed 0", "3,5"),
        (lambda: several.evaluate(seed=4), "has no seed 4", "3,5"),
        (lambda: several.plot(seed=4), "has no seed 4", "3,5"),
        (lambda: one.params(checkpoint="first"), "^checkpoint must be best, last", ""),
        (lambda: one.params(checkpoint=0), "has no intact checkpoint of epoch 0", "checkpoint"),
        (lambda: one.evaluate(checkpoint=-1), "^checkpoint must be best, last", ""),
        (lambda: one.plot(panel="scale"), r"^this figure has no option panel \(did you", "panels"),
        (lambda: one.plot(path=tmp_path / "a.gif"), "cannot be written as", ""),
        (lambda: one.replay(mode="val-loss"), "held out no images", "^mode test-loss"),
        (lambda: one.replay(accumulation_size=9), "means of 4 steps", "accumulation_size=9$"),
        (lambda: pt.load(sweep.path), "is a sweep", r"^runs\('.*'\) lists its runs, compare\("),
        (lambda: pt.load_sweep(one.path), "is not a sweep", "^load opens a run"),
        (lambda: pt.compare(one, one), "are the same run", ""),
        (lambda: pt.compare(one, several, level=87), "^level must be an accuracy", "0.87"),
        (lambda: api.compare(one, several, level="0.9"), "^level must .* got '0.9'", "0.87"),
        (sweep.plot, "a heat map needs two settings", ""),
        (lambda: pt.train(**one.settings | {"learning_rate": 1e30}), "loss is nan", "^train with"),
    ):
        refuse(call, problem, hint)


def test_settings_that_cannot_change_are_listed(one):
    with pytest.raises(pt.errors.ChangedSettingsError) as refusal:
        one.resume(patience=3, epochs=2)
    _, *changes = refusal.value.problems
    assert changes == [
        "patience: the run has 2, not 3, and it would change the results",
        "epochs: the run has 4, not 2, and it can only grow",
    ]


def test_columns_have_one_length_and_the_types_of_their_values(one, several, sweep):
    comparison = pt.compare(one, several)
    replay = pt.replay([1, 1, 1, 0.5], patience=2, compare=["optax", "torch", "keras"])
    for columns in (
        one.metrics, one.drops, one.observations, several.metrics, several.observations,
        comparison.results, comparison.differences, sweep.results,
        pt.runs(one.path.parent).results, one.evaluate().by_class, replay.table, replay.drops,
        several.replay(seed=5).table,
    ):  # fmt: skip
        frame = pandas.DataFrame(columns)
        assert [*frame] == [*columns]
        assert len(frame) > 0
    whole = {"replica", "seed", "epoch", "step", "wait", "cooldown", "waited"}
    assert len(several.drops["seed"]) == 0
    for columns in (one.metrics, one.drops, several.drops, one.observations):
        for name, column in columns.items():
            kind = "i" if name in whole else "U" if name in ("observed", "reason") else "f"
            assert column.dtype.kind == kind, name
    assert np.isnan(one.metrics["val_loss"]).all()
    assert several.metrics["seed"].tolist() == [3, 5] * 3


def test_drops_and_observations_are_those_of_the_metrics(one):
    metrics, drops = one.metrics, one.drops
    assert len(drops["epoch"]) >= 1
    for epoch, scale in zip(drops["epoch"], drops["scale_after"], strict=True):
        assert metrics["scale"][epoch] == scale
    assert one.observations["step"].tolist() == [*range(4, 49, 4)]
    assert drops["value"].tolist() == [
        one.observations["value"][step // 4 - 1] for step in drops["step"]
    ]


def test_params_are_those_of_the_checkpoint(one, several):
    for run, seed, replica in ((one, None, 0), (several, 3, 0), (several, 5, 1)):
        for name in ("best", "last"):
            files = sorted(RunDirectory(run.path).checkpoints.glob("epoch-*.npz"))
            file = files[-1] if name == "last" else RunDirectory(run.path).checkpoints / "best.npz"
            params = run.params(seed=seed, checkpoint=name)
            with np.load(file) as arrays:
                for layer, leaves in params.items():
                    for leaf, array in leaves.items():
                        stored = arrays[f"state/params/{layer}/{leaf}"][replica]
                        np.testing.assert_array_equal(array, stored)
    assert [array["kernel"].shape for array in one.params(checkpoint=4).values()] == [
        (784, 16),
        (16, 10),
    ]


def test_the_params_of_a_seed_that_had_diverged_are_refused(several, monkeypatch):
    records = [record for record in Run.open(several.path).records if record.seed == 5]
    monkeypatch.setattr(evaluation, "read_records", lambda *_: records)
    assert several.params(seed=5)
    refuse(lambda: several.params(seed=3), "replica 0 .seed 3. had diverged by", "^leave seed out")


def test_an_evaluation_has_the_recorded_scores(one, several):
    for run, seed in ((one, 0), (several, 3), (several, 5)):
        evaluation = run.evaluate(seed=seed, checkpoint="last")
        metrics = pandas.DataFrame(run.metrics)
        last = metrics[(metrics.seed == seed) & (metrics.epoch == metrics.epoch.max())].iloc[0]
        assert evaluation.seed == seed
        for split, score in evaluation.scores.items():
            assert score.accuracy == last[f"{split}_accuracy"]
            assert score.loss == pytest.approx(last[f"{split}_loss"], rel=1e-6)
        assert evaluation.confusion.sum() == 300
        assert ({*evaluation.scores} == {"val", "test"}) == (run is several)
    best = several.evaluate()
    assert several.summary["replicas"][best.replica]["seed"] == best.seed


def test_a_replay_is_the_rule_over_values(tmp_path):
    replay = pt.replay(np.array([1, 1, 1, 0.5], np.float32), patience=2)
    assert replay.nearest_miss is None
    assert replay.table["wait"].tolist() == [0, 1, 2, 0]
    assert replay.table["scale"].tolist() == [1, 1, 0.5, 0.5]
    assert replay.table["to_beat"].tolist()[1:] == pytest.approx([0.9999] * 3)
    assert [reason is None for reason in replay.table["reason"]] == [True, True, False, True]
    assert replay.drops["number"].tolist() == [3]
    longer = pt.replay([1, 1, 1, 0.5], patience=3)
    assert longer.nearest_miss == longer.table["nearest_miss"][2]
    assert str(longer.nearest_miss).startswith("wait 2 of 3 until value 3: 1 observation short")
    assert replay.counterfactual_from is None
    assert not {"seed", "epoch"} & {*replay.table}
    replay.plot(path=tmp_path / "replay.svg", dark=True)
    assert (tmp_path / "replay.svg").read_bytes().startswith(b"<?xml")
    torch = pt.replay([1, 1, 1], from_torch={"patience": 1, "threshold": 1e-3})
    assert torch.drops["scale"].tolist() == pytest.approx([0.1])
    assert pt.replay([2, 1], patience=5).drops["number"].tolist() == []


def test_a_replay_of_a_run_has_its_drops_or_is_counterfactual(one):
    own, other = one.replay(), one.replay(patience=1)
    assert own.drops["step"].tolist() == one.drops["step"].tolist()
    assert own.counterfactual_from is None
    changed = other.counterfactual_from
    assert changed is not None
    steps = (replay.drops["step"] for replay in (own, other))
    assert other.table["step"][changed - 1] == min({*next(steps)} ^ {*next(steps)})


def test_figures_are_drawn_and_saved(one, several, tmp_path):
    figure = one.plot(panels=["scale", "test-loss"], dark=True, path=tmp_path / "plot.png")
    assert len(figure.axes) == 2
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert several.plot(seed=5, panels="val-loss").axes
    assert pt.compare(one, several).plot(panels="test-loss").axes
    matrix = one.evaluate().plot(size=(5, 4), dark=True, path=tmp_path / "matrix.svg")
    assert (matrix.get_figwidth(), matrix.get_facecolor()) == (5, figure.get_facecolor())
    assert (tmp_path / "matrix.svg").exists()


def test_options_of_figures_may_be_values_of_numpy(one):
    figure = one.plot(dpi=np.int64(72), dark=np.bool_(True), panels=np.array(["scale"]))
    assert (figure.dpi, len(figure.axes)) == (72, 1)


def test_a_run_whose_folder_was_removed_says_so(one, tmp_path):
    copy = tmp_path / "copy"
    members = [
        lambda run: run.status, lambda run: run.metrics, lambda run: run.drops,
        lambda run: run.observations, lambda run: run.settings, lambda run: run.summary,
        lambda run: run.params(), lambda run: run.evaluate(), lambda run: run.resume(),
        lambda run: run.check(), lambda run: run.plot(), lambda run: run.replay(),
        lambda run: run.export("csv"),
    ]  # fmt: skip
    runs = [pt.load(shutil.copytree(one.path, copy, dirs_exist_ok=True)) for _ in members]
    shutil.rmtree(copy)
    for member, run in zip(members, runs, strict=True):
        with pytest.raises(pt.errors.RunError):
            member(run)


def test_a_library_that_is_compared_has_its_columns_whatever_the_values():
    for value in (1.0, -1.0):
        table = pt.replay([value] * 3, patience=1, compare=["optax", "torch"]).table
        assert {"optax_scale", "optax_reason", "torch_scale", "torch_reason"} <= table.keys()
        assert table["reason"][0] is None


def test_runs_and_sweeps_are_sequences_of_runs(one, several, sweep):
    runs = pt.runs(one.path.parent)
    assert runs[runs.index(one)] == one != several
    assert len({one, pt.load(one.path)}) == 1
    names = [run.path.name for run in runs]
    assert names == sorted(names)
    assert {one.path, several.path} <= {run.path for run in runs}
    assert [run.path for run in runs[-1:]] == [runs[-1].path]
    assert pt.load(one.path).status == "done"
    assert pt.load(one.path.parent / "latest").path in {run.path for run in runs}
    first, last = sweep.runs
    assert (first.settings["learning_rate"], last.status) == (0.03, "failed")
    assert sweep.results["ending"].tolist() == ["epochs"] * 2 + ["diverged"] * 2
    assert sweep.results["learning_rate"].tolist() == [0.03, 0.03, 1e30, 1e30]
    assert sweep.results["last_epoch"].tolist() == [1, 1, 0, 0]
    again = pt.load_sweep(sweep.path).resume(quiet=True)
    for name, column in again.results.items():
        np.testing.assert_array_equal(column, sweep.results[name])


def test_everything_has_a_short_text_and_html(one, several, sweep):
    replay, comparison = (
        pt.replay(range(1000), patience=999, compare="keras"),
        pt.compare(one, several),
    )
    for each in (one, several, sweep, replay, comparison, one.evaluate()):
        assert len(repr(each)) < 250
        assert "<table>" in each._repr_html_()
    assert "<table>" in pt.runs(one.path.parent)._repr_html_()
    assert repr(replay) == "Replay(1000 values, 1 drop)"


def test_a_run_without_a_finished_epoch_can_be_opened(one, tmp_path):
    (tmp_path / "config.toml").write_bytes((one.path / "config.toml").read_bytes())
    for name in ("metrics.jsonl", "events.jsonl", "timings.jsonl"):
        (tmp_path / name).touch()
    run = pt.load(tmp_path)
    assert (run.status, run._repr_html_()) == ("stopped", None)
    for columns in (run.metrics, run.drops, run.observations):
        assert {len(column) for column in columns.values()} == {0}
        assert columns["epoch"].dtype.kind == "i"
    with pytest.raises(pt.errors.RunError) as refusal:
        run.summary  # noqa: B018
    assert refusal.value.hint == "restore the file from a copy"


def test_the_settings_that_a_training_would_use_are_resolved(tmp_path):
    (tmp_path / "rule.toml").write_text("[plateau]\npatience = 7\nfactor = 0.25\n")
    settings = pt.resolve_settings(config_file=tmp_path / "rule.toml", factor=0.1, seed=range(3))
    assert (settings["patience"], settings["factor"], settings["seed"]) == (7, 0.1, (0, 1, 2))
    assert tuple(settings) == config.ARGUMENTS
    with pytest.raises(pt.errors.ConfigError, match="factor must be"):
        pt.resolve_settings(factor=2)


def test_data_are_described_and_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(garments, "TRAIN_EXAMPLES", 600)  # drawing all takes ten seconds
    monkeypatch.setattr(garments, "TEST_EXAMPLES", 100)
    described = pt.describe_data(dataset="garments", cache_dir=tmp_path / "cache")
    assert (described["train"], described["classes"][:3]) == ("600 images", "10:")
    assert pt.prepare_data(dataset="garments") == "garments is built in and needs no preparation"
    with pytest.raises(pt.errors.DataError):
        pt.prepare_data(dataset="mnist", data_dir=tmp_path, originals=tmp_path / "nowhere")


def test_a_run_is_checked_and_its_damage_is_named(one, tmp_path):
    assert any("intact, epoch 4" in line for line in one.check())
    shutil.copytree(one.path, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").write_text("{}")
    with pytest.raises(pt.errors.RunError, match=r"metrics.jsonl was cut"):
        pt.load(tmp_path / "copy").check()


def test_every_block_of_the_page_runs(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "plot.svg").exists()


def test_the_page_names_every_function_and_member():
    text = PAGE.read_text()
    functions = {name for name in pt.__all__ if name.islower()}
    members = {name for name in vars(pt.Run) if not name.startswith("_")} - {"at"}
    assert {name for name in functions if f"| `{name}" not in text} == set()
    assert {name for name in members if f"`run.{name}" not in text} == set()
