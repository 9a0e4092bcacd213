"""The plateau rule replayed over values: those of a run, of a file, or given as a list.

The rule is the one that training uses; PyTorch's and Keras's rules are the same rule with other
settings.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from plateau_train import config, plots
from plateau_train.api.options import PathLike, for_python
from plateau_train.api.pictures import draw_into
from plateau_train.config import FIXED_PANELS_OPTIONS, RULE_KEYS, SETTINGS, FigureOptions, RawValue
from plateau_train.errors import ConfigError, RunError
from plateau_train.numerics import translation
from plateau_train.numerics.nearest_miss import find_nearest_miss
from plateau_train.numerics.replay import Row
from plateau_train.numerics.replay import replay as apply_rule
from plateau_train.report import replay as texts
from plateau_train.report.rows import Columns, to_columns, to_html
from plateau_train.run.history import find_replica
from plateau_train.run.reader import Run
from plateau_train.run.series import OTHER_MODES, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("plateau_train")

RULE = {each.key: each for each in SETTINGS if each.key in RULE_KEYS}

LIBRARIES = {"optax": "optax", "torch": "PyTorch", "keras": "Keras"}


@dataclass(frozen=True, eq=False, repr=False)
class Replay:
    """The plateau rule applied to values, and the rules of other libraries beside it."""

    series: Series
    rules: Mapping[str, Sequence[Row]]  # by the name of the rule, a row for each value
    notes: Mapping[str, str]  # the settings of the rules of other libraries

    @property
    def own_rows(self) -> Sequence[Row]:
        """The rows of the first rule."""
        return next(iter(self.rules.values()))

    @cached_property
    def misses(self) -> Mapping[int, str]:
        """The text of the nearest miss by the number of its last value; empty if none waited."""
        miss = find_nearest_miss(self.series.rule, self.own_rows)
        if miss is None:
            return {}
        return {miss.last: texts.describe_miss(self.series, self.own_rows, miss)}

    @property
    def nearest_miss(self) -> str | None:
        """The longest wait that led to no drop, and what would have lowered the rate there.

        None where no observation waited without a drop.
        """
        return next(iter(self.misses.values()), None)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each value, by the names that docs/tables.md lists."""
        return list(texts.plain_rows(self.series, self.rules, self.misses))

    @property
    def table(self) -> Columns:
        """The rows as columns."""
        return to_columns(self.rows())

    @property
    def drops(self) -> Columns:
        """The rows of the values that lowered the scale, as columns."""
        is_drop = np.array([row.is_drop for row in self.own_rows])
        return {name: column[is_drop] for name, column in self.table.items()}

    @property
    def counterfactual_from(self) -> int | None:
        """The number of the first value whose drop differs from the run's; None if none does.

        The run measured what follows it at other learning rates.
        """
        change = texts.find_change(self.series, self.own_rows)
        return change and change.number

    @for_python(FIXED_PANELS_OPTIONS)
    def plot(self, *, path: PathLike | None = None, **options: Any) -> "Figure":
        """Draw the values above the scale; also save them to ``path`` if given."""
        return draw_into(path, self.draw, options, FIXED_PANELS_OPTIONS)

    def draw(self, options: FigureOptions) -> "Figure":
        """Draw the values that the rule observed above the scale.

        Raises ``ConfigError`` where the values do not fill a window.
        """
        if not any(row.is_complete for row in self.own_rows):
            raise ConfigError(
                f"{len(self.own_rows):,} values fill no window of "
                f"{self.series.rule.accumulation_size:,}: there is nothing to draw",
                hint="give more values, or a smaller --accumulation-size",
            )
        rule = texts.describe_rule(self.series)
        reasons = texts.list_reasons(self.series, self.own_rows)
        return plots.draw_replay(
            self.series,
            self.rules,
            options,
            rule=rule,
            reasons=reasons,
            ending=texts.list_ending(self.series, self.own_rows),
            change=texts.find_change(self.series, self.own_rows),
        )

    def __repr__(self) -> str:
        num_drops = sum(row.is_drop for row in self.own_rows)
        values = f"{len(self.own_rows)} value{'s' * (len(self.own_rows) != 1)}"
        return f"Replay({values}, {num_drops} drop{'s' * (num_drops != 1)})"

    def _repr_html_(self) -> str:
        return to_html(texts.make_table(self.series, self.rules))


def replay(series: Series, libraries: Sequence[str] = ()) -> Replay:
    """Apply the rule of a series, and those of other libraries with the same numbers.

    Raises ``ConfigError`` for a value beyond float32 and for a library that is not known.
    """
    for library in libraries:
        translation.check_name("--compare has no rule", library, LIBRARIES)
    check_values(series)
    rows = texts.replay_series(series)
    is_optax = libraries and not any(_differences_from_optax(series))
    rules, notes = {"optax" if is_optax else "scale": rows}, {}
    for library in libraries:
        if library in rules:
            continue
        settings: dict[str, Any] = {}
        if library == "optax":
            notes[library] = "; ".join(_differences_from_optax(series))
        else:
            parameters, difference = translation.with_same_numbers(library, series.rule)
            settings = translation.translate(library, parameters, learning_rate=1.0)
            call = ", ".join(f"{name}={_exact(value)}" for name, value in parameters.items())
            notes[library] = f"{call}, here {as_flags(_as_raw(settings))}{difference}"
        changed = series.rule.model_copy(update=settings)
        rules[library] = apply_rule(changed, series.values, as_optax=True)
    return Replay(series, rules, notes)


