"""The functions of Python in a Jupyter kernel, and docs/plateau.ipynb."""

import asyncio
import json
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient

from plateau_train import config

ROOT = Path(__file__).parents[1]
LESSON = ROOT / "docs" / "plateau.ipynb"

# The same program for all trainings with one seed, and for all with two: it is compiled once.
FEW = {
    "dataset": "garments", "train_examples": 600, "test_examples": 300, "val_fraction": 0.2,
    "batch_size": 50, "hidden_sizes": [16], "learning_rate": 0.03, "mode": "val-loss",
    "patience": 1, "factor": 0.9, "rtol": 0.2, "epochs": 6,
}  # fmt: skip
SETUP = f"""
import os
import plateau_train as pt
from plateau_train import plots
plots.kept = getattr(plots, "kept", plots.save_run_plot)
plots.save_run_plot = plots.kept if SAVES_PLOTS else lambda *_: None
os.chdir(FOLDER)
FEW = {FEW}
def metrics(run):
    return (run.path / "metrics.jsonl").read_bytes()
"""

# What a training must leave alone.
STATE = """
import logging, random, signal, sys, threading, warnings
import jax, matplotlib, numpy
def wakeup_fd():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd
def loggers():
    names = ["plateau_train", "jax", "matplotlib", "absl"]
    return {
        each.name: (each.level, each.propagate, list(each.handlers), list(each.filters))
        for each in map(logging.getLogger, [None, *names])
    }
def state():
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": {each: signal.getsignal(each) for each in signal.valid_signals()},
        "wakeup": wakeup_fd(),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.displayhook, sys.excepthook),
        "jax": dict(jax.config.values),
        "filters": list(warnings.filters),
        "logging": loggers(),
        "matplotlib": dict(matplotlib.rcParams),
        "pyplot": "matplotlib.pyplot" in sys.modules,
        "numpy": numpy.geterr(),
        "random": (random.getstate(), repr(numpy.random.get_state())),
        "threads": sorted(each.name for each in threading.enumerate()),
    }
"""


class Kernel:
    """A kernel, and the outputs of the cells that it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = NotebookClient(
            nbformat.v4.new_notebook(),
            timeout=120,
            allow_errors=True,
            shutdown_kernel="immediate",
            resources={"metadata": {"path": str(folder)}},
        )

    def run(self, source: str, *, error: str | None = None) -> list[Any]:
        """Run a cell and return its outputs; the last is the ``error``, if one is expected."""
        cell = nbformat.v4.new_code_cell(source)
        self.client.nb.cells.append(cell)
        self.client.execute_cell(cell, len(self.client.nb.cells) - 1)
        errors = [output for output in cell.outputs if output.output_type == "error"]
        assert [each.ename for each in errors] == ([error] if error else []), errors
        shown = [{**output, "traceback": ()} for output in cell.outputs]
        assert not re.search(r"\\u001b|\\r|widget", json.dumps(shown)), shown
        return cell.outputs

    def text(self, source: str) -> str:
        """Run a cell that prints, or ends in an expression, and return the text."""
        (output,) = self.run(source)
        return output["text"] if output.output_type == "stream" else output.data["text/plain"]

    def html(self, expression: str) -> str:
        """Return what a notebook shows of an expression."""
        (output,) = self.run(expression)
        return output.data["text/html"]

    def start(self, folder: str, *, saves_plots: bool = False) -> None:
        """Start in a new folder and an empty namespace.

        A training saves the plot of its run, which takes longer than the training, only on request.
        """
        path = self.folder / folder
        path.mkdir()
        self.run("get_ipython().reset(new_session=True)")
        setup = SETUP.replace("FOLDER", repr(str(path)))
        self.run(setup.replace("SAVES_PLOTS", str(saves_plots)))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for all tests: most of the time is its start and what it compiles."""
    folder = tmp_path_factory.mktemp("kernel")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as runtime:
        # Nothing of the user, no history, and no network: sockets in a folder with a short path.
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, runtime)
        patch.setenv("JUPYTER_NO_CONFIG", "1")
        patch.setenv("TFDS_DATA_DIR", str(folder / "no-data"))
        kernel = Kernel(folder)
        manager = kernel.client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", str(Path(runtime) / "kernel")
        with kernel.client.setup_kernel():
            yield kernel
        ensure_event_loop().close()  # nothing else does


