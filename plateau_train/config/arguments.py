"""Settings as the arguments of functions in Python, and the words of errors for them."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, get_origin

from plateau_train.config.resolve import ARGUMENT, BY_KEY, RawValue
from plateau_train.config.settings import SETTINGS, Setting, Settings, as_text, did_you_mean
from plateau_train.errors import PROGRAM, ConfigError

# A process joins a cluster once, before it uses a device, which is nothing for a function.
ARGUMENTS = tuple(setting.key for setting in SETTINGS if setting.table != "cluster")

# Hints for settings that have another name here.
OTHER_NAMES = {
    "--seeds": "write several seeds as --seed 0-7",
    "--lr": "write --learning-rate",
    "--min-lr": "write --min-scale, a factor on --learning-rate",
    "--threshold": "write --rtol for a relative threshold, --atol for an absolute one",
    "--wd": "write --weight-decay",
    "--val-split": "write --val-fraction",
    "--output-dir": "write --runs-dir",
}

MOST_ITEMS = 100_000  # of a list

# Arguments that are not named after their options.
_RENAMED = {"replica": "seed", "config": "config_file", "output": "path"}

_PROGRAM = re.escape(PROGRAM)
_PATH = r"'?((?<=')[^']*|\S+)'?"  # in quotes if a shell needs them

# Command lines in hints, and the calls that do the same. Other commands have none.
_CALLS = {
    r"--resize resizes": "resize=True resizes",
    r"--seed (\d+-\d+)": r"seed='\1'",
    r"separate values by commas.*": "give a list of values, such as patience=[2, 5, 10]",
    rf"{_PROGRAM} sweep .* trains": "sweep(...) with these lists trains",
    rf"{_PROGRAM} train --help": "docs/settings.md",
    rf"{_PROGRAM} resume {_PATH} continues the sweep": r"load_sweep('\1').resume() continues it",
    rf"{_PROGRAM} (resume|plot) {_PATH}": r"load('\2').\1()",
    rf"{_PROGRAM} (runs|compare) {_PATH}(?= lists| compares)": r"\1('\2')",
    rf"{_PROGRAM} compare runs/ONE runs/TWO": "compare('runs/ONE', 'runs/TWO')",
    rf"{_PROGRAM} runs": "runs()",
    rf"{_PROGRAM} trains": "train() trains",
}


def by_name(settings: Settings) -> dict[str, Any]:
    """Return settings by their names, as the arguments that would give them."""
    return {each.key: each.value_in(settings) for each in SETTINGS if each.key in ARGUMENTS}


def read_arguments(
    arguments: Mapping[str, Any], known: Iterable[str] = ARGUMENTS
) -> dict[str, RawValue]:
    """Return the values of arguments and of environment variables, which they outrank.

    An argument that is None has its default. Raises ``ConfigError`` for an unknown name.
    """
    known = tuple(known)
    if unknown := [name for name in arguments if name not in known]:
        problems = (f"there is no setting {name}{did_you_mean(name, known)}" for name in unknown)
        flag = f"--{unknown[0].replace('_', '-')}"
        raise ConfigError(
            *problems, hint=OTHER_NAMES.get(flag, "docs/settings.md lists the settings")
        )
    variables = {key: os.environ.get(BY_KEY[key].variable or "") for key in known}
    given = {
        key: RawValue(text, BY_KEY[key].variable or "") for key, text in variables.items() if text
    }
    return given | {
        name: RawValue(_as_text(BY_KEY[name], value), ARGUMENT)
        for name, value in arguments.items()
        if value is not None
    }


def _as_text(setting: Setting, value: Any) -> str:
    """Write a value as a user would type it; a list, a range or an array as its items.

    Raises ``ConfigError`` for bytes, and for more items than any setting has.
    """
    if isinstance(value, bytes | bytearray):
        raise ConfigError(
            f"{setting.key} must be {setting.expected}, got {value!r}", hint="give text, not bytes"
        )
    if isinstance(value, Mapping):
        return _as_json(setting, value)
    is_scalar = getattr(value, "ndim", None) == 0  # of NumPy or JAX
    if is_scalar or isinstance(value, str | os.PathLike) or not isinstance(value, Iterable):
        return as_text(value)
    items = list(islice(value, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise ConfigError(
            f"{setting.key} must be {setting.expected}, got more than {MOST_ITEMS:,} items",
            hint="give fewer",
        )
    is_nested = any(isinstance(item, Iterable) and not isinstance(item, str) for item in items)
    is_one_value = get_origin(setting.field.annotation) is tuple and not is_nested
    separator = "," if is_one_value else setting.separator
    return separator.join(_as_text(setting, item) for item in items)


def _as_json(setting: Setting, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError) as error:
        problem = f"{setting.key} must be {setting.expected}, and {error}"
        raise ConfigError(problem, hint="give numbers, text and lists") from error


def as_arguments(line: str) -> str:
    """Replace options and command lines in a line of an error by arguments and calls."""
    for command, call in _CALLS.items():
        line = re.sub(command, call, line)
    if f"{PROGRAM} " in line:  # a command without a counterpart keeps its options
        return line
    return re.sub(r"--(?:no-)?([a-z][a-z-]*)(?: (?=\d[\d.]*(?:e-?\d+)?(?![\w-])))?", _name, line)


def _name(flag: re.Match[str]) -> str:
    """Return the argument of a flag, with an equals sign before a number."""
    name = _RENAMED.get(flag[1], flag[1].replace("-", "_"))
    return f"{name}=" if flag[0].endswith(" ") else name
