"""Trainings in this process, on small data: what is recorded, when the scale drops, how it ends."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL_STEPS, resolve_small, resume_run, train_epochs, train_run

from plateau_train import data
from plateau_train.commands.train import train
from plateau_train.config import resolve
from plateau_train.errors import ConfigError, NonFiniteLossError, PictureError, StorageError
from plateau_train.numerics import step as single
from plateau_train.numerics.architectures import MLP
from plateau_train.numerics.replicas import Replicas
from plateau_train.run.checkpoint import read_checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import History
from plateau_train.run.reader import Run
from plateau_train.run.records import Ending, Notice, RunWarning
from plateau_train.training import chunks
from plateau_train.training.state import name_arrays

pytestmark = pytest.mark.usefixtures("no_plots")


def train_one(folder: Any, **values: str) -> tuple[Run, History]:
    """Train a small run of one seed; return it with its only replica."""
    run = train_run(folder, quiet="true", **{"epochs": "4"} | values)
    (history,) = run.histories
    return run, history


def load_small(**values: str) -> Any:
    return data.load(resolve_small(**values).settings.data)


def exact_scores(result: Any, split: Any) -> tuple[float, float]:
    """Score every image of a split with the parameters of an epoch, in float64 NumPy."""
    model: Any = MLP(resolve_small().settings.model.hidden_sizes, 10)
    params = jax.tree.map(lambda rows: rows[0], result.arrays.state.params)
    pixels = jnp.asarray(split.images, jnp.float32) / 255
    logits = np.asarray(model.apply({"params": params}, pixels), np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(logits)), split.labels]
    return losses.mean(), (logits.argmax(axis=1) == split.labels).mean()


def test_epoch_0_scores_the_training_images_with_the_untrained_network():
    dataset, (first, _) = load_small(), train_epochs(epochs="1")
    (record,) = first.records
    assert (record.epoch, record.step, record.scale, record.observations) == (0, 0, 1.0, ())
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        loss, accuracy = exact_scores(first, images)
        assert getattr(record, f"{split}_loss") == pytest.approx(loss, rel=1e-5)
        assert getattr(record, f"{split}_accuracy") == pytest.approx(accuracy)
    assert record.train_loss != record.test_loss


def test_test_metrics_are_those_of_all_test_images_at_the_end_of_their_epoch():
    # 300 test images do not divide by the batch size.
    values = {"batch_size": "70", "mode": "test-loss", "accumulation_size": "1", "epochs": "3"}
    test = load_small(**values).test
    for result in train_epochs(**values):
        (record,) = result.records
        loss, accuracy = exact_scores(result, test)
        assert record.test_loss == pytest.approx(loss, rel=1e-5)
        assert record.test_accuracy == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("mode", "field", "is_accuracy"),
    [
        ("test-loss", "test_loss", False),
        ("val-loss", "val_loss", False),
        ("test-accuracy", "test_accuracy", True),
        ("val-accuracy", "val_accuracy", True),
    ],
)
def test_the_rule_sees_each_epochs_own_evaluation_once(tmp_path, mode, field, is_accuracy):
    values = {"val_fraction": "0.2", "accumulation_size": "1", "patience": "1", "epochs": "8"}
    _, history = train_one(tmp_path, mode=mode, **values)
    best, expected = np.inf, []
    for record in history.records[1:]:
        value = np.float32(getattr(record, field))
        value = np.float32(1 - value) if is_accuracy else value
        (observed,) = record.observations
        assert observed.step == record.step
        assert observed.value == pytest.approx(float(value), abs=1e-7)
        if value < np.float32(1 - 1e-4) * np.float32(best):
            best = value
        else:
            expected.append(record.epoch)
    assert expected, "no drop: nothing was tested"
    assert [drop.epoch for drop in history.drops] == expected
    assert [drop.position for drop in history.drops] == expected
    assert history.records[0].observations == ()


def test_validation_scores_the_held_out_images_and_no_others():
    values = {"mode": "val-loss", "val_fraction": "0.3", "accumulation_size": "1", "epochs": "2"}
    dataset, results = load_small(**values), train_epochs(**values)
    (record,) = results[-1].records
    loss, accuracy = exact_scores(results[-1], dataset.val)
    assert record.val_loss == pytest.approx(loss, rel=1e-5)
    assert record.val_accuracy == pytest.approx(accuracy)
    assert record.val_loss != record.test_loss


def test_the_order_of_the_images_follows_the_seed_and_the_epoch(monkeypatch):
    orders, epoch_order = {}, Replicas.epoch_order

    def record(replicas, epoch, num_examples):
        orders[epoch] = epoch_order(replicas, epoch, num_examples)
        return orders[epoch]

    monkeypatch.setattr(Replicas, "epoch_order", record)
    train_epochs(seed="7", epochs="3")
    assert list(orders) == [1, 2, 3]
    for epoch, (order,) in orders.items():
        expected = single.epoch_order(600, 50, seed=7, epoch=epoch)
        np.testing.assert_array_equal(order, expected)


def test_an_epoch_shuffles_all_training_images():
    first, *_ = np.asarray(single.epoch_order(60_000, 128, seed=0, epoch=1))
    # A buffer of 10,000 images would give the first batch none beyond image 10,127.
    assert first.min() < 10_000
    assert first.max() > 50_000


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation_size": "5", "patience": "1", "cooldown": "2", "rtol": "0.1"},
        {"accumulation_size": "17", "patience": "1", "min_scale": "0.4", "atol": "0.2"},
        {"mode": "train-accuracy", "accumulation_size": "3", "patience": "2", "cooldown": "1"},
        {"mode": "test-loss", "accumulation_size": "2", "patience": "1", "rtol": "0.5"},
    ],
)
def test_all_that_is_recorded_follows_from_the_observations(tmp_path, settings):
    """Apply the rule in plain Python to the recorded observations."""
    run, history = train_one(tmp_path, epochs="9", **settings)
    rule = run.settings.plateau
    scale, best, wait, cooldown, expected = 1.0, math.inf, 0, 0, []
    for record in history.records:
        for step, value in ((observed.step, observed.value) for observed in record.observations):
            to_beat = (1 - rule.rtol) * best - rule.atol
            wait = 0 if value < to_beat else wait + 1
            before, waited = scale, wait
            if cooldown > 0:
                cooldown, wait = cooldown - 1, 0
            elif wait == rule.patience:
                scale, wait = max(scale * rule.factor, rule.min_scale), 0
                cooldown = rule.count(rule.cooldown, 1)
            if scale < before:
                expected.append((record.epoch, step, before, scale, value, best, to_beat, waited))
            best = min(best, value) if value < to_beat else best
        assert (record.wait, record.cooldown) == (wait, cooldown)
        assert record.scale == pytest.approx(scale)
        assert record.learning_rate == pytest.approx(0.03 * scale)
        if record.best_value is not None:
            assert record.best_value == pytest.approx(best)
            assert record.to_beat == pytest.approx((1 - rule.rtol) * best - rule.atol, abs=1e-6)
    assert expected, "no drop: nothing was tested"
    for drop, (epoch, step, before, after, value, best, to_beat, waited) in zip(
        history.drops, expected, strict=True
    ):
        assert (drop.epoch, drop.step, drop.waited) == (epoch, step, waited)
        assert drop.step == pytest.approx(drop.position * SMALL_STEPS)
        numbers = drop.scale_before, drop.scale_after, drop.value, drop.best, drop.to_beat
        assert numbers == pytest.approx((before, after, value, best, to_beat), abs=1e-6)
        rates = drop.learning_rate_before, drop.learning_rate_after
        assert rates == pytest.approx((0.03 * before, 0.03 * after))
    (summary,) = json.loads(run.directory.summary.read_text())["replicas"]
    assert summary["drop_epochs"] == [epoch for epoch, *_ in expected]
    assert summary["num_drops"] == len(expected)


def test_a_latest_that_cannot_be_changed_does_not_end_the_run(tmp_path, messages):
    (tmp_path / "latest").mkdir()
    train(resolve_small(epochs="1", runs_dir=str(tmp_path)))
    (summary,) = tmp_path.glob("*-train-loss/summary.json")
    assert (summary.parent / "plot.png").exists()
    assert f"{tmp_path}/latest is not changed: it is not a link to a run" in messages


def test_a_new_scale_of_an_evaluation_acts_from_the_next_epoch_on(tmp_path):
    values = {"mode": "test-loss", "accumulation_size": "1", "rtol": "0.9"}
    values |= {"optimizer": "sgd", "momentum": "0"}
    _, history = train_one(tmp_path, patience="1", **values)
    # The first epoch improves on infinity, each later one is a plateau.
    assert [record.scale for record in history.records] == [1, 1, 0.5, 0.25, 0.125]
    assert [(drop.epoch, drop.scale_before, drop.scale_after) for drop in history.drops] == [
        (2, 1, 0.5),
        (3, 0.5, 0.25),
        (4, 0.25, 0.125),
    ]
    _, constant = train_one(tmp_path, patience="99", **values)
    assert history.records[2].train_loss == constant.records[2].train_loss
    assert history.records[3].train_loss != constant.records[3].train_loss


def test_windows_of_steps_continue_across_epochs_and_drops_have_their_step(tmp_path):
    values = {"accumulation_size": "5", "patience": "1", "rtol": "0.3", "epochs": "6"}
    _, history = train_one(tmp_path, **values)
    steps = [[observed.step for observed in record.observations] for record in history.records]
    # An epoch has 12 steps, so windows of 5 steps end inside of epochs.
    assert steps == [[], [5, 10], [15, 20], [25, 30, 35], [40, 45], [50, 55, 60], [65, 70]]
    values = {observed.step: observed.value for r in history.records for observed in r.observations}
    assert history.drops
    for drop in history.drops:
        assert drop.value == values[drop.step]
        assert drop.position == pytest.approx(drop.step / SMALL_STEPS)
        assert drop.epoch == -(-drop.step // SMALL_STEPS)
        assert drop.learning_rate_after == pytest.approx(0.03 * drop.scale_after)
        assert drop.value >= drop.to_beat
        assert drop.to_beat == pytest.approx(0.7 * drop.best, rel=1e-6)
        assert drop.waited == 1
        assert "train loss, mean of 5 steps" in drop.reason
    assert history.records[-1].scale == history.drops[-1].scale_after


def test_train_metrics_are_means_over_the_batches_as_they_were_seen():
    *_, last = train_epochs(epochs="1", accumulation_size="1")
    (record,) = last.records
    losses = [observed.value for observed in record.observations]
    assert len(losses) == SMALL_STEPS
    assert record.train_loss == pytest.approx(np.mean(losses))


def test_each_epoch_is_recorded_once(tmp_path):
    run, history = train_one(tmp_path, seed="3")
    assert [record.epoch for record in history.records] == [0, 1, 2, 3, 4]
    assert [record.step for record in history.records] == [0, 12, 24, 36, 48]
    assert [timing.epoch for timing in run.timings] == [0, 1, 2, 3, 4]
    for file in (run.directory.metrics, run.directory.events, run.directory.timings):
        for line in file.read_text().splitlines():
            written = json.loads(line)
            assert written["format"] == 1
            assert written.get("seed", 3) == 3
            assert ("seed" in written) == (file != run.directory.timings)


@pytest.mark.parametrize(("mode", "patience"), [("train-loss", 11), ("test-loss", 3)])
def test_a_run_in_which_the_rate_cannot_drop_has_a_warning(tmp_path, messages, mode, patience):
    # 48 steps are 12 observations of 4, 4 epochs are 4 of 1; the first one only sets the best.
    size = "4" if mode == "train-loss" else "1"
    for more in (0, 1):
        messages.clear()
        train_one(tmp_path, mode=mode, accumulation_size=size, patience=str(patience + more))
        warnings = [text for text in messages if text.startswith("The rate cannot drop in this")]
        assert len(warnings) == more


def warnings_of(**values: str) -> list[Any]:
    """Train small runs; return the seed, epoch and reason of each warning."""
    return [
        (event.seed, event.epoch, event.reason)
        for result in train_epochs(epochs="3", **values)
        for event in result.events
        if isinstance(event, RunWarning)
    ]


def test_a_rate_too_small_to_change_float32_parameters_is_reported_once():
    assert warnings_of(learning_rate="1e-15", seed="4,7") == [(4, 1, "params"), (7, 1, "params")]
    assert warnings_of(learning_rate="1e-7") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rtol": "0.9", "patience": "1", "min_scale": "0.5"}, [(0, 1, "min-scale")]),
        ({"rtol": "0.9", "patience": "1"}, []),
        ({"schedule": "step", "step_epochs": "1", "min_scale": "0.5"}, []),
    ],
)
def test_a_scale_that_cannot_drop_any_further_is_reported_once(values, expected):
    assert warnings_of(**values) == expected


def test_equal_settings_give_equal_metrics_and_another_seed_does_not(tmp_path):
    runs = [train_one(tmp_path, seed=seed)[0] for seed in ("0", "0", "1")]
    first, second, other = (run.directory.metrics.read_bytes() for run in runs)
    assert first == second
    assert first != other


def test_the_length_of_the_chunks_leaves_the_metrics_unchanged(tmp_path, monkeypatch):
    whole = train_one(tmp_path)[0].directory.metrics.read_bytes()
    monkeypatch.setattr(chunks, "MOST_SECONDS", 0.0)  # every chunk is one step
    assert train_one(tmp_path)[0].directory.metrics.read_bytes() == whole


def test_a_loss_that_is_not_finite_ends_the_run_before_the_rule_observes_it(tmp_path):
    values = {"learning_rate": "1e30", "patience": "1", "accumulation_size": "1", "epochs": "9"}
    with pytest.raises(NonFiniteLossError) as ended:
        train_one(tmp_path, **values)
    (problem,) = ended.value.problems
    assert "at epoch 1, step " in problem
    assert "the last finite training loss was" in problem
    assert "--learning-rate than 1e+30" in ended.value.hint
    run = Run(RunDirectory.find(tmp_path / "latest"))
    assert run.events == [
        Ending(epoch=0, reason="diverged", message=problem),
        Notice(event="failed", message=problem),
    ]
    assert [record.epoch for record in run.records] == [0]
    assert run.state == "failed"


def test_a_failure_after_the_last_epoch_is_recorded(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise StorageError("summary.json cannot be written", hint="free space")

    monkeypatch.setattr("plateau_train.training.loop.summarize", fail)
    with pytest.raises(StorageError):
        train_one(tmp_path, epochs="1")
    run = Run(RunDirectory.find(tmp_path / "latest"))
    assert [event.event for event in run.events] == ["ended", "failed"]
    assert run.state == "failed"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StorageError("plot.png cannot be written", hint="free space"), "plot.png cannot be"),
        (RuntimeError("latex is not there\nlog"), "RuntimeError: latex is not there"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_a_picture_that_fails_leaves_a_run_that_is_done(tmp_path, monkeypatch, error, reason):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("plateau_train.plots.save_run_plot", fail)
    with pytest.raises(PictureError) as ended:
        train_one(tmp_path, epochs="1")
    run = Run(RunDirectory.find(tmp_path / "latest"))
    assert run.state == "done"
    assert [event.event for event in run.events] == ["ended"]
    (problem,) = ended.value.problems
    assert f"is done, but its picture could not be drawn: {reason}" in problem
    assert "\n" not in problem
    assert ended.value.hint.startswith(f"plateau-train plot {tmp_path}")
    assert ended.value.exit_code == 5
    assert ended.value.__cause__ is error


def test_a_run_without_its_picture_is_drawn_by_a_resume(tmp_path):
    run, _ = train_one(tmp_path, epochs="1")
    metrics = run.directory.metrics.read_bytes()
    run.directory.plot.unlink()
    resume_run(run)
    assert run.directory.plot.exists()
    assert run.directory.metrics.read_bytes() == metrics


def test_an_evaluation_that_is_not_finite_ends_the_run_too(tmp_path, monkeypatch):
    evaluate = Replicas.evaluate

    def poison(replicas, params, split, *losses):
        metrics = evaluate(replicas, params, split, *losses)
        return metrics._replace(loss=metrics.loss * (math.nan if len(split.labels) == 300 else 1))

    monkeypatch.setattr(Replicas, "evaluate", poison)
    with pytest.raises(NonFiniteLossError, match="the test loss is nan at the end of epoch 0"):
        train_one(tmp_path, mode="test-accuracy", accumulation_size="1")


def test_settings_that_do_not_fit_the_data_leave_no_run_behind(tmp_path):
    with pytest.raises(ConfigError, match="--batch-size 70,000 is larger than the 600"):
        train_one(tmp_path, batch_size="70000")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_has_all_its_files_and_a_summary_of_its_replica(tmp_path):
    values = {"mode": "val-accuracy", "val_fraction": "0.1", "accumulation_size": "1"}
    run, history = train_one(tmp_path, name="try [1]", **values)
    path, records = run.directory.path, history.records
    assert path.name.endswith("-try [1]")
    assert {file.name for file in path.iterdir()} == {
        *("config.toml", "environment.json", "metrics.jsonl", "events.jsonl", "timings.jsonl"),
        *("checkpoints", "plot.png", "summary.json"),
    }
    assert resolve({}, file=path / "config.toml").settings.plateau.mode == "val-accuracy"
    assert history.ending == Ending(epoch=4, reason="epochs", message="epoch 4, the last one")
    assert run.state == "done"
    summary = json.loads(run.directory.summary.read_text())
    best = max(records, key=lambda record: record.score)
    assert (summary["best_epoch"], summary["best_by"]) == (best.epoch, "val accuracy")
    assert summary["final"]["test_loss"] == {
        "mean": records[-1].test_loss,
        "sd": 0.0,
        "num_replicas": 1,
    }
    (replica,) = summary["replicas"]
    assert (replica["seed"], replica["ending"]) == (0, "epochs")
    assert replica["best"]["val_accuracy"] == best.val_accuracy
    assert replica["num_drops"] == len(history.drops)
    assert run.environment.versions["jax"] == jax.__version__


def test_the_last_checkpoint_has_the_whole_state_of_the_last_epoch(tmp_path):
    run, history = train_one(tmp_path)
    results, folder = train_epochs(epochs="4"), run.directory.checkpoints
    manifest, arrays = read_checkpoint(folder / "epoch-000004.npz")
    expected = name_arrays(results[-1].arrays.state)
    assert manifest.epoch == 4
    assert arrays.keys() == expected.keys()
    assert {"plateau/plateau_count", "plateau/count", "plateau/avg_value", "scale"} <= arrays.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    best = max(history.records, key=lambda record: record.test_accuracy).epoch
    manifest, arrays = read_checkpoint(folder / "best.npz")
    expected = name_arrays(results[best].arrays.state)
    assert manifest.epoch == manifest.best_epoch == best
    np.testing.assert_array_equal(arrays["params/Dense_1/bias"], expected["params/Dense_1/bias"])


def test_a_fallback_is_in_the_name_the_config_the_events_and_the_summary(
    tmp_path, monkeypatch, messages
):
    fallen = dataclasses.replace(load_small(), fallback="fashion_mnist is not here")
    monkeypatch.setattr(data, "load", lambda *_: fallen)
    run, _ = train_one(tmp_path, dataset="auto")
    assert run.directory.path.name.endswith("-train-loss-garments")
    text = run.directory.config.read_text()
    assert 'dataset = "garments" # auto: fashion_mnist is not here' in text
    (warning,) = [event for event in run.events if event.event == "warning"]
    assert "fashion_mnist is not here" in warning.message
    summary = json.loads(run.directory.summary.read_text())
    assert summary["fallback"] == "fashion_mnist is not here"
    assert any("NOT on Fashion-MNIST" in message for message in messages)
