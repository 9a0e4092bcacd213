"""What sets the scale: each schedule is a function of the step, and the plateau rule is one.

The plateau rule runs with every schedule, so that each run records what it would have observed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Integer

from plateau_train.config import Settings

Scalar = Float32[Array, ""]


class Schedule(ABC):
    """A static, hashable description of a schedule; steps are counted from 0."""

    follows_rule = False  # whether the drops of the plateau rule are drops of the scale

    @abstractmethod
    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        """Return the scale of a step; ``rule_scale`` is that of the plateau rule."""

    def observes(self, step: Integer[Array, ""]) -> Bool[Array, ""] | bool:
        """Return whether the plateau rule observes the metric of a step."""
        return True


@dataclass(frozen=True)
class Warmup(Schedule):
    """Another schedule, times a factor that rises linearly from ``start`` to 1.

    The plateau rule observes nothing until the factor is 1.
    """

    schedule: Schedule
    num_steps: int
    start: float

    @property
    def follows_rule(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.schedule.follows_rule

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        factor = optax.linear_schedule(self.start, 1.0, self.num_steps)(step)
        return self.schedule.scale(step, rule_scale, min_scale) * jnp.float32(factor)

    def observes(self, step: Integer[Array, ""]) -> Bool[Array, ""] | bool:
        return (step >= self.num_steps) & self.schedule.observes(step)


@dataclass(frozen=True)
class Plateau(Schedule):
    """The scale of the plateau rule."""

    follows_rule = True

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        return rule_scale


@dataclass(frozen=True)
class Constant(Schedule):
    """A scale of 1."""

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        return jnp.ones((), jnp.float32)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to the minimum scale."""

    num_steps: int

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        return jnp.float32(optax.cosine_decay_schedule(1.0, self.num_steps, min_scale)(step))


@dataclass(frozen=True)
class Linear(Schedule):
    """A line from 1 to the minimum scale."""

    num_steps: int

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        line = jnp.float32(optax.linear_schedule(1.0, min_scale, self.num_steps)(step))
        return jnp.maximum(line, min_scale)  # a division that is rounded up ends below it


@dataclass(frozen=True)
class Rex(Schedule):
    """The profile of REX from 1 to the minimum scale: slow at first, and fast at the end.

    Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule",
    MLSys 2022.
    """

    num_steps: int

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        line = jnp.float32(optax.linear_schedule(1.0, 0.0, self.num_steps)(step))
        remaining = jnp.maximum(line, 0)
        return min_scale + (1 - min_scale) * remaining / (0.5 + 0.5 * remaining)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """A cosine from 1/25 to 1 in 30 % of the steps, and another one down to 1/250,000.

    Smith, "A disciplined approach to neural network hyper-parameters", 2018, with the values of
    Optax.
    """

    num_steps: int

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        # Optax selects the cosine by a matrix product, which other devices may round.
        with jax.default_matmul_precision("highest"):
            return jnp.float32(optax.cosine_onecycle_schedule(self.num_steps, 1.0)(step))


@dataclass(frozen=True)
class Step(Schedule):
    """A multiplication by ``factor`` every ``interval`` steps, down to the minimum scale."""

    interval: int
    factor: float

    def scale(self, step: Integer[Array, ""], rule_scale: Scalar, min_scale: Scalar) -> Scalar:
        schedule = optax.exponential_decay(
            1.0, self.interval, self.factor, staircase=True, end_value=min_scale
        )
        return jnp.float32(schedule(step))


def make_schedule(settings: Settings, steps_per_epoch: int) -> Schedule:
    """Return the schedule of some settings."""
    epochs = settings.run.epochs
    num_steps = epochs * steps_per_epoch
    # An interval beyond the end of the run is never reached, and might not fit into 32 bits.
    interval = min(settings.optimizer.step_epochs, epochs + 1) * steps_per_epoch
    schedules: dict[str, Schedule] = {
        "plateau": Plateau(),
        "constant": Constant(),
        "cosine": Cosine(num_steps),
        "step": Step(interval, settings.plateau.factor),
        "linear": Linear(num_steps),
        "rex": Rex(num_steps),
        "one-cycle": OneCycle(num_steps),
        "schedule-free": Constant(),  # the optimizer differs
    }
    schedule = schedules[settings.optimizer.schedule]
    num_steps = settings.optimizer.warmup_steps(steps_per_epoch)
    return Warmup(schedule, num_steps, settings.optimizer.warmup_start) if num_steps else schedule
