"""PyTorch's and Keras's ReduceLROnPlateau as settings of the plateau rule.

The three rules differ only in how they count: PyTorch lowers the rate after more than ``patience``
observations without improvement, and Keras counts the last observation of a cooldown. Both compute
in float64, so a value within float32 rounding of a threshold may be judged differently here. Where
values are negative, PyTorch's relative threshold is that of Optax, which is not ours.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from plateau_train import config
from plateau_train.config import did_you_mean
from plateau_train.errors import ConfigError

_SHARED: dict[str, Any] = {"factor": 0.1, "patience": 10, "cooldown": 0, "min_lr": 0.0}

# Each library's parameters and their defaults; for words all choices, the default first.
PARAMETERS: dict[str, dict[str, Any]] = {
    "torch": _SHARED
    | {"mode": ("min", "max"), "threshold": 1e-4, "threshold_mode": ("rel", "abs"), "eps": 1e-8},
    "keras": _SHARED | {"mode": ("auto", "min", "max"), "min_delta": 1e-4},
}

# Replaces a threshold of 0, which optax refuses: too small to change any loss in float32.
NEGLIGIBLE = 1e-30

# No training lowers its rate more often: each drop takes at least one observation.
MOST_DROPS = 1_000_000


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ``ConfigError`` for a name that is not known."""
    if name not in known:
        raise ConfigError(
            f"{what} {name or 'without a name'}{did_you_mean(name, known)}",
            hint=f"choose from {', '.join(known)}",
        )


def read_parameters(library: str, text: str) -> dict[str, Any]:
    """Read the arguments of a library's rule, such as ``patience=10,threshold=1e-3``.

    A parameter that is not given has its default. Raises ``ConfigError`` for an unknown name and
    for a value of the wrong type.
    """
    known = PARAMETERS[library]
    parameters = {
        name: value[0] if isinstance(value, tuple) else value for name, value in known.items()
    }
    for part in filter(str.strip, text.split(",")):
        name, _, word = (end.strip().strip("'\"") for end in part.partition("="))
        check_name(f"--from-{library} has no parameter", name, known)
        default = known[name]
        is_word = isinstance(default, tuple)
        try:
            value = default[default.index(word)] if is_word else type(default)(word)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
            parameters[name] = value
        except ValueError:
            expected = "a whole number" if isinstance(default, int) else "a finite number"
            expected = f"one of {', '.join(default)}" if is_word else expected
            raise ConfigError(
                f"--from-{library}: {name} must be {expected}, got {word or 'nothing'}",
                hint=f"write it like {name}={parameters[name]}",
            ) from None
    return parameters


def translate(
    library: str, parameters: Mapping[str, Any], *, learning_rate: float
) -> dict[str, int | float]:
    """Return the settings of the plateau rule that lower the rate on the same values.

    ``parameters`` are all those of the library's rule for values that are better when lower.
    PyTorch's ``eps`` has no counterpart; see ``final_scale``.
    """
    patience, cooldown = parameters["patience"], parameters["cooldown"]
    if library == "torch":
        threshold, is_relative = parameters["threshold"], parameters["threshold_mode"] == "rel"
        patience += 1
    else:
        threshold, is_relative = parameters["min_delta"], False
        patience, cooldown = max(patience, 1), max(cooldown - 1, 0)
    is_relative = is_relative and threshold != 0
    return {
        "patience": patience,
        "cooldown": cooldown,
        "factor": parameters["factor"],
        "rtol": threshold if is_relative else 0.0,
        "atol": 0.0 if is_relative else threshold or NEGLIGIBLE,
        "min_scale": parameters["min_lr"] / learning_rate,
    }


def with_same_numbers(library: str, rule: config.PlateauSettings) -> tuple[dict[str, Any], str]:
    """Return a library's parameters with the numbers of a rule, and a note on what differs.

    The learning rate is 1, so that ``min_lr`` is the smallest scale allowed.
    """
    parameters: dict[str, Any] = {"patience": rule.patience, "cooldown": rule.cooldown}
    parameters |= {"factor": rule.factor, "min_lr": rule.min_scale}
    has_both = rule.rtol > 0 and rule.atol > 0
    if library == "torch":
        is_relative = rule.rtol > 0
        parameters["threshold"] = rule.rtol if is_relative else rule.atol
        parameters |= {"threshold_mode": "rel" if is_relative else "abs", "eps": 0}
        return parameters, "; atol left out: threshold is relative or absolute" if has_both else ""
    parameters["min_delta"] = rule.atol or rule.rtol
    if rule.atol == 0:
        return parameters, "; rtol is used as min_delta, which is absolute"
    return parameters, "; rtol left out: min_delta is absolute" if has_both else ""


def final_scale(parameters: Mapping[str, Any], *, learning_rate: float) -> float:
    """Return the lowest scale that a library's rule reaches: PyTorch skips drops up to ``eps``."""
    factor, min_lr, eps = (parameters.get(name, 0.0) for name in ("factor", "min_lr", "eps"))
    rate = learning_rate
    for _ in range(MOST_DROPS if eps > 0 else 0):
        new_rate = max(rate * factor, min_lr)
        if rate - new_rate <= eps:
            return rate / learning_rate
        rate = new_rate
    return min_lr / learning_rate
