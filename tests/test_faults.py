"""A run cannot be lost: crashes, torn writes, a full disk and SIGKILL, each in a new process.

A missing fsync is seen here only for the content of files. Whether a folder's list of names
reaches the disk cannot be tested while the power is on.
"""

import shutil

import faults
import pytest

# A crash strikes every 20th operation here, and a refusal every 20th one, but others. An epoch
# has 17 operations, so these are not the same ones of each epoch. scripts/torture strikes all of
# them in all ways, and kills runs more often.
EVERY = 20


@pytest.fixture(scope="module")
def unbroken(processes, tmp_path_factory):
    return faults.unbroken(processes, tmp_path_factory.mktemp("unbroken"), faults.SHORT)


@pytest.fixture(scope="module")
def stopped(processes, tmp_path_factory):
    """The folder of a run that was stopped between the lines of epoch 2 and their checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    processes.run(folder, *faults.SHORT, fault="crash", at="epoch-000002")
    (run,) = faults.runs_in(folder)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    return folder


def strike_each(processes, folder, unbroken, fault, operations, *, start=None, **options):
    """Strike each of these operations, counted from 1, of a new run or of the one in ``start``."""
    expected, _ = unbroken
    assert len(operations) >= 5, "nothing was tested"
    for at in operations:
        place = folder / f"{at}"
        if start is None:
            place.mkdir()
        else:
            shutil.copytree(start, place, symlinks=True)
        faults.strike(processes, place, fault(at), at, expected, **options)


def test_a_crash_at_any_change_of_the_disk_loses_no_epoch(processes, tmp_path, unbroken):
    operations = range(1, len(unbroken[1]) + 1, EVERY)
    strike_each(processes, tmp_path, unbroken, lambda _: "crash", operations)


def test_a_disk_that_refuses_a_change_leaves_an_intact_run(processes, tmp_path, unbroken):
    """The exit code is 5."""
    names = list(faults.REFUSALS)
    operations = range(6, len(unbroken[1]) + 1, EVERY)
    strike_each(
        processes, tmp_path, unbroken, lambda at: names[at // EVERY % len(names)], operations,
        resume=False,
    )  # fmt: skip


def test_a_disk_that_refuses_every_change_loses_no_epoch(processes, tmp_path, unbroken):
    """Neither temporary files can be removed then, nor the lines of an unfinished epoch."""
    operations = range(len(unbroken[1]) - 4, 0, -17)
    strike_each(processes, tmp_path, unbroken, lambda _: faults.BROKEN, operations)


def test_a_write_that_is_torn_loses_no_epoch(processes, tmp_path, unbroken):
    """Every third write: an epoch has four, so each of its files is torn in one epoch."""
    names = unbroken[1]
    writes = [at for at, name in enumerate(names, start=1) if name == "write"]
    strike_each(processes, tmp_path, unbroken, lambda _: "tear", writes[::3])


def test_a_loss_of_power_loses_no_epoch_that_was_printed(processes, tmp_path, unbroken):
    operations = range(len(unbroken[1]), 0, -19)
    strike_each(processes, tmp_path, unbroken, lambda _: "power", operations)


def test_a_resume_that_is_stopped_as_well_loses_no_epoch(processes, tmp_path, unbroken, stopped):
    resumed = processes.run(
        shutil.copytree(stopped, tmp_path / "whole", symlinks=True), "resume", "runs/latest"
    )
    kinds = ("crash", "power", faults.BROKEN)
    operations = range(2, len(resumed.operations) + 1, 8)
    strike_each(
        processes, tmp_path, unbroken, lambda at: kinds[at // 8 % len(kinds)], operations,
        start=stopped,
    )  # fmt: skip


def test_4_kills_at_random_moments_lose_nothing(processes, tmp_path):
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "killed").mkdir()
    expected, _ = faults.unbroken(processes, tmp_path / "unbroken", faults.LONG)
    assert expected.drops[0]
    done = faults.kill(processes, tmp_path / "killed", count=4, seed=1, expected=expected)
    assert done >= 1


SWEEP = (
    "sweep", *faults.TINY, "--patience=1,2", "--rtol=0.9", "--epochs=2", "--name=sweep",
)  # fmt: skip


def results_of_sweep(folder):
    (sweep,) = faults.runs_in(folder)
    return [faults.result_of(run) for run in sorted(sweep.glob("0*"))]


def test_a_sweep_that_goes_back_an_epoch_can_be_stopped_again(processes, tmp_path):
    """One run of the sweep has committed an epoch, the other has not: the first goes back."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert processes.run(whole, *SWEEP).code == 0
    expected = results_of_sweep(whole)
    assert len(expected) == 2
    for epoch in (0, 2):
        name = f"002-patience=2/checkpoints/epoch-{epoch:06}"
        command = ("resume", *faults.runs_in(broken)) if epoch else SWEEP
        stopped = processes.run(broken, *command, fault="crash", at=name)
        assert stopped.code == faults.CRASHED
        (sweep,) = faults.runs_in(broken)
        first, second = (
            list(run.glob(f"checkpoints/epoch-{epoch:06}*")) for run in sweep.glob("0*")
        )
        assert len(first) + len(second) == 1
        # Each of these resumes goes back, and is stopped before it gets any further.
        for at in (2, 9, 20):
            again = processes.run(broken, "resume", sweep, fault="crash", at=at)
            assert again.code == faults.CRASHED, again.stderr
    ended = processes.run(broken, "resume", sweep)
    assert ended.code == 0, ended.stderr
    assert results_of_sweep(broken) == expected


@pytest.mark.parametrize("seed", ["0", "0-2"])
def test_an_epoch_writes_as_much_late_as_early(processes, tmp_path, seed):
    """Lines of metrics, lines of timings, and a checkpoint, whatever the history."""
    finished = processes.run(
        tmp_path, *faults.TINY, "--schedule=constant", "--epochs=43", f"--seed={seed}"
    )
    assert finished.code == 0, finished.stderr
    written = [size for size in finished.num_bytes if size]
    # Before them are config.toml and environment.json; after them the last event and two files.
    lines, timings, checkpoints = (written[2 + start :: 3] for start in range(3))
    digits = 20 * (1 if seed == "0" else 3)  # of numbers, in each of some ten columns
    for sizes, tolerance in ((lines, 10 * digits), (timings, 40), (checkpoints, 40)):
        early, late = sizes[4:9], sizes[37:42]
        assert abs(max(late) - max(early)) <= tolerance
