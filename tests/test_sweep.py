"""Sweeps: the grid of settings, the results, and sweeps that were stopped and continue."""

import csv
import json
import resource
import shutil
from statistics import fmean, stdev

import faults
import pytest
from helpers import epochs_printed

import plateau_train
from plateau_train import config
from plateau_train.config import RawValue
from plateau_train.errors import BusyRunError, ConfigError, RunError
from plateau_train.run import checkpoint, environment
from plateau_train.run.directory import SWEEP, RunDirectory, read_json
from plateau_train.run.reader import Run
from plateau_train.training import sweep
from plateau_train.training.loop import NoCallbacks
from plateau_train.training.sweep import LoadedDatasets, SweepPlan

pytestmark = pytest.mark.usefixtures("no_plots")

# Two programs, for the factor cannot be traced, of two runs with two seeds each.
SAME = (*faults.TINY, "--rtol=0.3", "--seed=0,2", "--epochs=3")
GRID = ("sweep", *SAME, "--patience=1,3", "--factor=0.5,0.9")
NAMES = [
    f"00{number}-patience={patience},factor={factor}"
    for number, (patience, factor) in enumerate(((1, 0.5), (1, 0.9), (3, 0.5), (3, 0.9)), start=1)
]


def resolve(**values):
    return config.resolve_sweep({key: RawValue(text, "flag") for key, text in values.items()})


def sweep_in(folder):
    (path,) = (path for path in (folder / "runs").iterdir() if path.name.endswith("-sweep"))
    return path


def rows_of(path):
    with (path / "results.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def unbroken(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    finished = processes.run(folder, *GRID)
    assert finished.code == 0, finished.stderr
    return sweep_in(folder), finished


def test_a_grid_has_every_combination_of_the_values_that_commas_separate():
    plan = resolve(patience="2,5,10", factor="0.1, 0.5", seed="0-3", hidden_sizes="8,4;16")
    assert [setting.key for setting in plan.varied] == ["hidden_sizes", "patience", "factor"]
    cells = [cell.settings for cell in plan.cells]
    assert len({(c.model.hidden_sizes, c.plateau.patience, c.plateau.factor) for c in cells}) == 12
    assert {cell.run.seeds for cell in cells} == {(0, 1, 2, 3)}
    assert {cell.model.hidden_sizes for cell in cells} == {(8, 4), (16,)}


def test_a_default_that_depends_on_another_setting_follows_it_in_each_run():
    cells = resolve(mode="train-loss,test-loss", optimizer="adam,adamw").cells
    sizes = {cell.settings.plateau.mode: cell.settings.plateau.accumulation_size for cell in cells}
    assert sizes == {"train-loss": 200, "test-loss": 1}
    decays = {
        cell.settings.optimizer.optimizer: cell.settings.optimizer.weight_decay for cell in cells
    }
    assert decays == {"adam": 0.0, "adamw": 1e-4}


def test_all_problems_of_a_grid_are_reported_together_and_each_once():
    with pytest.raises(ConfigError) as refused:
        resolve(patience="2,x,0", factor="0.1,5", mode="train-loss,tset-loss")
    flags = sorted(problem.split(" must")[0] for problem in refused.value.problems)
    assert flags == ["--factor", "--mode", "--patience", "--patience"]


def test_a_value_that_is_written_in_two_ways_is_one_value():
    plan = resolve(learning_rate="0.01,1e-2", patience="5,05,6")
    assert [len(plan.cells), *(setting.key for setting in plan.varied)] == [2, "patience"]


def test_combinations_that_train_the_same_are_one_cell():
    plan = resolve(schedule="plateau,constant,step", patience="1,2", factor="0.1,0.5")
    cells = [cell.settings for cell in plan.cells]
    schedules = [cell.optimizer.schedule for cell in cells]
    assert {name: schedules.count(name) for name in schedules} == {
        "plateau": 4,
        "constant": 1,
        "step": 2,
    }
    assert {cell.plateau.factor for cell in cells if cell.optimizer.schedule == "step"} == {
        0.1,
        0.5,
    }


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"seed": "0-3"}, "each setting has one value"),
        ({"patience": "5,05"}, "the values of --patience train the same"),
        ({"schedule": "constant", "rtol": "0.1,0.2", "mode": "train-loss,test-loss"}, "--mode, --"),
    ],
)
def test_a_sweep_with_nothing_to_vary_is_refused(values, problem):
    with pytest.raises(ConfigError, match=problem) as refused:
        resolve(**values)
    assert "--patience 2,5,10" in refused.value.hint


