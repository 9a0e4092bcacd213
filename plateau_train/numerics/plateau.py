"""The plateau rule as a transformation of Optax, whose state is enough to explain it.

On finite values that are not negative it is ``optax.contrib.reduce_on_plateau``, bit for bit.
docs/rule.md lists where it differs, on purpose.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int32

from plateau_train import config
from plateau_train.errors import ConfigError
from plateau_train.numerics.smoothing import init_recent, smooth

# More observations or drops than any training has.
NEVER = config.LARGEST_COUNT

# Why the rule ends a training, by the number in its state.
ENDINGS = (None, "max-drops", "min-scale", "early-stop")


class Observation(NamedTuple):
    """One value, or the mean of a window of values, and what the rule compared it with."""

    number: Int32[Array, "*n"]  # observations so far, this one included; 0 before the first
    raw: Float32[Array, "*n"]  # before it is smoothed
    value: Float32[Array, "*n"]
    best: Float32[Array, "*n"]  # before this one; infinite before the first
    threshold: Float32[Array, "*n"]  # an improvement is below it; above it where higher is better
    wait: Int32[Array, "*n"]  # in a row without improvement, this one included; 0 in a cooldown
    scale_before: Float32[Array, "*n"]
    scale: Float32[Array, "*n"]


class PlateauState(NamedTuple):
    """The six fields of Optax's state, and what ``explain`` needs besides them."""

    scale: Float32[Array, "*n"]
    best_value: Float32[Array, "*n"]
    plateau_count: Int32[Array, "*n"]
    cooldown_count: Int32[Array, "*n"]
    # Values in the window; Optax's name, which hides a method of tuple.
    count: Int32[Array, "*n"]  # pyright: ignore[reportIncompatibleMethodOverride]
    avg_value: Float32[Array, "*n"]  # their mean
    threshold: Float32[Array, "*n"]  # of the next observation
    patience: Int32[Array, "*n"]
    maximize: Bool[Array, "*n"]
    recent: Float32[Array, "*n recent"]  # values that the smoothing needs
    num_drops: Int32[Array, "*n"]
    num_worse: Int32[Array, "*n"]  # observations since the best one or the last drop
    ending: Int32[Array, "*n"]  # a place in ENDINGS; after an ending nothing is observed
    observation: Observation  # the last complete one


