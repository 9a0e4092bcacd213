"""Resuming continues a run exactly, or is refused with the reason. Each run is a new process."""

import fcntl
import hashlib
import json
import os
import shutil
import time

import faults
import pytest
from folders import read_newest
from helpers import epochs_printed

from plateau_train.run import checkpoint, journal, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run
from plateau_train.run.records import Notice

pytestmark = pytest.mark.usefixtures("no_plots")

# Stopped in the middle, it has a wait and a window that is not full.
SETTINGS = (*faults.TINY, "--patience=3", "--cooldown=2", "--rtol=0.05", "--epochs=7")
MIDDLE = "epoch-000003"  # the process ends before it writes this file: epoch 2 is printed


@pytest.fixture(scope="module")
def unbroken(processes, tmp_path_factory):
    return faults.unbroken(processes, tmp_path_factory.mktemp("unbroken"), SETTINGS)[0]


@pytest.fixture(scope="module")
def stopped_once(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    stopped = processes.run(folder, *SETTINGS, fault="crash", at=MIDDLE)
    assert epochs_printed(stopped.stdout) == [0, 1, 2], stopped.stdout
    return folder


@pytest.fixture
def run(stopped_once, tmp_path):
    """The folder of a run that was stopped after epoch 2 of 7."""
    shutil.copytree(stopped_once / "runs", tmp_path / "runs", symlinks=True)
    return RunDirectory.find(tmp_path / "runs" / "latest")


@pytest.fixture(scope="module")
def finished_once(processes, stopped_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(stopped_once / "runs", folder / "runs", symlinks=True)
    ended = processes.run(folder, "resume", "runs/latest")
    assert ended.code == 0, ended.stderr
    return folder


@pytest.fixture
def done(finished_once, tmp_path):
    """The folder of that run, resumed and finished."""
    shutil.copytree(finished_once / "runs", tmp_path / "runs", symlinks=True)
    return RunDirectory.find(tmp_path / "runs" / "latest")


def content(run):
    """Return every byte of a run's folder, to check that nothing was changed."""
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def finished(processes, run, *arguments, code=0):
    ended = processes.run(run.path.parents[1], "resume", run.path, *arguments)
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def refused(processes, run, *arguments, code):
    """Resume a run that must be refused, and check that nothing in it was changed."""
    before = content(run)
    ended = finished(processes, run, *arguments, code=code)
    assert content(run) == before
    assert ended.stdout == ""
    return ended.stderr


def damage(path):
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)


def test_a_stopped_run_continues_and_ends_like_one_never_stopped(processes, run, unbroken):
    ended = finished(processes, run)
    assert epochs_printed(ended.stdout) == [3, 4, 5, 6, 7]
    assert "resumed   after epoch 2 of 7" in ended.stderr
    assert faults.result_of(run.path) == unbroken
    assert unbroken.drops[0]
    (notice,) = (event for event in Run(run).events if isinstance(event, Notice))
    assert notice == Notice(event="resumed", message="after epoch 2")
    assert not [event for event in Run(run).events if event.event == "warning"]


def test_the_wait_and_the_cooldown_of_the_rule_are_kept(processes, tmp_path):
    """Stopped with a wait of 1 before a drop, and with a cooldown of 2 after it."""
    settings = (*SETTINGS, "--epochs=9")
    (tmp_path / "whole").mkdir()
    expected, _ = faults.unbroken(processes, tmp_path / "whole", settings)
    processes.run(tmp_path, *settings, fault="crash", at="epoch-000007")
    processes.run(tmp_path, "resume", "runs/latest", fault="crash", at="epoch-000008")
    (path,) = faults.runs_in(tmp_path)
    waits = [(record.wait, record.cooldown) for record in Run.open(path).records]
    assert waits[6:8] == [(1, 0), (0, 2)]
    assert processes.run(tmp_path, "resume", "runs/latest").code == 0
    assert faults.result_of(path) == expected


ON_EVALUATIONS = (
    "--val-fraction=0.2", "--patience=1", "--rtol=0.3", "--accumulation-size=2", "--epochs=6",
)  # fmt: skip


def test_a_rule_on_evaluations_continues_inside_its_window(processes, tmp_path):
    expected = check_continued(processes, tmp_path, "--mode=val-accuracy", *ON_EVALUATIONS)
    assert expected.drops[0]


@pytest.mark.parametrize("schedule", ["cosine", "schedule-free"])
def test_a_schedule_of_the_step_continues_at_its_step(processes, tmp_path, schedule):
    check_continued(processes, tmp_path, f"--schedule={schedule}", "--epochs=4")


# What scripts/torture resumes beside these.
OTHERS = (
    ("--mode=test-loss", *ON_EVALUATIONS),
    ("--schedule=step", "--step-epochs=2", "--epochs=6"),
    *((f"--schedule={schedule}", "--epochs=4") for schedule in ("linear", "rex", "one-cycle")),
)


def check_continued(processes, folder, *flags):
    """Check that a run stopped in epoch 3 has, once resumed, the result of one never stopped."""
    settings = (*faults.TINY, *flags)
    expected, _ = faults.unbroken(processes, folder, settings)
    (folder / "stopped").mkdir()
    processes.run(folder / "stopped", *settings, fault="crash", at=MIDDLE)
    checked = processes.run(folder / "stopped", "resume", "--check", "runs/latest")
    assert checked.code == 0, checked.stderr
    again = processes.run(folder / "stopped", "resume", "runs/latest")
    assert again.code == 0, again.stderr
    assert faults.result_of(*faults.runs_in(folder / "stopped")) == expected
    return expected


def test_a_lengthened_run_equals_one_of_that_length(processes, run, tmp_path, unbroken):
    finished(processes, run, "--epochs=8")
    assert "epochs = 8 # flag" in run.config.read_text()
    (tmp_path / "whole").mkdir()
    whole, _ = faults.unbroken(processes, tmp_path / "whole", (*SETTINGS, "--epochs=8"))
    assert faults.result_of(run.path) == whole
    assert [ending and ending.epoch for ending in whole.endings] == [8]
    assert whole.metrics.startswith(unbroken.metrics)


def test_a_lengthened_run_that_is_stopped_keeps_its_new_length(processes, done):
    stopped = processes.run(
        done.path.parents[1], "resume", done.path, "--epochs=8", fault="crash", at="epoch-000008"
    )
    assert stopped.code == faults.CRASHED
    assert not done.summary.exists(), "it would count as done"
    assert epochs_printed(finished(processes, done).stdout)[-1] == 8


def test_a_finished_run_is_reported_and_not_changed(processes, done):
    said = refused(processes, done, code=0)
    assert "is done: all of its 7 epochs are trained" in said
    assert f"plateau-train resume {done.path} --epochs 14 trains longer" in said
    finished(processes, done, "--epochs=8")
    assert json.loads(done.summary.read_text())["epochs"] == 8


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            ["--factor=0.3", "--batch-size=6"],
            [
                "--batch-size 5 6 it would change the results",
                "--factor 0.5 0.3 it would change the results",
            ],
        ),
        (["--epochs=5"], ["--epochs 7 5 it can only grow"]),
        (
            ["--patience=1"],
            ["--patience 3 1 it would change the results"],
        ),
        (
            ["--accumulation-size=4"],
            ["--accumulation-size 5 4 it would change the results"],
        ),
        (["--threads=7"], ["--threads 1 7 it would change the results"]),
    ],
)
def test_changed_settings_are_refused_with_a_table_of_the_differences(
    processes, run, arguments, rows
):
    last = read_newest(run)
    assert (Run(run).records[-1].wait, last.arrays["plateau/count"].tolist()) == (1, [4])
    said = refused(processes, run, *arguments, code=2)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0].endswith("cannot continue with other settings")
    assert lines[1] == "setting run requested why not"
    assert lines[2:-1] == rows
    assert lines[-1].startswith("hint: ")