def test_a_name_with_a_comma_is_one_value():
    first, second = (cell.settings.run for cell in resolve(epochs="7,8", name="a,b").cells)
    assert (first.epochs, second.epochs, {first.name, second.name}) == (7, 8, {"a,b"})


def test_a_sweep_has_a_run_for_each_combination_and_lists_the_best_first(unbroken):
    path, finished = unbroken
    assert sorted(run.name for run in path.iterdir() if run.is_dir()) == NAMES
    assert "2 to train, one after the other" in finished.stderr
    rows = rows_of(path)
    means = [float(row["final_test_accuracy_mean"]) for row in rows.values()]
    assert means == sorted(means, reverse=True)
    for name, row in rows.items():
        histories = Run.open(path / name).histories
        assert [history.seed for history in histories] == [0, 2]
        accuracies = [history.records[3].test_accuracy for history in histories]
        assert float(row["final_test_accuracy_mean"]) == pytest.approx(fmean(accuracies))
        assert float(row["final_test_accuracy_sd"]) == pytest.approx(stdev(accuracies))
        num_drops = [len(history.drops) for history in histories]
        assert float(row["num_drops_mean"]) == fmean(num_drops)
        assert f"patience={row['patience']},factor={row['factor']}" in name
    assert any(float(row["num_drops_mean"]) > 0 for row in rows.values())
    lines = finished.stdout.splitlines()
    table = [line.split()[-1] for line in lines if line.endswith(tuple(NAMES))]
    assert table[: len(rows)] == list(rows)
    assert (path / "heat_map.png").stat().st_size > 10_000


def test_a_run_of_a_sweep_equals_a_run_with_the_same_settings(processes, unbroken, tmp_path):
    path, _ = unbroken
    assert processes.run(tmp_path, *SAME, "--patience=3", "--factor=0.9").code == 0
    (run,) = faults.runs_in(tmp_path)
    ours, theirs = (Run.open(folder).records for folder in (path / NAMES[3], run))
    assert [record.scale for record in ours] == [record.scale for record in theirs]
    # Four replicas in one program or two: sums of another order, at the most.
    for one, other in zip(ours, theirs, strict=True):
        assert one.test_loss == pytest.approx(other.test_loss, rel=1e-5)


