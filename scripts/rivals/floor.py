"""How fast our training epoch is, and what it cannot be faster than, in one process.

The floor is the step's five large matrix products and one pass over Adam's bytes, which reads the
gradients, parameters and both moments and writes the last three: each as often as an epoch has
steps, and by every library at hand. That of an evaluation is its two large products for each batch
of the test images. Prints a line of JSON a round, in seconds.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plateau_train import config
from plateau_train.data.splits import Split
from plateau_train.numerics.replicas import EVALUATION_BATCH, Replicas
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.run.environment import available_cores
from plateau_train.training.models import load_network
from plateau_train.training.program import find_mesh

# The threads of a library wait for more work, busily at first, after what they were given.
SETTLE_SECONDS = 0.5

Work = Callable[[], Any]
# The operands of each matrix product, and Adam's parameters, both moments and gradients.
Products = Sequence[tuple[np.ndarray, np.ndarray]]
Moments = tuple[np.ndarray, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help=".npz with the decoded arrays")
    parser.add_argument("--rounds", type=int, required=True)
    arguments = parser.parse_args()
    settings = config.resolve({}).settings
    with np.load(arguments.data) as arrays:
        train = Split(arrays["train_images"], arrays["train_labels"])
        num_batches = len(arrays["test_labels"]) // EVALUATION_BATCH
    num_steps = len(train.labels) // settings.data.batch_size
    products, moments = draw_operands(settings)
    forward = draw_forward(settings, EVALUATION_BATCH)
    work = {"ours": our_epoch(settings, train)}
    for library, make in LIBRARIES.items():
        if find_spec(library):
            multiply, update = make(products, moments)
            score, _ = make(forward, moments)
            work[f"products {library}"] = partial(repeat, multiply, num_steps)
            work[f"adam {library}"] = partial(repeat, update, num_steps)
            work[f"scores {library}"] = partial(repeat, score, num_batches)
    for run in work.values():  # compiles, starts threads, touches the memory
        run()
    for number in range(arguments.rounds):
        order = list(work)[:: -1 if number % 2 else 1]
        print(json.dumps({name: measure(work[name]) for name in order}), flush=True)


def measure(work: Work) -> float:
    time.sleep(SETTLE_SECONDS)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def repeat(step: Work, times: int) -> None:
    result = None
    for _ in range(times):
        result = step()
    jax.block_until_ready(result)


def our_epoch(settings: config.Settings, train: Split) -> Work:
    """Train one epoch after the other as a run does, but all steps of it in one call."""
    num_examples = len(train.labels)
    network = load_network(settings.model, 10, (28, 28, 1))
    spec = Spec.from_settings(settings, network, num_examples=num_examples)
    replicas = Replicas(spec, Hyperparams.from_settings([settings]), find_mesh(settings, 1))
    split, order = replicas.put_split(train), replicas.epoch_order(1, num_examples)
    num_steps = num_examples // spec.batch_size
    state, records = replicas.init((28, 28, 1)), replicas.empty_records(num_steps)

    def run() -> None:
        nonlocal state, records
        state, records = replicas.train_steps(state, records, order, split, 0, num_steps, 1)
        jax.block_until_ready(state)

    return run


def draw_operands(settings: config.Settings) -> tuple[Products, Moments]:
    """Draw arrays of the shapes that the default model has."""
    forward = draw_forward(settings, settings.data.batch_size)
    (inputs, _), (hidden, kernel) = forward
    grads = draw(hidden.shape)
    backward = [(inputs.T, grads), (hidden.T, grads), (grads, kernel.T)]
    sizes = (28 * 28, *settings.model.hidden_sizes, 10)
    num_params = sum((size + 1) * next_size for size, next_size in pairwise(sizes))
    return [*forward, *backward], tuple(draw((num_params,)) for _ in range(4))


def draw_forward(settings: config.Settings, batch_size: int) -> Products:
    """Draw the operands of the two large products that score a batch."""
    sizes = pairwise((28 * 28, *settings.model.hidden_sizes))
    return [(draw((batch_size, size)), draw((size, next_size))) for size, next_size in sizes]


def draw(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def with_numpy(products: Products, moments: Moments) -> tuple[Work, Work]:
    outputs = [np.empty((len(left), right.shape[1]), np.float32) for left, right in products]

    def multiply() -> None:
        for (left, right), output in zip(products, outputs, strict=True):
            np.matmul(left, right, out=output)

    # Its loops over elements know one thread only, and other threads may run meanwhile.
    pool = ThreadPoolExecutor(cores := available_cores())
    parts = list(zip(*(np.array_split(column, cores) for column in moments), strict=True))

    def pass_over(part: Moments) -> None:
        params, mean, variance, grads = part
        np.add(params, grads, out=params)
        np.multiply(mean, np.float32(1), out=mean)
        np.multiply(variance, np.float32(1), out=variance)

    return multiply, lambda: list(pool.map(pass_over, parts))


def with_jax(products: Products, moments: Moments) -> tuple[Work, Work]:
    multiply = jax.jit(lambda pairs: [left @ right for left, right in pairs])
    pairs = [(jnp.array(left), jnp.array(right)) for left, right in products]
    pass_over = jax.jit(
        lambda state, grads, one: (state[0] + grads, state[1] * one, state[2] * one),
        donate_argnums=0,
    )
    *state, grads = map(jnp.array, moments)
    one = jnp.float32(1)  # as an argument: times a constant 1 would be no work

    def update() -> Any:
        nonlocal state
        state = pass_over(tuple(state), grads, one)
        return state

    return partial(multiply, pairs), update


def with_torch(products: Products, moments: Moments) -> tuple[Work, Work]:
    torch: Any = import_module("torch")
    pairs = [(torch.from_numpy(left), torch.from_numpy(right)) for left, right in products]
    outputs = [left @ right for left, right in pairs]

    def multiply() -> None:
        for (left, right), output in zip(pairs, outputs, strict=True):
            torch.mm(left, right, out=output)

    params, mean, variance, grads = map(torch.from_numpy, moments)

    def pass_over() -> None:
        params.add_(grads)
        mean.mul_(1.0)
        variance.mul_(1.0)

    return multiply, pass_over


LIBRARIES = {"numpy": with_numpy, "jax": with_jax, "torch": with_torch}

if __name__ == "__main__":
    main()
