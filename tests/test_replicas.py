"""Several trainings in one program and one run folder, each as if it were the only one."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import jax
import numpy as np
import pytest
from helpers import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    SMALL,
    SMALL_STEPS,
    TOLERANCE,
    command,
    histories_of,
    make_examples,
    make_garments_spec,
    make_replicas,
    make_settings,
    make_spec,
    one_device,
    resolve_small,
    resume_run,
    take_epoch,
    train_epochs,
    train_run,
)

from plateau_train import config
from plateau_train.errors import ConfigError, NonFiniteLossError
from plateau_train.numerics import replicas as numerics
from plateau_train.numerics.replicas import estimate_memory
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import train_steps
from plateau_train.report.progress import RunReport
from plateau_train.run import checkpoint, environment
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run, describe_done
from plateau_train.run.records import Ending, MeanStd, Notice, best_record
from plateau_train.training import memory, setup
from plateau_train.training.endings import Endings

# About every second observation is no improvement, and none is close to the threshold.
EAGER = {"patience": "1", "rtol": "0.3", "epochs": "3"}
FLAGS = [f"--{key}={value}" for key, value in EAGER.items()]

# Devices and replicas, and the mesh (replica, batch) of gcd(R, D) that they are trained on.
MESHES = {(1, 1): (1, 1), (4, 1): (1, 4), (4, 2): (2, 2), (4, 3): (1, 4), (4, 4): (4, 1)}
OTHERS = [(4, 1)]  # which scripts/torture tests: its mesh is that of (4, 3)
KEYS = [key for key in MESHES if key not in OTHERS]


@pytest.fixture(scope="module")
def trio(processes, tmp_path_factory):
    """A finished run of three replicas on one device; the tests only read it."""
    folder = tmp_path_factory.mktemp("trio")
    finished = processes.run(folder, *SMALL, *FLAGS, "--seed=0-2")
    assert finished.code == 0, finished.stderr
    return Run.open(folder / "runs" / "latest"), finished


def bits_of(history):
    """Return all that a replica records but its number."""
    return [record.model_dump(exclude={"replica"}) for record in history.records]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "test-loss", "accumulation_size": "1", "rtol": "0.5"},
        {"schedule": "cosine", "min_scale": "0.1"},
        {"schedule": "schedule-free"},
    ],
    ids=["train-loss", "test-loss", "cosine", "schedule-free"],
)
def test_on_a_cpu_a_replica_has_the_bits_of_a_single_training_of_its_seed(settings):
    together = histories_of(train_epochs(**EAGER | settings, seed="0-2"))
    (alone,) = histories_of(train_epochs(**EAGER | settings, seed="1"))
    assert bits_of(together[1]) == bits_of(alone)
    assert bool(alone.drops) == ("schedule" not in settings)
    assert together[0].records[1].train_loss != alone.records[1].train_loss


def test_traced_hyperparameters_differ_in_one_compiled_program():
    runs = [
        make_settings(
            seed=(seed,), hidden_sizes=(),
            optimizer=config.OptimizerSettings(learning_rate=learning_rate),
            accumulation_size=1, rtol=0.3, patience=patience, cooldown=cooldown,
            min_scale=min_scale,
        )
        for seed, (learning_rate, patience, cooldown, min_scale) in enumerate(
            [(0.01, 1, 0, 0.0), (0.02, 2, 1, 0.3)]
        )
    ]  # fmt: skip
    split, results, num_compiled = make_examples(80), [], set()
    for together in (runs, runs[::-1]):
        replicas = make_replicas(*together)
        _, records = take_epoch(replicas, replicas.init(IMAGE_SHAPE), split, 1)
        results.append(records)
        static = (replicas.spec,), replicas.mesh, (numerics.REPLICA_AXIS,)
        steps = numerics.compiled(train_steps, *static, at_once=False)
        num_compiled.add((numerics.compiled.cache_info().currsize, steps._cache_size()))
    assert len(num_compiled) == 1
    records, swapped = results
    seen = records.observation
    np.testing.assert_array_equal(records.metrics.loss, swapped.metrics.loss[::-1])
    for row, run in enumerate(runs):
        single = make_replicas(run)
        _, expected = take_epoch(single, single.init(IMAGE_SHAPE), split, 1)
        np.testing.assert_allclose(records.metrics.loss[row], expected.metrics.loss[0], TOLERANCE)
        assert expected.observation is not None
        np.testing.assert_array_equal(seen.wait[row], expected.observation.wait[0])
        np.testing.assert_allclose(seen.scale[row], expected.observation.scale[0], rtol=1e-6)
    lowest = seen.scale.min(axis=1)
    assert lowest[0] < 0.1, "no drops to compare"
    assert lowest[1] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({"factor": 0.4}, False),
        ({"batch_size": 4}, False),
        ({"hidden_sizes": (4,)}, False),
        ({"mode": "test-loss"}, False),
        ({"patience": 9, "cooldown": 2, "min_scale": 0.1, "seed": (3, 4)}, True),
        ({"optimizer": config.OptimizerSettings(learning_rate=0.5)}, True),
    ],
)
def test_specs_are_equal_where_only_traced_settings_differ(changed, is_same):
    assert (make_spec(make_settings()) == make_spec(make_settings(**changed))) == is_same


def test_an_epoch_in_chunks_is_traced_once_and_has_the_bits_of_a_whole_one(monkeypatch):
    traces = []
    train_step = numerics.single.train_step

    def count(*arguments):
        traces.append(1)
        return train_step(*arguments)

    monkeypatch.setattr(numerics.single, "train_step", count)
    # No other test has this batch size, so no other compilation is used.
    replicas = make_replicas(make_settings(batch_size=6, accumulation_size=4, patience=1))
    split, order = make_examples(80), replicas.epoch_order(1, 80)
    results = []
    for cuts in ((0, 13), (0, 1, 9, 13)):
        state, records = replicas.init(IMAGE_SHAPE), replicas.empty_records(13)
        for start, stop in itertools.pairwise(cuts):
            state, records = replicas.train_steps(state, records, order, split, start, stop, 1)
        results.append((state, records))
    for whole, chunked in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(whole, chunked)
    assert len(traces) == 1


def test_static_bounds_are_in_the_compiled_program_and_leave_the_bits(monkeypatch):
    replicas = make_replicas(make_settings(batch_size=8, accumulation_size=4, patience=1))
    split, order = make_examples(80), replicas.epoch_order(1, 80)
    programs, results = [], []
    for is_static in (False, True):
        monkeypatch.setattr(numerics.Replicas, "has_static_bounds", is_static)
        state, records = replicas.init(IMAGE_SHAPE), replicas.empty_records(10)
        function = numerics.compiled(
            numerics.single.train_steps, (replicas.spec, 5 if is_static else None),
            replicas.mesh, (numerics.REPLICA_AXIS,), at_once=False,
        )  # fmt: skip
        mapped = replicas.hyperparams, order
        arguments = numerics.Carry(state, records), mapped, (split, 0, 5, 1)
        programs.append(function.lower(*arguments).compile().as_text())
        for start in (0, 5):
            bounds = start, start + 5
            state, records = replicas.train_steps(state, records, order, split, *bounds, 1)
        results.append((state, records))
    assert ['"known_trip_count":{"n":"5"}' in text for text in programs] == [False, True]
    for traced, static in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(traced, static)


@pytest.mark.parametrize("num_replicas", [1, 2])
@pytest.mark.parametrize("num_examples", [7, 8, 9, 41])  # beside one and five batches
def test_evaluation_scores_every_image_once(monkeypatch, num_examples, num_replicas):
    monkeypatch.setattr(numerics, "EVALUATION_BATCH", 8)
    replicas = make_replicas(make_settings(seed=tuple(range(num_replicas))))
    variables, split = replicas.init(IMAGE_SHAPE).variables, make_examples(num_examples)
    metrics = replicas.evaluate(variables, split)
    confusion = replicas.count_confusion(variables, split)
    labels = np.asarray(split.labels)
    for row in range(num_replicas):
        own = jax.tree.map(lambda rows, row=row: rows[row], variables)
        logits = np.asarray(
            numerics.single.predict(replicas.spec.network, own, split.images), np.float64
        )
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(num_examples), labels]
        predicted = logits.argmax(axis=1)
        assert metrics.loss[row] == pytest.approx(losses.mean(), rel=1e-5)
        assert metrics.accuracy[row] == pytest.approx((predicted == labels).mean())
        expected = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
        np.add.at(expected, (labels, predicted), 1)
        np.testing.assert_array_equal(confusion[row], expected)


def run_meshes(keys, *words):
    """Return what tests/meshes.py prints of each of ``MESHES``, on four simulated devices."""
    script = Path(__file__).with_name("meshes.py")
    finished = subprocess.run(
        [sys.executable, script, json.dumps(list(keys)), *words],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return dict(zip(keys, json.loads(finished.stdout), strict=True))


@pytest.fixture(scope="module")
def meshes():
    return run_meshes(KEYS)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_devices_share_replicas_and_batches_by_the_greatest_common_divisor(meshes, key):
    assert tuple(meshes[key]["mesh"]) == MESHES[key]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_steps_have_one_all_reduce_where_devices_share_a_batch_else_none(meshes, key):
    collectives, (_, num_sharing) = meshes[key]["collectives"], MESHES[key]
    assert collectives["train_steps"] == (["all-reduce"] if num_sharing > 1 else [])
    if num_sharing == 1:
        assert not any(collectives.values())
    assert {"init_state", "epoch_order", "evaluate", "observe"} < collectives.keys()


def test_replicas_trained_at_once_as_on_accelerators_agree_with_those_one_by_one(meshes):
    key = (4, 2)
    (at_once,) = run_meshes([key], "at-once").values()
    assert at_once["collectives"]["train_steps"] == ["all-reduce"]
    for name in ("train_loss", "test_loss", "scale"):
        np.testing.assert_allclose(at_once[name], meshes[key][name], rtol=TOLERANCE)
    assert at_once["train_loss"] != meshes[key]["train_loss"], "it was not trained at once"


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_mesh_gives_the_same_losses_up_to_rounding(meshes, key):
    actual, expected = meshes[key], meshes[4, 4]
    num_replicas = key[1]
    for name in ("train_loss", "test_loss", "scale"):
        np.testing.assert_allclose(actual[name], expected[name][:num_replicas], rtol=TOLERANCE)
    assert actual["num_scored"] == 30 * num_replicas
    assert max(actual["scale"]) < 1, "no drop to compare"


def test_replicas_on_three_devices_of_a_cpu_have_the_bits_of_one(trio, tmp_path):
    flags = (*SMALL, *FLAGS, "--seed=0-2")
    finished = command(*flags, cwd=tmp_path, JAX_NUM_CPU_DEVICES="3")
    assert finished.returncode == 0, finished.stderr
    assert "3 x cpu" in finished.stderr
    histories = Run.open(tmp_path / "runs" / "latest").histories
    assert list(map(bits_of, histories)) == list(map(bits_of, trio[0].histories))


@pytest.mark.parametrize(("seeds", "num_devices"), [("0-3", 4), ("0-2", 3), ("0-4", 1), ("7", 1)])
def test_the_cores_of_a_cpu_share_the_seeds_evenly(tmp_path, seeds, num_devices):
    flags = ("--epochs=1", f"--seed={seeds}", "--train-examples=200", "--hidden-sizes=8")
    finished = command(*SMALL, *flags, cwd=tmp_path, NPROC="4")
    assert finished.returncode == 0, finished.stderr
    devices = Run.open(tmp_path / "runs" / "latest").environment.devices
    assert devices == [f"cpu:{number} (cpu)" for number in range(num_devices)]


def test_the_scores_of_seeds_on_several_cores_are_those_of_the_training(tmp_path):
    finished = command(*SMALL, "--epochs=2", "--seed=0-3", cwd=tmp_path, NPROC="2")
    assert finished.returncode == 0, finished.stderr
    for replica in range(4):
        flags = f"--replica={replica}", "--checkpoint=last"
        scored = command("evaluate", "runs/latest", *flags, cwd=tmp_path, NPROC="2")
        assert (scored.returncode, scored.stderr.count("differ")) == (0, 0), scored.stderr


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_devices_of_a_cpu_hold_the_images_once(meshes, key):
    assert meshes[key]["num_copies"] == 1


def needed_memory(num_replicas: float) -> int:
    """Return the available memory in which so many replicas of a small run fit on a CPU.

    Each has its state on the device and on the host. One at a time has gradients and activations.
    """
    per_replica, state_bytes = estimate_memory(small_spec(), (28, 28, 1))
    states = num_replicas * (1 + memory.HOST_COPIES) * state_bytes
    return int((states + per_replica - state_bytes) / memory.USABLE)


def small_spec() -> Spec:
    return make_garments_spec(resolve_small().settings)


@pytest.mark.parametrize(
    ("num_fitting", "way_out"),
    [(2.5, "train 2 of them at a time"), (0.5, "train a smaller network (--hidden-sizes)")],
)
def test_too_many_seeds_for_the_memory_are_refused(tmp_path, monkeypatch, num_fitting, way_out):
    monkeypatch.setattr(environment, "available_memory", lambda: needed_memory(num_fitting))
    with pytest.raises(ConfigError) as refused:
        train_run(tmp_path, seed="0-4")
    (problem,) = refused.value.problems
    wanted, free = (needed_memory(num) * memory.USABLE / 1e9 for num in (5, num_fitting))
    assert problem == (
        f"5 seeds need about {wanted:.3g} GB of memory, and {free:.3g} GB are usable"
    )
    assert refused.value.hint == way_out
    assert list(tmp_path.iterdir()) == []


def test_seeds_that_fit_into_the_memory_are_trained(monkeypatch):
    spec, mesh = small_spec(), one_device(5)
    monkeypatch.setattr(environment, "available_memory", lambda: needed_memory(5.5))
    needed, free = (needed_memory(number) * memory.USABLE / 1e9 for number in (5, 5.5))
    assert memory.check_memory(spec, 5, mesh, (28, 28, 1)) == (
        f"about {needed:.3g} GB of {free:.3g} GB usable memory"
    )
    with pytest.raises(ConfigError, match="6 seeds need about"):
        memory.check_memory(spec, 6, mesh, (28, 28, 1))


def test_the_memory_of_accelerators_limits_the_replicas_of_each(monkeypatch):
    spec = small_spec()
    per_replica, _ = estimate_memory(spec, (28, 28, 1))
    stats = {"bytes_limit": int(3.7 * per_replica / memory.USABLE) + 1000, "bytes_in_use": 1000}
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(environment, "available_memory", lambda: needed_memory(100))
    for num_sharing, num_fitting in ((1, 3), (2, 7)):
        mesh: Any = SimpleNamespace(local_devices=[device], shape={"replica": num_sharing})
        fits = memory.check_memory(spec, num_fitting, mesh, (28, 28, 1))
        free = f"{3.7 * per_replica / 1e9:.3g} GB"
        assert fits.endswith(f" of {free} usable memory on each device")
        with pytest.raises(ConfigError, match=f"memory on each device, and {free}") as refused:
            memory.check_memory(spec, num_fitting + 1, mesh, (28, 28, 1))
        assert refused.value.hint == f"train {num_fitting} of them at a time"


def test_the_estimate_is_not_below_the_size_of_a_state(trio):
    newest, _ = checkpoint.read_newest(trio[0].directory.checkpoints)
    assert newest is not None
    sizes = {name: array.nbytes / 3 for name, array in newest.arrays.items()}
    per_replica, state_bytes = estimate_memory(small_spec(), (28, 28, 1))
    assert state_bytes >= sum(sizes.values())
    # A step also has gradients and updates, each as large as the parameters.
    params = sum(size for name, size in sizes.items() if name.startswith("params/"))
    assert per_replica >= sum(sizes.values()) + 2 * params


def test_the_available_memory_is_below_that_of_the_machine(tmp_path, monkeypatch):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < environment.available_memory() < whole
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    (tmp_path / "memory.stat").write_text("active_file 40\ninactive_file 20\n")
    assert environment.available_memory() == 120
    (tmp_path / "memory.current").write_text("1100\n")
    assert environment.available_memory() == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.available_memory() > 100


@pytest.fixture
def explosive(monkeypatch):
    """Give the replica of seed 1 a learning rate at which its loss is soon not finite."""
    from_settings = Hyperparams.from_settings

    def explode(runs, **options):
        rows: Any = from_settings(runs, **options)
        rows.learning_rate[rows.seed == 1] = 1e30
        return rows

    monkeypatch.setattr(Hyperparams, "from_settings", explode)


def test_a_replica_that_diverges_ends_and_the_others_continue(
    processes, tmp_path, explosive, monkeypatch, messages, no_plots
):
    shown = []
    monkeypatch.setattr(RunReport, "on_chunk", lambda _, step, loss: shown.append((step, loss)))
    expected = histories_of(train_epochs(**EAGER, seed="0-2"))
    run = train_run(tmp_path, **EAGER, seed="0-2")
    (message,) = (message for message in messages if message.startswith("seed 1: "))
    assert message.startswith("seed 1: the training loss is ")
    assert "at epoch 1, step " in message
    assert "the last finite training loss was " in message
    endings = [event for event in run.events if isinstance(event, Ending)]
    assert [(ending.seed, ending.epoch, ending.reason) for ending in endings] == [
        (1, 0, "diverged"), (0, 3, "epochs"), (2, 3, "epochs"),
    ]  # fmt: skip
    assert endings[0].message == message.removeprefix("seed 1: ")
    assert [history.last_epoch for history in run.histories] == [3, 0, 3]
    for replica in (0, 2):
        assert run.histories[replica].records == expected[replica].records
        assert run.histories[replica].drops == expected[replica].drops
    assert run.directory.plot.exists()
    summary = json.loads(run.directory.summary.read_text())
    assert [replica["ending"] for replica in summary["replicas"]] == [
        "epochs", "diverged", "epochs",
    ]  # fmt: skip
    assert summary["final"]["test_loss"]["num_replicas"] == 2
    assert np.isfinite(shown).all(), "the progress bar shows the finite replicas"
    assert shown[-1][0] == SMALL_STEPS

    resumed = resume_run(run, epochs="4")
    assert [history.last_epoch for history in resumed.histories] == [4, 0, 4]
    endings = [event for event in resumed.events if isinstance(event, Ending)]
    assert [ending.seed for ending in endings if ending.reason == "diverged"] == [1]
    refused = processes.run(tmp_path, "evaluate", run.directory.path, "--replica=1")
    assert refused.code == 4
    assert "replica 1 (seed 1) had diverged by epoch " in refused.stderr


def test_a_run_whose_replicas_all_diverge_ends_with_exit_code_6(tmp_path):
    with pytest.raises(NonFiniteLossError) as ended:
        train_run(tmp_path, **EAGER, seed="0-2", learning_rate="1e30")
    assert ended.value.exit_code == 6
    assert "--learning-rate than 1e+30" in ended.value.hint
    run = Run(RunDirectory.find(tmp_path / "latest"))
    assert [(record.epoch, record.seed) for record in run.records] == [(0, 0), (0, 1), (0, 2)]
    assert [getattr(event, "reason", event.event) for event in run.events] == [
        "diverged", "diverged", "diverged", "failed",
    ]  # fmt: skip
    assert not run.directory.summary.exists()


def test_a_run_is_done_if_its_last_replica_diverges_after_another_has_completed(
    tmp_path, monkeypatch, no_plots
):
    check_steps = Endings.check_steps

    def end_both(self, losses, epoch, step):
        if epoch == 2 and self.is_active[0]:
            self.end(0, 1, "early-stop", "as asked")
        if epoch == 4:
            losses = np.where([[False], [True]], np.nan, losses)
        check_steps(self, losses, epoch, step)

    monkeypatch.setattr(Endings, "check_steps", end_both)
    run = train_run(tmp_path, **EAGER, seed="0-1")
    assert [history.last_epoch for history in run.histories] == [1, 3]
    longer = EAGER | {"epochs": "5"}
    for each in (resume_run(run, epochs="5"), train_run(tmp_path, **longer, seed="0-1")):
        endings = [history.ending for history in each.histories]
        assert [(ending.epoch, ending.reason) for ending in endings if ending] == [
            (1, "early-stop"), (3, "diverged"),
        ]  # fmt: skip
        assert "failed" not in [event.event for event in each.events]
        assert (each.state, each.directory.summary.exists()) == ("done", True)
    with contextlib.ExitStack() as stack:
        task = setup.open_run(run.directory, config.resolve({}), stack)
        assert describe_done(task) == "its rule ended it"


def test_metrics_have_a_line_for_each_replica_and_epoch_in_order(trio):
    run, _ = trio
    assert [(record.epoch, record.replica, record.seed) for record in run.records] == [
        (epoch, replica, replica) for epoch in range(4) for replica in range(3)
    ]
    assert {drop.replica for history in run.histories for drop in history.drops} == {0, 1, 2}
    assert len({record.train_loss for record in run.records}) == 12


def test_equal_runs_write_equal_files(tmp_path, no_plots):
    one, other = (train_run(tmp_path, **EAGER, seed="1,4", name=name) for name in "ab")
    assert any(history.drops for history in one.histories)
    assert not [event for event in one.events if isinstance(event, Notice)]
    for name in ("metrics", "events", "summary"):
        path, same = getattr(one.directory, name), getattr(other.directory, name)
        assert path.read_bytes() == same.read_bytes()


def test_the_line_of_an_epoch_has_mean_and_deviation_over_the_replicas(trio):
    run, finished = trio
    records = [history.records[3] for history in run.histories]
    expected = "epoch 3/3"
    for split in ("train", "test"):
        for name, field in ((f"  {split} loss", "loss"), (" acc", "accuracy")):
            values = [getattr(record, f"{split}_{field}") for record in records]
            expected += f"{name} {np.mean(values):.4f} \N{PLUS-MINUS SIGN} "
            expected += f"{np.std(values, ddof=1):.4f}"
    (line,) = (line for line in finished.stdout.splitlines() if line.startswith("epoch 3/3"))
    assert line.startswith(expected + "  scale ")
    assert "seeds 0, 1, 2" in finished.stderr
    num_drops = MeanStd.of([len(history.drops) for history in run.histories])
    assert f"drops       {num_drops:.1f} per seed" in finished.stdout


def test_replicas_that_were_stopped_continue_with_the_same_bits(processes, tmp_path):
    settings = (*faults.TINY, "--seed=3,5", "--patience=1", "--rtol=0.5", "--epochs=3")
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    folder.mkdir()
    expected, _ = faults.unbroken(processes, whole, settings)
    ended = processes.run(folder, *settings, fault="crash", at="epoch-000002")
    assert faults.epochs_printed(ended.stdout) == [0, 1]
    (path,) = faults.runs_in(folder)
    refused = processes.run(folder, "resume", path, "--seed=3,6")
    assert refused.code == 2
    assert "--seed 3,5 3,6 it would change the results" in " ".join(refused.stderr.split())
    checked = processes.run(folder, "resume", path, "--check")
    assert checked.code == 0, checked.stderr
    assert "continues it from epoch 1" in checked.stdout
    ended = processes.run(folder, "resume", path)
    assert ended.code == 0, ended.stderr
    assert faults.epochs_printed(ended.stdout) == [2, 3]
    assert {drop.replica for drops in expected.drops for drop in drops} == {0, 1}
    assert faults.result_of(path) == expected


def test_evaluate_gives_the_recorded_scores_of_each_replica(processes, trio, tmp_path):
    run, _ = trio
    records = [history.records[3] for history in run.histories]
    best = best_record(records)
    for replica in (None, 0, 1, 2):
        flags = [] if replica is None else [f"--replica={replica}"]
        finished = processes.run(
            tmp_path, "evaluate", run.directory.path, "--checkpoint=last", "-o", "c.png", *flags
        )
        assert finished.code == 0, finished.stderr
        record = best if replica is None else records[replica]
        which = f"replica {record.replica}, seed {record.seed}"
        which += ", the best of 3" if replica is None else ""
        assert f"{which}: last checkpoint, epoch 3" in finished.stdout
        scores = f"test      loss {record.test_loss:.4f}, accuracy {record.test_accuracy:.4f}"
        assert scores in finished.stdout
        assert "recorded" not in finished.stderr, "the scores are not the recorded ones"


def test_a_replica_that_does_not_exist_is_refused(processes, trio, tmp_path):
    refused = processes.run(tmp_path, "evaluate", trio[0].directory.path, "--replica=3")
    assert refused.code == 2
    assert "there is no replica 3: the run has 3, counted from 0" in refused.stderr
