"""The multi-layer perceptron and its parameters."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key, PyTree, UInt8


class MLP(nn.Module):
    """Dense layers with relu between them, over the pixels of an image in one row."""

    hidden_sizes: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "batch height width channel"]
    ) -> Float32[Array, "batch num_classes"]:
        activations = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255
        for size in self.hidden_sizes:
            activations = nn.relu(nn.Dense(size)(activations))
        return nn.Dense(self.num_classes)(activations)


def init_params(
    model: MLP, key: Key[Array, ""], image_shape: tuple[int, int, int]
) -> PyTree[Float32[Array, "..."]]:
    """Draw the parameters: Flax's defaults, LeCun-normal kernels and zero biases."""
    return model.init(key, jnp.zeros((1, *image_shape), jnp.uint8))["params"]
