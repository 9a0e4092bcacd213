"""What a user sees of resuming: it goes on, or it says why not. Each run is a new process."""

import fcntl
import json
import os
import shutil
import time

import faults
import pytest

from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.records import EPOCHS, EVENTS, Notice, read_records

# So long that there are epochs before the end, a wait, and a window half full.
SETTINGS = (*faults.TINY, "--patience=3", "--cooldown=2", "--rtol=0.05", "--epochs=7")
MIDDLE = "epoch-000003"  # the file at whose beginning it is stopped: epoch 2 is printed


@pytest.fixture(scope="module")
def unbroken(processes, tmp_path_factory):
    return faults.unbroken(processes, tmp_path_factory.mktemp("unbroken"), SETTINGS)[0]


@pytest.fixture(scope="module")
def stopped_once(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    stopped = processes.run(folder, *SETTINGS, fault="crash", at=MIDDLE)
    assert faults.epochs_printed(stopped.stdout) == [0, 1, 2], stopped.stdout
    return folder


@pytest.fixture
def run(stopped_once, tmp_path):
    """The folder of a run that was stopped after epoch 2 of 7."""
    shutil.copytree(stopped_once / "runs", tmp_path / "runs", symlinks=True)
    return RunDirectory.find(tmp_path / "runs" / "latest")


def content(run):
    """Return every byte of a run's folder, to hold that nothing was changed."""
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def finished(processes, run, *arguments, code=0):
    ended = processes.run(run.path.parents[1], "resume", run.path, *arguments)
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def refused(processes, run, *arguments, code):
    """Resume a run that must be refused, and hold that nothing of it was touched."""
    before = content(run)
    ended = finished(processes, run, *arguments, code=code)
    assert content(run) == before
    assert ended.stdout == ""
    return ended.stderr


def damage(path):
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)


def test_a_stopped_run_goes_on_where_it_was_and_ends_as_if_it_had_not_been_stopped(
    processes, run, unbroken
):
    ended = finished(processes, run)
    assert faults.epochs_printed(ended.stdout) == [3, 4, 5, 6, 7]
    assert "resumed   after epoch 2 of 7" in ended.stderr
    assert faults.result_of(run.path) == unbroken
    assert unbroken.drops
    (notice,) = (event for event in read_records(run.events, EVENTS) if event.event == "resumed")
    assert notice.message == "after epoch 2"


def test_what_the_rule_has_counted_is_not_forgotten(processes, tmp_path):
    """Stopped with a wait of 1 before a drop, and with a cooldown of 2 after it."""
    settings = (*SETTINGS, "--epochs=9")
    (tmp_path / "whole").mkdir()
    expected, _ = faults.unbroken(processes, tmp_path / "whole", settings)
    processes.run(tmp_path, *settings, fault="crash", at="epoch-000007")
    processes.run(tmp_path, "resume", "runs/latest", fault="crash", at="epoch-000008")
    (path,) = faults.runs_in(tmp_path)
    records = read_records(path / "metrics.jsonl", EPOCHS)
    waits = [(record.wait, record.cooldown) for record in records]
    assert waits[6:8] == [(1, 0), (0, 2)]
    assert processes.run(tmp_path, "resume", "runs/latest").code == 0
    assert faults.result_of(path) == expected


@pytest.mark.parametrize("mode", ["test-loss", "val-accuracy"])
def test_a_rule_on_evaluations_goes_on_inside_of_its_window(processes, tmp_path, mode):
    settings = (
        *faults.TINY, f"--mode={mode}", "--val-fraction=0.2", "--patience=1", "--rtol=0.3",
        "--accumulation-size=2", "--epochs=6",
    )  # fmt: skip
    expected, _ = faults.unbroken(processes, tmp_path, settings)
    assert expected.drops
    (tmp_path / "stopped").mkdir()
    processes.run(tmp_path / "stopped", *settings, fault="crash", at=MIDDLE)
    again = processes.run(tmp_path / "stopped", "resume", "runs/latest")
    assert again.code == 0, again.stderr
    assert faults.result_of(*faults.runs_in(tmp_path / "stopped")) == expected


