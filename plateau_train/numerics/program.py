"""What is compiled: one step, the steps of an epoch, one evaluation, one observation.

Everything here is pure. A ``Program`` holds what is fixed while it runs and is hashable, so it is
a static argument of the compiled functions; a ``TrainState`` holds everything that changes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int32, Integer, Key, PyTree, UInt8
from optax.contrib import ReduceLROnPlateauState

from plateau_train import config
from plateau_train.numerics.mesh import keep_everywhere, put_everywhere, share_out
from plateau_train.numerics.model import MLP, init_params
from plateau_train.numerics.plateau import Observation, PlateauRule, as_loss

# Streams of random numbers. Nothing random is carried from epoch to epoch: each key is derived
# from (seed, stream, epoch), so an epoch can be repeated by itself. Never renumber them.
INIT_STREAM = 0
SHUFFLE_STREAM = 1

# Images scored at a time: more than a step takes, as larger products are faster, to a point.
EVALUATION_BATCH = 1000

Seed = Integer[Array, ""] | np.unsignedinteger | int
Params = PyTree[Float[Array, "..."]]


class Examples(NamedTuple):
    """A batch, or a whole split."""

    images: UInt8[Array, "n height width channel"]
    labels: Int32[Array, " n"]


class Metrics(NamedTuple):
    """Means over some images: cross-entropy in nats, and the share of argmax hits."""

    loss: Float32[Array, "*steps"]
    accuracy: Float32[Array, "*steps"]

    def observed(self, metric: config.Metric) -> Float32[Array, ""]:
        """Return the value that the plateau rule is fed for a metric."""
        return as_loss(metric, getattr(self, metric))


class StepRecord(NamedTuple):
    """What a step leaves behind; an epoch's are columns with one row a step."""

    metrics: Metrics
    observation: Observation | None  # None where the rule watches evaluations


