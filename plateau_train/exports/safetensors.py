"""Weights as safetensors, with the names of the checkpoint, and a description of the network."""

import hashlib
import json

import numpy as np
from safetensors.numpy import save

from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.environment import describe_versions

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PARTS = ("params", "model_state")  # of a training state that are the network

KEY = "plateau_train"  # of where the weights come from, in both files
MARK = KEY.encode()


def export(run: str, checkpoint: Checkpoint, replica: int) -> dict[str, bytes]:
    """Return the files by name: the weights of a replica, then what rebuilds its network.

    ``run`` is the name of the run. The description has the SHA-256 of the weights: files of two
    exports, one of which was interrupted, do not match.
    """
    manifest, arrays = checkpoint
    dataset, settings = manifest.environment.dataset, manifest.settings
    origin = {"version": describe_versions()["plateau-train"], "run": run, "epoch": manifest.epoch}
    origin |= {"replica": replica, "seed": settings.run.seeds[replica]}
    weights = {
        name: np.asarray(array[replica])
        for name, array in arrays.items()
        if name.partition("/")[0] in PARTS
    }
    # One entry: safetensors writes several in a random order.
    content = save(weights, {KEY: json.dumps(origin)})
    config = {
        KEY: origin,
        "model": settings.model.model_dump(mode="json"),
        "image_shape": dataset.image_shape,
        "pixels": {"dtype": "uint8", "divisor": 255},
        "num_classes": len(dataset.class_names),
        "class_names": dataset.class_names,
        "dataset": dataset.name,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()},
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {WEIGHTS: content, CONFIG: text.encode()}
