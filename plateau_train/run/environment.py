"""Where a run took place: versions, machine, commit, command line."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("plateau-train", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


def describe_environment(devices: list[str]) -> dict[str, Any]:
    """Collect what someone needs to repeat a run."""
    return {
        "command_line": sys.argv,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_cores": os.cpu_count(),
        # What XLA takes for the number of its threads, on which the last bits depend.
        "threads": os.environ.get("NPROC") or os.cpu_count(),
        "devices": devices,
        "git_commit": _git_commit(),
    }


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
