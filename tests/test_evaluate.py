"""plateau-train evaluate: the scores that training recorded, and the confusion matrix."""

import dataclasses
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import (
    IMAGE_SHAPE,
    RECORD,
    command,
    make_examples,
    make_replicas,
    make_settings,
    resolve,
    train_run,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.text import Text

from plateau_train import config, data
from plateau_train.api import evaluation
from plateau_train.api.evaluation import (
    Evaluation,
    Score,
    compare_scores,
    find_checkpoint,
    score_classes,
)
from plateau_train.commands import evaluate as command_evaluate
from plateau_train.commands.evaluate import print_evaluation
from plateau_train.commands.plot import plot
from plateau_train.data.splits import Split
from plateau_train.errors import ConfigError, DataError, RunError, StorageError
from plateau_train.numerics import replicas as numerics
from plateau_train.numerics import step as single
from plateau_train.plots import draw_confusion
from plateau_train.report.console import configure_logging
from plateau_train.run import checkpoint, environment, storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run

pytestmark = pytest.mark.usefixtures("no_plots")

KEPT = (5, 6)  # the epochs that a run of 6 epochs keeps, beside its best


@pytest.fixture
def copy(small_run, tmp_path):
    """A copy of the small run, to be changed."""
    shutil.copytree(small_run.resolve(), tmp_path / "copy")
    return RunDirectory(tmp_path / "copy")


@pytest.fixture
def evaluate(monkeypatch):
    """Evaluate in this process, whose threads are fixed already."""
    monkeypatch.setattr(environment, "pin_threads", lambda _: None)

    def call(run, which="best", output=None, **given):
        configure_logging()
        command_evaluate.evaluate(run.path, resolve(**given), which, None, output, None)

    return call


def matrix_of(lines):
    """Read the confusion matrix back from what was printed: of garments, class by class."""
    start = next(number for number, line in enumerate(lines) if line.startswith("true classes"))
    return np.array([line.split()[-10:] for line in lines[start + 2 : start + 12]], dtype=int)


@pytest.mark.parametrize("num_examples", [7, 8, 9, 25])
def test_the_confusion_matrix_counts_every_image_once(monkeypatch, num_examples):
    monkeypatch.setattr(numerics, "EVALUATION_BATCH", 8)
    replicas = make_replicas(make_settings(hidden_sizes=(), seed=(0, 1)))
    # Without a mean the weights do not predict the same class for all of these random images.
    variables = jax.tree.map(
        lambda leaf: leaf - leaf.mean(axis=1, keepdims=True), replicas.init(IMAGE_SHAPE).variables
    )
    split = make_examples(num_examples)
    confusions = np.asarray(replicas.count_confusion(variables, split))
    for replica, confusion in enumerate(confusions):
        own = jax.tree.map(lambda rows, replica=replica: rows[replica], variables)
        predicted = np.asarray(single.predict(replicas.spec.network, own, split.images)).argmax(
            axis=1
        )
        expected = np.zeros((3, 3), np.int32)
        np.add.at(expected, (np.asarray(split.labels), predicted), 1)
        np.testing.assert_array_equal(confusion, expected)
        accuracy = replicas.evaluate(variables, split).accuracy[replica]
        assert confusion.trace() / num_examples == pytest.approx(float(accuracy), abs=1e-6)
        assert len(set(predicted)) > 1, "one class does not distinguish rows and columns"


def test_the_command_prints_the_recorded_scores_and_the_confusion_matrix(copy):
    # With another number of threads than the run's the last bits would differ.
    finished = command("evaluate", "copy", cwd=copy.path.parent, NPROC="1")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == "drawing 900 built-in garments\n", "the bits are not the recorded"
    lines = finished.stdout.splitlines()
    best = max(Run(copy).records, key=lambda record: record.test_accuracy)
    assert lines[:4] == [
        f"run       copy, best checkpoint, epoch {best.epoch}",
        "data      garments (built-in drawings, not Fashion-MNIST); "
        "built in, drawn from a fixed seed",
        f"test      loss {best.test_loss:.4f}, accuracy {best.test_accuracy:.4f} (300 images)",
        "plot      copy/confusion.png",
    ]
    assert copy.confusion.read_bytes().startswith(b"\x89PNG")
    matrix = matrix_of(lines)
    assert matrix.sum() == 300
    assert matrix.trace() / 300 == pytest.approx(best.test_accuracy, abs=1e-6)
    rows = [re.split(r"  +", line) for line in lines[7:17]]
    for number, (_, images, accuracy, precision, _) in enumerate(rows):
        assert int(images) == matrix[number].sum()
        assert accuracy == share(matrix[number, number], matrix[number].sum())
        assert precision == share(matrix[number, number], matrix[:, number].sum())


def share(part, whole):
    return f"{part / whole:.4f}" if whole else "-"


def test_the_held_out_images_are_scored_where_there_are_any(tmp_path, evaluate, capsys):
    run = train_run(tmp_path, epochs="1", val_fraction="0.2", quiet="true")
    capsys.readouterr()
    evaluate(run.directory)
    record = run.records[-1]
    out = capsys.readouterr().out
    assert f"val       loss {record.val_loss:.4f}, accuracy {record.val_accuracy:.4f} (120" in out
    assert f"test      loss {record.test_loss:.4f}, accuracy {record.test_accuracy:.4f} (300" in out
    assert matrix_of(out.splitlines()).sum() == 300


@pytest.mark.parametrize(("which", "epoch"), [("last", 6), ("6", 6), ("5", 5), ("0005", 5)])
def test_a_checkpoint_is_chosen_by_a_word_or_by_its_epoch(copy, which, epoch):
    assert find_checkpoint(copy, which).manifest.epoch == epoch


def test_the_best_checkpoint_is_found_under_its_epoch_too(copy):
    best = find_checkpoint(copy, "best").manifest.epoch
    for path in copy.checkpoints.glob("epoch-*.npz"):
        path.unlink()
    assert find_checkpoint(copy, f"{best}").manifest.epoch == best


def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(copy, capsys):
    checkpoint.epoch_path(copy.checkpoints, 6).write_bytes(b"damaged")
    configure_logging()
    found = find_checkpoint(copy, "last")
    assert found.manifest.epoch == 5
    log = capsys.readouterr().err
    assert "NOTICE: " in log
    assert "epoch-000006.npz cannot be used" in log
    assert "The newest intact checkpoint is of epoch 5." in log


def test_an_epoch_that_is_not_kept_is_refused_with_those_that_are(copy):
    best = find_checkpoint(copy, "best").manifest.epoch
    kept = ", ".join(map(str, sorted({*KEPT, best})))
    with pytest.raises(RunError, match=f"no intact checkpoint of epoch 1, only of: {kept}\nhint"):
        find_checkpoint(copy, "1")
    checkpoint.epoch_path(copy.checkpoints, 5).write_bytes(b"damaged")
    with pytest.raises(RunError) as refused:
        find_checkpoint(copy, "5")
    assert "epoch-000005.npz cannot be used" in refused.value.problems[1]


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(RunError, match="has no checkpoint"):
        find_checkpoint(RunDirectory(tmp_path), "best")


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("--checkpoint", "1"), 4, "has no intact checkpoint of epoch 1"),
        (("--checkpoint", "worst"), 2, "--checkpoint must be best, last or the number of an epoch"),
    ],
)
def test_a_wrong_checkpoint_ends_the_command_with_its_exit_code(
    processes, small_run, arguments, code, problem
):
    finished = processes.run(small_run.parents[1], "evaluate", small_run, *arguments)
    assert finished.code == code
    assert finished.stdout == ""
    assert problem in finished.stderr
    assert "hint: " in finished.stderr


