"""What a network is for a training: pure functions of its variables. Its size and its FLOPs."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key, PyTree, UInt8

from plateau_train import config
from plateau_train.errors import ConfigError

MOST_MEASURED = 64  # networks whose shapes stay known in a process that trains many

Params = PyTree[Float[Array, "..."]]
Images = Float[Array, "batch height width channel"]  # from 0 to 1
Logits = Float[Array, "batch classes"]

# The type that parameters and images are cast to, and the precision of products of float32: JAX's
# own default on an accelerator is less than float32.
PRECISIONS: dict[config.Precision, tuple[Any, str]] = {
    "float32": (jnp.float32, "highest"),
    "tf32": (jnp.float32, "high"),
    "bfloat16": (jnp.bfloat16, "default"),
}


class Variables(NamedTuple):
    """The arrays of a network: what the optimizer trains, and what its own steps replace.

    ``model_state`` has, for example, running averages; it is empty for most networks.
    """

    params: Params
    model_state: PyTree[Array]


class Network(NamedTuple):
    """A network as pure functions. It is static, so two are equal only if all functions are.

    A key stands for training: random numbers are derived from it, and the second result is the new
    ``model_state``. None stands for evaluation, which is deterministic and changes nothing. The
    first result of ``forward`` is what a user's code returns; ``apply`` checks it.
    """

    title: str
    num_classes: int
    precision: config.Precision
    init: Callable[[Key[Array, ""], Images], Variables]
    forward: Callable[[Variables, Images, Key[Array, ""] | None], tuple[Any, PyTree[Array]]]
    # The layers for images of a shape, in some columns of text.
    tabulate: Callable[[tuple[int, int, int], int], str]

    def apply(
        self,
        variables: Variables,
        images: UInt8[Array, "batch height width channel"],
        key: Key[Array, ""] | None,
    ) -> tuple[Float32[Array, "..."], PyTree[Array]]:
        """Return the logits of images with 8 bits per value, and the new ``model_state``.

        Logits are float32 at every precision; so are the parameters that the optimizer has.
        """
        dtype, precision = PRECISIONS[self.precision]
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables.params)
        pixels = (images.astype(jnp.float32) / 255).astype(dtype)
        with jax.default_matmul_precision(precision):
            logits, model_state = self.forward(variables._replace(params=params), pixels, key)
        if not (isinstance(logits, jax.Array) and jnp.issubdtype(logits.dtype, jnp.floating)):
            kind = logits.dtype if isinstance(logits, jax.Array) else type(logits).__name__
            raise ConfigError(
                f"{self.title} returns {kind} instead of logits",
                hint="return one array of floating point numbers [batch, classes]",
            )
        return logits.astype(jnp.float32), model_state


class ModelSize(NamedTuple):
    """The number of parameters, and the bytes that the gradient needs of one image."""

    num_params: int
    activation_bytes: int


@lru_cache(MOST_MEASURED)
def measure(network: Network, image_shape: tuple[int, int, int]) -> ModelSize:
    """Measure a network from the shapes of its arrays, without computing any."""
    variables = init_shapes(network, image_shape)
    small, large = (_count_residuals(network, variables, (n, *image_shape)) for n in (1, 2))
    return ModelSize(count_values(variables.params), large - small)


@lru_cache(MOST_MEASURED)
def init_shapes(network: Network, image_shape: tuple[int, int, int]) -> Variables:
    """Return the shapes and types of the variables."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(network.init, key_shape(), images)


def key_shape() -> Any:
    """Return the shape and type of a key; a key itself would start the devices."""
    return jax.eval_shape(jax.random.key, 0)


def _count_residuals(network: Network, variables: Variables, shape: tuple[int, ...]) -> int:
    """Return the bytes that the backward pass keeps of the forward pass."""

    def residuals(
        variables: Variables, images: UInt8[Array, "..."], key: Key[Array, ""]
    ) -> PyTree[Array]:
        def logits(params: Params) -> tuple[Array, PyTree[Array]]:
            return network.apply(variables._replace(params=params), images, key)

        return jax.vjp(logits, variables.params, has_aux=True)[1]

    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return count_bytes(jax.eval_shape(residuals, variables, images, key_shape()))


def check_network(network: Network, image_shape: tuple[int, int, int]) -> None:
    """Raise ``ConfigError`` unless a network has the form of one that can be trained."""
    variables = init_shapes(network, image_shape)
    leaves = jax.tree.leaves(variables.params)
    if not leaves:
        raise ConfigError(
            f"{network.title} has no parameters", hint="make its layers when it is initialized"
        )
    if types := sorted({str(leaf.dtype) for leaf in leaves} - {"float32"}):
        raise ConfigError(
            f"{network.title} has parameters of type {', '.join(types)}",
            hint="leave the parameters float32; --precision casts them for the products",
        )
    num_images = 3  # neither an axis of length 1, which hides errors, nor a usual size of another
    images = jax.ShapeDtypeStruct((num_images, *image_shape), jnp.uint8)
    for purpose, key in (("training", key_shape()), ("evaluation", None)):
        logits, model_state = jax.eval_shape(network.apply, variables, images, key)
        expected = (num_images, network.num_classes)
        if logits.shape != expected:
            raise ConfigError(
                f"{network.title} returns logits of shape {logits.shape} for {num_images} images "
                f"in {purpose}, expected {expected}",
                hint=f"return one row per image with {network.num_classes} values, one per class; "
                "an argument num_classes gets their number",
            )
        before, after = map(_describe, (variables.model_state, model_state))
        if before != after:
            changed = sorted({*before.items()} ^ {*after.items()}, key=str)[0][0]
            raise ConfigError(
                f"{network.title} changes the form of its state in {purpose}: {changed} is "
                f"{before.get(changed, 'missing')} before and {after.get(changed, 'missing')} "
                "after",
                hint="make every variable when the network is initialized, with its final shape",
            )


def _describe(tree: PyTree[Any]) -> dict[str, str]:
    """Return the type and shape of each array of a tree by its path."""
    return {name: str(leaf.dtype) + str(leaf.shape) for name, leaf in name_arrays(tree).items()}


def name_arrays(tree: PyTree[Any]) -> dict[str, Any]:
    """Name every array of a tree by its path, such as params/Dense_0/kernel."""
    leaves, structure = jax.tree.flatten(tree)
    return dict(zip(_names(structure), leaves, strict=True))


@lru_cache(MOST_MEASURED)
def _names(structure: Any) -> list[str]:
    leaves, _ = jax.tree.flatten_with_path(structure.unflatten(range(structure.num_leaves)))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def count_values(tree: PyTree[Array | jax.ShapeDtypeStruct]) -> int:
    """Return how many numbers the arrays of a tree have."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: PyTree[Array | jax.ShapeDtypeStruct]) -> int:
    """Return the bytes of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
