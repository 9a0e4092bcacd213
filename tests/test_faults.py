"""A run cannot be lost: crashes, torn writes, a full disk and SIGKILL, each in a new process."""

import itertools

import faults
import pytest

PARTS = 6  # of the operations, so that the processes of the tests share them


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    # One cache of compiled programs for all: they are the same.
    server = faults.Processes(tmp_path_factory.getbasetemp().parent / "compiled")
    yield server
    server.close()


@pytest.fixture(scope="module")
def expected(processes, tmp_path_factory):
    return faults.unbroken(processes, tmp_path_factory.mktemp("unbroken"), num_epochs=2)


def strike_all(processes, folder, expected, fault, *, part):
    """Strike at every operation of this part, and return how many there were."""
    for number in itertools.count():
        place = folder / f"{number}"
        place.mkdir()
        at = 1 + part + number * PARTS
        if not faults.strike(processes, place, fault(at), at, expected):
            return number
    return 0


@pytest.mark.parametrize("part", range(PARTS))
def test_a_crash_at_any_change_of_the_disk_loses_no_epoch(processes, tmp_path, expected, part):
    assert strike_all(processes, tmp_path, expected, lambda _: "crash", part=part) >= 10


@pytest.mark.parametrize("part", range(PARTS))
def test_a_disk_that_refuses_any_change_ends_with_exit_code_5_and_loses_no_epoch(
    processes, tmp_path, expected, part
):
    names = list(faults.REFUSALS)
    refused = strike_all(
        processes, tmp_path, expected, lambda at: names[at // PARTS % len(names)], part=part
    )
    assert refused >= 10