def test_an_edited_config_is_refused_and_a_damaged_one_is_written_again(processes, run):
    before = run.config.read_text()
    run.config.write_text(before.replace("patience = 3", "patience = 4"))
    assert "--patience  3    4" in refused(processes, run, code=2)
    run.config.write_text(before[: len(before) // 2] + "[[")
    finished(processes, run)
    assert run.config.read_text() == before


def test_settings_that_do_not_affect_results_may_change(processes, run):
    finished(processes, run, "--quiet", "--data-dir=elsewhere", "--patience=3")


def test_without_an_intact_newest_checkpoint_the_one_before_is_used(processes, run, unbroken):
    newest = checkpoint.epoch_path(run.checkpoints, 2)
    damage(newest)
    ended = finished(processes, run)
    assert ended.stderr.count(f"{newest} cannot be used") == 1
    assert "The run continues from epoch 1." in ended.stderr
    assert epochs_printed(ended.stdout) == [2, 3, 4, 5, 6, 7]
    assert faults.result_of(run.path) == unbroken


def test_without_an_intact_checkpoint_a_run_is_refused_with_every_reason(processes, run):
    names = sorted(path.name for path in run.checkpoints.glob("*.npz"))
    for name in names:
        storage.write_bytes(run.checkpoints / name, b"no checkpoint")  # breaks the hard link
    said = refused(processes, run, code=4)
    assert all(f"{name} cannot be used" in said for name in names)
    assert "nothing was deleted" in said
    shutil.rmtree(run.checkpoints)
    assert "checkpoints has no checkpoint" in refused(processes, run, code=4)
    run.timings.unlink()
    assert "checkpoints has no checkpoint" in refused(processes, run, code=4)


def test_a_run_continues_from_its_best_checkpoint_if_no_other_is_left(processes, run, unbroken):
    for path in run.checkpoints.glob("epoch-*"):
        path.unlink()
    best = checkpoint.read_checkpoint(run.checkpoints / "best.npz").manifest.epoch
    ended = finished(processes, run)
    assert epochs_printed(ended.stdout)[0] == best + 1
    assert faults.result_of(run.path) == unbroken


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    processes, tmp_path, unbroken
):
    stopped = processes.run(tmp_path, *SETTINGS, fault="crash", at="epoch-000000")
    assert stopped.stdout == ""
    (path,) = faults.runs_in(tmp_path)
    assert (path / "config.toml").exists()
    again = processes.run(tmp_path, "resume", path)
    assert again.code == 0, again.stderr
    assert faults.result_of(path) == unbroken


def test_a_cut_config_is_refused_where_there_is_no_checkpoint(processes, run):
    shutil.rmtree(run.checkpoints)
    run.metrics.unlink()
    run.timings.unlink()
    whole = run.config.read_text()
    for text in ("", whole[: whole.index("[run]")]):
        run.config.write_text(text)
        assert "config.toml is incomplete: it has no" in refused(processes, run, code=4)


def test_other_data_is_refused(processes, run):
    newest = read_newest(run)
    before = newest.manifest.environment.dataset
    other = before.model_copy(update={"sha256": "f" * 64})
    rewrite(run, newest, dataset=other)
    said = refused(processes, run, code=3)
    assert "was trained on garments of SHA-256 ffffffffffff" in said
    assert f"has {before.sha256[:12]}" in said


def rewrite(run, newest, **changes):
    """Save a checkpoint as if its run had begun in another environment."""
    environment = newest.manifest.environment.model_copy(update=changes)
    manifest = newest.manifest.model_copy(update={"environment": environment})
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(manifest, newest.arrays))