class PlateauRule(NamedTuple):
    """The arguments of ``reduce_on_plateau``, which are documented there."""

    factor: ArrayLike
    patience: ArrayLike
    rtol: ArrayLike
    atol: ArrayLike
    cooldown: ArrayLike
    accumulation_size: ArrayLike
    min_scale: ArrayLike
    maximize: ArrayLike = False
    smooth: str = "none"
    max_drops: ArrayLike = NEVER
    stop_at_min_scale: ArrayLike = False
    early_stop: ArrayLike = NEVER

    @classmethod
    def from_settings(cls, settings: config.PlateauSettings) -> "PlateauRule":
        """Return the rule of settings whose patience and cooldown are in observations."""
        arguments = settings.model_dump(include={*cls._fields}, exclude_none=True)
        return cls(**arguments)

    @property
    def arguments_of_optax(self) -> dict[str, Any]:
        """The arguments that Optax's rule has as well."""
        names = inspect.signature(optax.contrib.reduce_on_plateau).parameters
        return {name: getattr(self, name) for name in names}

    @property
    def smoothing(self) -> config.Smoothing:
        return config.read_smoothing(self.smooth)

    @property
    def sign(self) -> Any:
        """What a value is multiplied by so that lower is better: 1 or -1."""
        return 1.0 - 2.0 * self.maximize

    def checked(self) -> "PlateauRule":
        """Return the rule with Python numbers; a traced value and an array stay as they are.

        Raises ``ConfigError`` for a number outside of the range of its setting.
        """
        numbers = {
            name: np.asarray(value).item()
            for name, value in self._asdict().items()
            if not isinstance(value, Tracer) and np.ndim(value) == 0
        }
        hint = "help(plateau_train.reduce_on_plateau) explains each argument"
        for name in numbers.keys() - {"smooth"}:
            if isinstance(numbers[name], str):  # a setting may be a number of epochs
                raise ConfigError(f"{name} must be a number, got {numbers[name]!r}", hint=hint)
        # One that is not checked may be what the others need.
        texts = {"rtol": "0.5", "atol": "1", "patience": "1", "min_scale": "0.5"} | {
            name: number if isinstance(number, str) else repr(number)
            for name, number in numbers.items()
            if (name, number) not in (("max_drops", NEVER), ("early_stop", NEVER))
        }
        given = {
            name: config.RawValue(text, config.ARGUMENT)
            for name, text in texts.items()
            if name != "maximize"
        }
        try:
            config.resolve(given)
        except ConfigError as error:
            problems = map(config.as_arguments, error.problems)
            raise ConfigError(*problems, hint=hint) from None
        if "maximize" in numbers:
            if not isinstance(numbers["maximize"], bool | int):
                raise ConfigError(
                    f"maximize must be true or false, got {numbers['maximize']!r}", hint=hint
                )
            numbers["maximize"] = bool(numbers["maximize"])
        return self._replace(**numbers)

    def init(self) -> PlateauState:
        """Return the state before the first value: scale 1."""

        def number(value: ArrayLike) -> Array:
            return jnp.asarray(value, jnp.float32)

        def count(value: ArrayLike = 0) -> Array:
            return jnp.asarray(value, jnp.int32)

        worst = self.sign * np.inf
        # Each array is one of its own: a caller may donate them all.
        return PlateauState(
            scale=number(1),
            best_value=number(worst),
            plateau_count=count(),
            cooldown_count=count(),
            count=count(),
            avg_value=number(0),
            threshold=number(worst),
            patience=count(self.patience),
            maximize=jnp.asarray(self.maximize, bool),
            recent=init_recent(self.smoothing),
            num_drops=count(),
            num_worse=count(),
            ending=count(),
            observation=Observation(
                number=count(),
                raw=number(0),
                value=number(0),
                best=number(worst),
                threshold=number(worst),
                wait=count(),
                scale_before=number(1),
                scale=number(1),
            ),
        )

    def threshold(self, best: Float32[Array, ""]) -> Float32[Array, ""]:
        """Return the value that the next observation must pass to count as an improvement.

        Optax has ``1 - rtol`` for a negative best value as well: then an equal value is an
        improvement, and the scale never drops (Optax pull request 1767).
        """
        factor = jnp.where(self.sign * best >= 0, 1 - self.rtol, 1 + self.rtol)
        return factor * best - self.sign * self.atol

    def observe(self, state: PlateauState, value: Float32[Array, ""]) -> PlateauState:
        """Return the state after a value.

        A value that is not finite, or that makes the mean of its window infinite, changes nothing,
        and neither does a value after an ending.
        """
        mean = (state.count * state.avg_value + value) / (state.count + 1)
        is_counted = jnp.isfinite(mean) & (state.ending == 0)
        is_complete = is_counted & (state.count + 1 >= self.accumulation_size)
        number = state.observation.number + 1
        recent, smoothed = smooth(self.smoothing, state.recent, mean, number == 1)
        is_better = self.sign * smoothed < self.sign * state.threshold
        best = jnp.where(is_better, smoothed, state.best_value)
        wait = jnp.where(is_better | (state.cooldown_count > 0), 0, state.plateau_count + 1)
        is_due = wait >= self.patience
        lowered = jnp.maximum(state.scale * self.factor, self.min_scale)
        would_drop = is_due & (lowered < state.scale)
        num_worse = jnp.where(is_better | would_drop, 0, state.num_worse + 1)
        is_at_floor = is_due & (state.scale <= self.min_scale)
        ends = {
            "max-drops": would_drop & (state.num_drops >= self.max_drops),
            "min-scale": is_at_floor & self.stop_at_min_scale,
            "early-stop": num_worse >= self.early_stop,
        }
        ending = jnp.select([*ends.values()], [*map(ENDINGS.index, ends)], 0)
        is_drop = is_due & (ending == 0)
        scale = jnp.where(is_drop, lowered, state.scale)
        complete = PlateauState(
            scale=scale,
            best_value=best,
            plateau_count=jnp.where(is_drop, 0, wait),
            cooldown_count=jnp.where(
                is_drop, self.cooldown, jnp.maximum(state.cooldown_count - 1, 0)
            ),
            count=jnp.zeros_like(state.count),
            avg_value=jnp.zeros_like(mean),
            threshold=self.threshold(best),
            patience=jnp.asarray(self.patience),
            maximize=state.maximize,
            recent=recent,
            num_drops=state.num_drops + (scale < state.scale),
            num_worse=num_worse,
            ending=ending,
            observation=Observation(
                number=number,
                raw=mean,
                value=smoothed,
                best=state.best_value,
                threshold=state.threshold,
                wait=wait,
                scale_before=state.scale,
                scale=scale,
            ),
        )
        incomplete = state._replace(
            count=jnp.where(is_counted, state.count + 1, state.count),
            avg_value=jnp.where(is_counted, mean, state.avg_value),
        )
        # The types are those of the state, whatever those of the arguments.
        return jax.tree.map(
            lambda new, old: jnp.where(is_complete, new, old).astype(old.dtype),
            complete,
            incomplete,
        )


