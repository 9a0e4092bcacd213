"""A run cannot be lost: crashes, torn writes, a full disk and SIGKILL, each in a new process.

A missing fsync is seen here only for the content of files. That a folder's list of names reaches
the disk is beyond any test that leaves the power on.
"""

import faults
import pytest

PARTS = 6  # of the operations, so that the processes of the tests share them
# Of each two operations one is struck here in each way; scripts/torture strikes all.
CRASHED_PARTS, REFUSED_PARTS = range(0, PARTS, 2), range(1, PARTS, 2)


@pytest.fixture(scope="module")
def unbroken(processes, tmp_path_factory):
    return faults.unbroken(processes, tmp_path_factory.mktemp("unbroken"), faults.SHORT)


def strike_each(processes, folder, unbroken, fault, operations, **options):
    """Strike at each of these operations, counted from 1, with the fault that is due."""
    expected, _ = unbroken
    assert len(operations) > 5, "nothing was tested"
    for at in operations:
        (folder / f"{at}").mkdir()
        faults.strike(processes, folder / f"{at}", fault(at), at, expected, **options)


@pytest.mark.parametrize("part", CRASHED_PARTS)
def test_a_crash_at_any_change_of_the_disk_loses_no_epoch(processes, tmp_path, unbroken, part):
    operations = range(1 + part, len(unbroken[1]) + 1, PARTS)
    strike_each(processes, tmp_path, unbroken, lambda _: "crash", operations)


@pytest.mark.parametrize("part", REFUSED_PARTS)
def test_a_disk_that_refuses_any_change_ends_with_exit_code_5_and_leaves_a_sound_run(
    processes, tmp_path, unbroken, part
):
    names = list(faults.REFUSALS)
    operations = range(1 + part, len(unbroken[1]) + 1, PARTS)
    strike_each(
        processes, tmp_path, unbroken, lambda at: names[at // PARTS % len(names)], operations,
        resume=False,
    )  # fmt: skip


def test_a_write_that_is_torn_loses_no_epoch(processes, tmp_path, unbroken):
    names = unbroken[1]
    writes = [at for at, name in enumerate(names, start=1) if name == "write"]
    strike_each(processes, tmp_path, unbroken, lambda _: "tear", writes)


def test_a_loss_of_power_loses_no_epoch_that_was_printed(processes, tmp_path, unbroken):
    operations = range(len(unbroken[1]), 0, -9)
    strike_each(processes, tmp_path, unbroken, lambda _: "power", operations)


def test_25_kills_at_random_moments_lose_nothing(processes, tmp_path):
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "killed").mkdir()
    expected, _ = faults.unbroken(processes, tmp_path / "unbroken", faults.LONG)
    assert expected.drops
    done = faults.kill(processes, tmp_path / "killed", count=25, seed=1, expected=expected)
    assert done >= 1
