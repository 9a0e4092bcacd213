"""Compile and train the replicas of one program on several meshes, and print what came of it.

A process of its own, since the number of simulated devices is fixed when JAX starts.
"""

import json
import re
import sys
from typing import Any

import jax
import numpy as np
from helpers import IMAGE_SHAPE, make_examples, make_settings, make_spec, take_epoch

from plateau_train.numerics import replicas as numerics
from plateau_train.numerics.mesh import make_mesh
from plateau_train.numerics.replicas import Replicas
from plateau_train.numerics.spec import Hyperparams

COLLECTIVE = re.compile(
    r"= .*?\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def find_collectives(lowered: Any) -> list[str]:
    """Return the collectives in a compiled program, by name."""
    return COLLECTIVE.findall(lowered.compile().as_text())


def describe_mesh(num_devices: int, num_replicas: int) -> dict[str, Any]:
    """Return the shape of a mesh, the collectives, and the losses of two epochs."""
    settings = make_settings(seed=tuple(range(num_replicas)), patience=1, accumulation_size=5)
    mesh = make_mesh(jax.devices()[:num_devices], num_replicas)
    hyperparams = Hyperparams.from_settings([settings])
    replicas = Replicas(make_spec(settings), hyperparams, mesh)
    # As the training images of a real run: they divide neither by the batch nor by the devices.
    train, test = (replicas.put_split(make_examples(num, num)) for num in (81, 30))
    state = replicas.init(IMAGE_SHAPE)
    order, records = replicas.epoch_order(1, 81), replicas.empty_records(10)
    common = replicas.spec, mesh
    lowered = {
        "train": numerics._train_steps.lower(
            *common, hyperparams, state, records, train, order, 0, 10, 1
        ),
        "evaluate": numerics._evaluate.lower(
            *common, numerics.single.evaluation_losses, state.params, test, replicas._batches(test)
        ),
    }
    collectives = {name: find_collectives(program) for name, program in lowered.items()}
    losses = []
    for epoch in (1, 2):
        state, records = take_epoch(replicas, state, train, epoch)
        losses.append(np.asarray(records.metrics.loss))
    return {
        "shape": list(mesh.shape.values()),
        "order": [str(axis) for axis in order.sharding.spec],
        "collectives": collectives,
        "losses": np.concatenate(losses, axis=1).tolist(),
        "test_loss": np.asarray(replicas.evaluate(state.params, test).loss).tolist(),
        "scale": np.asarray(state.scale).tolist(),
    }


if __name__ == "__main__":
    meshes = json.loads(sys.argv[1])
    print(json.dumps([describe_mesh(*mesh) for mesh in meshes]))