@pytest.mark.parametrize("which", ["", "-1", "1.0", "BEST", "1" * 10, "\u0663"])
def test_no_other_word_names_a_checkpoint(copy, evaluate, which):
    with pytest.raises(ConfigError, match="--checkpoint must be best"):
        evaluate(copy, which)


def test_other_data_are_refused_as_a_resumed_run_refuses_them(copy, evaluate, monkeypatch):
    load = data.load

    def other(settings, progress):
        dataset = load(settings, progress)
        test = Split(dataset.test.images, dataset.test.labels[::-1].copy())
        return dataclasses.replace(dataset, test=test)

    monkeypatch.setattr(data, "load", other)
    with pytest.raises(DataError, match="was trained on garments of SHA-256"):
        evaluate(copy)


def test_only_the_folders_of_the_data_are_taken_from_the_command_line(copy, evaluate, monkeypatch):
    loaded = []

    def load(settings, _):
        loaded.append(settings)
        raise DataError("enough", hint="none")

    monkeypatch.setattr(data, "load", load)
    with pytest.raises(DataError, match="enough"):
        evaluate(copy, data_dir="/elsewhere", batch_size="7")
    with pytest.raises(DataError, match="enough"):
        evaluate(copy)
    began = find_checkpoint(copy, "best").manifest.settings.data
    assert [str(settings.data_dir) for settings in loaded] == ["/elsewhere", str(began.data_dir)]
    assert {settings.batch_size for settings in loaded} == {began.batch_size} == {50}