class TrainState(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: optax.OptState
    plateau: ReduceLROnPlateauState


class Optimizer(NamedTuple):
    """An optimizer of optax but for its learning rate; hashable."""

    name: config.OptimizerName
    options: tuple[tuple[str, float], ...]

    @classmethod
    def from_settings(cls, settings: config.OptimizerSettings) -> "Optimizer":
        options = {}
        if settings.optimizer in config.DEFAULT_WEIGHT_DECAY:
            options["weight_decay"] = settings.weight_decay
        # A momentum of 0 would still be a buffer as large as the parameters.
        if settings.optimizer in config.DEFAULT_MOMENTUM and settings.momentum > 0:
            options["momentum"] = settings.momentum
        return cls(settings.optimizer, tuple(options.items()))

    def at(self, learning_rate: Float32[Array, ""] | float) -> optax.GradientTransformation:
        """Build it at its base learning rate; the scale comes after it, in ``train_step``.

        Before Adam a scale would have almost no effect, for Adam divides it out again.
        """
        return getattr(optax, self.name)(learning_rate, **dict(self.options))


class Baseline(NamedTuple):
    """A schedule of the scale that observes nothing, to hold the plateau rule against.

    ``step_epochs`` is how many epochs each stair of ``step`` lasts, ``epochs`` the length that
    ``cosine`` is laid over.
    """

    schedule: config.Schedule
    epochs: int
    step_epochs: int
    factor: float
    min_scale: Float32[Array, ""] | float

    @classmethod
    def from_config(cls, settings: config.Settings) -> "Baseline | None":
        """Return None where the plateau rule moves the scale."""
        if settings.optimizer.schedule == "plateau":
            return None
        return cls(
            schedule=settings.optimizer.schedule,
            epochs=settings.run.epochs,
            step_epochs=settings.optimizer.step_epochs,
            factor=settings.plateau.factor,
            min_scale=settings.plateau.min_scale,
        )

    def scale(self, step: Integer[Array, ""], steps_per_epoch: int) -> Float32[Array, ""]:
        """Return the scale that acts on a step; ``step`` is how many were taken before it."""
        if self.schedule == "cosine":
            schedule = optax.cosine_decay_schedule(1, self.epochs * steps_per_epoch, self.min_scale)
        elif self.schedule == "step":
            # Longer than the run is as good as never, and a number that fits into 32 bits.
            every = min(self.step_epochs, self.epochs + 1) * steps_per_epoch
            schedule = optax.exponential_decay(
                1, every, self.factor, staircase=True, end_value=self.min_scale
            )
        else:
            schedule = optax.constant_schedule(1)
        return jnp.asarray(schedule(step), jnp.float32)


class Program(NamedTuple):
    """Everything about training that is fixed when it is compiled.

    But for ``learning_rate`` and what else ``replicas`` puts in their place: there they are traced.
    """

    model: MLP
    optimizer: Optimizer
    learning_rate: Float32[Array, ""] | float
    rule: PlateauRule
    baseline: Baseline | None
    metric: config.Metric  # what the rule watches
    watches_steps: bool  # the train modes feed the rule every step, the others every epoch
    batch_size: int  # over all devices
    mesh: Mesh | None = None  # without one it runs where the arrays are

    @property
    def transform(self) -> optax.GradientTransformation:
        return self.optimizer.at(self.learning_rate)

    @classmethod
    def from_config(
        cls, settings: config.Settings, *, num_classes: int, mesh: Mesh | None = None
    ) -> "Program":
        rule, baseline = PlateauRule.from_settings(settings.plateau), Baseline.from_config(settings)
        return cls(
            model=MLP(settings.model.hidden_sizes, num_classes, settings.model.precision),
            optimizer=Optimizer.from_settings(settings.optimizer),
            learning_rate=settings.optimizer.learning_rate,
            rule=rule if baseline is None else rule._replace(patience=config.LARGEST_COUNT),
            baseline=baseline,
            metric=settings.plateau.metric,
            watches_steps=settings.plateau.split == "train",
            batch_size=settings.data.batch_size,
            mesh=mesh,
        )


def derive_key(seed: Seed, stream: int, epoch: Integer[Array, ""] | int) -> Key[Array, ""]:
    """Derive the key of one stream in one epoch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), epoch)


@partial(jax.jit, static_argnames=("program", "image_shape"))
def init_state(program: Program, seed: Seed, image_shape: tuple[int, int, int]) -> TrainState:
    """Return the state before the first step."""
    params = init_params(program.model, derive_key(seed, INIT_STREAM, 0), image_shape)
    return TrainState(params, program.transform.init(params), program.rule.init())


@partial(jax.jit, static_argnames=("num_examples", "batch_size", "mesh"))
def epoch_order(
    seed: Seed,
    epoch: Integer[Array, ""] | int,
    *,
    num_examples: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Int32[Array, "steps batch"]:
    """Shuffle all examples into batches of indices; the incomplete batch at the end is dropped."""
    num_steps = num_examples // batch_size
    order = jax.random.permutation(derive_key(seed, SHUFFLE_STREAM, epoch), num_examples)
    order = order[: num_steps * batch_size].reshape(num_steps, batch_size)
    return keep_everywhere(mesh, order)


def find_logits(
    program: Program, params: Params, images: UInt8[Array, "n height width channel"]
) -> Float[Array, "n classes"]:
    """Apply the network to images."""
    return jnp.asarray(program.model.apply({"params": params}, images))


def score(
    program: Program, params: Params, examples: Examples
) -> tuple[Float32[Array, " n"], Bool[Array, " n"]]:
    """Return each image's cross-entropy, in nats, and whether its class is the one found."""
    logits = find_logits(program, params, examples.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels)
    return losses, logits.argmax(axis=-1) == examples.labels


def train_step(
    program: Program, state: TrainState, batch: Examples
) -> tuple[TrainState, StepRecord]:
    """Take one step of the optimizer: gradients, optimizer, scale, apply.

    In the train modes the step's own metric is fed to the rule first, and the new scale already
    acts on the step that closed the window, as in ``optax.chain(adam, reduce_on_plateau)``.
    """

    def mean_loss(params: Any) -> tuple[Array, Array]:
        losses, hits = score(program, params, batch)
        return losses.mean(), hits

    (loss, hits), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    metrics = Metrics(loss, hits.mean())
    updates, opt_state = program.transform.update(grads, state.opt_state, state.params)
    plateau, observation = state.plateau, None
    if program.watches_steps:
        plateau, observation = program.rule.observe(plateau, metrics.observed(program.metric))
    updates = jax.tree.map(
        lambda update: jnp.asarray(plateau.scale, update.dtype) * update, updates
    )
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, plateau), StepRecord(metrics, observation)


