"""Networks: batch normalization and dropout, a user's own code, augmentation, the dry run."""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from helpers import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    TOLERANCE,
    first_row,
    make_examples,
    make_settings,
    make_spec,
    one_device,
    resolve,
    run_two,
    take_epoch,
)

from plateau_train.api import training
from plateau_train.commands.train import train
from plateau_train.config import RawValue
from plateau_train.config.resolve import resolve_sweep
from plateau_train.config.toml import read_toml
from plateau_train.errors import ConfigError
from plateau_train.numerics import architectures, augmentation
from plateau_train.numerics import replicas as numerics
from plateau_train.numerics import step as single
from plateau_train.numerics.adapters import from_functions, from_linen
from plateau_train.numerics.model import Network, check_network, measure
from plateau_train.numerics.nnx_modules import from_nnx
from plateau_train.numerics.replicas import Replicas, has_convolutions
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import Examples
from plateau_train.run import checkpoint, environment
from plateau_train.run.directory import SWEEP, RunDirectory
from plateau_train.run.environment import ModelFacts
from plateau_train.training import memory, setup, sweep
from plateau_train.training.devices import use_process
from plateau_train.training.loop import NoCallbacks

pytestmark = pytest.mark.usefixtures("no_saved_plots")

SOURCE = Path(networks.__file__).read_text()
KINDS = ("linen", "nnx")
KEY = jax.random.key(7)
SPLIT = make_examples(80)


def make_network(kind: str, precision: Any = "float32") -> Network:
    """Return a network of tests/networks.py for small random images."""
    given: Any = {"title": kind, "num_classes": NUM_CLASSES, "precision": precision}
    if kind == "linen":
        return from_linen(networks.Linen(NUM_CLASSES), **given)
    return from_nnx(partial(networks.Nnx, NUM_CLASSES, IMAGE_SHAPE), **given)


def make_functions(*, has_collections: bool) -> Network:
    functions = networks.Functions(NUM_CLASSES, has_collections)
    options: Any = {"precision": "float32", "image_shape": IMAGE_SHAPE}
    return from_functions(functions, title="linear", num_classes=NUM_CLASSES, **options)


def make_replicas(network: Network, *seeds: int, batch_size: int = 8) -> Replicas:
    settings = make_settings(seed=seeds, batch_size=batch_size)
    spec = Spec.from_settings(settings, network, num_examples=80)
    return Replicas(spec, Hyperparams.from_settings([settings]), one_device(len(seeds)))


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    return make_network(request.param)


@pytest.fixture(scope="module")
def variables(network):
    return jax.jit(network.init)(KEY, jnp.zeros((1, *IMAGE_SHAPE)))


@pytest.fixture(scope="module")
def apply(network):
    """The network of images, compiled; its key is None in evaluation."""
    return jax.jit(network.apply)


IMAGES = make_examples(8).images


def assert_close(actual, expected, tolerance=TOLERANCE):
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(one, other, tolerance, atol=1e-5)


def test_a_step_changes_the_running_averages_as_their_momentum_says(apply, variables):
    _, after = apply(variables, IMAGES, KEY)
    mean, var = sorted(jax.tree.leaves(variables.model_state), key=np.sum)
    assert (mean.tolist(), var.tolist()) == ([0.0] * 4, [1.0] * 4)
    kernel = next(leaf for leaf in jax.tree.leaves(variables.params) if leaf.ndim == 4)
    patches = (np.asarray(IMAGES) / 255).reshape(8, 2, 2, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5)
    values = np.einsum("nhwijc,ijcf->nhwf", patches, kernel).reshape(-1, 4)
    expected = [0.1 * values.mean(axis=0), 0.9 + 0.1 * values.var(axis=0)]
    assert_close(sorted(jax.tree.leaves(after), key=np.sum), sorted(expected, key=np.sum))