@pytest.mark.parametrize(
    ("loss", "accuracy", "is_logged", "is_warning"),
    [
        (RECORD.test_loss, RECORD.test_accuracy, False, False),
        (RECORD.test_loss + 1e-7, RECORD.test_accuracy, True, False),
        (RECORD.test_loss, RECORD.test_accuracy + 1e-8, False, False),
        (RECORD.test_loss, RECORD.test_accuracy + 1e-4, False, True),
    ],
)
def test_another_loss_is_logged_and_another_accuracy_is_a_warning(
    capsys, loss, accuracy, is_logged, is_warning
):
    configure_logging()
    compare_scores(RECORD, {"test": Score(loss, accuracy, 300)})
    log = capsys.readouterr().err
    assert log.startswith("test loss ") == is_logged
    assert log.startswith("NOTICE: The test accuracy is ") == is_warning
    assert bool(log) == (is_logged or is_warning)


def test_pictures_of_a_read_only_run_are_saved_in_the_working_directory(
    copy, evaluate, monkeypatch, tmp_path, capsys
):
    write_bytes = storage.write_bytes

    def read_only(path, content):
        if copy.path in path.absolute().parents:
            raise StorageError(f"{path} cannot be written: Read-only file system", hint="none")
        write_bytes(path, content)

    monkeypatch.setattr(storage, "write_bytes", read_only)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    evaluate(copy)
    assert "plot      copy-confusion.png" in capsys.readouterr().out
    assert str(plot(copy.path, None, None, config.FigureOptions())) == "copy-plot.png"
    here = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert here == ["copy-confusion.png", "copy-plot.png"]
    # Where it was loaded for it must be, or nowhere.
    with pytest.raises(StorageError):
        plot(copy.path, copy.path / "other.png", None, config.FigureOptions())
    assert len(list((tmp_path / "here").iterdir())) == 2


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(copy, evaluate, monkeypatch):
    monkeypatch.setattr(evaluation, "find_checkpoint", None)
    with pytest.raises(ConfigError, match=r"cannot be written as x.gif"):
        evaluate(copy, output=copy.path / "x.gif")


def test_a_class_without_images_or_without_hits_has_no_share():
    confusion = np.array([[3, 1, 0], [2, 0, 0], [0, 0, 0]], np.int32)
    assert [tuple(result) for result in score_classes(confusion, ["a", "b", "c"])] == [
        ("a", 4, 0.75, 0.6, "b", 1, (3, 1, 0)),
        ("b", 2, 0.0, 0.0, "a", 2, (2, 0, 0)),
        ("c", 0, None, None, None, 0, (0, 0, 0)),
    ]


