"""How much memory the replicas of a program need, and whether they fit."""

from typing import NamedTuple

from jax.sharding import Mesh

from plateau_train.errors import ConfigError
from plateau_train.numerics.replicas import REPLICA_AXIS, estimate_memory, has_convolutions
from plateau_train.numerics.spec import Spec
from plateau_train.process import memory
from plateau_train.run import environment

# The fraction of the free memory that replicas may take.
USABLE = 0.8

# Copies of the state on the host while a checkpoint is written: from the devices, cut to runs, as
# a file, and that file while it grows.
HOST_COPIES = 4


class _Limit(NamedTuple):
    """Some memory, in bytes: what is usable, what a replica needs of it, and what all share."""

    where: str
    usable: float
    per_replica: float
    shared: float = 0

    def num_fitting(self) -> float:
        return max(0, (self.usable - self.shared) / self.per_replica)


def check_memory(
    spec: Spec, num_replicas: int, mesh: Mesh, image_shape: tuple[int, int, int]
) -> str:
    """Describe the memory that replicas need; raises ``ConfigError`` with the number that fits."""
    per_replica, state_bytes = estimate_memory(spec, image_shape)
    free = USABLE * min(environment.available_memory(), memory.free_address_space())
    on_host, shared, on_devices = HOST_COPIES * state_bytes, 0, list[_Limit]()
    limits = [
        stats["bytes_limit"] - stats["bytes_in_use"]
        for device in mesh.local_devices
        if (stats := device.memory_stats()) and "bytes_limit" in stats  # a CPU has no such limit
    ]
    if limits:
        each = per_replica / mesh.shape[REPLICA_AXIS]
        on_devices = [_Limit("memory on each device", USABLE * min(limits), each)]
    elif has_convolutions(spec.network, image_shape):  # a CPU trains all replicas at once,
        on_host += per_replica
    else:  # or one at a time on each of its devices
        on_host += state_bytes
        shared = mesh.shape[REPLICA_AXIS] * (per_replica - state_bytes)
    limit = min([*on_devices, _Limit("memory", free, on_host, shared)], key=_Limit.num_fitting)
    needed, usable = (
        f"{num_bytes / 1e9:.3g} GB"
        for num_bytes in (num_replicas * limit.per_replica + limit.shared, limit.usable)
    )
    if num_replicas > limit.num_fitting():
        few = int(limit.num_fitting())
        raise ConfigError(
            f"{num_replicas:,} seeds need about {needed} of {limit.where}, and {usable} are usable",
            hint=f"train {few:,} of them at a time"
            if few
            else "train a smaller network (--hidden-sizes)",
        )
    return f"about {needed} of {usable} usable {limit.where}"
