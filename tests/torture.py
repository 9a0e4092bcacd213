"""Break runs as often as docs/runs.md says, and print a line for each promise that holds.

Beside these are the variants of the tests that are too slow for the suite.
"""

import argparse
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import conftest  # noqa: F401  # pyright: ignore[reportUnusedImport] -- the processes share compiled programs
import faults
import originals
import test_networks
import test_process
import test_replicas
import test_resume

Part = Callable[[faults.Processes, Path, argparse.Namespace], Iterator[str]]


def main() -> None:
    """Test every promise; end at the first that is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    parser.add_argument("--every", type=int, default=1, help="strike every n-th operation only")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--fuzzed", type=int, default=50)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        processes = faults.Processes()
        began = time.monotonic()
        for part in options.parts:
            for line in PARTS[part](processes, Path(scratch), options):
                seconds, began = time.monotonic() - began, time.monotonic()
                print(f"{line}  (seed {options.seed}, {seconds:.0f} s)", flush=True)
        processes.close()


def check_faults(
    processes: faults.Processes, scratch: Path, options: argparse.Namespace
) -> Iterator[str]:
    """Strike every operation of a run and of a resume, in every way."""
    whole, changes = faults.unbroken(processes, folder(scratch, "whole"), faults.SHORT)

    for fault in ("crash", "tear", "power", *faults.REFUSALS, faults.BROKEN):
        due = [at for at, name in enumerate(changes, start=1) if fault != "tear" or name == "write"]
        due = due[:: options.every]
        for at in due:
            faults.strike(processes, folder(scratch, "struck"), fault, at, whole)
        yield f"{fault} at each of {len(due)} operations of a run: the same result"

    stopped = folder(scratch, "stopped")
    processes.run(stopped, *faults.SHORT, fault="crash", at="epoch-000002")
    again = processes.run(
        shutil.copytree(stopped, scratch / "again", symlinks=True), "resume", "runs/latest"
    )
    for fault in ("crash", "power", "ENOSPC", faults.BROKEN):
        due = range(1, len(again.operations) + 1, options.every)
        for at in due:
            place = scratch / "struck"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(stopped, place, symlinks=True)
            faults.strike(processes, place, fault, at, whole)
        yield f"{fault} at each of {len(due)} operations of a resume: the same result"

    stops = {0: (2, 9, 20), 2: (2, 9, 20)}
    num_stopped = faults.stop_sweep(processes, folder(scratch, "sweep"), stops)
    yield f"{num_stopped} resumes stopped while a sweep goes back an epoch: the same results"


def check_kills(
    processes: faults.Processes, scratch: Path, options: argparse.Namespace
) -> Iterator[str]:
    """Kill runs at random moments, and send the other signals at some."""
    long, _ = faults.unbroken(processes, folder(scratch, "long"), faults.LONG)
    done = faults.kill(processes, folder(scratch, "killed"), options.kills, options.seed, long)
    yield f"{options.kills} kills in {done} runs: metrics.jsonl and parameters byte for byte"

    moments = ("drawing", "run  ", "epoch 0/", "epoch 3/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for after in moments:
            faults.check_signal(processes, folder(scratch, "signal"), number, after)
    yield f"SIGINT, SIGTERM and SIGHUP at each of {len(moments)} moments end a run within 5 s"


def check_damage(
    processes: faults.Processes, scratch: Path, options: argparse.Namespace
) -> Iterator[str]:
    """Damage checkpoints and the other files of runs."""
    wide = (*faults.TINY, "--hidden-sizes=1000,1000", "--epochs=1")
    place = folder(scratch, "wide")
    assert processes.run(place, *wide).code == 0
    (path,) = faults.runs_in(place)[0].glob("checkpoints/epoch-000001.npz")
    size = path.stat().st_size
    faults.flip(path, options.flips, options.cuts, options.seed)
    yield (
        f"{options.flips} flipped bits and {options.cuts} cuts of a checkpoint of {size:,} bytes: "
        "all found"
    )

    place = folder(scratch, "fuzzed")
    faults.unbroken(processes, place, faults.SHORT)
    faults.fuzz(processes, place, options.fuzzed, options.seed)
    yield f"{options.fuzzed} runs with random bytes in their files: each command reports it"


def check_starts(
    processes: faults.Processes, scratch: Path, options: argparse.Namespace
) -> Iterator[str]:
    """Start runs at once, and resume one run twice at once."""
    place = folder(scratch, "starts")
    ended = processes.run_at_once([(place, *faults.TINY, "--epochs=1")] * options.starts)
    assert [finished.code for finished in ended] == [0] * options.starts
    assert len(faults.runs_in(place)) == options.starts
    yield f"{options.starts} runs started at once: {options.starts} folders"

    long, _ = faults.unbroken(processes, folder(scratch, "long"), faults.LONG)
    place = folder(scratch, "two")
    processes.run(place, *faults.LONG, fault="crash", at="epoch-000003")
    ended = processes.run_at_once([(place, "resume", "runs/latest")] * 2)
    first, second = sorted(ended, key=lambda finished: finished.code)
    assert (first.code, second.code) == (0, 7), second.stderr
    assert faults.result_of(*faults.runs_in(place)) == long
    yield f"of two that resume one run, one is refused after {second.seconds:.2f} s"


def check_variants(
    processes: faults.Processes, scratch: Path, options: argparse.Namespace
) -> Iterator[str]:
    """Do what tests of the suite do, with all the other values."""
    for flags in test_resume.OTHERS:
        test_resume.check_continued(processes, folder(scratch, "continued"), *flags)
    yield "a rule on the test loss and a step schedule, stopped and resumed: the same result"

    for terminal in test_process.TERMINALS:
        test_process.check_terminal(folder(scratch, "terminal"), terminal)
    yield f"a run finishes on {len(test_process.TERMINALS)} simple terminals"

    for kind in test_networks.RUNS:
        test_networks.check_resumed_elsewhere(processes, folder(scratch, "network"), kind)
    yield "networks of Linen and of NNX, stopped and resumed elsewhere: the same result"

    meshes = test_replicas.run_meshes([*test_replicas.OTHERS, (4, 4)])
    for key in test_replicas.OTHERS:
        test_replicas.test_the_devices_share_replicas_and_batches_by_the_greatest_common_divisor(
            meshes, key
        )
        test_replicas.test_steps_have_one_all_reduce_where_devices_share_a_batch_else_none(
            meshes, key
        )
        test_replicas.test_every_mesh_gives_the_same_losses_up_to_rounding(meshes, key)
    yield "one replica on four devices: the mesh, its collectives and its losses"

    for num_seeds in (1, 3):
        faults.check_sizes(processes, folder(scratch, "sizes"), num_seeds)
    yield "an epoch of 1 and of 3 seeds writes as many bytes late as early"

    if originals.ORIGINALS.is_dir():
        originals.check_whole_download(folder(scratch, "fashion_mnist"))
        yield "70,000 images of Fashion-MNIST downloaded, prepared and read"


PARTS: dict[str, Part] = {
    "faults": check_faults,
    "kills": check_kills,
    "damage": check_damage,
    "starts": check_starts,
    "variants": check_variants,
}


def folder(scratch: Path, name: str) -> Path:
    """Return an empty folder."""
    place = scratch / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


if __name__ == "__main__":
    main()
