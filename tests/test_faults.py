"""A run cannot be lost: crashes, torn writes, a full disk and SIGKILL, each in a new process.

A missing fsync is seen here only for the content of files. Whether a folder's list of names
reaches the disk cannot be tested while the power is on.
"""

import shutil

import faults
import pytest

# Few operations are struck here, and not the same ones of each epoch, which has 17. scripts/torture
# strikes all of them in all ways, and kills runs more often.


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
    assert len(operations) >= 3, "nothing was tested"
    for at in operations:
        place = folder / f"{at}"
        if start is None:
            place.mkdir()
        else:
            shutil.copytree(start, place, symlinks=True)
        faults.strike(processes, place, fault(at), at, expected, **options)


def test_a_crash_at_any_change_of_the_disk_loses_no_epoch(processes, tmp_path, unbroken):
    operations = range(8, len(unbroken[1]) + 1, 34)  # before there is a config.toml, and later
    strike_each(processes, tmp_path, unbroken, lambda _: "crash", operations)


def test_a_disk_that_refuses_a_change_leaves_an_intact_run(processes, tmp_path, unbroken):
    """The exit code is 5."""
    names = list(faults.REFUSALS)
    operations = range(6, len(unbroken[1]) + 1, 20)
    strike_each(
        processes, tmp_path, unbroken, lambda at: names[at // 20 % len(names)], operations,
        resume=False,
    )  # fmt: skip


def test_a_disk_that_refuses_every_change_loses_no_epoch(processes, tmp_path, unbroken):
    """Neither temporary files can be removed then, nor the lines of an unfinished epoch."""
    operations = range(len(unbroken[1]) - 4, 0, -37)
    strike_each(processes, tmp_path, unbroken, lambda _: faults.BROKEN, operations)


def writes_of(unbroken):
    return [at for at, name in enumerate(unbroken[1], start=1) if name == "write"]


def test_a_write_that_is_torn_loses_no_epoch(processes, tmp_path, unbroken):
    """Every fifth write: an epoch has four, so another of its files is torn in each epoch."""
    operations = writes_of(unbroken)[4::5]
    strike_each(processes, tmp_path, unbroken, lambda _: "tear", operations)


def test_a_loss_of_power_loses_no_epoch_that_was_printed(processes, tmp_path, unbroken):
    """After some of the writes, before their fsync."""
    operations = [at + 1 for at in writes_of(unbroken)][1::5]
    strike_each(processes, tmp_path, unbroken, lambda _: "power", operations)


def test_a_resume_that_is_stopped_as_well_loses_no_epoch(processes, tmp_path, unbroken, stopped):
    resumed = processes.run(
        shutil.copytree(stopped, tmp_path / "whole", symlinks=True), "resume", "runs/latest"
    )
    kinds = ("crash", "power", faults.BROKEN)
    operations = range(2, len(resumed.operations) + 1, len(resumed.operations) // 3)
    strike_each(
        processes, tmp_path, unbroken, lambda at: kinds[operations.index(at) % len(kinds)],
        operations, start=stopped,
    )  # fmt: skip


def test_3_kills_at_random_moments_lose_nothing(processes, tmp_path):
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "killed").mkdir()
    expected, _ = faults.unbroken(processes, tmp_path / "unbroken", faults.LONG)
    assert expected.drops[0]
    done = faults.kill(processes, tmp_path / "killed", count=3, seed=1, expected=expected)
    assert done >= 1


def test_a_sweep_that_goes_back_an_epoch_can_be_stopped_again(processes, tmp_path):
    """scripts/torture stops it after epoch 0 as well, and at more operations."""
    faults.stop_sweep(processes, tmp_path, stops={2: (2, 20)})


def test_an_epoch_writes_as_much_late_as_early(processes, tmp_path):
    faults.check_sizes(processes, tmp_path, num_seeds=3)
