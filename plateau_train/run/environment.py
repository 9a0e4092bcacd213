"""Where a run takes place: versions, machine, threads, commit, command line, data."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from plateau_train.config import SETTINGS
from plateau_train.errors import RunError

PACKAGES = ("plateau-train", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")

# What XLA reads, when its devices start, as the number of its threads; the last bits depend on it.
THREADS_VARIABLE = next(knob.variable for knob in SETTINGS if knob.key == "threads") or ""


CGROUP = Path("/sys/fs/cgroup")


class DatasetFacts(BaseModel):
    """What a resumed run must find again of its data set."""

    model_config = ConfigDict(frozen=True)

    name: str
    fallback: str  # why it stands in for another, or empty
    sha256: str  # of the decoded arrays, as they were shared out
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


class Environment(BaseModel):
    """What someone needs to repeat a run."""

    model_config = ConfigDict(frozen=True)

    command_line: list[str]
    versions: dict[str, str]
    python: str
    platform: str
    processor: str
    processor_cores: int | None
    threads: int | None
    devices: list[str]
    git_commit: str | None
    dataset: DatasetFacts

    def differences(self, other: "Environment") -> Iterator[str]:
        """Say what differs in another place, of all that the last bits of a result depend on."""
        for name in (*self.versions, *(other.versions.keys() - self.versions.keys())):
            yield from _difference(name, self.versions.get(name), other.versions.get(name))
        for name in ("processor", "threads"):
            yield from _difference(name, getattr(self, name), getattr(other, name))
        yield from _difference("devices", ", ".join(self.devices), ", ".join(other.devices))


def _difference(name: str, before: object, after: object) -> Iterator[str]:
    if before != after:
        yield f"{name} {before} -> {after}"


def describe_environment(devices: list[str], dataset: DatasetFacts) -> Environment:
    """Describe this process and the data that it works on."""
    threads = os.environ.get(THREADS_VARIABLE)
    return Environment(
        # A name that is no UTF-8 could not be written down.
        command_line=[word.encode("utf-8", "backslashreplace").decode() for word in sys.argv],
        versions=describe_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=describe_processor(),
        processor_cores=os.cpu_count(),
        threads=int(threads) if threads else None,
        devices=devices,
        git_commit=_git_commit(),
        dataset=dataset,
    )


def describe_versions() -> dict[str, str]:
    """Name the versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def read_environment(path: Path) -> Environment:
    """Read a run's ``environment.json``; raises ``RunError`` where it is damaged."""
    try:
        return Environment.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(
            f"{path} cannot be used: {str(error).splitlines()[0]}",
            hint="restore the file from a copy",
        ) from error


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of memory that this process may still take.

    Where the system does not say what is free, it is half of all that there is.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    free = [os.sysconf("SC_PHYS_PAGES") * page // 2]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        free = [int(line.split()[1]) * 1024]
    # What a container leaves, if it says so.
    with contextlib.suppress(OSError, ValueError):
        most, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(most - used)
    return min(free)


def pin_threads(num_threads: int) -> None:
    """Fix the number of XLA's threads, which must be done before a device is used."""
    os.environ[THREADS_VARIABLE] = str(num_threads)


def describe_processor() -> str:
    """Name the processor of this machine."""
    return f"{_of_processor('model name') or platform.processor()}, {platform.machine()}"


def identify_code() -> str:
    """Return a name that is the same where XLA compiles the same code: processor and threads."""
    features = _of_processor("flags") or _of_processor("Features")  # the latter on ARM
    facts = (describe_processor(), features, os.environ.get(THREADS_VARIABLE))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _of_processor(field: str) -> str:
    """Return what Linux says of its first processor, or nothing."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _git_commit() -> str | None:
    """Return the commit of the code, with a plus sign where files differ; None outside git."""
    if shutil.which("git") is None:
        return None
    asked = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None
