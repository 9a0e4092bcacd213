"""The plateau rule, made safe: optax's own transform, fed one value at a time.

``optax.contrib.reduce_on_plateau`` decides; this module adds what the transform leaves open. The
state is float32 whatever the parameters' type (under bfloat16 parameters optax's would be bfloat16
and take a slow improvement for a plateau), an accuracy is turned round, and every value comes back
as an ``Observation`` that says what the rule saw. The ranges of the settings, some of which optax
accepts and inverts, are held by ``config``.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32
from optax.contrib import ReduceLROnPlateauState

from plateau_train import config


class Observation(NamedTuple):
    """What the rule saw in one value, and what it weighed it against."""

    complete: Bool[Array, "*steps"]  # whether the value completed an observation
    value: Float32[Array, "*steps"]  # mean of the values in the window so far
    best: Float32[Array, "*steps"]  # lowest observation before this one; inf before the first
    to_beat: Float32[Array, "*steps"]  # threshold that it had to stay below
    waited: Int32[Array, "*steps"]  # observations in a row without improvement, this one included
    scale: Float32[Array, "*steps"]  # after the observation


class PlateauRule(NamedTuple):
    """The settings of the rule, as ``config.PlateauSettings`` holds them: plain numbers, hashable.

    Those of several trainings in one program are traced; optax takes no others so.
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

    def to_beat(self, best: Float32[Array, "*n"]) -> Float32[Array, "*n"]:
        """Return the threshold that an observation must stay below to count as an improvement."""
        return (1 - self.rtol) * best - self.atol

    def observe(
        self, state: ReduceLROnPlateauState, value: Float32[Array, ""]
    ) -> tuple[ReduceLROnPlateauState, Observation]:
        """Feed one value, lower is better.

        A value that is not finite counts as no improvement, so callers refuse it first. A
        negative value would count as an improvement on itself when ``rtol`` is above 0 (optax
        pull request 1767); losses and 1 - accuracy are never negative.
        """
        updated = self._transform.update((), state, value=value)[1]
        new_state = cast(ReduceLROnPlateauState, updated)
        # optax types its fields as anything that could become an array; they are arrays.
        count, best = jnp.asarray(state.count), jnp.asarray(state.best_value)
        # The transform forgets the mean as it closes the window; this is its own formula.
        mean = (count * jnp.asarray(state.avg_value) + value) / (count + 1)
        to_beat = self.to_beat(best)
        observation = Observation(
            complete=count + 1 == self.accumulation_size,
            value=mean,
            best=best,
            to_beat=to_beat,
            waited=jnp.where(mean < to_beat, 0, jnp.asarray(state.plateau_count) + 1),
            scale=jnp.asarray(new_state.scale),
        )
        return new_state, observation

    @property
    def _transform(self) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.reduce_on_plateau(**self._asdict())


def as_loss(metric: config.Metric, value: jax.Array) -> Float32[Array, ""]:
    """Turn a metric into what the rule lowers the rate for: optax knows no maximum mode."""
    return jnp.asarray(1 - value if metric == "accuracy" else value, jnp.float32)
