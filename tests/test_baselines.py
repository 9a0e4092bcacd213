"""The schedules that the plateau rule is held against: the same training, another scale."""

import contextlib
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL
from matplotlib.figure import Figure
from test_program import IMAGE_SHAPE, examples, make_program

from plateau_train import config, data
from plateau_train.config import RawValue, resolve
from plateau_train.errors import ChangedSettingsError
from plateau_train.numerics import program as numerics
from plateau_train.numerics.program import Baseline
from plateau_train.plots import panels
from plateau_train.report.console import Report
from plateau_train.run.checkpoint import Checkpoint, Manifest, read_checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import describe_environment
from plateau_train.run.records import EPOCHS, EVENTS, read_records
from plateau_train.training import loop, setup

STEPS = 12  # an epoch, of the 600 images of a small run
STAIRS = {"schedule": "step", "step_epochs": "2", "min_scale": "0.2", "epochs": "6"}
COSINE = {
    "schedule": "cosine", "min_scale": "0.1", "epochs": "4", "mode": "test-loss",
    "accumulation_size": "1",
}  # fmt: skip


def small(folder="unused", **values):
    given = dict(flag.removeprefix("--").replace("-", "_").split("=") for flag in SMALL)
    given |= {"patience": "1", "rtol": "0.3", "runs_dir": str(folder)} | values
    return resolve({key: RawValue(text, "flag") for key, text in given.items()})


def retrained(found=(), **values):
    """Train without a folder; return the data and each epoch."""
    settings = small(**values).settings
    dataset = data.load(settings.data)
    epochs = loop.train(dataset, [settings], Report(quiet=True), found)
    return dataset, [outcome for (outcome,) in epochs]


