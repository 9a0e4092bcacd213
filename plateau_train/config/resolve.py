"""Resolve settings: defaults < TOML file < environment < flags, and each value has its origin."""

import itertools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from plateau_train.config.files import read_file
from plateau_train.config.settings import (
    BUDGETED,
    SETTINGS,
    ClusterSettings,
    DataSettings,
    OnResume,
    Setting,
    Settings,
    as_text,
    did_you_mean,
)
from plateau_train.config.toml import read_toml
from plateau_train.errors import PROGRAM, ChangedSettingsError, ConfigError

BY_KEY = {setting.key: setting for setting in SETTINGS}

ARGUMENT = "argument"  # the origin of a value that a function call gives


class RawValue(NamedTuple):
    """The text given for a setting; ``origin`` is "flag", "argument" or the name of a variable.

    An argument is that of a function in Python.
    """

    text: str
    origin: str

    @property
    def is_typed(self) -> bool:
        """Whether the user gave the value for this call."""
        return self.origin in ("flag", ARGUMENT)


class Resolved(NamedTuple):
    """Settings, and by key where each value came from."""

    settings: Settings
    origins: dict[str, str]

    def origin(self, key: str) -> str:
        """Return where a value came from; a setting that an older run lacks has its default."""
        return self.origins.get(key, "default")

    def is_explicit(self, key: str) -> bool:
        """Return whether a flag or a file gave the value; a variable is not meant for one run."""
        return self.origin(key) not in ("default", BY_KEY[key].variable)

    def is_typed(self, key: str) -> bool:
        """Return whether the user gave the value for this call, and not a file."""
        return RawValue("", self.origin(key)).is_typed

    @property
    def own_cache_dir(self) -> Path:
        """The folder of the cache; one that a file names may be somebody else's and does not count.

        For what permits the execution of code.
        """
        is_from_file = self.is_explicit("cache_dir") and not self.is_typed("cache_dir")
        return DataSettings().cache_dir if is_from_file else self.settings.data.cache_dir

    def replace(self, key: str, value: Any, origin: str) -> "Resolved":
        """Return a copy with another value, which is not validated."""
        table = BY_KEY[key].table
        changed = getattr(self.settings, table).model_copy(update={key: value})
        settings = self.settings.model_copy(update={table: changed})
        return Resolved(settings, self.origins | {key: origin})

    def without_cluster(self) -> "Resolved":
        """Return a copy with the default cluster settings: they describe a process, not a run."""
        origins = self.origins | dict.fromkeys(ClusterSettings.model_fields, "default")
        return Resolved(self.settings.model_copy(update={"cluster": ClusterSettings()}), origins)


def resolve(given: Mapping[str, RawValue], *, file: Path | None = None) -> Resolved:
    """Merge defaults, a TOML file, and the values given by key, which outrank the file.

    Raises ``ConfigError`` with every problem in every source.
    """
    texts: dict[str, dict[str, str]] = {}
    for key, raw in given.items():
        texts.setdefault(BY_KEY[key].table, {})[key] = raw.text
    content = {} if file is None else read_toml(file)
    tables = {name: table for name, table in content.items() if name != "format"}
    origins = dict.fromkeys(BY_KEY, "default")
    merged: dict[str, dict[str, Any]] = {table: {} for table in Settings.model_fields}
    problems: list[str] = []
    for validate, source, name in (
        (Settings.model_validate, tables, file),
        (Settings.model_validate_strings, texts, None),
    ):
        try:
            values = validate(source).model_dump(exclude_unset=True)
        except ValidationError as error:
            problems += _problems(error, given, file=name)
            continue
        for table in values:
            merged[table] |= values[table]
            origins |= dict.fromkeys(values[table], str(name))
    origins |= {key: raw.origin for key, raw in given.items()}
    if not problems:
        settings = Settings.model_validate(merged)
        problems += settings.problems()
        if not problems:
            return Resolved(settings, origins)
    hint = f"{PROGRAM} train --help explains each setting"
    lists = [
        f"{BY_KEY[key].flag} {shlex.quote(raw.text)}"
        for key, raw in given.items()
        if raw.is_typed and "," in raw.text and BY_KEY[key].can_vary
        if BY_KEY[key].separator == ","
    ]
    if lists:
        hint = f"{PROGRAM} sweep {' '.join(lists)} trains a run for each value"
    raise ConfigError(*problems, hint=hint)


