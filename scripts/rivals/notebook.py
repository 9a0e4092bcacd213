"""The loop of Optax's "reduce on plateau" notebook, its part on the training loss, as a program.

It works as the published one does: a pipeline of tf.data, a compiled step that Python calls for
each batch, metrics that stay on the device until the epoch's end, evaluation over whole batches of
the test set, five panels, no checkpoint. Two things are easier on it: its step is not slowed down
by a notebook around it, and its batches are prefetched.

https://optax.readthedocs.io/en/latest/_collections/examples/contrib/reduce_on_plateau.html
"""

import argparse
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow as tf
import tensorflow_datasets as tfds
from history import History, Scores

BATCH_SIZE = 128
SHUFFLE_SIZE = 10_000


class MLP(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        activations = images.reshape((images.shape[0], -1))
        activations = nn.relu(nn.Dense(1000)(activations))
        activations = nn.relu(nn.Dense(1000)(activations))
        return nn.Dense(10)(activations)


MODEL = MLP()
OPTIMIZER = optax.chain(
    optax.adam(0.01),
    optax.contrib.reduce_on_plateau(factor=0.5, patience=5, rtol=1e-4, accumulation_size=200),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    history = History(arguments.epochs)
    train, test = load()
    params = MODEL.init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))["params"]
    opt_state = OPTIMIZER.init(params)
    # The published one takes the test set for the training metrics here.
    history.add(train=evaluate(params, test), test=evaluate(params, test), scale=1)
    for _ in range(arguments.epochs):
        losses, accuracies = [], []
        for batch in train.as_numpy_iterator():
            params, opt_state, loss, accuracy = train_step(params, opt_state, batch)
            losses.append(loss)
            accuracies.append(accuracy)
        history.add(
            train=Scores(float(np.mean(losses)), float(np.mean(accuracies))),
            test=evaluate(params, test),
            scale=float(optax.tree.get(opt_state, "scale")),
        )
    history.plot(arguments.output / "plot.png")


def load() -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Return the batches of both splits, of which the last, incomplete ones are dropped."""

    def normalize(image: Any, label: Any) -> tuple[Any, Any]:
        return tf.cast(image, tf.float32) / 255.0, label

    loaded: Any = tfds.load("fashion_mnist", split=["train", "test"], as_supervised=True)
    train, test = (split.map(normalize) for split in loaded)
    train = train.shuffle(SHUFFLE_SIZE, reshuffle_each_iteration=True)
    return tuple(
        split.batch(BATCH_SIZE, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
        for split in (train, test)
    )


@jax.jit
def score(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean loss and the accuracy of a batch."""
    images, labels = batch
    logits = jnp.asarray(MODEL.apply({"params": params}, images))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, jnp.mean(logits.argmax(axis=-1) == labels)


@jax.jit
def train_step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array, jax.Array]:
    (loss, accuracy), grads = jax.value_and_grad(score, has_aux=True)(params, batch)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params, value=loss)
    return optax.apply_updates(params, updates), opt_state, loss, accuracy


def evaluate(params: Any, batches: tf.data.Dataset) -> Scores:
    losses, accuracies = zip(
        *(score(params, batch) for batch in batches.as_numpy_iterator()), strict=True
    )
    return Scores(float(np.mean(losses)), float(np.mean(accuracies)))


if __name__ == "__main__":
    main()
