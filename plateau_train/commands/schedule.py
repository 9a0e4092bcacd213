"""The plateau rule over a list of values: preview, replay, explanation.

The values come from the command line, from a column of a file, or from a run. What steps over them
is the rule of the training itself; PyTorch's and Keras's are that rule with other numbers.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plateau_train import config
from plateau_train.config import SETTINGS, RawValue, Resolved, nearest
from plateau_train.data import csv_files
from plateau_train.errors import ConfigError, RunError
from plateau_train.numerics import translation
from plateau_train.plots import check_format, save_replay
from plateau_train.report.console import Report
from plateau_train.report.replays import (
    OTHER_MODES,
    Row,
    Series,
    as_json,
    check_values,
    choose,
    describe_rule,
    read_evaluations,
    read_windows,
    show,
    tell_change,
)
from plateau_train.run import environment
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import read_histories
from plateau_train.run.records import drop_reason

# The settings of the rule itself; the mode says what it is fed.
RULE = tuple(knob for knob in SETTINGS if knob.table == "plateau" and knob.key != "mode")

NAMES = {"optax": "optax", "torch": "PyTorch", "keras": "Keras"}


class Asked(NamedTuple):
    """What is asked beside the settings of the rule, as it was typed."""

    source: str | None = None
    values: str | None = None
    column: str | None = None
    mode: str | None = None
    replica: int | None = None
    compare: str | None = None
    from_torch: str | None = None
    from_keras: str | None = None
    plot: Path | None = None

    @property
    def has_values(self) -> bool:
        return self.source is not None or self.values is not None

    @property
    def is_run(self) -> bool:
        return self.source is not None and os.path.isdir(self.source)

    @property
    def translations(self) -> dict[str, str]:
        """The parameters of each library that are to be translated."""
        given = {"torch": self.from_torch, "keras": self.from_keras}
        return {library: text for library, text in given.items() if text is not None}


def answer(resolved: Resolved, asked: Asked, report: Report, *, wants_json: bool) -> Iterator[str]:
    """Step the rule over the values and show it; yield what is to be printed as it is.

    Raises ``ConfigError`` for values and for words that cannot be used, and ``RunError`` for a
    run that does not have what is asked for.
    """
    environment.prefer_processor()  # for some additions: a training may hold the other devices
    _check(asked)
    libraries = _read_libraries(asked.compare)
    run = RunDirectory.open(Path(asked.source or "")) if asked.is_run else None
    given = {
        knob.key: RawValue(config.as_text(resolved.value(knob)), resolved.origins[knob.key])
        for knob in RULE
        if resolved.is_explicit(knob.key)
    }
    for library, text in asked.translations.items():
        if run is not None and not resolved.is_explicit("learning_rate"):
            resolved = resolved.replace(
                "learning_rate", run.settings().settings.optimizer.learning_rate, str(run.config)
            )
        settings = translate_flags(library, text, resolved, report)
        flags = _write_flags(settings)
        if not asked.has_values:
            yield flags
            return
        report.say(f"in flags: {flags}")
        given |= {key: RawValue(_exact(value), "flag") for key, value in settings.items()}
    if run is not None:
        series = _read_run(run, given, resolved, asked)
    else:
        series = _read_list(given, asked, report)
    check_values(series, report)
    rows = step(series.rule, series.values, series.observed)
    others, told = {}, {}
    for library in libraries:
        parameters, unsaid = translation.same_numbers(library, series.rule)
        settings = translation.translate(library, parameters, learning_rate=1.0)
        rule = series.rule.model_copy(update=settings)
        others[library] = step(rule, series.values, series.observed)
        told[library] = f"{_call(parameters)}, here {_write_flags(settings)}" + unsaid
    rules = {"scale" if asked.compare is None else "optax": rows} | others
    if wants_json:
        yield from as_json(series, rows, others)
    else:
        values = f"{len(rows):,} from {series.title}: {series.observed}"
        report.header({"values": values, "rule": describe_rule(series.rule), **told})
        show(series, rules, report)
    if run is not None:
        tell_change(series, rows, report)
    if asked.plot is not None:
        _draw(series, rules, asked.plot)
        if not wants_json:
            report.rows({"plot": str(asked.plot)})


def _check(asked: Asked) -> None:
    """Refuse words that contradict each other, and a picture that cannot be, before any work."""
    translations = " and ".join(f"--from-{library}" for library in asked.translations)
    is_file = asked.source is not None and not asked.is_run
    if asked.source is not None and asked.values is not None:
        raise ConfigError(
            f"both {asked.source} and --values hold values", hint="leave out one of them"
        )
    if not asked.has_values and not translations:
        raise ConfigError(
            "there are no values",
            hint="give --values 1,1,0.5, or a CSV file, a run folder, or - for standard input",
        )
    if len(asked.translations) > 1:
        raise ConfigError(f"{translations} both set the rule", hint="leave out one of them")
    for flag, is_given, has_meaning, what in (
        ("--compare", asked.compare, not translations, f"the same numbers, not for {translations}"),
        ("--mode", asked.mode, asked.is_run, "a run"),
        ("--replica", asked.replica, asked.is_run, "a run"),
        ("--column", asked.column, is_file, "a CSV file"),
        ("--plot", asked.plot, asked.has_values, "values"),
    ):
        if is_given is not None and not has_meaning:
            raise ConfigError(f"{flag} is for {what}", hint=f"leave out {flag}")
    if asked.plot is not None:
        check_format(asked.plot)


def _read_libraries(text: str | None) -> Sequence[str]:
    """Return the libraries that are compared with optax's rule, which is ours."""
    if text is None:
        return ()
    libraries = [word.strip() for word in text.split(",")]
    for library in libraries:
        if library not in NAMES:
            near = nearest(library, NAMES)
            raise ConfigError(
                f"--compare knows no {library or 'rule of no name'}"
                + (f" (did you mean {near}?)" if near else ""),
                hint=f"it knows {', '.join(NAMES)}",
            )
    return [library for library in dict.fromkeys(libraries) if library != "optax"]


