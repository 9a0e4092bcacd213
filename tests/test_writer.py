"""Epochs are committed beside training, one at a time; calls take a suitable number of steps."""

import threading

import pytest

from plateau_train.errors import StorageError
from plateau_train.training.chunks import Chunks
from plateau_train.training.writer import Writer


class Disk:
    """A disk that writes an epoch when it is permitted, and may refuse one."""

    def __init__(self, refused=None):
        self.permitted, self.began = threading.Event(), threading.Event()
        self.written, self.reported, self.refused = [], [], refused

    def commit(self, epoch):
        self.began.set()
        assert self.permitted.wait(10)
        if epoch == self.refused:
            raise StorageError("the disk is full", hint="free some of it")
        self.written.append(epoch)

    def submit(self, writer, epoch):
        writer.submit(lambda: self.commit(epoch), lambda: self.report(epoch))

    def report(self, epoch):
        assert epoch in self.written
        assert threading.current_thread() is threading.main_thread()
        self.reported.append(epoch)


def test_an_epoch_is_reported_once_it_is_committed_and_not_before():
    disk = Disk()
    with Writer() as writer:
        disk.submit(writer, 1)
        assert disk.began.wait(10)
        writer.poll()
        assert disk.reported == []
        disk.permitted.set()
        writer.wait()
        assert disk.reported == [1]
        writer.wait()
        assert disk.reported == [1], "once"
        assert writer.seconds > 0


def test_at_most_one_epoch_waits_for_the_disk():
    disk = Disk()
    with Writer() as writer:
        disk.submit(writer, 1)
        permit = threading.Timer(0.2, disk.permitted.set)
        permit.start()
        disk.submit(writer, 2)
        assert disk.permitted.is_set(), "the second epoch did not wait for the first"
        assert disk.reported == [1]
    assert (disk.written, disk.reported) == ([1, 2], [1, 2])
    permit.join()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_training_waits_until_the_epoch_is_written(error):
    disk = Disk()

    def train():
        with Writer() as writer:
            disk.submit(writer, 1)
            threading.Timer(0.1, disk.permitted.set).start()
            raise error

    with pytest.raises(error):
        train()
    assert (disk.written, disk.reported) == ([1], [1])


@pytest.mark.parametrize("find", ["poll", "submit", "end"])
def test_an_error_of_the_disk_is_raised_in_training_and_its_epoch_is_not_reported(find):
    disk = Disk(refused=1)
    disk.permitted.set()

    def train():
        with Writer() as writer:
            disk.submit(writer, 1)
            while find == "poll":
                writer.poll()
            if find == "submit":
                disk.submit(writer, 2)

    with pytest.raises(StorageError, match="the disk is full"):
        train()
    assert (disk.written, disk.reported) == ([], [])


@pytest.mark.parametrize(("num_replicas", "longest"), [(1, 100), (4, 400), (64, 800)])
def test_with_traced_bounds_a_call_takes_a_quarter_of_a_second_for_each_seed_up_to_two_seconds(
    num_replicas, longest
):
    chunks, lengths = Chunks(4680, num_replicas, is_static=False), []
    for _ in range(5):
        lengths.append(chunks.length)
        seconds = 0.01 + chunks.length / 400
        chunks.length = chunks.propose(chunks.length, seconds, is_epoch_over=False)
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    assert 0.8 * longest <= lengths[-1] <= longest, "of 400 steps a second"


@pytest.mark.parametrize(
    ("num_steps", "steps_per_second", "first", "last"),
    [(468, 10_000, 13, 468), (468, 300, 13, 117), (468, 1, 13, 1), (7, 10_000, 7, 7),
     (7919, 100_000, 1, 7919), (7919, 100, 1, 1), (1, 50, 1, 1)],
)  # fmt: skip
def test_with_static_bounds_all_calls_of_an_epoch_are_equally_long_and_few_are_compiled(
    num_steps, steps_per_second, first, last
):
    chunks, epochs = Chunks(num_steps, 1, is_static=True), []
    compiled = set()
    for _ in range(4):
        lengths, start = set(), 0
        while start < num_steps:
            length = chunks.length
            seconds = length / steps_per_second + (0 if length in compiled else 3)
            compiled.add(length)
            lengths.add(length)
            start += length
            chunks.length = chunks.propose(length, seconds, is_epoch_over=start == num_steps)
        assert start == num_steps
        epochs.append(lengths)
    assert epochs[0] == {first}
    assert epochs[-1] == {last}
    assert len(compiled) <= 2
