import math
import tomllib
from pathlib import Path

import pytest

from plateau_train import config
from plateau_train.config import SETTINGS, RawValue, resolve, resolve_whole
from plateau_train.config.resolve import BY_KEY
from plateau_train.config.toml import to_toml
from plateau_train.errors import ChangedSettingsError, ConfigError, ForeignConfigError, RunError
from plateau_train.numerics.spec import TRACED
from plateau_train.run.directory import RunDirectory

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
        "smooth": "none",
        "max_drops": None,
        "stop_at_min_scale": False,
        "early_stop": None,
        "on_drop": "keep",
    }
    assert settings.optimizer.warmup_epochs == 0


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
    assert (settings.run.seeds, origins["seed"]) == ((0,), "default")
    assert settings.plateau.accumulation_size == 1, "the default follows the file's mode"


@pytest.mark.parametrize(
    ("text", "seeds", "written"),
    [
        ("3", (3,), "3"),
        ("0-7", (0, 1, 2, 3, 4, 5, 6, 7), '"0-7"'),
        ("0,2,5", (0, 2, 5), '"0,2,5"'),
        ("0-3, 8,6 - 7", (0, 1, 2, 3, 8, 6, 7), '"0-3,8,6,7"'),
    ],
)
def test_seeds_are_numbers_and_ranges_and_are_written_as_they_are_typed(toml, text, seeds, written):
    resolved = resolve(flags(seed=text))
    assert resolved.settings.run.seeds == seeds
    assert config.as_text(BY_KEY["seed"].value_in(resolved.settings)) == written.strip('"')
    content = to_toml(*resolved)
    assert f"seed = {written} # flag" in content
    assert resolve({}, file=toml(content)).settings == resolved.settings
    as_json = resolved.settings.model_dump_json()
    assert config.Settings.model_validate_json(as_json) == resolved.settings


@pytest.mark.parametrize("text", ["3", "[3]", '"3"', '"3-3"'])
def test_a_file_has_seeds_as_a_number_a_list_or_a_text(toml, text):
    assert resolve({}, file=toml(f"[run]\nseed = {text}")).settings.run.seeds == (3,)


@pytest.mark.parametrize("text", ["0-", "7-0", "1,1", "0-3,2", "a", "0-99999", "", "4294967296"])
def test_a_text_that_is_not_a_list_of_different_seeds_is_refused(text):
    (problem,) = problems(seed=text)
    assert problem.startswith("--seed must be a whole number from 0 to 4,294,967,295, or up to")


@pytest.mark.parametrize("text", ["true", "1.0", "[]", "[-1]", "[1, 1]", '["1"]', '"1-"'])
def test_a_value_that_is_not_a_list_of_different_seeds_is_refused(toml, text):
    (problem,) = problems(file=toml(f"[run]\nseed = {text}"))
    assert "seed in [run] must be a whole number" in problem


def test_a_seed_on_the_command_line_outranks_the_seeds_of_a_file(toml):
    file = toml('[run]\nseed = "1-4"\n')
    assert resolve(flags(seed="0"), file=file).settings.run.seeds == (0,)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2h30m", 9000), ("1h0m5s", 3605), ("0.5", 0.5)],
)
def test_a_time_is_kept_as_it_is_given_and_read_as_seconds(toml, text, seconds):
    run = resolve(flags(max_time=text)).settings.run
    assert (run.max_time, run.max_seconds) == (text, seconds)
    assert resolve({}, file=toml(f'[run]\nmax_time = "{text}"')).settings.run == run


def test_a_time_in_a_file_may_be_a_number_and_none_removes_a_limit(toml):
    limited = resolve({}, file=toml("[run]\nmax_time = 1800"))
    assert (limited.settings.run.max_time, limited.settings.run.max_seconds) == ("1800", 1800)
    for free in (merge(limited, resolve(flags(max_time="none"))), resolve({})):
        assert (free.settings.run.max_time, free.settings.run.max_seconds) == (None, math.inf)


@pytest.mark.parametrize("text", ["", "0", "0h0m", "-1", "1h2", "m", "30m2h", "1e3", "inf", "1 h"])
def test_a_text_that_is_no_time_above_0_is_refused(text):
    (problem,) = problems(max_time=text)
    assert problem.startswith("--max-time must be a time above 0 such as 90s, 30m, 1.5h or 2h30m, ")


def test_the_defaults_of_weight_decay_and_momentum_follow_the_optimizer():
    decays = {name: resolve(flags(optimizer=name)).settings.optimizer for name in ("adamw", "sgd")}
    assert decays["adamw"].weight_decay == 1e-4
    assert decays["sgd"].momentum == 0.9


