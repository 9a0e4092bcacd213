"""The networks that are built in: a multi-layer perceptron and a small convolutional network.

Parameters are initialized as Flax does it: LeCun-normal kernels and zero biases.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from plateau_train.numerics.model import Images, Logits


class MLP(nn.Module):
    """Dense layers with relu between them, over the flattened pixels of an image."""

    hidden_sizes: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, images: Images) -> Logits:
        activations = images.reshape(images.shape[0], -1)
        for size in self.hidden_sizes:
            activations = nn.relu(nn.Dense(size)(activations))
        return nn.Dense(self.num_classes)(activations)

    def describe(self, image_shape: tuple[int, int, int]) -> str:
        sizes = (math.prod(image_shape), *self.hidden_sizes, self.num_classes)
        return f"MLP {'-'.join(map(str, sizes))}"


class CNN(nn.Module):
    """Convolutions of 3x3 with relu, each followed by a maximum over 2x2, then two dense layers."""

    num_classes: int
    features: Sequence[int] = (16, 32)
    hidden_size: int = 128

    @nn.compact
    def __call__(self, images: Images) -> Logits:
        activations = images
        for size in self.features:
            activations = _pool(nn.relu(Conv(size)(activations)))
        activations = activations.reshape(images.shape[0], -1)
        activations = nn.relu(nn.Dense(self.hidden_size)(activations))
        return nn.Dense(self.num_classes)(activations)

    def describe(self, image_shape: tuple[int, int, int]) -> str:
        convolutions, dense = self.features, (self.hidden_size, self.num_classes)
        layers = [f"conv {size}" for size in convolutions] + [f"dense {size}" for size in dense]
        return f"CNN of {'x'.join(map(str, image_shape))}: {', '.join(layers)}"


class Conv(nn.Module):
    """A convolution of 3x3 that keeps height and width, as one matrix product.

    It has the parameters and the results of ``nn.Conv``. XLA's own convolutions on the CPU take 18
    times as long inside a loop, and a ``vmap`` over kernels makes them grouped convolutions.
    """

    features: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h w features"]:
        _, height, width, channel = images.shape
        shape = (3, 3, channel, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = range(3), range(3)
        patches = jnp.concatenate(
            [padded[:, i : i + height, j : j + width] for i in rows for j in columns], axis=-1
        )
        return patches @ kernel.reshape(-1, self.features) + bias


def _pool(images: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Return the maximum of each 2x2 square; an odd last row or column is left out."""
    n, height, width, channel = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(n, height // 2, 2, width // 2, 2, channel).max(axis=(2, 4))
