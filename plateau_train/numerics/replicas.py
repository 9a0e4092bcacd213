"""Several trainings in one compiled program: ``step`` with a replica axis, ``jit`` and devices.

Only this module handles replicas and devices. The devices are a mesh with two axes, one for
the replicas and one for each batch. The idea that an experiment is a function of its seed, and many
seeds a ``vmap``, is purejaxrl's (Lu et al. 2022).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, UInt8

from plateau_train.numerics import step as single
from plateau_train.numerics.model import (
    Network,
    Variables,
    count_bytes,
    init_shapes,
    measure,
)
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import Carry, Examples, Losses, Metrics, StepRecord, TrainState

REPLICA_AXIS, BATCH_AXIS = "replica", "batch"

# Images scored at a time. Larger products than those of a step are faster, up to a limit.
EVALUATION_BATCH = 1000

# Bytes. XLA's devices of a CPU use host arrays in place at such addresses, and copy others.
ALIGNMENT = 64

# Functions that stay compiled in a process that trains many different programs.
MOST_COMPILED = 256

Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[Any], num_replicas: int) -> Mesh:
    """Arrange devices, those of other processes included, as (replica, batch).

    As many devices as divide both numbers share the replicas; the rest share each batch.
    """
    shape = (math.gcd(num_replicas, len(devices)), -1)
    return Mesh(np.array(devices).reshape(shape), (REPLICA_AXIS, BATCH_AXIS))


def count_sharing(num_replicas: int, num_devices: int) -> int:
    """Return the largest number of devices that share the replicas evenly."""
    return max(num for num in range(1, num_devices + 1) if num_replicas % num == 0)


class Replicas(NamedTuple):
    """The replicas of one program on a mesh; every array has a leading replica axis."""

    spec: Spec
    hyperparams: Hyperparams
    mesh: Mesh

    @property
    def has_static_bounds(self) -> bool:
        """Whether the steps of a call are compiled for their number.

        With traced bounds XLA's GPU runtime copies the condition of the loop to the host after
        each step, and waits. On the CPU one compilation serves calls of any length.
        """
        return not self._is_cpu

    @property
    def _is_cpu(self) -> bool:
        return self.mesh.devices.flat[0].platform == "cpu"

    def init(self, image_shape: tuple[int, int, int]) -> TrainState:
        """Return the state before the first step."""
        return _run(single.init_state, (self.spec, image_shape), self.mesh, (self.hyperparams,))

    def put(self, tree: Tree, axes: Sequence[str | None] = (REPLICA_AXIS,)) -> Tree:
        """Put host arrays on the devices, sharded over the named axes.

        Every process must give the same arrays.
        """
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(*axes)))

    def put_split(self, split: Iterable[Any]) -> Examples:
        """Put the images and labels of a split on every device.

        Those of a CPU share the memory of the host arrays, if it is aligned.
        """
        return self.put(Examples(*map(_align, split)), ())

    def epoch_order(self, epoch: int, num_examples: int) -> Int32[Array, "replicas steps batch"]:
        """Return the batches of an epoch as indices."""
        static, axes = (num_examples, self.spec.batch_size), (REPLICA_AXIS, None, BATCH_AXIS)
        seeds = self.hyperparams.seed
        return _run(single.epoch_order, static, self.mesh, (seeds,), (epoch,), axes=axes)

    def empty_records(self, num_steps: int) -> StepRecord:
        """Return the arrays that ``train_steps`` fills in."""
        number: Any = jax.ShapeDtypeStruct((), np.float32)
        observation = None
        if self.spec.observes_steps:
            observation = jax.eval_shape(self.spec.static_rule.init).observation
        shape = len(self.hyperparams.seed), num_steps
        record = StepRecord(Metrics(number, number), observation)
        return self.put(jax.tree.map(lambda leaf: np.zeros(shape, leaf.dtype), record))

    def train_steps(
        self,
        state: TrainState,
        records: StepRecord,
        order: Int32[Array, "replicas steps batch"],
        split: Examples,
        start: int,
        stop: int,
        epoch: int,
    ) -> Carry:
        """Take some steps of an epoch; ``state`` and ``records`` are donated.

        On a CPU, convolutions of XLA take six times as long inside a loop: the steps of a network
        that has some are calls from the host, for all replicas at once.
        """
        function, calls = single.train_steps, [(start, stop)]
        static = self.spec, (stop - start if self.has_static_bounds else None)
        at_once = has_convolutions(self.spec.network, split.images.shape[1:])
        if self._is_cpu and at_once:
            function, calls = single.take_step, [(index,) for index in range(start, stop)]
            static = (self.spec,)
        carry = Carry(state, records)
        for position in calls:
            carry = _run(
                function, static, self.mesh, (self.hyperparams, order), (split, *position, epoch),
                carry=carry, at_once=at_once,
            )  # fmt: skip
        return carry

    def count_flops(
        self,
        state: TrainState,
        records: StepRecord,
        order: Int32[Array, "replicas steps batch"],
        split: Examples,
    ) -> float | None:
        """Return the floating point operations of a step on each device, as XLA counts them.

        They are those of the compiled program. Returns None for a device without such a count.
        """
        at_once = has_convolutions(self.spec.network, split.images.shape[1:])
        static, axes = (self.spec,), (REPLICA_AXIS,)
        function = compiled(single.take_step, static, self.mesh, axes, at_once=at_once)
        mapped, carry = (self.hyperparams, order), Carry(state, records)
        lowered = function.lower(carry, mapped, (split, 0, 1))
        return (lowered.compile().cost_analysis() or {}).get("flops")

    def evaluate(
        self, variables: Variables, split: Examples, losses: Losses = single.evaluation_losses
    ) -> Metrics:
        """Score every image of a split once."""
        return self._score(single.evaluate, (self.spec.network, losses), variables, split)

    def count_confusion(
        self, variables: Variables, split: Examples
    ) -> Int32[Array, "replicas classes classes"]:
        """Count the images of each true class (rows) by predicted class (columns)."""
        return self._score(single.count_confusion, (self.spec.network,), variables, split)

    def predict(
        self, variables: Variables, images: UInt8[np.ndarray, "n height width channel"]
    ) -> Float32[np.ndarray, "replicas n classes"]:
        """Return the logits of images on the host; the devices get one batch at a time.

        The last batch is filled with black images. The size of a batch is that of an evaluation
        or a power of two below it: a process that predicts any numbers of images compiles few
        programs.
        """
        num_images, num_devices = len(images), self.mesh.shape[BATCH_AXIS]
        power = 1 << (num_images - 1).bit_length()
        batch_size = _round_up(min(EVALUATION_BATCH, power), num_devices)
        logits = []
        for start in range(0, num_images, batch_size):
            batch = images[start : start + batch_size]
            filled = np.pad(batch, [(0, batch_size - len(batch)), *[(0, 0)] * 3])
            rows = self.put(filled, (BATCH_AXIS,))
            static = (self.spec.network,)
            computed = _run(single.predict, static, self.mesh, (variables,), (rows,))
            logits.append(np.asarray(computed)[:, : len(batch)])
        return np.concatenate(logits, axis=1)

    def observe(self, state: TrainState, metrics: Metrics, step: int) -> TrainState:
        """Give each rule its evaluation after an epoch; ``state`` is donated."""
        mapped = self.hyperparams, metrics
        return _run(single.observe, (self.spec,), self.mesh, mapped, (step,), carry=state)

    def _score(
        self,
        function: Callable[..., Any],
        static: tuple[Any, ...],
        variables: Variables,
        split: Examples,
    ) -> Any:
        """Apply a function to the batches of indices of an evaluation."""
        batches = _evaluation_batches(self.mesh, len(split.labels))
        at_once = has_convolutions(self.spec.network, split.images.shape[1:])
        mapped, unmapped = (variables,), (split, batches)
        return _run(function, static, self.mesh, mapped, unmapped, at_once=at_once)


@lru_cache(MOST_COMPILED)
def _evaluation_batches(mesh: Mesh, num_examples: int) -> Int32[Array, "batches batch"]:
    """Return the indices of a split in batches that the devices divide evenly.

    The last batch is filled with indices beyond the split.
    """
    batch_size = _round_up(min(EVALUATION_BATCH, num_examples), mesh.shape[BATCH_AXIS])
    indices = np.arange(_round_up(num_examples, batch_size), dtype=np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXIS))
    return jax.device_put(indices.reshape(-1, batch_size), sharding)


def estimate_memory(spec: Spec, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Estimate the bytes that one replica needs on a device, and those of its state.

    Besides the state there are gradients and updates of the parameters, and the activations of a
    batch, forward and backward.
    """
    zeros: Any = (np.zeros((), dtype) for dtype in Hyperparams.DTYPES)
    state = jax.eval_shape(partial(single.init_state, spec, image_shape), Hyperparams(*zeros))
    state_bytes = count_bytes(state)
    num_rows = max(2 * spec.batch_size, EVALUATION_BATCH)
    activations = num_rows * measure(spec.network, image_shape).activation_bytes
    return state_bytes + 2 * count_bytes(state.params) + activations, state_bytes


