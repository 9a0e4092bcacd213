"""plateau-train schedule: replay the plateau rule over values.

The values come from the command line, from a column of a CSV file, or from a run. The rule is the
one that training uses; PyTorch's and Keras's rules are the same rule with other settings.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from plateau_train import config, plots
from plateau_train.config import SETTINGS, RawValue, Resolved
from plateau_train.data import csv_files
from plateau_train.errors import ConfigError, RunError
from plateau_train.numerics import translation
from plateau_train.numerics.replay import as_losses, replay
from plateau_train.report import replay as texts
from plateau_train.report.console import print_rows, print_table
from plateau_train.run.directory import locate
from plateau_train.run.history import find_replica
from plateau_train.run.reader import Run
from plateau_train.run.series import OTHER_MODES, Series, read_values

log = logging.getLogger("plateau_train")

# The settings of the rule itself, without the metric that it observes.
RULE = {each.key: each for each in SETTINGS if each.table == "plateau" and each.key != "mode"}

LIBRARIES = {"optax": "optax", "torch": "PyTorch", "keras": "Keras"}


class ScheduleOptions(NamedTuple):
    """The options of the command that are not settings, as text."""

    source: str | None = None
    values: str | None = None
    column: str | None = None
    mode: str | None = None
    replica: int | None = None
    compare: str | None = None
    from_torch: str | None = None
    from_keras: str | None = None
    plot: Path | None = None
    as_json: bool = False

    @property
    def has_values(self) -> bool:
        return self.source is not None or self.values is not None

    @property
    def is_run(self) -> bool:
        return self.source is not None and os.path.isdir(self.source)

    @property
    def libraries(self) -> list[str]:
        """The libraries of ``--compare``, each once."""
        words = [] if self.compare is None else self.compare.split(",")
        return list(dict.fromkeys(map(str.strip, words)))

    @property
    def translations(self) -> dict[str, str]:
        """The parameters to translate, by library."""
        texts = {"torch": self.from_torch, "keras": self.from_keras}
        return {library: text for library, text in texts.items() if text is not None}


def run_schedule(resolved: Resolved, options: ScheduleOptions) -> None:
    """Replay the rule over values and print the result, or print a translation as flags.

    Raises ``ConfigError`` for values and options that cannot be used, and ``RunError`` for a run
    that did not record the requested values.
    """
    # The replay is small and needs no accelerator, which a training may be using.
    jax.config.update("jax_platforms", "cpu")
    runs_dir = resolved.settings.run.runs_dir
    if options.source is None and options.values is None and not options.translations:
        try:
            options = options._replace(source=str(locate(None, runs_dir)))
        except RunError as error:
            hint = "give --values 1,1,0.5, or a CSV file, a run folder, or - for standard input"
            raise ConfigError("there are no values", hint=hint) from error
    elif options.source not in (None, csv_files.STANDARD_INPUT):
        options = options._replace(source=str(locate(Path(options.source), runs_dir)))
    check_options(options)
    run = Run.open(Path(options.source or "")) if options.is_run else None
    overrides = {
        key: RawValue(config.as_text(setting.value_in(resolved.settings)), resolved.origins[key])
        for key, setting in RULE.items()
        if resolved.is_explicit(key)
    }
    for library, text in options.translations.items():
        optimizer = resolved.settings.optimizer
        if run is not None and not resolved.is_explicit("learning_rate"):
            optimizer = run.settings.optimizer
        translated = translate_flags(library, text, overrides, optimizer.learning_rate)
        flags = _as_flags(translated)
        if not options.has_values:
            print(flags)
            return
        log.info(f"as flags: {flags}")
        overrides |= translated
    if run is not None:
        mode = resolved.settings.plateau.mode if resolved.is_explicit("mode") else None
        series = read_run(run, overrides, options.mode or mode, options.replica)
    else:
        series = read_list(overrides, options)
    check_values(series)
    print_replay(series, options)


def check_options(options: ScheduleOptions) -> None:
    """Raise ``ConfigError`` for options that contradict each other, and for a plot's format."""
    translations = " and ".join(f"--from-{library}" for library in options.translations)
    is_file = options.source is not None and not options.is_run
    if options.source is not None and options.values is not None:
        raise ConfigError(f"both {options.source} and --values give values", hint="leave out one")
    if len(options.translations) > 1:
        raise ConfigError(f"{translations} both set the rule", hint="leave out one")
    for option, is_allowed, purpose in (
        ("compare", not translations, f"rules without {translations}"),
        ("mode", options.is_run, "a run"),
        ("replica", options.is_run, "a run"),
        ("column", is_file, "a CSV file"),
        ("plot", options.has_values, "values"),
    ):
        if getattr(options, option) is not None and not is_allowed:
            raise ConfigError(f"--{option} is for {purpose}", hint=f"leave out --{option}")
    for library in options.libraries:
        translation.check_name("--compare has no rule", library, LIBRARIES)
    if options.plot is not None:
        plots.check_format(options.plot)


