"""Apply a checkpoint: the scores of each split, the confusion matrix, and the logits of images."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from plateau_train.config import ModelSettings
from plateau_train.data.splits import Dataset
from plateau_train.numerics.replicas import Replicas, count_sharing, make_mesh
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.training.state import restore_network

Confusion = Int32[np.ndarray, "classes classes"]


class Score(NamedTuple):
    """Loss in nats and accuracy as a fraction, over the images of a split."""

    loss: float
    accuracy: float
    num_images: int


def score(
    checkpoint: Checkpoint, model: ModelSettings, dataset: Dataset, replica: int
) -> tuple[dict[str, Score], Confusion]:
    """Score the held-out images, if there are any, and the test images.

    All replicas are scored together, as during training, so that the sums have the same order.
    """
    settings = checkpoint.manifest.settings
    network, state = restore_network(checkpoint, model)
    spec = Spec.from_settings(settings, network, num_examples=len(dataset.train.labels))
    rows = Hyperparams.from_settings([settings])
    num_replicas, devices = len(rows.seed), jax.devices()
    devices = devices[: count_sharing(num_replicas, len(devices))]
    replicas = Replicas(spec, rows, make_mesh(devices, num_replicas))
    variables = replicas.put(state.variables)
    scores = {}
    for name, split in (("val", dataset.val), ("test", dataset.test)):
        if split is not None:
            metrics = replicas.evaluate(variables, replicas.put_split(split))
            loss, accuracy = (float(values[replica]) for values in metrics)
            scores[name] = Score(loss, accuracy, len(split.labels))
    confusions = replicas.count_confusion(variables, replicas.put_split(dataset.test))
    return scores, np.asarray(confusions[replica])


def predict(
    checkpoint: Checkpoint,
    model: ModelSettings,
    images: UInt8[np.ndarray, "n height width channel"],
    replica: int,
) -> Float32[np.ndarray, "n classes"]:
    """Return the logits of images, as one replica alone computes them."""
    settings = checkpoint.manifest.settings
    network, state = restore_network(checkpoint, model)
    spec = Spec.from_settings(settings, network, num_examples=settings.data.batch_size)
    rows, variables = jax.tree.map(
        lambda leaf: leaf[replica : replica + 1],
        (Hyperparams.from_settings([settings]), state.variables),
    )
    replicas = Replicas(spec, rows, make_mesh(jax.devices()[:1], 1))
    return replicas.predict(replicas.put(variables), images)[0]