@pytest.mark.parametrize(
    "place",
    [
        f"{NAMES[0]}/checkpoints/epoch-000002",  # none of its group has the epoch
        f"{NAMES[2]}/checkpoints/epoch-000002",  # one has it, and goes back
        f"{NAMES[2]}/summary.json",  # one is done, and the other has nothing left to train
        f"{NAMES[1]}/config.toml",  # between two programs
    ],
)
def test_a_sweep_that_was_stopped_continues_to_the_same_bytes(processes, unbroken, tmp_path, place):
    whole, _ = unbroken
    stopped = processes.run(tmp_path, *GRID, fault="crash", at=place)
    assert stopped.code == faults.CRASHED
    path = sweep_in(tmp_path)
    assert not (path / "results.csv").exists()
    resumed = processes.run(tmp_path, "resume", path)
    assert resumed.code == 0, resumed.stderr
    for name in NAMES:
        assert faults.result_of(path / name) == faults.result_of(whole / name), name
    assert (path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_time_limit_ends_a_sweep_as_a_whole_and_what_is_left_continues(
    processes, unbroken, tmp_path
):
    whole, _ = unbroken
    stopped = processes.run(tmp_path, *GRID, "--max-time=0.01", "--quiet", "--json")
    path = sweep_in(tmp_path)
    assert stopped.code == 0, stopped.stderr
    assert {row["last_epoch"] for row in json.loads(stopped.stdout)} == {1}
    begun = [run.name for run in sorted(path.iterdir()) if run.is_dir()]
    assert begun == [NAMES[0], NAMES[2]], "the runs of the second program were not begun"
    assert [Run.open(path / name).state for name in begun] == ["stopped", "stopped"]
    assert not (path / "results.csv").exists()

    again = processes.run(tmp_path, "resume", path)
    assert (again.code, again.stdout) == (0, "")
    *_, message, hint = again.stderr.splitlines()
    assert message == "stopped (--max-time 0.01)"
    assert hint == f"hint: plateau-train resume {path} continues the sweep"
    assert {Run.open(path / name).histories[0].last_epoch for name in begun} == {2}

    resumed = processes.run(tmp_path, "resume", path, "--max-time=none")
    assert resumed.code == 0, resumed.stderr
    for name in NAMES:
        assert faults.result_of(path / name) == faults.result_of(whole / name), name
    assert (path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_sweep_that_is_done_shows_its_results_and_trains_nothing(processes, unbroken, tmp_path):
    path, finished = unbroken
    copy = shutil.copytree(path, tmp_path / "copy")
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    again = processes.run(tmp_path, "resume", copy)
    assert "0 to train" in again.stderr
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before
    assert again.stdout.splitlines()[:5] == finished.stdout.splitlines()[-8:-3]
    checked = processes.run(tmp_path, "resume", copy, "--check")
    assert (checked.code, checked.stdout.count("has nothing to do")) == (0, 4)
    refused = processes.run(tmp_path, "resume", copy, "--patience=2")
    assert (refused.code, refused.stdout) == (2, "")
    assert "cannot continue with other settings" in refused.stderr
    assert "--patience 1 2 it would change the results" in " ".join(refused.stderr.split())
    (copy / "sweep.json").write_text("{")
    damaged = processes.run(tmp_path, "resume", copy)
    assert damaged.code == 4
    assert "sweep.json cannot be used" in damaged.stderr


def test_a_sweep_prints_a_line_for_each_run_and_no_means_over_settings(unbroken):
    path, finished = unbroken
    assert not epochs_printed(finished.stdout)
    lines = [line for line in finished.stderr.splitlines() if line.startswith(tuple(NAMES))]
    assert sorted(line.split(":")[0] for line in lines) == NAMES
    result = Run.open(path / NAMES[0]).results
    accuracy, drops = f"{result.final_score:.4f}", f"{result.num_drops}"
    assert f"{NAMES[0]}: test accuracy {accuracy}, drops {drops}" in lines


def test_a_setting_without_effect_and_drops_without_a_rule_are_left_empty(processes, tmp_path):
    words = ("sweep", *faults.TINY, "--epochs=1", "--schedule=plateau,linear,rex", "--patience=1,2")
    finished = processes.run(tmp_path, *words)
    assert finished.code == 0, finished.stderr
    for number, name in ((3, "linear"), (4, "rex")):
        row = rows_of(sweep_in(tmp_path))[f"{number:03}-schedule={name}"]
        assert (row["patience"], row["num_drops_mean"]) == ("", "")
        line = next(line for line in finished.stdout.splitlines() if line.endswith(f"={name}"))
        assert line.split()[:2] == [name, "-"]


def damage_metrics(path):
    (path / NAMES[0] / "metrics.jsonl").unlink()


def edit_settings(path):
    file = path / NAMES[1] / "config.toml"
    file.write_text(file.read_text().replace("factor = 0.9", "factor = 0.8"))


def edit_plan(path):
    plan = json.loads((path / SWEEP).read_text())
    plan["runs"][2]["settings"]["plateau"]["patience"] = 2
    (path / SWEEP).write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("change", "code", "problem"),
    [
        (damage_metrics, 4, f"{NAMES[0]}/metrics.jsonl is missing"),
        (edit_settings, 2, f"{NAMES[1]} cannot continue with other settings"),
        (edit_plan, 2, f"{NAMES[2]} cannot continue with other settings"),
    ],
)
def test_a_resumed_sweep_verifies_also_the_runs_that_are_done(
    processes, unbroken, tmp_path, change, code, problem
):
    copy = shutil.copytree(unbroken[0], tmp_path / "copy")
    change(copy)
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    refused = processes.run(tmp_path, "resume", copy)
    assert (refused.code, refused.stdout) == (code, "")
    assert problem in refused.stderr
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before
    if change is damage_metrics:
        checked = processes.run(tmp_path, "resume", copy, "--check")
        assert (checked.code, checked.stdout.count("has nothing to do")) == (4, 3)


def test_a_deleted_run_is_trained_again_with_a_notice(processes, unbroken, tmp_path):
    copy = shutil.copytree(unbroken[0], tmp_path / "copy")
    shutil.rmtree(copy / NAMES[0])
    checked = processes.run(tmp_path, "resume", copy, "--check")
    assert (checked.code, f"{copy / NAMES[0]}: not started" in checked.stdout) == (0, True)
    again = processes.run(tmp_path, "resume", copy)
    assert (again.code, "1 to train" in again.stderr) == (0, True)
    assert "the last bits of its results may differ" in again.stderr
    assert list(rows_of(copy)) == list(rows_of(unbroken[0]))


def test_a_deleted_run_of_a_stopped_sweep_leaves_the_others_where_they_are(processes, tmp_path):
    words = ("sweep", *faults.TINY, "--epochs=3", "--patience=1,3,5")
    stopped = processes.run(
        tmp_path, *words, fault="crash", at="001-patience=1/checkpoints/epoch-000003"
    )
    assert stopped.code == faults.CRASHED
    path = sweep_in(tmp_path)
    shutil.rmtree(path / "002-patience=3")
    kept = path / "003-patience=5" / "metrics.jsonl"
    before = kept.read_text().splitlines()
    programs, _ = sweep.group_programs(RunDirectory(path), read_json(path / SWEEP, SweepPlan))
    epochs = {task.directory.path.name: task.last_epoch for tasks in programs for task in tasks}
    assert epochs == {"001-patience=1": 2, "002-patience=3": -1, "003-patience=5": 2}
    resumed = processes.run(tmp_path, "resume", path)
    assert resumed.code == 0, resumed.stderr
    assert kept.read_text().splitlines()[:3] == before[:3]
    assert [row["finished"] for row in rows_of(path).values()] == ["1"] * 3


def test_a_sweep_says_where_a_run_with_a_damaged_checkpoint_continues(processes, tmp_path):
    stopped = processes.run(
        tmp_path, *GRID, fault="crash", at=f"{NAMES[0]}/checkpoints/epoch-000003"
    )
    assert stopped.code == faults.CRASHED
    path = sweep_in(tmp_path)
    newest = path / NAMES[0] / "checkpoints" / "epoch-000002.npz"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = processes.run(tmp_path, "resume", path)
    assert (resumed.code, "The run continues from epoch 1." in resumed.stderr) == (0, True)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (["runs"], [], "at least 1 item"),
        (["metric"], "tset-loss", "not all runs have the metric tset-loss"),
        (["metric"], "val-loss", "not all runs have the metric val-loss"),
        (["varied"], ["patiense"], "there is no setting patiense"),
        (["runs", 0, "folder"], NAMES[1], "two runs have the same folder"),
        (["runs", 0, "folder"], "../X", "should match pattern"),
        (["runs", 0, "folder"], "/tmp/X", "should match pattern"),
        (["runs", 0, "folder"], "a/b", "should match pattern"),
        (["runs", 0, "folder"], "", "should match pattern"),
        (["runs", 0, "settings", "plateau", "mode"], "val-loss", "needs held-out images"),
    ],
    ids=str,
)
def test_an_edited_plan_is_refused_when_it_is_read(unbroken, tmp_path, place, value, problem):
    plan = json.loads((unbroken[0] / SWEEP).read_text())
    changed = plan
    for key in place[:-1]:
        changed = changed[key]
    changed[place[-1]] = value
    (tmp_path / SWEEP).write_text(json.dumps(plan))
    with pytest.raises(RunError, match=problem):
        read_json(tmp_path / SWEEP, SweepPlan)


