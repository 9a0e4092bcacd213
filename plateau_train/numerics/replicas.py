"""Several trainings in one compiled program: ``step`` with a replica axis, ``jit`` and devices.

The only module that knows of replicas and devices. The idea that an experiment is a function of its
seed, and many seeds a ``vmap``, is purejaxrl's (Lu et al. 2022).
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32, UInt32

from plateau_train.numerics import step as single
from plateau_train.numerics.mesh import BATCH_AXIS, REPLICA_AXIS, Tree, constrain, put
from plateau_train.numerics.model import Params, count_bytes, measure
from plateau_train.numerics.plateau import Observation
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import Examples, Losses, Metrics, StepRecord, TrainState

# Images scored at a time: more than a step takes, as larger products are faster, to a point.
EVALUATION_BATCH = 1000


def _vmap(function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    """Map a function of one training over the replica axis.

    One replica is squeezed instead: XLA's matrix products on the CPU are slower with an axis of
    length 1 in front.
    """
    mapped = jax.vmap(function, in_axes=in_axes, spmd_axis_name=REPLICA_AXIS)

    def squeezed(*arguments: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        rows = [
            argument if axis is None else jax.tree.map(lambda array: array[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda array: array[None], function(*rows))

    def apply(*arguments: Any) -> Any:
        num_replicas = len(jax.tree.leaves(arguments[0])[0])
        return (squeezed if num_replicas == 1 else mapped)(*arguments)

    return apply


class Replicas(NamedTuple):
    """The replicas of one program on a mesh; every array has a leading replica axis."""

    spec: Spec
    hyperparams: Hyperparams
    mesh: Mesh

    def init(self, image_shape: tuple[int, int, int]) -> TrainState:
        """Return the state before the first step."""
        return _init(self.spec, self.mesh, self.hyperparams, image_shape)

    def put(self, tree: Tree) -> Tree:
        """Bring host arrays with a replica axis to the devices."""
        return put(self.mesh, tree, REPLICA_AXIS)

    def put_split(self, split: Iterable[Any]) -> Examples:
        """Bring the images and labels of a split to every device."""
        return Examples(*put(self.mesh, tuple(split)))

    def epoch_order(self, epoch: int, num_examples: int) -> Int32[Array, "replicas steps batch"]:
        """Return the batches of an epoch as indices."""
        sizes = (num_examples, self.spec.batch_size)
        return _epoch_order(self.mesh, self.hyperparams.seed, epoch, sizes)

    def empty_records(self, num_steps: int) -> StepRecord:
        """Return the arrays that ``train_steps`` fills in."""
        record = single.empty_records(self.spec, num_steps)
        num_replicas = len(self.hyperparams.seed)
        rows = jax.tree.map(lambda row: np.broadcast_to(row, (num_replicas, *row.shape)), record)
        return self.put(rows)

    def train_steps(
        self,
        state: TrainState,
        records: StepRecord,
        split: Examples,
        order: Int32[Array, "replicas steps batch"],
        start: int,
        stop: int,
        epoch: int,
    ) -> tuple[TrainState, StepRecord]:
        """Take some steps of an epoch; ``state`` and ``records`` are donated."""
        return _train_steps(
            self.spec, self.mesh, self.hyperparams, state, records, split, order, start, stop, epoch
        )

    def evaluate(
        self, params: Params, split: Examples, losses: Losses = single.evaluation_losses
    ) -> Metrics:
        """Score every image of a split once."""
        return _evaluate(self.spec, self.mesh, losses, params, split, self._batches(split))

    def count_confusion(
        self, params: Params, split: Examples
    ) -> Int32[Array, "replicas classes classes"]:
        """Count the images of each true class (rows) by predicted class (columns)."""
        return _count_confusion(self.spec, self.mesh, params, split, self._batches(split))

    def observe_evaluation(
        self, state: TrainState, metrics: Metrics, step: int
    ) -> tuple[TrainState, Observation]:
        """Give each rule its evaluation after an epoch; ``state`` is donated."""
        return _observe_evaluation(self.spec, self.mesh, self.hyperparams, state, metrics, step)

    def _batches(self, split: Examples) -> Int32[Array, "batches batch"]:
        """Return the indices of all images in batches that the devices divide evenly.

        The last batch is filled with indices beyond the split.
        """
        num_examples, num_devices = len(split.labels), self.mesh.shape[BATCH_AXIS]
        batch_size = _round_up(min(EVALUATION_BATCH, num_examples), num_devices)
        indices = np.arange(_round_up(num_examples, batch_size), dtype=np.int32)
        batches: Any = indices.reshape(-1, batch_size)
        return put(self.mesh, batches, None, BATCH_AXIS)


def estimate_memory(spec: Spec, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Estimate the bytes that one replica needs on a device, and those of its state alone.

    Beside the state there are gradients and updates of the parameters, and the activations of a
    batch, forward and backward.
    """
    zeros: Any = (np.zeros((), dtype) for dtype in Hyperparams.DTYPES)
    hyperparams = Hyperparams(*zeros)
    state = jax.eval_shape(partial(single.init_state, spec, hyperparams, image_shape))
    state_bytes = count_bytes(state)
    num_rows = max(2 * spec.batch_size, EVALUATION_BATCH)
    activations = num_rows * measure(spec.model, image_shape).activation_bytes
    return state_bytes + 2 * count_bytes(state.params) + activations, state_bytes


