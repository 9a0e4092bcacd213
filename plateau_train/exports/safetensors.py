"""Weights as safetensors, with the names of the checkpoint, and a description of the network."""

import hashlib
import json

import numpy as np
from safetensors.numpy import save

from plateau_train.config.files import read_file
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import describe_versions, is_copy

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PARTS = ("params", "model_state")  # of a training state that are the network

KEY = "plateau_train"  # of where the weights come from, in both files
MARK = KEY.encode()


def export(run: RunDirectory, checkpoint: Checkpoint, replica: int) -> dict[str, bytes]:
    """Return the files by name: the weights of a replica, then what rebuilds its network.

    The description has the SHA-256 of the weights: files of two exports, one of which was
    interrupted, do not match.
    """
    manifest, arrays = checkpoint
    code = manifest.environment.model
    dataset, settings = manifest.environment.dataset, manifest.settings
    origin = {"version": describe_versions()["plateau-train"], "run": run.path.resolve().name}
    origin |= {"epoch": manifest.epoch}
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
        "code": code and {"file": run.model.name, **code.model_dump()},
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    files = {WEIGHTS: content, CONFIG: text.encode()}
    if code is not None and is_copy(run.model, code):
        files[run.model.name] = read_file(run.model)
    return files
