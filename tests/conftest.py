"""Set up the tests: caches of their own, and checks of shapes and types in signatures."""

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# Most of a short run is compilation of the same programs: the processes of the tests share a
# cache. The first of them makes the folder, before jax is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="plateau-train-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

# Most of the rest is compilation as well. XLA without its newer emitters, in one module, and LLVM
# without optimizations compute the same but rounding, in a third of the time. With XLA_FLAGS set,
# even to nothing, the tests use those instead, as scripts/torture and the epochs on the real data
# do.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("XLA_FLAGS", " ".join(FAST_COMPILATION))

# What hints call the program, however a test starts it.
os.environ["PLATEAU_TRAIN_PROGRAM"] = "plateau-train"

# The cache of decoded data sets is not the user's.
if not Path(os.environ.get("PLATEAU_TRAIN_CACHE_DIR", "")).name.startswith("plateau-train-tests-"):
    os.environ["PLATEAU_TRAIN_CACHE_DIR"] = tempfile.mkdtemp(prefix="plateau-train-tests-")
    atexit.register(shutil.rmtree, os.environ["PLATEAU_TRAIN_CACHE_DIR"], ignore_errors=True)

jaxtyping.install_import_hook(
    ["plateau_train.numerics", "plateau_train.data.splits"], "beartype.beartype"
)

# No deadline: the first example waits for a compilation.
hypothesis.settings.register_profile("plateau-train", deadline=None, max_examples=30)
hypothesis.settings.load_profile("plateau-train")

pytest.register_assert_rewrite("helpers", "faults")
from helpers import SMALL, command  # noqa: E402  (its imports are checked, too)


@pytest.fixture(scope="session")
def processes():
    """A server that forks new processes."""
    import faults  # its imports need the command line, which not all tests need

    return faults.shared()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The folder of a finished small run, shared by tests that only read it."""
    folder = tmp_path_factory.mktemp("small")
    finished = command(*SMALL, "--epochs=6", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder / "runs" / "latest"


@pytest.fixture
def no_plots(monkeypatch):
    """Replace the plot of a run, which takes longer than a small training."""
    from matplotlib.figure import Figure

    from plateau_train.plots import panels

    monkeypatch.setattr(panels, "draw_run", lambda *_, **__: Figure(figsize=(1, 1)))


@pytest.fixture(scope="module")
def no_saved_plots():
    """Save no plots in the tests of a file: a plot takes longer than a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plateau_train.plots.save_run_plot", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def default_logging():
    """Undo after each test how the command line configured the logger of the package."""
    yield
    logger = logging.getLogger("plateau_train")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture
def messages():
    """Collect the messages that the library logs, whether or not logging is configured."""
    collected, log, handler = [], logging.getLogger("plateau_train"), logging.Handler()
    handler.emit = lambda record: collected.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield collected
    log.removeHandler(handler)