def translate_flags(
    library: str, text: str, overrides: dict[str, RawValue], learning_rate: float
) -> dict[str, RawValue]:
    """Translate the arguments of a library's rule, such as ``patience=10,threshold=1e-3``.

    Logs what differs. Raises ``ConfigError`` for arguments that the library or the plateau rule
    does not accept, and for a setting that a flag gives as well.
    """
    flag = f"--from-{library}"
    parameters = translation.read_parameters(library, text)
    if parameters["mode"] == "max":
        raise ConfigError(
            f"{flag} mode=max has no counterpart: for the rule, lower values are better",
            hint="leave it out, and replay 1 - accuracy, as --mode test-accuracy does",
        )
    settings = translation.translate(library, parameters, learning_rate=learning_rate)
    flags = {key for key, value in overrides.items() if value.origin == "flag"}
    if both := [RULE[key].flag for key in settings if key in flags]:
        raise ConfigError(f"{flag} and {both[0]} both set the rule", hint="leave out one")
    translated = _as_raw(settings)
    try:
        config.resolve(translated)
    except ConfigError as error:
        raise ConfigError(
            *(f"{flag} {text}: {problem}" for problem in error.problems),
            hint="patience becomes --patience, a threshold becomes --rtol or --atol, and "
            "min_lr / --learning-rate becomes --min-scale",
        ) from error
    _report_differences(library, parameters, settings, learning_rate)
    return translated


def _report_differences(
    library: str, parameters: Mapping[str, Any], settings: Mapping[str, float], learning_rate: float
) -> None:
    log.info(
        f"patience and cooldown count epochs in {LIBRARIES[library]} and observations here: "
        "one per epoch in the test and val modes, one per --accumulation-size steps in the train "
        "modes"
    )
    if parameters["min_lr"] > 0:
        log.info(f"min_lr became --min-scale for a --learning-rate of {learning_rate:g}")
    if settings["atol"] == translation.NEGLIGIBLE:
        log.info("--rtol and --atol cannot both be 0: this --atol is too small to have an effect")
    eps = parameters.get("eps", 0.0)
    lowest = translation.final_scale(parameters, learning_rate=learning_rate)
    if lowest > settings["min_scale"]:
        log.info(
            f"eps has no counterpart: PyTorch skips drops of the rate up to {eps:g}, so at a "
            f"--learning-rate of {learning_rate:g} its scale ends as with --min-scale {lowest:.4g}"
        )


def read_list(overrides: dict[str, RawValue], options: ScheduleOptions) -> Series:
    """Read values from a file, from standard input or from the command line."""
    defaults = {"accumulation_size": RawValue("1", "default")}
    rule = config.resolve(defaults | overrides).settings.plateau
    if (title := options.source) is not None:
        name, values, num_empty = csv_files.read_column(title, options.column)
        title = "standard input" if title == csv_files.STANDARD_INPUT else title
        if num_empty:
            log.info(f"empty cells skipped in the column {name}: {num_empty:,}")
    else:
        name, title = "value", "the command line"
        text = options.values or ""
        cells = text.split(",") if "," in text else text.split() or [text]
        values = [
            csv_files.parse_number(cell, f"--values: value {number}")
            for number, cell in enumerate(cells, start=1)
        ]
    size = rule.accumulation_size
    return Series(title, name if size == 1 else f"{name}, mean of {size:,}", values, rule)


