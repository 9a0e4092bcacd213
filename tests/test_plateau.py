"""The plateau rule against measured sequences, a closed form and a NumPy reference."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plateau_train import config
from plateau_train.errors import ConfigError
from plateau_train.numerics.plateau import PlateauRule, as_loss

# Facts measured by stepping optax 0.2.8; see "what" in the file.
SEQUENCES = json.loads((Path(__file__).parent / "plateau_sequences.json").read_text())["rows"]


def rule(**settings):
    return PlateauRule.from_settings(config.PlateauSettings(**{"mode": "test-loss", **settings}))


@jax.jit(static_argnums=0)
def step_all(rule, values):
    return jax.lax.scan(rule.observe, rule.init(), values)


def observe_all(rule, values):
    """Apply the rule to the values; return the observations as NumPy columns."""
    return jax.device_get(step_all(rule, jnp.asarray(values, jnp.float32))[1])


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
    seen = observe_all(rule(patience=2, accumulation_size=2, rtol=0.25), [4, 2, 3, 3, 2, 4, 1, 1])
    assert seen.is_complete.tolist() == [False, True] * 4
    assert seen.value[1::2].tolist() == [3, 3, 3, 1]
    assert seen.best[1::2].tolist() == [np.inf, 3, 3, 3]
    assert seen.threshold[1::2].tolist() == [np.inf, 2.25, 2.25, 2.25]
    assert seen.wait[1::2].tolist() == [0, 1, 2, 0]
    absolute = observe_all(rule(patience=9, rtol=0.25, atol=0.5), [4, 2.6, 2.4])
    assert absolute.threshold.tolist() == [np.inf, 2.5, 2.5]
    assert absolute.wait.tolist() == [0, 1, 0]
    assert seen.scale[1::2].tolist() == [1, 1, 0.5, 0.5]


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


def test_the_state_is_float32_whatever_the_type_of_the_parameters():
    state = rule().init()
    assert {np.asarray(leaf).dtype for leaf in state} == {np.dtype(np.float32), np.dtype(np.int32)}
    # A slow improvement is a plateau in bfloat16, which has 8 bits.
    values = [1 - 0.0005 * number for number in range(20)]
    assert observe_all(rule(patience=2), values).scale.tolist() == [1.0] * 20


def test_a_rising_accuracy_keeps_the_rate_and_a_flat_one_lowers_it():
    rising = [as_loss("accuracy", jnp.float32(0.5 + 0.02 * number)) for number in range(10)]
    flat = [as_loss("accuracy", jnp.float32(0.5))] * 10
    assert observe_all(rule(patience=2), rising).scale[-1] == 1.0
    assert observe_all(rule(patience=2), flat).scale[-1] < 1.0
    assert as_loss("loss", jnp.float32(0.25)) == 0.25
