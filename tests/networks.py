"""Networks as a user writes them: with a convolution, batch normalization and dropout.

The tests import this file, and name it on the command line.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Linen(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, images, train):
        # Without a bias, whose gradient would be 0 but rounding: Adam makes large steps of that.
        values = nn.Conv(self.width, (2, 2), strides=(2, 2), use_bias=False)(images)
        values = nn.BatchNorm(use_running_average=not train, momentum=0.9)(values)
        values = nn.relu(values).reshape(len(images), -1)
        self.sow("intermediates", "features", values)
        values = nn.Dropout(0.5, deterministic=not train)(values)
        return nn.Dense(self.num_classes)(values)


class Nnx(nnx.Module):
    def __init__(self, num_classes, image_shape, width=4, *, rngs):
        height, image_width, channel = image_shape
        self.conv = nnx.Conv(channel, width, (2, 2), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(height // 2 * (image_width // 2) * width, num_classes, rngs=rngs)

    def __call__(self, images):
        values = nnx.relu(self.norm(self.conv(images))).reshape(len(images), -1)
        return self.head(self.dropout(values))


class Functions:
    """A linear network as two functions; its pixels are multiplied by a constant, if it has one."""

    def __init__(self, num_classes, has_collections=False):
        self.num_classes, self.has_collections = num_classes, has_collections

    def init(self, key, images):
        kernel = 0.01 * jax.random.normal(key, (images[0].size, self.num_classes))
        params = {"kernel": kernel}
        return (
            {"params": params, "constants": {"two": jnp.full((), 2.0)}}
            if (self.has_collections)
            else params
        )

    def apply(self, variables, images):
        params = variables["params"] if self.has_collections else variables
        factor = variables["constants"]["two"] if self.has_collections else 1
        return factor * images.reshape(len(images), -1) @ params["kernel"]