def test_an_evaluation_is_deterministic_and_changes_nothing(apply, variables):
    logits, after = apply(variables, IMAGES, None)
    again, _ = apply(variables, IMAGES, None)
    np.testing.assert_array_equal(logits, again)
    for old, new in zip(*map(jax.tree.leaves, (variables.model_state, after)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_evaluation_uses_the_running_averages_and_not_the_batch(apply, variables):
    other_images = jnp.concatenate([IMAGES[:4], 255 - IMAGES[4:]])
    one, other = (apply(variables, images, None)[0][:4] for images in (IMAGES, other_images))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    one, other = (apply(variables, images, KEY)[0][:4] for images in (IMAGES, other_images))
    assert not np.allclose(one, other, rtol=1e-2)
    moved = jax.tree.map(lambda leaf: leaf + 1, variables.model_state)
    logits, _ = apply(variables, IMAGES, None)
    changed, _ = apply(variables._replace(model_state=moved), IMAGES, None)
    assert not np.allclose(logits, changed, rtol=1e-2)


def test_what_a_module_sows_is_no_state(network, variables):
    assert sorted(leaf.shape for leaf in jax.tree.leaves(variables.model_state)) == [(4,), (4,)]
    check_network(network, IMAGE_SHAPE)


@pytest.mark.parametrize("kind", [*KINDS, "augment"])
def test_random_numbers_differ_between_steps_epochs_and_seeds_and_repeat(kind):
    settings = make_settings(hidden_sizes=())
    if kind == "augment":
        data = settings.data.model_copy(update={"augment": "shift"})
        spec = make_spec(settings.model_copy(update={"data": data}))
    else:
        spec = Spec.from_settings(settings, make_network(kind), num_examples=80)
    hyperparams = Hyperparams.from_settings([settings])
    rows = first_row(hyperparams)
    replicas = Replicas(spec, hyperparams, one_device(1))
    state = jax.tree.map(lambda array: array[0], replicas.init(IMAGE_SHAPE))
    records = jax.tree.map(lambda array: array[0], replicas.empty_records(2))
    carry = single.Carry(state, records)
    # Equal images: only the random numbers of a step make its loss another one.
    split = Examples(jnp.tile(IMAGES[:1], (8, 1, 1, 1)), jnp.zeros(8, jnp.int32))
    order = jnp.tile(jnp.arange(8), (2, 1))

    @jax.jit
    def loss_of(seed, epoch, index):
        own = rows._replace(seed=jnp.asarray(seed, jnp.uint32))
        _, after = single.take_step(spec, own, carry, order, split, index, epoch)
        return after.metrics.loss[index]

    places = list(itertools.product((0, 1), (1, 2), (0, 1)))
    losses, again = ([float(loss_of(*place)) for place in places] for _ in range(2))
    assert losses == again
    assert len(set(losses)) == len(places)


def train_in_chunks(replicas: Replicas, *cuts: int) -> Any:
    state, records, split = replicas.init(IMAGE_SHAPE), replicas.empty_records(10), SPLIT
    order = replicas.epoch_order(1, 80)
    for start, stop in itertools.pairwise(cuts):
        state, records = replicas.train_steps(state, records, order, split, start, stop, 1)
    return state, records


def test_steps_have_the_same_bits_in_chunks_and_the_same_losses_in_calls_and_in_a_loop(monkeypatch):
    """A network with convolutions of XLA takes each step in a call of its own on the CPU."""
    replicas, taken, losses = make_replicas(make_network("linen"), 0), [], []
    run = numerics._run
    monkeypatch.setattr(
        numerics, "_run", lambda *given, **rest: taken.append(given[0]) or run(*given, **rest)
    )
    for has_some in (True, False):
        whole, chunked = (train_in_chunks(replicas, *cuts) for cuts in ((0, 10), (0, 1, 7, 10)))
        for one, other in zip(*map(jax.tree.leaves, (whole, chunked)), strict=True):
            np.testing.assert_array_equal(one, other)
        losses.append(whole[1].metrics.loss)
        assert taken.count(single.take_step) == 20, has_some
        monkeypatch.setattr(numerics, "has_convolutions", lambda *_: False)
    assert taken.count(single.train_steps) == 4
    np.testing.assert_allclose(losses[0], losses[-1], rtol=TOLERANCE)


def test_only_networks_with_convolutions_of_xla_are_said_to_have_some(network):
    assert has_convolutions(network, IMAGE_SHAPE)
    assert not has_convolutions(make_functions(has_collections=False), IMAGE_SHAPE)
    for model in ("mlp", "cnn"):
        settings = make_settings(hidden_sizes=(4,))
        built_in = settings.model.model_copy(update={"model": model})
        spec = make_spec(settings.model_copy(update={"model": built_in}))
        assert not has_convolutions(spec.network, IMAGE_SHAPE)


def test_networks_with_convolutions_of_xla_need_the_memory_of_all_replicas_at_once(monkeypatch):
    replicas = make_replicas(make_network("linen"), *range(6))
    per_replica, state_bytes = numerics.estimate_memory(replicas.spec, IMAGE_SHAPE)
    free = 5.5 * (per_replica + memory.HOST_COPIES * state_bytes)
    monkeypatch.setattr(environment, "available_memory", lambda: free / memory.USABLE)
    memory.check_memory(replicas.spec, 5, replicas.mesh, IMAGE_SHAPE)
    with pytest.raises(ConfigError) as refused:
        memory.check_memory(replicas.spec, 6, replicas.mesh, IMAGE_SHAPE)
    assert refused.value.hint == "train 5 of them at a time"


def test_replicas_equal_single_trainings_of_their_seeds():
    network, results = make_network("nnx"), []
    for seeds in ((0, 5), (0,), (5,)):
        replicas = make_replicas(network, *seeds)
        state, records = train_in_chunks(replicas, 0, 10)
        results.append((state.variables, records.metrics.loss))
    together, *alone = results
    assert_close(together, jax.tree.map(lambda *rows: np.concatenate(rows), *alone), 1e-3)
    assert not np.allclose(*together[1])


def test_bfloat16_keeps_the_parameters_the_state_and_the_losses_float32(network, variables, apply):
    low = make_network(network.title, "bfloat16")
    check_network(low, IMAGE_SHAPE)
    logits, model_state = jax.jit(low.apply)(variables, IMAGES, KEY)
    expected, _ = apply(variables, IMAGES, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, model_state))} == {np.dtype("float32")}
    assert not np.array_equal(logits, expected)
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_measure_counts_parameters_and_activations(network):
    # The convolution, the scale and the bias of the normalization, and the dense layer.
    expected = 4 * 4 + 2 * 4 + (16 + 1) * NUM_CLASSES
    assert measure(network, IMAGE_SHAPE).num_params == expected
    # For its gradient a linear network needs only its pixels.
    linear = measure(make_functions(has_collections=False), IMAGE_SHAPE)
    assert linear == (16 * NUM_CLASSES, 16 * 4)


