"""A replay of the plateau rule in words, as a table and as rows of plain values.

``rules`` maps the name of each rule to its rows, one per value; the first one is the rule that
training uses.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plateau_train import config
from plateau_train.numerics.nearest_miss import NearestMiss, find_changes
from plateau_train.numerics.replay import Row, as_losses, replay
from plateau_train.report.console import Column, Table, in_epochs
from plateau_train.run.history import History
from plateau_train.run.reader import Run
from plateau_train.run.records import drop_reason, ending_reason
from plateau_train.run.series import Series, SeriesWarmup, read_values, warmup_curve

log = logging.getLogger("plateau_train")

# The table shows all observations up to this number; if there are more, the drops and the last.
MAX_TABLE_ROWS = 1000

# How many numbers of drops a sentence lists.
MAX_LISTED = 20


def describe_rule(series: Series) -> str:
    """Write the settings of the rule of a series in one line."""
    rule, epochs = series.rule, series.observation_epochs

    def count(observations: Any) -> Any:
        is_shown = epochs is not None and observations > 0
        return f"{observations} ({in_epochs(observations * epochs)})" if is_shown else observations

    parts = [
        f"patience {count(rule.patience)}, cooldown {count(rule.cooldown)}, "
        f"factor {rule.factor:g}, rtol {rule.rtol:g}, atol {rule.atol:g}",
        f"min scale {rule.min_scale:g}" * (rule.min_scale > 0),
        f"windows of {rule.accumulation_size:,}" * (rule.accumulation_size > 1),
        f"smoothed by {rule.smooth}" * (rule.smooth != "none"),
        "" if rule.max_drops is None else f"max drops {rule.max_drops}",
        "ends at the min scale" * rule.stop_at_min_scale,
        "" if rule.early_stop is None else f"early stop {count(rule.early_stop)}",
    ]
    return ", ".join(filter(None, parts))


def read_series(run: Run, history: History, settings: config.Settings) -> Series:
    """Read what a run measured for the rule of some settings, lower is better.

    Raises as ``read_values``.
    """
    own, rule, size = run.settings, settings.plateau, 1
    values, positions = read_values(run, history, rule)
    observed, title = rule.describe_observation(), f"{run.directory}"
    if len(own.run.seeds) > 1:
        title += f", replica {history.replica} with seed {history.seed}"
    steps_per_epoch = history.records[-1].step // history.records[-1].epoch
    rule = rule.counted(steps_per_epoch)
    epochs = rule.observation_epochs(steps_per_epoch)
    if rule.split == "train":  # the values are means already
        size = rule.accumulation_size
        rule = rule.model_copy(update={"accumulation_size": 1})
    else:
        values = as_losses(rule.metric, np.array(values, np.float32)).tolist()
    steps = [each.step for each in positions]
    warmup = read_warmup(settings.optimizer, steps_per_epoch, steps, size)
    of_run = positions, history.drops, own.optimizer.schedule, history.replica, history.seed
    return Series(title, observed, values, rule, warmup, epochs, *of_run)


def read_warmup(
    optimizer: config.OptimizerSettings, steps_per_epoch: float, steps: Sequence[int], size: int
) -> SeriesWarmup:
    """Return the warm-up of values that are each over ``size`` steps, until one of ``steps``."""
    num_steps = optimizer.warmup_steps(steps_per_epoch)
    unobserved = [step for step in steps if step - size < num_steps]
    return SeriesWarmup(
        scales=[optimizer.warmup_factor(step - 1, steps_per_epoch) for step in unobserved],
        curve=warmup_curve(optimizer, steps_per_epoch, steps[-1] / steps_per_epoch if steps else 0),
    )


def replay_series(series: Series) -> list[Row]:
    """Apply the rule of a series to its values; the rows of the warm-up have its scales."""
    scales = series.warmup.scales
    rows = replay(series.rule, series.values, num_unobserved=len(scales))
    for place, scale in enumerate(scales):
        rows[place] = rows[place]._replace(scale_before=scale, scale=scale)
    return rows


def describe_reason(series: Series, row: Row) -> str | None:
    """Write why a value lowered the scale, or None if it did not."""
    if not row.is_drop:
        return None
    return drop_reason(series.observed, row.smoothed, row.best, row.threshold, row.wait)


def describe_ending(series: Series, row: Row) -> str | None:
    """Write why a value ends the training, or None if it does not."""
    if row.ending is None:
        return None
    compared = row.smoothed, row.best, row.threshold, row.wait
    return ending_reason(row.ending, series.rule, series.observed, *compared)


def describe_miss(series: Series, rows: Sequence[Row], miss: NearestMiss) -> str:
    """Write how long the longest wait was that led to no drop, and what would have made one.

    The changes of settings are replayed; see ``find_changes``.
    """
    missing = int(series.rule.patience) - miss.wait
    text = (
        f"wait {miss.wait} of {series.rule.patience} until {series.place_of(miss.last)}: "
        f"{missing} observation{'s' * (missing > 1)} short"
    )
    if miss.improvement is not None:
        text += f"; then {miss.improvement.smoothed:.6g} was below {miss.improvement.threshold:.6g}"
    changes = find_changes(series.rule, rows, miss, num_unobserved=len(series.warmup.scales))
    if not changes:
        return text
    flags = " or ".join(f"--{name} {value}" for name, value in changes.items())
    place = f"value {miss.start + 1}"
    if series.positions:
        place = f"epoch {series.positions[miss.start].epoch}"
    since = f"From {place} on, " if miss.start else ""
    return f"{text}. {since}{flags} would have lowered the rate"


def list_reasons(series: Series, rows: Sequence[Row]) -> list[str]:
    """Write where and why each drop occurred."""
    drops = (row for row in rows if row.is_drop)
    return [f"{series.place_of(row.number)}: {describe_reason(series, row)}" for row in drops]


def list_ending(series: Series, rows: Sequence[Row]) -> str:
    """Write where and why the rule ends the training, or nothing if it does not."""
    reason = describe_ending(series, rows[-1])
    return "" if reason is None else f"{series.place_of(rows[-1].number)}: {reason}"


def find_change(series: Series, rows: Sequence[Row]) -> Row | None:
    """Return the first value at which the drops differ from those of the run, if any.

    What follows it is counterfactual: all of it under a schedule that lowers the rate whatever is
    observed.
    """
    if series.schedule in config.LOWERING:
        return rows[0]
    if series.schedule is None:
        return None
    steps = {row.number: series.positions[row.number - 1].step for row in rows}
    replayed = {(steps[row.number], row.scale) for row in rows if row.is_drop}
    differing = replayed ^ {(drop.step, drop.scale_after) for drop in series.drops}
    first = min((step for step, _ in differing), default=math.inf)
    return next((row for row in rows if steps[row.number] >= first), None)


def report_change(series: Series, rows: Sequence[Row]) -> None:
    """Log from which value on the replay of a run is counterfactual."""
    because = "the recorded values come from a training at other rates"
    change = find_change(series, rows)
    if series.schedule in config.LOWERING:
        log.warning(
            f"The whole replay is counterfactual: {because}, by --schedule {series.schedule}."
        )
    elif change is not None:
        log.warning(
            f"What follows value {change.number} ({series.place_of(change.number)}) is "
            "counterfactual: there the drops begin to differ from those of the run, and "
            f"{because}."
        )
    elif series.drops:
        log.info(f"all drops are those of the run: {len(series.drops)}")
    elif series.schedule is not None:
        log.info("no drop in either: the replay or the run")


def plain_rows(
    series: Series, rules: Mapping[str, Sequence[Row]], misses: Mapping[int, str]
) -> Iterator[dict[str, float | str | bool | None]]:
    """Yield a row of plain values per value; one that lowered no scale has no reason.

    ``misses`` has the text of the nearest miss by the number of its last value. The rows of a run
    have its replica and position. The rules of libraries add a scale and a reason each, such as
    ``torch_scale``.
    """
    rows = next(iter(rules.values()))
    others = [(name, table) for name, table in rules.items() if name != "scale"]
    for index, row in enumerate(rows):
        origin: dict[str, Any] = {}
        if series.positions:
            origin = {"replica": series.replica, "seed": series.seed}
            origin |= series.positions[index]._asdict()
        has_best = math.isfinite(row.best)
        values = {
            **origin,
            "number": row.number,
            "value": row.value,
            "observation": row.smoothed if row.is_complete else None,
            "raw": row.mean if row.is_complete else None,
            "best": row.best if has_best else None,
            "to_beat": row.threshold if has_best else None,
            "wait": row.wait,
            "cooldown": row.cooldown,
            "scale": row.scale,
            "reason": describe_reason(series, row),
            "ending": row.ending,
            "ending_reason": describe_ending(series, row),
            "nearest_miss": misses.get(row.number),
        }
        for name, table in others:
            other = table[index]
            values[f"{name}_scale"] = other.scale
            values[f"{name}_reason"] = describe_reason(series, other)
        yield values


def make_table(series: Series, rules: Mapping[str, Sequence[Row]]) -> Table:
    """Return a table with one row per observation."""
    (name, rows), *others = rules.items()
    size, positions = series.rule.accumulation_size, series.positions
    shown = [row for row in rows if row.is_complete]
    if len(shown) > MAX_TABLE_ROWS:
        log.info(f"the table shows the drops and the last of {len(shown):,} observations")
        lowered = {row.number for table in rules.values() for row in table if row.is_drop}
        shown = [row for row in shown if row.number in lowered or row is shown[-1]]
    drops = (row.number for row in rows if row.is_drop)
    drop_numbers = {value: f"{number}" for number, value in enumerate(drops, start=1)}
    numbers = Column("number", "number")
    if size > 1:
        numbers = Column(lambda row: f"{row.number - size + 1}-{row.number}", "numbers")
    places = (
        Column(lambda row: positions[row.number - 1].epoch, "epoch", omit=4),
        Column(lambda row: positions[row.number - 1].step, "step", ",", omit=1),
    )
    columns = [
        numbers,
        *(places if positions else ()),
        Column("mean", "mean" if size > 1 else "value", ".6g"),
        *([] if series.rule.smooth == "none" else [Column("smoothed", series.rule.smooth, ".6g")]),
        Column("best", "best", _show_finite, omit=2),
        Column("threshold", "to beat", _show_finite),
        Column("wait", "wait", lambda wait: f"{wait}/{series.rule.patience}"),
        Column("cooldown", "cooldown", omit=3),
        Column(_show_scale, name),
        Column(lambda row: drop_numbers.get(row.number, ""), "drop"),
        *(
            Column(lambda row, of=table: _show_scale(of[row.number - 1]), other)
            for other, table in others
        ),
    ]
    return Table(shown, columns)


def describe_drops(
    series: Series, rules: Mapping[str, Sequence[Row]], misses: Mapping[int, str]
) -> dict[str, str]:
    """Write the drops of the first rule and its nearest miss, and each rule in one line."""
    drops = [row for row in next(iter(rules.values())) if row.is_drop]
    reasons = {
        f"drop {number}": f"{series.place_of(row.number)}: scale {row.scale_before:.6g} -> "
        f"{row.scale:.6g}, because {describe_reason(series, row)}"
        for number, row in enumerate(drops, start=1)
    }
    if ending := list_ending(series, next(iter(rules.values()))):
        reasons["ends"] = ending
    if misses:
        (reasons["nearest miss"],) = misses.values()
    return reasons | {name: _summarize(table) for name, table in rules.items()}


def _summarize(rows: Sequence[Row]) -> str:
    numbers = [f"{row.number}" for row in rows if row.is_drop]
    if not numbers:
        return f"{rows[-1].scale:.6g} at the end, no drops"
    count = f"{len(numbers)} drops at values" if len(numbers) > 1 else "1 drop at value"
    listed = numbers if len(numbers) <= MAX_LISTED else [*numbers[:MAX_LISTED], "..."]
    return f"{rows[-1].scale:.6g} at the end, {count} {', '.join(listed)}"


def _show_finite(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _show_scale(row: Row) -> str:
    """Write the scale after a value, with an arrow where it was lowered."""
    return f"{'-> ' if row.is_drop else ''}{row.scale:.6g}"
