"""The network as a StableHLO program, which JAX runs without this package."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from plateau_train.numerics.model import Network, Variables
from plateau_train.numerics.step import predict

PLATFORMS = ("cpu", "cuda", "tpu")
# Of JAX: otherwise the file would have the paths of the source on this machine.
WITHOUT_PATHS = {
    "jax_include_full_tracebacks_in_locations": True,
    "jax_traceback_in_locations_limit": 0,
}
MARK = b"plateau_train_logits"  # the name of the program


def export(network: Network, variables: Variables, image_shape: tuple[int, int, int]) -> bytes:
    """Return the serialized program from images to logits.

    It takes uint8 images of any number, and has the weights and the scaling of the pixels in it.
    """

    def plateau_train_logits(images: jax.Array) -> jax.Array:
        return predict(network, variables, images)

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    with _configured(WITHOUT_PATHS):
        program = jax_export.export(jax.jit(plateau_train_logits), platforms=PLATFORMS)(images)
    return bytes(program.serialize())


@contextlib.contextmanager
def _configured(values: Mapping[str, Any]) -> Iterator[None]:
    """Change the configuration of JAX for the block."""
    before = {name: jax.config.values[name] for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
