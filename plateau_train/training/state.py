"""The arrays of a training state by name, as checkpoints hold them, and back."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from plateau_train.config import ModelSettings
from plateau_train.errors import RunError
from plateau_train.numerics.model import Network, Variables, name_arrays
from plateau_train.numerics.plateau import PlateauState
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import TrainState, init_state
from plateau_train.run.checkpoint import FORMAT, Checkpoint
from plateau_train.training.models import load_network


def restore(checkpoint: Checkpoint, model: ModelSettings) -> TrainState:
    """Return the state of a checkpoint on the host, with its replica axis.

    ``model`` is its network, which may be in another place than before. Raises ``RunError`` unless
    the names, shapes and types are those of the state that its settings describe.
    """
    return restore_network(checkpoint, model)[1]


def restore_network(checkpoint: Checkpoint, model: ModelSettings) -> tuple[Network, TrainState]:
    """Return the network of a checkpoint, and its state; see ``restore``."""
    settings = checkpoint.manifest.settings
    dataset = checkpoint.manifest.environment.dataset
    # Only the schedule depends on the number of images, and it has no state: one batch is enough.
    network = load_network(model, len(dataset.class_names), dataset.image_shape)
    spec = Spec.from_settings(settings, network, num_examples=settings.data.batch_size)
    rows = Hyperparams.from_settings([settings])
    init = jax.vmap(partial(init_state, spec, dataset.image_shape))
    state = jax.eval_shape(init, rows)
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in name_arrays(state).items()}
    arrays = checkpoint.arrays
    if checkpoint.manifest.format < FORMAT:
        arrays = _complete_rule(spec, rows, arrays)
    present = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name in sorted(expected | present):
        if present.get(name) != expected.get(name):
            raise RunError(
                f"the checkpoint of epoch {checkpoint.manifest.epoch} does not have the state that "
                f"this version trains: {name} is {present.get(name)}, expected "
                f"{expected.get(name)}",
                hint="install the versions that environment.json names",
            )
    leaves = [arrays[name] for name in expected]
    return network, jax.tree.unflatten(jax.tree.structure(state), leaves)


def restore_replica(
    checkpoint: Checkpoint, model: ModelSettings, replica: int
) -> tuple[Network, Variables]:
    """Return the network of a checkpoint, and the variables of one replica; see ``restore``."""
    network, state = restore_network(checkpoint, model)
    return network, jax.tree.map(lambda rows: jnp.asarray(rows[replica]), state.variables)


def _complete_rule(
    spec: Spec, rows: Hyperparams, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the arrays of an older format with those that it lacks.

    They follow from the others, but for the last observation, which only ``explain`` reads, and for
    what settings need that those runs do not have.
    """

    def init(hyperparams: Hyperparams, best: jax.Array) -> PlateauState:
        rule = spec.rule(hyperparams)
        return rule.init()._replace(threshold=rule.threshold(best))

    rule = jax.vmap(init)(rows, jnp.asarray(arrays["plateau/best_value"]))
    missing = {f"plateau/{name}": array for name, array in name_arrays(rule).items()}
    missing["is_restored_next"] = np.zeros(len(rows.seed), bool)
    if "plateau/observation/value" in arrays:
        missing["plateau/observation/raw"] = arrays["plateau/observation/value"]
    return jax.device_get(missing) | dict(arrays)
