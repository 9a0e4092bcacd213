"""plateau-train predict and run.predict: the classes of images, and what is no image of a run."""

import csv
import io
import json
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from helpers import IMAGE_SHAPE, call, make_examples, make_replicas, make_settings
from PIL import Image
from scipy.special import softmax

import plateau_train as pt
from plateau_train import cli
from plateau_train.errors import PlateauTrainError
from plateau_train.numerics import replicas as numerics
from plateau_train.numerics import step as single

CLASSES = ("bright", "dark", "gray")
MEANS = {"bright": 190, "dark": 60, "gray": 125}
SHAPE = (6, 5)  # height and width

MODEL = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))
"""

pytestmark = pytest.mark.usefixtures("no_saved_plots")


def draw(num_images, *, seed):
    """Draw images of the classes, which overlap, and their labels."""
    random = np.random.default_rng(seed)
    labels = random.choice(CLASSES, num_images)
    means = np.array([MEANS[label] for label in labels]) + random.normal(0, 60, num_images)
    noise = random.normal(0, 10, (num_images, *SHAPE))
    return (means[:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the folder runs of one run of two seeds, and photos of its classes."""
    folder = tmp_path_factory.mktemp("predict")
    (x_train, y_train), (x_test, y_test) = draw(240, seed=0), draw(150, seed=1)
    np.savez(folder / "own.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    pt.train(
        dataset=folder / "own.npz", batch_size=20, hidden_sizes=[16], epochs=8, seed=[4, 7],
        learning_rate=0.01, runs_dir=folder / "runs", quiet=True,
    )  # fmt: skip
    (folder / "photos").mkdir()
    for number, label in enumerate(2 * CLASSES):
        pixels = np.full(SHAPE, MEANS[label] + number, np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}-{label}.png")
    Image.fromarray(np.full((9, 7, 3), 200, np.uint8)).save(folder / "big.png")
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").touch()
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return pt.load(folder / "runs" / "latest")


@pytest.fixture(scope="module")
def test_images(folder):
    with np.load(folder / "own.npz") as file:
        return file["x_test"]


def read_csv(*words):
    return list(csv.DictReader(io.StringIO(call("predict", *words, "--csv"), newline="")))


@pytest.mark.parametrize("seed", [4, 7])
def test_predictions_agree_with_the_evaluation(run, test_images, monkeypatch, seed):
    monkeypatch.setattr(numerics, "EVALUATION_BATCH", 64)
    evaluation = run.evaluate(seed=seed, checkpoint="last")
    predictions = run.predict(test_images, seed=seed, checkpoint="last")
    assert predictions.classes == CLASSES
    _, labels = draw(150, seed=1)
    numbers = np.searchsorted(CLASSES, labels)
    accuracy = (predictions.predicted == numbers).mean()
    assert 0.5 < accuracy < 1, "an accuracy that cannot differ"
    assert accuracy == pytest.approx(evaluation.scores["test"].accuracy, abs=1e-6)
    confusion = np.zeros((3, 3), np.int32)
    np.add.at(confusion, (numbers, predictions.predicted), 1)
    np.testing.assert_array_equal(confusion, evaluation.confusion)
    losses = -np.log(predictions.probabilities[np.arange(150), numbers])
    assert losses.mean() == pytest.approx(evaluation.scores["test"].loss, rel=1e-5)


def test_probabilities_are_the_softmax_of_the_parameters_of_the_seed(run, test_images):
    for seed in (4, 7):
        layers = run.params(seed=seed)
        first, last = layers["Dense_0"], layers["Dense_1"]
        hidden = test_images.reshape(150, -1) / 255 @ first["kernel"] + first["bias"]
        logits = np.maximum(hidden, 0) @ last["kernel"] + last["bias"]
        predictions = run.predict(test_images, seed=seed)
        assert predictions.probabilities.dtype == np.float32
        np.testing.assert_allclose(predictions.probabilities, softmax(logits, axis=1), rtol=1e-3)
        assert (predictions.seed, predictions.replica) == (seed, (4, 7).index(seed))


def test_any_number_of_images_is_predicted_by_one_program(monkeypatch):
    monkeypatch.setattr(numerics, "EVALUATION_BATCH", 8)
    replicas = make_replicas(make_settings(hidden_sizes=(3,), seed=(0, 1)))
    variables = replicas.init(IMAGE_SHAPE).variables
    images = np.asarray(make_examples(25).images)
    network = replicas.spec.network
    predict = jax.jit(jax.vmap(partial(single.predict, network), in_axes=(0, None)))
    expected = predict(variables, images)
    for num_images in (5, 7, 8, 9, 25):
        logits = replicas.predict(variables, images[:num_images])
        np.testing.assert_allclose(logits, expected[:, :num_images], rtol=1e-5, atol=1e-6)
    axes = (numerics.REPLICA_AXIS,)
    program = numerics.compiled(single.predict, (network,), replicas.mesh, axes, at_once=False)
    assert program._cache_size() == 1


