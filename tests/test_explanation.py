"""What ``explain`` says of a state, and the example that prints it."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import plateau_train as pt
from plateau_train.errors import ConfigError

EXAMPLE = Path(__file__).parents[1] / "docs" / "nnx_loop.py"


def explain_after(*values, **arguments):
    transform = pt.reduce_on_plateau(**arguments)
    state = transform.init({})
    for value in values:
        _, state = transform.update((), state, value=value)
    return pt.explain(state).splitlines()


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        (
            [],
            [
                "no observation yet",
                "wait 0/2, scale 1",
                "the next observation sets the best value",
            ],
        ),
        (
            [0.5],
            [
                "observation 1 was 0.5",
                "wait 0/2, scale 1",
                "the next observation improves if it is below 0.375",
            ],
        ),
        (
            [0.5, 0.25],
            [
                "observation 2 was below 0.375 (best 0.5); it was 0.25",
                "wait 0/2, scale 1",
                "the next observation improves if it is below 0.1875",
            ],
        ),
        (
            [0.5, 0.4],
            [
                "observation 2 was not below 0.375 (best 0.5); it was 0.4",
                "wait 1/2, scale 1",
                "the next observation improves if it is below 0.375",
            ],
        ),
        (
            [0.5, 0.4, 0.45],
            [
                "observation 3: scale 1 -> 0.1, because 2 observations in a row were not below "
                "0.375 (best 0.5); the last was 0.45",
                "wait 0/2, cooldown 3, scale 0.1",
                "the next observation improves if it is below 0.375",
            ],
        ),
    ],
)
def test_it_says_what_the_rule_saw_and_what_comes_next(values, lines):
    assert explain_after(*values, patience=2, rtol=0.25, cooldown=3) == lines


def test_where_higher_is_better_an_improvement_is_above():
    assert explain_after(0.5, 0.6, patience=1, rtol=0.5, maximize=True) == [
        "observation 2: scale 1 -> 0.1, because 1 observation was not above 0.75 (best 0.5); "
        "the last was 0.6",
        "wait 0/1, scale 0.1",
        "the next observation improves if it is above 0.75",
    ]


def test_values_that_do_not_fill_a_window_are_counted():
    lines = explain_after(1.0, 2.0, 4.0, 4.0, 4.0, accumulation_size=3)
    assert lines[0] == "observation 1 was 2.33333"
    assert lines[-1] == "values in its window so far: 2"


def test_the_state_is_found_inside_that_of_any_optimizer():
    rule = pt.reduce_on_plateau()
    expected = pt.explain(rule.init({}))
    params = {"weight": jnp.ones(2)}
    nested = optax.MultiSteps(optax.chain(optax.adam(0.1), optax.chain(rule)), 2)
    assert pt.explain(nested.init(params)) == expected
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(optax.adam(0.1), rule), wrt=nnx.Param)
    assert pt.explain(optimizer) == pt.explain(optimizer.opt_state) == expected


def test_a_state_that_cannot_be_explained_is_refused_with_the_way_out():
    rule = pt.reduce_on_plateau()
    foreign = optax.contrib.reduce_on_plateau().init(0.0)
    for tree, number in ((foreign, 0), ((rule.init({}), rule.init({})), 2)):
        with pytest.raises(ConfigError, match=f"there are {number} states of reduce_on_plateau"):
            pt.explain(tree)
    replicas = jax.vmap(rule.init)(jnp.arange(3))
    with pytest.raises(ConfigError, match=r"the shape of its scale is \(3,\)") as refused:
        pt.explain(replicas)
    assert "jax.tree.map(lambda x: x[0], state)" in refused.value.hint
    assert pt.explain(jax.tree.map(lambda x: x[0], replicas)) == pt.explain(rule.init({}))


def test_the_example_of_a_loop_prints_the_reason_of_each_drop():
    ended = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ": scale 1 -> 0.5, because 2 observations in a row were not below " in ended.stdout
