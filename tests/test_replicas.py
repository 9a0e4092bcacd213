"""Several trainings in one program and one run folder, each as if it were alone."""

import contextlib
import io
import json
import os
import statistics
from functools import partial
from types import SimpleNamespace

import faults
import numpy as np
import pytest
from helpers import SMALL, command
from matplotlib.figure import Figure
from test_program import IMAGE_SHAPE, examples, make_program

from plateau_train import config, data
from plateau_train.commands import evaluate
from plateau_train.config import RawValue, resolve
from plateau_train.errors import ConfigError, NonFiniteLossError, RunError
from plateau_train.numerics import replicas as numerics
from plateau_train.numerics.mesh import REPLICA_AXIS, make_mesh
from plateau_train.numerics.program import Program
from plateau_train.numerics.replicas import Ensemble, Solo, estimate_memory
from plateau_train.plots import panels
from plateau_train.report.console import Report, configure_logging
from plateau_train.run import environment
from plateau_train.run.directory import RunDirectory
from plateau_train.run.records import EPOCHS, EVENTS, best_of, read_drops, read_records
from plateau_train.training import groups, loop, setup
from plateau_train.training.groups import plan_memory

# A replica and a single run multiply arrays of other shapes, whose sums are in another order: after
# some dozen steps a loss differs by a few units in the last places of float32, relatively. It is
# stated for the first epochs: at these rates such a difference grows from step to step.
TOLERANCE = 1e-4
ONE_IMAGE = 1.001 / 300  # of the test images, which may fall on the other side

# Every other observation or so is no improvement, and none is so by a hair: drops in each epoch.
EAGER = {"patience": "1", "rtol": "0.3", "epochs": "3"}


def small(folder, **values):
    given = dict(flag.removeprefix("--").replace("-", "_").split("=") for flag in SMALL)
    given |= EAGER | {"runs_dir": str(folder)} | values
    return resolve({key: RawValue(text, "flag") for key, text in given.items()})


def start(folder, **values):
    """Train in this process; return the folder of the run, and what was printed and told."""
    out, talk = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(talk):
        path = setup.start(small(folder, **values), Report())
    return RunDirectory(path), out.getvalue(), talk.getvalue()


def retrained(report=None, **values):
    """Train without a folder; return all records and all drops."""
    settings = small("unused", **values).settings
    dataset = data.load(settings.data)
    outcomes = [
        outcome for (outcome,) in loop.train(dataset, [settings], report or Report(quiet=True))
    ]
    records = [record for outcome in outcomes for record in outcome.records]
    return records, [drop for outcome in outcomes for drop in outcome.drops]


def of_replica(replica, records, drops):
    """Return what belongs to one replica, as a single run would have recorded it."""
    return tuple(
        [row.model_copy(update={"replica": 0}) for row in rows if row.replica == replica]
        for rows in (records, drops)
    )


def history(run):
    return read_records(run.metrics, EPOCHS), read_drops(run.events)