def empty_records(
    program: Program, state: TrainState, split: Examples, num_steps: int
) -> StepRecord:
    """Return the columns that ``train_steps`` fills in, of the shapes that ``train_step`` gives."""
    batch = jax.tree.map(lambda column: column[: program.batch_size], split)
    _, record = jax.eval_shape(partial(train_step, program), state, batch)
    zeros = jax.tree.map(lambda field: np.zeros((num_steps, *field.shape), field.dtype), record)
    return put_everywhere(program.mesh, zeros)


@partial(jax.jit, static_argnames="program", donate_argnames=("state", "records"))
def train_steps(
    program: Program,
    state: TrainState,
    records: StepRecord,
    split: Examples,
    order: Int32[Array, "steps batch"],
    start: Integer[Array, ""] | int,
    stop: Integer[Array, ""] | int,
    epoch: Integer[Array, ""] | int,
) -> tuple[TrainState, StepRecord]:
    """Take the steps from ``start`` to before ``stop`` of an epoch, without leaving the device.

    The bounds are traced: one compilation serves every chunk of an epoch, and cutting it leaves
    the bits unchanged. ``records`` gets the rows of these steps.
    """
    num_steps = len(order)

    def body(step: Array, carry: tuple[TrainState, StepRecord]) -> tuple[TrainState, StepRecord]:
        state, records = carry
        if program.baseline is not None:
            taken = (epoch - 1) * num_steps + step
            scale = program.baseline.scale(taken, num_steps)
            state = state._replace(plateau=state.plateau._replace(scale=scale))
        state, record = train_step(program, state, take_batch(program, split, order[step]))
        write = lambda column, value: column.at[step].set(value)  # noqa: E731
        return state, jax.tree.map(write, records, record)

    return keep_everywhere(program.mesh, lax.fori_loop(start, stop, body, (state, records)))


def take_batch(program: Program, split: Examples, indices: Int32[Array, " batch"]) -> Examples:
    """Gather a batch, each device its part."""
    indices = share_out(program.mesh, indices)
    return Examples(split.images[indices], split.labels[indices])


def sum_batches(
    program: Program,
    split: Examples,
    zeros: PyTree[Array],
    tally: Callable[[Examples, Bool[Array, " n"]], PyTree[Array]],
) -> PyTree[Array]:
    """Sum what ``tally`` finds in each large batch of a split, beginning with ``zeros``.

    The last one is filled up with the last image, which the mask takes out again.
    """
    num_examples = len(split.labels)
    num_devices = program.mesh.size if program.mesh else 1
    batch_size = -(-min(EVALUATION_BATCH, num_examples) // num_devices) * num_devices
    num_batches = -(-num_examples // batch_size)

    def body(batch_number: Array, sums: PyTree[Array]) -> PyTree[Array]:
        positions = batch_number * batch_size + jnp.arange(batch_size)
        mask = positions < num_examples
        batch = take_batch(program, split, jnp.minimum(positions, num_examples - 1))
        return jax.tree.map(jnp.add, sums, tally(batch, mask))

    return lax.fori_loop(0, num_batches, body, zeros)


@partial(jax.jit, static_argnames="program")
def evaluate(program: Program, params: Params, split: Examples) -> Metrics:
    """Score every image of a split once: sums under a mask, one division at the end."""

    def tally(batch: Examples, mask: Array) -> tuple[Array, Array]:
        losses, hits = score(program, params, batch)
        return jnp.where(mask, losses, 0).sum(), (hits & mask).sum()

    zeros = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
    loss, hits = sum_batches(program, split, zeros, tally)
    num_examples = len(split.labels)
    return Metrics(loss / num_examples, hits / num_examples)


@partial(jax.jit, static_argnames="program")
def count_confusion(
    program: Program, params: Params, split: Examples
) -> Int32[Array, "classes classes"]:
    """Count the images of each true class, a row each, that are taken for each class."""

    def tally(batch: Examples, mask: Array) -> Array:
        predicted = find_logits(program, params, batch.images).argmax(axis=-1)
        return zeros.at[batch.labels, predicted].add(mask.astype(jnp.int32))

    zeros = jnp.zeros((program.model.num_classes,) * 2, jnp.int32)
    return sum_batches(program, split, zeros, tally)


@partial(jax.jit, static_argnames="program", donate_argnames="state")
def advance(
    program: Program, state: TrainState, metrics: Metrics
) -> tuple[TrainState, Observation]:
    """Feed the rule an epoch's evaluation; a new scale acts from the next step on."""
    plateau, observation = program.rule.observe(state.plateau, metrics.observed(program.metric))
    return state._replace(plateau=plateau), observation
