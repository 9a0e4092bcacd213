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
from jaxtyping import Array, Int32

from plateau_train.numerics import step as single
from plateau_train.numerics.mesh import BATCH_AXIS, REPLICA_AXIS, Tree, constrain, put
from plateau_train.numerics.model import Params, count_bytes, measure
from plateau_train.numerics.plateau import Observation
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import Examples, Losses, Metrics, StepRecord, TrainState

# Images scored at a time: more than a step takes, as larger products are faster, to a point.
EVALUATION_BATCH = 1000


class Replicas(NamedTuple):
    """The replicas of one program on a mesh; every array has a leading replica axis."""

    spec: Spec
    hyperparams: Hyperparams
    mesh: Mesh

    def init(self, image_shape: tuple[int, int, int]) -> TrainState:
        """Return the state before the first step."""
        init = partial(_run, single.init_state, (self.spec,), (("image_shape", image_shape),))
        return init(self.mesh, (0,), (REPLICA_AXIS,), self.hyperparams)

    def put(self, tree: Tree) -> Tree:
        """Bring host arrays with a replica axis to the devices."""
        return put(self.mesh, tree, REPLICA_AXIS)

    def put_split(self, split: Iterable[Any]) -> Examples:
        """Bring the images and labels of a split to every device."""
        return Examples(*put(self.mesh, tuple(split)))

    def epoch_order(self, epoch: int, num_examples: int) -> Int32[Array, "replicas steps batch"]:
        """Return the batches of an epoch as indices."""
        sizes = (("num_examples", num_examples), ("batch_size", self.spec.batch_size))
        axes = (REPLICA_AXIS, None, BATCH_AXIS)
        seeds = self.hyperparams.seed
        return _run(single.epoch_order, (), sizes, self.mesh, (0, None), axes, seeds, (), (epoch,))

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
        run = partial(_run, single.train_steps, (self.spec,), (), self.mesh)
        in_axes, rest = (0, 0, 0, None, 0, None, None, None), (split, order, start, stop, epoch)
        return run(in_axes, (REPLICA_AXIS,), self.hyperparams, (state, records), rest)

    def evaluate(
        self, params: Params, split: Examples, losses: Losses = single.evaluation_losses
    ) -> Metrics:
        """Score every image of a split once."""
        return self._score(single.evaluate, (self.spec, losses), params, split)

    def count_confusion(
        self, params: Params, split: Examples
    ) -> Int32[Array, "replicas classes classes"]:
        """Count the images of each true class (rows) by predicted class (columns)."""
        return self._score(single.count_confusion, (self.spec,), params, split)

    def observe_evaluation(
        self, state: TrainState, metrics: Metrics, step: int
    ) -> tuple[TrainState, Observation]:
        """Give each rule its evaluation after an epoch; ``state`` is donated."""
        run = partial(_run, single.observe_evaluation, (self.spec,), (), self.mesh)
        in_axes, rest = (0, 0, 0, None), (metrics, step)
        return run(in_axes, (REPLICA_AXIS,), self.hyperparams, (state,), rest)

    def _score(
        self, function: Callable[..., Any], static: tuple[Any, ...], params: Params, split: Examples
    ) -> Any:
        """Apply a function to batches of indices that the devices divide evenly.

        The last batch is filled with indices beyond the split.
        """
        num_examples, num_devices = len(split.labels), self.mesh.shape[BATCH_AXIS]
        batch_size = _round_up(min(EVALUATION_BATCH, num_examples), num_devices)
        indices = np.arange(_round_up(num_examples, batch_size), dtype=np.int32)
        batches = put(self.mesh, indices.reshape(-1, batch_size), None, BATCH_AXIS)
        run = partial(_run, function, static, (), self.mesh, (0, None, None), (REPLICA_AXIS,))
        return run(params, (), (split, batches))


def estimate_memory(spec: Spec, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Estimate the bytes that one replica needs on a device, and those of its state alone.

    Beside the state there are gradients and updates of the parameters, and the activations of a
    batch, forward and backward.
    """
    zeros: Any = (np.zeros((), dtype) for dtype in Hyperparams.DTYPES)
    init = partial(single.init_state, spec, image_shape=image_shape)
    state = jax.eval_shape(init, Hyperparams(*zeros))
    state_bytes = count_bytes(state)
    num_rows = max(2 * spec.batch_size, EVALUATION_BATCH)
    activations = num_rows * measure(spec.model, image_shape).activation_bytes
    return state_bytes + 2 * count_bytes(state.params) + activations, state_bytes


def _round_up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


@partial(
    jax.jit,
    static_argnames=("function", "static", "options", "mesh", "in_axes", "out_axes"),
    donate_argnames="donated",
)
def _run(
    function: Callable[..., Any],
    static: tuple[Any, ...],
    options: tuple[tuple[str, Any], ...],
    mesh: Mesh,
    in_axes: tuple[int | None, ...],
    out_axes: tuple[str | None, ...],
    first: Any,
    donated: tuple[Any, ...] = (),
    rest: tuple[Any, ...] = (),
) -> Any:
    """Apply a function of one training to each replica.

    The function gets the static arguments and options, and after them ``first``, ``donated`` and
    ``rest``; ``in_axes`` says which of these have a replica axis, ``out_axes`` how the results are
    sharded. One replica is squeezed: XLA's matrix products on the CPU are slower with an axis of
    length 1 in front.
    """
    function = partial(function, *static, **dict(options))
    arguments = (first, *donated, *rest)
    if len(jax.tree.leaves(first)[0]) > 1:
        mapped = jax.vmap(function, in_axes=in_axes, spmd_axis_name=REPLICA_AXIS)
        return constrain(mesh, mapped(*arguments), *out_axes)
    rows = [
        argument if axis is None else jax.tree.map(lambda array: array[0], argument)
        for argument, axis in zip(arguments, in_axes, strict=True)
    ]
    results = jax.tree.map(lambda array: array[None], function(*rows))
    return constrain(mesh, results, *out_axes)
