"""The cache of compiled programs: a second start compiles nothing, damage changes no result."""

import os
import shutil

import faults
import pytest


@pytest.fixture
def train(tmp_path):
    """Return a function that trains in a new process, with a cache of its own.

    It returns the metrics and the messages.
    """
    environment = {
        name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name
    }
    processes = faults.Processes(environment)

    def train():
        finished = processes.run(tmp_path, *faults.TINY, "--epochs=1", "--cache-dir=cache")
        assert finished.code == 0, finished.stderr
        return (tmp_path / "runs" / "latest" / "metrics.jsonl").read_bytes(), finished.stderr

    yield train
    processes.close()


def entries(folder):
    return sorted((folder / "cache" / "compiled").glob("*/*-cache"))


def test_a_second_start_compiles_nothing_and_no_state_of_the_cache_changes_results(train, tmp_path):
    metrics, _ = train()
    cached = entries(tmp_path)
    # The replicas' functions: init, order, steps, and an evaluation of each split.
    assert sum(entry.name.startswith("jit__run-") for entry in cached) >= 5
    times = [entry.stat().st_mtime_ns for entry in cached]

    assert train()[0] == metrics
    assert entries(tmp_path) == cached
    assert [entry.stat().st_mtime_ns for entry in cached] == times

    for number, entry in enumerate(cached):
        content = entry.read_bytes()
        entry.write_bytes((b"", content[: len(content) // 2], b"other" + content)[number % 3])
    damaged, stderr = train()
    assert damaged == metrics
    assert "Warning" not in stderr

    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file of the user")
    foreign, stderr = train()
    assert foreign == metrics
    assert "Warning" not in stderr
    assert (tmp_path / "cache").read_text() == "a file of the user"
