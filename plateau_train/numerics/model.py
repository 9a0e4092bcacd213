"""The multi-layer perceptron, and the description and the size of a model."""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Float32, Key, PyTree, UInt8

from plateau_train import config

# The type of the matrix products, and their precision where that type is float32: JAX's own
# default on an accelerator is less than float32.
DTYPES = {
    "float32": (jnp.float32, Precision.HIGHEST),
    "tf32": (jnp.float32, Precision.HIGH),
    "bfloat16": (jnp.bfloat16, Precision.DEFAULT),
}

Params = PyTree[Float[Array, "..."]]


class MLP(nn.Module):
    """Dense layers with relu between them, over the flattened pixels of an image.

    The parameters are initialized as Flax does it: LeCun-normal kernels and zero biases. Parameters
    and logits are float32 at every precision.
    """

    hidden_sizes: tuple[int, ...]
    num_classes: int
    precision: config.Precision = "float32"

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "batch height width channel"]
    ) -> Float32[Array, "batch num_classes"]:
        dtype, precision = DTYPES[self.precision]
        dense = partial(nn.Dense, dtype=dtype, precision=precision)
        activations = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255
        for size in self.hidden_sizes:
            activations = nn.relu(dense(size)(activations))
        return dense(self.num_classes)(activations).astype(jnp.float32)

    def describe(self, image_shape: tuple[int, int, int]) -> str:
        sizes = (math.prod(image_shape), *self.hidden_sizes, self.num_classes)
        return f"MLP {'-'.join(map(str, sizes))}"


class ModelSize(NamedTuple):
    """The number of parameters, and the bytes of the activations of one image."""

    num_params: int
    activation_bytes: int


def _is_layer_output(module: nn.Module, method: str) -> bool:
    """Return whether a method computes the output of a layer; the model's is that of its last."""
    return method == "__call__" and module.name is not None


def measure(model: MLP, image_shape: tuple[int, int, int]) -> ModelSize:
    """Measure a model from the shapes of its arrays, without computing any."""

    def apply(key: Key[Array, ""]) -> tuple[Params, PyTree[Array]]:
        images = jnp.zeros((1, *image_shape), jnp.uint8)
        variables = model.init(key, images)
        _, outputs = model.apply(variables, images, capture_intermediates=_is_layer_output)
        return variables["params"], outputs

    params, outputs = jax.eval_shape(apply, jax.random.key(0))
    pixels = math.prod(image_shape) * 4  # float32
    return ModelSize(
        sum(leaf.size for leaf in jax.tree.leaves(params)), pixels + count_bytes(outputs)
    )


def count_bytes(tree: PyTree[Array | jax.ShapeDtypeStruct]) -> int:
    """Return the bytes of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
