"""The plateau rule against optax, measured sequences, a closed form and a NumPy reference."""

import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import ReduceLROnPlateauState

from plateau_train import config
from plateau_train.errors import ConfigError
from plateau_train.numerics import plateau
from plateau_train.numerics.plateau import PlateauRule, as_loss

# To the types of optax a state is any pytree.
reduce_on_plateau: Any = plateau.reduce_on_plateau
OPTAX_FIELDS = ReduceLROnPlateauState._fields

# Facts measured by stepping optax 0.2.8; see "what" in the file.
SEQUENCES = json.loads((Path(__file__).parent / "plateau_sequences.json").read_text())["rows"]


def rule(**settings):
    return PlateauRule.from_settings(config.PlateauSettings(**{"mode": "test-loss", **settings}))


# Where operations are fused, a product and a sum may be rounded once. Without, bits are comparable.
unfused = {"xla_disable_hlo_passes": "fusion"}

# The arguments that vary in one compiled program.
TRACED = ("patience", "cooldown", "accumulation_size", "min_scale")


@jax.jit(static_argnums=(0, 1), compiler_options=unfused)
def step_all(make, fixed, traced, values):
    """Return the state of a transformation after each of the values."""
    transform = make(**dict(fixed), **traced)

    def step(state, value):
        state = transform.update((), state, value=value)[1]
        return state, state

    return jax.lax.scan(step, transform.init(jnp.float32(0)), values)[1]


def states_of(values, make=reduce_on_plateau, traced=None, **fixed):
    columns = jnp.asarray(values, jnp.float32)
    return jax.device_get(step_all(make, tuple(fixed.items()), traced or {}, columns))


def observe_all(rule, values):
    """Apply the rule to the values; return the states as NumPy columns."""
    fixed = rule._asdict()
    traced = {name: fixed.pop(name) for name in TRACED}
    return states_of(values, traced=traced, **fixed)


def reference(values, rule):
    """Compute the scale after each value with twenty lines of NumPy."""
    f = np.float32
    scale, best, wait, cooldown, window, scales = f(1), f(np.inf), 0, 0, [], []
    for value in values:
        window.append(value)
        if len(window) == rule.accumulation_size:
            mean = f(0)
            for count, member in enumerate(window):
                mean = (f(count) * mean + f(member)) / f(count + 1)
            window = []
            improved = mean < f(1 - rule.rtol) * best - f(rule.atol)
            best = mean if improved else best
            wait = 0 if improved else wait + 1
            if cooldown > 0:
                cooldown, wait = cooldown - 1, 0
            elif wait == rule.patience:
                scale = max(scale * f(rule.factor), f(rule.min_scale))
                cooldown, wait = rule.cooldown, 0
        scales.append(scale)
    return scales


@pytest.mark.parametrize("row", SEQUENCES, ids=lambda row: row["id"])
def test_the_rule_reproduces_the_measured_sequences(row):
    settings = {key: row[key] for key in row.keys() - {"id", "values", "scales"}}
    assert observe_all(rule(**settings), row["values"]).scale.tolist() == pytest.approx(
        row["scales"]
    )


@given(
    patience=st.integers(1, 4),
    cooldown=st.integers(0, 4),
    window=st.integers(1, 3),
    value=st.floats(0.015625, 1e6, width=32),
)
def test_drops_on_a_constant_metric_match_the_closed_form(patience, cooldown, window, value):
    scales = observe_all(
        rule(patience=patience, cooldown=cooldown, accumulation_size=window), [value] * 60
    ).scale
    drops = [number for number in range(1, 61) if scales[number - 1] < ([1.0, *scales])[number - 1]]
    expected = [1 + patience + k * (patience + cooldown) for k in range(60)]
    assert drops == [window * number for number in expected if window * number <= 60]


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 2.0, 3.0]), max_size=24),
    patience=st.integers(1, 3),
    cooldown=st.integers(0, 2),
    window=st.integers(1, 3),
    rtol=st.sampled_from([0.0, 1e-4, 0.25]),
    atol=st.sampled_from([0.0625, 0.25]),
    min_scale=st.sampled_from([0.0, 0.3]),
)
def test_the_rule_agrees_with_a_numpy_reference_on_random_sequences(
    values, patience, cooldown, window, rtol, atol, min_scale
):
    counts = {"patience": patience, "cooldown": cooldown, "accumulation_size": window}
    settings = rule(**counts, rtol=rtol, atol=atol, min_scale=min_scale)
    # All sequences have one length, so that each setting is compiled once.
    padded = [*values, *[1.0] * (24 - len(values))]
    assert observe_all(settings, padded).scale.tolist() == reference(padded, settings)


