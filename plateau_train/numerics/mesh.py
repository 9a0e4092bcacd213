"""The devices of a run in one row: each takes its part of every batch, and holds all the rest.

Nothing else has to be said: ``jit`` derives from the two constraints below which device computes
what, and where the gradients are summed over all of them. How replicas share devices is said in
``replicas``.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

BATCH_AXIS, REPLICA_AXIS = "batch", "replica"  # what the devices of a mesh share

Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[object], axis: str) -> Mesh:
    """Put JAX's devices into a row; those of other processes are among them on many hosts."""
    return Mesh(np.array(devices), (axis,))


def put_everywhere(mesh: Mesh | None, tree: Tree) -> Tree:
    """Bring arrays to every device of a mesh, or without one to the default device.

    All processes must bring the same arrays.
    """
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def keep_everywhere(mesh: Mesh | None, tree: Tree) -> Tree:
    """Have every device of a mesh hold whole arrays, within ``jit``."""
    if mesh is None:
        return tree
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def share_out(mesh: Mesh | None, rows: Array) -> Array:
    """Have each device of a mesh hold its part of the rows, within ``jit``."""
    if mesh is None:
        return rows
    return lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(BATCH_AXIS)))
