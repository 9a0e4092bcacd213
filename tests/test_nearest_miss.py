"""The longest wait that led to no drop, and the smallest changes that would have made one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plateau_train import config
from plateau_train.numerics import nearest_miss
from plateau_train.numerics.nearest_miss import RESOLUTION, find_changes, find_nearest_miss
from plateau_train.numerics.replay import replay


def make_rule(**settings):
    return config.PlateauSettings(**{"mode": "test-loss", **settings})


@pytest.mark.parametrize(
    ("settings", "values", "miss", "improved", "changes"),
    [
        # The value that ended the wait is not below the threshold of the smallest rtol.
        (
            {"patience": 4},
            [1, 0.95, 0.9, 0.9, 0.9, 0.5],
            (2, 0, 5),
            (0.5, 0.9999 * 0.9),
            {"patience": 2, "rtol": 0.1},
        ),
        # The wait for the drop at value 7 is no miss, and no change may only begin it earlier.
        (
            {"patience": 3},
            [1, 1, 1, 0.5, 0.5, 0.5, 0.5],
            (2, 0, 3),
            (0.5, 0.9999),
            {"patience": 2, "rtol": 0.5},
        ),
        # After a drop: the best value and the cooldown are those of the rule there.
        (
            {"patience": 2, "cooldown": 2},
            [1, 1, 1, 0.5, 0.9, 0.9],
            (1, 3, 6),
            None,
            {"patience": 1, "cooldown": 1},
        ),
        # The threshold of the first observation after a drop has the changed rtol.
        (
            {"patience": 2, "rtol": 0.01},
            [1, 1, 1, 0.985, 0.99, 0.9],
            (1, 3, 5),
            (0.9, 0.99 * 0.985),
            {"patience": 1, "rtol": 0.015},
        ),
        # The first of two equal waits.
        ({"patience": 3}, [4, 4, 2, 2, 1], (1, 0, 2), (2, 3.9996), {"patience": 1, "rtol": 0.5}),
        ({"patience": 2, "accumulation_size": 2}, [4, 2, 4, 4, 0, 0, 1], (1, 0, 4), (0, 3 * 0.9999), {"patience": 1}),  # noqa: E501
        ({"patience": 2}, [-1, -1, -1.1, -1.1], (1, 0, 2), (-1.1, -1.0001), {"patience": 1, "rtol": 0.1}),  # noqa: E501
        ({"patience": 2, "rtol": 0, "atol": 0.25}, [2, 2, 1.5, 1.5], (1, 0, 2), (1.5, 1.75), {"patience": 1, "rtol": 0.13}),  # noqa: E501
    ],
)  # fmt: skip
def test_the_nearest_miss_and_its_smallest_changes(settings, values, miss, improved, changes):
    rule = make_rule(**settings)
    rows = replay(rule, values)
    found = find_nearest_miss(rule, rows)
    assert found is not None
    assert found[:3] == miss
    end = found.improvement and (found.improvement.mean, found.improvement.threshold)
    assert end == (improved and pytest.approx(improved))
    assert find_changes(rule, rows, found) == changes


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"patience": 2}, [3, 2, 1]),
        ({"patience": 2}, [1, 1, 1]),
        ({"patience": 2, "accumulation_size": 4}, [1, 1, 1]),
        ({"patience": 2, "min_scale": 0.3, "factor": 0.1}, [1, 1, 1, 1, 0.5, 0.5, 0.5]),
        ({"patience": 2, "max_drops": 1}, [1, 1, 1, 1, 0.5, 0.5, 0.5]),
    ],
    ids=["no wait", "only a drop", "no observation", "smallest scale", "no drop left"],
)
def test_there_is_no_miss_where_no_wait_could_have_led_to_a_drop(settings, values):
    rule = make_rule(**settings)
    assert find_nearest_miss(rule, replay(rule, values)) is None


def threshold_of(rule, best):
    factor = 1 - rule.rtol if best >= 0 else 1 + rule.rtol
    return np.float32(factor) * best - np.float32(rule.atol)


def follow(rule, values, start=0, **changed):
    """Yield the number, the observation, its wait and whether it lowers the scale, in plain NumPy.

    After ``start`` values settings are changed.
    """
    f = np.float32
    scale, best, threshold, wait, cooldown, window = f(1), f(np.inf), f(np.inf), 0, 0, []
    for number, value in enumerate(values, start=1):
        if number == start + 1:
            rule = rule.model_copy(update=changed)
            cooldown = min(cooldown, rule.cooldown)
            threshold = threshold_of(rule, best)
        window.append(f(value))
        if len(window) < rule.accumulation_size:
            continue
        mean = window[0]
        for count, member in enumerate(window[1:], start=1):
            mean = (f(count) * mean + member) / f(count + 1)
        window = []
        improved = mean < threshold
        best = mean if improved else best
        threshold = threshold_of(rule, best)
        wait = 0 if improved or cooldown else wait + 1
        cooldown = max(cooldown - 1, 0)
        lowered = max(scale * f(rule.factor), f(rule.min_scale)) if wait == rule.patience else scale
        yield number, mean, wait, lowered < scale
        if wait == rule.patience:
            scale, wait, cooldown = lowered, 0, rule.cooldown


# Each of them is compiled once.
RULES = [
    make_rule(patience=3),
    make_rule(patience=5, rtol=0.1),
    make_rule(patience=2, cooldown=3, rtol=0.05),
    make_rule(patience=3, cooldown=2, rtol=0.0, atol=0.0625),
    make_rule(patience=2, accumulation_size=2, cooldown=1),
    make_rule(patience=1, min_scale=0.25, cooldown=4),
]


@given(
    rule=st.sampled_from(RULES),
    values=st.lists(st.integers(-8, 40).map(lambda number: number / 20), min_size=24, max_size=24),
    slope=st.sampled_from([0, 0.0, 0.03, 0.1]),
)
def test_no_smaller_change_than_those_found_lowers_the_scale(rule, values, slope):
    values = [value - slope * number for number, value in enumerate(values)]
    rows, observed = replay(rule, values), list(follow(rule, values))
    assert [(row.number, row.wait, row.is_drop) for row in rows if row.is_complete] == [
        (number, wait, is_drop) for number, _, wait, is_drop in observed
    ]
    miss = find_nearest_miss(rule, rows)
    if miss is None:
        return
    drops = [0, *(number for number, *_, is_drop in observed if is_drop)]
    start = max(number for number in drops if number < miss.last)
    assert miss.start == start
    stop = len(values)
    if drop := next((number for number in drops if number > miss.last), None):
        stop = max(number for number, _, wait, _ in observed if number < drop and wait == 0)
    between = [mean for number, mean, *_ in observed if start < number <= stop]
    best = rows[start].best  # before them

    def lowers(**changed):
        replayed = follow(rule, values[:stop], start, **changed)
        return any(is_drop and number > start for number, *_, is_drop in replayed)

    changes = find_changes(rule, rows, miss)
    assert not lowers()
    assert changes.get("patience") == max(
        (count for count in range(1, rule.patience) if lowers(patience=count)), default=None
    )
    assert changes.get("cooldown") == max(
        (count for count in range(rule.cooldown if start else 0) if lowers(cooldown=count)),
        default=None,
    )
    critical = sorted(
        float(before - after - rule.atol) / abs(float(before))
        for before, after in itertools.combinations([best, *between], 2)
        if np.isfinite(before) and before != 0
    )
    smallest = next(
        (
            rtol
            for rtol in critical
            if rule.rtol < rtol < 1 and lowers(rtol=rtol + RESOLUTION)
        ),
        None,
    )  # fmt: skip
    if smallest is None:
        assert "rtol" not in changes
    else:
        assert lowers(rtol=changes["rtol"])
        assert smallest - RESOLUTION < changes["rtol"] <= 1.1 * smallest + RESOLUTION


def test_thousands_of_falling_values_are_replayed_few_times(monkeypatch):
    """Each of them is a low: there are millions of critical values of rtol."""
    calls, compute = [], nearest_miss._replay
    monkeypatch.setattr(nearest_miss, "_replay", lambda *args: calls.append(0) or compute(*args))
    rule, values = make_rule(patience=5, rtol=1e-4), np.linspace(2, 1, 3000).tolist()
    rows = replay(rule, [*values, 1, 1])
    miss = find_nearest_miss(rule, rows)
    assert miss is not None
    assert find_changes(rule, rows, miss) == {"patience": 2, "rtol": 0.00084}
    assert len(calls) < 6