@lru_cache(MOST_COMPILED)
def has_convolutions(network: Network, image_shape: tuple[int, int, int]) -> bool:
    """Return whether a network calls XLA's convolutions."""
    images = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
    variables = init_shapes(network, image_shape)
    apply = partial(network.apply, key=None)
    return "conv_general_dilated" in str(jax.make_jaxpr(apply)(variables, images))


def _align(array: np.ndarray) -> Any:
    """Copy an array to an address that is a multiple of ``ALIGNMENT``."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    aligned = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    aligned[...] = array
    return aligned


def _round_up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


def _run(
    function: Callable[..., Any],
    static: tuple[Any, ...],
    mesh: Mesh,
    mapped: tuple[Any, ...],
    unmapped: tuple[Any, ...] = (),
    carry: Any = None,
    axes: tuple[str | None, ...] = (REPLICA_AXIS,),
    *,
    at_once: bool = False,
) -> Any:
    """Apply a function of one training to each replica; ``axes`` are those of the results.

    Accelerators apply it to all replicas at once, and a CPU if ``at_once``.

    The function gets the static arguments; then its replica of ``mapped``, which have a replica
    axis; then ``unmapped``. ``carry`` is a replica of what it returns anew, and is donated: it
    comes after the first of ``mapped``.
    """
    return compiled(function, static, mesh, axes, at_once=at_once)(carry, mapped, unmapped)


@lru_cache(MOST_COMPILED)
def compiled(
    function: Callable[..., Any],
    static: tuple[Any, ...],
    mesh: Mesh,
    axes: tuple[str | None, ...],
    *,
    at_once: bool,
) -> Any:
    """Return the compiled form of a function; see ``_run``.

    What is static is no argument of ``jit``: JAX would compare it at each call, and turn a
    KeyboardInterrupt that comes meanwhile into a ValueError.
    """

    def apply(carry: Any, mapped: tuple[Any, ...], unmapped: tuple[Any, ...]) -> Any:
        first, *others = mapped
        given = () if carry is None else (carry,)
        return function(*static, first, *given, *others, *unmapped)

    is_cpu = mesh.devices.flat[0].platform == "cpu"

    def apply_to_rows(carry: Any, mapped: tuple[Any, ...], unmapped: tuple[Any, ...]) -> Any:
        # An axis of length 1 makes XLA's matrix products on the CPU slower.
        has_several = len(jax.tree.leaves(mapped)[0]) > 1
        each = all_at_once if (at_once or not is_cpu) and has_several else one_by_one
        return each(apply, carry, mapped, unmapped)

    rows, whole = PartitionSpec(REPLICA_AXIS), PartitionSpec()
    share = jax.shard_map(
        apply_to_rows, mesh=mesh, in_specs=(rows, rows, whole), out_specs=rows,
        axis_names={REPLICA_AXIS}, check_vma=False,
    )  # fmt: skip

    def _run(carry: Any, mapped: tuple[Any, ...], unmapped: tuple[Any, ...]) -> Any:
        results = share(carry, mapped, unmapped)
        return lax.with_sharding_constraint(results, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.jit(_run, donate_argnums=0)


def all_at_once(
    apply: Callable[..., Any], carry: Any, mapped: tuple[Any, ...], unmapped: tuple[Any, ...]
) -> Any:
    """Apply a function to all replicas at once: an accelerator needs much to do."""
    return jax.vmap(apply, in_axes=(0, 0, None))(carry, mapped, unmapped)


def one_by_one(
    apply: Callable[..., Any], carry: Any, mapped: tuple[Any, ...], unmapped: tuple[Any, ...]
) -> Any:
    """Apply a function to one replica after the other: each has the bits of a training alone.

    On a CPU that is also faster, because what a replica needs stays in the caches. The barriers
    keep the compiler from fusing a training with what depends on the number of replicas.
    """

    def apply_to(row: Any, carry: Any) -> Any:
        own = jax.tree.map(
            lambda array: lax.dynamic_index_in_dim(array, row, keepdims=False), (carry, mapped)
        )
        return lax.optimization_barrier(apply(*lax.optimization_barrier(own), unmapped))

    def replace(row: Any, carry: Any) -> Any:
        return jax.tree.map(
            lambda array, own: lax.dynamic_update_index_in_dim(array, own, row, 0),
            carry,
            apply_to(row, carry),
        )

    num_replicas = len(jax.tree.leaves(mapped)[0])
    if num_replicas == 1:  # XLA keeps a loop of one iteration, and convolutions in it are slow
        return jax.tree.map(lambda array: array[None], apply_to(0, carry))
    if carry is None:
        return lax.map(lambda row: apply_to(row, None), np.arange(num_replicas))
    return lax.fori_loop(0, num_replicas, replace, carry)
