"""The environment of a run: versions, machine, threads, commit, command line, data."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from plateau_train.config import SETTINGS
from plateau_train.config.files import read_file
from plateau_train.errors import ConfigError

PACKAGES = ("plateau-train", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")

# What XLA reads, when its devices start, as the number of its threads; the last bits depend on it.
THREADS_VARIABLE = next(setting.variable for setting in SETTINGS if setting.key == "threads") or ""

OTHER_FILES = 200  # open files besides the folders of runs

CGROUP = Path("/sys/fs/cgroup")


class DatasetFacts(BaseModel):
    """The properties of a data set that a resumed run verifies."""

    model_config = ConfigDict(frozen=True)

    name: str
    fallback: str  # why it replaces another one, or empty
    sha256: str  # of the decoded images and labels of all splits
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


class ModelFacts(BaseModel):
    """The code of a user's network, which a resumed run verifies."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: str
    version: str  # of its package, or empty


def is_copy(path: Path, facts: ModelFacts) -> bool:
    """Return whether a file is a copy of the code of a network."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(read_file(path)).hexdigest() == facts.sha256
    return False


class Environment(BaseModel):
    """What is needed to repeat a run."""

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
    model: ModelFacts | None = None  # None for a built-in network

    def differences(self, other: "Environment") -> Iterator[str]:
        """Yield each difference from another environment that can change a result's last bits."""
        before, after = (
            env.versions
            | {"processor": env.processor, "threads": env.threads}
            | {"devices": ", ".join(env.devices)}
            for env in (self, other)
        )
        for name in before | after:
            if before.get(name) != after.get(name):
                yield f"{name} {before.get(name)} -> {after.get(name)}"


def describe_environment(
    devices: list[str], dataset: DatasetFacts, model: ModelFacts | None
) -> Environment:
    """Describe this process, the data that it works on, and the code of its network."""
    return Environment(
        # JSON cannot have a name that is not UTF-8.
        command_line=[word.encode("utf-8", "backslashreplace").decode() for word in sys.argv],
        versions=describe_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=describe_processor(),
        processor_cores=os.cpu_count(),
        threads=num_threads(),
        devices=devices,
        git_commit=_git_commit(),
        dataset=dataset,
        model=model,
    )


def describe_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of memory that this process may still take.

    If the system does not report the free memory, it is half of all memory.
    """
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        free = [int(line.split()[1]) * 1024]
    with contextlib.suppress(OSError, ValueError):  # outside of a container, or without a limit
        most, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        parts = dict(line.split() for line in lines)
        free.append(most - used + int(parts.get("inactive_file", 0)))  # of files, which can go
    return max(0, min(free))


def num_threads() -> int:
    """Return the number of threads that XLA has, or will have, in this process."""
    return int(os.environ.get(THREADS_VARIABLE) or available_cores())


def pin_threads(num_threads: int | None) -> None:
    """Fix the number of XLA's threads, by default the available cores.

    Must be called before a device is used.
    """
    os.environ[THREADS_VARIABLE] = str(num_threads or available_cores())


def allow_open_files(num_runs: int) -> None:
    """Raise this process's limit of open files if needed; raises as ``require_open_files``."""
    needed, (soft, hard) = num_runs + OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and needed > soft:
        highest = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    require_open_files(num_runs)


def require_open_files(num_runs: int) -> None:
    """Raise ``ConfigError`` where this process may not open as many files as runs need.

    Each run is locked by an open file.
    """
    needed, (limit, _) = num_runs + OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise ConfigError(
            f"{num_runs:,} runs need {needed:,} open files, and the system permits {limit:,}",
            hint="split the sweep, or raise the limit with ulimit before the start",
        )


def describe_processor() -> str:
    """Return the name of this machine's processor and its architecture."""
    return f"{_processor_field('model name') or platform.processor()}, {platform.machine()}"


def identify_code() -> str:
    """Return a name that is the same where XLA compiles the same code: processor and threads."""
    features = _processor_field("flags") or _processor_field("Features")  # the latter on ARM
    facts = (describe_processor(), features, os.environ.get(THREADS_VARIABLE))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _processor_field(name: str) -> str:
    """Return a property of the first processor, which only Linux has, or an empty text."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _git_commit() -> str | None:
    """Return the commit of the code, with a plus sign if files differ.

    Returns None unless this package is tracked by git: it may be installed inside another project.
    """
    commands = (
        ["git", "ls-files", "--error-unmatch", Path(__file__).name],
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
    )
    # Such as GIT_DIR, which may name another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options: Any = {"cwd": Path(__file__).parent, "env": env, "capture_output": True, "text": True}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, no commit
        *_, commit = (subprocess.run(each, check=True, **options).stdout for each in commands)
        return commit.strip()
    return None
