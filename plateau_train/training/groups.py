"""Trainings that run in one program: how many the memory holds, and an epoch of theirs."""

import math
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from plateau_train.errors import ConfigError, NonFiniteLossError
from plateau_train.numerics.plateau import Observation
from plateau_train.numerics.program import Examples, Metrics, Program, StepRecord, TrainState
from plateau_train.numerics.replicas import Ensemble, Solo, estimate_memory
from plateau_train.process import cluster, signals
from plateau_train.report.console import Report
from plateau_train.run import environment
from plateau_train.run.records import Notice

# An epoch is cut into chunks of about this long: that often the bar moves, a loss that is not
# finite is seen and a signal is heard. The cuts leave the bits unchanged.
CHUNK_SECONDS = 0.25

# The part of the free memory that trainings may take.
USABLE = 0.8

# How often the host holds a state while a checkpoint is written: as it came from the devices, cut
# to runs, as a file, and that file while it grows.
HOST_COPIES = 4


class Member(NamedTuple):
    """One training among those of a command: a replica of a run."""

    run: int  # which of the runs that are trained together
    replica: int
    seed: int
    learning_rate: float


class LostTrainingsError(NonFiniteLossError):
    """The last training is lost; ``lost`` says of those that nobody was told of yet why."""

    lost: Sequence[tuple[Member, Notice]] = ()


class Survivors:
    """Which trainings are finite still. One that is not goes on without being recorded."""

    def __init__(self, members: Sequence[Member], alive: Sequence[bool]) -> None:
        self._members = members
        self.alive = list(alive)
        self._last_losses: list[float | None] = [None] * len(members)
        self._lost: list[tuple[Member, Notice]] = []

    def watch(self, member: int, losses: np.ndarray, epoch: int, step: int) -> None:
        """Look at the losses of consecutive steps, the first of which is ``step``, from 1."""
        finite = np.isfinite(losses)
        if not finite.all():
            position = int(finite.argmin())
            if position > 0:
                self._last_losses[member] = float(losses[position - 1])
            what = f"the training loss is {losses[position]} at epoch {epoch}, step"
            self._lose(member, f"{what} {step + position:,}")
        self._last_losses[member] = float(losses[-1])

    def judge(self, member: int, losses: dict[str, float], epoch: int) -> None:
        """Look at evaluations, before the rule takes one that is not finite for a plateau."""
        for split, loss in losses.items():
            if not np.isfinite(loss):
                self._lose(member, f"the {split} loss is {loss} at the end of epoch {epoch}")

    def alive_among(self, members: range) -> list[int]:
        """Return the places among some trainings of those that are finite still."""
        return [row for row, member in enumerate(members) if self.alive[member]]

    def take_lost(self, run: int) -> list[Notice]:
        """Return what is new of the trainings of a run that were lost."""
        lost = [notice for member, notice in self._lost if member.run == run]
        self._lost = [(member, notice) for member, notice in self._lost if member.run != run]
        return lost

    def _lose(self, number: int, what: str) -> None:
        """Give a training up; raises ``LostTrainingsError`` if it was the last."""
        if not self.alive[number]:
            return
        self.alive[number] = False
        member, last = self._members[number], self._last_losses[number]
        if last is not None:
            what += f"; the last finite training loss was {last:.4g}"
        if len(self._members) > 1:
            what = f"replica {member.replica} (seed {member.seed}): {what}"
        notice = Notice(event="diverged", message=what, replica=member.replica)
        self._lost.append((member, notice))
        if not any(self.alive):
            error = LostTrainingsError(
                what, hint=f"train with a smaller --learning-rate than {member.learning_rate:g}"
            )
            error.lost = self._lost
            raise error


class Trained(NamedTuple):
    """What an epoch leaves behind, on the host, with a leading axis of trainings."""

    metrics: dict[str, Metrics]  # of each split
    observation: Observation | None  # none of epoch 0
    scale: np.ndarray  # before the epoch
    state: TrainState
    train_seconds: float
    evaluate_seconds: float

    def of(self, row: int) -> "Trained":
        """Return what it leaves of one training."""
        return self._replace(
            **jax.tree.map(
                lambda rows: rows[row],
                {
                    name: getattr(self, name)
                    for name in ("metrics", "observation", "scale", "state")
                },
            )
        )


def join(trained: Sequence[Trained]) -> Trained:
    """Put what groups have trained one after the other together."""
    if len(trained) == 1:
        return trained[0]
    seconds = (sum(column) for column in zip(*(part[-2:] for part in trained), strict=True))
    return Trained(*stack([part[:-2] for part in trained]), *seconds)