def bar_of(outputs):
    """Return the value of a progress bar, its maximum and its text."""
    (output,) = outputs
    assert output.output_type == "display_data"
    assert set(output.data) == {"text/html", "text/plain"}
    shown = re.fullmatch(
        r'<progress value="([\d.]+)" max="(\d+)"></progress> (.*)', output.data["text/html"]
    )
    assert shown, output.data
    return float(shown[1]), int(shown[2]), shown[3]


def lesson_cells():
    return nbformat.read(LESSON, as_version=4).cells


def test_the_lesson_is_stored_without_outputs_and_as_it_would_be_written():
    lesson = nbformat.read(LESSON, as_version=4)
    nbformat.validate(lesson)
    assert LESSON.read_text() == nbformat.writes(lesson) + "\n"
    for cell in lesson.cells:
        assert re.fullmatch(r"[a-z-]+", cell.id)  # a program that saves a notebook invents others
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert set(lesson.metadata) == {"kernelspec", "language_info"}
    assert lesson.metadata.language_info == {"name": "python"}


def test_the_settings_and_links_of_the_lesson_are_right():
    cells = {cell.id: cell for cell in lesson_cells()}
    values: dict[str, Any] = {}
    exec(cells["settings"].source, values)
    config.resolve(config.read_arguments(values["SETTINGS"]))
    text = "".join(cell.source for cell in cells.values() if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 4
    assert not [link for link in links if not (LESSON.parent / link).is_file()]


def test_the_lesson_runs_on_few_images(kernel):
    kernel.start("lesson")
    kernel.run("get_ipython().reset(new_session=True)")
    outputs = {}
    for cell in lesson_cells():
        if cell.cell_type == "code":
            is_settings = cell.id == "settings"
            source = f"SETTINGS = {FEW}\nSEEDS = range(2)" if is_settings else cell.source
            outputs[cell.id] = kernel.run(source)
    assert [name for name, shown in outputs.items() if not shown] == [
        "install", "import", "settings"
    ]  # fmt: skip
    reasons = outputs["reasons"][0].text
    assert re.match(r"epoch \d: 1 observation \(val loss\) was not below \d\.\d+ \(best", reasons)
    for name in ("figure", "curves", "replay"):
        assert "image/png" in outputs[name][0].data
    for name in ("when", "why", "help", "values", "weights", "runs"):
        assert "<table" in outputs[name][-1].data["text/html"]
    assert "the next observation improves if it is below" in outputs["loop"][0].text


def test_a_training_shows_one_bar_and_each_result_a_table_or_a_figure(kernel):
    kernel.start("tables")
    first = kernel.run("one = pt.train(**FEW)")
    second = kernel.run("two = pt.train(**FEW, schedule='constant', seed=range(2))")
    for outputs in (first, second):
        value, maximum, text = bar_of(outputs)
        assert value == maximum == 6
        assert re.match(r"epoch 6/6: done in \d+ s, train accuracy 0\.\d+, val accuracy", text)
    assert re.search(r'<img src="data:image/png;base64,\w.*<table>.*<td>done', kernel.html("one"))
    (figure,) = kernel.run("one.plot(panels=['scale'])")
    assert "image/png" in figure.data
    comparison = kernel.html("pt.compare(two, one)")
    assert comparison.count("<table>") == 3
    assert "<th>schedule</th>" in comparison
    assert "<table>" in kernel.html("pt.replay([1, 1, 1, 0.5], patience=2)")
    assert "<table>" in kernel.html("one.replay(patience=1)")
    assert "<table>" in kernel.html("one.evaluate()")
    assert kernel.html("pt.runs()").count("<tr>") == 3
    bar, table = kernel.run("pt.sweep(**FEW | {'patience': [1, 2], 'epochs': 3})")
    assert bar_of([bar])[:2] == (3, 3)
    assert "<th>patience</th>" in table.data["text/html"]


def test_an_interrupted_cell_is_continued_in_its_kernel_to_the_same_bytes(kernel):
    kernel.start("interrupted")
    metrics = kernel.folder / "interrupted" / "runs" / "latest" / "metrics.jsonl"

    def interrupt():
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            time.sleep(0.01)
        asyncio.run(kernel.client.km.interrupt_kernel())

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    training = "pt.train(**FEW | {'epochs': 80})"
    *shown, _ = kernel.run(training, error="KeyboardInterrupt")
    watcher.join()
    value, maximum, text = bar_of(shown)
    assert 1 <= value < maximum == 80
    assert re.match(r"epoch \d+/80: stopped, .* runs/\d+", text)
    assert kernel.text("run = pt.load(); print(run.status)") == "stopped\n"
    value, maximum, text = bar_of(kernel.run("run = run.resume()"))
    assert value == maximum == 80
    assert text.startswith("epoch 80/80: done")
    kernel.run("whole = " + training)
    assert kernel.text("metrics(run) == metrics(whole), run.status") == "(True, 'done')"


INTERRUPTED = """
import sys, jax, numpy
from plateau_train import config
from plateau_train.numerics.replicas import Replicas, make_mesh
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.training.models import load_network

settings = config.resolve(config.read_arguments(FEW)).settings
network = load_network(settings.model, 10, (28, 28, 1))
equal = [
    Replicas(
        Spec.from_settings(settings, network, num_examples=60),
        Hyperparams.from_settings([settings]),
        make_mesh(jax.devices()[:1], 1),
    )
    for _ in range(2)
]
variables = equal[0].init((28, 28, 1)).variables
images = equal[0].put_split((numpy.zeros((30, 28, 28, 1), numpy.uint8), numpy.zeros(30, int)))
for each in equal:
    each.evaluate(variables, images)
moment, others, interrupted = 0, [], True
while interrupted:
    moment += 1
    interrupted, left = False, moment

    def interrupt(frame, event, _):
        global interrupted, left
        left -= event == "call"
        if left == 0:
            interrupted = True
            raise KeyboardInterrupt

    try:
        sys.setprofile(interrupt)
        equal[1].evaluate(variables, images)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        others.append(repr(error))
    finally:
        sys.setprofile(None)
print(moment, others)
"""


def test_an_interruption_at_any_moment_of_a_compiled_call_arrives_as_one(kernel):
    """It comes to each call of Python in turn, where an equal program is compiled already."""
    kernel.start("moments")
    moments, others = kernel.text(INTERRUPTED).strip().split(" ", 1)
    assert others == "[]"
    assert int(moments) > 5


def test_a_training_leaves_the_process_as_it_was_and_does_not_depend_on_it(kernel):
    kernel.start("state", saves_plots=True)
    kernel.run(STATE)
    kernel.run("run = pt.train(**FEW); run.evaluate();")
    kernel.run(
        "jax.config.update('jax_enable_x64', True)\n"
        "jax.config.update('jax_default_matmul_precision', 'bfloat16')\n"
        "warnings.simplefilter('error')\n"
        "before = state()"
    )
    kernel.run("other = pt.train(**FEW); other.evaluate();")
    changed = kernel.text(
        "after = state()\n"
        "jax.config.update('jax_enable_x64', False)\n"
        "print({name: after[name] for name, value in before.items() if value != after[name]})"
    )
    assert changed == "{}\n"
    assert kernel.text("metrics(run) == metrics(other)") == "True"


def test_an_error_names_the_argument_and_has_a_hint(kernel):
    kernel.start("errors")
    (error,) = kernel.run("pt.train(**FEW | {'patience': 0})", error="ConfigError")
    assert re.match(r"patience must be .*, got 0\nhint: ", error.evalue)
    (error,) = kernel.run("pt.load('nowhere')", error="RunError")
    assert "\nhint: " in error.evalue
    assert "plateau_train.errors" in kernel.text(
        "try: pt.train(patiense=1)\nexcept Exception as error: print(type(error).__mro__)"
    )