# The state of the plateau rule in format 2, and what format 3 had besides it.
SIX = ("scale", "best_value", "plateau_count", "cooldown_count", "count", "avg_value")
MORE = ("threshold", "patience", "maximize") + tuple(
    f"observation/{name}"
    for name in ("number", "value", "best", "threshold", "wait", "scale_before", "scale")
)


@pytest.mark.parametrize(("number", "names"), [(2, SIX), (3, SIX + MORE)])
def test_a_checkpoint_of_an_earlier_format_continues_to_the_same_bytes(
    processes, run, unbroken, number, names
):
    newest = read_newest(run)
    arrays = {
        name: array
        for name, array in newest.arrays.items()
        if name.removeprefix("plateau/") in names or name.startswith(("params/", "opt_state/"))
    }
    assert len(arrays) < len(newest.arrays)
    arrays["scale"] = newest.arrays["scale"]
    manifest = newest.manifest.model_copy(update={"format": number})
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(manifest, arrays))
    finished(processes, run)
    assert faults.result_of(run.path).metrics == unbroken.metrics


def test_a_run_in_another_environment_is_no_longer_bit_exact(processes, run):
    newest = read_newest(run)
    versions = newest.manifest.environment.versions
    rewrite(run, newest, versions=versions | {"jax": "0.1"}, devices=["gpu:0", "gpu:1"])
    ended = finished(processes, run)
    why = f"no longer bit-exact: jax 0.1 -> {versions['jax']}, devices gpu:0, gpu:1 -> cpu:0 (cpu)"
    assert f"From here on this run is {why}." in ended.stderr
    assert Notice(event="resumed", message=f"after epoch 2; {why}") in Run(run).events


