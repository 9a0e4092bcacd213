"""The schedules that the plateau rule is compared with: the same training with another scale."""

import json
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    IMAGE_SHAPE,
    SMALL_STEPS,
    any_key,
    command,
    iterate_epochs,
    make_examples,
    make_garments_spec,
    make_replicas,
    make_settings,
    make_spec,
    make_training,
    records_of,
    resolve_small,
    resume_run,
    take_epoch,
    train_epochs,
    train_run,
)

from plateau_train import config, data
from plateau_train.api.evaluation import find_checkpoint
from plateau_train.errors import ChangedSettingsError
from plateau_train.numerics import step as numerics
from plateau_train.numerics.model import Variables
from plateau_train.numerics.schedules import make_schedule
from plateau_train.numerics.spec import Optimizer
from plateau_train.numerics.step import Examples
from plateau_train.training.program import Program
from plateau_train.training.state import restore

EAGER = {"patience": "1", "rtol": "0.3"}
STAIRS = {"schedule": "step", "step_epochs": "2", "min_scale": "0.2", "epochs": "6"} | EAGER
COSINE = {
    "schedule": "cosine", "min_scale": "0.1", "epochs": "4", "mode": "test-loss",
    "accumulation_size": "1",
} | EAGER  # fmt: skip


pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def train(tmp_path, capsys):
    """Train in this process, without a plot; return the run and what was printed."""

    def train(**values):
        run = train_run(tmp_path, **values)
        return run, *capsys.readouterr()

    return train


def scales(steps, **values):
    """Return the scales of some steps of a run of 100 steps per epoch."""
    settings = resolve_small(**values).settings
    schedule = make_schedule(settings, 100)
    min_scale = jnp.float32(settings.plateau.min_scale)
    return [float(schedule.scale(jnp.int32(step), jnp.float32(0.7), min_scale)) for step in steps]


PROFILES = {
    "cosine": lambda z: (1 + np.cos(np.pi * z)) / 2,
    "linear": lambda z: 1 - z,
    "rex": lambda z: (1 - z) / (1 / 2 + (1 - z) / 2),
}


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize(("name", "middle"), [("cosine", 1 / 2), ("linear", 1 / 2), ("rex", 2 / 3)])
def test_a_scale_falls_from_1_to_the_minimum_over_all_epochs(name, middle, floor):
    values = {"schedule": name, "epochs": "8", "min_scale": str(floor)}
    steps = np.array([0, 1, 200, 400, 799, 800, 900])
    expected = floor + (1 - floor) * PROFILES[name](np.minimum(steps, 800) / 800)
    assert scales(steps, **values) == pytest.approx(expected.tolist(), abs=1e-6)
    known = [1, floor + (1 - floor) * middle, floor]
    assert scales([0, 400, 800], **values) == pytest.approx(known, abs=1e-6)


def test_one_cycle_rises_from_a_25th_to_1_and_falls_to_almost_0():
    steps, lowest = np.array([0, 1, 239, 240, 241, 400, 799, 800, 900]), 1 / 250_000
    rise = 1 / 25 + 24 / 25 * PROFILES["cosine"](1 - steps / 240)
    fall = lowest + (1 - lowest) * PROFILES["cosine"]((np.minimum(steps, 800) - 240) / 560)
    expected = np.where(steps < 240, rise, fall).tolist()
    actual = scales(steps, schedule="one-cycle", epochs="8", min_scale="0.2")
    assert actual == pytest.approx(expected, abs=1e-6)
    assert (actual[0], actual[3]) == (pytest.approx(0.04), 1)


@pytest.mark.parametrize("name", config.BUDGETED)
@pytest.mark.parametrize("num_steps", [1, 3, 30_000_000])
def test_a_scale_is_at_most_1_and_never_negative(name, num_steps):
    schedule = make_schedule(resolve_small(schedule=name, epochs="1").settings, num_steps)
    steps = np.unique(np.linspace(0, num_steps, 100).astype(np.int32))
    scale = jax.jit(jax.vmap(lambda step: schedule.scale(step, jnp.float32(1), jnp.float32(0))))
    assert 0 <= scale(steps).min() <= scale(steps).max() <= 1


