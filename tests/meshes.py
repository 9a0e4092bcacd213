"""Train the replicas of one program on several meshes; print the losses and the collectives.

With the word own it is a network with batch normalization and dropout, and with the word at-once
the replicas are trained at once, as on accelerators. It is a process of its own:
the number of simulated devices is fixed when JAX starts.
"""

import json
import re
import sys
from typing import Any
from unittest.mock import patch

import jax
import networks
import numpy as np
from helpers import IMAGE_SHAPE, NUM_CLASSES, make_examples, make_settings, make_spec, take_epoch

from plateau_train.config import Settings
from plateau_train.numerics import replicas as numerics
from plateau_train.numerics.adapters import from_linen
from plateau_train.numerics.replicas import Replicas, make_mesh
from plateau_train.numerics.spec import Hyperparams, Spec

COLLECTIVE = re.compile(
    r"= .*?\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def make_own_spec(settings: Settings) -> Spec:
    """Return the spec of a network with batch normalization and dropout."""
    module = networks.Linen(NUM_CLASSES)
    network = from_linen(module, title="own", num_classes=NUM_CLASSES, precision="float32")
    return Spec.from_settings(settings, network, num_examples=80)


def train(num_devices: int, num_replicas: int) -> dict[str, Any]:
    """Train two epochs on a mesh; also return the collectives of each compiled function."""
    settings = make_settings(seed=tuple(range(num_replicas)), patience=1, accumulation_size=5)
    mesh = make_mesh(jax.devices()[:num_devices], num_replicas)
    spec = (make_own_spec if "own" in sys.argv else make_spec)(settings)
    replicas = Replicas(spec, Hyperparams.from_settings([settings]), mesh)
    # 81 images: the last incomplete batch of 8 is dropped. 30 do not divide by 4 devices.
    split, test = (replicas.put_split(make_examples(num, num)) for num in (81, 30))
    state, losses = replicas.init(IMAGE_SHAPE), []
    for epoch in (1, 2):
        state, records = take_epoch(replicas, state, split, epoch)
        losses.append(np.asarray(records.metrics.loss))
    metrics = replicas.evaluate(state.variables, test)
    confusion = replicas.count_confusion(state.variables, test)
    state = replicas.observe(state, metrics, 19)
    shards = split.images.addressable_shards
    addresses = {shard.data.unsafe_buffer_pointer() for shard in shards}
    return {
        "mesh": [mesh.shape["replica"], mesh.shape["batch"]],
        "train_loss": np.concatenate(losses, axis=1).tolist(),
        "test_loss": np.asarray(metrics.loss).tolist(),
        "num_copies": len(addresses),
        "num_scored": int(np.asarray(confusion).sum()),
        "scale": np.asarray(state.scale).tolist(),
    }


def record_collectives(mesh: tuple[int, int]) -> dict[str, Any]:
    """Train, and record the collectives in the compiled text of each function that is run."""
    collectives: dict[str, list[str]] = {}
    executables: dict[Any, Any] = {}
    compiled = numerics.compiled

    def compile_and_read(function: Any, *static: Any, at_once: bool) -> Any:
        def run(*arguments: Any) -> Any:
            if (function, static) not in executables:
                executable = (
                    compiled(function, *static, at_once=at_once).lower(*arguments).compile()
                )
                executables[function, static] = executable
                collectives[function.__name__] = COLLECTIVE.findall(executable.as_text())
            return executables[function, static](*arguments)

        return run

    with patch.object(numerics, "compiled", compile_and_read):
        return train(*mesh) | {"collectives": collectives}


if __name__ == "__main__":
    if "at-once" in sys.argv:
        numerics.one_by_one = numerics.all_at_once
    run = (lambda mesh: train(*mesh)) if "own" in sys.argv else record_collectives
    print(json.dumps([run(mesh) for mesh in json.loads(sys.argv[1])]))
