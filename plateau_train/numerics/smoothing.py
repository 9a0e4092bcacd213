"""Smoothing of the observations that the plateau rule compares."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from plateau_train.config import Smoothing


def init_recent(smoothing: Smoothing) -> Float32[Array, " recent"]:
    """Return the values that a smoothing needs from earlier observations, before the first one.

    They are the last K observations of a median, the latest last, and the average of ``ema``.
    """
    size = {"none": 0, "ema": 1, "median": int(smoothing.number)}[smoothing.kind]
    return jnp.full(size, np.inf, jnp.float32)


def smooth(
    smoothing: Smoothing,
    recent: Float32[Array, " recent"],
    value: Float32[Array, ""],
    is_first: Bool[Array, ""],
) -> tuple[Float32[Array, " recent"], Float32[Array, ""]]:
    """Return the values for the next observation, and this observation smoothed."""
    if smoothing.kind == "none":
        return recent, value
    if smoothing.kind == "ema":
        average = smoothing.number * recent[0] + (1 - smoothing.number) * value
        average = jnp.where(is_first, value, average)
        return average[None], average
    recent = jnp.append(recent[1:], value)
    # Those that are not there yet are infinite, and sorted behind the others.
    ordered, num_values = jnp.sort(recent), jnp.isfinite(recent).sum()
    middle = ordered[jnp.stack([(num_values - 1) // 2, num_values // 2])]
    return recent, (0.5 * middle).sum()  # a sum of halves cannot overflow
