"""Flax Linen modules and pairs of functions as ``Network``; ``nnx_modules`` adapts NNX."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from plateau_train.config import Precision
from plateau_train.numerics.model import Images, Network, Variables, key_shape, name_arrays

# The arguments that tell a network whether it is trained, and their values in training.
TRAINING_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}

DROPOUT = "dropout"  # the stream of random numbers that Linen's Dropout takes

PARAMS = "params"  # the collection of Linen with the parameters


def is_linen(value: object) -> bool:
    """Return whether a value is a Flax Linen module."""
    return isinstance(value, nn.Module)


def is_nnx(kind: type) -> bool:
    """Return whether a class is a Flax NNX module, without the import of NNX."""
    return any(each.__module__.startswith("flax.nnx.") for each in kind.__mro__)


def training_arguments(function: Callable[..., Any], *, is_training: bool) -> dict[str, Any]:
    """Return the arguments of a network's function that say whether it is trained."""
    names = inspect.signature(function).parameters
    return {
        name: value == is_training for name, value in TRAINING_ARGUMENTS.items() if name in names
    }


def table_options(width: int) -> dict[str, Any]:
    """Return the options with which Flax writes a table of some columns of text."""
    return {
        "console_kwargs": {"width": width, "force_terminal": False},
        "column_kwargs": {"overflow": "fold"},  # the default cuts texts that are too long
    }


def from_linen(module: nn.Module, *, title: str, num_classes: int, precision: Precision) -> Network:
    """Adapt a Flax Linen module.

    Its other collections, such as the running averages of BatchNorm, are the state.
    """

    def arguments(*, is_training: bool) -> dict[str, Any]:
        return training_arguments(type(module).__call__, is_training=is_training)

    def init(key: Key[Array, ""], images: Images) -> Variables:
        # A key of its own, for modules that drop values also when they are initialized.
        keys = {PARAMS: key, DROPOUT: jax.random.fold_in(key, 1)}
        collections = dict(module.init(keys, images, **arguments(is_training=False)))
        collections.pop("intermediates", None)  # what a module sows is no state
        return Variables(collections.pop(PARAMS, {}), collections)

    def forward(
        variables: Variables, images: Images, key: Key[Array, ""] | None
    ) -> tuple[Any, PyTree[Array]]:
        collections = {PARAMS: variables.params, **variables.model_state}
        options = arguments(is_training=key is not None)
        if key is None:
            logits: Any = module.apply(collections, images, **options)
            return logits, variables.model_state
        logits, model_state = module.apply(
            collections,
            images,
            **options,
            rngs={DROPOUT: key},
            mutable=list(variables.model_state),
        )
        return logits, dict(model_state)

    def tabulate(image_shape: tuple[int, int, int], width: int) -> str:
        images = jnp.zeros((1, *image_shape))
        options = table_options(width)
        keys = {PARAMS: jax.random.key(0), DROPOUT: jax.random.key(1)}
        return module.tabulate(keys, images, **options, **arguments(is_training=False))

    return Network(title, num_classes, precision, init, forward, tabulate)


def from_functions(
    functions: Any,
    *,
    title: str,
    num_classes: int,
    precision: Precision,
    image_shape: tuple[int, int, int],
) -> Network:
    """Adapt an object with ``init(key, images)`` and ``apply(variables, images)``.

    As in Flax, ``params`` of a mapping are trained and the rest is constant; anything else is
    trained as a whole.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(functions.init, key_shape(), images)
    has_collections = isinstance(shapes, Mapping) and PARAMS in shapes

    def init(key: Key[Array, ""], images: Images) -> Variables:
        variables = functions.init(key, images)
        if not has_collections:
            return Variables(variables, {})
        others = {name: each for name, each in variables.items() if name != PARAMS}
        return Variables(variables[PARAMS], others)

    def forward(
        variables: Variables, images: Images, _: Key[Array, ""] | None
    ) -> tuple[Any, PyTree[Array]]:
        params, model_state = variables
        whole = {PARAMS: params, **model_state} if has_collections else params
        return functions.apply(whole, images), model_state

    def tabulate(_: tuple[int, int, int], width: int) -> str:
        arrays = name_arrays(shapes)
        return "\n".join(
            f"{name:<{width // 2}} {leaf.dtype}{leaf.shape}" for name, leaf in arrays.items()
        )

    return Network(title, num_classes, precision, init, forward, tabulate)
