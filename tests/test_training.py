"""fit() in this process, on small data: what the published code slips on, and what it must not."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL

from plateau_train import config, data
from plateau_train.config import RawValue, resolve
from plateau_train.errors import ConfigError, NonFiniteLossError
from plateau_train.numerics import program as numerics
from plateau_train.numerics.replicas import Solo
from plateau_train.report.console import Report
from plateau_train.run.checkpoint import read_checkpoint
from plateau_train.run.records import EPOCHS, EVENTS, Notice, read_drops, read_records
from plateau_train.training import groups, loop, setup


def small(tmp_path, **values):
    given = dict(flag.removeprefix("--").replace("-", "_").split("=") for flag in SMALL)
    given |= {"epochs": "4", "runs_dir": str(tmp_path), "quiet": "true"} | values
    return resolve({key: RawValue(text, "flag") for key, text in given.items()})


def fit(tmp_path, **values):
    path = setup.start(small(tmp_path, **values), Report(quiet=True))
    return path, read_records(path / "metrics.jsonl", EPOCHS), read_drops(path / "events.jsonl")


def retrained(resolved):
    """Return the data, and the record and the state of each epoch."""
    dataset = data.load(resolved.settings.data)
    epochs = loop.train(dataset, [resolved.settings], Report(quiet=True))
    return dataset, [
        SimpleNamespace(
            record=outcome.records[0],
            drops=outcome.drops,
            state=jax.tree.map(lambda rows: rows[0], outcome.state),
        )
        for (outcome,) in epochs
    ]


def exact_scores(resolved, params, split):
    """Score every image of a split in one batch, in NumPy."""
    program = numerics.Program.from_config(resolved.settings, num_classes=10)
    images = jnp.asarray(split.images)
    logits = np.asarray(program.model.apply({"params": params}, images), np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    losses = -log_likelihood[np.arange(len(split.labels)), split.labels]
    return losses.mean(), (logits.argmax(axis=1) == split.labels).mean()


def test_epoch_0_scores_the_training_images_with_the_untrained_network(tmp_path):
    resolved = small(tmp_path)
    dataset, epochs = retrained(resolved)
    first = epochs[0]
    assert first.record.epoch == 0
    assert first.record.observations == ()
    assert first.record.scale == 1.0
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        loss, accuracy = exact_scores(resolved, first.state.params, images)
        assert getattr(first.record, f"{split}_loss") == pytest.approx(loss, rel=1e-5)
        assert getattr(first.record, f"{split}_accuracy") == pytest.approx(accuracy)
    assert first.record.train_loss != first.record.test_loss


def test_test_metrics_are_those_of_all_test_images_at_the_end_of_their_epoch(tmp_path):
    # 300 test images and batches of 70: the last one is incomplete.
    resolved = small(tmp_path, batch_size="70", mode="test-loss")
    dataset, epochs = retrained(resolved)
    assert len(dataset.test.labels) % 70 != 0
    for epoch in epochs:
        loss, accuracy = exact_scores(resolved, epoch.state.params, dataset.test)
        assert epoch.record.test_loss == pytest.approx(loss, rel=1e-5)
        assert epoch.record.test_accuracy == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("mode", "field", "turned"),
    [
        ("test-loss", "test_loss", False),
        ("val-loss", "val_loss", False),
        ("test-accuracy", "test_accuracy", True),
        ("val-accuracy", "val_accuracy", True),
    ],
)
def test_the_rule_sees_each_epochs_own_evaluation_once(tmp_path, mode, field, turned):
    _, records, drops = fit(
        tmp_path, mode=mode, val_fraction="0.2", accumulation_size="1", patience="1", epochs="8"
    )
    best, expected = np.inf, []
    for record in records[1:]:
        value = getattr(record, field)
        value = np.float32(1 - np.float32(value)) if turned else np.float32(value)
        assert record.observations == (pytest.approx(float(value), abs=1e-7),)
        if value < np.float32(1 - 1e-4) * np.float32(best):
            best = value
        else:
            expected.append(record.epoch)
    assert expected, "no drop: nothing was tested"
    assert [drop.epoch for drop in drops] == expected
    assert [drop.position for drop in drops] == expected
    assert records[0].observations == ()


def test_validation_scores_the_held_out_images_and_no_others(tmp_path):
    resolved = small(tmp_path, mode="val-loss", val_fraction="0.3")
    dataset, epochs = retrained(resolved)
    loss, accuracy = exact_scores(resolved, epochs[-1].state.params, dataset.val)
    assert epochs[-1].record.val_loss == pytest.approx(loss, rel=1e-5)
    assert epochs[-1].record.val_accuracy == pytest.approx(accuracy)
    assert epochs[-1].record.val_loss != epochs[-1].record.test_loss


def test_the_order_of_the_images_follows_the_seed_and_the_epoch(tmp_path, monkeypatch):
    asked = []
    epoch_order = numerics.epoch_order

    def recording(seed, epoch, **sizes):
        asked.append((int(seed), epoch))
        return epoch_order(seed, epoch, **sizes)

    monkeypatch.setattr(numerics, "epoch_order", recording)
    retrained(small(tmp_path, seed="7"))
    assert list(dict.fromkeys(asked)) == [(7, 1), (7, 2), (7, 3), (7, 4)]


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation_size": "5", "patience": "1", "cooldown": "2", "rtol": "0.1"},
        {"accumulation_size": "17", "patience": "1", "min_scale": "0.4", "atol": "0.2"},
        {"mode": "train-accuracy", "accumulation_size": "3", "patience": "2", "cooldown": "1"},
        {"mode": "test-loss", "accumulation_size": "2", "patience": "1", "rtol": "0.5"},
    ],
)
def test_what_is_recorded_follows_from_the_observations_alone(tmp_path, settings):
    """Replay the rule in plain Python over the recorded observations."""
    path, records, drops = fit(tmp_path, epochs="9", **settings)
    rule = resolve({}, file=path / "config.toml").settings.plateau
    scale, best, wait, cooldown, expected = 1.0, math.inf, 0, 0, []
    for record in records:
        for value in record.observations:
            to_beat = (1 - rule.rtol) * best - rule.atol
            wait = 0 if value < to_beat else wait + 1
            before, waited = scale, wait
            if cooldown > 0:
                cooldown, wait = cooldown - 1, 0
            elif wait == rule.patience:
                scale, cooldown, wait = max(scale * rule.factor, rule.min_scale), rule.cooldown, 0
            if scale < before:
                expected.append((record.epoch, before, scale, value, best, to_beat, waited))
            best = min(best, value) if value < to_beat else best
        assert (record.scale, record.wait, record.cooldown) == (
            pytest.approx(scale), wait, cooldown,
        )  # fmt: skip
        assert record.learning_rate == pytest.approx(0.03 * scale)
        if record.best_value is not None:
            assert record.best_value == pytest.approx(best)
            assert record.to_beat == pytest.approx((1 - rule.rtol) * best - rule.atol, abs=1e-6)
    assert expected, "no drop: nothing was tested"
    assert len(drops) == len(expected)
    for drop, (epoch, before, after, value, best, to_beat, waited) in zip(
        drops, expected, strict=True
    ):
        assert (drop.epoch, drop.waited) == (epoch, waited)
        assert drop.step == pytest.approx(drop.position * 12)
        assert [
            drop.scale_before, drop.scale_after, drop.value, drop.best, drop.to_beat,
            drop.learning_rate_before, drop.learning_rate_after,
        ] == pytest.approx(
            [before, after, value, best, to_beat, 0.03 * before, 0.03 * after], abs=1e-6
        )  # fmt: skip
    summary = json.loads((path / "summary.json").read_text())
    assert summary["drop_epochs"] == [drop[0] for drop in expected]


def test_a_latest_that_cannot_be_swapped_is_no_reason_to_stop(tmp_path, capsys):
    (tmp_path / "latest").mkdir()
    path, records, _ = fit(tmp_path)
    assert len(records) == 5
    assert (path / "plot.png").exists()
    assert "latest stays as it is: it is no link to a run" in capsys.readouterr().err


def test_a_new_scale_of_an_evaluation_acts_from_the_next_epoch_on(tmp_path):
    _, records, drops = fit(
        tmp_path, mode="test-loss", accumulation_size="1", patience="1", rtol="0.9",
        optimizer="sgd", momentum="0",
    )  # fmt: skip
    # The first epoch improves on infinity, each later one is a plateau.
    assert [record.scale for record in records] == [1, 1, 0.5, 0.25, 0.125]
    assert [(drop.epoch, drop.scale_before, drop.scale_after) for drop in drops] == [
        (2, 1, 0.5), (3, 0.5, 0.25), (4, 0.25, 0.125),
    ]  # fmt: skip
    _, undisturbed, _ = fit(
        tmp_path, mode="test-loss", accumulation_size="1", patience="99", rtol="0.9",
        optimizer="sgd", momentum="0",
    )  # fmt: skip
    assert records[2].train_loss == undisturbed[2].train_loss
    assert records[3].train_loss != undisturbed[3].train_loss


def test_in_train_mode_windows_run_on_across_epochs_and_drops_say_when_they_fell(tmp_path):
    _, records, drops = fit(tmp_path, accumulation_size="5", patience="1", rtol="0.3", epochs="6")
    # 12 steps an epoch: windows of 5 close at steps 5, 10, 15, ...
    assert [len(record.observations) for record in records] == [0, 2, 2, 3, 2, 3, 2]
    assert drops
    for drop in drops:
        assert drop.step % 5 == 0
        assert drop.position == pytest.approx(drop.step / 12)
        assert drop.epoch == -(-drop.step // 12)
        assert drop.learning_rate_after == pytest.approx(0.03 * drop.scale_after)
        assert drop.value >= drop.to_beat
        assert drop.to_beat == pytest.approx(0.7 * drop.best, rel=1e-6)
        assert drop.waited == 1
        assert "train loss, mean of 5 steps" in drop.reason
        (record,) = [record for record in records if record.epoch == drop.epoch]
        assert drop.value in record.observations
    assert records[-1].scale == drops[-1].scale_after


def test_train_metrics_are_means_over_the_batches_as_they_were_seen(tmp_path):
    resolved = small(tmp_path, epochs="1", accumulation_size="1")
    _, (_, first) = retrained(resolved)
    assert len(first.record.observations) == 12
    assert first.record.train_loss == pytest.approx(np.mean(first.record.observations))


def test_each_epoch_is_recorded_once(tmp_path):
    path, records, _ = fit(tmp_path)
    assert [record.epoch for record in records] == [0, 1, 2, 3, 4]
    assert [record.step for record in records] == [0, 12, 24, 36, 48]
    assert len((path / "timings.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(("mode", "patience"), [("train-loss", 11), ("test-loss", 3)])
def test_a_run_that_is_over_before_patience_can_run_out_says_so(tmp_path, capsys, mode, patience):
    # 48 steps are 12 observations of 4, 4 epochs are 4 of 1; the first one only sets the best.
    size = "4" if mode == "train-loss" else "1"
    for more in (0, 1):
        fit(tmp_path, mode=mode, accumulation_size=size, patience=str(patience + more))
        assert ("The rate cannot drop in this run" in capsys.readouterr().err) == (more == 1)


def test_two_equal_runs_write_equal_metrics_and_another_seed_does_not(tmp_path):
    paths = [fit(tmp_path, seed=seed)[0] for seed in ("0", "0", "1")]
    first, second, other = ((path / "metrics.jsonl").read_bytes() for path in paths)
    assert first == second
    assert first != other


def test_the_length_of_the_chunks_leaves_the_metrics_unchanged(tmp_path, monkeypatch):
    whole = (fit(tmp_path)[0] / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(groups, "CHUNK_SECONDS", 0.0)  # every chunk one step
    assert (fit(tmp_path)[0] / "metrics.jsonl").read_bytes() == whole


def test_a_loss_that_is_not_finite_stops_the_run_before_the_rule_takes_it_for_a_plateau(tmp_path):
    with pytest.raises(NonFiniteLossError) as stopped:
        fit(tmp_path, learning_rate="1e30", patience="1", accumulation_size="1", epochs="9")
    (problem,) = stopped.value.problems
    assert "at epoch 1, step " in problem
    assert "the last finite training loss was" in problem
    assert "--learning-rate than 1e+30" in stopped.value.hint
    path = tmp_path / "latest"
    events = read_records(path / "events.jsonl", EVENTS)
    assert events == [Notice(event="failed", message=problem)]
    assert [record.epoch for record in read_records(path / "metrics.jsonl", EPOCHS)] == [0]


def test_an_evaluation_that_is_not_finite_stops_the_run_too(tmp_path, monkeypatch):
    evaluate = Solo.evaluate

    def poisoned(trainer, state, split):
        metrics = evaluate(trainer, state, split)
        return metrics._replace(loss=jnp.where(len(split.labels) == 300, jnp.nan, metrics.loss))

    monkeypatch.setattr(Solo, "evaluate", poisoned)
    with pytest.raises(NonFiniteLossError, match="the test loss is nan at the end of epoch 0"):
        fit(tmp_path, mode="test-accuracy", accumulation_size="1")


def test_settings_that_do_not_fit_the_data_leave_no_run_behind(tmp_path):
    with pytest.raises(ConfigError, match="--batch-size 70,000 is larger than the 600"):
        fit(tmp_path, batch_size="70000")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_holds_all_its_files_and_says_in_words_what_it_was(tmp_path):
    path, records, drops = fit(tmp_path, mode="val-accuracy", val_fraction="0.1", name="try [1]")
    assert path.name.endswith("-try [1]")
    assert {file.name for file in path.iterdir()} >= {
        "config.toml", "environment.json", "metrics.jsonl", "timings.jsonl", "checkpoints",
        "plot.png", "summary.json",
    }  # fmt: skip
    assert resolve({}, file=path / "config.toml").settings.plateau.mode == "val-accuracy"
    summary = json.loads((path / "summary.json").read_text())
    best = max(records, key=lambda record: record.val_accuracy)
    assert (summary["best"]["epoch"], summary["best_by"]) == (best.epoch, "val accuracy")
    assert summary["final"]["test_loss"] == records[-1].test_loss
    assert summary["num_drops"] == len(drops)
    environment = json.loads((path / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__


def test_the_last_checkpoint_holds_the_whole_state_of_the_last_epoch(tmp_path):
    path, records, _ = fit(tmp_path)
    _, epochs = retrained(small(tmp_path))
    manifest, arrays = read_checkpoint(path / "checkpoints" / "epoch-000004.npz")
    expected = loop._named(epochs[-1].state)
    assert (manifest.epoch, list(manifest.records)) == (4, records)
    assert arrays.keys() == expected.keys()
    assert {"plateau/plateau_count", "plateau/count", "plateau/avg_value"} <= arrays.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    best = max(records, key=lambda record: record.test_accuracy).epoch
    expected = loop._named(epochs[best].state)
    _, arrays = read_checkpoint(path / "checkpoints" / "best.npz")
    np.testing.assert_array_equal(arrays["params/Dense_1/bias"], expected["params/Dense_1/bias"])


def test_a_fallback_is_written_in_the_name_the_config_the_events_and_the_summary(
    tmp_path, monkeypatch, capsys
):
    dataset = data.load(small(tmp_path).settings.data)
    fallen = dataclasses.replace(dataset, fallback="fashion_mnist is not here")
    monkeypatch.setattr(data, "load", lambda *_, **__: fallen)
    path, _, _ = fit(tmp_path, dataset="auto")
    assert path.name.endswith("-train-loss-garments")
    text = (path / "config.toml").read_text()
    assert 'dataset = "garments" # auto: fashion_mnist is not here' in text
    (warning,) = [
        event for event in read_records(path / "events.jsonl", EVENTS) if event.event == "warning"
    ]
    assert "fashion_mnist is not here" in warning.message
    summary = json.loads((path / "summary.json").read_text())
    assert summary["fallback"] == "fashion_mnist is not here"
    assert "NOT on Fashion-MNIST" in capsys.readouterr().err
    assert config.Settings().data.dataset == "auto"