def _round_up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


@partial(jax.jit, static_argnames=("spec", "mesh", "image_shape"))
def _init(
    spec: Spec, mesh: Mesh, hyperparams: Hyperparams, image_shape: tuple[int, int, int]
) -> TrainState:
    init = partial(single.init_state, spec, image_shape=image_shape)
    return constrain(mesh, _vmap(init)(hyperparams), REPLICA_AXIS)


@partial(jax.jit, static_argnames=("mesh", "sizes"))
def _epoch_order(
    mesh: Mesh, seeds: UInt32[Array, " replicas"], epoch: Array, sizes: tuple[int, int]
) -> Int32[Array, "replicas steps batch"]:
    num_examples, batch_size = sizes
    order = partial(single.epoch_order, num_examples=num_examples, batch_size=batch_size)
    orders = _vmap(order, in_axes=(0, None))(seeds, epoch)
    return constrain(mesh, orders, REPLICA_AXIS, None, BATCH_AXIS)


@partial(jax.jit, static_argnames=("spec", "mesh"), donate_argnames=("state", "records"))
def _train_steps(
    spec: Spec,
    mesh: Mesh,
    hyperparams: Hyperparams,
    state: TrainState,
    records: StepRecord,
    split: Examples,
    order: Int32[Array, "replicas steps batch"],
    *bounds: Any,
) -> tuple[TrainState, StepRecord]:
    steps = partial(single.train_steps, spec)
    in_axes = (0, 0, 0, None, 0, None, None, None)
    results = _vmap(steps, in_axes=in_axes)(hyperparams, state, records, split, order, *bounds)
    return constrain(mesh, results, REPLICA_AXIS)


@partial(jax.jit, static_argnames=("spec", "mesh", "losses"))
def _evaluate(
    spec: Spec, mesh: Mesh, losses: Losses, params: Params, split: Examples, batches: Array
) -> Metrics:
    evaluate = partial(single.evaluate, spec, losses)
    return constrain(
        mesh, _vmap(evaluate, in_axes=(0, None, None))(params, split, batches), REPLICA_AXIS
    )


@partial(jax.jit, static_argnames=("spec", "mesh"))
def _count_confusion(
    spec: Spec, mesh: Mesh, params: Params, split: Examples, batches: Array
) -> Int32[Array, "replicas classes classes"]:
    count = partial(single.count_confusion, spec)
    return constrain(
        mesh, _vmap(count, in_axes=(0, None, None))(params, split, batches), REPLICA_AXIS
    )


@partial(jax.jit, static_argnames=("spec", "mesh"), donate_argnames="state")
def _observe_evaluation(
    spec: Spec,
    mesh: Mesh,
    hyperparams: Hyperparams,
    state: TrainState,
    metrics: Metrics,
    step: Array,
) -> tuple[TrainState, Observation]:
    observe = partial(single.observe_evaluation, spec)
    results = _vmap(observe, in_axes=(0, 0, 0, None))(hyperparams, state, metrics, step)
    return constrain(mesh, results, REPLICA_AXIS)