def test_an_observation_has_the_values_that_the_rule_compared():
    values = [4, 2, 3, 3, 2, 4, 1, 1]
    seen = observe_all(rule(patience=2, accumulation_size=2, rtol=0.25), values).observation
    assert seen.number.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    assert seen.value[1::2].tolist() == [3, 3, 3, 1]
    assert seen.best[1::2].tolist() == [np.inf, 3, 3, 3]
    assert seen.threshold[1::2].tolist() == [np.inf, 2.25, 2.25, 2.25]
    assert seen.wait[1::2].tolist() == [0, 1, 2, 0]
    absolute = observe_all(rule(patience=9, rtol=0.25, atol=0.5), [4, 2.6, 2.4]).observation
    assert absolute.threshold.tolist() == [np.inf, 2.5, 2.5]
    assert absolute.wait.tolist() == [0, 1, 0]
    assert seen.scale_before[1::2].tolist() == [1, 1, 1, 0.5]
    assert seen.scale[1::2].tolist() == [1, 1, 0.5, 0.5]


def test_an_observation_in_a_cooldown_improves_the_best_value_and_never_waits():
    states = observe_all(rule(patience=1, cooldown=2), [1, 1, 1, 0.5, 0.5])
    assert states.observation.wait.tolist() == [0, 1, 0, 0, 1]
    assert states.cooldown_count.tolist() == [0, 2, 1, 0, 2]
    assert states.best_value.tolist() == [1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("patience", 0),  # optax inverts: it cuts on every improvement
        ("accumulation_size", 0),  # optax never fires
        ("min_scale", 1.5),  # optax raises the rate
        ("factor", 1.0),
        ("factor", 0.0),
        ("rtol", 1.0),  # to beat 0 times infinity is to beat NaN
        ("rtol", -0.1),
        ("atol", -1.0),
        ("cooldown", -1),
    ],
)
def test_settings_that_optax_inverts_are_refused_with_flag_and_range(setting, value):
    flag = "--" + setting.replace("_", "-")
    with pytest.raises(ConfigError) as refused:
        config.resolve({setting: config.RawValue(str(value), "flag")})
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(f"{flag} must be a ")
    assert refused.value.problems[0].endswith(f", got {value}")


def test_a_rising_accuracy_keeps_the_rate_and_a_flat_one_lowers_it():
    rising = [as_loss("accuracy", jnp.float32(0.5 + 0.02 * number)) for number in range(10)]
    flat = [as_loss("accuracy", jnp.float32(0.5))] * 10
    assert observe_all(rule(patience=2), rising).scale[-1] == 1.0
    assert observe_all(rule(patience=2), flat).scale[-1] < 1.0
    assert as_loss("loss", jnp.float32(0.25)) == 0.25


# The transformation

counts = {name: st.integers(1, 4) for name in ("patience", "accumulation_size")}
arguments = st.fixed_dictionaries(
    counts | {"cooldown": st.integers(0, 3), "min_scale": st.sampled_from([0.0, 0.2])}
)
# Factor, rtol and atol, which are static: each triple is compiled once.
triples = st.sampled_from([(0.5, 1e-4, 0.0), (0.7, 0.25, 0.0625), (0.3, 0.0, 0.1)])


def draw_values(seed, num_values=40):
    """Return values that often repeat, and otherwise have all their digits."""
    random = np.random.default_rng(seed)
    fine, coarse = random.standard_cauchy(num_values), random.integers(-3, 4, num_values)
    return np.where(random.random(num_values) < 0.7, fine, coarse).astype(np.float32)


