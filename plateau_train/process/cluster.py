"""Processes that train one run together, on JAX's distributed runtime.

Every process runs the same code; only process 0, the leader, prints and writes to the run folder.
All functions from ``agree`` on are collectives: each process must call them in the same order. In a
single process none of them communicates.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state  # the public functions start the devices
from jax.experimental import multihost_utils

from plateau_train import config
from plateau_train.errors import PROGRAM, ClusterError, PlateauTrainError
from plateau_train.process import signals

HEARTBEAT_SECONDS = 15  # a process that is silent for longer ends the others
SHUTDOWN_SECONDS = 60  # a finished process waits that long; process 0 still draws its plot
GRACE_SECONDS = 20.0  # from a signal to the end of a chunk, which the processes may have to compile

# What JAX reports if another process is gone; if the numbers of devices differ; if there is no
# cluster, or the caller has used the devices already.
LOST = re.compile(r"gloo|nccl|coordination|connection|UNAVAILABLE|DEADLINE_EXCEEDED", re.IGNORECASE)
UNEQUAL = "cannot reshape array"
NO_CLUSTER = re.compile(r"coordinator_address should be defined|must be called before")

HINT = f"see what the other processes print, then start all of them again with {PROGRAM} resume"

Tree = TypeVar("Tree")
log = logging.getLogger("plateau_train")


@contextlib.contextmanager
def join(settings: config.ClusterSettings) -> Iterator[None]:
    """Run the block as one process of a cluster, if the settings or JAX name one.

    Must be entered before the first use of a device. Raises ``ClusterError`` if the other processes
    cannot be reached, or if one of them is lost while the block runs.
    """
    if not _initialize(settings):
        yield
        return
    try:
        yield
    # NumPy turns the first into the second.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if UNEQUAL in reason:
            num_devices = jax.local_device_count()
            problem = f"the processes differ in their number of devices; this one has {num_devices}"
            hint = "give all of them the same number, for example with CUDA_VISIBLE_DEVICES"
            raise ClusterError(problem, hint=hint) from error
        if not LOST.search(reason):
            raise
        raise ClusterError(f"another process of this run was lost: {reason}", hint=HINT) from error
    except PlateauTrainError:
        _shut_down()
        raise
    _shut_down()


def is_multiprocess() -> bool:
    """Return whether this process is one of several."""
    return jax.distributed.is_initialized() and global_state.num_processes > 1


def is_leader() -> bool:
    """Return whether this is the process that prints and writes."""
    return not is_multiprocess() or global_state.process_id == 0


def describe() -> str:
    """Return a text such as ``process 1 of 2``; empty for a single process."""
    if not is_multiprocess():
        return ""
    return f"process {global_state.process_id} of {global_state.num_processes}"


def grace_seconds() -> float:
    """Return how many seconds the main thread has to end a run after a signal."""
    return GRACE_SECONDS if is_multiprocess() else signals.GRACE_SECONDS


def agree(code: int = 0, value: int = 0) -> tuple[int, int]:
    """Return the highest ``code`` of all processes, and the ``value`` of process 0."""
    if not is_multiprocess():
        return code, value
    rows = multihost_utils.process_allgather(np.array([code, value], np.int32))
    return int(rows[:, 0].max()), int(rows[0, 1])


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Make the block fail in every process if it fails in one.

    The block must not contain a collective: a process that failed would not take part. The process
    that failed raises its own error, the others raise ``ClusterError`` with its exit code.
    """
    try:
        yield
    except Exception as error:
        agree(getattr(error, "exit_code", 1))
        raise
    code, _ = agree()
    if code:
        raise ClusterError(f"another process of this run ended with exit code {code}", hint=HINT)


def broadcast(tree: Tree) -> Tree:
    """Return the arrays of process 0 in every process, bit for bit, as NumPy arrays.

    The arrays of the other processes must have the same shapes and dtypes.
    """
    if not is_multiprocess():
        return tree

    def copy(value: Any) -> np.ndarray:
        array = np.asarray(value)
        # As bytes: JAX would round to 32 bits, flush subnormal numbers, and lose the sign of 0.
        content = multihost_utils.broadcast_one_to_all(array.reshape(-1).view(np.uint8))
        return np.array(content).view(array.dtype).reshape(array.shape)

    return jax.tree.map(copy, tree)


def gather(tree: Any) -> Any:
    """Copy a pytree of JAX arrays to the host of every process, as NumPy arrays.

    Their shards may lie on devices of other processes. The arrays may be donated afterwards.
    """

    def copy(array: jax.Array) -> np.ndarray:
        is_local = array.is_fully_addressable or array.is_fully_replicated
        return np.array(array if is_local else multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(copy, tree)


def require_same(what: str, text: str) -> None:
    """Raise ``ClusterError`` in every process if the processes hold different texts.

    ``what`` is a plural noun for the error, such as ``versions``.
    """
    differs, _ = agree(int(broadcast_text(text) != text))
    if differs:
        problem = f"the processes differ in their {what}: {text} in {describe()}"
        raise ClusterError(problem, hint=f"give all of them the same {what}")


def broadcast_text(text: str) -> str:
    """Return the text of process 0 in every process."""
    content = text.encode()
    _, length = agree(value=len(content))
    received = np.frombuffer(content.ljust(length)[:length], np.uint8)
    return bytes(broadcast(received)).decode()


def _shut_down() -> None:
    """Wait until the other processes end as well; it does not matter if some are gone."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def _initialize(settings: config.ClusterSettings) -> bool:
    """Join the cluster that the settings or JAX name; return False if there is none."""
    if settings.num_processes == 1 or jax.distributed.is_initialized():
        return False
    address = settings.coordinator or "the coordinator that the cluster names"
    if settings.coordinator:
        log.info("joining %s processes at %s", settings.num_processes, address)
    # JAX's preemption service would replace our handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    seconds = settings.join_timeout
    unreachable = (
        f"the other processes could not be reached through {address} within {seconds} seconds",
        "start them all with the same --coordinator and --num-processes, each with "
        "a --process-id; --join-timeout waits longer, --num-processes 1 trains without them",
        ClusterError.exit_code,
    )
    # In a thread: nothing can interrupt the call below.
    timer = threading.Timer(seconds, signals.exit_with_error, unreachable)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.num_processes,
            settings.process_id,
            # Later than the timer: JAX's own timeout ends in an abort with a stack trace.
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if settings.coordinator is None and NO_CLUSTER.search(reason):
            return False
        hint = (
            "give --coordinator HOST:PORT with a port that is free on process 0, "
            "--num-processes and --process-id; --num-processes 1 trains without a cluster"
        )
        problem = f"the cluster cannot be joined through {address}: {reason}"
        raise ClusterError(problem, hint=hint) from error
    finally:
        timer.cancel()
    return True
