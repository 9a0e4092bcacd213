"""One training: its state, a step, the steps of an epoch, an evaluation, an observation.

Every function is pure and written for one training, without a replica axis; ``replicas`` adds the
axis, ``jit`` and the devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, Integer, Key, PyTree, UInt8

from plateau_train.config import OnDrop
from plateau_train.numerics.augmentation import augment
from plateau_train.numerics.model import Network, Params, Variables
from plateau_train.numerics.plateau import Observation, PlateauState, as_loss
from plateau_train.numerics.spec import Hyperparams, Spec

# Streams of random numbers. Nothing random is carried from epoch to epoch: each key is derived
# from (seed, stream, epoch) and, for what differs between steps, the step in the epoch, so any
# epoch can be repeated. Never renumber them.
INIT_STREAM = 0
SHUFFLE_STREAM = 1
NETWORK_STREAM = 2  # dropout
AUGMENT_STREAM = 3

KEY_TYPE = "threefry2x32"  # whatever the default is: another type gives other numbers

Seed = Integer[Array, ""] | np.unsignedinteger | int
Step = Integer[Array, ""] | int
Losses = Callable[[Float[Array, "n classes"], Int32[Array, " n"]], Float32[Array, " n"]]


class Examples(NamedTuple):
    """The images and labels of a batch, or of a whole split."""

    images: UInt8[Array, "n height width channel"]
    labels: Int32[Array, " n"]


class Metrics(NamedTuple):
    """Means over images: the loss in nats, the accuracy as a fraction."""

    loss: Float32[Array, "*steps"]
    accuracy: Float32[Array, "*steps"]


class StepRecord(NamedTuple):
    """The results of a step; those of an epoch have a leading axis of steps."""

    metrics: Metrics
    observation: Observation | None  # the last one; None where the rule observes evaluations


class TrainState(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: optax.OptState
    plateau: PlateauState
    # The scale of the last step; before the first step, or after an evaluation that lowered it, the
    # scale of the next one.
    scale: Float32[Array, ""]
    # What the network itself changes in a step, such as running averages; empty for most networks.
    model_state: PyTree[Array]
    # By name, what a drop brings back of the fields above: as it was at the best observation.
    best: dict[str, PyTree[Array]]
    is_restored_next: Bool[Array, ""]  # whether the next step begins with it

    @property
    def variables(self) -> Variables:
        return Variables(self.params, self.model_state)


class Carry(NamedTuple):
    """What the steps of an epoch change: the state, and the records with a row for each step."""

    state: TrainState
    records: StepRecord


# The fields of a state that a drop brings back.
RESTORED: dict[OnDrop, tuple[str, ...]] = {
    "keep": (),
    "restore-params": ("params", "model_state"),
    "restore-best": ("params", "model_state", "opt_state"),
}


def derive_key(seed: Seed, stream: int, epoch: Step) -> Key[Array, ""]:
    """Derive the key of one stream in one epoch."""
    key = jax.random.key(seed, impl=KEY_TYPE)
    return jax.random.fold_in(jax.random.fold_in(key, stream), epoch)


def init_state(
    spec: Spec, image_shape: tuple[int, int, int], hyperparams: Hyperparams
) -> TrainState:
    """Return the state before the first step."""
    key = derive_key(hyperparams.seed, INIT_STREAM, 0)
    params, model_state = spec.network.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    opt_state = spec.optimizer.make(hyperparams.learning_rate).init(params)
    plateau, first_step = spec.rule(hyperparams).init(), jnp.zeros((), jnp.int32)
    scale = spec.schedule.scale(first_step, plateau.scale, hyperparams.min_scale)
    state = TrainState(params, opt_state, plateau, scale, model_state, {}, jnp.zeros((), bool))
    return state._replace(best={name: getattr(state, name) for name in RESTORED[spec.on_drop]})


def epoch_order(
    num_examples: int, batch_size: int, seed: Seed, epoch: Step
) -> Int32[Array, "steps batch"]:
    """Shuffle all examples into batches of indices; drop the last incomplete batch."""
    num_steps = num_examples // batch_size
    order = jax.random.permutation(derive_key(seed, SHUFFLE_STREAM, epoch), num_examples)
    return order[: num_steps * batch_size].reshape(num_steps, batch_size)


def predict(
    network: Network, variables: Variables, images: UInt8[Array, "n height width channel"]
) -> Float32[Array, "n classes"]:
    """Return the logits of images in evaluation."""
    logits, _ = network.apply(variables, images, None)
    return logits


def training_losses(
    logits: Float[Array, "n classes"], labels: Int32[Array, " n"]
) -> Float32[Array, " n"]:
    """Return the loss of each image in training, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def evaluation_losses(
    logits: Float[Array, "n classes"], labels: Int32[Array, " n"]
) -> Float32[Array, " n"]:
    """Return the cross-entropy of each image, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def score(
    losses: Losses, logits: Float[Array, "n classes"], labels: Int32[Array, " n"]
) -> tuple[Float32[Array, " n"], Bool[Array, " n"]]:
    """Return the loss of each image, and whether its class has the largest logit."""
    return losses(logits, labels), logits.argmax(axis=-1) == labels


def train_step(
    spec: Spec,
    hyperparams: Hyperparams,
    state: TrainState,
    batch: Examples,
    step: Step,
    key: Key[Array, ""],
) -> tuple[TrainState, StepRecord]:
    """Take one optimizer step at the learning rate times the scale.

    In the train modes the rule observes the metric of the step first, and a new scale already acts
    on the step that completes the window, as in ``optax.chain(adam, reduce_on_plateau)``. The step
    after a drop begins with what the drop brings back. ``key`` is for the network, such as its
    dropout.
    """
    state = restore_best(state)

    def mean_loss(params: Any) -> tuple[Array, tuple[Array, PyTree[Array]]]:
        variables = Variables(params, state.model_state)
        logits, model_state = spec.network.apply(variables, batch.images, key)
        losses, hits = score(training_losses, logits, batch.labels)
        return losses.mean(), (hits, model_state)

    params = spec.optimizer.gradient_params(state.params, state.opt_state)
    (loss, (hits, model_state)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    metrics = Metrics(loss, hits.mean())
    observed = metrics if spec.observes_steps else None
    state = observe(spec, hyperparams, state, observed, step)
    learning_rate = state.scale * hyperparams.learning_rate
    params, opt_state = spec.optimizer.update(learning_rate, grads, state.opt_state, params)
    state = state._replace(params=params, opt_state=opt_state, model_state=model_state)
    observation = state.plateau.observation if spec.observes_steps else None
    return state, StepRecord(metrics, observation)


def observe(
    spec: Spec, hyperparams: Hyperparams, state: TrainState, metrics: Metrics | None, step: Step
) -> TrainState:
    """Give the rule the metrics of a step or of the evaluation after it, if any.

    A schedule that does not observe the step keeps the rule as it is. Also sets the scale of the
    step, with what the rule has just observed.
    """
    plateau = state.plateau
    if metrics is not None:
        value = as_loss(spec.metric, getattr(metrics, spec.metric))
        observes = spec.schedule.observes(jnp.asarray(step))
        observed = spec.rule(hyperparams).observe(plateau, value)
        plateau = jax.tree.map(lambda new, old: jnp.where(observes, new, old), observed, plateau)
        state = keep_best(state, is_better=plateau.best_value != state.plateau.best_value)
        is_drop = plateau.scale < state.plateau.scale
        state = state._replace(is_restored_next=state.is_restored_next | is_drop)
    scale = spec.schedule.scale(jnp.asarray(step), plateau.scale, hyperparams.min_scale)
    return state._replace(plateau=plateau, scale=scale)


def keep_best(state: TrainState, *, is_better: Bool[Array, ""]) -> TrainState:
    """Keep what a drop brings back, if the observation is the best one so far."""
    current = {name: getattr(state, name) for name in state.best}
    best = lax.cond(is_better, lambda: current, lambda: state.best)
    return state._replace(best=best)


def restore_best(state: TrainState) -> TrainState:
    """Bring back what was kept, if there was a drop since the last step.

    Not at the drop itself: the state after an epoch is the one that was evaluated.
    """
    current = {name: getattr(state, name) for name in state.best}
    restored = lax.cond(state.is_restored_next, lambda: state.best, lambda: current)
    return state._replace(**restored, is_restored_next=jnp.zeros((), bool))


def train_steps(
    spec: Spec,
    num_steps: int | None,
    hyperparams: Hyperparams,
    carry: Carry,
    order: Int32[Array, "steps batch"],
    split: Examples,
    start: Step,
    stop: Step,
    epoch: Step,
) -> Carry:
    """Take the steps ``start`` to ``stop - 1`` of an epoch; steps count from 0, epochs from 1.

    With ``num_steps``, the static number of these steps, the loop is compiled for it; else one
    compilation serves any number. Both give the same bits.
    """
    # With static bounds fori_loop is a scan, of which the compiler knows the length.
    first, end = (0, num_steps) if num_steps is not None else (start, stop)

    def body(index: Array, carry: Carry) -> Carry:
        position = index if num_steps is None else start + index
        return take_step(spec, hyperparams, carry, order, split, position, epoch)

    return lax.fori_loop(first, end, body, carry)


def take_step(
    spec: Spec,
    hyperparams: Hyperparams,
    carry: Carry,
    order: Int32[Array, "steps batch"],
    split: Examples,
    index: Step,
    epoch: Step,
) -> Carry:
    """Take one step of an epoch."""
    state, records = carry
    batch = take(split, order[index])
    network_key, augment_key = (
        jax.random.fold_in(derive_key(hyperparams.seed, stream, epoch), index)
        for stream in (NETWORK_STREAM, AUGMENT_STREAM)
    )
    batch = batch._replace(images=augment(spec.augment, augment_key, batch.images))
    step = (epoch - 1) * len(order) + index
    state, record = train_step(spec, hyperparams, state, batch, step, network_key)
    records = jax.tree.map(lambda rows, row: rows.at[index].set(row), records, record)
    return Carry(state, records)


def take(split: Examples, indices: Int32[Array, " batch"]) -> Examples:
    """Gather the examples of a batch."""
    return Examples(split.images[indices], split.labels[indices])


def sum_batches(
    split: Examples,
    batches: Int32[Array, "batches batch"],
    zeros: PyTree[Array],
    tally: Callable[[Examples, Bool[Array, " n"]], PyTree[Array]],
) -> PyTree[Array]:
    """Sum ``tally(batch, mask)`` over batches of indices; indices beyond the split are masked."""
    last = len(split.labels) - 1

    def body(number: Array, sums: PyTree[Array]) -> PyTree[Array]:
        indices = batches[number]
        batch = take(split, jnp.minimum(indices, last))
        return jax.tree.map(jnp.add, sums, tally(batch, indices <= last))

    return lax.fori_loop(0, len(batches), body, zeros)


def evaluate(
    network: Network,
    losses: Losses,
    variables: Variables,
    split: Examples,
    batches: Int32[Array, "batches batch"],
) -> Metrics:
    """Score every image of a split once: sums under a mask, one division at the end."""

    def tally(batch: Examples, mask: Array) -> tuple[Array, Array]:
        values, hits = score(losses, predict(network, variables, batch.images), batch.labels)
        return jnp.where(mask, values, 0).sum(), (hits & mask).sum()

    zeros = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
    loss, hits = sum_batches(split, batches, zeros, tally)
    return Metrics(loss / len(split.labels), hits / len(split.labels))


def count_confusion(
    network: Network,
    variables: Variables,
    split: Examples,
    batches: Int32[Array, "batches batch"],
) -> Int32[Array, "classes classes"]:
    """Count the images of each true class (rows) by predicted class (columns)."""

    def tally(batch: Examples, mask: Array) -> Array:
        predicted = predict(network, variables, batch.images).argmax(axis=-1)
        return zeros.at[batch.labels, predicted].add(mask.astype(jnp.int32))

    zeros = jnp.zeros((network.num_classes,) * 2, jnp.int32)
    return sum_batches(split, batches, zeros, tally)
