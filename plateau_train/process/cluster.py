"""Many processes, one run, on JAX's own distributed runtime: join, agree, leave.

Process 0 leads: it alone prints and writes, and what it was asked for is trained. Everything here
that looks like a conversation is a collective, so all processes come to it in the same order. A
process that is alone passes through all of it at once.
"""

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from plateau_train import config
from plateau_train.errors import ClusterError, PlateauTrainError
from plateau_train.process import signals
from plateau_train.report.console import show_error

# How long a process may be silent before the others end.
HEARTBEAT_SECONDS = 15

# How long a process that is done waits for the others; process 0 still draws its plot then.
SHUTDOWN_SECONDS = 60

# Until all come to the end of a chunk; before the first one they compile.
GRACE_SECONDS = 20.0

# What JAX says where another process is gone, and not where a program is wrong.
LOST = re.compile(r"gloo|nccl|coordination|connection|UNAVAILABLE|DEADLINE_EXCEEDED", re.IGNORECASE)

# How JAX arranges the devices of processes that have not as many each.
UNEQUAL = "cannot reshape array"

# What JAX says where it finds no cluster, or where whoever calls this uses its devices already.
NO_CLUSTER = re.compile(r"coordinator_address should be defined|must be called before")

HINT = "see what the others say, then start all of them again with plateau-train resume"

Tree = TypeVar("Tree")


@contextlib.contextmanager
def joined(settings: config.ClusterSettings, say: Callable[[str], None]) -> Iterator[None]:
    """Be one of the processes of a cluster in the block, if there is one.

    Raises ``ClusterError`` where the others cannot be reached, or are lost on the way. Must come
    before the first use of a device.
    """
    import jax

    if not _join(settings, say):
        yield
        return
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # NumPy turns the one into the other
        reason = str(error).partition("\n")[0]
        if UNEQUAL in reason:
            raise ClusterError(
                f"the processes do not all have {jax.local_device_count()} devices, as this one",
                hint="show each of them as many devices, with CUDA_VISIBLE_DEVICES for example",
            ) from error
        if not LOST.search(reason):
            raise
        raise ClusterError(f"another process of this run was lost: {reason}", hint=HINT) from error
    except PlateauTrainError:
        _leave()
        raise
    _leave()


def is_multiprocess() -> bool:
    """Tell whether this process has others beside it."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and _state().num_processes > 1


def is_leader() -> bool:
    """Tell whether this is the process that prints and writes."""
    return not is_multiprocess() or _state().process_id == 0


def describe() -> str:
    """Say which process this is; empty where it is alone."""
    return f"process {_state().process_id} of {_state().num_processes}" if is_multiprocess() else ""


def grace_seconds() -> float:
    """Return how long a process may take to end in its own way after a signal."""
    return GRACE_SECONDS if is_multiprocess() else signals.GRACE_SECONDS


def from_leader(tree: Tree) -> Tree:
    """Return what process 0 holds; the arrays of the others must have the same shapes."""
    if not is_multiprocess():
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def text_from_leader(text: str) -> str:
    """Return the text of process 0."""
    content = np.frombuffer(text.encode(), np.uint8)
    length = from_leader(np.int64(len(content)))
    held = np.zeros(length, np.uint8)
    held[: len(content)] = content[:length]
    return bytes(from_leader(held)).decode()


def is_same(text: str) -> bool:
    """Tell whether all processes hold the same text; all of them get the same answer."""
    differs, _ = agree(int(text_from_leader(text) != text))
    return not differs


def agree(code: int = 0, value: int = 0) -> tuple[int, int]:
    """Return the highest code of all processes, and the value of process 0."""
    if not is_multiprocess():
        return code, value
    from jax.experimental import multihost_utils

    rows = multihost_utils.process_allgather(np.array([code, value], np.int32))
    return int(rows[:, 0].max()), int(rows[0, 1])


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Let one process fail in the block without leaving the others to wait for it.

    The block holds no collective. Raises ``ClusterError`` in the others, with the exit code of the
    one that knows more.
    """
    try:
        yield
    except Exception as error:
        agree(getattr(error, "exit_code", 1))
        raise
    code, _ = agree()
    if code:
        raise ClusterError(f"another process of this run ended with exit code {code}", hint=HINT)


def _leave() -> None:
    """Wait for the others, which end as well; whether they are there still does not matter."""
    import jax

    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def _join(settings: config.ClusterSettings, say: Callable[[str], None]) -> bool:
    """Join the cluster that was asked for or that JAX finds; return False if there is none."""
    import jax

    if settings.num_processes == 1 or jax.distributed.is_initialized():
        return False
    where = settings.coordinator or "the coordinator that the cluster names"
    if settings.coordinator:
        say(f"joining {settings.num_processes} processes at {where}")
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    unreachable = ClusterError(
        f"the other processes could not be reached through {where} "
        f"in {settings.join_timeout} seconds",
        hint="start them all with the same --coordinator and --num-processes, each with a "
        "--process-id of its own; --join-timeout waits longer, --num-processes 1 trains alone",
    )
    try:
        with _ends_within(settings.join_timeout, unreachable):
            jax.distributed.initialize(
                settings.coordinator,
                settings.num_processes,
                settings.process_id,
                # Later than ours: its own end is an abort, with a stack trace.
                initialization_timeout=settings.join_timeout + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if settings.coordinator is None and NO_CLUSTER.search(reason):
            return False
        raise ClusterError(
            f"the cluster cannot be joined through {where}: {reason}",
            hint="give --coordinator HOST:PORT with a port that is free on process 0, "
            "--num-processes and --process-id; --num-processes 1 trains alone",
        ) from error
    return True


@contextlib.contextmanager
def _ends_within(seconds: float, error: PlateauTrainError) -> Iterator[None]:
    """End the process with an error unless the block, which nothing can interrupt, ends in time."""

    def give_up() -> None:
        show_error(error)
        signals.exit_now(error.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _state():
    # JAX's public functions would start its devices to answer, before the threads are fixed.
    from jax._src.distributed import global_state

    return global_state