def assert_same(ours, theirs):
    """Hold records and drops to others but for rounding."""
    (records, drops), (other_records, other_drops) = ours, theirs
    assert [(drop.replica, drop.epoch, drop.step, drop.scale_after) for drop in drops] == [
        (drop.replica, drop.epoch, drop.step, drop.scale_after) for drop in other_drops
    ]
    for record, other in zip(records, other_records, strict=True):
        assert (record.replica, record.epoch, record.wait, record.cooldown) == (
            other.replica, other.epoch, other.wait, other.cooldown,
        )  # fmt: skip
        for (_, loss, accuracy), (_, other_loss, other_accuracy) in zip(
            record.scores(), other.scores(), strict=True
        ):
            assert loss == pytest.approx(other_loss, rel=TOLERANCE)
            assert accuracy == pytest.approx(other_accuracy, abs=ONE_IMAGE)
        assert record.observations == pytest.approx(other.observations, rel=TOLERANCE)
        assert record.scale == pytest.approx(other.scale, rel=1e-6)


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the drawing, which takes longer than these runs."""
    monkeypatch.setattr(panels, "draw_run", lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """A finished run of three replicas, and what it printed; the tests only read it."""
    return start(tmp_path_factory.mktemp("trio"), seeds="0-2")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "test-loss", "accumulation_size": "1", "rtol": "0.5"},
        {"schedule": "cosine", "min_scale": "0.1"},
    ],
    ids=["train-loss", "test-loss", "cosine"],
)
def test_a_replica_is_the_single_run_with_its_seed(trio, settings):
    together = retrained(seeds="0-2", **settings) if settings else history(trio[0])
    alone = retrained(seed="1", **settings)
    assert_same(of_replica(1, *together), alone)
    if "schedule" not in settings:
        assert alone[1], "no drop to compare"
    assert of_replica(0, *together)[0][1].train_loss != alone[0][1].train_loss


def train_an_epoch(trainer, state, split):
    """Take the steps of an epoch; return what they recorded of each training."""
    order = trainer.epoch_order(1, len(split.labels))
    state = trainer.place(state)
    records = trainer.empty_records(state, split, order.shape[-2])
    _, records = trainer.train_steps(state, records, split, order, 0, order.shape[-2], 1)
    return trainer.fetch(records)


def one_device():
    import jax

    return make_mesh(jax.devices()[:1], REPLICA_AXIS)


def test_what_can_be_traced_may_differ_and_each_is_as_alone_in_one_compiled_program():
    trainings = []
    for seed, (learning_rate, patience, cooldown, min_scale) in enumerate(
        [(0.01, 1, 0, 0.0), (0.02, 2, 1, 0.3)]
    ):
        program = make_program(
            hidden_sizes=(), optimizer=config.OptimizerSettings(learning_rate=learning_rate),
            accumulation_size=1, rtol=0.3, patience=patience, cooldown=cooldown,
            min_scale=min_scale,
        )  # fmt: skip
        trainings.append((program, seed))
    split = examples(80)
    alone = [Solo(*training) for training in trainings]
    states = [solo.fetch(solo.init(IMAGE_SHAPE)) for solo in alone]
    before = numerics._take_each._cache_size()
    ensemble = Ensemble.of(trainings, one_device(), 3)
    together = train_an_epoch(ensemble, groups.stack(states), split)
    others = Ensemble.of([*reversed(trainings), trainings[0]], one_device())
    train_an_epoch(others, groups.stack([*states, states[0]]), split)
    assert numerics._take_each._cache_size() == before + 1
    assert len(together.metrics.loss) == 2, "what only fills the room up is left out"
    lowest = []
    for row, (solo, state) in enumerate(zip(alone, states, strict=True)):
        single = train_an_epoch(solo, state, split)
        seen, expected = together.observation, single.observation
        np.testing.assert_allclose(together.metrics.loss[row], single.metrics.loss[0], TOLERANCE)
        np.testing.assert_array_equal(seen.waited[row], expected.waited[0])
        np.testing.assert_allclose(seen.scale[row], expected.scale[0], rtol=1e-6)
        lowest.append(float(seen.scale[row].min()))
    assert lowest[0] < 0.1, "no drops to compare"
    assert lowest[1] == pytest.approx(0.3)


@pytest.mark.parametrize("changed", [{"factor": 0.4}, {"batch_size": 4}, {"hidden_sizes": (4,)}])
def test_what_cannot_be_traced_may_not_differ(changed):
    trainings = [(make_program(), 0), (make_program(**changed), 1)]
    with pytest.raises(ValueError, match="not of one program"):
        Ensemble.of(trainings, one_device())


def test_replicas_on_four_devices_are_what_they_are_on_one(trio, tmp_path):
    flags = [f"--{key}={value}" for key, value in EAGER.items()]
    finished = command(*SMALL, *flags, "--seeds=0-2", cwd=tmp_path, JAX_NUM_CPU_DEVICES="4")
    assert finished.returncode == 0, finished.stderr
    assert "4 x cpu" in finished.stderr
    assert_same(history(RunDirectory(tmp_path / "runs" / "latest")), history(trio[0]))


class Parts(Report):
    """Remember which groups were told of."""

    def __init__(self):
        super().__init__(quiet=True)
        self.parts = []

    def start_epoch(self, *numbers):
        self.parts += [part for part in numbers if isinstance(part, str)]


def needed(num_trainings, at_once):
    """Return the free memory in which some trainings of ``small`` fit, so many at once."""
    program = Program.from_config(small("unused").settings, num_classes=10)
    per_device, held = estimate_memory(program, (28, 28, 1))
    return (groups.HOST_COPIES * held * num_trainings + at_once * per_device) / groups.USABLE


def test_groups_that_take_turns_train_what_all_do_at_once(trio, monkeypatch):
    monkeypatch.setattr(environment, "available_memory", lambda: needed(5, at_once=3.5))
    report = Parts()
    records, drops = retrained(report, seeds="0-4")
    assert report.parts[-2:] == [", group 1/2", ", group 2/2"]
    for replica in range(3):
        expected = of_replica(replica, *history(trio[0]))
        assert of_replica(replica, records, drops) == expected
    # The second group has two, and room for a third.
    assert {record.replica for record in records} == set(range(5))
    assert_same(of_replica(4, records, drops), retrained(seed="4"))


def test_where_not_even_one_fits_that_is_said_in_numbers_and_no_folder_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(environment, "available_memory", lambda: needed(3, at_once=0.5))
    with pytest.raises(ConfigError) as refused:
        start(tmp_path, seeds="0-2")
    (problem,) = refused.value.problems
    wanted, free = (needed(3, at_once) * groups.USABLE / 1e9 for at_once in (1, 0.5))
    assert f"need about {wanted:.3g} GB" in problem
    assert f"and {free:.3g} GB may be used" in problem
    assert list(tmp_path.iterdir()) == []


def test_the_more_trainings_there_are_the_fewer_of_them_fit_at_once(monkeypatch):
    program = make_program(hidden_sizes=(1000, 1000))
    per_device, held = estimate_memory(program, IMAGE_SHAPE)
    # Ten at once beside what the host holds of twenty.
    free = (10.5 * per_device + 20 * groups.HOST_COPIES * held) / groups.USABLE
    monkeypatch.setattr(environment, "available_memory", lambda: free)
    plan = partial(plan_memory, program, mesh=one_device(), image_shape=IMAGE_SHAPE)
    four, twenty = plan(num_trainings=4), plan(num_trainings=20)
    assert (four.at_once, twenty.at_once) == (4, 10)
    assert four.needed < twenty.needed < free
    with pytest.raises(ConfigError, match="200 trainings in one run need about"):
        plan(num_trainings=200)


def test_the_estimate_is_not_below_what_a_state_really_takes(trio):
    found = evaluate.find_checkpoint(trio[0], "last")
    sizes = {name: array.nbytes / 3 for name, array in found.arrays.items()}
    program = Program.from_config(small("unused").settings, num_classes=10)
    per_device, held = estimate_memory(program, (28, 28, 1))
    assert held >= sum(sizes.values())
    # A step also has the gradients and the updates beside the state, each as large as parameters.
    params = sum(size for name, size in sizes.items() if name.startswith("params/"))
    assert per_device >= sum(sizes.values()) + 2 * params


def test_the_free_memory_is_some_and_not_more_than_there_is(tmp_path, monkeypatch):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < environment.available_memory() < whole
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    assert environment.available_memory() == 100
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.available_memory() > 100


@pytest.fixture
def explosive(monkeypatch):
    """Give the replica of seed 1 a rate at which its loss is soon not finite."""
    of = Ensemble.of

    def explode(*arguments):
        ensemble = of(*arguments)
        ensemble.replicas.learning_rate[ensemble.replicas.seed == 1] = 1e30
        return ensemble

    monkeypatch.setattr(Ensemble, "of", explode)


def test_a_replica_that_diverges_is_told_and_left_out_and_the_others_go_on(
    trio, tmp_path, explosive, monkeypatch
):
    shown = []
    monkeypatch.setattr(Report, "step", lambda _, step, loss: shown.append((step, loss)))
    run, out, talk = start(tmp_path, seeds="0-2")
    (told,) = (line for line in talk.splitlines() if "replica 1 (seed 1)" in line)
    assert told.startswith("NOTICE: replica 1 (seed 1): the training loss is ")
    assert "at epoch 1, step " in told
    assert "the last finite training loss was " in told
    events = read_records(run.events, EVENTS)
    (event,) = (event for event in events if event.event == "diverged")
    assert f"NOTICE: {event.message}" == told
    lines = [(record.epoch, record.replica) for record in history(run)[0]]
    assert lines == [
        (0, 0),
        (0, 1),
        (0, 2),
        *((epoch, row) for epoch in (1, 2, 3) for row in (0, 2)),
    ]
    for replica in (0, 2):
        assert of_replica(replica, *history(run)) == of_replica(replica, *history(trio[0]))
    assert run.plot.exists()
    summary = json.loads(run.summary.read_text())
    assert [replica["diverged"] for replica in summary["replicas"]] == [False, True, False]
    assert summary["final"]["test_loss"]["num_replicas"] == 2
    assert "nan" not in out
    assert np.isfinite(shown).all(), "the live bar shows those that go on"
    assert shown[-1][0] == 12

    setup.resume(run.path, resolve({"epochs": RawValue("4", "flag")}), Report(quiet=True))
    last = [record.replica for record in history(run)[0] if record.epoch == 4]
    assert last == [0, 2]
    assert sum(event.event == "diverged" for event in read_records(run.events, EVENTS)) == 1
    found = evaluate.find_checkpoint(run, "last")
    with pytest.raises(RunError, match=r"replica 1 \(seed 1\) had diverged by epoch 4"):
        evaluate.take_replica(found, 1)


def test_when_all_replicas_diverge_the_run_ends_with_exit_code_6(tmp_path):
    with pytest.raises(NonFiniteLossError) as ended:
        start(tmp_path, seeds="0-2", learning_rate="1e30")
    assert ended.value.exit_code == 6
    assert "--learning-rate than 1e+30" in ended.value.hint
    run = RunDirectory(tmp_path / "latest")
    assert [(record.epoch, record.replica) for record in history(run)[0]] == [
        (0, 0), (0, 1), (0, 2),
    ]  # fmt: skip
    events = read_records(run.events, EVENTS)
    assert [event.event for event in events] == ["diverged"] * 3 + ["failed"]
    assert not run.summary.exists()


def test_metrics_have_a_line_of_each_replica_an_epoch_in_order(trio):
    records, drops = history(trio[0])
    assert [(record.epoch, record.replica) for record in records] == [
        (epoch, replica) for epoch in range(4) for replica in range(3)
    ]
    assert {drop.replica for drop in drops} == {0, 1, 2}
    assert len({record.train_loss for record in records}) == len(records)


def test_a_run_of_one_seed_in_a_list_has_replica_0_and_equal_runs_equal_files(
    tmp_path, no_pictures, monkeypatch
):
    of = Ensemble.of  # with room for three there is nothing to compile
    monkeypatch.setattr(Ensemble, "of", lambda trainings, mesh, _: of(trainings, mesh, 3))
    one, other = (start(tmp_path, seeds="1", name=name)[0] for name in "ab")
    records, drops = history(one)
    assert {row.replica for row in (*records, *drops)} == {0}
    assert drops
    for name in ("metrics", "events", "summary"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes()
    assert json.loads(one.summary.read_text())["replicas"][0]["seed"] == 1
    assert_same(history(one), retrained(seed="1"))


def test_an_epochs_line_has_mean_and_deviation_over_the_replicas(trio):
    run, out, talk = trio
    records = [record for record in history(run)[0] if record.epoch == 3]
    expected = "epoch 3/3"
    for split in ("train", "test"):
        for name, field in ((f"  {split} loss", "loss"), (" acc", "accuracy")):
            values = [getattr(record, f"{split}_{field}") for record in records]
            mean = sum(values) / 3
            deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
            expected += f"{name} {mean:.4f} ± {deviation:.4f}"
    (line,) = (line for line in out.splitlines() if line.startswith("epoch 3/3"))
    assert line.startswith(expected + "  scale ")
    assert "seeds 0, 1, 2" in talk
    counts = [sum(drop.replica == replica for drop in history(run)[1]) for replica in range(3)]
    deviation = statistics.stdev(counts)
    assert f"drops     {statistics.mean(counts):.1f} ± {deviation:.1f} a replica" in out


@pytest.fixture(scope="module")
def pair(processes, tmp_path_factory):
    """The result of an unbroken run of two replicas, and the folder of one that was stopped."""
    settings = (*faults.TINY, "--seeds=3,5", "--patience=1", "--rtol=0.5", "--epochs=3")
    whole = tmp_path_factory.mktemp("whole")
    expected, _ = faults.unbroken(processes, whole, settings)
    stopped = tmp_path_factory.mktemp("stopped")
    ended = processes.run(stopped, *settings, fault="crash", at="epoch-000002")
    assert faults.epochs_printed(ended.stdout) == [0, 1]
    return expected, stopped


def test_replicas_that_were_stopped_go_on_as_if_they_had_not_been(processes, pair):
    expected, folder = pair
    (path,) = faults.runs_in(folder)
    refused = processes.run(folder, "resume", path, "--seeds=3,6")
    assert refused.code == 2
    assert "--seed 3,5 3,6 the results depend on it" in " ".join(refused.stderr.split())
    checked = processes.run(folder, "resume", path, "--check")
    assert checked.code == 0, checked.stderr
    assert "continues it from epoch 1" in checked.stdout
    ended = processes.run(folder, "resume", path)
    assert ended.code == 0, ended.stderr
    assert faults.epochs_printed(ended.stdout) == [2, 3]
    assert {drop.replica for drop in expected.drops} == {0, 1}
    assert faults.result_of(path) == expected


def test_a_replicas_scores_are_those_that_were_recorded_for_it(trio, capsys):
    run, *_ = trio
    found = evaluate.find_checkpoint(run, "last")
    settings = small("unused").settings
    dataset = data.load(settings.data)
    final = [record for record in history(run)[0] if record.epoch == 3]
    for replica in range(3):
        taken, which = evaluate.take_replica(found, replica)
        assert which == f"replica {replica}, seed {replica}: "
        scores, _ = evaluate.score(taken, dataset)
        assert scores["test"].loss == pytest.approx(final[replica].test_loss, rel=1e-6)
        assert scores["test"].accuracy == pytest.approx(final[replica].test_accuracy)
    assert len({record.test_loss for record in final}) == 3
    best = best_of(final).replica
    said = "alone it is summed in another order than among the replicas, or the machine"
    configure_logging()
    evaluate.compare_scores(taken, {"test": scores["test"]._replace(loss=0.0)}, is_replica=True)
    assert said in capsys.readouterr().err
    _, which = evaluate.take_replica(found, None)
    assert which == f"replica {best}, seed {best}, the best of 3: "


def test_evaluate_takes_the_best_replica_and_says_which(trio, tmp_path, capsys):
    run, *_ = trio
    evaluate.print_evaluation(
        evaluate.evaluate_run(run.path, resolve({}), which="last", output=tmp_path / "c.png")
    )
    shown = capsys.readouterr()
    best = best_of([record for record in history(run)[0] if record.epoch == 3])
    assert f"replica {best.replica}, seed {best.replica}, the best of 3: last" in shown.out
    assert f"accuracy {best.test_accuracy:.4f}" in shown.out
    assert "NOTICE" not in shown.err


def test_a_replica_that_is_not_there_is_refused(trio):
    found = evaluate.find_checkpoint(trio[0], "last")
    with pytest.raises(ConfigError, match="--replica 3, and the run has 3, counted from 0"):
        evaluate.take_replica(found, 3)
    single, _ = evaluate.take_replica(found, 2)  # as a run of one training has it
    with pytest.raises(ConfigError, match="--replica 1, and the run has 1"):
        evaluate.take_replica(single, 1)
    assert evaluate.take_replica(single, 0) == evaluate.take_replica(single, None)


@pytest.mark.parametrize("text", ["0-", "7-0", "1,1", "0-3,2", "a", "0-99999", "", "4294967296"])
def test_seeds_that_are_no_list_of_different_seeds_are_refused(text):
    with pytest.raises(ConfigError, match="--seeds must be up to 10,000 different seeds like 0-7"):
        resolve({"seeds": RawValue(text, "flag")})


def test_seeds_are_single_ones_and_ranges_and_outrank_no_seed():
    run = resolve({"seeds": RawValue("0-3, 8,6 - 7", "flag")}).settings.run
    assert run.seeds == (0, 1, 2, 3, 8, 6, 7)
    with pytest.raises(ConfigError, match="--seed and --seeds are both given"):
        resolve({"seed": RawValue("1", "flag"), "seeds": RawValue("0-3", "flag")})


def test_several_processes_are_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    several = SimpleNamespace(
        **vars(loop.cluster)
        | {"is_multiprocess": lambda: True, "describe": lambda: "process 0 of 2"}
    )
    monkeypatch.setattr(loop, "cluster", several)
    with pytest.raises(ConfigError, match="--seeds trains in one process, and this is process 0"):
        start(tmp_path, seeds="0-1")
    assert list(tmp_path.iterdir()) == []