def test_a_resume_uses_the_number_of_threads_of_the_run(processes, tmp_path):
    settings = (*SETTINGS, "--threads=2")
    processes.run(tmp_path, *settings, fault="crash", at=MIDDLE)
    run = RunDirectory.find(tmp_path / "runs" / "latest")
    assert "threads = 2 # flag" in run.config.read_text()
    # The processes of the tests have NPROC=1, which is not what this run began with.
    assert "bit-exact" not in finished(processes, run).stderr
    newest = read_newest(run)
    assert newest.manifest.environment.threads == 2


def test_lines_that_no_checkpoint_committed_are_removed_at_once(processes, run, unbroken):
    for path in (run.metrics, run.timings, run.events):
        with path.open("ab") as file:
            file.write(b'{"epoch": 9}\n{"torn')
    processes.run(run.path, "resume", run.path, fault="crash", at="epoch-000004")
    assert len(run.metrics.read_text().splitlines()) == 5, "the lines of epoch 4 are the last"
    assert Run(run).histories[0].last_epoch == 3
    finished(processes, run)
    assert faults.result_of(run.path) == unbroken
    assert len(run.timings.read_text().splitlines()) == 8


def test_warnings_are_written_once_however_often_a_run_is_stopped(processes, tmp_path):
    settings = (
        *faults.TINY, "--patience=1", "--rtol=0.9", "--min-scale=0.5", "--epochs=3",
        "--learning-rate=1e-15",
    )  # fmt: skip
    events = {}
    for name, stops in (("whole", ()), ("stopped", ("epoch-000001", "epoch-000003"))):
        folder = tmp_path / name
        folder.mkdir()
        for at in stops:
            assert faults.resume_or_start(processes, folder, settings, fault="crash", at=at).code
        ended = faults.resume_or_start(processes, folder, settings)
        assert ended.code == 0, ended.stderr
        (run,) = faults.runs_in(folder)
        lines = (run / "events.jsonl").read_text().splitlines()
        events[name] = [line for line in lines if '"event":"resumed"' not in line]
    reasons = [json.loads(line)["reason"] for line in events["whole"] if '"warning"' in line]
    assert sorted(reasons) == ["min-scale", "params"]
    assert events["stopped"] == events["whole"]


def test_notices_after_the_last_checkpoint_are_kept(processes, run, unbroken):
    notice = Notice(event="interrupted", message="stopped by SIGTERM")
    storage.append_bytes(run.events, storage.as_lines([notice]))
    finished(processes, run)
    assert notice in Run(run).events
    assert faults.result_of(run.path) == unbroken