def resolve_whole(file: Path) -> Resolved:
    """Resolve the ``config.toml`` of a run; a key that an older version lacks has its default.

    Raises ``ConfigError`` for a file that was cut: it lacks its format, the first line, or a table.
    """
    content = read_toml(file, read_file)
    if missing := [name for name in ("format", *Settings.model_fields) if name not in content]:
        problem = f"{file} is incomplete: it has no {', '.join(missing)}"
        raise ConfigError(problem, hint="restore the file from a copy, or start a new run")
    return resolve({}, file=file)


def sweep_policy(setting: Setting) -> OnResume:
    """Return how a setting of all runs of a sweep changes when the sweep is resumed."""
    is_fixed = setting.key in ("epochs", "runs_dir", "name") or setting.table == "cluster"
    return "fixed" if is_fixed else setting.on_resume


def cluster_policy(setting: Setting) -> OnResume:
    """Return how a process of a cluster changes a setting of process 0."""
    return "local" if setting.per_process else "fixed"


def merge(
    begun: Resolved,
    *overrides: Resolved,
    problem: str,
    hint: str,
    policy: Callable[[Setting], OnResume] = attrgetter("on_resume"),
    why_not: Callable[[Setting, Any], str] = lambda _setting, _value: "",
) -> Resolved:
    """Merge the settings of a run, or of process 0, with overrides; the last one wins.

    An override counts if its value is explicit; for local settings it always counts. Raises
    ``ChangedSettingsError`` with a row for each setting that ``policy`` does not let change;
    ``why_not`` returns a reason better than the general one, or an empty text.
    """
    merged, refused = begun, {}
    for setting, override in itertools.product(SETTINGS, overrides):
        value, origin = setting.value_in(override.settings), override.origin(setting.key)
        if policy(setting) != "local":
            if not override.is_explicit(setting.key) or value == setting.value_in(merged.settings):
                continue
            if reason := _refusal(begun, setting, policy(setting), value):
                texts = setting.text(setting.value_in(begun.settings)), setting.text(value)
                refused[setting] = (setting.flag, *texts, why_not(setting, value) or reason)
                continue
        merged = merged.replace(setting.key, value, origin)
    if refused:
        heads = ("setting", "run", "requested", "why not")
        raise ChangedSettingsError(problem, hint=hint, table=[heads, *refused.values()])
    return merged


def _refusal(begun: Resolved, setting: Setting, policy: OnResume, value: Any) -> str:
    """Return why a setting cannot take a value, or an empty text if it can."""
    if policy == "fixed":
        depends = setting.affects_results or setting.on_resume == "fixed"
        return "it would change the results" if depends else "it is set at the start"
    if policy == "moved":
        return _why_not_moved(setting.value_in(begun.settings), value)
    if policy == "grow" and value < setting.value_in(begun.settings):
        return "it can only grow"
    if policy == "grow" and begun.settings.optimizer.schedule in BUDGETED:
        return f"--schedule {begun.settings.optimizer.schedule} depends on the number of epochs"
    return ""


def _why_not_moved(before: object, value: object) -> str:
    """Return why a value is not the former one at another path, or an empty text.

    What follows a Python file and a colon is a name in it, which must stay the same.
    """
    texts = str(before), str(value)
    names = {match and match[1] for match in map(re.compile(r"\.py:([\w.]+)$").search, texts)}
    is_moved = all(text.startswith("/") for text in texts) and len(names) == 1
    return "" if is_moved else "it would change the results"