def test_a_sweep_that_was_stopped_is_drawn_without_what_is_missing(unbroken, tmp_path):
    copy = shutil.copytree(unbroken[0], tmp_path / "sweep")
    shutil.rmtree(copy / NAMES[3])
    sweep = plateau_train.load_sweep(copy)
    texts = [text.get_text() for text in sweep.plot(path=copy / "own.svg").axes[0].texts]
    assert len(texts) == 3
    assert not any("diverged" in text for text in texts)
    for name in NAMES[:3]:
        shutil.rmtree(copy / name)
    with pytest.raises(RunError, match=r"no seed of .* has finished"):
        plateau_train.load_sweep(copy).plot()


def test_the_limit_of_open_files_is_raised_for_the_runs_of_a_sweep(monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_files = 400
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"400 runs need 6\d\d open files, .* permits 500"):
            environment.require_open_files(num_files)  # as the functions of Python do
        environment.allow_open_files(num_files)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= num_files + 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (500, 500))
    monkeypatch.setattr(resource, "setrlimit", refuse_limit)
    with pytest.raises(ConfigError, match="the system permits 500"):
        environment.allow_open_files(num_files)


def refuse_limit(*_):
    raise ValueError("not allowed to raise maximum limit")


def test_a_run_that_diverges_does_not_end_the_others(processes, tmp_path):
    words = ("sweep", *faults.TINY, "--epochs=2", "--hidden-sizes=16", "--learning-rate=0.05,1e30")
    finished = processes.run(tmp_path, *words)
    assert finished.code == 0, finished.stderr
    path = sweep_in(tmp_path)
    good, lost = rows_of(path).values()
    assert (good["finished"], lost["finished"], lost["final_test_loss_mean"]) == ("1", "0", "")
    assert f"NOTICE: {lost['run']}, seed 0: the training loss is" in finished.stderr
    events = (path / lost["run"] / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events] == ["ended", "failed"]
    again = processes.run(tmp_path, "resume", path)
    assert "0 to train" in again.stderr, "it would diverge again"
    (tmp_path / "lost").mkdir()
    alone = (*words[:-1], "--learning-rate=1e30", "--batch-size=5,6")  # each in its own program
    assert processes.run(tmp_path / "lost", *alone).code == 6
    again = processes.run(tmp_path / "lost", "resume", sweep_in(tmp_path / "lost"))
    assert (again.code, "0 to train" in again.stderr) == (6, True)


