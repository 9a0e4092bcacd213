"""Several devices and several processes train what one does, and end together."""

import json
import os
import re
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, assert_same_history, command, epochs_printed, free_port, run_two

from plateau_train.process import cluster
from plateau_train.run.reader import Run

SETTINGS = (*SMALL, "--batch-size=48")


def assert_same_training(path, other):
    """Assert that two runs have the same replicas, but for rounding."""
    histories, expected = Run.open(path).histories, Run.open(other).histories
    assert any(history.drops for history in histories), "no drop to compare"
    for history, its in zip(histories, expected, strict=True):
        assert_same_history(history, its)


def assert_continued(path):
    """Assert that a resumed run has all epochs, and continued from what it had learned."""
    (history,) = Run.open(path).histories
    records = history.records
    assert [record.epoch for record in records] == list(range(31))
    (message,) = (
        json.loads(line)["message"]
        for line in (path / "events.jsonl").read_text().splitlines()
        if '"resumed"' in line
    )
    epoch = int(message.removeprefix("after epoch ").partition(";")[0])
    assert 3 <= epoch < 30
    assert records[epoch + 1].train_loss < 0.6 * records[1].train_loss
    assert records[epoch + 1].scale <= records[epoch].scale


@pytest.fixture(scope="module")
def alone(processes, tmp_path_factory):
    """A run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    finished = processes.run(folder, *SETTINGS, "--epochs=4")
    assert finished.code == 0, finished.stderr
    return folder / "runs" / "latest"


def test_four_devices_train_what_one_does(alone, tmp_path):
    flags = "--epochs=4", "--devices=4"
    finished = command(*SETTINGS, *flags, cwd=tmp_path, JAX_NUM_CPU_DEVICES="4")
    assert finished.returncode == 0, finished.stderr
    assert "4 x cpu" in finished.stderr
    run = tmp_path / "runs" / "latest"
    assert len(json.loads((run / "environment.json").read_text())["devices"]) == 4
    assert_same_training(run, alone)

    flags = "--epochs=5", "--devices=2"
    resumed = command("resume", run, *flags, cwd=tmp_path, JAX_NUM_CPU_DEVICES="2")
    assert resumed.returncode == 0, resumed.stderr
    assert "no longer bit-exact: devices cpu:0 (cpu), cpu:1 (cpu), cpu:2" in resumed.stderr


def test_a_run_continues_on_fewer_devices_than_it_began_with(processes, tmp_path):
    begun = command(
        *SETTINGS, "--epochs=2", "--devices=2", "--mode=test-loss", "--accumulation-size=1",
        cwd=tmp_path, JAX_NUM_CPU_DEVICES="3",
    )  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    assert "2 x cpu" in begun.stderr
    resumed = processes.run(tmp_path, "resume", "runs/latest", "--epochs=3")
    assert resumed.code == 0, resumed.stderr


def test_missing_devices_and_indivisible_batches_are_refused(tmp_path):
    for arguments, message in (
        (("--devices=7",), "--devices 7 is more than the 5 here"),
        (("--devices=5",), "--batch-size 48 is not divisible by the 5 devices"),
    ):
        refused = command(
            *SETTINGS, *arguments, "--epochs=4", cwd=tmp_path, JAX_NUM_CPU_DEVICES="5"
        )
        assert refused.returncode == 2
        assert message in refused.stderr
    assert "use --batch-size 45 or 50, or fewer --devices" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_two_processes_train_what_one_does_and_only_one_writes(processes, alone, tmp_path):
    leader, other = run_two(processes, tmp_path, *SETTINGS, "--epochs=4")
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert "2 x cpu (cpu) in 2 processes" in leader.stderr
    assert leader.stdout.startswith("epoch 0/4")
    assert other.stdout == ""
    assert_same_training(tmp_path / "0" / "runs" / "latest", alone)


def test_several_seeds_in_two_processes_equal_those_in_one_and_continue(processes, tmp_path):
    # Two devices share two replicas; each process has one of them, and process 0 writes both.
    flags = (*SETTINGS, "--seed=3,5", "--patience=1", "--rtol=0.3")
    whole = processes.run(tmp_path, *flags, "--epochs=4")
    assert whole.code == 0, whole.stderr
    leader, other = run_two(processes, tmp_path, *flags, "--epochs=2")
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert (epochs_printed(leader.stdout), other.stdout) == ([0, 1, 2], "")
    run = tmp_path / "0" / "runs" / "latest"
    leader, other = run_two(processes, tmp_path, "resume", run, "--epochs=4")
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert epochs_printed(leader.stdout) == [3, 4]
    assert "bit-exact" not in leader.stderr
    assert [history.seed for history in Run.open(run).histories] == [3, 5]
    assert_same_training(run, tmp_path / "runs" / "latest")


def test_a_killed_process_ends_the_other_and_the_run_continues_alone(processes, tmp_path):
    send = (signal.SIGKILL, 1, "epoch 3/30")
    leader, other = run_two(processes, tmp_path, *SETTINGS, "--epochs=30", send=send)
    assert leader.seconds < 30
    assert (leader.code, other.code) == (8, -signal.SIGKILL), leader.stderr
    assert "error: another process of this run was lost" in leader.stderr
    assert "Traceback" not in leader.stderr

    resumed = processes.run(tmp_path / "0", "resume", "runs/latest")
    assert resumed.code == 0, resumed.stderr
    assert "no longer bit-exact: devices cpu:0 (cpu), cpu:" in resumed.stderr
    assert_continued(tmp_path / "0" / "runs" / "latest")


def test_a_signal_to_one_process_stops_both_and_both_can_continue(processes, tmp_path):
    send = (signal.SIGTERM, 1, "epoch 3/30")
    leader, other = run_two(processes, tmp_path, *SETTINGS, "--epochs=30", send=send)
    stderr = leader.stderr + other.stderr
    assert (leader.code, other.code) == (143, 143), stderr
    stopped = r"^stopped after epoch \d+ \(SIGTERM in another process\)$"
    assert re.search(stopped, leader.stderr, re.MULTILINE)
    assert "\nstopped (SIGTERM)\n" in other.stderr
    assert "Traceback" not in stderr

    run = tmp_path / "0" / "runs" / "latest"
    leader, other = run_two(processes, tmp_path, "resume", run)
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert "bit-exact" not in leader.stderr
    assert_continued(run)

    leader, other = run_two(processes, tmp_path, "resume", run)
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert "is done: all of its 30 epochs are trained" in leader.stderr


def test_a_time_limit_stops_both_processes_after_the_same_epoch(processes, tmp_path):
    leader, other = run_two(processes, tmp_path, *SETTINGS, "--epochs=3", "--max-time=0.01")
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert epochs_printed(leader.stdout) == [0, 1]
    assert "\nstopped after epoch 1 (--max-time 0.01)\nhint: " in leader.stderr
    assert (other.stdout, "stopped" in other.stderr) == ("", False)


def test_settings_that_one_process_refuses_end_both_before_a_folder_is_made(processes, tmp_path):
    leader, other = run_two(processes, tmp_path, *SETTINGS, others=("--patience=7",))
    assert other.code == 2
    assert "process 1 of 2 has other settings than process 0" in other.stderr
    assert "--patience 2 7 all processes share it" in " ".join(other.stderr.split())
    assert leader.code == 8
    assert "another process of this run ended with exit code 2" in leader.stderr
    assert not (tmp_path / "0" / "runs").exists()


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_that_cannot_reach_the_others_does_not_train_alone(
    processes, tmp_path, process_id
):
    cluster = f"--coordinator=127.0.0.1:{free_port()} --num-processes=2 --process-id={process_id}"
    ended = processes.run(tmp_path, *SETTINGS, "--join-timeout=1", *cluster.split())
    assert ended.code == 8, ended.stderr
    assert "the other processes could not be reached through 127.0.0.1:" in ended.stderr
    assert "--join-timeout waits longer" in ended.stderr
    assert not (tmp_path / "runs").exists()


# Each process runs this with its port and its number.
API = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import plateau_train
from plateau_train import config
from plateau_train.errors import ClusterError, ConfigError, DataError
from plateau_train.process import cluster
from plateau_train.training.time_limit import TimeLimit


port, number = sys.argv[1:]
leads = number == "0"
settings = config.ClusterSettings(
    coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=int(number)
)
with cluster.join(settings):
    assert (cluster.is_leader(), cluster.describe()) == (leads, f"process {number} of 2")
    assert cluster.broadcast_text(f"é {number}") == "é 0"
    try:
        with cluster.fail_together():
            if leads:
                raise DataError("damaged", hint="none")
    except DataError if leads else ClusterError as error:
        assert leads or "exit code 3" in str(error)
    else:
        raise AssertionError("nothing was raised")

    exact = np.array([-0.0, 5e-324, 2**53 + 1, float(number)])
    received = cluster.broadcast({"exact": exact, "epoch": 7 - int(number)})
    assert received["exact"].tobytes() == np.array([-0.0, 5e-324, 2**53 + 1, 0]).tobytes()
    assert (received["epoch"].dtype, received["epoch"]) == (np.int64, 7)

    for own, others, permits in (("1h", "1s", True), ("1s", "1h", False)):
        limit = TimeLimit(config.RunSettings(max_time=own if leads else others))
        assert limit.permits_epoch()
        limit.add_epoch(60.0)
        assert (limit.permits_epoch(), limit.is_reached) == (permits, not permits)

    mesh = jax.make_mesh((4,), ("replica",))
    rows = np.arange(12).reshape(4, 3)
    sharded, replicated = (
        jax.make_array_from_callback(
            rows.shape, NamedSharding(mesh, PartitionSpec(*axes)), lambda index: rows[index]
        )
        for axes in (["replica"], [])
    )
    for gathered in cluster.gather((sharded, replicated, jax.numpy.array(rows))):
        assert isinstance(gathered, np.ndarray) and np.array_equal(gathered, rows)

    cluster.require_same("versions", "1")
    try:
        cluster.require_same("data", f"set {number}")
    except ClusterError as error:
        (problem,) = error.problems
        assert problem.endswith(f"differ in their data: set {number} in process {number} of 2")
    else:
        raise AssertionError("nothing was raised")

    try:
        plateau_train.train(dataset="garments", runs_dir="/nowhere")
    except ConfigError as error:
        assert "this process is one of a cluster" in str(error)
    else:
        raise AssertionError("nothing was raised")
"""


def test_values_and_errors_of_one_process_reach_the_other():
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", API, str(port), str(number)],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()


def test_a_single_process_communicates_nothing_and_gathers_copies():
    array = jnp.arange(3)
    assert cluster.broadcast_text("text") == "text"
    assert cluster.broadcast(array) is array
    assert not np.shares_memory(cluster.gather(array), np.asarray(array))
    assert (cluster.agree(3, 5), cluster.describe(), cluster.is_leader()) == ((3, 5), "", True)
    cluster.require_same("data", "text")