def _differences_from_optax(series: Series) -> Iterator[str]:
    """Yield where the rule of Optax differs on the values of a series."""
    rule = series.rule
    if series.warmup.scales:
        yield "observes the warm-up"
    if rule.smooth != "none":
        yield "has no smoothing"
    if rule.early_stop is not None or rule.max_drops is not None or rule.stop_at_min_scale:
        yield "has no early end"
    if rule.rtol > 0 and min(series.values) < 0:
        yield "an equal negative value is an improvement (optax pull request 1767)"


def make_series(
    title: str, name: str, values: Sequence[float], overrides: dict[str, RawValue]
) -> Series:
    """Return values of a name, of which an observation is one unless the rule averages some.

    What is given in epochs is given in values.
    """
    defaults = {
        "accumulation_size": RawValue("1", "default"),
        "epochs": RawValue(f"{max(len(values), 1)}", "default"),
    }
    settings = config.resolve(defaults | overrides).settings
    rule = settings.plateau.model_copy(update={"mode": "test-loss"}).counted(1)
    size = rule.accumulation_size
    name = name if size == 1 else f"{name}, mean of {size:,}"
    name = name if rule.smooth == "none" else f"{name}, {rule.smooth}"
    warmup = texts.read_warmup(settings.optimizer, 1, range(1, len(values) + 1), 1)
    return Series(title, name, values, rule, warmup)


def read_run(
    run: Run, overrides: dict[str, RawValue], mode: str | None, replica: int | None
) -> Series:
    """Read what the rule of a run observed, or the metric of another mode."""
    own = run.settings
    if mode is not None:
        if mode.startswith("val") and run.histories[0].records[0].score_split != "val":
            raise RunError(f"{run.directory} held out no images for {mode}", hint=OTHER_MODES)
        # The run's own size counts steps where these values are epochs, or the reverse.
        is_other = mode.startswith("train") != (own.plateau.split == "train")
        window = {"accumulation_size": RawValue("1", "default")} if is_other else {}
        overrides = {"mode": RawValue(mode, "flag"), **window, **overrides}
    settings = config.resolve(overrides, file=run.directory.config).settings
    histories, title = run.histories, f"{run.directory}"
    if replica is None and len(histories) > 1:
        raise ConfigError(
            f"{title} has {len(histories)} replicas, and one can be replayed at a time",
            hint=f"choose one, such as --replica {histories[0].replica}",
        )
    history = histories[0]
    if replica is not None:
        history = find_replica(histories, replica, run.directory)
    return texts.read_series(run, history, settings)


def as_names(libraries: str | Sequence[str] | None) -> Sequence[str]:
    """Return the names of libraries, each once; a single one may be a text.

    Raises ``ConfigError`` for anything else.
    """
    names = [libraries] if isinstance(libraries, str) else libraries or ()
    if not isinstance(names, Sequence):
        raise ConfigError(
            f"compare must be names of libraries, got {libraries!r}",
            hint=f"give a list of {', '.join(LIBRARIES)}",
        )
    return list(dict.fromkeys(names))


def read_rule(
    rule: Mapping[str, Any],
    from_torch: Mapping[str, Any] | None,
    from_keras: Mapping[str, Any] | None,
    learning_rate: float,
) -> dict[str, RawValue]:
    """Return the settings of a rule, given or translated."""
    overrides = config.read_arguments(rule, RULE)
    given = {"torch": from_torch, "keras": from_keras}
    translations = {name: value for name, value in given.items() if value is not None}
    if len(translations) > 1:
        raise ConfigError("from_torch and from_keras both set the rule", hint="leave out one")
    for library, parameters in translations.items():
        if not isinstance(parameters, Mapping):
            raise ConfigError(
                f"from_{library} must be a dictionary, got {parameters!r}",
                hint=f'write from_{library}={{"patience": 10}}',
            )
        text = ",".join(f"{name}={value}" for name, value in parameters.items())
        overrides |= translate_flags(library, text, overrides, learning_rate)
    return overrides


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
    flags = {key for key, value in overrides.items() if value.is_typed}
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


def check_values(series: Series) -> None:
    """Raise ``ConfigError`` for no values and for values beyond float32."""
    if not series.values:
        raise ConfigError("there are no values", hint="give at least one")
    largest = float(np.finfo(np.float32).max) / series.rule.accumulation_size
    for number, value in enumerate(series.values, start=1):
        if abs(value) > largest:
            raise ConfigError(
                f"value {number} is {value:g}, too large for the rule, which computes in float32",
                hint="divide all values by the same number",
            )


def _as_raw(settings: Mapping[str, float]) -> dict[str, RawValue]:
    return {key: RawValue(_exact(value), "flag") for key, value in settings.items()}


def as_flags(settings: Mapping[str, RawValue]) -> str:
    return " ".join(f"{RULE[key].flag} {value.text}" for key, value in settings.items())


def _exact(value: float | str) -> str:
    """Write a number with the fewest digits that read back as the same number, text in quotes."""
    return repr(value).removesuffix(".0")
