"""Start the devices of this process, with a fixed number of threads."""

import contextlib
import os

import jax

from plateau_train.errors import ConfigError
from plateau_train.process import cluster, memory
from plateau_train.run import environment

PLATFORMS = ("jax_platforms", "jax_platform_name")  # the settings that choose the devices
# Those of JAX and XLA for the number of devices that the CPU is divided into.
CPU_DEVICES, XLA_CPU_DEVICES = "jax_num_cpu_devices", "xla_force_host_platform_device_count"


def start_devices(num_threads: int | None) -> None:
    """Fix the number of XLA's threads, by default the available cores, and start the devices.

    A CPU is started as that many devices, because XLA uses one core for much of what it computes
    on a device: replicas on several devices use all cores. A number in the environment is kept,
    and each process of a cluster has one CPU device.

    Raises ``ConfigError`` where the environment names a device that is not there, and
    ``OutOfMemoryError`` where the memory is too small.
    """
    environment.pin_threads(num_threads)
    is_given = jax.config.values[CPU_DEVICES] >= 0 or XLA_CPU_DEVICES in os.getenv("XLA_FLAGS", "")
    if not is_given and not cluster.is_multiprocess():
        with contextlib.suppress(RuntimeError):  # the devices of this process have started
            jax.config.update(CPU_DEVICES, environment.num_threads())
    _start()


def require_threads(num_threads: int | None) -> None:
    """Start the devices in a process that keeps its number of threads; raises as ``use_process``.

    Raises ``ConfigError`` for another number.
    """
    present = environment.num_threads()
    if num_threads not in (None, present):
        raise ConfigError(
            f"--threads must be {present}, the number of this process, got {num_threads}",
            hint=f"set {environment.THREADS_VARIABLE} before JAX is first used",
        )
    use_process()


def use_process(*_: object) -> None:
    """Start the devices with the number of threads that this process of a user has.

    Raises as ``start_devices``, and ``ConfigError`` in a process of a cluster.
    """
    if cluster.is_multiprocess():
        raise ConfigError(
            "this process is one of a cluster, and the functions of Python train in one process",
            hint="train in a cluster from the command line: see docs/devices.md",
        )
    _start()


def _start() -> None:
    memory.require_address_space(environment.num_threads())
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that there is a GPU for CUDA
        chosen = [name for name in PLATFORMS if jax.config.values[name]]
        if not chosen:
            raise
        names = " and ".join(f"{name.upper()}={jax.config.values[name]}" for name in chosen)
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        raise ConfigError(
            f"{names} names a device that cannot be used here" + (reason and f": {reason}"),
            hint=f"unset {chosen[0].upper()} to use the devices that are here, or set it to cpu",
        ) from error