def reduce_on_plateau(
    factor: ArrayLike = 0.1,
    patience: ArrayLike = 10,
    rtol: ArrayLike = 1e-4,
    atol: ArrayLike = 0.0,
    cooldown: ArrayLike = 0,
    accumulation_size: ArrayLike = 1,
    min_scale: ArrayLike = 0.0,
    *,
    maximize: ArrayLike = False,
    smooth: str = "none",
    max_drops: ArrayLike = NEVER,
    stop_at_min_scale: ArrayLike = False,
    early_stop: ArrayLike = NEVER,
) -> optax.GradientTransformationExtraArgs:
    """Scale updates down when a value stops improving; ``explain`` says when and why.

    Use it after an optimizer, and give each update a value::

        optimizer = optax.chain(optax.adam(1e-3), reduce_on_plateau(factor=0.5, patience=5))
        updates, state = optimizer.update(grads, state, params, value=loss)

    A value that is not finite is ignored. The state is float32 whatever the type of the parameters,
    and each update keeps its type. The arguments may be traced values; these are not checked, nor
    are arrays with an axis.

    Args:
      factor: What a drop multiplies the scale by, above 0 and below 1.
      patience: Observations in a row without improvement after which the scale drops, from 1.
      rtol: Relative improvement that counts, from 0 and below 1.
      atol: Absolute improvement that counts, from 0. Not both tolerances are 0.
      cooldown: Observations after a drop that do not count towards patience, from 0.
      accumulation_size: Values averaged into one observation, from 1.
      min_scale: Smallest scale allowed, from 0 and below 1.
      maximize: Whether higher values are better, as for an accuracy.
      smooth: What observations are smoothed with before they are compared: ``"ema:0.9"``, a moving
        average that begins with the first one, or ``"median:5"``, of the last five.
      max_drops: Drops after which the next one ends the training, from 0.
      stop_at_min_scale: Whether a drop ends the training where the scale is ``min_scale`` already.
      early_stop: Observations without improvement, since the best one or the last drop, after which
        the training ends; more than ``patience``.

    The rule cannot end a loop: ``plateau_train.find_ending`` says that it should end. From then on
    the rule observes nothing.

    Raises:
      ConfigError: An argument is outside of its range.
    """
    rule = PlateauRule(
        factor, patience, rtol, atol, cooldown, accumulation_size, min_scale, maximize,
        smooth, max_drops, stop_at_min_scale, early_stop,
    ).checked()  # fmt: skip

    def init(params: Any) -> PlateauState:
        del params
        return rule.init()

    def update(
        updates: Any, state: Any, params: Any = None, *, value: ArrayLike, **extra_args: Any
    ) -> tuple[Any, PlateauState]:
        del params, extra_args
        state = rule.observe(state, jnp.asarray(value, jnp.float32).reshape(()))
        scaled = jax.tree.map(
            lambda leaf: jnp.asarray(state.scale * leaf, jnp.result_type(leaf)), updates
        )
        return scaled, state

    # Optax's type of an update does not have the value that its own rule needs as well.
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def find_states(tree: Any) -> list[PlateauState]:
    """Return each state of the rule in a pytree, such as that of a chain, as NumPy arrays."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, PlateauState))
    states = []
    for node in nodes:
        if isinstance(node, PlateauState):
            # Flax NNX has wrapped each array in a variable, which is a pytree of its own.
            arrays = jax.device_get(jax.tree.leaves(node))
            num_own = len(PlateauState._fields) - 1
            observation = Observation(*arrays[num_own:])
            states.append(PlateauState._make([*arrays[:num_own], observation]))
    return states


def as_loss(metric: config.Metric, value: jax.Array) -> Float32[Array, ""]:
    """Return the value of a metric for the rule, lower is better: an accuracy is 1 - accuracy."""
    return jnp.asarray(1 - value if metric == "accuracy" else value, jnp.float32)