@pytest.mark.parametrize("has_collections", [False, True])
def test_functions_train_their_params_and_keep_their_other_collections(has_collections):
    network = make_functions(has_collections=has_collections)
    check_network(network, IMAGE_SHAPE)
    replicas, split = make_replicas(network, 0), SPLIT
    before = jax.device_get(replicas.init(IMAGE_SHAPE).variables)
    state, _ = take_epoch(replicas, replicas.init(IMAGE_SHAPE), split, 1)
    assert before.params.keys() == {"kernel"}
    assert not np.allclose(before.params["kernel"], state.params["kernel"])
    expected = {"constants": {"two": np.full(1, 2.0)}} if has_collections else {}
    assert before.model_state == state.model_state == expected
    pixels = split.images[:1].reshape(1, -1) / 255
    logits = single.predict(
        network, jax.tree.map(lambda rows: rows[0], state.variables), split.images[:1]
    )
    factor = 2 if has_collections else 1
    np.testing.assert_allclose(logits, factor * pixels @ state.params["kernel"][0], rtol=1e-5)


def test_the_convolution_of_cnn_equals_that_of_flax():
    own, flax = architectures.Conv(5), nn.Conv(5, (3, 3))
    images = jax.random.normal(KEY, (2, 5, 6, 3))
    variables = flax.init(KEY, images)
    assert_close(own.init(KEY, images), variables, 1e-6)

    def loss(module, variables, images):
        with jax.default_matmul_precision("highest"):
            values: Any = module.apply(variables, images)
        return (values**2).sum(), values

    results = [
        jax.jit(jax.value_and_grad(partial(loss, module), (0, 1), has_aux=True))(variables, images)
        for module in (own, flax)
    ]
    assert results[0][0][1].shape == (2, 5, 6, 5)
    assert_close(*results)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7)])
def test_the_pool_of_cnn_equals_that_of_flax(shape):
    images = jax.random.normal(KEY, (2, *shape, 3))
    expected = nn.max_pool(images, (2, 2), (2, 2))
    np.testing.assert_array_equal(architectures._pool(images), expected)