def read_run(
    run: Run, overrides: dict[str, RawValue], mode: str | None, replica: int | None
) -> Series:
    """Read what the rule of a run observed, or the metric of another mode."""
    own = run.settings
    if mode is not None:
        if mode.startswith("val") and own.data.val_fraction == 0:
            raise RunError(f"{run.directory} held out no images for {mode}", hint=OTHER_MODES)
        # The run's own size counts steps where these values are epochs, or the reverse.
        is_other = mode.startswith("train") != (own.plateau.split == "train")
        window = {"accumulation_size": RawValue("1", "default")} if is_other else {}
        overrides = {"mode": RawValue(mode, "flag"), **window, **overrides}
    rule = config.resolve(overrides, file=run.directory.config).settings.plateau
    histories, title = run.histories, f"{run.directory}"
    if replica is None and len(histories) > 1:
        raise ConfigError(
            f"{title} has {len(histories)} replicas, and one can be replayed at a time",
            hint=f"choose one, such as --replica {histories[0].replica}",
        )
    history = histories[0]
    if replica is not None:
        history = find_replica(histories, replica, run.directory)
    if len(own.run.seeds) > 1:
        title += f", replica {history.replica} with seed {history.seed}"
    values, positions = read_values(run, history, rule)
    observed = rule.describe_observation()
    if rule.split == "train":  # the values are means already
        rule = rule.model_copy(update={"accumulation_size": 1})
    else:
        values = as_losses(rule.metric, np.array(values, np.float32)).tolist()
    schedule = own.optimizer.schedule
    return Series(title, observed, values, rule, positions, history.drops, schedule)


def check_values(series: Series) -> None:
    """Raise ``ConfigError`` for values beyond float32."""
    largest = float(np.finfo(np.float32).max) / series.rule.accumulation_size
    for number, value in enumerate(series.values, start=1):
        if abs(value) > largest:
            raise ConfigError(
                f"value {number} is {value:g}, too large for the rule, which computes in float32",
                hint="divide all values by the same number",
            )


def print_replay(series: Series, options: ScheduleOptions) -> None:
    """Apply the rule, and those of other libraries with the same numbers, to a series.

    Prints the result as a table or JSON lines, and draws its plot.
    """
    rows, rule = replay(series.rule, series.values), texts.describe_rule(series.rule)
    # Without negative values optax's rule is that of the training.
    has_negative = series.rule.rtol > 0 and min(series.values) < 0
    rules, notes = {"optax" if options.libraries and not has_negative else "scale": rows}, {}
    for library in options.libraries:
        if library in rules:
            continue
        settings: dict[str, Any] = {}
        if library == "optax":
            notes[library] = "an equal negative value is an improvement (optax pull request 1767)"
        else:
            parameters, difference = translation.with_same_numbers(library, series.rule)
            settings = translation.translate(library, parameters, learning_rate=1.0)
            call = ", ".join(f"{name}={_exact(value)}" for name, value in parameters.items())
            notes[library] = f"{call}, here {_as_flags(_as_raw(settings))}{difference}"
        changed = series.rule.model_copy(update=settings)
        rules[library] = replay(changed, series.values, as_optax=True)
    if options.as_json:
        for line in texts.json_lines(series, rules):
            print(line)
    else:
        num_values, size = len(series.values), series.rule.accumulation_size
        values = f"{num_values:,} from {series.title}: {series.observed}"
        print_rows({"values": values, "rule": rule, **notes}, to_stderr=True)
        print_table(texts.make_table(series, rules))
        print_rows(texts.describe_drops(series, rules))
        if rest := num_values % size:
            log.info(f"the last {rest:,} of {num_values:,} values do not fill a window of {size:,}")
    change = texts.report_change(series, rows)
    if options.plot is not None:
        reasons = texts.list_reasons(series, rows)
        plots.save_replay(options.plot, series, rules, rule=rule, reasons=reasons, change=change)
        if not options.as_json:
            print_rows({"plot": str(options.plot)})


def _as_raw(settings: Mapping[str, float]) -> dict[str, RawValue]:
    return {key: RawValue(_exact(value), "flag") for key, value in settings.items()}


def _as_flags(settings: Mapping[str, RawValue]) -> str:
    return " ".join(f"{RULE[key].flag} {value.text}" for key, value in settings.items())


def _exact(value: float | str) -> str:
    """Write a number with the fewest digits that read back as the same number, text in quotes."""
    return repr(value).removesuffix(".0")