def translate_flags(
    library: str, text: str, resolved: Resolved, report: Report
) -> dict[str, float]:
    """Translate what a library's rule is called with, such as ``patience=10,threshold=1e-3``.

    Returns the settings of ours, and tells what they cannot say. Raises ``ConfigError``
    for what the library, or our rule, does not take.
    """
    flag, name = f"--from-{library}", NAMES[library]
    parameters = translation.read_parameters(library, text)
    if parameters["mode"] == "max":
        raise ConfigError(
            f"{flag} mode=max has no counterpart: the rule waits for lower values",
            hint="leave it out, and feed 1 - accuracy, as --mode test-accuracy and its like do",
        )
    learning_rate = resolved.settings.optimizer.learning_rate
    settings = translation.translate(library, parameters, learning_rate=learning_rate)
    if both := next((key for key in settings if resolved.origins[key] == "flag"), None):
        raise ConfigError(f"{flag} and {_flag(both)} both set the rule", hint="leave out one")
    try:
        config.resolve({key: RawValue(_exact(value), "flag") for key, value in settings.items()})
    except ConfigError as error:
        raise ConfigError(
            *(f"{flag} {text}: {problem}" for problem in error.problems),
            hint="patience becomes --patience, a threshold --rtol or --atol, and min_lr / "
            "--learning-rate --min-scale",
        ) from error
    report.say(
        f"patience and cooldown count epochs in {name} and observations here: one an epoch in the "
        "test and val modes, one every --accumulation-size steps in the train modes"
    )
    if parameters["min_lr"] > 0:
        report.say(f"min_lr became --min-scale for a --learning-rate of {learning_rate:g}")
    if settings["atol"] == translation.NEGLIGIBLE:
        report.say("--rtol and --atol cannot both be 0: this --atol is lost in any loss")
    eps = parameters.get("eps", 0.0)
    rest = translation.find_rest(settings["factor"], eps, learning_rate=learning_rate)
    if rest > settings["min_scale"]:
        report.say(
            f"eps has no counterpart: {name} skips drops of the rate up to {eps:g}, so at a "
            f"--learning-rate of {learning_rate:g} its scale ends as with --min-scale {rest:g}"
        )
    return settings


