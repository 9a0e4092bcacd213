"""Several trainings in one compiled program: the verbs of ``program`` with one more leading axis.

They differ in their seed and in the hyperparameters that can be traced; all else they share, the
images too. On several devices each trains its part of them, and nothing is exchanged. The idea that
an experiment is a function of its seed, and many seeds a ``vmap``, is purejaxrl's (Lu et al. 2022).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from inspect import unwrap
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, UInt32

from plateau_train.numerics import program as single
from plateau_train.numerics.mesh import REPLICA_AXIS, Tree, put_everywhere
from plateau_train.numerics.plateau import Observation
from plateau_train.numerics.program import (
    Examples,
    Metrics,
    Params,
    Program,
    StepRecord,
    TrainState,
)

# Of an argument: each replica has its own, along the first axis, or all share one.
EACH, SHARED = PartitionSpec(REPLICA_AXIS), PartitionSpec()

# The verbs of one training without their jit, which cannot take a program with traced values.
_init, _order, _take, _evaluate, _advance = map(
    unwrap,
    (
        single.init_state, single.epoch_order, single.train_steps, single.evaluate, single.advance,
    ),
)  # fmt: skip


class Solo(NamedTuple):
    """One training in the words of an ``Ensemble``; the devices of its program share a batch."""

    program: Program
    seed: int

    num_trainings = 1

    def init(self, image_shape: tuple[int, int, int]) -> TrainState:
        # On no mesh: in a cluster not every process comes here.
        alone = self.program._replace(mesh=None)
        return single.init_state(alone, np.uint32(self.seed), image_shape)

    def place(self, state: TrainState) -> TrainState:
        """Bring a state that ``fetch`` has brought to the host to the devices."""
        return put_everywhere(self.program.mesh, jax.tree.map(lambda rows: rows[0], state))

    def fetch(self, tree: Any) -> Any:
        """Bring arrays to the host, with a leading axis of replicas."""
        return jax.tree.map(lambda array: np.array(array)[np.newaxis], tree)

    def epoch_order(self, epoch: int, num_examples: int) -> Int32[Array, "steps batch"]:
        return single.epoch_order(
            np.uint32(self.seed), epoch, num_examples=num_examples,
            batch_size=self.program.batch_size, mesh=self.program.mesh,
        )  # fmt: skip

    def empty_records(self, state: TrainState, split: Examples, num_steps: int) -> StepRecord:
        return single.empty_records(self.program, state, split, num_steps)

    def train_steps(self, *arguments: Any) -> tuple[TrainState, StepRecord]:
        return single.train_steps(self.program, *arguments)

    def evaluate(self, state: TrainState, split: Examples) -> Metrics:
        return single.evaluate(self.program, state.params, split)

    def advance(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, Observation]:
        """Feed the rule what ``fetch`` has brought of an evaluation."""
        return single.advance(self.program, state, jax.tree.map(lambda rows: rows[0], metrics))


class Replicas(NamedTuple):
    """What the trainings of one program differ in: a value each, or traced, that of one."""

    seed: UInt32[Array | np.ndarray, "*replicas"]
    learning_rate: Float32[Array | np.ndarray, "*replicas"]
    patience: Int32[Array | np.ndarray, "*replicas"]
    cooldown: Int32[Array | np.ndarray, "*replicas"]
    min_scale: Float32[Array | np.ndarray, "*replicas"]

    def put_into(self, program: Program) -> Program:
        """Give a program the values of one replica."""
        baseline = program.baseline and program.baseline._replace(min_scale=self.min_scale)
        rule = program.rule._replace(
            patience=self.patience, cooldown=self.cooldown, min_scale=self.min_scale
        )
        return program._replace(learning_rate=self.learning_rate, rule=rule, baseline=baseline)


class Ensemble(NamedTuple):
    """Several trainings of one program; ``mesh`` is a row of devices that they are spread over.

    The last one is repeated until their number divides by that of the devices; ``fetch`` leaves
    the repetitions out.
    """

    program: Program
    replicas: Replicas
    num_trainings: int
    mesh: Mesh

    @classmethod
    def of(
        cls, trainings: Sequence[tuple[Program, int]], mesh: Mesh, size: int | None = None
    ) -> "Ensemble":
        """Put programs, each with its seed, into one that has room for ``size`` of them.

        Raises ``ValueError`` where they differ in what cannot be traced.
        """
        nothing: Any = 0.0
        same = Replicas(*[nothing] * len(Replicas._fields))
        shared, *others = {same.put_into(program) for program, _ in trainings}
        if others:
            raise ValueError("these trainings are not of one program")
        rows = [
            (seed, program.learning_rate, rule.patience, rule.cooldown, rule.min_scale)
            for program, seed in trainings
            for rule in [program.rule]
        ]
        room = -(-max(len(rows), size or 0) // mesh.size) * mesh.size
        rows += [rows[-1]] * (room - len(rows))
        types = (np.uint32, np.float32, np.int32, np.int32, np.float32)
        columns = map(np.array, zip(*rows, strict=True), types)
        return cls(shared, Replicas(*columns), len(trainings), mesh)

    def init(self, image_shape: tuple[int, int, int]) -> TrainState:
        return _init_each(self.program, self.mesh, self.replicas, image_shape)

    def place(self, tree: Tree) -> Tree:
        """Bring a state, or what ``fetch`` else has brought to the host, to the devices."""
        num_missing = len(self.replicas.seed) - self.num_trainings
        whole = jax.tree.map(lambda rows: np.concatenate([rows, *[rows[-1:]] * num_missing]), tree)
        return jax.device_put(whole, NamedSharding(self.mesh, EACH))

    def fetch(self, tree: Any) -> Any:
        """Bring arrays to the host, with a leading axis of replicas."""
        return jax.tree.map(lambda rows: np.array(rows)[: self.num_trainings], tree)

    def epoch_order(self, epoch: int, num_examples: int) -> Int32[Array, "replicas steps batch"]:
        sizes = (num_examples, self.program.batch_size)
        return _order_each(self.mesh, self.replicas.seed, epoch, sizes)

    def empty_records(self, state: TrainState, split: Examples, num_steps: int) -> StepRecord:
        first = jax.tree.map(lambda rows: jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype), state)
        row = single.empty_records(self.program, first, split, num_steps)
        rows = jax.tree.map(lambda column: np.stack([column] * len(self.replicas.seed)), row)
        return jax.device_put(rows, NamedSharding(self.mesh, EACH))

    def train_steps(
        self, state: TrainState, records: StepRecord, *shared: Any
    ) -> tuple[TrainState, StepRecord]:
        return _take_each(self.program, self.mesh, self.replicas, state, records, *shared)

    def evaluate(self, state: TrainState, split: Examples) -> Metrics:
        return _evaluate_each(self.program, self.mesh, state.params, split)

    def advance(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, Observation]:
        """Feed the rule of each what ``fetch`` has brought of an evaluation."""
        return _advance_each(self.program, self.mesh, self.replicas, state, self.place(metrics))


def estimate_memory(program: Program, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Estimate the bytes that one training takes on a device, and those of its state alone.

    Beside the state there are gradients and updates of the parameters, and the activations of a
    batch, forward and backward.
    """
    state = jax.eval_shape(partial(_init, program, image_shape=image_shape), np.uint32(0))
    sizes = (math.prod(image_shape), *program.model.hidden_sizes, program.model.num_classes)
    rows = max(2 * program.batch_size, single.EVALUATION_BATCH)
    held = _count_bytes(state)
    working = 2 * _count_bytes(state.params) + rows * sum(sizes) * np.float32().nbytes
    return held + working, held