@pytest.mark.parametrize(
    ("num_classes", "width", "shown"),
    [
        (20, 400, "class 0  class 1"),
        (20, 120, "0 class 0"),
        (20, 60, "of 20 classes is in the picture"),
        (21, 400, "of 21 classes is in the picture"),
    ],
)
def test_a_wide_confusion_matrix_has_numbered_columns_or_is_only_drawn(
    monkeypatch, capsys, num_classes, width, shown
):
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", f"{width}"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    names = [f"class {number}" for number in range(num_classes)]
    confusion = np.eye(num_classes, dtype=np.int32)
    classes = score_classes(confusion, names)
    configure_logging()
    scored = Evaluation(Path("run"), 1, 0, 0, "best", "data", "here", {}, classes, confusion)
    print_evaluation(scored, Path("confusion.png"))
    printed = capsys.readouterr()
    assert shown in Text.from_ansi(printed.out + printed.err).plain
    assert ("true classes in rows" in printed.out) == ("picture" not in shown)


def drawn(num_classes, heading="run\nepoch 1", names=None):
    """Draw a matrix whose last class has no images, and lay it out."""
    random = np.random.default_rng(0)
    confusion = random.integers(0, 2, (num_classes, num_classes)).astype(np.int32)
    confusion += np.diag(random.integers(1000, 9999, num_classes)).astype(np.int32)
    confusion[-1] = 0
    names = names or [f"class number {number}" for number in range(num_classes)]
    figure: Any = draw_confusion(confusion, names, heading)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, confusion, canvas.get_renderer()


@pytest.mark.parametrize("num_classes", [2, 10, 25, 100, 300])
def test_the_picture_shows_shares_and_the_counts_if_they_are_legible(num_classes):
    figure, confusion, renderer = drawn(num_classes)
    panel = figure.axes[0]
    shares = np.asarray(panel.images[0].get_array())
    np.testing.assert_allclose(shares[:-1].sum(axis=1), 1)
    assert not shares[-1].any()
    np.testing.assert_allclose(shares[0], confusion[0] / confusion[0].sum())
    written = {text.get_position()[::-1]: text.get_text() for text in panel.texts}
    if num_classes <= 25:
        expected = {place: f"{count:,}" for place, count in np.ndenumerate(confusion) if count}
        assert written == expected
        side = panel.get_window_extent(renderer).width / num_classes
        assert all(text.get_window_extent(renderer).width < 0.9 * side for text in panel.texts)
    else:
        assert written == {}
    labels = [text.get_text() for text in panel.get_yticklabels()]
    assert (labels == [f"class number {number}" for number in range(num_classes)]) == (
        num_classes <= 100
    )
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("predicted class", "true class")


@pytest.mark.parametrize(
    ("num_classes", "heading", "names"),
    [
        (2, "a-run\nepoch 1: test accuracy 0.5 on garments (built-in drawings, not this)", None),
        (3, f"{'long' * 20}$\\no$\nepoch 1", ["$\\math$", "a" * 80, "c"]),
        (10, "a-run\nepoch 1: test accuracy 0.5", None),
        (100, "a-run\nepoch 1: test accuracy 0.5", None),
    ],
)
def test_no_text_of_the_picture_is_cut_off_and_no_names_overlap(num_classes, heading, names):
    figure, _, renderer = drawn(num_classes, heading, names)
    whole, panel = figure.bbox, figure.axes[0]
    rows = [text.get_window_extent(renderer) for text in panel.get_yticklabels()]
    others = [panel.xaxis.label, panel.yaxis.label, figure._suptitle, *panel.get_xticklabels()]
    for box in rows + [text.get_window_extent(renderer) for text in others]:
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
    for above, below in itertools.pairwise(rows):
        assert above.y0 >= below.y1 - 1
    assert figure._suptitle.get_window_extent(renderer).y0 >= panel.get_window_extent(renderer).y1