def test_a_longer_run_is_the_run_that_was_that_long_from_the_beginning(
    processes, run, tmp_path, unbroken
):
    finished(processes, run, "--epochs=8")
    assert "epochs = 8 # flag" in run.config.read_text()
    (tmp_path / "whole").mkdir()
    whole, _ = faults.unbroken(processes, tmp_path / "whole", (*SETTINGS, "--epochs=8"))
    assert faults.result_of(run.path) == whole
    assert whole.metrics.startswith(unbroken.metrics)


def test_a_longer_run_that_is_stopped_again_keeps_its_new_length(processes, run):
    finished(processes, run)
    stopped = processes.run(
        run.path.parents[1], "resume", run.path, "--epochs=8", fault="crash", at="epoch-000008"
    )
    assert stopped.code == faults.CRASHED
    assert not run.summary.exists(), "it would count as done"
    assert faults.epochs_printed(finished(processes, run).stdout)[-1] == 8


def test_a_finished_run_says_so_and_stays_as_it_is(processes, run):
    finished(processes, run)
    said = refused(processes, run, code=0)
    assert "is done, with all of its 7 epochs" in said
    assert f"plateau-train resume {run.path} --epochs 14 goes further" in said
    finished(processes, run, "--epochs=8")
    assert json.loads(run.summary.read_text())["epochs"] == 8


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            ["--factor=0.3", "--batch-size=6"],
            [
                "--batch-size 5 6 the results depend on it",
                "--factor 0.5 0.3 the results depend on it",
            ],
        ),
        (["--epochs=5"], ["--epochs 7 5 a run goes further, not back"]),
        (
            ["--patience=1"],
            ["--patience 3 1 the wait is 1 already: the rule would pass 1 by and never drop"],
        ),
        (
            ["--accumulation-size=4"],
            ["--accumulation-size 5 4 the window holds 4 already: it would never be full"],
        ),
        (["--threads=7"], ["--threads 1 7 the results depend on it"]),
    ],
)
def test_changed_settings_are_refused_with_a_table_of_the_differences(
    processes, run, arguments, rows
):
    last = checkpoint.read_newest(run.checkpoints)[0]
    assert (last.manifest.records[-1].wait, int(last.arrays["plateau/count"])) == (1, 4)
    said = refused(processes, run, *arguments, code=2)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0].endswith("goes on with the settings that it began with")
    assert lines[1] == "setting run asked why not"
    assert lines[2:-1] == rows
    assert lines[-1].startswith("hint: ")