def assert_equal(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@given(triple=triples, traced=arguments, seed=st.integers(0, 2**32 - 1))
def test_it_is_the_rule_of_optax_where_no_value_is_negative(triple, traced, seed):
    fixed = dict(zip(("factor", "rtol", "atol"), triple, strict=True))
    ours, theirs = (
        states_of(abs(draw_values(seed)), make, traced, **fixed)
        for make in (reduce_on_plateau, optax.contrib.reduce_on_plateau)
    )
    for name in OPTAX_FIELDS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


@given(triple=triples, traced=arguments, seed=st.integers(0, 2**32 - 1))
def test_maximizing_values_mirrors_minimizing_their_negatives(triple, traced, seed):
    fixed, values = dict(zip(("factor", "rtol", "atol"), triple, strict=True)), draw_values(seed)
    low = states_of(values, traced=traced, **fixed)
    high = states_of(-values, traced=traced, maximize=True, **fixed)
    turned = {name: -getattr(high, name) for name in ("best_value", "avg_value", "threshold")}
    seen, compared = high.observation, ("raw", "value", "best", "threshold")
    seen = seen._replace(**{name: -getattr(seen, name) for name in compared})
    mirrored = high._replace(**turned, observation=seen, maximize=~high.maximize)
    assert_equal(mirrored, low)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_equal_values_are_a_plateau_whatever_their_sign(value, maximize):
    states = states_of([value] * 4, patience=2, factor=0.5, maximize=maximize)
    assert states.scale.tolist() == [1, 1, 0.5, 0.5]
    better = value + (0.1 if maximize else -0.1)
    assert states_of([value, better], maximize=maximize).best_value[1] == np.float32(better)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_value_that_is_not_finite_changes_nothing(value):
    transform = reduce_on_plateau(patience=1, accumulation_size=3)
    state = transform.init(None)
    for loss in (1.0, 1.0, 1.0, 1.0, 3e38):
        _, state = transform.update((), state, value=loss)
    scaled, after = transform.update(jnp.ones(2), state, value=value)
    assert_equal(after, state)
    assert_equal(scaled, state.scale * jnp.ones(2))


def test_a_smaller_patience_or_window_than_a_restored_state_has_still_fires():
    state = reduce_on_plateau(patience=9).init(None)._replace(plateau_count=jnp.int32(5))
    _, after = reduce_on_plateau(patience=3).update(
        (), state._replace(best_value=jnp.float32(1), threshold=jnp.float32(1)), value=1.0
    )
    assert (after.scale, after.patience) == (jnp.float32(0.1), 3)
    waiting = state._replace(count=jnp.int32(5))
    _, after = reduce_on_plateau(accumulation_size=3).update((), waiting, value=1.0)
    assert after.observation.number == 1


def test_it_is_the_same_without_jit():
    values = draw_values(0, 16)
    arguments = {"patience": 1, "accumulation_size": 3, "rtol": 0.2, "atol": 0.1}
    transform = reduce_on_plateau(**arguments)
    state, states = transform.init(None), []
    for value in values:
        _, state = transform.update((), state, value=value)
        states.append(state)
    assert len({id(leaf) for leaf in jax.tree.leaves(state)}) == len(jax.tree.leaves(state))
    rows = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    assert_equal(rows, states_of(values, **arguments))


def test_replicas_with_their_own_arguments_equal_single_ones():
    rows = np.stack([draw_values(seed) for seed in range(3)])
    traced = {
        "patience": np.array([1, 2, 3], np.int32),
        "min_scale": np.array([0, 0.1, 0.2], np.float32),
    }
    together = jax.vmap(lambda row, own: step_all(reduce_on_plateau, (), own, row))(rows, traced)
    for index, row in enumerate(rows):
        own = {name: column[index] for name, column in traced.items()}
        assert_equal(
            jax.tree.map(lambda leaf, index=index: leaf[index], together),
            states_of(row, traced=own),
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_state_is_float32_and_updates_keep_their_type(dtype):
    with jax.enable_x64(dtype == "float64"):
        params = {"weight": jnp.ones(3, dtype)}
        transform = reduce_on_plateau(
            np.float64(0.5), patience=np.int64(1), min_scale=jnp.ones(()) / 4
        )
        state = transform.init(params)
        expected = jax.tree.map(jax.typeof, state)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32", "bool"}
        step = jax.jit(transform.update, donate_argnums=1)
        for value in (jnp.ones((), dtype), 1, 1.0, np.float64(1)):
            updates, state = step(params, state, value=value)
            assert updates["weight"].dtype == dtype
            assert jax.tree.map(jax.typeof, state) == expected
        assert (state.scale, updates["weight"][0]) == (0.25, 0.25)


def test_a_slow_improvement_of_bfloat16_parameters_is_no_plateau():
    values = [1 - 0.0005 * number for number in range(20)]
    assert states_of(values, patience=2).scale.tolist() == [1.0] * 20


def test_a_stored_state_continues_with_the_same_bits():
    transform = reduce_on_plateau(patience=1, accumulation_size=3)
    first, second = jnp.split(jnp.asarray(draw_values(1)), 2)

    @jax.jit(compiler_options=unfused)
    def steps(state, values):
        def step(state, value):
            return transform.update((), state, value=value)[1], None

        return jax.lax.scan(step, state, values)[0]

    state = steps(transform.init(None), first)
    leaves, structure = jax.tree.flatten(state)
    restored = jax.tree.unflatten(structure, [np.array(leaf) for leaf in leaves])
    assert_equal(steps(restored, second), steps(state, second))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"patience": 0}, "patience must be a whole number from 1 to 1,000,000,000, or epochs"),
        ({"patience": np.int32(0)}, "patience must be a whole number from 1"),
        ({"patience": jnp.float32(2.5)}, "patience must be a whole number from 1"),
        ({"patience": True}, "patience must be a whole number from 1 to 1,000,000,000, or epochs"),
        ({"cooldown": -1}, "cooldown must be a whole number from 0 to 1,000,000,000, or epochs"),
        ({"accumulation_size": 0}, "accumulation_size must be a whole number from 1"),
        ({"factor": 0.0}, "factor must be a number above 0 below 1, got 0.0"),
        ({"factor": 1}, "factor must be a number above 0 below 1, got 1"),
        ({"factor": np.nan}, "factor must be a number above 0 below 1, got nan"),
        ({"rtol": 1.0}, "rtol must be a number from 0 below 1, got 1.0"),
        ({"atol": np.inf}, "atol must be a number from 0 to 1,000,000, got inf"),
        ({"min_scale": 1.5}, "min_scale must be a number from 0 below 1, got 1.5"),
        ({"maximize": 0.5}, "maximize must be true or false, got 0.5"),
        ({"rtol": 0}, "rtol and atol are both 0: one of them must be above 0"),
    ],
)  # fmt: skip
def test_an_argument_out_of_its_range_is_refused_by_its_name(arguments, problem):
    with pytest.raises(ConfigError) as refused:
        reduce_on_plateau(**arguments)
    (said,) = refused.value.problems
    assert said.startswith(problem)
    assert refused.value.hint == "help(plateau_train.reduce_on_plateau) explains each argument"


