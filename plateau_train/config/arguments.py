"""Settings as the arguments of functions in Python."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from plateau_train.config.resolve import ARGUMENT, BY_KEY, RawValue
from plateau_train.config.settings import SETTINGS, Setting, as_text, did_you_mean
from plateau_train.errors import ConfigError

# A process joins a cluster once, before it uses a device, which is nothing for a function.
ARGUMENTS = tuple(setting.key for setting in SETTINGS if setting.table != "cluster")


def read_arguments(
    arguments: Mapping[str, Any], known: Iterable[str] = ARGUMENTS
) -> dict[str, RawValue]:
    """Return the values of arguments and of environment variables, which they outrank.

    An argument that is None has its default. Raises ``ConfigError`` for an unknown name.
    """
    known = tuple(known)
    unknown = [
        f"there is no setting {name}{did_you_mean(name, known)}"
        for name in arguments
        if name not in known
    ]
    if unknown:
        raise ConfigError(*unknown, hint="docs/settings.md lists the settings")
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
    """Write a value as a user would type it; a list, a range or an array as its items."""
    if isinstance(value, str | os.PathLike) or not isinstance(value, Iterable):
        return as_text(value)
    items = list(value)
    is_nested = any(isinstance(item, Iterable) and not isinstance(item, str) for item in items)
    separator = setting.separator if is_nested else ","
    return separator.join(_as_text(setting, item) for item in items)