def test_links_in_the_place_of_files_are_not_written_through(processes, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    for path in (run.plot, run.checkpoints / "epoch-000003.npz"):
        path.unlink(missing_ok=True)
        path.symlink_to(elsewhere)
    finished(processes, run)
    run.metrics.rename(tmp_path / "metrics.jsonl")
    run.metrics.symlink_to(tmp_path / "metrics.jsonl")
    before = run.metrics.read_bytes()
    ended = finished(processes, run, "--epochs=8", code=5)
    assert "metrics.jsonl cannot be written: it is a symbolic link" in ended.stderr
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert elsewhere.read_text() == "precious"


def test_a_run_that_another_process_holds_is_refused(processes, run):
    before = content(run)
    descriptor = os.open(run.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    started = time.monotonic()
    ended = finished(processes, run, code=7)
    assert time.monotonic() - started < 5
    assert "is locked by another process" in ended.stderr
    assert content(run) == before
    os.close(descriptor)
    finished(processes, run)


def test_check_verifies_everything_and_changes_nothing(processes, run):
    before = content(run)
    ended = finished(processes, run, "--check")
    assert content(run) == before
    intact = [line for line in ended.stdout.splitlines() if ": intact" in line]
    assert len(intact) == 4  # two epochs, the best, and the rest
    assert f"resume {run.path} continues it from epoch 2" in ended.stdout
    damage(checkpoint.epoch_path(run.checkpoints, 2))
    run.config.write_text("[")
    ended = finished(processes, run, "--check", code=4)
    for said in ("epoch-000002.npz cannot be used", "config.toml is not"):
        assert said in ended.stderr
    assert "continues it from epoch 1" in ended.stderr


@pytest.fixture(scope="module")
def dropped_once(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dropped")
    for _ in range(2):
        processes.run(folder, *faults.SHORT, "--epochs=3", fault="crash", at=MIDDLE)
    return folder


@pytest.fixture
def dropped(dropped_once, tmp_path):
    """The folder of a run that was stopped after epoch 2, with drops; there is another run."""
    shutil.copytree(dropped_once / "runs", tmp_path / "runs", symlinks=True)
    run = RunDirectory.find(tmp_path / "runs" / "latest")
    assert Run(run).histories[0].drops
    return run


def damage_history(run, name, kind="flip"):
    """Damage a file of the journal inside of what the checkpoint committed."""
    newest = read_newest(run)
    path, num_bytes = run.path / name, newest.manifest.files[name].num_bytes
    content = bytearray(path.read_bytes())
    content[num_bytes // 2] ^= 1
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, num_bytes - 1)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("name", list(journal.FILES))
@pytest.mark.parametrize(
    ("kind", "problem"), [("flip", "is damaged"), ("cut", "was cut"), ("missing", "is missing")]
)
def test_a_damaged_history_is_refused_and_nothing_is_changed(
    processes, dropped, name, kind, problem
):
    damage_history(dropped, name, kind)
    before = content(dropped)
    for arguments in ([], ["--check"]):
        ended = finished(processes, dropped, *arguments, code=4)
        assert content(dropped) == before
        assert f"{dropped.path / name} {problem}" in ended.stderr
        assert "nothing was deleted" in ended.stderr
    assert "continues it" not in ended.stderr


@pytest.mark.parametrize("name", list(journal.FILES))
def test_a_damaged_history_is_never_shown(processes, dropped, name):
    damage_history(dropped, name)
    folder, before = dropped.path.parents[1], content(dropped)
    other = next(path for path in faults.runs_in(folder) if path != dropped.path)
    for call in (["plot", dropped], ["schedule", dropped], ["compare", other, dropped]):
        ended = processes.run(folder, *call)
        assert ended.code == 4, f"{call}: {ended.stderr}"
        assert f"{name} is damaged" in ended.stderr
        assert ended.stdout == ""
    ended = processes.run(folder, "runs")
    assert ended.code == 0
    assert ended.stdout.splitlines()[2].split()[-1] == "damaged"
    assert f"{name} is damaged" in ended.stderr
    assert content(dropped) == before


def test_a_checkpoint_can_be_scored_though_the_history_is_damaged(processes, dropped):
    folder = dropped.path.parents[1]
    whole = processes.run(folder, "evaluate", dropped)
    assert "damaged" not in whole.stderr
    for name in journal.FILES:
        before = (dropped.path / name).read_bytes()
        damage_history(dropped, name)
        ended = processes.run(folder, "evaluate", dropped)
        assert (ended.code, ended.stdout) == (0, whole.stdout)
        assert f"{name} is damaged" in ended.stderr
        (dropped.path / name).write_bytes(before)


def test_lines_after_the_last_checkpoint_are_not_shown(processes, run):
    """The process was stopped between the lines of epoch 3 and their checkpoint."""
    assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [
        0, 1, 2, 3,
    ]  # fmt: skip
    folder = run.path.parents[1]
    assert " 2/7 " in processes.run(folder, "runs").stdout.splitlines()[1]
    ended = processes.run(folder, "schedule", run, "--mode=test-loss", "--json")
    assert [each["epoch"] for each in json.loads(ended.stdout)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("environment.json", "environment.json cannot be used"),
        ("config.toml", "config.toml is not valid TOML"),
    ],
)
def test_a_damaged_description_of_a_finished_run_is_written_again(processes, done, name, problem):
    before = content(done)
    path = done.path / name
    path.write_text("[\n" + path.read_text())
    assert problem in finished(processes, done, "--check", code=4).stderr
    finished(processes, done)
    assert "has nothing to do" in finished(processes, done, "--check").stdout
    after = content(done)
    for unchanged in (done.metrics, done.config, done.plot, done.timings):
        assert after[unchanged] == before[unchanged]


@pytest.mark.parametrize("remove", [True, False])
def test_a_finished_run_without_its_last_checkpoint_trains_that_epoch_again(
    processes, done, unbroken, remove
):
    newest = checkpoint.epoch_path(done.checkpoints, 7)
    damage(newest)
    if remove:
        newest.unlink()
    checked = finished(processes, done, "--check", code=0 if remove else 4)
    assert "continues it from epoch 6" in checked.stdout + checked.stderr
    assert epochs_printed(finished(processes, done).stdout) == [7]
    assert faults.result_of(done.path) == unbroken


def test_check_refuses_what_resume_would(processes, run):
    run.config.write_text(run.config.read_text().replace("patience = 3", "patience = 4"))
    assert "--patience  3    4" in finished(processes, run, "--check", code=2).stderr


def test_a_checkpoint_of_another_version_is_not_skipped(processes, run):
    """To continue from an older one would overwrite what the other version has trained."""
    newest = read_newest(run)
    later = newest.manifest.model_copy(update={"format": checkpoint.FORMAT + 1})
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(later, newest.arrays))
    assert_of_another_version(processes, run, "epoch-000002.npz", ["plot", "runs"])


def test_a_config_of_another_version_is_not_written_again(processes, run):
    run.config.write_text(run.config.read_text().replace("format = 1", "format = 2"))
    assert_of_another_version(processes, run, "config.toml", ["plot", "runs"])


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_history_of_another_version_is_not_continued(processes, run, name):
    """Another version wrote the lines, and the checkpoint that committed them."""
    newest = read_newest(run)
    files = dict(newest.manifest.files)
    text = (run.path / name).read_bytes()[: files[name].num_bytes]
    text += b'{"format":2,"event":"new","epoch":3}\n'
    (run.path / name).write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    files[name] = checkpoint.FileState(num_bytes=len(text), sha256=digest)
    manifest = newest.manifest.model_copy(update={"files": files})
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(manifest, newest.arrays))
    assert_of_another_version(processes, run, name, ["plot", "schedule", "runs"])


