"""The command line, in processes of its own: what a user types, and what comes back."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import SMALL, call, command

from plateau_train import config
from plateau_train.config import SETTINGS
from plateau_train.data import garments
from plateau_train.errors import ConfigError
from plateau_train.training import setup

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def top_help(tmp_path_factory):
    shown = command("--help", cwd=tmp_path_factory.mktemp("help"), COLUMNS="100")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def refused(folder, *arguments, code):
    """Run a command that must fail, and hold the form of every failure."""
    before = sorted(folder.rglob("*"))
    finished = command(*arguments, cwd=folder)
    lines = finished.stderr.splitlines()
    assert finished.returncode == code, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    assert sum(line.startswith("hint: ") for line in lines) == 1
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, finished.stderr
    assert sorted(folder.rglob("*")) == before, "something was left behind"
    return errors[0]


BAD_TOML = {
    "unknown.toml": "[plateau]\npatiense = 3\n",
    "type.toml": '[plateau]\npatience = "3"\n',
    "syntax.toml": "[plateau\n",
    "deep.toml": f"[run]\nname = {'[' * 20000}",
    "nul.toml": '[run]\nruns_dir = "a\\u0000b"\n',
}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--patiense 3", "--patience"),
        ("--patience", "option '--patience' requires an argument"),
        ("plot --replica", "option '--replica' requires an argument"),
        ("--patience 0", "--patience must be a whole number from 1"),
        ("--factor 1.5", "--factor must be a number above 0 below 1, got 1.5"),
        ("--epochs -1", "--epochs must be a whole number from 1"),
        ("--learning-rate nan", "--learning-rate must be a number from 1e-30 to 1e+30, got nan"),
        ("--dataset garments --train-examples 60 --batch-size 70", "larger than the 60 training"),
        ("--hidden-sizes 10,x", "--hidden-sizes must be whole numbers from 1"),
        ("--config unknown.toml", "did you mean patience?"),
        ("--config type.toml", "patience in [plateau] must be a whole number"),
        ("--config syntax.toml", "syntax.toml is not valid TOML"),
        ("--config nowhere.toml", "nowhere.toml does not exist"),
        ("--config deep.toml", "deep.toml is not valid TOML"),
        ("--config nul.toml", "runs_dir in [run] must be a path"),
        ("--atol 1e39", "--atol must be a number from 0 to 1,000,000"),
        ("--name a/b", "--name must be a folder name"),
        ("--name ..", "--name must be a folder name"),
        ("--mode val-loss", "add --val-fraction"),
        ("--patience 3 plot runs/latest", "--patience comes before the command plot"),
        ("--seeds 0-7", "there is no option --seeds"),
        ("plott runs/latest", "plott"),
        ("--lr 0.1", "there is no option --lr"),
        ("--patiense 5", "there is no option --patiense (did you mean --patience?)"),
        ("--optimizer adamW", "got adamW (did you mean adamw?)"),
        ("--dataset My-Images", "or a path such as ./images or images.npz, got My-Images"),
        ("--dataset mnist --test-fraction 0.2", "it has test images of its own"),
    ],
)
def test_a_wrong_word_ends_with_exit_code_2_one_line_and_a_hint(tmp_path, arguments, problem):
    for name, text in BAD_TOML.items():
        (tmp_path / name).write_text(text)
    error = refused(tmp_path, *shlex.split(arguments), code=2)
    assert problem.lower() in error.lower()


def test_an_option_that_was_renamed_is_refused_with_its_new_name(tmp_path):
    for words, hint in (
        (["--seeds", "0-7"], "write several seeds as --seed 0-7"),
        (["sweep", "--seeds=0-7"], "write several seeds as --seed 0-7"),
        (["--lr", "0.1"], "write --learning-rate"),
        (["plot", "--seed=0"], "write --replica, the place of the seed, from 0"),
        (["--patience=2,5"], "plateau-train sweep --patience 2,5 trains a run for each value"),
    ):
        finished = command(*words, cwd=tmp_path)
        assert finished.returncode == 2
        assert finished.stderr.endswith(f"hint: {hint}\n")


def test_hints_name_the_program_as_it_was_started(tmp_path):
    script = Path(sys.executable).with_name("plateau-train")
    python = Path(os.path.relpath(sys.executable, tmp_path))
    for words, variable, name in (
        ([sys.executable, "-m", "plateau_train"], "", f"{sys.executable} -m plateau_train"),
        ([str(python), "-m", "plateau_train"], "", f"{python} -m plateau_train"),
        ([str(script)], "", str(script)),
        ([str(script)], "scripts/plateau-train", "scripts/plateau-train"),
        ([str(script)], "a folder/plateau-train", "'a folder/plateau-train'"),
    ):
        shown = subprocess.run(
            [*words, "runs"],
            cwd=tmp_path,
            env=os.environ | {"PLATEAU_TRAIN_PROGRAM": variable},
            capture_output=True,
            text=True,
        )
        assert shown.stderr == f"there is no run in runs: {name} trains one\n"
    path = f"{script.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PLATEAU_TRAIN_PROGRAM": "", "PATH": path}
    shown = subprocess.run(
        ["plateau-train", "runs"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert shown.stderr == "there is no run in runs: plateau-train trains one\n"


def test_commands_take_the_latest_run_and_names_in_the_runs_folder(small_run, tmp_path):
    run = small_run.resolve()
    folder = run.parents[1]
    for words, output in (
        (["plot"], f"runs/{run.name}/plot.png\n"),
        (["schedule", "--json", "latest"], None),
        (["schedule", "--json", run.name], None),
        (["resume", "--check"], None),
    ):
        shown = command(*words, cwd=folder)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout == output or output is None
        is_named = words[-1] in ("latest", run.name)
        assert (f"runs/{run.name} is the latest run" in shown.stderr) != is_named
    elsewhere = command("plot", "--runs-dir", folder / "runs", "-o", "a.png", cwd=tmp_path)
    assert (elsewhere.stdout, (tmp_path / "a.png").exists()) == ("a.png\n", True)
    assert "there is no folder runs/latest" in refused(tmp_path / "..", "plot", code=4)


def test_a_user_without_a_home_folder_is_told_what_to_give(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", raise_key_error)
    with pytest.raises(ConfigError, match="this user has no home folder") as refusal:
        setup.localize(config.resolve({}))
    assert "--data-dir" in refusal.value.hint


def raise_key_error(_):
    raise KeyError


def test_the_command_help_shows_the_help_of_a_command(tmp_path):
    for words, other in ((["sweep"], ["sweep", "--help"]), ([], ["--help"])):
        shown, expected = (command(*each, cwd=tmp_path) for each in (["help", *words], other))
        assert (shown.returncode, shown.stdout) == (0, expected.stdout)


def test_a_data_set_that_does_not_exist_ends_with_exit_code_3(tmp_path):
    """Nothing else is printed, such as attempts to read a list of sets from Google Cloud."""
    finished = command("--dataset", "fashion_mnst", cwd=tmp_path)
    assert finished.returncode == 3
    error, hint = finished.stderr.splitlines()
    assert error == "error: there is no data set fashion_mnst (did you mean fashion_mnist?)"
    assert hint.startswith("hint: ")


def test_a_reference_config_without_its_data_ends_with_exit_code_3(tmp_path):
    file = ROOT / "configs" / "train_loss.toml"
    proxy = "http://127.0.0.1:9"  # where nothing listens
    finished = command("--config", file, cwd=tmp_path, http_proxy=proxy, https_proxy=proxy)
    assert finished.returncode == 3
    assert "fashion_mnist is not prepared" in finished.stderr
    assert "plateau-train data prepare" in finished.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_no_run_ends_with_exit_code_4(tmp_path):
    assert "is not a run folder" in refused(tmp_path, "plot", tmp_path, code=4)
    assert "there is no folder nowhere" in refused(tmp_path, "plot", "nowhere", code=4)
    (tmp_path / "config.toml").write_text("[plateau\n")
    (tmp_path / "metrics.jsonl").touch()
    assert "config.toml is not valid TOML" in refused(tmp_path, "plot", tmp_path, code=4)
    (tmp_path / "config.toml").write_text("")
    assert "config.toml is incomplete: it has no format" in refused(
        tmp_path, "plot", tmp_path, code=4
    )
    (tmp_path / "config.toml").write_text((ROOT / "configs" / "default.toml").read_text())
    assert "no epoch was finished" in refused(tmp_path, "plot", tmp_path, code=4)
    assert "has no checkpoint" in refused(tmp_path, "evaluate", tmp_path, code=4)


def test_a_runs_folder_that_cannot_be_written_ends_with_exit_code_5(tmp_path):
    (tmp_path / "file").touch()
    error = refused(tmp_path, *SMALL, "--runs-dir=file/runs", "--quiet", code=5)
    assert "file/runs" in error


def test_a_loss_that_is_not_finite_ends_with_exit_code_6(tmp_path):
    finished = command(*SMALL, "--learning-rate=1e30", "--quiet", cwd=tmp_path)
    assert finished.returncode == 6
    assert finished.stderr.startswith("error: the training loss is ")
    assert "Traceback" not in finished.stderr


def test_the_debug_variable_shows_the_traceback(tmp_path):
    finished = command("--patience=0", cwd=tmp_path, PLATEAU_TRAIN_DEBUG="1")
    assert "Traceback" in finished.stderr
    assert finished.returncode == 2


def test_the_first_help_has_purpose_commands_terms_and_the_settings_used_most(top_help, tmp_path):
    words = re.sub(r"[\s│]+", " ", top_help)
    for text in ("show when the rate drops and why", "An observation is", "wait 3/5", "to beat"):
        assert text in words
    shown = [setting.key for setting in SETTINGS if f" {setting.flag} " in top_help]
    assert [key for key in shown if key not in ("val_fraction", "factor")] == [
        "dataset", "mode", "patience", "epochs", "seed",
    ]  # fmt: skip
    for name in ("train", "resume", "sweep", "help"):
        assert f"│ {name} " in top_help
    assert "bool>" not in top_help
    # Its commands and settings are within 45 lines of a terminal of 80 columns.
    narrow = command("--help", cwd=tmp_path, COLUMNS="80").stdout.splitlines()
    assert any("│ data " in line for line in narrow[:45])
    last = top_help.rstrip().splitlines()[-1].strip()
    assert last.startswith("plateau-train compare runs/ONE")


def test_help_of_train_groups_every_setting_with_its_default(tmp_path):
    shown = command("train", "--help", cwd=tmp_path, COLUMNS="100").stdout
    groups = ("Data", "Model", "Optimizer", "Plateau", "Run", "Cluster")
    places = [shown.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    for setting in SETTINGS:
        assert setting.flag in shown
    words = re.sub(r"[\s│]+", " ", shown)
    assert "[default: 200 in the train modes, 1 otherwise]" in words
    assert "[env var: TFDS_DATA_DIR]" in words


def test_config_prints_usable_toml_with_the_origin_of_each_value(tmp_path):
    (tmp_path / "my.toml").write_text("[run]\nseed = 3\n")
    shown = command("config", "--config=my.toml", "--patience=8", cwd=tmp_path)
    assert tomllib.loads(shown.stdout)["plateau"]["patience"] == 8
    assert "patience = 8 # flag" in shown.stdout
    assert "seed = 3 # my.toml" in shown.stdout
    assert "epochs = 50 # default" in shown.stdout
    assert "# TFDS_DATA_DIR" in shown.stdout
    (tmp_path / "again.toml").write_text(shown.stdout)
    again = command("config", "--config=again.toml", cwd=tmp_path)
    assert tomllib.loads(again.stdout) == tomllib.loads(shown.stdout)


def test_a_run_prints_one_line_an_epoch_and_no_escape_codes(tmp_path):
    finished = command(*SMALL, "--epochs=3", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if line.startswith("epoch ")]
    assert [line.split("  ")[0] for line in lines] == [f"epoch {n}/3" for n in range(4)]
    assert "\x1b" not in finished.stdout + finished.stderr
    assert "patience 2 (0.67 epochs)" in finished.stderr


def test_the_bare_command_is_the_command_train(small_run, tmp_path):
    finished = command("train", *SMALL, "--epochs=6", "--quiet", cwd=tmp_path)
    run = tmp_path / finished.stdout.strip()
    assert finished.stderr == ""
    assert (run / "metrics.jsonl").read_bytes() == (small_run / "metrics.jsonl").read_bytes()


def test_plot_needs_only_three_files_and_writes_to_the_given_path(small_run, tmp_path):
    copy = tmp_path / "a copy [of] a run"
    copy.mkdir()
    for name in ("config.toml", "metrics.jsonl", "events.jsonl"):
        shutil.copy(small_run / name, copy / name)
    assert command("plot", copy, cwd=tmp_path).stdout == f"{copy / 'plot.png'}\n"
    assert (copy / "plot.png").read_bytes() == (small_run / "plot.png").read_bytes()
    output = tmp_path / "out.svg"
    assert command("plot", copy, "-o", output, cwd=tmp_path).returncode == 0
    assert output.read_bytes().startswith(b"<?xml")
    assert "as out.gif" in refused(tmp_path, "plot", copy, "-o", "out.gif", code=2)


def test_a_run_without_the_real_data_begins_with_a_notice(tmp_path):
    proxy = "http://127.0.0.1:9"
    few = [flag for flag in SMALL if "dataset" not in flag]
    finished = command(*few, "--epochs=1", cwd=tmp_path, http_proxy=proxy, https_proxy=proxy)
    assert finished.returncode == 0, finished.stderr
    notices = [line for line in finished.stderr.splitlines() if line.startswith("NOTICE: ")]
    assert "NOT on Fashion-MNIST" in notices[0]
    assert "is not prepared in" in notices[1]
    assert "plateau-train data prepare" in notices[2]
    (run,) = (tmp_path / "runs").glob("*-train-loss-garments")
    assert "NOT Fashion-MNIST" in finished.stderr.partition("data  ")[2].splitlines()[0]
    assert tomllib.loads((run / "config.toml").read_text())["data"]["dataset"] == "garments"


def test_data_info_and_prepare_know_the_built_in_set(tmp_path, monkeypatch):
    monkeypatch.setattr(garments, "TRAIN_EXAMPLES", 600)  # drawing all takes ten seconds
    monkeypatch.setattr(garments, "TEST_EXAMPLES", 100)
    described = call("data", "info", "--dataset=garments", f"--cache-dir={tmp_path}")
    assert re.search(r"train +600 images", described)
    assert "Ankle boot" in described
    assert "needs no preparation" in call("data", "prepare", "--dataset=garments")


def test_the_version_is_that_of_the_package(tmp_path):
    assert re.fullmatch(r"plateau-train \d+\.\d+\.\d+\n", command("--version", cwd=tmp_path).stdout)
