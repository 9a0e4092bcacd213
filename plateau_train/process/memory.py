"""Errors of one line for refused memory, and the address space that a process may reserve."""

import contextlib
import math
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from plateau_train.errors import PROGRAM, OutOfMemoryError

# Number of allocations between two garbage collections. The default of Python suits programs that
# make reference cycles; the imports and traces here make few, and their objects stay alive.
GARBAGE_THRESHOLD = 100_000

# What libraries, the dynamic linker and XLA report, as errors of several types.
EXHAUSTED = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|cannot allocate memory|can't start new thread"
    r"|failed to map segment|bad_alloc|unable to allocate",
    re.IGNORECASE,
)
HINT = (
    "free memory or raise its limit (ulimit -v), or train a smaller network (--hidden-sizes) or "
    f"fewer seeds; {PROGRAM} runs lists the stored runs"
)

# What XLA reserves of the address space when its devices start and it compiles, and for each of its
# threads. It ends the process where it gets less. Measured: 1.07 GB with 2 threads, 1.16 with 8,
# 1.55 with 32.
RESERVED_BYTES, RESERVED_BYTES_PER_THREAD = 1.1e9, 16e6


@contextlib.contextmanager
def report_exhaustion() -> Iterator[None]:
    """Raise ``OutOfMemoryError`` if the block fails because memory was refused."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        if not isinstance(error, MemoryError) and not EXHAUSTED.search(reason):
            raise
        raise OutOfMemoryError(f"the system refused memory: {reason}", hint=HINT) from error


def free_address_space() -> float:
    """Return how many bytes this process may still reserve; infinite without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not statm.exists():
        return math.inf
    return limit - int(statm.read_text().split()[0]) * resource.getpagesize()


def require_address_space(num_threads: int) -> None:
    """Raise ``OutOfMemoryError`` where XLA, with some threads, would end the process."""
    needed, free = RESERVED_BYTES + RESERVED_BYTES_PER_THREAD * num_threads, free_address_space()
    if free < needed:
        problem = f"the devices need {needed / 1e9:.2f} GB of address space, and "
        raise OutOfMemoryError(problem + f"its limit leaves {free / 1e9:.2f} GB", hint=HINT)
