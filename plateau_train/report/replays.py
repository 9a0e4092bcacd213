"""Values and what the rule made of each: read from a run, shown as a table or as JSON lines."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from plateau_train import config
from plateau_train.errors import ConfigError, RunError
from plateau_train.report.console import OldColumn as Column
from plateau_train.report.console import Report
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import find_replica
from plateau_train.run.records import Drop, History

# Of more observations the table shows those that lowered a scale, and the last.
MOST_ROWS = 1000

# The largest number of float32.
LARGEST = (2 - 2**-23) * 2.0**127

# So many numbers of drops are in a sentence.
MOST_LISTED = 20

# Columns that a narrow terminal goes without, the first one first: what follows from others.
DROP_ORDER = ("step", "best", "cooldown", "epoch")


# Schedules under which the rate falls whatever is observed.
BY_TIME = ("cosine", "step")

# The way out for whoever asks for what a run did not record.
OTHER_MODES = "--mode test-loss and --mode test-accuracy replay what every run recorded"


class Place(NamedTuple):
    """Where in a run a value was measured; the position is in epochs."""

    epoch: int
    step: int
    position: float


class Series(NamedTuple):
    """The values, lower is better, and what is known of them."""

    title: str  # where they come from
    observed: str  # one observation, in words
    values: Sequence[float]
    rule: config.PlateauSettings  # its windows are those that are still to be averaged
    schedule: config.Schedule | None = None  # of a run
    places: Sequence[Place] = ()  # of a run's values
    drops: Sequence[Drop] = ()  # that the run made


class Row(NamedTuple):
    """What became of one value; ``best`` and ``to_beat`` are what it was weighed against."""

    number: int
    value: float
    observation: float | None  # None inside a window
    best: float | None  # None before the first observation
    to_beat: float | None
    wait: int  # observations in a row that counted, this one included
    cooldown: int  # observations that are left of it
    scale_before: float
    scale: float
    reason: str | None  # why the scale was lowered, if it was


def read_windows(
    run: RunDirectory, history: History, own: config.PlateauSettings, rule: config.PlateauSettings
) -> tuple[Sequence[float], Sequence[Place]]:
    """Return the means of steps that a run's rule was fed."""
    if rule.mode != own.mode:
        raise RunError(
            f"{run} recorded no windows of the {rule.mode.replace('-', ' ')}: "
            f"its mode was {own.mode}",
            hint=OTHER_MODES,
        )
    size = own.accumulation_size
    if rule.accumulation_size != size:
        raise RunError(
            f"{run} recorded means of {size:,} steps, and no others can be had from them",
            hint=f"leave out --accumulation-size {rule.accumulation_size}",
        )
    records = history.records
    values = [value for record in records for value in record.observations]
    if not values:
        raise RunError(
            f"{run} recorded no observation: the first one takes {size:,} steps, and it made "
            f"{records[-1].step:,}",
            hint=OTHER_MODES,
        )
    num_steps = records[-1].step // records[-1].epoch
    ends = range(size, size * len(values) + 1, size)
    return values, [Place(-(-end // num_steps), end, end / num_steps) for end in ends]


def read_evaluations(
    run: RunDirectory, history: History, rule: config.PlateauSettings
) -> tuple[Sequence[float], Sequence[Place]]:
    """Return a metric at each epoch's end."""
    records = history.records[1:]
    scores = [getattr(record, rule.mode.replace("-", "_")) for record in records]
    if not scores:
        raise RunError(f"{run} has finished no epoch", hint=f"plateau-train resume {run}")
    return scores, [Place(record.epoch, record.step, record.epoch) for record in records]


def describe_rule(rule: config.PlateauSettings) -> str:
    """Write the settings of a rule in a line."""
    windows = f", windows of {rule.accumulation_size:,}" if rule.accumulation_size > 1 else ""
    floor = f", min scale {rule.min_scale:g}" if rule.min_scale > 0 else ""
    return (
        f"patience {rule.patience}, cooldown {rule.cooldown}, factor {rule.factor:g}, "
        f"rtol {rule.rtol:g}, atol {rule.atol:g}{floor}{windows}"
    )


def choose(histories: Sequence[History], replica: int | None, run: RunDirectory) -> History:
    """Return the replica that is asked for; a run of one training needs no word."""
    if replica is None and len(histories) > 1:
        raise ConfigError(
            f"{run} has {len(histories)} replicas, and one can be replayed at a time",
            hint=f"choose one, such as --replica {histories[0].replica}",
        )
    return histories[0] if replica is None else find_replica(histories, replica, run)


def check_values(series: Series, report: Report) -> None:
    """Refuse what the rule's float32 cannot hold, and warn of what optax misjudges."""
    largest = LARGEST / series.rule.accumulation_size
    for number, value in enumerate(series.values, start=1):
        if abs(value) > largest:
            raise ConfigError(
                f"value {number} is {value:g}, too large for the rule, which counts in float32",
                hint="divide all values by the same number",
            )
    negative = next((value for value in series.values if value < 0), None)
    if negative is not None and series.rule.rtol > 0:
        report.warn(
            f"There are negative values, such as {negative:g}: with --rtol above 0 each improves "
            "on its equal, so that the rate may never drop (optax pull request 1767).",
            "--rtol 0 --atol 0.0001 judges them rightly.",
        )


def find_change(series: Series, rows: Sequence[Row]) -> Row | None:
    """Return the value at which a replay first lowers the scale otherwise than the run did.

    A run whose rate fell by another schedule went another way from the first value on.
    """
    if series.schedule in BY_TIME:
        return rows[0]
    replayed = [(series.places[row.number - 1].step, row.scale) for row in rows if row.reason]
    happened = [(drop.step, drop.scale_after) for drop in series.drops]
    for pair in itertools.zip_longest(replayed, happened):
        if pair[0] != pair[1]:
            step = min(drop[0] for drop in pair if drop is not None)
            return next((row for row in rows if series.places[row.number - 1].step >= step), None)
    return None


def tell_change(series: Series, rows: Sequence[Row], report: Report) -> None:
    """Say of a run from where on the values are not those that the rule would have met."""
    because = "the recorded values are those of a training whose rate went another way"
    changed = find_change(series, rows)
    if series.schedule in BY_TIME:
        report.warn(f"All of this is counterfactual: {because}, by --schedule {series.schedule}.")
    elif changed is not None:
        report.warn(
            f"What follows value {changed.number} ({where(series, changed)}) is counterfactual: "
            f"there the drops begin to differ from those that happened, and {because}."
        )
    elif series.drops:
        report.say(f"all {len(series.drops)} drops are those that happened")
    else:
        report.say("there is no drop, and none happened")


def as_json(
    series: Series, rows: Sequence[Row], others: Mapping[str, Sequence[Row]]
) -> Iterator[str]:
    """Yield one JSON object for each value; what lowered no scale has no reason."""
    for number, row in enumerate(rows):
        place = series.places[number]._asdict() if series.places else {}
        fields = row._asdict()
        del fields["scale_before"]
        compared = {
            name: {"scale": other[number].scale, "reason": other[number].reason}
            for name, other in others.items()
        }
        yield json.dumps({"number": fields.pop("number"), **place, **fields, **compared})


def show(series: Series, rules: Mapping[str, Sequence[Row]], report: Report) -> None:
    """Print a row for each observation, and why each scale was lowered; the first rule is ours."""
    ((name, rows), *others) = rules.items()
    size = series.rule.accumulation_size
    shown = [row for row in rows if row.observation is not None]
    if len(shown) > MOST_ROWS:
        report.say(f"of {len(shown):,} observations the table shows the drops and the last")
        fell = {row.number for each in rules.values() for row in each if row.reason}
        shown = [row for row in shown if row.number in fell or row is shown[-1]]
    drops = {row.number: str(n) for n, row in enumerate((r for r in rows if r.reason), start=1)}
    places = [series.places[row.number - 1] for row in shown] if series.places else []
    report.table(
        [
            Column("number" if size == 1 else "numbers", [_numbers(row, size) for row in shown]),
            *(
                [
                    Column("epoch", [f"{place.epoch}" for place in places]),
                    Column("step", [f"{place.step:,}" for place in places]),
                ]
                if places
                else []
            ),
            Column("value" if size == 1 else "mean", [_number(row.observation) for row in shown]),
            Column("best", [_number(row.best) for row in shown]),
            Column("to beat", [_number(row.to_beat) for row in shown]),
            Column("wait", [f"{row.wait}/{series.rule.patience}" for row in shown]),
            Column("cooldown", [f"{row.cooldown}" for row in shown]),
            Column(name, [_scale(row) for row in shown]),
            Column("drop", [drops.get(row.number, "") for row in shown]),
            *(
                Column(other, [_scale(table[row.number - 1]) for row in shown])
                for other, table in others
            ),
        ],
        drop_order=DROP_ORDER,
    )
    report.rows(
        {
            f"drop {drops[row.number]}": f"{where(series, row)}: scale {row.scale_before:.6g} -> "
            f"{row.scale:.6g}, because {row.reason}"
            for row in rows
            if row.reason
        }
    )
    report.rows({title: _sum_up(table) for title, table in rules.items()})
    if rest := len(rows) % size:
        report.say(f"the last {rest:,} of {len(rows):,} values do not fill a window of {size:,}")


def _sum_up(rows: Sequence[Row]) -> str:
    numbers = [f"{row.number}" for row in rows if row.reason]
    if not numbers:
        return f"{rows[-1].scale:.6g} at the end, no drop"
    many = f"{len(numbers)} drops at values" if len(numbers) > 1 else "1 drop at value"
    shown = numbers if len(numbers) <= MOST_LISTED else [*numbers[:MOST_LISTED], "..."]
    return f"{rows[-1].scale:.6g} at the end, {many} {', '.join(shown)}"


def where(series: Series, row: Row) -> str:
    if not series.places:
        return f"value {row.number}"
    place = series.places[row.number - 1]
    return f"epoch {place.epoch}, after {place.step:,} steps"


def _numbers(row: Row, size: int) -> str:
    return f"{row.number}" if size == 1 else f"{row.number - size + 1}-{row.number}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _scale(row: Row) -> str:
    """Write the scale after a value, with an arrow where it was lowered."""
    return f"{'-> ' if row.reason else ''}{row.scale:.6g}"