def test_a_config_that_was_edited_is_refused_and_a_damaged_one_is_written_anew(processes, run):
    before = run.config.read_text()
    run.config.write_text(before.replace("patience = 3", "patience = 4"))
    assert "--patience  3    4" in refused(processes, run, code=2)
    run.config.write_text(before[: len(before) // 2] + "[[")
    finished(processes, run)
    assert run.config.read_text() == before


def test_settings_that_move_no_result_may_differ(processes, run):
    finished(processes, run, "--quiet", "--data-dir=elsewhere", "--patience=3")


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(
    processes, run, unbroken
):
    newest = checkpoint.epoch_path(run.checkpoints, 2)
    damage(newest)
    ended = finished(processes, run)
    assert f"NOTICE: {newest} cannot be used" in ended.stderr
    assert "NOTICE: The run continues from epoch 1." in ended.stderr
    assert faults.epochs_printed(ended.stdout) == [2, 3, 4, 5, 6, 7]
    assert faults.result_of(run.path) == unbroken


def test_without_a_sound_checkpoint_a_run_is_refused_with_every_reason(processes, run):
    names = sorted(path.name for path in run.checkpoints.glob("*.npz"))
    for name in names:
        storage.write_bytes(run.checkpoints / name, b"no checkpoint")  # breaks the hard link
    said = refused(processes, run, code=4)
    assert all(f"{name} cannot be used" in said for name in names)
    assert "nothing was deleted" in said
    shutil.rmtree(run.checkpoints)
    assert "checkpoints holds no checkpoint" in refused(processes, run, code=4)


def test_the_best_checkpoint_is_as_good_as_any(processes, run, unbroken):
    for path in run.checkpoints.glob("epoch-*"):
        path.unlink()
    best = checkpoint.read_checkpoint(run.checkpoints / "best.npz").manifest.epoch
    ended = finished(processes, run)
    assert faults.epochs_printed(ended.stdout)[0] == best + 1
    assert faults.result_of(run.path) == unbroken


def test_a_run_that_was_stopped_before_its_first_epoch_begins_again(processes, tmp_path, unbroken):
    stopped = processes.run(tmp_path, *SETTINGS, fault="crash", at="epoch-000000")
    assert stopped.stdout == ""
    (path,) = faults.runs_in(tmp_path)
    assert (path / "config.toml").exists()
    again = processes.run(tmp_path, "resume", path)
    assert again.code == 0, again.stderr
    assert faults.result_of(path) == unbroken


def test_a_cut_config_is_not_taken_for_one_with_defaults(processes, run):
    shutil.rmtree(run.checkpoints)
    run.metrics.unlink()
    run.timings.unlink()
    whole = run.config.read_text()
    for text in ("", whole[: whole.index("[run]")]):
        run.config.write_text(text)
        assert "config.toml is not whole: it lacks" in refused(processes, run, code=4)


def test_other_data_is_refused(processes, run):
    newest, _ = checkpoint.read_newest(run.checkpoints)
    before = newest.manifest.environment.dataset
    other = before.model_copy(update={"sha256": "f" * 64})
    rewrite(run, newest, dataset=other)
    said = refused(processes, run, code=3)
    assert "was trained on garments of SHA-256 ffffffffffff" in said
    assert f"has {before.sha256[:12]}" in said


def rewrite(run, newest, **changes):
    """Save a checkpoint as if its run had taken place elsewhere."""
    environment = newest.manifest.environment.model_copy(update=changes)
    manifest = newest.manifest.model_copy(update={"environment": environment})
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(manifest, newest.arrays))


def test_a_run_that_goes_on_elsewhere_says_that_it_is_no_longer_bit_exact(processes, run):
    newest, _ = checkpoint.read_newest(run.checkpoints)
    versions = newest.manifest.environment.versions
    rewrite(run, newest, versions=versions | {"jax": "0.1"}, devices=["gpu:0", "gpu:1"])
    ended = finished(processes, run)
    why = f"no longer bit-exact: jax 0.1 -> {versions['jax']}, devices gpu:0, gpu:1 -> cpu:0 (cpu)"
    assert f"NOTICE: From here on this run is {why}." in ended.stderr
    assert Notice(event="resumed", message=f"after epoch 2; {why}") in read_records(
        run.events, EVENTS
    )


def test_the_number_of_threads_is_kept_and_set_again(processes, tmp_path):
    settings = (*SETTINGS, "--threads=2")
    processes.run(tmp_path, *settings, fault="crash", at=MIDDLE)
    run = RunDirectory.find(tmp_path / "runs" / "latest")
    assert "threads = 2 # flag" in run.config.read_text()
    # The processes of the tests have NPROC=1, which is not what this run began with.
    assert "bit-exact" not in finished(processes, run).stderr
    newest, _ = checkpoint.read_newest(run.checkpoints)
    assert newest.manifest.environment.threads == 2


def test_torn_and_surplus_lines_do_not_survive(processes, run, unbroken):
    for path in (run.metrics, run.timings, run.events):
        with path.open("ab") as file:
            file.write(b'{"epoch": 9}\n{"torn')
    processes.run(run.path, "resume", run.path, fault="crash", at="epoch-000004")
    assert len(read_records(run.metrics, EPOCHS)) == 4, "they are gone at once, not in the end"
    finished(processes, run)
    assert faults.result_of(run.path) == unbroken
    assert len(run.timings.read_text().splitlines()) == 8


def test_what_happened_after_the_checkpoint_is_still_told(processes, run):
    notice = Notice(event="interrupted", message="stopped by SIGTERM")
    storage.append_lines(run.events, [notice])
    finished(processes, run)
    assert notice in read_records(run.events, EVENTS)


def test_links_in_the_place_of_files_are_not_written_through(processes, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    for path in (run.metrics, run.plot, run.checkpoints / "epoch-000003.npz"):
        path.unlink(missing_ok=True)
        path.symlink_to(elsewhere)
    finished(processes, run)
    assert elsewhere.read_text() == "precious"


def test_of_two_that_resume_the_same_run_one_is_refused(processes, run):
    before = content(run)
    descriptor = os.open(run.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    started = time.monotonic()
    ended = finished(processes, run, code=7)
    assert time.monotonic() - started < 5
    assert "is held by another process" in ended.stderr
    assert content(run) == before
    os.close(descriptor)
    finished(processes, run)


def test_check_verifies_everything_and_changes_nothing(processes, run):
    before = content(run)
    ended = finished(processes, run, "--check")
    assert content(run) == before
    sound = [line for line in ended.stdout.splitlines() if ": sound" in line]
    assert len(sound) == 4  # two epochs, the best, and the rest
    assert f"resume {run.path} continues it from epoch 2" in ended.stdout
    damage(checkpoint.epoch_path(run.checkpoints, 2))
    damage(run.metrics)
    run.config.write_text("[")
    ended = finished(processes, run, "--check", code=4)
    for said in ("epoch-000002.npz cannot", "config.toml is not", "metrics.jsonl does not hold"):
        assert said in ended.stderr
    assert "continues it from epoch 1" in ended.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("environment.json", "environment.json cannot be used"),
        ("events.jsonl", "events.jsonl line 1 is damaged"),
        ("timings.jsonl", "timings.jsonl does not hold the history"),
        ("config.toml", "config.toml is not valid TOML"),
    ],
)
def test_a_damaged_file_of_a_run_that_is_done_is_found_and_mended(processes, run, name, said):
    finished(processes, run)
    before = content(run)
    path = run.path / name
    path.write_text("[\n" + path.read_text())
    assert said in finished(processes, run, "--check", code=4).stderr
    finished(processes, run)
    assert "has nothing to do" in finished(processes, run, "--check").stdout
    after = content(run)
    for unchanged in (run.metrics, run.config, run.summary, run.plot, run.timings):
        assert after[unchanged] == before[unchanged]


def test_check_refuses_what_resume_would(processes, run):
    run.config.write_text(run.config.read_text().replace("patience = 3", "patience = 4"))
    assert "--patience  3    4" in finished(processes, run, "--check", code=2).stderr


def test_a_checkpoint_of_another_version_is_no_damage(processes, run):
    """To go back behind it would write over what the other version has trained."""
    newest, _ = checkpoint.read_newest(run.checkpoints)
    later = newest.manifest.model_copy(update={"format": 2})
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(later, newest.arrays))
    said = refused(processes, run, code=4)
    assert "is of another version: it has format 2" in said


