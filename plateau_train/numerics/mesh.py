"""The devices of a run as a mesh with two axes, one for the replicas and one for each batch."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

REPLICA_AXIS, BATCH_AXIS = "replica", "batch"

Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[Any], num_replicas: int) -> Mesh:
    """Arrange devices, those of other processes included, as (replica, batch).

    As many devices as divide both numbers share the replicas; the rest share each batch.
    """
    shape = (math.gcd(num_replicas, len(devices)), -1)
    return Mesh(np.array(devices).reshape(shape), (REPLICA_AXIS, BATCH_AXIS))


def put(mesh: Mesh, tree: Tree, *axes: str | None) -> Tree:
    """Bring host arrays to the devices of a mesh, sharded over the named axes.

    Every process must give the same arrays.
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def constrain(mesh: Mesh, tree: Tree, *axes: str | None) -> Tree:
    """Constrain the sharding of arrays inside ``jit``."""
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))
