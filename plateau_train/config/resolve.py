"""Resolve settings: defaults < TOML file < environment < flags, all problems at once.

Each value keeps its origin.
"""

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from pydantic import ValidationError

from plateau_train.config.settings import (
    SETTINGS,
    ClusterSettings,
    Setting,
    Settings,
    as_text,
    nearest,
)
from plateau_train.errors import ConfigError


class RawValue(NamedTuple):
    """What a user gave for a knob: the text, and whether a flag or which variable holds it."""

    text: str
    origin: str


class Resolved(NamedTuple):
    """A configuration, and for each knob's key where its value came from."""

    settings: Settings
    origins: dict[str, str]

    def value(self, knob: Setting) -> Any:
        return getattr(getattr(self.settings, knob.table), knob.key)

    def is_explicit(self, key: str) -> bool:
        """Whether a flag or a file gave the value: a variable of the shell is meant for no run."""
        variables = (knob.variable for knob in SETTINGS if knob.key == key)
        return self.origin(key) not in ("default", *variables)

    def origin(self, key: str) -> str:
        """Return where a value came from; what an older version knew nothing of is a default."""
        return self.origins.get(key, "default")

    def replace(self, key: str, value: Any, origin: str) -> "Resolved":
        """Put a value that is known to be right in the place of a knob's."""
        (table,) = (knob.table for knob in SETTINGS if knob.key == key)
        changed = getattr(self.settings, table).model_copy(update={key: value})
        return Resolved(
            self.settings.model_copy(update={table: changed}), self.origins | {key: origin}
        )

    def without_cluster(self) -> "Resolved":
        """Leave out how this process finds others: that is of this time, and not of the run."""
        keys = (knob.key for knob in SETTINGS if knob.table == "cluster")
        return Resolved(
            self.settings.model_copy(update={"cluster": ClusterSettings()}),
            self.origins | dict.fromkeys(keys, "default"),
        )


def resolve(given: Mapping[str, RawValue], *, file: Path | None = None) -> Resolved:
    """Merge defaults, a TOML file, and what was given for single knobs, which outranks the file.

    Raises ``ConfigError`` with every problem in every source.
    """
    origins = {knob.key: "default" for knob in SETTINGS}
    nested: dict[str, dict[str, str]] = {}
    for knob in SETTINGS:
        if knob.key in given:
            nested.setdefault(knob.table, {})[knob.key] = given[knob.key].text
    content = {} if file is None else read_toml(file)
    merged: dict[str, dict[str, Any]] = {table: {} for table in Settings.model_fields}
    problems: list[str] = []
    for validate, source, name in (
        (Settings.model_validate, content, file),
        (Settings.model_validate_strings, nested, None),
    ):
        try:
            values = validate(source).model_dump(exclude_unset=True)
        except ValidationError as error:
            problems += _problems(error, given, file=name)
            continue
        for table in values:
            merged[table] |= values[table]
            origins |= dict.fromkeys(values[table], str(name))
    origins |= {key: origin for key, (_, origin) in given.items()}
    if {"seed", "seeds"} <= given.keys():
        problems.append("--seed and --seeds are both given: write one of them")
    elif "seed" in given:  # which outranks the file
        merged["run"].pop("seeds", None)
        origins["seeds"] = "default"
    if not problems:
        config = Settings.model_validate(merged)
        problems += config.problems()
        if not problems:
            return Resolved(config, origins)
    raise ConfigError(*problems, hint="plateau-train --help says what each setting means")


class Sweep(NamedTuple):
    """Every combination of some values of some knobs."""

    varied: tuple[Setting, ...]  # those with more than one value
    cells: tuple[Resolved, ...]


def can_vary(knob: Setting) -> bool:
    """Tell whether a sweep can go over several values of a knob: what a result depends on."""
    is_folder = knob.key.endswith("_dir")
    return knob.key == "epochs" or (
        knob.table in ("data", "model", "optimizer", "plateau") and not is_folder
    )


