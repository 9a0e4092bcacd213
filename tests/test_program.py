from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plateau_train import config
from plateau_train.numerics import program as numerics
from plateau_train.numerics.program import Examples, Program

IMAGE_SHAPE = (4, 4, 1)
GOLDEN_ORDER = [4680, 17049, 1343, 10394]
GOLDEN_KERNEL = [-0.02064866, 0.03974656, 0.02842904]


def examples(num_examples, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (num_examples, *IMAGE_SHAPE), np.uint8)
    return Examples(
        jnp.asarray(images), jnp.asarray(random.integers(0, 3, num_examples), jnp.int32)
    )


def make_program(*, batch_size=8, hidden_sizes=(16,), optimizer=None, **plateau):
    settings = config.Settings(
        data=config.DataSettings(batch_size=batch_size),
        model=config.ModelSettings(hidden_sizes=hidden_sizes),
        optimizer=optimizer or config.OptimizerSettings(),
        plateau=config.PlateauSettings(**plateau),
    )
    return Program.from_config(settings, num_classes=3)


def take_epoch(program, state, split, epoch, *, seed=0, cuts=()):
    """Train an epoch, cut into chunks before the given steps."""
    order = numerics.epoch_order(
        seed, epoch, num_examples=len(split.labels), batch_size=program.batch_size
    )
    records = numerics.empty_records(program, state, split, len(order))
    for start, stop in zip((0, *cuts), (*cuts, len(order)), strict=True):
        state, records = numerics.train_steps(program, state, records, split, order, start, stop, 1)
    return state, records, order


def plain_optax_loop(program, params, batches, maybe_jit):
    """What someone would write from optax's documentation, with no code of ours but the model."""
    optimizer = optax.chain(
        optax.adam(0.01), optax.contrib.reduce_on_plateau(**program.rule._asdict())
    )
    opt_state = optimizer.init(params)

    def loss_of(params, batch):
        logits = program.model.apply({"params": params}, batch.images)
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


# Without jit each step takes half a second: optax's lax.cond is compiled anew each time.
@pytest.mark.parametrize(("jitted", "num_steps"), [(False, 12), (True, 120)])
def test_steps_agree_with_a_chain_of_adam_and_reduce_on_plateau(jitted, num_steps):
    rtol = 0.02 if jitted else 0.3
    program = make_program(patience=1, accumulation_size=2, rtol=rtol)
    split = examples(40)
    order = np.random.default_rng(1).integers(0, 40, (num_steps, 8))
    batches = [Examples(split.images[rows], split.labels[rows]) for rows in order]
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    maybe_jit = jax.jit if jitted else (lambda step: step)
    expected = plain_optax_loop(program, state.params, batches, maybe_jit)

    step = maybe_jit(partial(numerics.train_step, program))
    losses, scales = [], []
    for batch in batches:
        state, record = step(state, batch)
        losses.append(record.metrics.loss)
        scales.append(record.observation.scale)
    actual = (state.params, jnp.stack(losses), jnp.stack(scales))

    assert len({scale.item() for scale in scales}) >= 4, "too few drops to compare anything"
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jitted:
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_a_new_scale_already_acts_on_the_step_that_closed_the_window():
    program = make_program(
        patience=1, optimizer=config.OptimizerSettings(optimizer="sgd", momentum=0.0)
    )
    program = program._replace(rule=program.rule._replace(accumulation_size=1, rtol=0.9))
    split = examples(8)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    state, _ = numerics.train_step(program, state, split)  # improves on infinity
    full = program._replace(rule=program.rule._replace(patience=99))
    dropped, record = numerics.train_step(program, state, split)
    kept, _ = numerics.train_step(full, state, split)
    assert record.observation.scale == 0.5
    for before, half, whole in zip(
        *map(jax.tree.leaves, (state.params, dropped.params, kept.params)), strict=True
    ):
        np.testing.assert_allclose(half - before, (whole - before) / 2, rtol=1e-3, atol=1e-7)


def test_in_train_accuracy_mode_the_rule_is_fed_one_minus_the_accuracy_of_the_step():
    program = make_program(mode="train-accuracy", accumulation_size=1)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    _, record = jax.jit(partial(numerics.train_step, program))(state, examples(8))
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
        (config.OptimizerSettings(optimizer="sgd", momentum=0.0), optax.sgd(0.01)),
    ],
)
def test_weight_decay_and_momentum_reach_the_optimizer(settings, plain):
    results = []
    for optimizer in (numerics.Optimizer.from_settings(settings).at(0.01), plain):
        params = {"weight": jnp.array([1.0, -2.0])}
        state = optimizer.init(params)
        for grad in ([0.1, 0.2], [0.3, -0.1]):
            updates, state = optimizer.update({"weight": jnp.array(grad)}, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params["weight"])
    np.testing.assert_array_equal(*results)