def test_a_checkpoint_that_another_state_was_trained_for_changes_nothing(processes, run):
    newest, _ = checkpoint.read_newest(run.checkpoints)
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
    assert "latest stays as it is: it is no link to a run" in ended.stderr
    assert [path.read_text() for path in own] == ["mine"] * 3


def test_a_checkpoint_under_the_name_of_another_epoch_is_refused(processes, run):
    copy = checkpoint.epoch_path(run.checkpoints, 5)
    shutil.copy(checkpoint.epoch_path(run.checkpoints, 2), copy)
    ended = finished(processes, run)
    assert f"{copy} cannot be used: it is of epoch 2, not of that in its name" in ended.stderr


def test_a_name_that_is_no_utf_8_can_be_resumed(processes, run):
    odd = run.path.parent / os.fsdecode(b"\xff\xfe")
    run.path.rename(odd)
    finished(processes, RunDirectory(odd))


def test_an_old_state_is_refused_by_the_name_of_what_it_lacks(processes, run):
    for path in checkpoint.candidates(run.checkpoints):
        manifest, arrays = checkpoint.read_checkpoint(path)
        kept = {name: array for name, array in arrays.items() if name != "plateau/plateau_count"}
        checkpoint.save_checkpoint(run.checkpoints, Checkpoint(manifest, kept))
    said = refused(processes, run, "--check", code=4)
    assert "plateau/plateau_count is None, expected" in said
    finished(processes, run, code=4)