def records_of(epochs):
    return [record for outcome in epochs for record in outcome.records]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Train in this process; return the folder of the run, and what was printed and told."""
    monkeypatch.setattr(panels, "draw_run", lambda *_: Figure(figsize=(1, 1)))

    def start(**values):
        out, talk = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(talk):
            path = setup.start(small(tmp_path, **values), Report())
        return RunDirectory(path), out.getvalue(), talk.getvalue()

    return start


def scales(steps, **values):
    """Return the scales that act on some steps of runs of 100 steps an epoch."""
    baseline = Baseline.from_config(small(**values).settings)
    assert baseline is not None
    return [float(baseline.scale(jnp.asarray(step), 100)) for step in steps]


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_cosine_falls_from_1_to_the_floor_over_all_epochs(floor):
    values = {"schedule": "cosine", "epochs": "8", "min_scale": str(floor)}
    steps = [0, 1, 200, 400, 799, 800, 900]
    closed = [0.5 * (1 + math.cos(math.pi * min(step, 800) / 800)) for step in steps]
    expected = [floor + (1 - floor) * share for share in closed]
    assert scales(steps, **values) == pytest.approx(expected, abs=1e-6)
    assert scales([0, 400, 800], **values) == pytest.approx([1, (1 + floor) / 2, floor], abs=1e-6)


def test_a_step_multiplies_by_the_factor_every_so_many_epochs_down_to_the_floor():
    values = {"schedule": "step", "step_epochs": "2", "factor": "0.5", "min_scale": "0.2"}
    steps = [0, 199, 200, 399, 400, 599, 600, 10_000]
    expected = [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]
    assert scales(steps, **values) == pytest.approx(expected)
    assert scales([400, 600], **values | {"min_scale": "0"}) == pytest.approx([0.25, 0.125])


def test_stairs_longer_than_any_run_are_none():
    baseline = Baseline("step", epochs=3, step_epochs=1_000_000_000, factor=0.5, min_scale=0.0)
    assert float(baseline.scale(jnp.int32(3 * 468 - 1), 468)) == 1


def test_a_constant_stays_1_and_the_plateau_rule_has_no_baseline():
    values = {"schedule": "constant", "min_scale": "0.2"}
    assert scales([0, 1, 10_000], **values) == [1, 1, 1]
    assert Baseline.from_config(small(schedule="plateau").settings) is None


def test_half_the_scale_is_half_the_update():
    program = make_program(
        hidden_sizes=(), optimizer=config.OptimizerSettings(optimizer="sgd", momentum=0.0)
    )
    baseline = Baseline("step", epochs=9, step_epochs=1, factor=0.5, min_scale=0.0)
    program, split = program._replace(baseline=baseline), examples(8)
    state = numerics.init_state(program, 0, IMAGE_SHAPE)
    before = jax.tree.map(np.array, state.params)
    order = np.arange(8, dtype=np.int32)[np.newaxis]
    moved = []
    for epoch in (1, 2):
        records = numerics.empty_records(program, state, split, 1)
        copy = jax.tree.map(lambda leaf: leaf.copy(), state)
        after, _ = numerics.train_steps(program, copy, records, split, order, 0, 1, epoch)
        assert float(after.plateau.scale) == 1 / epoch
        moved.append(jax.tree.map(lambda new, old: np.array(new) - old, after.params, before))
    for whole, half in zip(*map(jax.tree.leaves, moved), strict=True):
        assert np.abs(whole).max() > 1e-5
        np.testing.assert_allclose(half, whole / 2, rtol=1e-3, atol=1e-7)


def test_a_constant_scale_is_a_plateau_rule_that_cannot_drop_bit_for_bit():
    _, constant = retrained(schedule="constant", epochs="3")
    _, patient = retrained(patience="1000000", epochs="3")
    assert records_of(constant) == records_of(patient)
    assert {record.scale for record in records_of(constant)} == {1.0}


def test_a_baseline_observes_what_the_rule_would_and_drops_nothing(start):
    run, out, talk = start(**STAIRS)
    records = read_records(run.metrics, EPOCHS)
    # Windows of 4 of the 12 steps of an epoch.
    assert [len(record.observations) for record in records] == [0, 3, 3, 3, 3, 3, 3]
    assert [record.scale for record in records] == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25, 0.25])
    assert [record.learning_rate for record in records] == pytest.approx(
        [0.03 * record.scale for record in records]
    )
    assert read_records(run.events, EVENTS) == []
    assert "because" not in out
    assert run.path.name.endswith("-step")
    assert "step: the scale is multiplied by 0.5 every 2 epochs, down to 0.2" in talk
    assert "the plateau rule only observes" in talk
    seen = [value for record in records for value in record.observations]
    assert any(value >= 0.7 * min(seen[:number]) for number, value in enumerate(seen) if number), (
        "the rule itself would not have dropped either"
    )


def test_an_evaluation_that_is_a_plateau_leaves_a_baseline_as_it_is():
    _, epochs = retrained(**COSINE)
    records, num_steps = records_of(epochs)[1:], 4 * STEPS
    # What acted on the last step of each epoch.
    angles = [math.pi * (STEPS * record.epoch - 1) / num_steps for record in records]
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(angle)) for angle in angles]
    assert [record.scale for record in records] == pytest.approx(expected, abs=1e-6)
    assert [record.observations for record in records] == [
        (record.test_loss,) for record in records
    ]
    losses = [record.test_loss for record in records]
    assert losses[-1] >= 0.7 * min(losses[:-1]), "the rule itself would not have dropped either"


@pytest.mark.parametrize("values", [COSINE, STAIRS], ids=["cosine", "step"])
def test_a_baseline_goes_on_from_a_checkpoint_bit_for_bit(values):
    dataset, whole = retrained(**values)
    settings, origins = small(**values)
    environment = describe_environment(["cpu:0"], setup.describe_data(dataset))
    manifest = Manifest(
        settings=settings, origins=origins, environment=environment, records=records_of(whole[:3])
    )
    state = jax.tree.map(lambda rows: rows[0], whole[2].state)
    _, rest = retrained([Checkpoint(manifest, loop._named(state))], **values)
    assert records_of(rest) == records_of(whole[3:])
    for ours, theirs in zip(*map(jax.tree.leaves, (rest[-1].state, whole[-1].state)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def resume(run, **values):
    asked = resolve({key: RawValue(text, "flag") for key, text in values.items()})
    setup.resume(run.path, asked, Report(quiet=True))
    return read_records(run.metrics, EPOCHS)


def test_a_cosine_cannot_go_further_than_it_was_laid_over(start):
    run, out, talk = start(**COSINE)
    assert "epoch 4/4" in out
    assert "wait" not in out, "no drop is near"
    assert run.path.name.endswith("-cosine")
    assert "cosine: the scale falls from 1 to 0.1 over 4 epochs" in talk
    before = run.config.read_bytes(), run.metrics.read_bytes()
    with pytest.raises(ChangedSettingsError) as refused:
        resume(run, epochs="5")
    assert refused.value.exit_code == 2
    assert (
        "--epochs",
        "4",
        "5",
        "the cosine spans the epochs that the run began with",
    ) in refused.value.table
    assert before == (run.config.read_bytes(), run.metrics.read_bytes())


@pytest.mark.parametrize("values", [STAIRS, {"schedule": "constant"}], ids=["step", "constant"])
def test_a_schedule_without_an_end_goes_further_as_if_it_had_been_longer(start, values):
    run, *_ = start(**values | {"epochs": "4"})
    _, longer = retrained(**values | {"epochs": "5"})
    assert resume(run, epochs="5") == records_of(longer)


def test_the_schedule_of_a_run_cannot_change(start):
    run, *_ = start(schedule="constant", epochs="1")
    with pytest.raises(ChangedSettingsError) as refused:
        resume(run, schedule="step", epochs="2")
    assert ("--schedule", "constant", "step", "the results depend on it") in refused.value.table


def test_a_run_from_before_there_were_schedules_is_one_of_the_plateau_rule(start):
    run, *_ = start(epochs="1")
    lines = run.config.read_text().splitlines()
    old = [line for line in lines if not line.startswith(("schedule", "step_epochs"))]
    assert len(old) == len(lines) - 2
    run.config.write_text("\n".join(old) + "\n")
    read = run.settings().settings
    assert (read.optimizer.schedule, read.run.seeds) == ("plateau", (0,))
    manifest = read_checkpoint(run.checkpoints / "best.npz").manifest
    former = manifest.model_dump(mode="json")
    for key in ("schedule", "step_epochs"):
        del former["settings"]["optimizer"][key]
    for record in former["records"]:
        del record["replica"]
    assert Manifest.model_validate_json(json.dumps(former)) == manifest
    assert [record.epoch for record in resume(run, epochs="2")] == [0, 1, 2]