def test_the_streams_of_random_numbers_are_those_that_published_runs_were_made_with():
    """Golden values: a change means that no run can be repeated any more.

    They may only be updated with an entry under Numerics in CHANGELOG.md.
    """
    assert numerics.INIT_STREAM != numerics.SHUFFLE_STREAM
    order = numerics.epoch_order(0, 1, num_examples=60_000, batch_size=128)
    assert order[0, :4].tolist() == GOLDEN_ORDER
    program = Program.from_config(config.Settings(), num_classes=10)
    kernel = numerics.init_state(program, 0, (28, 28, 1)).params["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel[0, :3], GOLDEN_KERNEL, rtol=1e-5)


def test_every_seed_that_is_allowed_works_and_small_ones_are_what_they_were_as_plain_ints():
    for seed in (0, 7, 2**31 - 1):
        plain, unsigned = (
            jax.random.key_data(numerics.derive_key(kind(seed), 1, 2)) for kind in (int, np.uint32)
        )
        np.testing.assert_array_equal(plain, unsigned)
    orders = [
        numerics.epoch_order(np.uint32(seed), 1, num_examples=50, batch_size=10)
        for seed in (2**31 - 1, 2**32 - 1)
    ]
    assert not np.array_equal(*orders)


def test_parameters_depend_on_the_seed_and_on_nothing_else():
    program = make_program()
    first, again, other = (numerics.init_state(program, seed, IMAGE_SHAPE) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, again.params))
    kernels = [state.params["Dense_0"]["kernel"] for state in (first, other)]
    assert not np.array_equal(*kernels)


def test_pixels_are_divided_by_255():
    program = make_program(hidden_sizes=())
    params = numerics.init_state(program, 0, IMAGE_SHAPE).params
    images = jnp.full((1, *IMAGE_SHAPE), 255, jnp.uint8)
    logits = program.model.apply({"params": params}, images)
    np.testing.assert_allclose(logits[0], params["Dense_0"]["kernel"].sum(axis=0), rtol=1e-5)


def test_the_default_model_has_two_hidden_layers_of_1000_units():
    program = Program.from_config(config.Settings(), num_classes=10)
    shapes = jax.eval_shape(lambda: numerics.init_state(program, 0, (28, 28, 1)).params)
    assert {name: layer["kernel"].shape for name, layer in shapes.items()} == {
        "Dense_0": (784, 1000),
        "Dense_1": (1000, 1000),
        "Dense_2": (1000, 10),
    }


@pytest.mark.parametrize("num_examples", [7, 8, 9, 25])  # B-1, B, B+1, 3B+1
def test_evaluation_scores_every_image_once(num_examples):
    program = make_program(batch_size=8)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    split = examples(num_examples)
    metrics = numerics.evaluate(program, state.params, split)
    logits = np.asarray(program.model.apply({"params": state.params}, split.images), np.float64)
    labels = np.asarray(split.labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(num_examples), labels]
    assert metrics.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics.accuracy == pytest.approx((logits.argmax(axis=1) == labels).mean())


def test_each_image_is_seen_at_most_once_an_epoch_and_the_incomplete_batch_is_dropped():
    order = np.asarray(numerics.epoch_order(0, 1, num_examples=60_000, batch_size=128))
    assert order.shape == (468, 128)
    assert len(np.unique(order)) == 468 * 128
    assert order.min() >= 0
    assert order.max() < 60_000


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = {
        np.asarray(numerics.epoch_order(seed, epoch, num_examples=50, batch_size=10)).tobytes()
        for seed in (0, 1)
        for epoch in (1, 2, 3)
    }
    assert len(orders) == 6
    again = np.asarray(numerics.epoch_order(1, 3, num_examples=50, batch_size=10)).tobytes()
    assert again in orders