def _count_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _map_replicas(mesh: Mesh, verb: Callable[..., Any], *places: PartitionSpec) -> Any:
    """Apply a verb to each replica, on each device to its part of them.

    ``places`` says of every argument whether each replica has its own, or all share one.
    """
    axes = [0 if place == EACH else None for place in places]
    return jax.shard_map(
        jax.vmap(verb, in_axes=axes), mesh=mesh, in_specs=places, out_specs=EACH, check_vma=False
    )


@partial(jax.jit, static_argnames=("program", "mesh", "image_shape"))
def _init_each(
    program: Program, mesh: Mesh, replicas: Replicas, image_shape: tuple[int, int, int]
) -> TrainState:
    def init(replica: Replicas) -> TrainState:
        return _init(replica.put_into(program), replica.seed, image_shape)

    return _map_replicas(mesh, init, EACH)(replicas)


@partial(jax.jit, static_argnames=("mesh", "sizes"))
def _order_each(
    mesh: Mesh, seeds: UInt32[Array, " replicas"], epoch: Array, sizes: tuple[int, int]
) -> Int32[Array, "replicas steps batch"]:
    num_examples, batch_size = sizes
    order = partial(_order, num_examples=num_examples, batch_size=batch_size)
    return _map_replicas(mesh, order, EACH, SHARED)(seeds, epoch)


@partial(jax.jit, static_argnames=("program", "mesh"), donate_argnames=("state", "records"))
def _take_each(
    program: Program,
    mesh: Mesh,
    replicas: Replicas,
    state: TrainState,
    records: StepRecord,
    split: Examples,
    order: Int32[Array, "replicas steps batch"],
    start: Array,
    stop: Array,
    epoch: Array,
) -> tuple[TrainState, StepRecord]:
    def take(replica: Replicas, *arguments: Any) -> tuple[TrainState, StepRecord]:
        return _take(replica.put_into(program), *arguments)

    places = (EACH, EACH, EACH, SHARED, EACH, SHARED, SHARED, SHARED)
    return _map_replicas(mesh, take, *places)(
        replicas, state, records, split, order, start, stop, epoch
    )


@partial(jax.jit, static_argnames=("program", "mesh"))
def _evaluate_each(program: Program, mesh: Mesh, params: Params, split: Examples) -> Metrics:
    return _map_replicas(mesh, partial(_evaluate, program), EACH, SHARED)(params, split)


@partial(jax.jit, static_argnames=("program", "mesh"), donate_argnames="state")
def _advance_each(
    program: Program, mesh: Mesh, replicas: Replicas, state: TrainState, metrics: Metrics
) -> tuple[TrainState, Observation]:
    def advance(replica: Replicas, *arguments: Any) -> tuple[TrainState, Observation]:
        return _advance(replica.put_into(program), *arguments)

    return _map_replicas(mesh, advance, EACH, EACH, EACH)(replicas, state, metrics)