def test_a_run_that_diverged_is_noted_once_even_if_its_program_fails_later(processes, tmp_path):
    words = ("sweep", *faults.TINY, "--epochs=3", "--hidden-sizes=16", "--learning-rate=0.05,1e30")
    good, lost = "001-learning_rate=0.05", "002-learning_rate=1e+30"
    fault = {"fault": "ENOSPC", "at": f"{good}/checkpoints/epoch-000002"}
    failed = processes.run(tmp_path, *words, **fault)
    assert failed.code == 5, failed.stderr
    events = {name: Run.open(sweep_in(tmp_path) / name).events for name in (good, lost)}
    assert [event.event for event in events[good]] == ["failed"]
    assert [event.event for event in events[lost]] == ["ended", "failed"]
    resumed = processes.run(tmp_path, "resume", sweep_in(tmp_path))
    assert (resumed.code, "1 to train" in resumed.stderr) == (0, True)


def test_runs_with_different_intervals_of_steps_are_trained_apart(processes, tmp_path):
    words = ("sweep", *faults.TINY, "--epochs=2", "--schedule=step", "--step-epochs=1,2")
    finished = processes.run(tmp_path, *words)
    assert finished.code == 0, finished.stderr
    rows = rows_of(sweep_in(tmp_path)).values()
    scales = {row["step_epochs"]: row["final_scale_geometric_mean"] for row in rows}
    assert scales == {"1": "0.5", "2": "1.0"}