def test_a_step_multiplies_by_the_factor_every_so_many_epochs():
    values = {"schedule": "step", "step_epochs": "2", "factor": "0.5", "epochs": "200"}
    steps = [0, 199, 200, 399, 400, 599, 600, 10_000]
    expected = [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]
    assert scales(steps, **values, min_scale="0.2") == pytest.approx(expected)
    assert scales([400, 600], **values, min_scale="0") == pytest.approx([0.25, 0.125])


def test_an_interval_longer_than_the_run_never_drops():
    values = {"schedule": "step", "epochs": "3", "step_epochs": "1000000000"}
    assert scales([0, 299], **values) == [1, 1]


def test_a_constant_stays_1_and_the_plateau_has_the_scale_of_its_rule():
    assert scales([0, 1, 10_000], schedule="constant", min_scale="0.2") == [1, 1, 1]
    assert scales([0, 1, 10_000], schedule="plateau") == pytest.approx([0.7, 0.7, 0.7])


def test_only_drops_of_the_plateau_are_drops_of_the_scale():
    for name in config.Schedule.__args__:
        schedule = make_schedule(resolve_small(schedule=name).settings, 100)
        assert schedule.follows_rule == (name == "plateau")


def test_half_the_scale_is_half_the_update():
    optimizer = config.OptimizerSettings(
        optimizer="sgd", momentum=0.0, schedule="step", step_epochs=1
    )
    spec, hyperparams = make_training(hidden_sizes=(), optimizer=optimizer)
    state, split = numerics.init_state(spec, IMAGE_SHAPE, hyperparams), make_examples(8)
    moved = []
    for step, scale in ((0, 1), (10, 0.5)):  # 10 steps per epoch
        after, _ = numerics.train_step(spec, hyperparams, state, split, step, any_key())
        assert after.scale == scale
        moved.append(jax.tree.map(lambda new, old: new - old, after.params, state.params))
    for whole, half in zip(*map(jax.tree.leaves, moved), strict=True):
        assert np.abs(whole).max() > 1e-5
        np.testing.assert_allclose(half, whole / 2, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", sorted({*config.Schedule.__args__} - {"plateau"}))
def test_the_rule_observes_beside_a_schedule_and_never_sets_the_scale(name):
    rule: dict[str, Any] = {"patience": 1, "rtol": 0.9, "accumulation_size": 2}
    optimizer = config.OptimizerSettings(schedule=name, step_epochs=1)
    settings = make_settings(optimizer=optimizer, **rule)
    replicas, split = make_replicas(settings), make_examples(80)
    state, scale = replicas.init(IMAGE_SHAPE), 1.0
    for epoch in (1, 2):
        state, records = take_epoch(replicas, state, split, epoch)
        seen = records.observation
        assert seen is not None
        assert seen.number[0, -1] == 5 * epoch
        last = jnp.int32(10 * epoch - 1)
        expected = make_spec(settings).schedule.scale(last, jnp.float32(0), jnp.float32(0))
        scale = float(state.scale[0])
        assert scale == pytest.approx(float(expected), abs=1e-6)
    # With its own patience the rule would have dropped several times, and resets its wait.
    assert seen.scale[0, -1] == 1
    assert seen.wait.max() == 1


def test_a_schedule_that_does_not_observe_a_step_keeps_the_rule_as_it_is(monkeypatch):
    spec, hyperparams = make_training(patience=1, rtol=0.9, accumulation_size=1)
    monkeypatch.setattr(type(spec.schedule), "observes", lambda _, step: step >= 2)
    state, split = numerics.init_state(spec, IMAGE_SHAPE, hyperparams), make_examples(8)
    seen = []
    for step in range(4):
        state, record = numerics.train_step(spec, hyperparams, state, split, step, any_key())
        assert record.observation is not None
        seen.append((int(record.observation.number), float(state.scale)))
    assert seen == [(0, 1), (0, 1), (1, 1), (2, 0.5)]


def test_a_constant_scale_is_a_plateau_that_cannot_drop_bit_for_bit():
    constant = records_of(train_epochs(**EAGER | {"schedule": "constant", "epochs": "3"}))
    patient = records_of(train_epochs(**EAGER | {"patience": "1000000", "epochs": "3"}))
    # The rule beside a constant resets its wait; everything else is equal.
    fields = {"wait", "cooldown"}
    assert [record.model_dump(exclude=fields) for record in constant] == [
        record.model_dump(exclude=fields) for record in patient
    ]
    assert {record.scale for record in constant} == {1.0}


def would_drop(values):
    """Return whether an observation is no improvement, at the ``rtol`` of ``EAGER``."""
    return any(value >= 0.7 * min(values[:number]) for number, value in enumerate(values) if number)


def test_a_run_with_a_schedule_records_observations_and_no_drops(train):
    run, stdout, stderr = train(**STAIRS)
    # Windows of 4 of the 12 steps of an epoch.
    assert [len(record.observations) for record in run.records] == [0, 3, 3, 3, 3, 3, 3]
    observed = [observation for record in run.records for observation in record.observations]
    assert [observation.step for observation in observed] == list(range(4, 73, 4))
    scales = [record.scale for record in run.records]
    assert scales == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25, 0.25])
    assert [record.learning_rate for record in run.records] == pytest.approx(
        [0.03 * scale for scale in scales]
    )
    assert [event.event for event in run.events] == ["ended"]
    assert "because" not in stdout
    assert run.directory.path.name.endswith("-step")
    assert "step: the scale is multiplied by 0.5 every 2 epochs, down to 0.2" in stderr
    assert "the plateau rule only records" in stderr
    assert would_drop([observation.value for observation in observed]), "nothing to compare"


