"""Many devices and many processes train what one does, and end together."""

import json
import os
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, command

from plateau_train.process import cluster
from plateau_train.run.records import EPOCHS, read_drops, read_records

# Of sums in another order, after some dozen steps.
TOLERANCE = 1e-4

SETTINGS = (*SMALL, "--batch-size=48")


def start(folder, *arguments, process_id, port, **environment):
    """Start one process of a cluster of two, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable, "-m", "plateau_train", *map(str, arguments),
            f"--coordinator=127.0.0.1:{port}", "--num-processes=2", f"--process-id={process_id}",
        ],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_two(folder, *arguments, others=()):
    """Start process 0, and process 1 with other arguments behind the same ones."""
    port = free_port()
    first = start(folder / "0", *arguments, process_id=0, port=port)
    return first, start(folder / "1", *arguments, *others, process_id=1, port=port)


def end(*processes, within=60):
    """Wait for processes; return the exit code, the output and the talk of each."""
    results = []
    for process in processes:
        try:
            out, talk = process.communicate(timeout=within)
        finally:
            process.kill()
        results.append((process.returncode, out, talk))
    return results


def wait_for(process, beginning):
    """Read what a process prints until a line begins so."""
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"it ended before it printed {beginning}: {process.stderr.read()}")


def history(run):
    return read_records(run / "metrics.jsonl", EPOCHS), read_drops(run / "events.jsonl")


def assert_same_training(run, other):
    """Hold two runs to the same drops, and to the same metrics but for rounding."""
    (records, drops), (other_records, other_drops) = history(run), history(other)
    assert drops, "no drop to compare"
    assert [(drop.epoch, drop.step, drop.scale_after) for drop in drops] == [
        (drop.epoch, drop.step, drop.scale_after) for drop in other_drops
    ]
    for record, its in zip(records, other_records, strict=True):
        for (_, loss, accuracy), (_, other_loss, other_accuracy) in zip(
            record.scores(), its.scores(), strict=True
        ):
            assert loss == pytest.approx(other_loss, rel=TOLERANCE)
            assert accuracy == pytest.approx(other_accuracy, abs=1 / 300)  # an image more or less
        assert record.observations == pytest.approx(its.observations, rel=TOLERANCE)


def assert_went_on(run):
    """Hold a resumed run to all of its epochs, and to what it had learned before it stopped."""
    records, _ = history(run)
    assert [record.epoch for record in records] == list(range(61))
    (stopped,) = (
        json.loads(line)["message"]
        for line in (run / "events.jsonl").read_text().splitlines()
        if '"resumed"' in line
    )
    epoch = int(stopped.removeprefix("after epoch ").partition(";")[0])
    assert 3 <= epoch < 60
    assert records[epoch + 1].train_loss < 0.6 * records[1].train_loss
    assert records[epoch + 1].scale <= records[epoch].scale


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    finished = command(*SETTINGS, "--epochs=4", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder / "runs" / "latest"


def test_four_devices_train_what_one_does(alone, tmp_path):
    finished = command(*SETTINGS, "--epochs=4", cwd=tmp_path, JAX_NUM_CPU_DEVICES="4")
    assert finished.returncode == 0, finished.stderr
    assert "4 x cpu" in finished.stderr
    run = tmp_path / "runs" / "latest"
    assert len(json.loads((run / "environment.json").read_text())["devices"]) == 4
    assert_same_training(run, alone)

    resumed = command("resume", run, "--epochs=5", cwd=tmp_path, JAX_NUM_CPU_DEVICES="2")
    assert resumed.returncode == 0, resumed.stderr
    assert "no longer bit-exact: devices cpu:0 (cpu), cpu:1 (cpu), cpu:2" in resumed.stderr


def test_a_run_begun_on_devices_that_are_gone_goes_on_with_those_that_are_there(tmp_path):
    begun = command(
        *SETTINGS, "--epochs=2", "--devices=2", "--mode=test-loss", "--accumulation-size=1",
        cwd=tmp_path, JAX_NUM_CPU_DEVICES="3",
    )  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    assert "2 x cpu" in begun.stderr
    resumed = command("resume", "runs/latest", "--epochs=3", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


def test_devices_that_are_not_there_or_cannot_share_a_batch_are_refused(tmp_path):
    for arguments, told in (
        (("--devices=7",), "--devices 7, and there are 5 here"),
        ((), "--batch-size 48 does not divide by the 5 devices"),
    ):
        refused = command(
            *SETTINGS, *arguments, "--epochs=4", cwd=tmp_path, JAX_NUM_CPU_DEVICES="5"
        )
        assert refused.returncode == 2
        assert told in refused.stderr
    assert "use --batch-size 45 or 50, or fewer --devices" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_two_processes_train_what_one_does_and_one_of_them_writes(alone, tmp_path):
    leader, other = end(*start_two(tmp_path, *SETTINGS, "--epochs=4"))
    assert (leader[0], other[0]) == (0, 0), leader[2] + other[2]
    assert "2 x cpu (cpu) in 2 processes" in leader[2]
    assert leader[1].startswith("epoch 0/4")
    assert other[1] == ""
    assert list((tmp_path / "1").iterdir()) == []
    assert_same_training(tmp_path / "0" / "runs" / "latest", alone)


def test_a_killed_process_ends_the_other_and_the_run_goes_on_alone(tmp_path):
    leader, other = start_two(tmp_path, *SETTINGS, "--epochs=60")
    wait_for(leader, "epoch 3/60")
    other.kill()
    killed = time.monotonic()
    (code, _, talk), _ = end(leader, other)
    assert time.monotonic() - killed < 30
    assert code == 8
    assert "error: another process of this run was lost" in talk
    assert "Traceback" not in talk

    resumed = command("resume", "runs/latest", cwd=tmp_path / "0")
    assert resumed.returncode == 0, resumed.stderr
    assert "no longer bit-exact: devices cpu:0 (cpu), cpu:" in resumed.stderr
    assert_went_on(tmp_path / "0" / "runs" / "latest")


def test_a_signal_to_one_process_stops_both_and_both_can_go_on(tmp_path):
    leader, other = start_two(tmp_path, *SETTINGS, "--epochs=60")
    wait_for(leader, "epoch 3/60")
    other.terminate()
    (code, _, talk), (others_code, _, others_talk) = end(leader, other)
    assert (code, others_code) == (143, 143), talk + others_talk
    assert "error: stopped by SIGTERM in another process" in talk
    assert "error: stopped by SIGTERM\n" in others_talk
    assert "Traceback" not in talk + others_talk

    run = tmp_path / "0" / "runs" / "latest"
    leader, other = end(*start_two(tmp_path, "resume", run))
    assert (leader[0], other[0]) == (0, 0), leader[2] + other[2]
    assert "bit-exact" not in leader[2]
    assert_went_on(run)

    leader, other = end(*start_two(tmp_path, "resume", run))
    assert (leader[0], other[0]) == (0, 0), leader[2] + other[2]
    assert "is done, with all of its 60 epochs" in leader[2]


def test_what_one_process_refuses_ends_the_other_before_anything_is_written(tmp_path):
    leader, other = end(*start_two(tmp_path, *SETTINGS, others=("--patience=7",)))
    assert other[0] == 2
    assert "process 1 of 2 has other settings than process 0" in other[2]
    assert "--patience 2 7 all processes share it" in " ".join(other[2].split())
    assert leader[0] == 8
    assert "another process of this run ended with exit code 2" in leader[2]
    assert not (tmp_path / "0" / "runs").exists()


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_that_cannot_reach_the_others_ends_and_does_not_train_alone(tmp_path, process_id):
    process = start(
        tmp_path, *SETTINGS, "--join-timeout=2", process_id=process_id, port=free_port()
    )
    ((code, _, talk),) = end(process)
    assert code == 8
    assert "the other processes could not be reached through 127.0.0.1:" in talk
    assert "--join-timeout waits longer" in talk
    assert not (tmp_path / "runs").exists()


# Each process runs this with its port and its number.
API = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from plateau_train import config
from plateau_train.errors import ClusterError, DataError
from plateau_train.process import cluster


def fail():
    raise DataError("damaged", hint="none")


port, number = sys.argv[1:]
leads = number == "0"
settings = config.ClusterSettings(
    coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=int(number)
)
with cluster.join(settings):
    assert (cluster.is_leader(), cluster.describe()) == (leads, f"process {number} of 2")
    assert cluster.call_on_leader(lambda: f"é {number}") == "é 0"
    try:
        cluster.call_on_leader(fail)
    except DataError if leads else ClusterError as error:
        assert leads or "exit code 3" in str(error)
    else:
        raise AssertionError("nothing was raised")

    exact = np.array([-0.0, 5e-324, 2**53 + 1, float(number)])
    received = cluster.broadcast({"exact": exact, "epoch": 7 - int(number)})
    assert received["exact"].tobytes() == np.array([-0.0, 5e-324, 2**53 + 1, 0]).tobytes()
    assert (received["epoch"].dtype, received["epoch"]) == (np.int64, 7)

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
        assert str(error).endswith(f"differ in their data: set {number} in process {number} of 2")
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
    for code, _, error in end(*processes):
        assert code == 0, error


def test_a_single_process_communicates_nothing_and_gathers_copies():
    array = jnp.arange(3)
    assert cluster.call_on_leader(lambda: "text") == "text"
    assert cluster.broadcast(array) is array
    assert not np.shares_memory(cluster.gather(array), np.asarray(array))
    assert (cluster.agree(3, 5), cluster.describe(), cluster.is_leader()) == ((3, 5), "", True)
    cluster.require_same("data", "text")
