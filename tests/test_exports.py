"""plateau-train export: what other programs read from a run, and what is refused."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from helpers import SMALL, call
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from tensorboardX.proto import event_pb2, plugin_hparams_pb2
from tensorboardX.record_writer import masked_crc32c

import plateau_train as pt
from plateau_train import cli, data
from plateau_train.api import evaluation
from plateau_train.config import DataSettings
from plateau_train.errors import ConfigError, PlateauTrainError, RunError, StorageError
from plateau_train.run import storage
from plateau_train.run.reader import Run

PAGE = Path(__file__).parents[1] / "docs" / "weights.md"
SMALL_DATA = DataSettings(dataset="garments", train_examples=600, test_examples=300)
FORMATS = ("safetensors", "stablehlo", "csv", "tensorboard")

pytestmark = pytest.mark.usefixtures("no_saved_plots")


def export(run, kind, path, *words):
    """Export with the command, which must print the path; return it."""
    assert call("export", run, f"--format={kind}", f"--output={path}", *words) == f"{path}\n"
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the folder runs of one run of two seeds, whose rate drops."""
    folder = tmp_path_factory.mktemp("exports")
    words = *SMALL, "--epochs=3", "--seed=0,5", "--val-fraction=0.1", "--patience=1", "--quiet"
    call(*words, f"--runs-dir={folder / 'runs'}")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return pt.load(folder / "runs" / "latest")


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to be changed."""
    return pt.load(shutil.copytree(run.path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def images():
    return data.load(SMALL_DATA).test.images


def checkpoint_params(run, replica, name="best"):
    """Return the parameters in a checkpoint, by the names in it."""
    with np.load(run.path / "checkpoints" / f"{name}.npz") as file:
        names = [name for name in file.files if name.startswith("state/params/")]
        return {name.removeprefix("state/"): file[name][replica] for name in names}


def numpy_logits(params, images):
    """Return the logits of a network with one hidden layer."""
    (bias, kernel), (last_bias, last_kernel) = (
        [params[f"params/Dense_{number}/{leaf}"] for leaf in ("bias", "kernel")]
        for number in (0, 1)
    )
    hidden = np.maximum(images.reshape(len(images), -1) / 255 @ kernel + bias, 0)
    return hidden @ last_kernel + last_bias


def read_events(path):
    """Read an event file of TensorBoard; every checksum must be right."""
    content, events = path.read_bytes(), []
    event_type: Any = vars(event_pb2)["Event"]
    while content:
        size = int.from_bytes(content[:8], "little")
        length, payload = content[:8], content[12 : 12 + size]
        for part, checksum in ((length, content[8:12]), (payload, content[12 + size : 16 + size])):
            assert masked_crc32c(part).to_bytes(4, "little") == checksum
        events.append(event_type.FromString(payload))
        content = content[16 + size :]
    assert events[0].file_version == "brain.Event:2"
    return events[1:]


def read_scalars(path):
    """Return the scalars of an event file: the values by epoch of each tag."""
    scalars: dict[str, dict[int, float]] = {}
    for event in read_events(path):
        (value,) = event.summary.value
        scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars


def event_file(folder):
    (path,) = (path for path in folder.iterdir() if path.is_file())
    assert "tfevents" in path.name, "TensorBoard reads no other names"
    return path


@pytest.mark.parametrize("replica", [0, 1])
def test_safetensors_have_the_arrays_of_the_checkpoint(run, tmp_path, replica):
    path = export(run.path, "safetensors", tmp_path / "weights", f"--replica={replica}")
    weights, expected = load_file(path / "model.safetensors"), checkpoint_params(run, replica)
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array)


def test_the_state_of_a_model_is_exported_and_the_optimizer_is_not(run, monkeypatch, tmp_path):
    found = evaluation.find_checkpoint(Run.open(run.path).directory, "best")
    arrays = dict(found.arrays) | {"model_state/mean": np.array([1.0, 2.0], np.float32)}
    changed = found._replace(arrays=arrays)
    monkeypatch.setattr(evaluation, "find_checkpoint", lambda *_: changed)
    weights = load_file(run.export("safetensors", path=tmp_path, seed=5) / "model.safetensors")
    assert weights["model_state/mean"] == 2
    assert {name.partition("/")[0] for name in weights} == {"params", "model_state"}


def test_the_description_has_the_model_the_images_and_the_origin(run, tmp_path, images):
    path = run.export("safetensors", path=tmp_path, seed=5, checkpoint="last")
    described = json.loads((path / "config.json").read_text())
    content = (path / "model.safetensors").read_bytes()
    assert described["weights"] == {
        "file": "model.safetensors", "sha256": hashlib.sha256(content).hexdigest()
    }  # fmt: skip
    origin = {"version": pt.__version__, "run": run.path.resolve().name}
    origin |= {"epoch": 3, "replica": 1, "seed": 5}
    assert described["plateau_train"] == origin
    with safe_open(path / "model.safetensors", "np") as file:
        assert json.loads(file.metadata()["plateau_train"]) == origin
    assert described["model"]["hidden_sizes"] == [16]
    assert described["image_shape"] == [*images.shape[1:]]
    assert described["num_classes"] == len(described["class_names"]) == 10
    assert described["pixels"] == {"dtype": str(images.dtype), "divisor": 255}


@pytest.mark.parametrize(
    ("kind", "name"), [("safetensors", "model.safetensors"), ("stablehlo", "")]
)
def test_equal_weights_are_equal_files_without_a_path_of_this_machine(run, tmp_path, kind, name):
    one, two = run.export(kind, path=tmp_path / "one"), export(run.path, kind, tmp_path / "two")
    content = (one / name).read_bytes()
    assert content == (two / name).read_bytes()
    assert str(PAGE.parent).encode() not in content
    assert b".py" not in content


def test_the_network_runs_in_a_process_that_has_only_the_file(run, tmp_path, images):
    path = export(run.path, "stablehlo", tmp_path / "network", "--replica=1")
    np.save(tmp_path / "images.npy", images[:7])
    script = (
        "import sys; import numpy as np; from jax import export\n"
        "network = export.deserialize(open('network', 'rb').read())\n"
        "images = np.load('images.npy')\n"
        "np.savez('logits', one=network.call(images[:1]), seven=network.call(images))\n"
        "assert not {'plateau_train', 'flax'} & set(sys.modules)\n"
        "print(network.platforms, network.in_avals[0].str_short(), network.out_avals[0].dtype)\n"
    )
    variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    variables["PYTHONWARNINGS"] = "ignore"  # the file that the script does not close
    words = [sys.executable, "-c", script]
    ran = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert ran.stdout == "('cpu', 'cuda', 'tpu') uint8[batch,28,28,1] float32\n", ran.stderr
    expected = numpy_logits(checkpoint_params(run, 1), images[:7])
    with np.load(tmp_path / "logits.npz") as logits:
        np.testing.assert_allclose(logits["seven"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits["one"], expected[:1], rtol=1e-4, atol=1e-5)
    assert path.stat().st_size > 4 * (784 * 16 + 16 * 10), "the weights are not in it"


def test_by_default_the_weights_are_those_of_the_best_seed_in_the_best_epoch(run, tmp_path):
    path = run.export("safetensors", path=tmp_path)
    origin = json.loads((path / "config.json").read_text())["plateau_train"]
    metrics = pandas.DataFrame(run.metrics)
    epoch = int(metrics.groupby("epoch").val_accuracy.mean().idxmax())
    of_epoch = metrics[metrics.epoch == epoch].set_index("seed").val_accuracy
    assert (origin["epoch"], origin["seed"]) == (epoch, of_epoch.idxmax())
    assert len(set(of_epoch)) == 2, "both seeds are the best"


def test_the_csv_has_a_row_for_each_epoch_and_seed(run, tmp_path):
    path = export(run.path, "csv", tmp_path / "metrics.csv")
    frame, expected = pandas.read_csv(path), pandas.DataFrame(run.metrics)
    assert [*frame][:4] == ["step", "epoch", "seed", "replica"]
    assert {*frame} == {*expected}
    assert set(frame.dtypes.astype(str)) == {"int64", "float64"}, "a cell is not a number"
    assert frame[["epoch", "seed"]].to_numpy().tolist() == [
        [epoch, seed] for epoch in range(4) for seed in (0, 5)
    ]
    expected = expected.sort_values(["epoch", "seed"])
    for name in frame:
        np.testing.assert_array_equal(frame[name], expected[name], name)


def test_a_value_that_does_not_exist_is_an_empty_cell(run, tmp_path):
    text = run.export("csv", path=tmp_path / "metrics.csv").read_text()
    first, *_, last = csv.DictReader(io.StringIO(text))
    assert (first["epoch"], first["best_value"]) == ("0", "")
    assert float(last["best_value"]) > 0


def test_tensorboard_has_the_scalars_that_keras_writes(run, tmp_path):
    path = export(run.path, "tensorboard", tmp_path / "logs")
    assert {each.name for each in path.iterdir()} == {"seed-0", "seed-5"}
    metrics = pandas.DataFrame(run.metrics)
    for seed in (0, 5):
        own = metrics[metrics.seed == seed].set_index("epoch")
        for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
            scalars = read_scalars(event_file(path / f"seed-{seed}" / name))
            columns = {f"epoch_{each}": f"{split}_{each}" for each in ("loss", "accuracy")}
            if split == "train":
                columns |= {f"epoch_{each}": each for each in ("learning_rate", "scale")}
            assert scalars.keys() == columns.keys()
            for tag, column in columns.items():
                assert scalars[tag] == pytest.approx(own[column].to_dict(), rel=1e-6)


def test_tensorboard_has_the_settings_and_the_drops_of_a_seed(run, tmp_path):
    path = run.export("tensorboard", path=tmp_path)
    start, *texts, end = read_events(event_file(path / "seed-5"))
    plugin: Any = vars(plugin_hparams_pb2)["HParamsPluginData"]
    session = plugin.FromString(start.summary.value[0].metadata.plugin_data.content)
    values = session.session_start_info.hparams
    assert values["seed"].number_value == 5
    assert values["hidden_sizes"].string_value == "16"
    assert values["learning_rate"].number_value == pytest.approx(0.03)
    assert values["mode"].string_value == "train-loss"
    assert not {"quiet", "data_dir", "step_epochs"} & {*values}
    assert end.summary.value[0].tag == "_hparams_/session_end_info"
    drops = [drop for drop in Run.open(run.path).histories[1].drops if drop.seed == 5]
    assert len(drops) > 0
    assert [text.step for text in texts] == sorted({drop.epoch for drop in drops})
    for text in texts:
        (value,) = text.summary.value
        (shown,) = value.tensor.string_val
        reasons = [drop.reason for drop in drops if drop.epoch == text.step]
        assert (value.tag, value.metadata.plugin_data.plugin_name) == ("drops/text_summary", "text")
        assert all(reason in shown.decode() for reason in reasons)
        assert shown.decode().count("drop in epoch") == len(reasons)


def test_the_times_in_tensorboard_are_those_of_the_run(run, copy, tmp_path):
    os.utime(copy.path / "environment.json", (1_000_000, 1_000_000))
    path = copy.export("tensorboard", path=tmp_path / "logs")
    times = [event.wall_time for event in read_events(event_file(path / "seed-0" / "test"))]
    seconds = np.cumsum([timing.seconds for timing in Run.open(run.path).timings])
    assert times[::2] == times[1::2] == pytest.approx(1_000_000 + seconds)


def change_events(run, change):
    """Write the events of a run again; without the checkpoints, which have their checksum."""
    path = run.path / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(event) + "\n" for event in change(events)))
    shutil.rmtree(run.path / "checkpoints")


def test_the_drops_of_one_epoch_are_one_text(copy):
    change_events(copy, lambda events: [each for event in events for each in (event, event)])
    path = copy.export("tensorboard")
    tags = [event.summary.value[0].tag for event in read_events(event_file(path / "seed-5"))]
    assert tags.count("drops/text_summary") == len(set(copy.drops["epoch"]))
    assert len(copy.drops["epoch"]) >= 2


def test_a_seed_that_diverged_has_no_end_of_its_session(copy):
    def diverge(events):
        ended = [event for event in events if event["event"] == "ended" and event["seed"] == 0]
        ended[0]["reason"] = "diverged"
        return events

    change_events(copy, diverge)
    path = copy.export("tensorboard")
    tags = [
        {event.summary.value[0].tag for event in read_events(event_file(path / f"seed-{seed}"))}
        for seed in (0, 5)
    ]
    assert "_hparams_/session_start_info" in tags[0] & tags[1]
    assert "_hparams_/session_end_info" in tags[1] - tags[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_lies_in_the_run_and_is_replaced_and_is_no_damage(kind, copy, tmp_path):
    path = Path(call("export", copy.path, f"--format={kind}").strip())
    assert path.parent == copy.path / "export"
    files = {file: file.read_bytes() for file in (path, *path.rglob("*")) if file.is_file()}
    assert files
    for file, content in files.items():
        file.write_bytes(content + b"\n")
    assert copy.export(kind) == path
    again = {file: len(file.read_bytes()) for file in (path, *path.rglob("*")) if file.is_file()}
    assert again == {file: len(content) for file, content in files.items()}
    assert copy.check()
    assert pt.runs(tmp_path).results["problems"].tolist() == [None, None]


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("safetensors", "out/model.safetensors"), ("safetensors", "out/config.json"),
        ("stablehlo", "out"), ("csv", "out"),
        ("tensorboard", "out/seed-5/train/events.out.tfevents.0.plateau-train"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_earlier_export_is_not_touched(run, kind, file, tmp_path):
    other = tmp_path / file
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(b"mine,epoch,loss")
    before = {*tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match="exists and is not an earlier export") as refusal:
        run.export(kind, path=tmp_path / "out")
    assert refusal.value.hint == "choose another path, or remove it"
    assert other.read_bytes() == b"mine,epoch,loss"
    assert {*tmp_path.rglob("*")} == before


def test_other_files_in_the_folder_stay(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    run.export("safetensors", path=tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_of_a_run_that_is_read_only_is_in_the_working_directory(
    kind, copy, monkeypatch, tmp_path
):
    write_bytes = storage.write_bytes

    def read_only(path, content):
        if copy.path in path.absolute().parents:
            raise StorageError(f"{path} cannot be written: Read-only file system", hint="none")
        write_bytes(path, content)

    monkeypatch.setattr(storage, "write_bytes", read_only)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = copy.export(kind)
    assert re.fullmatch(r"copy-(safetensors|model.stablehlo|metrics.csv|tensorboard)", str(path))
    assert path.exists()


def test_a_disk_that_is_full_leaves_no_part_of_a_file(run, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "write", full)
    for kind in FORMATS:
        with pytest.raises(StorageError, match="No space left on device"):
            run.export(kind, path=tmp_path / kind)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def refuse(*words):
    """Return the error of a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["plateau-train", "export", *map(str, words)])
        with pytest.raises(PlateauTrainError) as refusal:
            cli.main()
    return refusal.value


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("", 2, "Missing option '--format'"),
        ("--format onnx", 2, "--format must be one of safetensors, stablehlo, csv, tensorboard, g"),
        ("--format safetensor", 2, r"got safetensor \(did you mean safetensors\?\)"),
        ("--format csv --replica 1", 2, "csv has every epoch of every seed"),
        ("--format tensorboard --checkpoint last", 2, "tensorboard has every epoch of every seed"),
        ("--format stablehlo --replica 2", 2, "there is no replica 2: the run has 2"),
        ("--format stablehlo --checkpoint worst", 2, "--checkpoint must be best, last or the numb"),
        ("--format stablehlo --checkpoint 0", 4, "has no intact checkpoint of epoch 0"),
        ("--format csv -o nowhere/file", 5, "nowhere/file cannot be written: No such file"),
        ("--format csv -o .", 5, "cannot be written: it is not a regular file"),
        ("--format safetensors -o file", 5, "model.safetensors cannot be .*: Not a directory"),
        ("--format tensorboard -o /proc/x", 5, "cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_exported_is_refused(run, words, code, problem, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    error = refuse(run.path, *words.split())
    assert (error.exit_code, len(error.problems)) == (code, 1)
    assert re.search(problem, error.problems[0])
    assert error.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").touch()
    for kind in FORMATS:
        for name, problem in (("sweep", "is a sweep"), ("nowhere", "there is no folder")):
            error = refuse(tmp_path / name, f"--format={kind}")
            assert (error.exit_code, problem in error.problems[0]) == (4, True)
    error = refuse(tmp_path, "--format=csv")
    assert "is not a run folder" in error.problems[0]


def test_a_run_without_a_checkpoint_has_metrics_only(copy, messages):
    shutil.rmtree(copy.path / "checkpoints")
    for kind in ("safetensors", "stablehlo"):
        with pytest.raises(RunError, match="has no checkpoint"):
            copy.export(kind)
    assert copy.export("csv").exists()


def test_the_weights_of_a_seed_that_had_diverged_are_refused(run, monkeypatch, tmp_path):
    records = [record for record in Run.open(run.path).records if record.seed == 5]
    monkeypatch.setattr(evaluation, "read_records", lambda *_: records)
    with pytest.raises(RunError, match=r"replica 0 \(seed 0\) had diverged by epoch"):
        run.export("safetensors", seed=0, path=tmp_path)
    with pytest.raises(ConfigError, match="has no seed 4"):
        run.export("stablehlo", seed=4, path=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_the_errors_in_python_name_arguments(run):
    with pytest.raises(ConfigError) as refusal:
        run.export(["csv"])  # pyright: ignore[reportArgumentType]
    assert refusal.value.problems[0].startswith("format must be one of safetensors, ")
    with pytest.raises(ConfigError) as refusal:
        run.export("csv", seed=5)
    assert "without checkpoint or seed" in refusal.value.problems[0]
    assert refusal.value.hint == "leave them out, or use format safetensors or stablehlo"


def test_without_tensorboardx_the_command_that_installs_it_is_the_hint(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "plateau_train.exports.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    error = refuse(run.path, "--format=tensorboard")
    assert (error.exit_code, len(error.problems)) == (2, 1)
    assert "need tensorboardX, which is not installed" in error.problems[0]
    assert error.hint.endswith(" -m pip install tensorboardX")


def test_every_block_of_the_page_runs(folder, images, monkeypatch, capsys):
    """The commands and the code, one after the other, in a folder that has the run."""
    monkeypatch.chdir(folder)
    labels = data.load(SMALL_DATA).test.labels
    Path("photos").mkdir()
    for path in ("photos/1.png", "cat.png"):
        Image.fromarray(images[1, ..., 0]).save(path)
    np.savez("images.npz", images=images[:2])
    names: dict[str, Any] = {"images": images, "labels": labels}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["", "python", "python", "", *["python"] * 4]
    for language, block in blocks:
        if language:
            exec(block, names)
        else:
            for line in block.splitlines():
                call(*line.split()[1:])
    manifest, params = names["manifest"], names["params"]
    (printed,) = re.findall(r"^epoch \d+: (.*)$", capsys.readouterr().out, re.MULTILINE)
    metrics = pandas.DataFrame(pt.load("runs/latest").metrics)
    (recorded,) = metrics[(metrics.seed == 0) & (metrics.epoch == manifest["epoch"])].test_accuracy
    assert float(printed) == pytest.approx(recorded, abs=1e-6)
    assert params.keys() == {f"state/{name}" for name in checkpoint_params(pt.load(), 0)}
    origin = json.loads(Path("weights/config.json").read_text())["plateau_train"]
    assert (names["path"], origin["seed"], origin["epoch"]) == (Path("weights"), 0, 3)
    assert names["logits"].shape == (300, 10)
    assert len(names["metrics"]) == 8
    assert names["predictions"].probabilities.shape == (300, 10)
