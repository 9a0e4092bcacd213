"""The plateau rule: optax's own transform, given one value at a time, and what it compared.

This module adds three things to ``optax.contrib.reduce_on_plateau``. The state is float32 whatever
the type of the parameters: with bfloat16 parameters optax's would be bfloat16, and a slow
improvement would count as a plateau. An accuracy becomes 1 - accuracy. Every value is returned as
an ``Observation``. ``config`` has the ranges of the settings; optax accepts some values outside of
them and then does the opposite.
"""

from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float32, Int32
from optax.contrib import ReduceLROnPlateauState

from plateau_train import config

Values = TypeVar("Values", Float32[Array, "*n"], Float32[np.ndarray, "*n"])


class Observation(NamedTuple):
    """A value given to the rule, and what the rule compared it with."""

    is_complete: Bool[Array, "*steps"]  # whether the value completed an observation
    value: Float32[Array, "*steps"]  # mean of the values in the window so far
    best: Float32[Array, "*steps"]  # lowest observation before this one; inf before the first
    threshold: Float32[Array, "*steps"]  # an improvement is below it
    wait: Int32[Array, "*steps"]  # observations in a row without improvement, this one included
    scale: Float32[Array, "*steps"]  # after the observation


class PlateauRule(NamedTuple):
    """The arguments of optax's transform.

    ``patience``, ``cooldown`` and ``min_scale`` may be traced; optax needs the others as numbers.
    """

    factor: float
    patience: Int32[Array, ""] | int
    cooldown: Int32[Array, ""] | int
    rtol: float
    atol: float
    accumulation_size: int
    min_scale: Float32[Array, ""] | float

    @classmethod
    def from_settings(cls, settings: config.PlateauSettings) -> "PlateauRule":
        return cls(**{name: getattr(settings, name) for name in cls._fields})

    def init(self) -> ReduceLROnPlateauState:
        """Return the state before the first value: scale 1, float32."""
        return cast(ReduceLROnPlateauState, self._transform.init(jnp.zeros((), jnp.float32)))

    def threshold(self, best: Values) -> Values:
        """Return the value that an observation must be below to count as an improvement."""
        return (1 - self.rtol) * best - self.atol

    def observe(
        self, state: ReduceLROnPlateauState, value: Float32[Array, ""]
    ) -> tuple[ReduceLROnPlateauState, Observation]:
        """Give the rule one value; lower is better.

        A value that is not finite counts as no improvement, so callers must refuse it first. A
        negative value would count as an improvement on itself when ``rtol`` is above 0 (optax
        pull request 1767); losses and 1 - accuracy are never negative.
        """
        updated = self._transform.update((), state, value=value)[1]
        new_state = cast(ReduceLROnPlateauState, updated)
        # optax types its fields as anything that could become an array; they are arrays.
        count, best = jnp.asarray(state.count), jnp.asarray(state.best_value)
        # The transform resets the mean at the end of a window; this is its own formula.
        mean = (count * jnp.asarray(state.avg_value) + value) / (count + 1)
        threshold = self.threshold(best)
        observation = Observation(
            is_complete=count + 1 == self.accumulation_size,
            value=mean,
            best=best,
            threshold=threshold,
            wait=jnp.where(mean < threshold, 0, jnp.asarray(state.plateau_count) + 1),
            scale=jnp.asarray(new_state.scale),
        )
        return new_state, observation

    @property
    def _transform(self) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.reduce_on_plateau(**self._asdict())


def as_loss(metric: config.Metric, value: jax.Array) -> Float32[Array, ""]:
    """Return the value of a metric for the rule, lower is better: an accuracy is 1 - accuracy."""
    return jnp.asarray(1 - value if metric == "accuracy" else value, jnp.float32)