def _read_list(given: Mapping[str, RawValue], asked: Asked, report: Report) -> Series:
    """Read values that belong to no run."""
    rule = config.resolve({"accumulation_size": RawValue("1", "default"), **given}).settings.plateau
    if asked.source is not None:
        name, values, num_empty = csv_files.read_column(asked.source, asked.column)
        title = "standard input" if asked.source == csv_files.STANDARD_INPUT else asked.source
        if num_empty:
            report.say(f"{num_empty:,} lines without {name} were passed over")
    else:
        name, parts = "value", (asked.values or "").split(",")
        values = [
            csv_files.parse_number(text, f"--values: number {number}")
            for number, text in enumerate(parts, start=1)
        ]
        title = "the command line"
    size = rule.accumulation_size
    return Series(title, name if size == 1 else f"{name}, mean of {size:,}", values, rule)


def _read_run(
    run: RunDirectory, given: Mapping[str, RawValue], resolved: Resolved, asked: Asked
) -> Series:
    """Read what the rule of a run was fed, or another metric that was recorded."""
    from plateau_train.numerics.replay import as_losses
    from plateau_train.report.text import describe_observation

    own = run.settings().settings
    if asked.mode is not None or resolved.is_explicit("mode"):
        mode = asked.mode or resolved.settings.plateau.mode
        if mode.startswith("val") and own.data.val_fraction == 0:
            raise RunError(
                f"{run} held no images out for {mode}",
                hint=OTHER_MODES,
            )
        was_other = mode.startswith("train") != (own.plateau.split == "train")
        window = {"accumulation_size": RawValue("1", "default")} if was_other else {}
        given = {"mode": RawValue(mode, "flag"), **window, **given}
    # The run's own settings are the file that what is given outranks.
    rule = config.resolve(given, file=run.config).settings.plateau
    history = choose(read_histories(run), asked.replica, run)
    title = f"{run}"
    if own.run.seeds is not None:
        title += f", replica {history.replica} with seed {history.seed}"
    if rule.split == "train":
        values, places = read_windows(run, history, own.plateau, rule)
        stepped = rule.model_copy(update={"accumulation_size": 1})  # they are means already
    else:
        scores, places = read_evaluations(run, history, rule)
        values = as_losses(rule.metric, np.array(scores, np.float32)).tolist()
        stepped = rule
    return Series(
        title, describe_observation(rule), values, stepped, own.optimizer.schedule, places,
        history.drops,
    )  # fmt: skip


def step(
    rule: config.PlateauSettings, values: Sequence[float], observed: str = "value"
) -> list[Row]:
    """Feed the values to the rule, one by one; ``observed`` is an observation in words."""
    from plateau_train.numerics.plateau import PlateauRule
    from plateau_train.numerics.replay import replay

    observation, *counts = replay(PlateauRule.from_settings(rule), np.array(values, np.float32))
    table = zip(values, *(column.tolist() for column in (*observation, *counts)), strict=True)
    rows: list[Row] = []
    before = 1.0
    for number, row in enumerate(table, start=1):
        value, complete, mean, best, to_beat, waited, scale, wait, cooldown = row
        is_first = math.isinf(best)
        dropped = scale < before
        rows.append(
            Row(
                number=number,
                value=value,
                observation=mean if complete else None,
                best=None if is_first else best,
                to_beat=None if is_first else to_beat,
                wait=wait,
                cooldown=cooldown,
                scale_before=before,
                scale=scale,
                reason=drop_reason(observed, mean, best, to_beat, waited) if dropped else None,
            )
        )
        before = scale
    return rows


def _draw(series: Series, rules: Mapping[str, Sequence[Row]], path: Path) -> None:
    save_replay(path, series, rules)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _exact(value: float) -> str:
    """Write a number so that it is read back as the same, without needless digits."""
    return shown if float(shown := f"{value:g}") == value else str(value)


def _write_flags(settings: Mapping[str, float]) -> str:
    return " ".join(f"{_flag(key)} {_exact(value)}" for key, value in settings.items())


def _call(parameters: Mapping[str, Any]) -> str:
    """Write parameters as a library is called with them."""
    return ", ".join(
        f"{name}={value!r}" if isinstance(value, str) else f"{name}={_exact(value)}"
        for name, value in parameters.items()
    )
