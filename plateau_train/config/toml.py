"""Write settings as TOML."""

from collections.abc import Mapping
from pathlib import Path

import tomlkit

from plateau_train.config.settings import SETTINGS, Settings, as_text


def to_toml(config: Settings, origins: Mapping[str, str], *, describe: bool = False) -> str:
    """Write a configuration as TOML that ``--config`` reads back, with a comment for each knob.

    The comment says where the value came from, or, to ``describe`` it, what it means. A default
    that is unset or that follows from other knobs is commented out: were it a value, it would
    stay when the file is used with another mode or another optimizer.
    """
    document = tomlkit.document()
    for name in Settings.model_fields:
        table = tomlkit.table()
        for knob in SETTINGS:
            if knob.table != name:
                continue
            value = getattr(getattr(config, name), knob.key)
            origin = origins.get(knob.key, "default")
            origin = "".join(char if char.isprintable() else "?" for char in origin)
            if describe:
                table.add(tomlkit.comment(knob.help))
            if value is None or (origin == "default" and knob.may_be_unset):
                shown = knob.default if describe or value is None else as_text(value)
                line = f"{knob.key} = {shown}"
                table.add(tomlkit.comment(line if describe else f"{line}  # {origin}"))
                continue
            item = tomlkit.item(_plain(value))
            if not describe:
                item.comment(origin)
            table.add(knob.key, item)
        document.add(name, table)
    return tomlkit.dumps(document)


def _plain(value: object) -> object:
    """Return a knob's value as one of TOML's own types."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
