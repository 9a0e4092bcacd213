import tomllib
from pathlib import Path

import pytest

from plateau_train import config
from plateau_train.config import SETTINGS, RawValue, resolve
from plateau_train.config.toml import to_toml
from plateau_train.errors import ConfigError
from scripts import reproduce

ROOT = Path(__file__).parents[1]


def flags(**values):
    return {key: RawValue(text, "flag") for key, text in values.items()}


def problems(*, file=None, **values):
    with pytest.raises(ConfigError) as refused:
        resolve(flags(**values), file=file)
    return refused.value.problems


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return path

    return write


def test_the_defaults_are_the_published_experiment():
    settings = resolve({}).settings
    assert settings.model.hidden_sizes == (1000, 1000)
    assert (settings.optimizer.optimizer, settings.optimizer.learning_rate) == ("adam", 0.01)
    assert settings.data.batch_size == 128
    assert settings.run.epochs == 50
    assert settings.plateau.model_dump() == {
        "mode": "train-loss",
        "patience": 5,
        "cooldown": 0,
        "factor": 0.5,
        "rtol": 1e-4,
        "atol": 0.0,
        "accumulation_size": 200,
        "min_scale": 0.0,
    }


@pytest.mark.parametrize("mode", config.Mode.__args__)
def test_a_window_is_200_steps_in_the_train_modes_and_one_evaluation_otherwise(mode):
    settings = resolve(flags(mode=mode, val_fraction="0.1")).settings
    assert settings.plateau.accumulation_size == (200 if mode.startswith("train") else 1)
    assert settings.plateau.observation_epochs(468) == pytest.approx(
        200 / 468 if mode.startswith("train") else 1
    )


def test_a_flag_outranks_the_file_and_the_file_outranks_the_default(toml):
    file = toml("[plateau]\npatience = 7\nmode = 'test-loss'\n[run]\nepochs = 9\n")
    settings, origins = resolve(flags(patience="8"), file=file)
    assert (settings.plateau.patience, origins["patience"]) == (8, "flag")
    assert (settings.run.epochs, origins["epochs"]) == (9, str(file))
    assert (settings.run.seed, origins["seed"]) == (0, "default")
    assert settings.plateau.accumulation_size == 1, "the default follows the file's mode"


def test_the_defaults_of_weight_decay_and_momentum_follow_the_optimizer():
    decays = {name: resolve(flags(optimizer=name)).settings.optimizer for name in ("adamw", "sgd")}
    assert decays["adamw"].weight_decay == 1e-4
    assert decays["sgd"].momentum == 0.9


