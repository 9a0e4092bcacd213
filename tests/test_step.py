"""One training: the step, the steps of an epoch, evaluation, random numbers, and the model."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    any_key,
    first_row,
    make_examples,
    make_garments_spec,
    make_replicas,
    make_settings,
    make_spec,
    make_training,
    take_epoch,
)

from plateau_train import config
from plateau_train.numerics import step as numerics
from plateau_train.numerics.model import Variables, measure
from plateau_train.numerics.spec import Hyperparams, Optimizer, Spec
from plateau_train.numerics.step import Examples
from plateau_train.training.models import load_network

GOLDEN_ORDER = [4680, 17049, 1343, 10394]
GOLDEN_KERNEL = [-0.02064866, 0.03974656, 0.02842904]
PLAIN_SGD = config.OptimizerSettings(optimizer="sgd", momentum=0.0)


def init(spec: Spec, hyperparams: Hyperparams) -> Any:
    return numerics.init_state(spec, IMAGE_SHAPE, hyperparams)


def plain_optax_loop(
    spec: Spec, rule: Any, params: Any, batches: list[Examples], maybe_jit: Callable[..., Any]
) -> Any:
    """Train as the documentation of optax does; only the model is ours."""
    arguments = rule.arguments_of_optax
    optimizer = optax.chain(optax.adam(0.01), optax.contrib.reduce_on_plateau(**arguments))
    opt_state = optimizer.init(params)

    def loss_of(params, batch):
        logits = numerics.predict(spec.network, Variables(params, {}), batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    @maybe_jit
    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, loss

    losses, scales = [], []
    for batch in batches:
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
        scales.append(opt_state[1].scale)
    return params, jnp.stack(losses), jnp.stack(scales)


# Without jit a step takes half a second: the lax.cond of optax is compiled in each of them.
@pytest.mark.parametrize(("is_jitted", "num_steps"), [(False, 12), (True, 120)])
def test_steps_agree_with_a_chain_of_adam_and_reduce_on_plateau(is_jitted, num_steps):
    rtol = 0.02 if is_jitted else 0.3
    spec, hyperparams = make_training(patience=1, accumulation_size=2, rtol=rtol)
    split = make_examples(40)
    order = np.random.default_rng(1).integers(0, 40, (num_steps, 8))
    batches = [Examples(split.images[rows], split.labels[rows]) for rows in order]
    state = init(spec, hyperparams)
    maybe_jit = jax.jit if is_jitted else (lambda step: step)
    expected = plain_optax_loop(spec, spec.rule(hyperparams), state.params, batches, maybe_jit)

    take_step = maybe_jit(partial(numerics.train_step, spec, hyperparams))
    losses, scales = [], []
    for number, batch in enumerate(batches):
        state, record = take_step(state, batch, number, any_key())
        losses.append(record.metrics.loss)
        scales.append(record.observation.scale)
        assert state.scale == record.observation.scale
    actual = (state.params, jnp.stack(losses), jnp.stack(scales))

    assert len({scale.item() for scale in scales}) >= 4, "too few drops to compare anything"
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if is_jitted:
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_a_new_scale_already_acts_on_the_step_that_completes_the_window():
    spec, hyperparams = make_training(
        patience=1, accumulation_size=1, rtol=0.9, optimizer=PLAIN_SGD
    )
    split = make_examples(8)
    state = init(spec, hyperparams)
    state, _ = numerics.train_step(
        spec, hyperparams, state, split, 0, any_key()
    )  # improves on infinity
    dropped, record = numerics.train_step(spec, hyperparams, state, split, 1, any_key())
    patient = hyperparams._replace(patience=jnp.int32(99))
    kept, _ = numerics.train_step(spec, patient, state, split, 1, any_key())
    assert record.observation is not None
    assert (record.observation.scale, dropped.scale, kept.scale) == (0.5, 0.5, 1)
    for before, half, whole in zip(
        *map(jax.tree.leaves, (state.params, dropped.params, kept.params)), strict=True
    ):
        np.testing.assert_allclose(half - before, (whole - before) / 2, rtol=1e-3, atol=1e-7)


def test_in_train_accuracy_mode_the_rule_observes_one_minus_the_accuracy():
    spec, hyperparams = make_training(mode="train-accuracy", accumulation_size=1)
    take_step = jax.jit(partial(numerics.train_step, spec))
    _, record = take_step(hyperparams, init(spec, hyperparams), make_examples(8), 0, any_key())
    assert record.observation.value == 1 - record.metrics.accuracy
    assert record.observation.value != record.metrics.loss


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        (
            config.OptimizerSettings(optimizer="adamw", weight_decay=0.5),
            optax.adamw(0.01, weight_decay=0.5),
        ),
        (config.OptimizerSettings(optimizer="sgd", momentum=0.5), optax.sgd(0.01, momentum=0.5)),
        (PLAIN_SGD, optax.sgd(0.01)),
    ],
    ids=["adamw", "momentum", "sgd"],
)
def test_weight_decay_and_momentum_reach_the_optimizer(settings, plain):
    results = []
    for optimizer in (Optimizer.from_settings(settings).make(0.01), plain):
        params: Any = {"weight": jnp.array([1.0, -2.0])}
        state = optimizer.init(params)
        for grad in ([0.1, 0.2], [0.3, -0.1]):
            updates, state = optimizer.update({"weight": jnp.array(grad)}, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params["weight"])
    np.testing.assert_array_equal(*results)


def test_the_streams_of_random_numbers_are_those_of_published_runs():
    """Golden values: after a change no run can be repeated.

    They may only be updated with an entry under Numerics in CHANGELOG.md.
    """
    streams = ("INIT", "SHUFFLE", "NETWORK", "AUGMENT")
    assert [getattr(numerics, f"{name}_STREAM") for name in streams] == [0, 1, 2, 3]
    order = numerics.epoch_order(60_000, 128, seed=0, epoch=1)
    assert order[0, :4].tolist() == GOLDEN_ORDER
    settings = config.Settings()
    spec = make_garments_spec(settings, 60_000)
    hyperparams = first_row(Hyperparams.from_settings([settings]))
    params: Any = numerics.init_state(spec, (28, 28, 1), hyperparams).params
    np.testing.assert_allclose(params["Dense_0"]["kernel"][0, :3], GOLDEN_KERNEL, rtol=1e-5)


def test_a_seed_as_an_unsigned_integer_gives_the_key_of_the_plain_integer():
    for seed in (0, 7, 2**31 - 1):
        plain, unsigned = (
            jax.random.key_data(numerics.derive_key(kind(seed), 1, 2)) for kind in (int, np.uint32)
        )
        np.testing.assert_array_equal(plain, unsigned)


def test_keys_do_not_depend_on_the_default_type_of_jax():
    keys = []
    for kind in ("threefry2x32", "rbg"):
        with jax.default_prng_impl(kind):
            key = numerics.derive_key(3, numerics.SHUFFLE_STREAM, 5)
        keys.append(jax.random.key_data(key))
    np.testing.assert_array_equal(*keys)


def test_the_largest_seed_is_a_seed_of_its_own():
    half, largest = (
        numerics.epoch_order(50, 10, np.uint32(seed), epoch=1) for seed in (2**31 - 1, 2**32 - 1)
    )
    assert not np.array_equal(half, largest)


def test_parameters_depend_on_the_seed_and_on_nothing_else():
    spec, hyperparams = make_training()
    first, again, other = (
        init(spec, hyperparams._replace(seed=jnp.uint32(seed))).params for seed in (0, 0, 1)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    assert not np.array_equal(first["Dense_0"]["kernel"], other["Dense_0"]["kernel"])


def test_pixels_are_divided_by_255():
    spec, hyperparams = make_training(hidden_sizes=())
    variables = init(spec, hyperparams).variables
    logits = numerics.predict(spec.network, variables, jnp.full((1, *IMAGE_SHAPE), 255, jnp.uint8))
    np.testing.assert_allclose(
        logits[0], variables.params["Dense_0"]["kernel"].sum(axis=0), rtol=1e-5
    )


def test_the_default_model_has_two_hidden_layers_of_1000_units():
    network = load_network(config.ModelSettings(), 10, (28, 28, 1))
    assert network.title == "MLP 784-1000-1000-10"
    assert measure(network, (28, 28, 1)).num_params == 785 * 1000 + 1001 * 1000 + 1001 * 10


@pytest.mark.parametrize("hidden_sizes", [(), (5,), (5, 7)])
def test_a_model_describes_itself_as_counted_by_hand(hidden_sizes):
    network = make_spec(make_settings(hidden_sizes=hidden_sizes)).network
    sizes = (math.prod(IMAGE_SHAPE), *hidden_sizes, NUM_CLASSES)
    layers = list(itertools.pairwise(sizes))
    assert network.title == "MLP " + "-".join(map(str, sizes))
    num_params, activation_bytes = measure(network, IMAGE_SHAPE)
    assert num_params == sum(inputs * outputs + outputs for inputs, outputs in layers)
    # The gradient needs the pixels and, of each hidden unit, its value before and after relu in
    # float32 and its sign.
    assert activation_bytes == 4 * sizes[0] + (4 + 4 + 1) * sum(hidden_sizes)


def test_an_epoch_has_each_image_at_most_once_and_whole_batches():
    order = np.asarray(numerics.epoch_order(60_000, 128, seed=0, epoch=1))
    assert order.shape == (468, 128)
    assert len(np.unique(order)) == 468 * 128
    assert order.min() >= 0
    assert order.max() < 60_000


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = {
        np.asarray(numerics.epoch_order(50, 10, seed, epoch)).tobytes()
        for seed in (0, 1)
        for epoch in (1, 2, 3)
    }
    assert len(orders) == 6
    again = np.asarray(numerics.epoch_order(50, 10, seed=1, epoch=3)).tobytes()
    assert again in orders


def test_training_lowers_the_loss_and_leaves_a_record_of_each_step():
    replicas, split = make_replicas(make_settings(accumulation_size=5)), make_examples(80)
    state = replicas.init(IMAGE_SHAPE)
    losses = []
    for epoch in range(1, 31):
        state, records = take_epoch(replicas, state, split, epoch)
        assert records.metrics.loss.shape == (1, 10)
        assert records.observation is not None
        new = np.diff(records.observation.number[0], prepend=2 * (epoch - 1))
        assert np.flatnonzero(new).tolist() == [4, 9]
        losses.append(np.asarray(records.metrics.loss).mean())
    assert losses[-1] < 0.8 * losses[0]


def test_outside_the_train_modes_only_an_evaluation_reaches_the_rule():
    settings = make_settings(mode="test-accuracy", patience=1)
    replicas, split = make_replicas(settings), make_examples(80)
    state, records = take_epoch(replicas, replicas.init(IMAGE_SHAPE), split, 1)
    assert records.observation is None
    assert (state.plateau.best_value, state.plateau.count) == (np.inf, 0)
    metrics = replicas.evaluate(state.variables, split)
    expected = np.float32(1 - metrics.accuracy)
    state = replicas.observe(state, metrics, 9)
    assert state.plateau.observation.value == expected
    assert (state.plateau.best_value, state.plateau.scale, state.scale) == (expected, 1, 1)
    state = replicas.observe(state, metrics, 19)
    assert (state.plateau.scale, state.scale, state.plateau.observation.wait) == (0.5, 0.5, 1)


def test_bfloat16_parameters_stay_bfloat16_and_the_rule_stays_float32():
    spec, hyperparams = make_training(accumulation_size=1)
    state = init(spec, hyperparams)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    opt_state = spec.optimizer.make(hyperparams.learning_rate).init(params)
    state = state._replace(params=params, opt_state=opt_state)
    state, _ = jax.jit(partial(numerics.train_step, spec))(
        hyperparams, state, make_examples(8), 0, any_key()
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert state.plateau.best_value.dtype == jnp.float32


@pytest.mark.parametrize("name", config.OptimizerName.__args__)
def test_every_optimizer_on_offer_trains(name):
    settings = make_settings(
        optimizer=config.OptimizerSettings(optimizer=name, learning_rate=0.003)
    )
    replicas, split = make_replicas(settings), make_examples(80)
    state = replicas.init(IMAGE_SHAPE)
    before = replicas.evaluate(state.variables, split).loss
    for epoch in range(1, 9):
        state, _ = take_epoch(replicas, state, split, epoch)
    assert replicas.evaluate(state.variables, split).loss < before


def test_bfloat16_products_leave_everything_else_float32():
    exact, hyperparams = make_training(hidden_sizes=(64,))
    rough = exact._replace(network=exact.network._replace(precision="bfloat16"))
    split, state = make_examples(8), init(exact, hyperparams)
    expected, record = numerics.train_step(exact, hyperparams, state, split, 0, any_key())
    actual, rough_record = numerics.train_step(rough, hyperparams, state, split, 0, any_key())
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, (expected, record))
    assert jax.tree.map(lambda leaf: leaf.dtype, (actual, rough_record)) == dtypes
    loss, rough_loss = float(record.metrics.loss), float(rough_record.metrics.loss)
    assert rough_loss == pytest.approx(loss, rel=0.02)
    assert rough_loss != loss
    assert numerics.predict(rough.network, state.variables, split.images).dtype == jnp.float32


def test_float32_products_have_the_highest_precision_and_tf32_a_lower_one():
    spec, hyperparams = make_training()
    state = init(spec, hyperparams)
    precisions = {}
    for precision in ("float32", "tf32"):
        changed = spec._replace(network=spec.network._replace(precision=precision))
        lowered = jax.jit(numerics.train_step, static_argnums=0).lower(
            changed, hyperparams, state, make_examples(8), 0, any_key()
        )
        precisions[precision] = {
            line.split("precision = [")[1].split(",")[0]
            for line in lowered.as_text().splitlines()
            if "dot_general" in line and "precision" in line
        }
    assert precisions == {"float32": {"HIGHEST"}, "tf32": {"HIGH"}}