def stack(trees: Sequence[Any]) -> Any:
    """Put trees of arrays with a leading axis of trainings one behind the other."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *trees) if trees else None


def cut(tree: Any, rows: range) -> Any:
    """Return some of the trainings of such a tree."""
    return jax.tree.map(lambda array: array[rows.start : rows.stop], tree)


class Group:
    """Trainings of one program, and their state between two epochs.

    Where groups take turns, that state is on the host, and the devices have room for the others.
    """

    def __init__(
        self,
        trainer: Solo | Ensemble,
        state: TrainState,
        splits: dict[str, Examples],
        members: range,
        *,
        takes_turns: bool,
    ) -> None:
        self.members = members
        self._trainer = trainer
        self._state = state
        self._splits = splits
        self._takes_turns = takes_turns
        self._records: Any = None
        self._untrained: Metrics | None = None
        self._chunk = 1

    def prepare(self, *, untrained: bool) -> None:
        """Compile all that an epoch takes by taking no step of it.

        An untrained network is scored meanwhile.
        """
        trainer, train = self._trainer, self._splits["train"]
        state = trainer.place(self._state)
        if untrained:
            self._untrained = trainer.evaluate(state, train)
        order = trainer.epoch_order(1, len(train.labels))
        # Filled anew in each epoch, in the same memory.
        records = trainer.empty_records(state, train, order.shape[-2])
        self._state, self._records = trainer.train_steps(state, records, train, order, 0, 0, 1)
        if self._takes_turns:
            self._state = trainer.fetch(self._state)

    def epoch(self, epoch: int, observed: str, survivors: Survivors, report: Report) -> Trained:
        """Train an epoch, or none as epoch 0; evaluate; feed the rule if it watches evaluations.

        ``observed`` is the split that the rule watches.
        """
        trainer, began = self._trainer, time.perf_counter()
        if self._takes_turns:
            self._state = trainer.place(self._state)
        scale = trainer.fetch(self._state.plateau.scale)
        train, observation = self._untrained, None
        if epoch > 0:
            columns = self._take(epoch, survivors, report)
            # The mean over the batches as they were seen, each of the same size.
            train = Metrics(*(rows.mean(axis=1, dtype=np.float64) for rows in columns.metrics))
            observation = columns.observation
        trained = time.perf_counter()
        scores = {
            name: trainer.evaluate(self._state, split)
            for name, split in self._splits.items()
            if name != "train"
        }
        metrics = {"train": train if epoch > 0 else trainer.fetch(train)} | trainer.fetch(scores)
        for row, member in enumerate(self.members):
            losses = {name: float(values.loss[row]) for name, values in metrics.items()}
            survivors.judge(member, losses, epoch)
        if epoch > 0 and not trainer.program.watches_steps:
            self._state, seen = trainer.advance(self._state, metrics[observed])
            observation = trainer.fetch(seen)
        state = trainer.fetch(self._state)
        if self._takes_turns:
            self._state = state
        seconds = time.perf_counter() - trained
        return Trained(metrics, observation, scale, state, trained - began, seconds)

    def _take(self, epoch: int, survivors: Survivors, report: Report) -> StepRecord:
        """Take the steps of an epoch in chunks of steady length, watching the loss between them."""
        trainer, train = self._trainer, self._splits["train"]
        order = trainer.epoch_order(epoch, len(train.labels))
        start, num_steps = 0, order.shape[-2]
        while start < num_steps:
            began = time.perf_counter()
            stop = min(start + self._chunk, num_steps)
            self._state, self._records = trainer.train_steps(
                self._state, self._records, train, order, start, stop, epoch
            )
            losses = trainer.fetch(self._records.metrics.loss)[:, start:stop]
            for row, member in enumerate(self.members):
                first = (epoch - 1) * num_steps + start + 1
                survivors.watch(member, losses[row], epoch, first)
            finite = [losses[row, -1] for row in survivors.alive_among(self.members)]
            report.step(stop, fmean(finite or [math.nan]))
            rate = (stop - start) / (time.perf_counter() - began)
            # Not more than eight times as long as the last: a short one says little of the rate.
            chunk = max(1, min(int(rate * CHUNK_SECONDS), 8 * self._chunk, num_steps))
            signal_number, self._chunk = cluster.agree(signals.received(), chunk)
            if signal_number:
                signals.stop(signal_number)
            start = stop
        return trainer.fetch(self._records)


class MemoryPlan(NamedTuple):
    """How many trainings run at once, and the bytes of all that they take and of what is free."""

    at_once: int
    needed: float
    free: float


def plan_memory(
    program: Program, num_trainings: int, mesh: Mesh, image_shape: tuple[int, int, int]
) -> MemoryPlan:
    """Decide how many trainings fit at once.

    Raises ``ConfigError`` where there is not even room for one at a time.
    """
    per_device, on_host = estimate_memory(program, image_shape)
    free, kept = USABLE * environment.available_memory(), HOST_COPIES * on_host * num_trainings
    limits = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in _device_memory(mesh)]
    room = USABLE * min(limits) * len(limits) if limits else free - kept
    at_once = min(num_trainings, int(room / per_device))
    if at_once < 1 or kept > free:
        needed = _in_gigabytes(kept + (0 if limits else per_device))
        raise ConfigError(
            f"{num_trainings:,} trainings in one run need about {needed} of memory, "
            f"and {_in_gigabytes(free)} may be used",
            hint="train fewer of them at a time, or smaller networks (--hidden-sizes)",
        )
    return MemoryPlan(at_once, kept + at_once * per_device, free)


def describe_plan(plan: MemoryPlan, num_trainings: int) -> str:
    """Say how many trainings run together, and what they take."""
    num_groups = -(-num_trainings // plan.at_once)
    how = "in one program" if num_groups == 1 else f"in {num_groups} groups that take turns"
    return (
        f"{num_trainings} trainings {how}; about {_in_gigabytes(plan.needed)} of memory, "
        f"{_in_gigabytes(plan.free)} may be used"
    )


def make_ensembles(
    programs: Sequence[Program], members: Sequence[Member], mesh: Mesh, at_once: int
) -> list[Ensemble]:
    """Put trainings, each with its program, into ensembles of about the same size."""
    num_trainings = len(members)
    size = -(-num_trainings // -(-num_trainings // at_once))
    trainings = [(program, member.seed) for program, member in zip(programs, members, strict=True)]
    return [
        Ensemble.of(trainings[first : first + size], mesh, size)
        for first in range(0, num_trainings, size)
    ]


def _device_memory(mesh: Mesh) -> list[dict[str, int]]:
    """Return what devices with a memory of their own say of it; a CPU says nothing."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    return [memory for memory in stats if memory and "bytes_limit" in memory]


def _in_gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