@pytest.mark.parametrize(("known", "traced"), [("rtol", "atol"), ("atol", "rtol")])
def test_a_traced_argument_is_no_part_of_the_check(known, traced):
    """Which of them are 0 is not known while they are traced."""

    @jax.jit
    def first_threshold(value):
        rule = reduce_on_plateau(**{known: 0.0, traced: value})
        state = rule.update((), rule.init(()), value=jnp.float32(1))[1]
        return state.threshold

    assert first_threshold(0.25) == 0.75


def test_maximize_is_true_or_false_whatever_its_number():
    for value in (2, np.bool_(True)):
        rule = reduce_on_plateau(rtol=0, atol=0.25, maximize=value)
        assert rule.update((), rule.init(()), value=jnp.float32(1))[1].threshold == 1.25


def test_the_first_arguments_are_those_of_optax_with_its_defaults_and_the_others_are_keywords():
    signature = inspect.signature(reduce_on_plateau).parameters
    keywords = [name for name, each in signature.items() if each.kind == each.KEYWORD_ONLY]
    ours, theirs = (
        [(each.name, each.default) for each in inspect.signature(make).parameters.values()]
        for make in (reduce_on_plateau, optax.contrib.reduce_on_plateau)
    )
    assert ours[: len(theirs)] == theirs
    assert [name for name, _ in ours[len(theirs) :]] == keywords
