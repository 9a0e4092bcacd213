"""How much memory the replicas of a program need, and whether they fit."""

from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from plateau_train.errors import ConfigError
from plateau_train.numerics.replicas import REPLICA_AXIS, estimate_memory
from plateau_train.numerics.spec import Spec
from plateau_train.run import environment

# The fraction of the free memory that replicas may take.
USABLE = 0.8

# Copies of the state on the host while a checkpoint is written: from the devices, cut to runs, as
# a file, and that file while it grows.
HOST_COPIES = 4


class MemoryPlan(NamedTuple):
    """The bytes that all replicas need, and those that they may take."""

    needed: float
    free: float

    def __str__(self) -> str:
        return f"about {_gigabytes(self.needed)} of memory, {_gigabytes(self.free)} may be used"


def plan_memory(
    spec: Spec, num_replicas: int, mesh: Mesh, image_shape: tuple[int, int, int]
) -> MemoryPlan:
    """Estimate what replicas need; raises ``ConfigError`` with the number that fits."""
    per_replica, state_bytes = estimate_memory(spec, image_shape)
    free, on_host = USABLE * environment.available_memory(), HOST_COPIES * state_bytes
    limits = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in _device_stats(mesh)]
    num_fitting = free / on_host
    if limits:
        num_fitting = min(
            num_fitting, USABLE * min(limits) / per_replica * mesh.shape[REPLICA_AXIS]
        )
    else:  # the devices take the memory of the host
        on_host += per_replica
        num_fitting = free / on_host
    if num_replicas > num_fitting:
        few = int(num_fitting)
        raise ConfigError(
            f"{num_replicas:,} seeds need about {_gigabytes(num_replicas * on_host)} of memory, "
            f"and {_gigabytes(free)} may be used",
            hint=f"train {few:,} of them at a time"
            if few
            else "train a smaller network (--hidden-sizes)",
        )
    return MemoryPlan(num_replicas * on_host, free)


def _device_stats(mesh: Mesh) -> Sequence[dict[str, int]]:
    """Return the memory of devices that have their own; a CPU reports none."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    return [memory for memory in stats if memory and "bytes_limit" in memory]


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