class Sweep(NamedTuple):
    """Every combination of some values of some settings."""

    varied: tuple[Setting, ...]  # those with more than one value
    cells: tuple[Resolved, ...]


def resolve_sweep(given: Mapping[str, RawValue], *, file: Path | None = None) -> Sweep:
    """Resolve each combination of the values that flags have, separated by commas.

    The values of a setting that is a list are separated by semicolons. Combinations that train the
    same are one cell. Raises ``ConfigError`` with every problem of every combination, and where
    there is only one cell.
    """
    values: dict[str, list[RawValue]] = {}
    for setting in (setting for setting in SETTINGS if setting.key in given):
        raw = given[setting.key]
        is_varied = setting.can_vary and raw.is_typed
        texts = raw.text.split(setting.separator) if is_varied else [raw.text]
        unique = dict.fromkeys(map(str.strip, texts))
        values[setting.key] = [RawValue(part, raw.origin) for part in unique]
    problems: dict[str, str] = {}
    cells: dict[tuple[Any, ...], Resolved] = {}
    for combination in itertools.product(*values.values()):
        try:
            cell = resolve(dict(zip(values, combination, strict=True)), file=file)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems, error.hint)
            continue
        matters = (each for each in SETTINGS if each.matters_in(cell.settings))
        cells.setdefault(tuple(each.value_in(cell.settings) for each in matters), cell)
    if problems:
        raise ConfigError(*problems, hint=next(iter(problems.values())))
    several = [BY_KEY[key] for key, texts in values.items() if len(texts) > 1]
    if len(cells) == 1:
        flags = ", ".join(setting.flag for setting in several)
        why = f": the values of {flags} train the same" if flags else ": each setting has one value"
        raise ConfigError(
            f"a sweep needs at least two different runs{why}",
            hint="separate values by commas, such as --patience 2,5,10; without the word sweep, "
            f"{PROGRAM} trains one run",
        )
    kept = [cell.settings for cell in cells.values()]
    varied = (each for each in several if len(set(map(each.value_in, kept))) > 1)
    return Sweep(tuple(varied), tuple(cells.values()))


def _problems(
    error: ValidationError, given: Mapping[str, RawValue], *, file: Path | None
) -> Iterator[str]:
    """Yield one sentence for each setting of one source that is unknown or out of its range."""
    seen = set()
    for problem in error.errors():
        table, *rest = map(str, problem["loc"])
        key = rest[0] if rest else None
        # The second comes from a default that depends on a field with a problem of its own.
        if (table, key) in seen or problem["type"] == "default_factory_not_called":
            continue
        seen.add((table, key))
        setting = BY_KEY.get(key or "")
        if setting is None or setting.table != table:
            yield f"{file}: {_misplaced(table, key)}"
            continue
        value = problem["input"]
        shown = as_text(value) or "nothing" if file is None else json.dumps(value, default=str)
        name = f"{file}: {key} in [{table}]"
        if file is None:
            names = {setting.variable: setting.variable, ARGUMENT: setting.key}
            name = names.get(given[setting.key].origin, setting.flag)
        near = did_you_mean(value, setting.choices)
        if setting.key == "dataset" and os.path.exists(str(value)):
            near = f" (did you mean ./{value}?)"
        yield f"{name} must be {setting.expected}, got {shown}{near}"


def _misplaced(table: str, key: str | None) -> str:
    """Describe a table or a key that is unknown in its place, and where it belongs."""
    if table in Settings.model_fields and key is None:
        return f"{table} must be a table: write [{table}] above its keys"
    word = key or table
    if word in BY_KEY:
        return f"{word} belongs in the table [{BY_KEY[word].table}]"
    unknown = f"unknown key {key} in [{table}]" if key else f"unknown table or key {table}"
    return unknown + did_you_mean(word, BY_KEY if key else [*Settings.model_fields, *BY_KEY])
