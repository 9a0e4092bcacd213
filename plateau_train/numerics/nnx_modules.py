"""Flax NNX modules as ``Network``. Imported for such a network only: NNX is slow to import."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key, PyTree

from plateau_train.config import Precision
from plateau_train.errors import ConfigError
from plateau_train.numerics.adapters import table_options, training_arguments
from plateau_train.numerics.model import Images, Network, Variables


def from_nnx(
    make: Callable[..., nnx.Module], *, title: str, num_classes: int, precision: Precision
) -> Network:
    """Adapt a function that makes a Flax NNX module from ``rngs``.

    Each call of the network splits the module and merges it again. Its variables other than
    parameters are the state, but for random numbers, which are made again from the key of a step.
    """

    def split(module: nnx.Module) -> tuple[Any, list[Any]]:
        nnx.pop(module, nnx.Intermediate)  # what a module sows is no state
        graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return graph, [nnx.to_pure_dict(state) for state in states]

    def make_and_split(key: Key[Array, ""]) -> list[Any]:
        return split(make(rngs=nnx.Rngs(key)))[1]

    def init(key: Key[Array, ""], _: Images) -> Variables:
        params, _, model_state = make_and_split(key)
        return Variables(params, model_state)

    # Everything about the module that is no array, and the shapes of its random numbers.
    abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(jax.random.key(0))))
    if not isinstance(abstract, nnx.Module):
        raise ConfigError(
            f"{title} has an argument rngs and makes no NNX module",
            hint="return an NNX module, or leave out the argument rngs",
        )
    graph, (_, random_numbers, _) = split(abstract)

    def forward(
        variables: Variables, images: Images, key: Key[Array, ""] | None
    ) -> tuple[Any, PyTree[Array]]:
        random_state = _make_random_state(random_numbers, key)
        states = (variables.params, random_state, variables.model_state)
        module = nnx.merge(graph, *map(nnx.State, states))
        is_training = key is not None
        module.train() if is_training else module.eval()
        options = training_arguments(type(module).__call__, is_training=is_training)
        logits = module(images, **options)  # pyright: ignore[reportCallIssue]
        _, (_, _, model_state) = split(module)
        return logits, model_state if is_training else variables.model_state

    def tabulate(image_shape: tuple[int, int, int], width: int) -> str:
        images = jnp.zeros((1, *image_shape))
        options = table_options(width)
        module = make(rngs=nnx.Rngs(0))
        module.eval()
        arguments = training_arguments(type(module).__call__, is_training=False)
        return nnx.tabulate(module, images, **options, **arguments)

    return Network(title, num_classes, precision, init, forward, tabulate)


def _make_random_state(shapes: PyTree[Any], key: Key[Array, ""] | None) -> PyTree[Array]:
    """Return the keys and counters of an NNX module, each key derived from one key."""
    base = jax.random.key(0) if key is None else key
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(
        structure,
        [
            jax.random.fold_in(base, number)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for number, leaf in enumerate(leaves)
        ],
    )