def test_an_evaluation_that_is_no_improvement_does_not_lower_a_cosine():
    records, num_steps = records_of(train_epochs(**COSINE))[1:], 4 * SMALL_STEPS
    # The scale of the last step of each epoch.
    angles = [math.pi * (SMALL_STEPS * record.epoch - 1) / num_steps for record in records]
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(angle)) for angle in angles]
    assert [record.scale for record in records] == pytest.approx(expected, abs=1e-6)
    assert [[seen.value for seen in record.observations] for record in records] == [
        [record.test_loss] for record in records
    ]
    assert would_drop([record.test_loss for record in records]), "nothing to compare"


@pytest.mark.parametrize("values", [COSINE, STAIRS], ids=["cosine", "step"])
def test_a_schedule_continues_from_a_state_bit_for_bit(values):
    settings = resolve_small(**values).settings
    dataset = data.load(settings.data)
    whole = list(iterate_epochs(Program([settings], dataset)))
    rest = list(iterate_epochs(Program([settings], dataset), 3, whole[2].arrays.state))
    assert records_of(rest) == records_of(whole[3:])
    states = (rest[-1].arrays.state, whole[-1].arrays.state)
    for ours, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(ours, theirs)


FREE = partial(config.OptimizerSettings, schedule="schedule-free")


def test_schedule_free_sgd_equals_its_definition_on_a_quadratic():
    optimizer = Optimizer.from_settings(FREE(optimizer="sgd", momentum=0.8))
    curvature, x, total = np.array([1.0, 10.0], np.float32), np.array([1.0, -2.0]), 0.0
    params, z = {"x": jnp.float32(x)}, x
    opt_state, rates = optimizer.make(0.1).init(params), [0.0, 0.02, 0.04, 0.06, 0.03]
    for number, rate in enumerate(rates, start=1):
        y = optimizer.gradient_params(params, opt_state)
        grads = {"x": curvature * y["x"]}
        params, opt_state = optimizer.update(jnp.float32(rate), grads, opt_state, y)
        z = z - rate * curvature * (0.8 * x + 0.2 * z)
        weight = max(rates[:number]) ** 2  # of the largest rate so far
        total += weight
        x = x + (z - x) * (weight / total if total else 0)
        np.testing.assert_allclose(params["x"], x, rtol=1e-5)
    assert abs(z - x).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        (FREE(optimizer="adam"), optax.contrib.schedule_free_adamw(0.01)),
        (
            FREE(optimizer="adamw", weight_decay=0.5),
            optax.contrib.schedule_free_adamw(0.01, weight_decay=0.5),
        ),
        (FREE(optimizer="sgd", momentum=0.8), optax.contrib.schedule_free_sgd(0.01, b1=0.8)),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_schedule_free_steps_agree_with_the_loop_of_optax(settings, plain):
    spec, hyperparams = make_training(optimizer=settings)
    state, split = numerics.init_state(spec, IMAGE_SHAPE, hyperparams), make_examples(40)
    take_step = jax.jit(partial(numerics.train_step, spec))
    y, opt_state = state.params, plain.init(state.params)

    def mean_loss(params, batch):
        logits = numerics.predict(spec.network, Variables(params, {}), batch.images)
        return numerics.training_losses(logits, batch.labels).mean()

    @jax.jit
    def step(y, opt_state, batch):
        updates, opt_state = plain.update(jax.grad(mean_loss)(y, batch), opt_state, y)
        return optax.apply_updates(y, updates), opt_state

    for number in range(20):
        rows = slice(number % 5 * 8, number % 5 * 8 + 8)
        batch = Examples(split.images[rows], split.labels[rows])
        state, _ = take_step(hyperparams, state, batch, number, any_key())
        y, opt_state = step(y, opt_state, batch)
    x = optax.contrib.schedule_free_eval_params(opt_state, y)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    distance = jax.tree.map(lambda one, other: abs(one - other).max(), state.params, y)
    assert max(jax.tree.leaves(distance)) > 1e-3