def assert_of_another_version(processes, run, name, commands):
    """Check that no command calls the run damaged, and that nothing in it is changed."""
    before = content(run)
    calls = [["resume", run.path], ["resume", run.path, "--check"]]
    calls += [[command, *([run.path] if command != "runs" else [])] for command in commands]
    for call in calls:
        ended = processes.run(run.path.parents[1], *call)
        assert ended.code == (0 if call == ["runs"] else 4), ended.stderr
        assert f"{name}" in ended.stderr
        assert "is of another version: it has format" in ended.stderr
        assert "is damaged" not in ended.stderr
        assert call == ["runs"] or "install the version that wrote it" in ended.stderr
        assert content(run) == before


def test_a_checkpoint_with_missing_arrays_is_refused(processes, run):
    newest = read_newest(run)
    kept = {name: array for name, array in newest.arrays.items() if "bias" not in name}
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(newest.manifest, kept))
    before = content(run)
    finished(processes, run, "--epochs=9", code=4)
    assert content(run) == before


def test_files_of_the_user_stay(processes, run):
    own = [
        run.checkpoints / "epoch-000001-mine.npz", run.path / ".notes.tmp",
        run.path.parent / "latest",
    ]  # fmt: skip
    own[2].unlink()
    for path in own:
        path.write_text("mine")
    ended = finished(processes, run)
    assert "latest is not changed: it is not a link to a run" in ended.stderr
    assert [path.read_text() for path in own] == ["mine"] * 3


def test_a_checkpoint_under_the_name_of_another_epoch_is_refused(processes, run):
    copy = checkpoint.epoch_path(run.checkpoints, 5)
    shutil.copy(checkpoint.epoch_path(run.checkpoints, 2), copy)
    ended = finished(processes, run)
    assert f"{copy} cannot be used: it is of epoch 2, not of the one in its name" in ended.stderr


def test_a_folder_whose_name_is_not_utf_8_can_be_resumed(processes, run):
    odd = run.path.parent / os.fsdecode(b"\xff\xfe")
    run.path.rename(odd)
    finished(processes, RunDirectory(odd))


def test_an_old_state_is_refused_with_the_name_of_the_missing_array(processes, run):
    for path in checkpoint.candidates(run.checkpoints):
        manifest, arrays = checkpoint.read_checkpoint(path)
        kept = {name: array for name, array in arrays.items() if name != "plateau/plateau_count"}
        checkpoint.save_checkpoint(run.checkpoints, Checkpoint(manifest, kept))
    said = refused(processes, run, "--check", code=4)
    assert "plateau/plateau_count is None, expected" in said
    finished(processes, run, code=4)