def test_a_run_that_another_process_trained_since_the_start_is_not_touched(processes, tmp_path):
    stopped = processes.run(
        tmp_path, *GRID, fault="crash", at=f"{NAMES[0]}/checkpoints/epoch-000002"
    )
    assert stopped.code == faults.CRASHED
    path = sweep_in(tmp_path)
    directory, plan = RunDirectory(path), read_json(path / SWEEP, SweepPlan)
    programs, newest = sweep.group_programs(directory, plan)
    run = path / NAMES[0]
    assert processes.run(tmp_path, "resume", run).code == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    arguments = programs, newest, LoadedDatasets(), NoCallbacks(), lambda *_: None
    with pytest.raises(BusyRunError, match="was trained by another process since"):
        sweep.train_sweep(directory, plan, *arguments)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_run_that_was_continued_alone_is_left_as_it_is(processes, unbroken, tmp_path):
    path, _ = unbroken
    copy = shutil.copytree(path, tmp_path / "copy")
    run = copy / NAMES[0]
    stopped = processes.run(tmp_path, "resume", run, "--epochs=5", fault="crash", at="epoch-000005")
    assert stopped.code == faults.CRASHED
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    again = processes.run(tmp_path, "resume", copy)
    assert f"NOTICE: {run} has more epochs than the sweep" in again.stderr
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert (copy / "results.csv").read_bytes() == (path / "results.csv").read_bytes()
    assert processes.run(tmp_path, "resume", run).code == 0
    assert (copy / "latest").exists()
    compared = processes.run(tmp_path, "compare", copy)
    assert compared.code == 0, "the link counts as a run"


def test_a_sweep_does_not_continue_with_other_data(processes, tmp_path):
    words = ("sweep", *faults.TINY, "--epochs=2", "--patience=1,2")
    processes.run(tmp_path, *words, fault="crash", at="epoch-000002")
    path = sweep_in(tmp_path)
    for file in sorted(path.glob("*/checkpoints/epoch-*.npz")):
        manifest, arrays = checkpoint.read_checkpoint(file)
        other = manifest.environment.dataset.model_copy(update={"sha256": "f" * 64})
        environment = manifest.environment.model_copy(update={"dataset": other})
        manifest = manifest.model_copy(update={"environment": environment})
        checkpoint.save_checkpoint(file.parent, checkpoint.Checkpoint(manifest, arrays))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    refused = processes.run(tmp_path, "resume", path)
    assert (refused.code, refused.stdout) == (3, "")
    assert "was trained on garments of SHA-256 ffffffffffff" in refused.stderr
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_quiet_sweep_prints_its_folder_and_missing_metrics_are_empty(processes, tmp_path):
    words = ("sweep", *faults.TINY, "--epochs=1", "--val-fraction=0,0.2", "--seed=1", "--quiet")
    finished = processes.run(tmp_path, *words)
    assert finished.code == 0, finished.stderr
    path = sweep_in(tmp_path)
    assert finished.stdout.splitlines() == [str(path.relative_to(tmp_path))]
    with_val = {row["val_fraction"]: row["final_val_loss_mean"] for row in rows_of(path).values()}
    assert with_val["0.0"] == ""
    assert float(with_val["0.2"]) > 0
    assert not (path / "latest").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--patience=1,2", "--metric=tset-loss"], "did you mean test-loss?"),
        (["--patience=1,2", "--metric=val-loss"], "needs held-out images"),
        (["--batch-size=5,700"], "larger than the 60 training images"),
        (["--patience=1,-1"], "--patience must be"),
    ],
)
def test_an_unusable_grid_is_refused_before_a_folder_is_made(
    processes, tmp_path, arguments, problem
):
    refused = processes.run(tmp_path, "sweep", *faults.TINY, *arguments)
    assert refused.code == 2, refused.stderr
    assert problem in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_commands_take_a_sweep_where_that_has_a_meaning(processes, unbroken, tmp_path):
    path, _ = unbroken
    compared = processes.run(tmp_path, "compare", path)
    assert compared.code == 0, compared.stderr
    assert [line.split()[0] for line in compared.stdout.splitlines()[1:5]] == [
        name[4:] for name in NAMES
    ]
    listed = processes.run(tmp_path, "runs", path)
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == NAMES
    for command in ("plot", "evaluate", "schedule"):
        refused = processes.run(tmp_path, command, path)
        assert (refused.code, "is a sweep, and this command takes one run" in refused.stderr) == (
            4,
            True,
        )