def test_an_epoch_of_chunks_is_traced_once_and_has_the_bits_of_an_uncut_one(monkeypatch):
    traces = []
    train_step = numerics.train_step

    def counting(*arguments):
        traces.append(1)
        return train_step(*arguments)

    # A batch size that no other test has, or its compilation could be used.
    program = make_program(batch_size=6, accumulation_size=4, patience=1)
    split = examples(80)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    copy = jax.tree.map(jnp.copy, state)
    records = numerics.empty_records(program, state, split, 13)
    order = numerics.epoch_order(0, 1, num_examples=80, batch_size=6)
    monkeypatch.setattr(numerics, "train_step", counting)
    whole = numerics.train_steps(
        program, state, jax.tree.map(jnp.copy, records), split, order, 0, 13, 1
    )
    for start, stop in ((0, 1), (1, 9), (9, 13)):
        copy, records = numerics.train_steps(program, copy, records, split, order, start, stop, 1)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves((copy, records)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(traces) == 1


def test_training_lowers_the_loss_and_leaves_a_record_of_each_step():
    program = make_program(accumulation_size=5)
    split = examples(80)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    losses = []
    for epoch in range(1, 31):
        state, records, _ = take_epoch(program, state, split, epoch, cuts=(3,))
        losses.append(np.asarray(records.metrics.loss).mean())
        assert np.asarray(records.observation.complete).sum() == 2
    assert losses[-1] < 0.8 * losses[0]


def test_outside_the_train_modes_steps_leave_the_rule_alone_and_an_evaluation_feeds_it_once():
    program = make_program(mode="test-accuracy", patience=1)
    split = examples(80)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    state, records, _ = take_epoch(program, state, split, 1)
    assert records.observation is None
    assert jax.tree.all(jax.tree.map(np.array_equal, state.plateau, program.rule.init()))
    metrics = numerics.evaluate(program, state.params, split)
    accuracy = float(metrics.accuracy)
    state, observation = numerics.advance(program, state, metrics)
    assert observation.value == np.float32(1 - accuracy)
    assert state.plateau.best_value == np.float32(1 - accuracy)
    assert state.plateau.scale == 1.0
    state, observation = numerics.advance(program, state, metrics)
    assert (state.plateau.scale, observation.waited) == (0.5, 1)


def test_under_bfloat16_parameters_the_updates_stay_bfloat16_and_the_rule_float32():
    program = make_program(accumulation_size=1)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    state = state._replace(params=params, opt_state=program.transform.init(params))
    state, _ = jax.jit(partial(numerics.train_step, program))(state, examples(8))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert state.plateau.best_value.dtype == jnp.float32


@pytest.mark.parametrize("name", config.OptimizerName.__args__)
def test_every_optimizer_on_offer_trains(name):
    program = make_program(optimizer=config.OptimizerSettings(optimizer=name, learning_rate=0.003))
    split = examples(80)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    before = float(numerics.evaluate(program, state.params, split).loss)
    for epoch in range(1, 9):
        state, _, _ = take_epoch(program, state, split, epoch)
    assert float(numerics.evaluate(program, state.params, split).loss) < before


def test_bfloat16_products_keep_parameters_moments_loss_and_rule_in_float32():
    exact = make_program(hidden_sizes=(64,))
    rough = exact._replace(model=exact.model.clone(precision="bfloat16"))
    split = examples(8)
    state = numerics.init_state(exact, 0, IMAGE_SHAPE)
    expected, record = numerics.train_step(exact, state, split)
    actual, rough_record = numerics.train_step(rough, state, split)
    types = jax.tree.map(lambda leaf: leaf.dtype, (expected, record))
    assert jax.tree.map(lambda leaf: leaf.dtype, (actual, rough_record)) == types
    loss, rough_loss = float(record.metrics.loss), float(rough_record.metrics.loss)
    assert rough_loss == pytest.approx(loss, rel=0.02)
    assert rough_loss != loss
    assert numerics.find_logits(rough, state.params, split.images).dtype == jnp.float32


def test_float32_products_are_asked_for_in_full_and_tf32_is_less():
    state = numerics.init_state(make_program(), 0, IMAGE_SHAPE)
    asked = {}
    for precision in ("float32", "tf32"):
        program = make_program()
        program = program._replace(model=program.model.clone(precision=precision))
        lowered = jax.jit(numerics.train_step, static_argnums=0).lower(program, state, examples(8))
        asked[precision] = {
            line.split("precision = [")[1].split(",")[0]
            for line in lowered.as_text().splitlines()
            if "dot_general" in line and "precision" in line
        }
    assert asked == {"float32": {"HIGHEST"}, "tf32": {"HIGH"}}