def test_every_problem_of_the_file_and_of_the_flags_is_reported_at_once(toml):
    file = toml("[plateau]\npatiense = 3\ncooldown = '1'\n[platau]\n[data]\nbatch_size = 0\n")
    found = problems(file=file, seed="x", factor="1.5", hidden_sizes="10,x")
    assert [problem.partition(": ")[2] or problem for problem in found] == [
        "batch_size in [data] must be a whole number from 1 to 1,000,000,000, got 0",
        "cooldown in [plateau] must be a whole number from 0 to 1,000,000,000, or epochs such as "
        '2epochs, got "1"',
        "unknown key patiense in [plateau] (did you mean patience?)",
        "unknown table or key platau (did you mean plateau?)",
        "--hidden-sizes must be whole numbers from 1 to 100,000, separated by commas, got x",
        "--factor must be a number above 0 below 1, got 1.5",
        "--seed must be a whole number from 0 to 4,294,967,295, or up to 10,000 different ones "
        "like 0-7 or 0,2,5, got x",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patience = 3", "patience belongs in the table [plateau]"),
        ("plateau = 3", "plateau must be a table: write [plateau] above its keys"),
        ("[run]\npatience = 3", "patience belongs in the table [plateau]"),
        ("[run]\nseeds = [1, 2]", "unknown key seeds in [run] (did you mean seed?)"),
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
    assert problems(schedule="schedule-free", optimizer="lamb") == (
        "--schedule schedule-free has no meaning for lamb: it is for adam, adamw, sgd",
    )
    assert problems(schedule="schedule-free", optimizer="sgd", momentum="0") == (
        "--schedule schedule-free needs a momentum: add --momentum 0.9",
    )


@pytest.mark.parametrize("name", ["a/b", "..", ".", ".hidden", "a\\b", "a\nb", "", "x" * 101])
def test_a_name_that_could_lead_out_of_the_runs_folder_is_refused(name):
    (problem,) = problems(name=name)
    assert problem.startswith("--name must be a folder name")


def test_a_name_may_hold_spaces_brackets_and_letters_of_any_script():
    assert resolve(flags(name="a [b] Größe 数")).settings.run.name == "a [b] Größe 数"


def test_what_is_written_as_toml_reads_back_as_the_same_settings(toml):
    given = flags(
        mode="val-accuracy",
        val_fraction="0.2",
        hidden_sizes="32,16",
        train_examples="100",
        learning_rate="3e-5",
        name='quote " and \\u0041',
        quiet="true",
        optimizer="lion",
    )
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


def test_a_written_file_begins_with_its_format_and_a_file_of_a_user_needs_none(toml):
    assert to_toml(*resolve({})).startswith("format = 1 #")
    assert resolve({}, file=toml("format = 1\n[run]\nepochs = 2")).settings.run.epochs == 2
    assert resolve({}, file=toml("[run]\nepochs = 2")).settings.run.epochs == 2


@pytest.mark.parametrize("number", ["2", "0", '"x"'])
def test_a_file_of_another_format_is_of_another_version(toml, number):
    file = toml(f"format = {number}\n[run]\nepochs = 'new'\n[new]\n")
    with pytest.raises(ForeignConfigError, match=r"is of another version: it has format .*, not 1"):
        resolve({}, file=file)
    with pytest.raises(ForeignConfigError) as refused:
        resolve_whole(file)
    assert refused.value.hint == "install the version that wrote it"
    run = RunDirectory(file.parent)
    file.rename(run.config)
    with pytest.raises(RunError, match="is of another version") as refused:
        run.settings()
    assert refused.value.hint == "install the version that wrote it"


def test_a_config_of_a_run_that_was_cut_is_refused_with_what_it_lacks(toml):
    whole = to_toml(*resolve(flags(epochs="7")))
    assert resolve_whole(toml(whole)).settings.run.epochs == 7
    cuts = ["", whole[: whole.index("[run]")], whole[: whole.index("[cluster]")]]
    for text in (*cuts, whole.partition("\n")[2]):
        with pytest.raises(ConfigError, match="is incomplete: it has no"):
            resolve_whole(toml(text))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_a_key_that_the_config_of_an_older_run_lacks_has_its_default(toml, setting):
    lines = to_toml(*resolve({})).splitlines()
    older = [line for line in lines if line.partition(" =")[0] != setting.key]
    resolved = resolve_whole(toml("\n".join(older)))
    assert resolved.settings == resolve({}).settings
    assert resolved.origin(setting.key) == "default"


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


def test_the_help_of_a_setting_begins_with_a_capital_and_ends_without_full_stop():
    for setting in SETTINGS:
        assert setting.help[0].isupper(), setting.flag
        assert not setting.help.endswith("."), setting.flag
        assert setting.default, setting.flag


# A new setting is fixed and affects the results unless it is declared, and listed here, otherwise.
CLUSTER = set(config.ClusterSettings.model_fields)
FREE = {"data_dir", "runs_dir", "name", "quiet", "max_time"} | CLUSTER
LOCAL = {"cache_dir", "devices"}


def test_the_attributes_of_every_setting_are_those_that_were_decided_on():
    for attribute, keys in {
        "affects_results": {s.key for s in SETTINGS} - FREE - LOCAL - {"threads"},
        "per_process": FREE - CLUSTER - {"max_time"} | {"cache_dir", "threads", "process_id"},
        "is_traced": {"learning_rate", "seed", *TRACED},
        "can_vary": {s.key for s in SETTINGS} - FREE - LOCAL - {"threads", "seed"},
    }.items():
        assert {s.key for s in SETTINGS if getattr(s, attribute)} == keys, attribute
    policies = {s.key: s.on_resume for s in SETTINGS if s.on_resume != "fixed"}
    expected = dict.fromkeys(FREE, "free") | dict.fromkeys(LOCAL, "local")
    expected |= {"epochs": "grow", "dataset": "moved", "model": "moved"}
    assert policies == expected


def merge(begun, *overrides, **options):
    return config.merge(begun, *overrides, problem="the run continues", hint="", **options)


def refusals(begun, *overrides, **options):
    with pytest.raises(ChangedSettingsError) as refused:
        merge(begun, *overrides, **options)
    heads, *rows = refused.value.table
    assert heads == ("setting", "run", "requested", "why not")
    assert refused.value.problems == ("the run continues",)
    return rows


def test_a_run_takes_what_is_free_from_the_last_override_that_gives_it():
    begun = resolve(flags(data_dir="/one", name="first", epochs="3"))
    edited = resolve(flags(data_dir="/two", epochs="5", quiet="true"))
    merged = merge(begun, edited, resolve(flags(data_dir="/one", epochs="4")))
    run = merged.settings.run
    assert (merged.settings.data.data_dir, run.name, run.epochs, run.quiet) == (
        Path("/one"),
        "first",
        4,
        True,
    )
    assert merged.origins["data_dir"] == "flag"
    assert merged.settings == merge(merged, resolve({})).settings, "defaults are no overrides"


def test_a_run_takes_the_cache_and_the_devices_of_the_process_that_resumes_it():
    begun = resolve(flags(cache_dir="/one", devices="4", threads="3"))
    edited = resolve(flags(cache_dir="/two", devices="2"))
    merged = merge(begun, edited, resolve({"cache_dir": RawValue("/three", "VARIABLE")}))
    assert merged.settings.data.cache_dir == Path("/three")
    assert merged.settings.run.devices is None
    assert (merged.settings.run.threads, merged.origins["devices"]) == (3, "default")


def test_settings_that_a_run_cannot_change_are_refused_with_all_reasons():
    begun = resolve(flags(seed="0-3", epochs="5"))
    override = resolve(flags(seed="0-4", epochs="4", threads="7", batch_size="128", quiet="true"))
    assert refusals(
        begun,
        override,
        resolve(flags(patience="9")),
        why_not=lambda s, value: f"the wait is {value}" if s.key == "patience" else "",
    ) == [
        ("--patience", "5", "9", "the wait is 9"),
        ("--epochs", "5", "4", "it can only grow"),
        ("--seed", "0-3", "0-4", "it would change the results"),
        ("--threads", "the available cores", "7", "it would change the results"),
    ]
    assert merge(begun, resolve({"threads": RawValue("7", "NPROC")})).settings.run.threads is None


@pytest.mark.parametrize("schedule", ["cosine", "linear", "rex", "one-cycle"])
def test_the_epochs_of_a_schedule_that_depends_on_them_do_not_change(schedule):
    begun = resolve(flags(schedule=schedule, epochs="5"))
    ((*_, reason),) = refusals(begun, resolve(flags(epochs="6")))
    assert reason == f"--schedule {schedule} depends on the number of epochs"
    assert merge(begun, resolve(flags(epochs="5"))).settings == begun.settings


def test_a_sweep_takes_less_from_an_override_than_a_run():
    begun = resolve(flags(epochs="5"))
    free = resolve(flags(data_dir="/two", quiet="true", epochs="5"))
    merged = merge(begun, free, policy=config.sweep_policy)
    assert (merged.settings.data.data_dir, merged.settings.run.quiet) == (Path("/two"), True)
    fixed = flags(epochs="6", runs_dir="/two", name="b", num_processes="1", patience="6")
    rows = refusals(begun, resolve(fixed), policy=config.sweep_policy)
    assert {flag for flag, *_ in rows} == {BY_KEY[key].flag for key in fixed}


def test_a_process_adopts_all_that_is_not_its_own_and_refuses_other_values():
    leader = resolve(flags(patience="3", data_dir="/one", threads="2", devices="1"))
    own = flags(data_dir="/two", threads="1", patience="3")
    merged = merge(leader, resolve(own), policy=config.cluster_policy)
    settings = merged.settings
    assert (settings.data.data_dir, settings.run.threads) == (Path("/two"), 1)
    assert (settings.plateau.patience, settings.run.devices) == (3, 1)
    other = resolve(flags(patience="4", epochs="60", devices="2"))
    rows = refusals(
        leader, other, policy=config.cluster_policy, why_not=lambda *_: "all processes share it"
    )
    assert [row[0] for row in rows] == ["--patience", "--epochs", "--devices"]
    assert {row[-1] for row in rows} == {"all processes share it"}
