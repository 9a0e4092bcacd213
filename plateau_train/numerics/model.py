"""The multi-layer perceptron and its parameters."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float32, Key, PyTree, UInt8

from plateau_train import config

# The type in which products are computed, and how exactly where that is float32: JAX's own default
# on an accelerator is less than what its name says.
COMPUTED_IN = {
    "float32": (jnp.float32, Precision.HIGHEST),
    "tf32": (jnp.float32, Precision.HIGH),
    "bfloat16": (jnp.bfloat16, None),
}


class MLP(nn.Module):
    """Dense layers with relu between them, over the pixels of an image in one row.

    Parameters and logits are float32 at every precision.
    """

    hidden_sizes: tuple[int, ...]
    num_classes: int
    precision: config.Precision = "float32"

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "batch height width channel"]
    ) -> Float32[Array, "batch num_classes"]:
        dtype, precision = COMPUTED_IN[self.precision]
        dense = partial(nn.Dense, dtype=dtype, precision=precision)
        activations = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255
        for size in self.hidden_sizes:
            activations = nn.relu(dense(size)(activations))
        return dense(self.num_classes)(activations).astype(jnp.float32)


def init_params(
    model: MLP, key: Key[Array, ""], image_shape: tuple[int, int, int]
) -> PyTree[Float32[Array, "..."]]:
    """Draw the parameters: Flax's defaults, LeCun-normal kernels and zero biases."""
    return model.init(key, jnp.zeros((1, *image_shape), jnp.uint8))["params"]
