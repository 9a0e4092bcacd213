"""Write settings as TOML."""

from collections.abc import Mapping
from pathlib import Path

import tomlkit

from plateau_train.config.settings import FORMAT, SETTINGS, Seeds, Settings, as_text


def to_toml(settings: Settings, origins: Mapping[str, str], *, describe: bool = False) -> str:
    """Write settings as TOML that ``--config`` reads back, with a comment for each setting.

    The comment says where the value came from, or, to ``describe`` it, what it means. A default
    that is unset or that follows from other settings is commented out: as a value it would stay
    when the file is used with another mode or another optimizer.
    """
    document = tomlkit.document()
    document.add("format", tomlkit.item(FORMAT).comment("the format of this file"))
    for name in Settings.model_fields:
        table = tomlkit.table()
        for setting in (setting for setting in SETTINGS if setting.table == name):
            value = getattr(getattr(settings, name), setting.key)
            origin = origins.get(setting.key, "default")
            origin = "".join(char if char.isprintable() else "?" for char in origin)
            if describe:
                table.add(tomlkit.comment(setting.help))
            if value is None or (origin == "default" and setting.may_be_unset):
                shown = setting.default if describe or value is None else as_text(value)
                line = f"{setting.key} = {shown}"
                table.add(tomlkit.comment(line if describe else f"{line}  # {origin}"))
                continue
            item = tomlkit.item(_plain(value))
            table.add(setting.key, item if describe else item.comment(origin))
        document.add(name, table)
    return tomlkit.dumps(document)


def _plain(value: object) -> object:
    """Return a value as one of TOML's own types; seeds as a number or as compact text."""
    if isinstance(value, tuple) and not (isinstance(value, Seeds) and len(value) > 1):
        return value[0] if isinstance(value, Seeds) else list(value)
    return str(value) if isinstance(value, Path | Seeds) else value
