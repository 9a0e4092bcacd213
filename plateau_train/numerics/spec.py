"""What defines a training: ``Spec`` is static and hashable, ``Hyperparams`` is traced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float32, Int32, UInt32

from plateau_train import config
from plateau_train.numerics.augmentation import Augmentation
from plateau_train.numerics.model import Network, Params
from plateau_train.numerics.plateau import PlateauRule
from plateau_train.numerics.schedules import Schedule, make_schedule


class Hyperparams(NamedTuple):
    """The values that can differ between the replicas of one program: of all replicas, or one."""

    seed: UInt32[Array, "*replicas"]
    learning_rate: Float32[Array, "*replicas"]
    patience: Int32[Array, "*replicas"]
    cooldown: Int32[Array, "*replicas"]
    min_scale: Float32[Array, "*replicas"]
    max_drops: Int32[Array, "*replicas"]
    early_stop: Int32[Array, "*replicas"]

    DTYPES = (np.uint32, np.float32, *[np.int32] * 2, np.float32, *[np.int32] * 2)

    @classmethod
    def from_settings(
        cls, runs: Sequence[config.Settings], *, steps_per_epoch: int = 1
    ) -> "Hyperparams":
        """Return a row for each seed of each run.

        Without the number of steps in an epoch, patience and cooldown in epochs are those of
        another training.
        """
        rows = [
            (seed, run.optimizer.learning_rate, *(getattr(rule, name) for name in TRACED))
            for run in runs
            for rule in [PlateauRule.from_settings(run.plateau.counted(steps_per_epoch))]
            for seed in run.run.seeds
        ]
        columns: Any = map(np.array, zip(*rows, strict=True), cls.DTYPES)
        return cls(*columns)


# The arguments of the plateau rule that are traced.
TRACED = Hyperparams._fields[2:]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of optax without its learning rate."""

    name: str
    options: tuple[tuple[str, float], ...]

    @classmethod
    def from_settings(cls, settings: config.OptimizerSettings) -> "Optimizer":
        options = {}
        if settings.optimizer in config.DEFAULT_WEIGHT_DECAY:
            options["weight_decay"] = settings.weight_decay
        # A momentum of 0 would still need a buffer as large as the parameters.
        if settings.optimizer in config.DEFAULT_MOMENTUM and settings.momentum > 0:
            options["momentum"] = settings.momentum
        if settings.schedule != "schedule-free":
            return cls(settings.optimizer, tuple(options.items()))
        if momentum := options.pop("momentum", None):
            options["b1"] = momentum
        return ScheduleFree(config.SCHEDULE_FREE[settings.optimizer], tuple(options.items()))

    def make(self, learning_rate: Float32[Array, ""] | float) -> optax.GradientTransformation:
        """Return the optimizer at a learning rate.

        Each of them multiplies by the learning rate last, so scaling the learning rate scales the
        updates. Scaling Adam's gradients would have almost no effect.
        """
        return getattr(optax, self.name)(learning_rate, **dict(self.options))

    def gradient_params(
        self,
        params: Params,
        opt_state: Any,  # noqa: ARG002 (a subclass needs it)
    ) -> Params:
        """Return the parameters at which the gradient of a step is taken."""
        return params

    def update(
        self,
        learning_rate: Float32[Array, ""],
        grads: Params,
        opt_state: Any,
        gradient_params: Params,
    ) -> tuple[Params, Any]:
        """Take a step; return the new parameters and the new state of the optimizer."""
        updates, opt_state = self.make(learning_rate).update(grads, opt_state, gradient_params)
        return optax.apply_updates(gradient_params, updates), opt_state


@dataclass(frozen=True)
class ScheduleFree(Optimizer):
    """An optimizer of ``optax.contrib`` whose parameters are an average of its iterates ``z``.

    The gradient is taken between the average and ``z``. Defazio et al., "The Road Less Scheduled",
    2024. Optax trains the parameters of the gradient, and computes the average from them.
    """

    def make(self, learning_rate: Float32[Array, ""] | float) -> optax.GradientTransformation:
        """Return the optimizer at a learning rate, which also weights the average."""
        return getattr(optax.contrib, self.name)(learning_rate, **dict(self.options))

    def gradient_params(self, params: Params, opt_state: Any) -> Params:
        b1 = opt_state.b1
        return jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, params, opt_state.z)

    def update(
        self,
        learning_rate: Float32[Array, ""],
        grads: Params,
        opt_state: Any,
        gradient_params: Params,
    ) -> tuple[Params, Any]:
        params, opt_state = super().update(learning_rate, grads, opt_state, gradient_params)
        return optax.contrib.schedule_free_eval_params(opt_state, params), opt_state


class Spec(NamedTuple):
    """Everything that is static when a training is compiled."""

    network: Network
    optimizer: Optimizer
    schedule: Schedule
    static_rule: PlateauRule  # with 0 in place of the arguments that are traced
    metric: config.Metric  # of an observation
    split: config.Split  # that the rule observes: the steps of train, or evaluations
    batch_size: int  # over all devices
    augment: Augmentation  # of the training images
    on_drop: config.OnDrop

    @classmethod
    def from_settings(
        cls, settings: config.Settings, network: Network, *, num_examples: int
    ) -> "Spec":
        """Return what is static in a training on ``num_examples`` training images."""
        plateau, batch_size = settings.plateau, settings.data.batch_size
        schedule = make_schedule(settings, num_examples // batch_size)
        # A rule that another schedule does not follow has nothing to lower.
        factor = plateau.factor if schedule.follows_rule else 1.0
        rule = PlateauRule.from_settings(plateau)._replace(factor=factor)
        return cls(
            network=network,
            optimizer=Optimizer.from_settings(settings.optimizer),
            schedule=schedule,
            static_rule=rule._replace(**dict.fromkeys(TRACED, 0)),
            metric=plateau.metric,
            split=plateau.split,
            batch_size=batch_size,
            augment=settings.data.augment,
            on_drop=plateau.on_drop if schedule.follows_rule else "keep",
        )

    @property
    def observes_steps(self) -> bool:
        return self.split == "train"

    def rule(self, hyperparams: Hyperparams) -> PlateauRule:
        """Return the plateau rule with its traced arguments."""
        return self.static_rule._replace(**{name: getattr(hyperparams, name) for name in TRACED})