def test_the_command_prints_the_classes_of_files(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    heads, *lines = call("predict", "runs/latest", "photos").splitlines()
    assert heads.split() == ["file", "class", "probability"]
    cells = [line.split() for line in lines]
    assert [(file, label) for file, label, _ in cells] == [
        (f"photos/{number}-{label}.png", label) for number, label in enumerate(2 * CLASSES)
    ]
    probabilities = run.predict("photos").probabilities.max(axis=1)
    assert [probability for *_, probability in cells] == [f"{each:.4f}" for each in probabilities]


def test_the_most_likely_classes_are_sorted_and_their_probabilities_sum_to_1(folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = "latest", "photos/1-dark.png", "own.npz"
    for top in (2, 3, 99):
        rows = read_csv(*words, f"--top={top}")
        num_ranks = min(top, 3)
        assert len(rows) == 151 * num_ranks
        assert [row["rank"] for row in rows[:num_ranks]] == ["1", "2", "3"][:num_ranks]
        for row in rows:
            assert row["class"] == CLASSES[int(row["class_number"])]
        values = np.array([float(row["probability"]) for row in rows]).reshape(151, num_ranks)
        assert (np.diff(values, axis=1) <= 0).all()
        assert (values.sum(axis=1) == pytest.approx(1, abs=1e-5)) == (num_ranks == 3)
    assert [*rows[0]] == ["file", "rank", "class", "class_number", "probability"]
    assert [row["file"] for row in rows[::3]] == [
        "photos/1-dark.png", *(f"own.npz: x_test[{number}]" for number in range(150)),
    ]  # fmt: skip
    heads, *lines = call("predict", *words, "--top=2").splitlines()
    assert heads.split() == ["file", "class", "probability", "class", "2", "probability"]
    assert len(lines) == 151


def test_json_has_the_rows_of_csv(folder):
    words = folder / "runs" / "latest", folder / "photos", "--top=2"
    rows = json.loads(call("predict", *words, "--json"))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == read_csv(*words)


def test_the_options_choose_the_replica_and_the_checkpoint(folder, run):
    words = folder / "runs" / "latest", folder / "photos"
    for options, chosen in (
        (["--replica=1"], {"seed": 7}),
        (["--replica=0", "--checkpoint=last"], {"seed": 4, "checkpoint": "last"}),
        (["--checkpoint=7"], {"checkpoint": 7}),
    ):
        expected = run.predict(folder / "photos", **chosen).results["probability"]
        printed = [float(row["probability"]) for row in read_csv(*words, *options)]
        assert printed == pytest.approx(expected.tolist(), rel=1e-6)
    others = [run.predict(folder / "photos", seed=seed).logits for seed in (4, 7)]
    assert not np.allclose(*others)


def test_images_of_another_size_are_resized_only_on_request(folder, run):
    (row,) = read_csv(run.path, folder / "big.png", "--resize")
    assert (row["file"], row["class"]) == (str(folder / "big.png"), "bright")
    with Image.open(folder / "big.png") as picture:
        colors = np.asarray(picture)
    for images in (colors, colors[None], folder / "big.png"):
        predictions = run.predict(images, resize=True)
        assert predictions.probabilities.max() == pytest.approx(float(row["probability"]))


def test_an_array_is_many_images_or_one(run, test_images):
    expected = run.predict(test_images).logits
    first = test_images[0]
    for images, num_images in (
        (test_images[..., None], 150),
        (test_images[..., None].repeat(3, axis=3), 150),
        (test_images[:3].tolist(), None),
        (first, 1), (first[..., None], 1), (first[None], 1), (first[..., None].repeat(3, 2), 1),
        (jax.numpy.asarray(first), 1),
    ):  # fmt: skip
        if num_images is None:
            images, num_images = np.array(images, np.uint8), 3
        logits = run.predict(images).logits
        assert logits.shape == (num_images, 3)
        np.testing.assert_allclose(logits, expected[:num_images], rtol=1e-4, atol=1e-5)


def test_paths_are_given_alone_as_a_list_or_as_they_are_found(folder, run):
    paths = sorted((folder / "photos").iterdir())
    expected = run.predict(str(folder / "photos")).results
    assert expected["file"].tolist() == [*map(str, paths)]
    for images in (paths, [*map(str, paths)], tuple(paths), iter(paths)):
        results = run.predict(images).results
        for name, column in expected.items():
            np.testing.assert_array_equal(results[name], column)


def test_a_notebook_shows_the_first_images(run, test_images):
    predictions = run.predict(test_images)
    assert predictions._repr_html_().count("<tr>") == 1 + 20
    assert "the first 20 of 150 images" in predictions._repr_html_()
    assert run.predict(test_images[:20])._repr_html_().count("the first") == 0
    assert repr(predictions).startswith("Predictions(150 images, ")
    assert len(predictions.rows(top=2)) == 300


def refuse(*words):
    """Return the error of a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["plateau-train", "predict", *map(str, words)])
        with pytest.raises(PlateauTrainError) as refusal:
            cli.main()
    return refusal.value


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("latest", 2, "Missing argument 'IMAGE...'"),
        ("latest nowhere.png", 3, "nowhere.png does not exist"),
        ("latest big.png", 3, "big.png is 7x9, and the run has images of 5x6"),
        ("latest damaged.png", 3, "damaged.png is neither PNG nor JPEG, or damaged"),
        ("latest own.npz damaged.npz", 3, "damaged.npz cannot be read: No such file"),
        ("latest runs", 3, "runs has no PNG or JPEG files"),
        ("latest photos --top 0", 2, "Invalid value for '--top'"),
        ("latest photos --top 1.5", 2, "Invalid value for '--top'"),
        ("latest photos --replica 2", 2, "there is no replica 2: the run has 2, counted from 0"),
        ("latest photos --seed 4", 2, "there is no option --seed"),
        ("latest photos --checkpoint worst", 2, "--checkpoint must be best, last or the number"),
        ("latest photos --checkpoint 0", 4, "has no intact checkpoint of epoch 0"),
        ("latest photos --json --csv", 2, "are different forms of the same output"),
        ("latest photos --model cnn", 2, "keeps its own data and its own network"),
        ("sweep photos", 4, "sweep is a sweep, and this command takes one run"),
        ("photos/1-dark.png big.png", 4, "there is no folder photos/1-dark.png"),
        ("photos big.png", 4, "photos has no checkpoint"),
    ],
)
def test_what_cannot_be_predicted_is_refused(folder, monkeypatch, words, code, problem):
    monkeypatch.chdir(folder)
    error = refuse(*words.split())
    assert (error.exit_code, len(error.problems)) == (code, 1)
    assert problem in error.problems[0]
    assert error.hint


def test_the_errors_in_python_name_arguments(folder, run, test_images):
    cases: list[tuple[Any, dict[str, Any], str, str]] = [
        (test_images / 255, {}, "images has the type float64, not uint8", r"(255 * images).round"),
        (test_images > 9, {}, "images has the type bool, not uint8", "255 * images"),
        (test_images.tolist(), {}, "images has the type int64", "images.astype('uint8')"),
        (test_images.reshape(-1), {}, "images has the shape (4500,)", "(n, height, width)"),
        (test_images[:, None], {}, "images has the shape (150, 1, 6, 5)", "channels last"),
        (test_images[:0], {}, "images has no images", "uint8"),
        (test_images[:, 1:], {}, "images[0] is 5x5, and the run has", "resize=True resizes it"),
        ([[1], [1, 2]], {}, "images is not an array", "uint8"),
        (None, {}, "images has Python objects", ""),
        ([folder / "big.png"], {}, "big.png is 7x9, and the run has", "resize=True resizes it"),
        ([folder / "photos", 3], {}, "a path must be text, got 3", "pathlib"),
        (test_images, {"seed": 5}, "has no seed 5", "4,7"),
        (test_images, {"checkpoint": "first"}, "checkpoint must be best, last", ""),
        (test_images, {"checkpoint": 0}, "has no intact checkpoint of epoch 0", "checkpoint"),
    ]
    for images, options, problem, hint in cases:
        with pytest.raises(PlateauTrainError) as refusal:
            run.predict(images, **options)
        assert problem in refusal.value.problems[0]
        assert hint in refusal.value.hint
        assert "--" not in str(refusal.value)
    for top in (0, -1, 1.5):
        with pytest.raises(pt.errors.ConfigError, match=rf"^top must be .* got {top}"):
            run.predict(test_images).rows(top=top)


def test_the_code_of_a_network_is_executed_only_where_it_is_named(folder, monkeypatch, tmp_path):
    (tmp_path / "net.py").write_text(MODEL)
    run = pt.train(
        dataset=folder / "own.npz", model=f"{tmp_path / 'net.py'}:Net", batch_size=20, epochs=1,
        runs_dir=tmp_path / "runs", quiet=True,
    )  # fmt: skip
    trusted = run.predict(folder / "photos").logits
    monkeypatch.setenv("PLATEAU_TRAIN_CACHE_DIR", str(tmp_path / "another-user"))
    with pytest.raises(pt.errors.ConfigError, match="is code that you have not trained with"):
        run.predict(folder / "photos")
    named = run.predict(folder / "photos", model=run.settings["model"]).logits
    np.testing.assert_array_equal(named, trusted)