def test_every_problem_of_the_file_and_of_the_flags_is_reported_at_once(toml):
    file = toml("[plateau]\npatiense = 3\ncooldown = '1'\n[platau]\n[data]\nbatch_size = 0\n")
    found = problems(file=file, seed="x", factor="1.5", hidden_sizes="10,x")
    assert [problem.partition(": ")[2] or problem for problem in found] == [
        "batch_size in [data] must be a whole number from 1 to 1,000,000,000, got 0",
        'cooldown in [plateau] must be a whole number from 0 to 1,000,000,000, got "1"',
        "unknown key patiense in [plateau], did you mean patience?",
        "unknown table or key platau, did you mean plateau?",
        "--hidden-sizes must be whole numbers from 1 to 100,000, separated by commas, got x",
        "--factor must be a number above 0 below 1, got 1.5",
        "--seed must be a whole number from 0 to 4,294,967,295, got x",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patience = 3", "patience stands outside its table: put it under [plateau]"),
        ("plateau = 3", "plateau must be a table: write [plateau] above its keys"),
        ("[run]\npatience = 3", "patience belongs in [plateau], not in [run]"),
        ("[run]\nquiet = 1", "quiet in [run] must be true or false, got 1"),
        ("[run]\nepochs = 2.5", "epochs in [run] must be a whole number from 1 to 1,000,000"),
        ("[run]\nepochs = 2\nepochs = 3", "is not valid TOML"),
        ("[run", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_way_out(toml, text, said):
    file = toml(text)
    (problem,) = problems(file=file)
    assert said in problem
    assert str(file) in problem


def test_settings_that_only_make_sense_together_are_refused_alone():
    assert problems(rtol="0") == ("--rtol and --atol are both 0: one of them must be above 0",)
    assert problems(mode="val-loss") == (
        "--mode val-loss needs held-out images: add --val-fraction 0.1",
    )
    assert problems(momentum="0.9") == (
        "--momentum 0.9 has no meaning for adam: it is for sgd, rmsprop",
    )


@pytest.mark.parametrize("name", ["a/b", "..", ".", ".hidden", "a\\b", "a\nb", "", "x" * 101])
def test_a_name_that_could_lead_out_of_the_runs_folder_is_refused(name):
    (problem,) = problems(name=name)
    assert problem.startswith("--name must be a folder name")


def test_a_name_may_hold_spaces_brackets_and_letters_of_any_script():
    assert resolve(flags(name="a [b] Größe 数")).settings.run.name == "a [b] Größe 数"


def test_what_is_written_as_toml_reads_back_as_the_same_settings(toml):
    given = flags(
        mode="val-accuracy", val_fraction="0.2", hidden_sizes="32,16", train_examples="100",
        learning_rate="3e-5", name='quote " and \\u0041', quiet="true", optimizer="lion",
    )  # fmt: skip
    given["data_dir"] = RawValue("/a b/ü", "TFDS_DATA_DIR")
    given["name"] = RawValue('quote " [x]', "flag")
    settings, origins = resolve(given)
    file = toml(to_toml(settings, origins))
    assert resolve({}, file=file).settings == settings
    assert "# flag" in file.read_text()
    assert 'data_dir = "/a b/ü" # TFDS_DATA_DIR' in file.read_text()
    assert "# test_examples = all  # default" in file.read_text()


def test_a_written_default_that_follows_the_mode_or_the_optimizer_still_follows_it(toml):
    file = toml(to_toml(*resolve({})))
    assert "# accumulation_size = 200  # default" in file.read_text()
    changed = resolve(flags(mode="test-loss", optimizer="sgd"), file=file).settings
    assert changed.plateau.accumulation_size == 1
    assert changed.optimizer.momentum == 0.9
    given = toml(to_toml(*resolve(flags(accumulation_size="7"))))
    assert resolve(flags(mode="test-loss"), file=given).settings.plateau.accumulation_size == 7


def test_an_origin_cannot_break_out_of_its_comment(toml):
    settings, origins = resolve({})
    file = toml(to_toml(settings, origins | {"seed": "cr\nepochs = 7\udcff\x1b[2J"}))
    assert resolve({}, file=file).settings == settings


def test_no_hidden_sizes_make_a_linear_model():
    assert resolve(flags(hidden_sizes="")).settings.model.hidden_sizes == ()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda f: f.name)
def test_the_configs_are_valid_and_those_of_the_reference_never_fall_back(file):
    settings = resolve({}, file=file).settings
    expected = {"default.toml": "auto", "smoke.toml": "garments"}
    assert settings.data.dataset == expected.get(file.name, "fashion_mnist")


def test_the_reference_configs_change_nothing_but_the_mode_and_what_it_needs():
    for name in ("train_loss", "test_loss", "val_loss"):
        content = tomllib.loads((ROOT / "configs" / f"{name}.toml").read_text())
        assert content["plateau"] == {"mode": name.replace("_", "-")}
        assert set(content) == {"data", "plateau"}


def test_every_knob_is_in_the_default_file_and_in_the_readme_as_the_code_says():
    assert (ROOT / "configs" / "default.toml").read_text() == reproduce.default_toml()
    assert reproduce.knob_table() in (ROOT / "README.md").read_text()


def test_every_knob_has_a_help_that_begins_with_a_capital_and_ends_without_a_full_stop():
    for knob in SETTINGS:
        assert knob.help[0].isupper(), knob.flag
        assert not knob.help.endswith("."), knob.flag
        assert knob.default, knob.flag
