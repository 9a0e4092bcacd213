"""Warm-up, smoothing, early ends and restored weights, against fixed sequences and NumPy."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import faults
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    IMAGE_SHAPE,
    SMALL,
    SMALL_STEPS,
    any_key,
    call,
    make_examples,
    make_settings,
    make_spec,
    make_training,
    records_of,
    resolve,
    train_epochs,
)
from hypothesis import given
from hypothesis import strategies as st

from plateau_train import explain, find_ending, reduce_on_plateau
from plateau_train.config import PlateauSettings, read_smoothing
from plateau_train.errors import ConfigError
from plateau_train.numerics import replay as replays
from plateau_train.numerics import smoothing
from plateau_train.numerics import step as numerics
from plateau_train.numerics.schedules import make_schedule
from plateau_train.numerics.spec import Hyperparams
from plateau_train.report.progress import warn_of_no_drops
from plateau_train.run.history import records_until
from plateau_train.run.reader import Run
from plateau_train.run.records import RunWarning


def replay(values, *, num_unobserved=0, **settings):
    rule = PlateauSettings(mode="test-loss", rtol=0.25, **settings)
    return replays.replay(rule, values, num_unobserved=num_unobserved)


def smoothed(values, text):
    """Yield each value smoothed, in float32."""
    f, (kind, number) = np.float32, read_smoothing(text)
    average = f(values[0])
    for count, value in enumerate(map(f, values), start=1):
        if count > 1:
            average = f(number) * average + (f(1) - f(number)) * value
        last = np.float32(values[max(count - max(int(number), 1), 0) : count])
        yield {
            "none": value,
            "ema": average,
            "median": f(np.median(last) if count and last.size else 0),
        }[kind]


def reference(values, settings: PlateauSettings, num_unobserved=0):
    """Compute the scale after each value, and the ending, with thirty lines of NumPy."""
    f = np.float32
    scale, best, wait, cooldown, drops, worse, scales = f(1), f(np.inf), 0, 0, 0, 0, []
    for seen in smoothed(values[num_unobserved:], settings.smooth):
        improved = seen < f(1 - settings.rtol) * best - f(settings.atol)
        best = seen if improved else best
        wait = 0 if improved or cooldown else wait + 1
        worse = 0 if improved else worse + 1
        is_due = wait == settings.patience
        lowered = max(scale * f(settings.factor), f(settings.min_scale))
        ending = None
        if is_due and lowered < scale:
            worse = 0
            if settings.max_drops is not None and drops == settings.max_drops:
                ending = "max-drops"
            drops += 1
        elif is_due and settings.stop_at_min_scale and scale == f(settings.min_scale):
            ending = "min-scale"
        if ending is None and settings.early_stop is not None and worse == settings.early_stop:
            ending = "early-stop"
        if ending:
            return [*scales, scale], ending
        if is_due:
            scale, wait, cooldown = lowered, 0, settings.count(settings.cooldown, 1)
        elif cooldown:
            cooldown -= 1
        scales.append(scale)
    return scales, None


LEVEL = [1] * 9

# Settings, values, the scale after each value until the end, and the reason of the end.
SEQUENCES = [
    ({"patience": 2, "max_drops": 0}, LEVEL, [1, 1, 1], "max-drops"),
    ({"patience": 2, "max_drops": 1}, LEVEL, [1, 1, 0.5, 0.5, 0.5], "max-drops"),
    ({"patience": 1, "max_drops": 2}, LEVEL, [1, 0.5, 0.25, 0.25], "max-drops"),
    ({"patience": 1, "max_drops": 9}, LEVEL[:4], [1, 0.5, 0.25, 0.125], None),
    # At the floor nothing falls: this is no drop, and --max-drops does not count it.
    ({"patience": 1, "min_scale": 0.5, "max_drops": 1}, LEVEL[:4], [1, 0.5, 0.5, 0.5], None),
    (
        {"patience": 1, "min_scale": 0.4, "stop_at_min_scale": True},
        LEVEL,
        [1, 0.5, 0.4, 0.4],
        "min-scale",
    ),
    # The cooldown leaves time for it, and a drop begins its count again.
    ({"patience": 1, "cooldown": 5, "early_stop": 3}, LEVEL, [1, 0.5, 0.5, 0.5, 0.5], "early-stop"),
    (
        {"patience": 1, "cooldown": 9, "early_stop": 3},
        [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5],
        [1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        "early-stop",
    ),
    ({"patience": 2, "early_stop": 3}, LEVEL[:7], [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125], None),
    ({"patience": 2, "early_stop": 3, "min_scale": 0.5}, LEVEL, [1, 1, *[0.5] * 4], "early-stop"),
    # 0.5 0.75 0.875 0.9375 1.0 with the weight 0.5, where the raw values are level after one.
    ({"patience": 2, "smooth": "ema:0.5"}, [0.5, 1, 1, 1, 1], [1, 1, 0.5, 0.5, 0.25], None),
    ({"patience": 9, "smooth": "ema:0.5"}, [4, 0, 0, 0], [1, 1, 1, 1], None),
    # One low value of three is no median: 4, 2.5, 4, 4, 1.
    ({"patience": 2, "smooth": "median:3"}, [4, 1, 4, 4, 1, 1], [1, 1, 1, 0.5, 0.5, 0.5], None),
    ({"patience": 2, "smooth": "median:1"}, LEVEL[:3], [1, 1, 0.5], None),
]


@pytest.mark.parametrize(("settings", "values", "scales", "ending"), SEQUENCES)
def test_a_fixed_sequence_has_these_scales_and_this_ending(settings, values, scales, ending):
    rows = replay(values, **settings)
    assert [row.scale for row in rows] == pytest.approx(scales)
    assert rows[-1].ending == ending
    assert {row.ending for row in rows[:-1]} <= {None}
    expected = reference(values, PlateauSettings(mode="test-loss", rtol=0.25, **settings))
    assert (pytest.approx(scales), ending) == expected


def test_what_is_smoothed_is_recorded_beside_what_was_measured():
    rows = replay([4, 0, 0, 2], smooth="ema:0.5", patience=3)
    assert [row.mean for row in rows] == [4, 0, 0, 2]
    assert [row.smoothed for row in rows] == [4, 2, 1, 1.5]
    rows = replay([4, 0, 1, 2], smooth="median:3", patience=3)
    assert [row.smoothed for row in rows] == [4, 2, 1, 1]


VALUES = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]


@given(
    values=st.lists(st.sampled_from(VALUES), min_size=20, max_size=20),
    patience=st.integers(1, 3),
    cooldown=st.integers(0, 3),
    smooth=st.sampled_from(["none", "ema:0.5", "median:2", "median:3"]),
    max_drops=st.sampled_from([None, 0, 1, 2]),
    early_stop=st.sampled_from([None, 4, 6]),
    min_scale=st.sampled_from([0.25, 0.0]),
    num_unobserved=st.integers(0, 3),
)
def test_the_rule_agrees_with_numpy_on_random_sequences(
    values, patience, cooldown, smooth, max_drops, early_stop, min_scale, num_unobserved
):
    settings = PlateauSettings(
        mode="test-loss", rtol=0.25, patience=patience, cooldown=cooldown, smooth=smooth,
        max_drops=max_drops, early_stop=early_stop, min_scale=min_scale,
        stop_at_min_scale=min_scale > 0,
    )  # fmt: skip
    rows = replays.replay(settings, values, num_unobserved=num_unobserved)
    scales, ending = reference(values, settings, num_unobserved)
    assert [row.scale for row in rows[num_unobserved:]] == scales
    assert rows[-1].ending == ending


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8))
def test_a_median_is_that_of_numpy_over_the_values_that_there_are(values):
    how = read_smoothing("median:5")
    recent = smoothing.init_recent(how)
    for number, value in enumerate(map(np.float32, values), start=1):
        recent, median = smoothing.smooth(how, recent, jnp.asarray(value), jnp.asarray(number == 1))
        expected = np.median(np.array(values, np.float32)[max(number - 5, 0) : number])
        assert median == pytest.approx(expected, rel=1e-6, abs=1e-30)


def test_a_loop_of_ones_own_smooths_and_is_told_when_it_ends():
    rule: Any = reduce_on_plateau(0.5, 1, max_drops=1, smooth="ema:0.5")
    optimizer: Any = optax.chain(optax.sgd(0.1), rule)
    params = jnp.ones(2)
    state, endings = optimizer.init(params), []
    for value in (1.0, 0.0, 4.0, 4.0, 0.0):
        _, state = optimizer.update(params, state, params, value=value)
        endings.append(find_ending(state))
    assert endings == [None, None, None, "max-drops", "max-drops"]
    text = explain(state)
    assert "it was 3.125, smoothed from 4" in text
    assert "should end (max-drops)" in text
    with pytest.raises(ConfigError, match="not 1"):
        find_ending(optax.sgd(0.1).init(params))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"early_stop": "5"}, "--early-stop 5 must be larger than --patience 5"),
        ({"stop_at_min_scale": "true"}, "--stop-at-min-scale needs a --min-scale above 0"),
        ({"warmup_epochs": "50"}, "--warmup-epochs 50 must be below --epochs 50"),
        ({"smooth": "ema:1"}, "--smooth must be none, ema:A with A from 0 below 1"),
        ({"smooth": "median:0"}, "--smooth must be none, ema:A with A from 0 below 1"),
        ({"smooth": "mean"}, "--smooth must be none, ema:A with A from 0 below 1"),
        ({"max_drops": "-1"}, "--max-drops must be a whole number from 0"),
        ({"patience": "0epochs"}, "--patience must be a whole number from 1 to 1,000,000,000, or"),
        ({"patience": "-1epochs"}, "--patience must be a whole number from 1 to 1,000,000,000, or"),
        ({"patience": "2 weeks"}, "--patience must be a whole number from 1 to 1,000,000,000, or"),
        ({"warmup_start": "1"}, "--warmup-start must be a number from 0 below 1, got 1"),
    ],
)
def test_an_unusable_option_is_refused_with_its_name_and_value(values, problem):
    with pytest.raises(ConfigError) as refused:
        resolve(**values)
    assert refused.value.problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("span", "mode", "size", "count"),
    [
        ("2epochs", "train-loss", 200, 5),  # 936 of 1,000 steps
        ("2 epochs", "test-loss", 1, 2),
        ("1epoch", "test-loss", 2, 1),
        ("0.1epochs", "train-loss", 117, 1),
        (".5epochs", "train-loss", 117, 2),  # exactly
        ("3", "train-loss", 117, 3),
    ],
)
def test_patience_in_epochs_is_the_fewest_observations_that_take_as_long(span, mode, size, count):
    settings = resolve(patience=span, mode=mode, accumulation_size=str(size)).settings
    assert settings.plateau.counted(468).patience == count
    rows = Hyperparams.from_settings([settings], steps_per_epoch=468)
    assert rows.patience.tolist() == [count]


# Warm-up


def test_a_warm_up_multiplies_each_schedule_and_hides_its_steps_from_the_rule():
    settings = resolve(warmup_epochs="1.5", warmup_start="0.25", epochs="4").settings
    for name, own in (("plateau", 0.5), ("constant", 1.0)):
        optimizer = settings.optimizer.model_copy(update={"schedule": name})
        schedule = make_schedule(settings.model_copy(update={"optimizer": optimizer}), 8)
        scales = [
            float(schedule.scale(jnp.asarray(step), jnp.float32(0.5), jnp.float32(0)))
            for step in range(14)
        ]
        factors = np.minimum(0.25 + 0.75 * np.arange(14) / 12, 1)
        assert scales == pytest.approx(own * factors)
        observed = [bool(schedule.observes(jnp.asarray(step))) for step in range(14)]
        assert observed == [False] * 12 + [True] * 2


@pytest.mark.parametrize("mode", ["train-loss", "test-loss"])
def test_the_rule_observes_nothing_until_the_warm_up_ends(mode):
    size = "4" if mode == "train-loss" else "1"
    options = {"mode": mode, "accumulation_size": size, "warmup_start": "0.2"}
    records = records_of(train_epochs(**options, epochs="3", warmup_epochs="1.5"))
    steps = [each.step for record in records for each in record.observations]
    assert steps[0] == (18 + 4 if mode == "train-loss" else 2 * SMALL_STEPS)
    scales = [1.0 if step > 17 else 0.2 + 0.8 * step / 18 for step in (0, 11, 23, 35)]
    assert [record.scale for record in records] == pytest.approx(scales)


# Restored weights


def leaves_of(tree) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("on_drop", ["keep", "restore-params", "restore-best"])
def test_the_step_after_a_drop_begins_with_what_was_best(on_drop):
    spec, hyperparams = make_training(
        patience=1, accumulation_size=1, rtol=0.9, on_drop=on_drop, mode="train-loss"
    )
    split = make_examples(8)
    best = numerics.init_state(spec, IMAGE_SHAPE, hyperparams)  # the first observation is best
    take = partial(numerics.train_step, spec, hyperparams)
    kept, _ = take(best, split, 0, any_key())
    dropped, _ = take(kept, split, 1, any_key())
    assert (dropped.scale, bool(dropped.is_restored_next)) == (0.5, True)
    after, _ = take(dropped, split, 2, any_key())
    expected = dropped
    if on_drop != "keep":
        expected = expected._replace(params=best.params)
    if on_drop == "restore-best":
        expected = expected._replace(opt_state=best.opt_state)
    plain = expected._replace(is_restored_next=jnp.asarray(False))
    again, _ = take(plain, split, 2, any_key())
    for one, other in zip(leaves_of(after.params), leaves_of(again.params), strict=True):
        np.testing.assert_array_equal(one, other)
    changed = [
        not np.array_equal(one, other)
        for one, other in zip(leaves_of(expected.params), leaves_of(dropped.params), strict=True)
    ]
    assert any(changed) == (on_drop != "keep"), "the comparison holds nothing"


def test_a_warm_up_below_the_smallest_scale_is_not_that_scale():
    options = {"mode": "test-loss", "accumulation_size": "1", "patience": "1", "rtol": "0.9"}
    results = train_epochs(**options, min_scale="0.4", warmup_epochs="1", epochs="5")
    warned = [e.epoch for r in results for e in r.events if isinstance(e, RunWarning)]
    assert warned == [4]  # 2 is the first evaluation that counts; 3 and 4 drop


def test_what_a_drop_brings_back_is_in_the_plan_of_the_memory():
    sizes = {}
    for on_drop in ("keep", "restore-params", "restore-best"):
        made = make_settings(on_drop=on_drop)
        spec = make_spec(made)
        rows = jax.tree.map(lambda row: row[0], Hyperparams.from_settings([made]))
        state = jax.eval_shape(partial(numerics.init_state, spec, IMAGE_SHAPE), rows)
        sizes[on_drop] = sum(leaf.size for leaf in jax.tree.leaves(state.best))
        num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # Adam has two moments and a count of steps.
    assert sizes == {"keep": 0, "restore-params": num_params, "restore-best": 3 * num_params + 1}


def test_a_schedule_that_does_not_follow_the_rule_keeps_nothing_and_never_drops():
    settings = make_settings(patience=1, on_drop="restore-best", max_drops=0)
    optimizer = settings.optimizer.model_copy(update={"schedule": "constant"})
    spec = make_spec(settings.model_copy(update={"optimizer": optimizer}))
    assert (spec.on_drop, spec.static_rule.factor) == ("keep", 1.0)
    endings = [
        event
        for result in train_epochs(schedule="constant", max_drops="0", patience="1", epochs="3")
        for event in result.events
    ]
    assert [(event.event, event.epoch) for event in endings] == [("ended", 3)]


# Runs that end early

ENDING = (
    *SMALL, "--epochs=12", "--seed=0-2", "--hidden-sizes=8", "--rtol=0.05", "--warmup-epochs=0.5",
    "--max-drops=1", "--smooth=ema:0.5", "--on-drop=restore-best", "--patience=0.5epochs",
    "--cooldown=1", "--early-stop=9",
)  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory, processes):
    """A run with all options together, whose seeds end at different epochs."""
    folder = tmp_path_factory.mktemp("ended")
    finished = processes.run(folder, *ENDING)
    assert finished.code == 0, finished.stderr
    return folder / "runs" / "latest", finished


def test_seeds_end_by_their_rule_and_the_run_is_done(ended):
    path, finished = ended
    run = Run.open(path)
    epochs = [history.last_epoch for history in run.histories]
    assert len(set(epochs)) > 1, "the seeds end together"
    assert max(epochs) < 12
    assert run.state == "done"
    summary = json.loads((path / "summary.json").read_text())
    assert [each["ending"] for each in summary["replicas"]] == ["max-drops"] * 3
    assert [len(history.drops) for history in run.histories] == [1, 1, 1]
    assert "ended after epoch" in finished.stderr + finished.stdout
    assert "seeds left" in finished.stderr + finished.stdout
    raw = [each.raw for record in run.records for each in record.observations]
    assert None not in raw


@pytest.mark.parametrize("epoch", [2, 5])
def test_a_run_with_all_options_resumes_to_the_same_bytes(ended, processes, tmp_path, epoch):
    path, _ = ended
    last = min(history.last_epoch for history in Run.open(path).histories)
    epoch = epoch if epoch == 2 else last + 1  # one seed has ended
    stopped = processes.run(tmp_path, *ENDING, fault="crash", at=f"epoch-{epoch:06}")
    assert stopped.code == faults.CRASHED
    resumed = processes.run(tmp_path, "resume")
    assert resumed.code == 0, resumed.stderr
    again = tmp_path / "runs" / "latest"
    assert faults.result_of(again) == faults.result_of(path)


def test_the_weights_of_a_seed_that_ended_are_those_of_its_end(ended):
    path, _ = ended
    run = Run.open(path)
    (first, *_) = sorted(run.histories, key=lambda history: history.last_epoch)
    words = ("evaluate", path, "--checkpoint=last", f"--replica={first.replica}", "--json")
    classes = json.loads(call(*words))["results"]
    hits = sum(each["accuracy"] * each["num_images"] for each in classes)
    assert hits / 300 == pytest.approx(first.records[-1].test_accuracy)
    last = max(history.last_epoch for history in run.histories)
    assert len(records_until(run.histories, last)) == 3


def test_an_ended_run_has_nothing_to_resume_and_its_replay_ends_where_it_did(
    ended, processes, tmp_path
):
    path, _ = ended
    again = processes.run(tmp_path, "resume", path)
    assert again.code == 0
    assert "is done: its rule ended it" in again.stderr
    checked = processes.run(tmp_path, "resume", path, "--check")
    assert "has nothing to do: its rule ended it" in checked.stdout
    rows = json.loads(call("schedule", path, "--replica=0", "--json"))
    history = Run.open(path).histories[0]
    assert rows[-1]["ending"] == "max-drops"
    assert rows[-1]["epoch"] == history.last_epoch
    assert history.ending is not None
    assert rows[-1]["ending_reason"] in history.ending.message
    assert [row["epoch"] for row in rows if row["reason"]] == [drop.epoch for drop in history.drops]
    assert rows[-1]["raw"] != rows[-1]["observation"]


def test_a_sweep_with_a_run_that_ended_resumes_to_the_same_bytes(processes, tmp_path):
    grid = (
        "sweep", *SMALL, "--epochs=6", "--hidden-sizes=8", "--patience=1", "--rtol=0.3",
        "--max-drops=0,9",
    )  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert processes.run(whole, *grid).code == 0
    (runs,) = [path for path in (whole / "runs").iterdir() if path.name.endswith("-sweep")]
    early, late = sorted(path for path in runs.iterdir() if path.is_dir())
    last = Run.open(early).records[-1].epoch
    assert last < 5
    crash = f"{late.name}/checkpoints/epoch-{last + 1:06}"
    assert processes.run(stopped, *grid, fault="crash", at=crash).code == faults.CRASHED
    (other,) = [path for path in (stopped / "runs").iterdir() if path.name.endswith("-sweep")]
    for limit in ("0.1", "none"):  # the first trains one epoch
        resumed = processes.run(stopped, "resume", other, f"--max-time={limit}")
        assert resumed.code == 0, resumed.stderr
        assert "last bits" not in resumed.stderr
        assert (other / early.name / "summary.json").exists() == (limit == "none")
    for run in (early, late):
        assert faults.result_of(other / run.name) == faults.result_of(run), run.name


def test_an_early_stop_that_no_run_reaches_is_named_at_the_start(processes, tmp_path):
    started = processes.run(tmp_path, *SMALL, "--epochs=1", "--patience=2", "--early-stop=4")
    assert "--early-stop 4 cannot end this run" in " ".join(started.stderr.split())
    refused = processes.run(tmp_path, *SMALL, "--patience=1epoch", "--early-stop=3")
    assert refused.code == 2
    assert "--early-stop 3 must be larger than --patience 3" in refused.stderr
    assert "--patience 1epochs is 3" in refused.stderr


@pytest.mark.parametrize("early_stop", [6, 7])
def test_an_early_stop_warns_exactly_where_it_ends_no_level_training(early_stop):
    values = {"mode": "test-loss", "patience": "5", "cooldown": "2", "early_stop": f"{early_stop}"}
    settings = resolve(**values).settings
    rows = replays.replay(settings.plateau, [1.0] * 60)
    assert (warn_of_no_drops(settings, 100) is None) == (rows[-1].ending == "early-stop")


def test_a_warm_up_of_a_part_of_an_epoch_hides_no_evaluation():
    values = {"mode": "test-loss", "patience": "5", "epochs": "6"}
    assert warn_of_no_drops(resolve(**values, warmup_epochs="0.5").settings, 468) is None
    said = warn_of_no_drops(resolve(**values, warmup_epochs="1").settings, 468)
    assert said is not None
    assert "the run has 5" in said


def test_options_of_drops_say_that_they_have_no_effect_with_another_schedule():
    settings = resolve(schedule="constant", max_drops="1", on_drop="restore-best").settings
    said = warn_of_no_drops(settings, 100)
    assert said is not None
    assert said.startswith("--max-drops and --on-drop have no effect with --schedule constant")
    assert warn_of_no_drops(resolve(schedule="constant").settings, 100) is None


def test_values_in_the_warm_up_are_not_observed(tmp_path):
    rows = json.loads(
        call("schedule", "--values=1,1,1,1", "--patience=1", "--warmup-epochs=2", "--json")
    )
    assert [row["observation"] for row in rows] == [None, None, 1, 1]
    assert [row["scale"] for row in rows] == pytest.approx([0.1, 0.55, 1, 0.5])
    figure = Path(tmp_path) / "replay.png"
    call(
        "schedule", "--values=1,1,1,1", "--smooth=ema:0.5", "--warmup-epochs=2", f"--plot={figure}"
    )
    assert figure.read_bytes()[:4] == b"\x89PNG"
