"""plateau-train schedule: replay the plateau rule over values.

The values come from the command line, from a column of a CSV file, or from a run.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import jax

from plateau_train import config, plots
from plateau_train.api.replays import (
    RULE,
    Replay,
    as_flags,
    make_series,
    read_run,
    replay,
    translate_flags,
)
from plateau_train.config import FigureOptions, RawValue, Resolved
from plateau_train.data import csv_files
from plateau_train.errors import ConfigError, RunError
from plateau_train.report import replay as texts
from plateau_train.report.console import print_rows, print_table
from plateau_train.report.rows import Form, write_rows
from plateau_train.run.directory import locate
from plateau_train.run.reader import Run
from plateau_train.run.series import Series

log = logging.getLogger("plateau_train")


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


def run_schedule(
    resolved: Resolved, options: ScheduleOptions, figure: FigureOptions, form: Form | None
) -> None:
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
        if not options.has_values:
            _print_translation(translated, form)
            return
        log.info(f"as flags: {as_flags(translated)}")
        overrides |= translated
    if run is not None:
        mode = resolved.settings.plateau.mode if resolved.is_explicit("mode") else None
        series = read_run(run, overrides, options.mode or mode, options.replica)
    else:
        series = read_list(overrides, options)
    replayed = replay(series, options.libraries)
    print_replay(replayed, form)
    if options.plot is not None:
        plots.save(options.plot, replayed.draw(figure))
        if form is None:
            print_rows({"plot": str(options.plot)})


def _print_translation(translated: dict[str, RawValue], form: Form | None) -> None:
    """Print a translated rule as flags or as a row."""
    if form is None:
        print(as_flags(translated))
        return
    rule = config.resolve(translated).settings
    write_rows(form, [{key: RULE[key].value_in(rule) for key in translated}])


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
    if options.plot is not None:
        plots.check_format(options.plot)


def read_list(overrides: dict[str, RawValue], options: ScheduleOptions) -> Series:
    """Read values from a file, from standard input or from the command line."""
    if (title := options.source) is not None:
        name, values, num_empty = csv_files.read_column(title, options.column)
        title = "standard input" if title == csv_files.STANDARD_INPUT else title
        if num_empty:
            log.info(f"empty cells skipped in the column {name}: {num_empty:,}")
        return make_series(title, name, values, overrides)
    text = options.values or ""
    cells = text.split(",") if "," in text else text.split() or [text]
    values = [
        csv_files.parse_number(cell, f"--values: value {number}")
        for number, cell in enumerate(cells, start=1)
    ]
    return make_series("the command line", "value", values, overrides)


def print_replay(replayed: Replay, form: Form | None) -> None:
    """Print a replay as a table or as rows."""
    series, rules = replayed.series, replayed.rules
    if form is not None:
        write_rows(form, replayed.rows())
    else:
        num_values, size = len(series.values), series.rule.accumulation_size
        values = f"{num_values:,} from {series.title}: {series.observed}"
        rule = texts.describe_rule(series)
        print_rows({"values": values, "rule": rule, **replayed.notes}, to_stderr=True)
        if num_warm := len(series.warmup.scales):
            unobserved = f"{num_warm:,} values" if num_warm > 1 else "value"
            log.info(f"warm-up: the rule does not observe the first {unobserved}")
        print_table(texts.make_table(series, rules))
        print_rows(texts.describe_drops(series, rules, replayed.misses))
        rows = replayed.own_rows
        last = max((row.number for row in rows if row.is_complete), default=num_warm)
        if rest := len(rows) - last:
            log.info(f"the last {rest:,} of {num_values:,} values do not fill a window of {size:,}")
    texts.report_change(series, replayed.own_rows)
