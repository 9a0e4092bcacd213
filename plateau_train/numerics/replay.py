"""The plateau rule over a column of values that are known already."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32
from optax.contrib import ReduceLROnPlateauState

from plateau_train import config
from plateau_train.numerics.plateau import Observation, PlateauRule, as_loss


class Replayed(NamedTuple):
    """What became of each value."""

    observation: Observation
    wait: Int32[Array, "*values"]  # observations in a row that counted, this one included
    cooldown: Int32[Array, "*values"]  # observations of the cooldown that are left after it


def replay(rule: PlateauRule, values: Float32[np.ndarray, " values"]) -> Replayed:
    """Feed the values one by one, lower is better; return NumPy columns."""
    return jax.device_get(_replay(rule, values))


@partial(jax.jit, static_argnames="rule")
def _replay(rule: PlateauRule, values: Float32[Array, " values"]) -> Replayed:
    def feed(
        state: ReduceLROnPlateauState, value: Float32[Array, ""]
    ) -> tuple[ReduceLROnPlateauState, Replayed]:
        new_state, observation = rule.observe(state, value)
        counted = jnp.where(jnp.asarray(state.cooldown_count) > 0, 0, observation.waited)
        wait = jnp.where(observation.complete, counted, state.plateau_count)
        return new_state, Replayed(observation, wait, jnp.asarray(new_state.cooldown_count))

    return lax.scan(feed, rule.init(), values)[1]


def as_losses(
    metric: config.Metric, values: Float32[np.ndarray, " values"]
) -> Float32[np.ndarray, " values"]:
    """Turn a column of a metric into what training feeds the rule, to the last bit."""
    return jax.device_get(jax.vmap(partial(as_loss, metric))(jnp.asarray(values)))
