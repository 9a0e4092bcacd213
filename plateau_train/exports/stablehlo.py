"""The network as a StableHLO program, which JAX runs without this package."""

import jax
import jax.numpy as jnp
from jax import export as jax_export

from plateau_train.config import Settings
from plateau_train.numerics.model import Params
from plateau_train.numerics.spec import Spec
from plateau_train.numerics.step import predict
from plateau_train.run.environment import DatasetFacts

PLATFORMS = ("cpu", "cuda", "tpu")
MARK = b"plateau_train_logits"  # the name of the program


def export(settings: Settings, dataset: DatasetFacts, params: Params, replica: int) -> bytes:
    """Return the serialized program from images to logits; ``params`` have a replica axis.

    It takes uint8 images of any number, and has the weights and the scaling of the pixels in it.
    """
    # Only the schedule depends on the number of images.
    num_classes, num_examples = len(dataset.class_names), settings.data.batch_size
    spec = Spec.from_settings(settings, num_classes=num_classes, num_examples=num_examples)
    own = jax.tree.map(lambda rows: rows[replica], params)

    def plateau_train_logits(images: jax.Array) -> jax.Array:
        return predict(spec.model, own, images)

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *dataset.image_shape), jnp.uint8)
    program = jax_export.export(jax.jit(plateau_train_logits), platforms=PLATFORMS)(images)
    return bytes(program.serialize())
