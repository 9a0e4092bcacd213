"""The cache of compiled programs: a second start compiles nothing, damage changes no result."""

import os
import shutil
import subprocess
import sys

from helpers import SMALL


def train(folder):
    """Train with a cache of its own, in a process of its own; return metrics and messages."""
    environment = {
        name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name
    }
    finished = subprocess.run(
        [
            sys.executable, "-m", "plateau_train", *SMALL, "--epochs=1",
            "--cache-dir=cache", "--runs-dir=runs",
        ],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return (folder / "runs" / "latest" / "metrics.jsonl").read_bytes(), finished.stderr


def entries(folder):
    return sorted((folder / "cache" / "compiled").glob("*/*-cache"))


def test_a_second_start_compiles_nothing_and_no_state_of_the_cache_changes_results(tmp_path):
    metrics, _ = train(tmp_path)
    cached = entries(tmp_path)
    # The replicas' functions: init, order, steps, and an evaluation of each split.
    assert sum(entry.name.startswith("jit__run-") for entry in cached) >= 5
    times = [entry.stat().st_mtime_ns for entry in cached]

    assert train(tmp_path)[0] == metrics
    assert entries(tmp_path) == cached
    assert [entry.stat().st_mtime_ns for entry in cached] == times

    for number, entry in enumerate(cached):
        content = entry.read_bytes()
        entry.write_bytes((b"", content[: len(content) // 2], b"other" + content)[number % 3])
    damaged, stderr = train(tmp_path)
    assert damaged == metrics
    assert "Warning" not in stderr

    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file of the user")
    foreign, stderr = train(tmp_path)
    assert foreign == metrics
    assert "Warning" not in stderr
    assert (tmp_path / "cache").read_text() == "a file of the user"
