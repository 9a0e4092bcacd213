"""Compiled programs are kept: a second start compiles nothing, and damage costs time alone."""

import os
import shutil
import subprocess
import sys

from helpers import SMALL


def train(folder):
    """Train with a cache of its own, which the tests otherwise share; return what was told."""
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


def test_a_second_start_compiles_nothing_and_a_damaged_or_foreign_cache_changes_nothing(tmp_path):
    metrics, _ = train(tmp_path)
    kept = entries(tmp_path)
    assert any(entry.name.startswith("jit_train_steps") for entry in kept)
    times = [entry.stat().st_mtime_ns for entry in kept]

    assert train(tmp_path)[0] == metrics
    assert entries(tmp_path) == kept
    assert [entry.stat().st_mtime_ns for entry in kept] == times

    for number, entry in enumerate(kept):
        content = entry.read_bytes()
        entry.write_bytes((b"", content[: len(content) // 2], b"other" + content)[number % 3])
    damaged, talk = train(tmp_path)
    assert damaged == metrics
    assert "Warning" not in talk

    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file of the user's")
    foreign, talk = train(tmp_path)
    assert foreign == metrics
    assert "Warning" not in talk
    assert (tmp_path / "cache").read_text() == "a file of the user's"
