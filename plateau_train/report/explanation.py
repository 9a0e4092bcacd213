"""What a plateau rule saw and what comes next, in words."""

from typing import Any

import numpy as np

from plateau_train.errors import ConfigError
from plateau_train.numerics.plateau import ENDINGS, Observation, PlateauState, find_states
from plateau_train.run.records import drop_reason


def explain(state: Any) -> str:
    """Explain a plateau rule from its state: what it saw last, and what comes next.

    ``state`` is the state of ``reduce_on_plateau``, or any pytree with exactly one, such as the
    state of ``optax.chain``. Raises ``ConfigError`` for a pytree without one or with several, and
    for a state with a replica axis.
    """
    rule = _find_state(state)
    seen, side = rule.observation, "above" if rule.maximize else "below"
    cooldown = f", cooldown {rule.cooldown_count}" * bool(rule.cooldown_count)
    lines = [
        _describe(seen, side, is_better=bool(rule.best_value != seen.best)),
        f"wait {rule.plateau_count}/{rule.patience}{cooldown}, scale {rule.scale:.6g}",
        "the next observation sets the best value",
    ]
    if np.isfinite(rule.threshold):
        lines[-1] = f"the next observation improves if it is {side} {rule.threshold:.6g}"
    if rule.ending:
        lines[-1] = f"the training should end ({ENDINGS[rule.ending]}); nothing more is observed"
    if rule.count > 0:
        lines.append(f"values in its window so far: {rule.count:,}")
    return "\n".join(lines)


def find_ending(state: Any) -> str | None:
    """Return why a plateau rule ends the training, from its state; None while it does not.

    It is "max-drops", "min-scale" or "early-stop", after the argument of ``reduce_on_plateau``.
    ``state`` is as for ``explain``; raises as that does.
    """
    return ENDINGS[_find_state(state).ending]


def _find_state(state: Any) -> PlateauState:
    states = find_states(state)
    if len(states) != 1:
        raise ConfigError(
            f"there are {len(states)} states of reduce_on_plateau in this "
            f"{type(state).__name__}, not 1",
            hint="give the state of an optimizer with plateau_train.reduce_on_plateau; "
            "that of optax.contrib does not have what its rule compared",
        )
    (rule,) = states
    if shape := np.shape(rule.scale):
        raise ConfigError(
            f"the state has a replica axis: the shape of its scale is {shape}, not ()",
            hint="explain one replica, such as explain(jax.tree.map(lambda x: x[0], state))",
        )
    return rule


def _describe(seen: Observation, side: str, *, is_better: bool) -> str:
    """Describe the last observation; one that lowered the scale as training does."""
    number, was = f"observation {seen.number:,}", f"{seen.value:.6g}"
    if seen.raw != seen.value:
        was += f", smoothed from {seen.raw:.6g}"
    if seen.number == 0:
        return "no observation yet"
    if seen.scale < seen.scale_before:
        values: Any = seen.value, seen.best, seen.threshold, seen.wait
        reason = drop_reason("", *values, side=side)
        return f"{number}: scale {seen.scale_before:.6g} -> {seen.scale:.6g}, because {reason}"
    if np.isfinite(seen.best):
        verb = f"was {'' if is_better else 'not '}{side} {seen.threshold:.6g}"
        return f"{number} {verb} (best {seen.best:.6g}); it was {was}"
    return f"{number} was {was}"