def test_a_schedule_free_run_is_evaluated_with_its_averages(train):
    run, _, stderr = train(schedule="schedule-free", epochs="2")
    assert "schedule-free: the scale stays 1, and the parameters are averaged" in stderr
    path, flags = run.directory.path, ("--checkpoint=last", "--json")
    evaluated = json.loads(command("evaluate", path, *flags, cwd=path.parent).stdout)
    assert [score["accuracy"] for score in evaluated["scores"]] == [run.records[-1].test_accuracy]

    program = Program([run.settings], data.load(run.settings.data))
    state = restore(find_checkpoint(run.directory, "last"), run.settings.model)
    optimizer, split = program.replicas.spec.optimizer, program.dataset.test
    y = jax.vmap(optimizer.gradient_params)(state.params, state.opt_state)
    accuracies = [
        program.replicas.evaluate(
            Variables(params, {}), Examples(*map(jnp.asarray, split))
        ).accuracy.item()
        for params in (state.params, y)
    ]
    assert accuracies[0] == pytest.approx(run.records[-1].test_accuracy, abs=1e-6)
    assert accuracies[1] != accuracies[0]


def test_a_cosine_cannot_continue_beyond_its_epochs(train):
    run, stdout, stderr = train(**COSINE)
    assert "epoch 4/4" in stdout
    assert "wait" not in stdout, "no drop is near"
    assert run.directory.path.name.endswith("-cosine")
    assert "cosine: the scale falls from 1 to 0.1 over 4 epochs" in stderr
    before = run.directory.config.read_bytes(), run.directory.metrics.read_bytes()
    with pytest.raises(ChangedSettingsError) as refused:
        resume_run(run, epochs="5")
    assert refused.value.exit_code == 2
    assert (
        "--epochs",
        "4",
        "5",
        "--schedule cosine depends on the number of epochs",
    ) in refused.value.table
    assert before == (run.directory.config.read_bytes(), run.directory.metrics.read_bytes())


@pytest.mark.parametrize(
    "values", [STAIRS, EAGER | {"schedule": "constant"}], ids=["step", "constant"]
)
def test_other_schedules_continue_as_if_the_run_had_been_longer(train, values):
    run, *_ = train(**values | {"epochs": "4"})
    longer = train_epochs(**values | {"epochs": "5"})
    assert resume_run(run, epochs="5").records == records_of(longer)


def test_the_schedule_of_a_run_cannot_change(train):
    run, *_ = train(schedule="constant", epochs="1")
    with pytest.raises(ChangedSettingsError) as refused:
        resume_run(run, schedule="step", epochs="2")
    assert ("--schedule", "constant", "step", "it would change the results") in refused.value.table


def test_a_config_without_a_schedule_is_that_of_the_plateau_rule(train):
    run, *_ = train(**EAGER, epochs="1")
    config_file = run.directory.config
    lines = config_file.read_text().splitlines()
    older = [line for line in lines if not line.startswith(("schedule", "step_epochs"))]
    assert len(older) == len(lines) - 2
    config_file.write_text("\n".join(older) + "\n")
    settings = run.directory.settings().settings
    assert (settings.optimizer.schedule, settings.run.seeds) == ("plateau", (0,))
    assert [record.epoch for record in resume_run(run, epochs="2").records] == [0, 1, 2]


def test_the_schedule_is_a_part_of_the_spec():
    settings = resolve_small(schedule="cosine").settings
    few, many = (make_garments_spec(settings, size) for size in (600, 650))
    assert few != many