@pytest.fixture(scope="module")
def meshes():
    """What tests/meshes.py prints of a network with state, on four simulated devices."""
    script, keys = Path(__file__).with_name("meshes.py"), [[1, 1], [4, 1]]
    finished = subprocess.run(
        [sys.executable, script, json.dumps(keys), "own"],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_normalization_and_dropout_on_four_devices_agree_with_one(meshes):
    one, four = meshes
    assert (one["mesh"], four["mesh"]) == ([1, 1], [1, 4])
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(four[name], one[name], rtol=1e-3)


# Augmentation

augment = jax.jit(augmentation.augment, static_argnums=0)
WIDE = (16, 24, 2)  # shifted by up to 2 rows and 3 columns


def draw_images(num_images: int) -> Any:
    random = np.random.default_rng(0)
    return random.integers(1, 256, (num_images, *WIDE), np.uint8)


def shift_by(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Shift an image down and to the right, with zeros in place of what is outside."""
    height, width, _ = image.shape
    shifted = np.zeros_like(image)
    for row, column in itertools.product(range(height), range(width)):
        if 0 <= row - rows < height and 0 <= column - columns < width:
            shifted[row, column] = image[row - rows, column - columns]
    return shifted


def test_a_shift_moves_an_image_by_at_most_an_eighth_and_pads_zeros():
    images = np.tile(draw_images(1), (400, 1, 1, 1))
    offsets = list(itertools.product(range(-2, 3), range(-3, 4)))
    shifted = {shift_by(images[0], *offset).tobytes(): offset for offset in offsets}
    assert len(shifted) == 35
    result = np.asarray(augment("shift", KEY, jnp.asarray(images)))
    assert {shifted[image.tobytes()] for image in result} == set(offsets)


def test_a_small_image_is_shifted_by_a_pixel():
    images = np.tile(make_examples(1).images, (100, 1, 1, 1))
    offsets = itertools.product((-1, 0, 1), repeat=2)
    expected = {shift_by(images[0], *offset).tobytes() for offset in offsets}
    result = np.asarray(augment("shift", KEY, jnp.asarray(images)))
    assert {image.tobytes() for image in result} == expected


def test_a_flip_mirrors_about_half_of_the_images():
    images = draw_images(100)
    result = np.asarray(jax.jit(jax.vmap(augmentation.flip))(jax.random.split(KEY, 100), images))
    is_mirrored = [np.array_equal(*pair) for pair in zip(result, images[:, :, ::-1], strict=True)]
    is_same = [np.array_equal(*pair) for pair in zip(result, images, strict=True)]
    assert sum(is_mirrored) + sum(is_same) == 100
    assert 30 < sum(is_mirrored) < 70


def test_flip_and_shift_are_both_made_with_random_numbers_of_their_own():
    images = jnp.asarray(draw_images(100))
    both = augment("flip,shift", KEY, images)
    keys = [jax.random.split(jax.random.fold_in(KEY, number), 100) for number in (0, 1)]
    flipped = jax.jit(jax.vmap(augmentation.flip))(keys[0], images)
    np.testing.assert_array_equal(both, jax.jit(jax.vmap(augmentation.shift))(keys[1], flipped))


def test_an_augmentation_is_a_function_of_its_key():
    images = jnp.asarray(draw_images(10))
    assert augmentation.augment("none", KEY, images) is images
    one, again, other = (augment("flip,shift", jax.random.key(seed), images) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


# From the command line

# As small as faults.TINY, without its --hidden-sizes.
TINY = tuple(flag for flag in faults.TINY if not flag.startswith("--hidden-sizes"))
WIDTH = '{"width": 3}'
RUNS = {
    "linen": ("--model=own.py:Linen", f"--model-args={WIDTH}"),
    "nnx": ("--model=own.py:Nnx", f"--model-args={WIDTH}", "--augment=flip,shift"),
}


def test_a_run_stopped_and_resumed_from_elsewhere_equals_one_never_stopped(processes, tmp_path):
    """A network of NNX; scripts/torture does the same with one of Linen."""
    check_resumed_elsewhere(processes, tmp_path, "nnx")


def check_resumed_elsewhere(processes, folder, kind):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (folder / "own.py").write_text(SOURCE)
    flags = (*TINY, *RUNS[kind], "--epochs=2")
    whole = processes.run(folder, *flags, "--runs-dir=whole")
    assert whole.code == 0, whole.stderr
    ended = processes.run(folder, *flags, fault="crash", at="epoch-000002")
    assert faults.epochs_printed(ended.stdout) == [0, 1], ended.stderr
    (run,) = faults.runs_in(folder)
    again = processes.run(elsewhere, "resume", run)
    assert faults.epochs_printed(again.stdout) == [2], again.stderr
    assert faults.result_of(run) == faults.result_of(folder / "whole" / "latest")
    assert_network_is_recorded(run, folder / "own.py", kind.capitalize())
    if kind == "nnx":
        assert read_toml(run / "config.toml")["data"]["augment"] == "flip,shift"
    ended = processes.run(elsewhere, "evaluate", run, "--checkpoint=last")
    assert_scores_are_recorded(ended, run)


def assert_scores_are_recorded(ended, run):
    assert ended.code == 0, ended.stderr
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    best = max(record["test_accuracy"] for record in records if record["epoch"] == 2)
    (shown,) = re.findall(r"test +loss \S+, accuracy (\S+)", ended.stdout)
    assert float(shown) == pytest.approx(best, abs=1e-4)
    assert "recorded" not in ended.stderr, "the scores are not the recorded ones"


def assert_network_is_recorded(run, source, name):
    model = read_toml(run / "config.toml")["model"]
    assert (model["model"], model["model_args"]) == (f"{source}:{name}", WIDTH)
    assert (run / "model.py").read_text() == SOURCE
    manifest, arrays = checkpoint.read_checkpoint(run / "checkpoints" / "epoch-000002.npz")
    facts = json.loads((run / "environment.json").read_text())["model"]
    assert manifest.environment.model == ModelFacts(**facts)
    assert facts["sha256"] == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert {array.shape[-1] for name, array in arrays.items() if "onv" in name} == {3}
    states = {array.shape for name, array in arrays.items() if name.startswith("model_state")}
    assert states == {(len(manifest.settings.run.seeds), 3)}


# A network of two layers. It leaves a file when it is executed, with the number of threads that
# XLA would have if its devices started then.
PLAIN = """\
import os
from pathlib import Path

import flax.linen as nn

Path(__file__).with_name("executed").write_text(os.environ["NPROC"])


class Net(nn.Module):
    num_classes: int
    width: int = 2

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(nn.Dense(self.width)(images.reshape(len(images), -1)))


class Other(Net):
    pass
"""
ARGUMENTS = (*TINY, "--epochs=1", "--model=net.py:Net", "--seed=0,1")


@pytest.fixture(scope="module")
def plain_run(processes, tmp_path_factory):
    """A folder with a network, a finished run and a sweep."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "net.py").write_text(PLAIN)
    grid = ("sweep", *ARGUMENTS, '--model-args={"width": 2};{"width": 4}', "--name=sweep")
    for call in (ARGUMENTS, grid):
        ended = processes.run(folder, *call)
        assert ended.code == 0, ended.stderr
    return folder


@pytest.fixture
def own(plain_run, processes):
    """The run and its network, which a test may change; and a function that calls a command."""
    run, folder_of_sweep = faults.runs_in(plain_run)
    source, config = plain_run / "net.py", run / "config.toml"
    kept = {path: path.read_bytes() for path in (source, config, run / "model.py")}
    executed = plain_run / "executed"
    executed.unlink(missing_ok=True)

    def call(command, *flags, folder=run, **trouble):
        executed.unlink(missing_ok=True)
        ended = processes.run(plain_run, *filter(None, (command, folder)), *flags, **trouble)
        assert "Traceback" not in ended.stderr
        return ended, executed.exists()

    yield SimpleNamespace(run=run, sweep=folder_of_sweep, source=source, config=config, call=call)
    for path, content in kept.items():
        path.write_bytes(content)


LONGER = "--epochs=2"
COMMANDS = {
    "resume": (LONGER,),
    "evaluate": (),
    "export": ("--format=stablehlo", "-o", "exported"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_changed_code_is_refused_with_the_difference_and_not_executed(own, command):
    own.source.write_text(PLAIN.replace("width: int = 2", "width: int = 3"))
    ended, was_executed = own.call(command, *COMMANDS[command])
    assert (ended.code, was_executed) == (4, False)
    assert f"{own.source} is not the code that {own.run} was trained with" in ended.stderr
    for line in ("-    width: int = 2", "+    width: int = 3"):
        assert line in ended.stderr
    assert f"--model {own.run}/model.py:Net" in ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_this_user_has_not_named_is_not_executed(own, command, tmp_path):
    cache = f"--cache-dir={tmp_path / 'cache'}"
    ended, was_executed = own.call(command, *COMMANDS[command], cache)
    assert (ended.code, was_executed) == (2, False), ended.stderr
    assert "is code that you have not trained with in this form" in ended.stderr
    assert f"if you trust it, add --model {own.source}:Net" in ended.stderr


def test_a_sweep_executes_no_code_that_this_user_has_not_named(own, tmp_path):
    cache = f"--cache-dir={tmp_path / 'cache'}"
    ended, was_executed = own.call("resume", cache, folder=own.sweep)
    assert (ended.code, was_executed) == (2, False), ended.stderr
    assert "is code that you have not trained with in this form" in ended.stderr
    ended, was_executed = own.call("resume", folder=own.sweep)
    assert (ended.code, was_executed) == (0, True), ended.stderr
    widths = [json.loads(run["settings"]["model"]["model_args"])["width"] for run in planned(own)]
    assert widths == [2, 4]


def planned(own):
    return json.loads((own.sweep / SWEEP).read_text())["runs"]


def test_naming_the_code_executes_it_and_permits_it_from_then_on(own, tmp_path):
    cache = f"--cache-dir={tmp_path / 'cache'}"
    for flags, is_permitted in (
        ([], False), ([f"--model={own.source}:Net"], True), ([], True),
    ):  # fmt: skip
        ended, was_executed = own.call("evaluate", cache, *flags)
        assert (ended.code == 0, was_executed) == (is_permitted, is_permitted), ended.stderr


def test_a_cache_that_others_may_write_to_permits_nothing(own, tmp_path):
    cache = tmp_path / "cache"
    named = own.call("evaluate", f"--cache-dir={cache}", f"--model={own.source}:Net")
    assert named[0].code == 0, named[0].stderr
    cache.chmod(0o777)
    ended, was_executed = own.call("evaluate", f"--cache-dir={cache}")
    assert (ended.code, was_executed) == (2, False)
    assert f"{cache} is writable by other users" in ended.stderr


def test_another_name_in_the_same_file_is_not_permitted(own):
    own.config.write_text(own.config.read_text().replace("net.py:Net", "net.py:Other"))
    ended, was_executed = own.call("resume", LONGER)
    assert (ended.code, was_executed) == (2, False)
    assert "it would change the results" in " ".join(ended.stderr.split())


def test_a_configuration_that_names_other_code_executes_none(own, tmp_path):
    (tmp_path / "net.py").write_text(PLAIN)
    text = own.config.read_text()
    own.config.write_text(text.replace(str(own.source), str(tmp_path / "net.py")))
    ended, was_executed = own.call("resume", LONGER)
    assert (ended.code, was_executed) == (2, False)
    assert "have not trained with in this form" in ended.stderr
    (tmp_path / "net.py").write_text(PLAIN + "x = 1\n")
    ended, was_executed = own.call("resume", LONGER)
    assert (ended.code, was_executed) == (4, False)
    assert not (tmp_path / "executed").exists()


def test_a_file_with_settings_names_no_code_and_no_cache_that_permits_some(own, tmp_path):
    forged, foreign = tmp_path / "forged", tmp_path / "foreign.toml"
    ended, _ = own.call("evaluate", f"--cache-dir={forged}", f"--model={own.source}:Net")
    assert ended.code == 0, ended.stderr
    text = re.sub('cache_dir = ".*"', f'cache_dir = "{forged}"', own.config.read_text())
    foreign.write_text(text)
    own_home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "empty")}
    del own_home["PLATEAU_TRAIN_CACHE_DIR"]  # it outranks the file
    for command, folder in (("train", None), ("resume", own.run)):
        config = f"--config={foreign}"
        ended, was_executed = own.call(command, config, folder=folder, environment=own_home)
        assert (ended.code, was_executed) == (2, False), ended.stderr
        assert "have not trained with in this form" in ended.stderr


def test_the_threads_of_a_run_are_fixed_before_its_code_is_executed(own, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(own.run, copy)
    more_threads = os.environ | {"NPROC": "2"}
    ended, _ = own.call("resume", LONGER, folder=copy, environment=more_threads)
    assert ended.code == 0, ended.stderr
    assert own.source.with_name("executed").read_text() == "1"


def test_two_processes_continue_a_run_with_a_network_of_a_user(own, processes, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(own.run, copy)
    leader, other = run_two(processes, tmp_path, "resume", copy, LONGER)
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert faults.epochs_printed(leader.stdout) == [2]


def test_code_that_only_process_0_was_given_is_not_executed(own, tmp_path, monkeypatch):
    leader = resolve(model=f"{own.source}:Net", runs_dir=str(tmp_path))
    monkeypatch.setattr(setup, "adopt", lambda *_: leader)
    with pytest.raises(ConfigError, match=r"net\.py:Net") as refused:
        training.train(resolve(cache_dir=str(tmp_path)), lambda _: None, NoCallbacks())
    assert "--model" in refused.value.hint
    assert not own.source.with_name("executed").exists()
    assert list(tmp_path.glob("*-train-loss")) == []


def test_check_verifies_a_run_without_executing_its_code(own, tmp_path):
    ended, was_executed = own.call("resume", "--check", f"--cache-dir={tmp_path / 'cache'}")
    assert (ended.code, was_executed) == (0, False), ended.stderr
    assert "epoch-000001.npz: intact, epoch 1" in ended.stdout
    assert "arrays are not compared with the network" in ended.stdout
    (own.run / "model.py").write_text("x = 1\n")
    ended, was_executed = own.call("resume", "--check", f"--cache-dir={tmp_path / 'cache'}")
    assert (ended.code, was_executed) == (4, False)
    assert "model.py is not the code that the run was trained with" in ended.stderr


def test_a_network_that_was_moved_is_named_again(own, tmp_path):
    own.source.rename(tmp_path / "new.py")
    ended, _ = own.call("evaluate")
    assert ended.code == 2, ended.stderr
    assert f"{own.source} cannot be read: No such file" in ended.stderr
    for place in (tmp_path / "new.py", own.run / "model.py"):
        ended, _ = own.call("evaluate", f"--model={place}:Net")
        assert ended.code == 0, ended.stderr
    (own.run / "executed").unlink()
    ended, _ = own.call("evaluate", f"--model={tmp_path / 'new.py'}:Other")
    assert ended.code == 2, ended.stderr


def test_a_sweep_goes_over_built_in_networks(tmp_path):
    values = QUICK | {"model": "mlp,cnn", "runs_dir": str(tmp_path)}
    cells = resolve_sweep({key: RawValue(text, "flag") for key, text in values.items()})
    plan = sweep.make_plan(cells, None, sweep.LoadedDatasets())
    assert [run.folder for run in plan.runs] == ["001-model=mlp", "002-model=cnn"]
    assert [run.settings.model.model for run in plan.runs] == ["mlp", "cnn"]
    programs, _ = sweep.group_programs(RunDirectory(tmp_path), plan)
    assert len(programs) == 2


# Bad input


def write_linen(*, line: str = "pass", result: str = "nn.Dense(self.num_classes)(values)") -> str:
    """Return a file with a Linen module ``Net`` whose line 12 is ``line``."""
    return f"""\
import flax.linen as nn
import jax.numpy as jnp


class Net(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, images):
        values = nn.Dense(self.width)(images.reshape(len(images), -1))
        {line}
        return {result}


net = Net(10)
"""


def write_functions(params: str = '{"w": jnp.ones((784, 10))}', result: str = "pixels @ 1") -> str:
    """Return a file with an object ``net`` that has init and apply."""
    return f"""\
import jax.numpy as jnp


class Functions:
    def init(self, key, images):
        return {params}

    def apply(self, variables, images):
        pixels = images.reshape(len(images), -1)
        return {result}


net = Functions()
"""


NNX = "from flax import nnx\nNet = nnx.Linear(784, 10, rngs=nnx.Rngs(0))\n"
NO_PARAMS = """\
import flax.linen as nn
class Net(nn.Module):
    def __call__(self, images):
        return images.reshape(len(images), -1)[:, :10]
"""
FILE, USE, FIND, TRAIN = (
    "name the file: --model FILE.py:NAME", "a network takes float32 images [batch, height,",
    "PLATEAU_TRAIN_DEBUG=1 shows where it fails", "give __call__ an argument train, which is False",
)  # fmt: skip
KIND, ROWS = "name a Flax module, or an object with", "return one row per image with 10 values"
FLOAT, ALL = (
    "return one array of floating point",
    "plateau-train train --help explains each setting",
)
FINAL = "make every variable when the network is initialized, with its final shape"
FORM = "Net of net.py changes the form of its state in training: "
JSON = '--model-args must be a JSON object such as {"width": 64}, got '
NET = {"model": "net.py:net"}
NAMES = "--model must be mlp, cnn, FILE.py:NAME or package.module:NAME, got "

# The file net.py, the flags, the problem and the begin of the hint. FOLDER is the folder of the
# file, and FAILS the begin of the problem of code that fails.
BAD: dict[str, tuple[str, dict[str, str], str, str]] = {
    "no file": ("", {"model": "no.py:Net"}, "FOLDER/no.py cannot be read: No such file", FILE),
    "folder": ("", {"model": "d.py:N"}, "FOLDER/d.py cannot be read: it is not a regular", FILE),
    "syntax": ("x = 1\nx = (\n", {}, "FAILS in line 2 of FOLDER/net.py: SyntaxError: ", FIND),
    "null byte": ("x\0", {}, "FAILS: SyntaxError: source code string cannot contain null", FIND),
    "import": ("\n1 / 0", {}, "FAILS in line 2 of FOLDER/net.py: ZeroDivisionError: div", FIND),
    "exit": ("exit(3)", {}, "FAILS in line 1 of FOLDER/net.py: SystemExit: 3", "write below if __"),
    "package": (
        "import no_such_package", {},
        "FAILS in line 1 of FOLDER/net.py: ModuleNotFoundError: No module named 'no_such_package'",
        "install it in this environment",
    ),
    "name": (
        NO_PARAMS, {"model": "net.py:Nett"}, "FOLDER/net.py has no Nett (did you mean Net?)",
        "write --model FILE.py:NAME with its name",
    ),
    "number": ("Net = 3", {}, "Net of net.py is of type int, which is no network", KIND),
    "function": (
        "def Net():\n    return [1]", {},
        "Net of net.py is of type list, which is no network", KIND,
    ),
    "nnx object": (
        NNX, {}, "Net of net.py is an NNX module that has its parameters already",
        "name its class, or a function with an argument rngs: each seed needs its own",
    ),
    "nnx number": (
        "def Net(rngs):\n    return 3", {},
        "Net of net.py has an argument rngs and makes no NNX module", "return an NNX module, or",
    ),
    "object with arguments": (
        write_linen(), NET | {"model_args": WIDTH},
        f"net of net.py with {WIDTH} is an object: it takes no --model-args",
        "name its class, or a function that makes it",
    ),
    "unknown argument": (
        write_linen(), {"model_args": '{"widht": 3}'},
        "Net has no argument widht (did you mean width?)", "its arguments are num_classes, width",
    ),
    "missing argument": (
        write_linen().replace("width: int = 4", "width: int").replace("Net(10)", "1"), {},
        "Net needs the argument width",
        """give it a default, or add --model-args '{"width": ...}'""",
    ),
    "argument of cnn": (
        "", {"model": "cnn", "model_args": '{"feature": [3]}'},
        "cnn has no argument feature (did you mean features?)",
        "its arguments are num_classes, features, hidden_size",
    ),
    "no json": ("", {"model_args": "{width: 3}"}, f"{JSON}{{width: 3}}", ALL),
    "list": ("", {"model_args": "[3]"}, f"{JSON}[3]", ALL),
    "json nan": ("", {"model_args": '{"width": NaN}'}, f'{JSON}{{"width": NaN}}', ALL),
    "wrong classes": (
        write_linen(result="nn.Dense(7)(values)"), {},
        "Net of net.py returns logits of shape (3, 7) for 3 images in training, expected (3, 10)",
        ROWS,
    ),
    "one image": (
        write_linen(result="nn.Dense(10)(values)[0]"), {},
        "Net of net.py returns logits of shape (10,) for 3 images in training, expected (3, 10)",
        ROWS,
    ),
    "integers": (
        write_linen(result="nn.Dense(10)(values).astype(int)"), {},
        "Net of net.py returns int32 instead of logits", FLOAT,
    ),
    "tuple": (
        write_linen(result="(nn.Dense(10)(values), values)"), {},
        "Net of net.py returns tuple instead of logits", FLOAT,
    ),
    "no parameters": (
        NO_PARAMS, {}, "Net of net.py has no parameters",
        "make its layers when it is initialized",
    ),
    "bfloat16 parameters": (
        write_linen(result="nn.Dense(10, param_dtype=jnp.bfloat16)(values)"), {},
        "Net of net.py has parameters of type bfloat16", "leave the parameters float32; --prec",
    ),
    "integer parameters": (
        write_functions('{"w": jnp.ones((784, 10), int)}'), NET,
        "net of net.py has parameters of type int32", "leave the parameters float32; --prec",
    ),
    "functions": (
        write_functions(result="pixels"), NET,
        "net of net.py returns logits of shape (3, 784) for 3 images in training, expected", ROWS,
    ),
    "normalization": (
        write_linen(line="nn.BatchNorm()(values)"), {},
        "FAILS in line 12 of FOLDER/net.py: ValueError: Parameter \"use_running_average\" must",
        TRAIN,
    ),
    "normalization in evaluation": (
        write_linen(line="nn.BatchNorm(use_running_average=False)(values)"), {},
        "FAILS in line 12 of FOLDER/net.py: ModifyScopeVariableError: Cannot update", TRAIN,
    ),
    "dropout": (
        write_linen(line="nn.Dropout(0.5)(values)"), {},
        "FAILS in line 12 of FOLDER/net.py: ValueError: Parameter \"deterministic\" must", TRAIN,
    ),
    "dropout in evaluation": (
        write_linen(line="nn.Dropout(0.5, deterministic=False)(values)"), {},
        "FAILS in line 12 of FOLDER/net.py: InvalidRngError: Dropout_0 needs PRNG",
        "random numbers are there in training only, under the name dropout",
    ),
    "state": (
        write_linen(line="self.variable('s', 'x', jnp.zeros, (1, 4)).value = values"), {},
        f"{FORM}s/x is float32(1, 4) before and float32(3, 4) after", FINAL,
    ),
    "sown": (
        write_linen(line="self.sow('losses', 'norm', (values**2).sum())"), {},
        f"{FORM}losses/norm/1 is missing before and float32() after", FINAL,
    ),
    "nan": (
        write_linen(result="nn.Dense(10)(values) * jnp.nan"), {},
        "the loss of Net of net.py is nan in the first step", "return finite logits, without a s",
    ),
    "call": (
        write_linen(line="values @ values"), {},
        "FAILS in line 12 of FOLDER/net.py: TypeError: dot_general requires", USE,
    ),
    "sizes of cnn": (
        "", {"model": "cnn", "hidden_sizes": "3"},
        "--hidden-sizes is for mlp: --model cnn takes --model-args", ALL,
    ),
    "arguments of mlp": (
        "", {"model": "mlp", "model_args": WIDTH},
        f"--model-args {WIDTH} is not for mlp: it takes --hidden-sizes", ALL,
    ),
    "module": ("", {"model": "a.b:C"}, "there is no module a.b", "install its package in this env"),
    "cn": ("", {"model": "cn"}, f"{NAMES}cn", ALL),
    "no name": ("", {"model": "net.py"}, f"{NAMES}net.py", ALL),
}  # fmt: skip
QUICK = {
    "dataset": "garments", "train_examples": "60", "test_examples": "30", "batch_size": "5",
    "epochs": "1", "model": "net.py:Net", "quiet": "true",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_network_that_cannot_be_trained_is_refused_before_there_is_a_run(
    tmp_path, monkeypatch, case
):
    source, flags, problem, hint = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(source)
    (tmp_path / "d.py").mkdir()
    with pytest.raises(ConfigError) as refused:
        train(resolve(**QUICK | flags))
    failed = f"the network {tmp_path}/net.py:{flags.get('model', 'net.py:Net')[7:]} fails"
    expected = problem.replace("FAILS", failed).replace("FOLDER", str(tmp_path))
    (actual,) = refused.value.problems
    assert actual.startswith(expected)
    assert refused.value.hint.startswith(hint)
    assert not (tmp_path / "runs").exists()


# The dry run


def test_the_layers_of_a_network_fit_into_80_columns_uncut(network):
    lines = network.tabulate(IMAGE_SHAPE, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "Conv" in "".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)


def test_a_dry_run_prints_layers_and_sizes_and_writes_nothing(processes, tmp_path):
    (tmp_path / "own.py").write_text(SOURCE)
    ended = processes.run(tmp_path, *TINY, "--model=own.py:Linen", "--dry-run")
    assert ended.code == 0, ended.stderr
    rows = dict(re.findall(r"^([\w ]+?)  +(.+)", ended.stdout, re.MULTILINE))
    assert rows["parameters"] == "7,874"
    assert "batch_stats" in ended.stdout
    assert {"memory", "FLOPs", "one step", "evaluation", "written"} < rows.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.py"]


def test_the_table_of_functions_has_their_parameters():
    lines = make_functions(has_collections=True).tabulate(IMAGE_SHAPE, 80).splitlines()
    assert any(re.match(r"params/\w+ +float32\(", line) for line in lines), lines


def test_the_flops_of_an_mlp_are_those_of_its_matrix_products(tmp_path):
    resolved = resolve(
        **QUICK | {"model": "mlp", "hidden_sizes": "60,40", "batch_size": "60"},
        runs_dir=str(tmp_path),
    )
    done = training.dry_run(resolved, lambda _: use_process(), width=80)
    weights = (784 * 60, 60 * 40, 40 * 10)
    # Forward, and the gradients of parameters and of inputs, but of the images.
    assert done.flops == pytest.approx(2 * 60 * (3 * sum(weights) - weights[0]), rel=0.2)
    assert done.size.num_params == sum(weights) + 110
    assert np.log(10) / 2 < done.trial.loss[0] < 2 * np.log(10)
    assert list(tmp_path.iterdir()) == []