def resolve_sweep(given: Mapping[str, RawValue], *, file: Path | None = None) -> Sweep:
    """Resolve each combination of the values that flags have, separated by commas.

    Those of a knob that is a list itself are separated by semicolons. Each cell has ``seeds``, be
    it a single one. Raises ``ConfigError`` with every problem of every cell.
    """
    values: dict[str, list[RawValue]] = {}
    for knob in SETTINGS:
        if knob.key not in given:
            continue
        text, origin = given[knob.key]
        separator = ";" if get_origin(knob.field.annotation) is tuple else ","
        texts = text.split(separator) if can_vary(knob) and origin == "flag" else [text]
        values[knob.key] = [RawValue(part, origin) for part in dict.fromkeys(map(str.strip, texts))]
    problems: dict[str, str] = {}
    cells: dict[Settings, Resolved] = {}
    for combination in itertools.product(*values.values()):
        try:
            cell = resolve(dict(zip(values, combination, strict=True)), file=file)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems, error.hint)
            continue
        seeds = cell.settings.run.replica_seeds
        cell = cell.replace("seed", 0, "default").replace("seeds", seeds, "the sweep's seeds")
        cells.setdefault(cell.settings, cell)  # a value can be written in two ways
    if problems:
        raise ConfigError(*problems, hint=next(iter(problems.values())))
    varied = [
        knob
        for knob in SETTINGS
        if knob.key in values and len({cell.value(knob) for cell in cells.values()}) > 1
    ]
    return Sweep(tuple(varied), tuple(cells.values()))


def _problems(
    error: ValidationError, given: Mapping[str, RawValue], *, file: Path | None
) -> Iterator[str]:
    """Yield one sentence for each knob of one source that is unknown or out of its range."""
    seen = set()
    for problem in error.errors():
        table, *rest = map(str, problem["loc"])
        key = rest[0] if rest else None
        # The second comes of a default that depends on a field with a problem of its own.
        if (table, key) in seen or problem["type"] == "default_factory_not_called":
            continue
        seen.add((table, key))
        knob = next((knob for knob in SETTINGS if (knob.table, knob.key) == (table, key)), None)
        if knob is None:
            yield f"{file}: {_misplaced(table, key, problem['type'])}"
            continue
        value = problem["input"]
        shown = as_text(value) or "nothing" if file is None else json.dumps(value, default=str)
        name = f"{file}: {knob.key} in [{knob.table}]"
        if file is None:
            origin = given[knob.key].origin
            name = origin if origin == knob.variable else knob.flag
        near = f" (did you mean {match}?)" if (match := nearest(value, knob.choices)) else ""
        yield f"{name} must be {knob.expected}, got {shown}{near}"


def _misplaced(table: str, key: str | None, kind: str) -> str:
    """Say where a key that is unknown in its place belongs."""
    home = {knob.key: knob.table for knob in SETTINGS}
    if table not in Settings.model_fields:
        if table in home:
            return f"{table} stands outside its table: put it under [{home[table]}]"
        near = nearest(table, [*Settings.model_fields, *home])
        return f"unknown table or key {table}" + (f", did you mean {near}?" if near else "")
    if key is None:
        return f"{table} must be a table: write [{table}] above its keys"
    if kind == "extra_forbidden" and key in home:
        return f"{key} belongs in [{home[key]}], not in [{table}]"
    near = nearest(key, home)
    return f"unknown key {key} in [{table}]" + (f", did you mean {near}?" if near else "")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a file that is missing or does not parse is a ``ConfigError``."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist",
            hint="plateau-train config > my.toml writes a file to start from",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="give a readable TOML file"
        ) from error
    # tomllib's own error is a ValueError, as are those of bytes that are no text and of integers
    # with thousands of digits; thousands of brackets exhaust the stack.
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}",
            hint="text stands in quotes, lists in [ ], and each key once in its table",
        ) from None
