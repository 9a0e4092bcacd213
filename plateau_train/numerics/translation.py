"""PyTorch's and Keras's ReduceLROnPlateau as settings of our rule.

The three count alike but for their limits: PyTorch lowers the rate after more than ``patience``
observations without improvement, and Keras counts the last one of a cooldown. Both compute in
float64, so a value within float32 rounding of a threshold may be judged otherwise here.
"""

import math
from collections.abc import Mapping
from typing import Any

from plateau_train import config
from plateau_train.config import nearest
from plateau_train.errors import ConfigError

# Each library's parameters and their defaults; of words all that are known, the default first.
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "torch": {
        "mode": ("min", "max"), "factor": 0.1, "patience": 10, "threshold": 1e-4,
        "threshold_mode": ("rel", "abs"), "cooldown": 0, "min_lr": 0.0, "eps": 1e-8,
    },
    "keras": {
        "mode": ("auto", "min", "max"), "factor": 0.1, "patience": 10, "min_delta": 1e-4,
        "cooldown": 0, "min_lr": 0.0,
    },
}  # fmt: skip

# In the place of a threshold of 0, which optax refuses: lost beside any loss in float32.
NEGLIGIBLE = 1e-30


def read_parameters(library: str, text: str) -> dict[str, Any]:
    """Read what a library's rule is called with, such as ``patience=10,threshold=1e-3``.

    What is not given has its default. Raises ``ConfigError`` for a name or a word it does not know.
    """
    known = PARAMETERS[library]
    parameters = {
        name: value[0] if isinstance(value, tuple) else value for name, value in known.items()
    }
    for part in filter(str.strip, text.split(",")):
        name, _, word = (end.strip().strip("'\"") for end in part.partition("="))
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(
                f"--from-{library} knows no {name}" + (f" (did you mean {near}?)" if near else ""),
                hint=f"it knows {', '.join(known)}",
            )
        default = known[name]
        expected = "a whole number" if isinstance(default, int) else "a number"
        if isinstance(default, tuple):
            expected = f"one of {', '.join(default)}"
        try:
            is_known = not isinstance(default, tuple) or word in default
            parameters[name] = type(parameters[name])(word)
        except ValueError:
            is_known = False
        if not is_known:
            raise ConfigError(
                f"--from-{library}: {name} must be {expected}, got {word or 'nothing'}",
                hint=f"write it like {name}={parameters[name]}",
            )
    return parameters


def translate(
    library: str, parameters: Mapping[str, Any], *, learning_rate: float
) -> dict[str, int | float]:
    """Return the settings of our rule that lower the rate on the same values.

    ``parameters`` are all those of the library's rule but for PyTorch's ``eps``, which none of
    ours can say; see ``find_rest``. The mode is that of values which are better when lower.
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


def same_numbers(library: str, rule: config.PlateauSettings) -> tuple[dict[str, Any], str]:
    """Return a library's parameters with the numbers of a rule, and what of it they cannot say.

    The learning rate is 1, so that ``min_lr`` is the floor of the scale.
    """
    parameters: dict[str, Any] = {
        "patience": rule.patience, "cooldown": rule.cooldown, "factor": rule.factor,
        "min_lr": rule.min_scale,
    }  # fmt: skip
    has_both = rule.rtol > 0 and rule.atol > 0
    if library == "torch":
        is_relative = rule.rtol > 0
        parameters["threshold"] = rule.rtol if is_relative else rule.atol
        parameters |= {"threshold_mode": "rel" if is_relative else "abs", "eps": 0}
        return parameters, "; atol left out, as threshold is one or the other" if has_both else ""
    parameters["min_delta"] = rule.atol or rule.rtol
    if rule.atol == 0:
        return parameters, "; rtol's number in min_delta, which is absolute"
    return parameters, "; rtol left out, as min_delta is absolute" if has_both else ""


def find_rest(factor: float, eps: float, *, learning_rate: float) -> float:
    """Return the scale below which PyTorch never goes: it skips drops of the rate up to ``eps``."""
    if eps <= 0:
        return 0.0
    smallest = eps / (learning_rate * (1 - factor))  # that is still lowered, and a little more
    return 1.0 if smallest >= 1 else factor ** math.ceil(math.log(smallest) / math.log(factor))
