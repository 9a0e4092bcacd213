"""Shapes and types in the signatures of the numerics are checked while the tests run."""

import atexit
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# Most of a short run is compilation, of the same programs again and again: the processes of the
# tests share what was compiled. The first one that comes here, before jax does, makes the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="plateau-train-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

# Nor do they touch the decoded data sets of the user, or of whoever tests at the same time.
if not Path(os.environ.get("PLATEAU_TRAIN_CACHE_DIR", "")).name.startswith("plateau-train-tests-"):
    os.environ["PLATEAU_TRAIN_CACHE_DIR"] = tempfile.mkdtemp(prefix="plateau-train-tests-")
    atexit.register(shutil.rmtree, os.environ["PLATEAU_TRAIN_CACHE_DIR"], ignore_errors=True)

jaxtyping.install_import_hook(
    ["plateau_train.numerics", "plateau_train.data.splits"], "beartype.beartype"
)

# The first example of a setting waits for a compilation, hence no deadline.
hypothesis.settings.register_profile("plateau-train", deadline=None, max_examples=30)
hypothesis.settings.load_profile("plateau-train")

# A run of seconds on the built-in data; tests add to it.
SMALL = (
    "--dataset=garments", "--train-examples=600", "--test-examples=300", "--batch-size=50",
    "--hidden-sizes=16", "--accumulation-size=4", "--patience=2", "--learning-rate=0.03",
)  # fmt: skip

# The original files of Fashion-MNIST, which are not part of the project; .ci/run has them.
ORIGINALS = Path(__file__).parents[2] / "shared" / "fashion_mnist"


def command(*arguments, cwd, **environment):
    """Run plateau-train in a process of its own, with no terminal and no network."""
    return subprocess.run(
        [sys.executable, "-m", "plateau_train", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"TFDS_DATA_DIR": str(Path(cwd) / "no-data")} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="session")
def processes():
    """A server of new processes, for the tests that need many."""
    import faults  # late: what it imports is to be checked, too

    server = faults.Processes()
    yield server
    server.close()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The folder of a finished small run, shared by the tests that only read it."""
    folder = tmp_path_factory.mktemp("small")
    finished = command(*SMALL, "--epochs=6", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder / "runs" / "latest"


@pytest.fixture
def messages():
    """Collect the messages that the library logs, whether or not logging is configured."""
    collected, log, handler = [], logging.getLogger("plateau_train"), logging.Handler()
    handler.emit = lambda record: collected.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield collected
    log.removeHandler(handler)
