"""The command line: the options and arguments of each command, and the call that runs it."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from plateau_train import config
from plateau_train.config import (
    FIGURE_OPTIONS,
    FIXED_PANELS_OPTIONS,
    RULE_KEYS,
    SETTINGS,
    FigureOptions,
    RawValue,
    Resolved,
    Setting,
)
from plateau_train.config.resolve import BY_KEY
from plateau_train.errors import PROGRAM, ConfigError

ALL = tuple(setting.key for setting in SETTINGS)
CLUSTER = {setting.key for setting in SETTINGS if setting.table == "cluster"}


def _option(help_text: str, metavar: str | None = None, *flags: str, **details: Any) -> Any:
    """Describe an option to Typer; without flags it is named after its parameter."""
    return typer.Option(*flags, help=help_text, metavar=metavar, **details)


def _picture(name: str) -> Any:
    """Describe the option for the path of a picture."""
    return _option(
        f"PNG, SVG or PDF file; without it {name} in the run folder", "FILE", "--output", "-o"
    )


def _replica(otherwise: str) -> Any:
    """Describe the option that selects one training of a run with several seeds."""
    help_text = f"Number of a replica, from 0, in a run with several seeds; without it {otherwise}"
    return _option(help_text, "N", "--replica", min=0)


def _examples(*arguments: str) -> str:
    """Return the examples that end the help of a command."""
    return "\n".join(("[bold]Examples[/bold]", *(f"{PROGRAM} {line}" for line in arguments)))


ConfigFile = Annotated[
    Path | None, _option("TOML file; flags override its settings", "FILE", "--config")
]
RunArgument = Annotated[
    Path | None,
    typer.Argument(
        help="Run folder, or its name in --runs-dir; without it the latest run is used",
        metavar="[RUN]",
        show_default=False,
    ),
]

DryRun = Annotated[
    bool,
    _option(
        "Take one step and evaluate once; print layers, memory and FLOPs, and write no run",
        None,
        "--dry-run",
    ),
]

Checkpoint = Annotated[
    str,
    _option(
        "Checkpoint: best, last (the newest intact one), or the number of an epoch", "best|last|N"
    ),
]

Json = Annotated[bool, _option("Print JSON on standard output, and nothing else", None, "--json")]
Csv = Annotated[bool, _option("Print CSV on standard output, and nothing else", None, "--csv")]


def _form(**forms: bool) -> Any:
    """Return the form of the output for other programs, "json" or "csv"; None stands for tables.

    Raises ``ConfigError`` for more than one form.
    """
    flags = [f"--{name}" for name, is_given in forms.items() if is_given]
    if len(flags) > 1:
        problem = f"{' and '.join(flags)} are different forms of the same output"
        raise ConfigError(problem, hint="leave out one")
    return "json" if forms.get("json") else "csv" if forms.get("csv") else None


EXAMPLES = _examples(
    "--mode train-loss --patience 5",
    "--mode val-loss --val-fraction 0.1 --epochs 20",
    "--config configs/test_loss.toml --seed 3",
    "resume runs/latest --epochs 80",
    "evaluate runs/latest --checkpoint last",
    "plot runs/latest -o plot.svg",
    "sweep --patience 2,5,10 --factor 0.1,0.5 --seed 0-3",
    "compare runs/ONE runs/TWO --plot compare.png",
)

PLOT_EXAMPLES = _examples(
    "plot runs/latest -o plot.svg",
    "plot runs/latest --panels scale,test-accuracy --style talk -o slide.png",
    "plot runs/latest --panels val-loss --size 6x4 --title '' -o figure.pdf",
)

TERMS = (
    "The plateau rule lowers the learning rate when the loss no longer improves. An observation is "
    "one value given to the rule: the mean train loss of 200 steps, or an evaluation after an "
    'epoch. In the rows of a run, "wait 3/5" means three observations in a row without '
    'improvement, of the five at which the rate drops; "to beat" is the value that the next one '
    "must be below."
)

# The settings on the first screen of help.
MOST_USED = ("mode", "patience", "epochs", "seed", "dataset")


class _Help:
    """Help whose paragraphs fill the lines, and without a type for options that take no value."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        for option in self.get_params(ctx):
            if option.param_type_name == "argument" or option.is_flag:
                option.display_type_rich = lambda **_: ""
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        super().format_help(ctx, formatter)  # pyright: ignore[reportAttributeAccessIssue]


class _Command(_Help, TyperCommand):
    pass


class _Group(_Help, TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the settings that are used most first; the help of the command train shows all."""
        self.params.sort(key=lambda option: option.name not in MOST_USED)
        options: Any = self.get_params(ctx)
        for option in options:
            setting = BY_KEY.get(option.name)
            option.hidden = setting is not None and option.name not in MOST_USED
            option.rich_help_panel = "Settings used most" if setting else "Other options"
            if setting:
                short = re.sub(r" \([^)]*\)|;.*", "", setting.help)
                option.help = _setting_help(setting, short)
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"max_content_width": 100},
)
data_app = typer.Typer(cls=_Group)
_command = functools.partial(app.command, cls=_Command)
_data_command = functools.partial(data_app.command, cls=_Command)
app.add_typer(data_app, name="data", help="Prepare and describe data sets.")


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        return app(prog_name=PROGRAM, standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else PROGRAM
        problem, hint = error.format_message().rstrip("."), f"see {path} --help"
        if type(error).__name__ == "NoSuchOption":
            option = getattr(error, "option_name", "")
            options = context.command.params if context else []
            flags = [flag for each in options for flag in each.opts]
            names = config.OTHER_NAMES
            if "--replica" in flags:
                names = names | {"--seed": "write --replica, the place of the seed, from 0"}
            hint = names.get(option, hint)
            near = "" if option in names else config.did_you_mean(option, flags)
            problem = f"there is no option {option}{near}"
        raise ConfigError(problem, hint=hint) from error


def _takes(
    *keys: str, resolve: Callable[..., Any] = config.resolve
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these settings as options, and call it with the resolved settings."""
    settings = [setting for setting in SETTINGS if setting.key in keys]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(context: typer.Context, config_file: Path | None, **values: Any) -> None:
            from plateau_train.report.console import configure_logging

            configure_logging()
            if context.invoked_subcommand is not None:
                _refuse_flags_before(context)
                return
            raw = {
                setting.key: RawValue(config.as_text(value), _origin(context, setting))
                for setting in settings
                if (value := values.pop(setting.key)) is not None
            }
            command(resolve(raw, file=config_file), **values)

        parameters = [
            _keyword("context", typer.Context),
            _keyword("config_file", ConfigFile, default=None),
            *list(inspect.signature(command).parameters.values())[1:],
            *(_keyword(each.key, _setting_option(each), default=None) for each in settings),
        ]
        return _with_parameters(call, parameters)

    return decorate


def _draws(
    options: Sequence[Setting] = FIGURE_OPTIONS, *, into: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options of figures, and call it with them as its argument ``figure``.

    ``into`` is the argument with the path of the figure, if nothing is drawn without it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(*arguments: Any, **values: Any) -> None:
            texts = {
                option.key: config.as_text(value)
                for option in options
                if (value := values.pop(option.key)) is not None
            }
            if into is not None and texts and values[into] is None:
                flags = ", ".join(option.flag for option in options if option.key in texts)
                problem = f"{flags} without --{into}: there is no figure"
                raise ConfigError(problem, hint=f"add --{into} FILE, such as --{into} figure.png")
            command(*arguments, **values, figure=config.parse_figure_options(texts))

        own = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "figure"
        ]
        parameters = [_keyword(each.key, _setting_option(each), default=None) for each in options]
        return _with_parameters(call, [*own, *parameters])

    return decorate


def _with_parameters(
    call: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """Give a function the signature that Typer reads."""
    call.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _keyword(name: str, annotation: Any, **default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, **default)


def _setting_help(setting: Setting, text: str) -> str:
    """Return the help of a setting with its choices and its default."""
    choices = f": {', '.join(setting.choices)}" if setting.choices else ""
    default = "" if setting.is_switch else f" [dim]\\[default: {setting.default}][/dim]"
    return text.replace("[", r"\[") + choices + default


def _setting_option(setting: Setting) -> Any:
    """Describe a setting to Typer, as text: ``config`` validates all settings at once."""
    choices, is_switch = setting.choices, setting.is_switch
    option = _option(
        _setting_help(setting, setting.help),
        None if is_switch else setting.key.split("_")[-1].upper(),
        # A setting can be on in the file; a figure has no file.
        f"{setting.flag}/--no-{setting.flag[2:]}"
        if is_switch and setting in SETTINGS
        else setting.flag,
        show_default=False,
        rich_help_panel=setting.table.capitalize(),
        envvar=setting.variable,
        autocompletion=(lambda: list(choices)) if choices else None,
    )
    return Annotated[bool | None if is_switch else str | None, option]


def _origin(context: typer.Context, setting: Setting) -> str:
    source = context.get_parameter_source(setting.key)
    is_variable = source is not None and source.name == "ENVIRONMENT"
    return (setting.variable if is_variable else None) or "flag"


def _refuse_flags_before(context: typer.Context) -> None:
    """Refuse an option that comes before the name of a command."""
    flags = {"config_file": "--config"} | {setting.key: setting.flag for setting in SETTINGS}
    for name, flag in flags.items():
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE":
            command = context.invoked_subcommand
            raise ConfigError(
                f"{flag} comes before the command {command}",
                hint=f"write it after the command: {PROGRAM} {command} ... {flag} ...",
            )


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        typer.echo(f"plateau-train {version('plateau-train')}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog=f"{TERMS}\n\n{EXAMPLES}")
@_takes(*ALL)
def bare(
    resolved: Resolved,
    version: Annotated[
        bool,
        _option("Print the version", None, "--version", callback=_print_version, is_eager=True),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Train a network with reduce-on-plateau, and show when the rate drops and why.

    Without a command it trains. The help of train lists all settings.
    """
    del version
    _train(resolved, dry_run=dry_run)


@_command("help")
def show_help(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="Command, such as sweep", metavar="[COMMAND]", show_default=False),
    ] = None,
) -> None:
    """Show the help of a command."""
    app([*(command or ()), "--help"], prog_name=PROGRAM, standalone_mode=False)


@_command(epilog=EXAMPLES)
@_takes(*ALL)
def train(resolved: Resolved, dry_run: DryRun = False) -> None:
    """Train a network, print every epoch, and write a run folder."""
    _train(resolved, dry_run=dry_run)


def _train(resolved: Resolved, *, dry_run: bool) -> None:
    from plateau_train import data

    data.start_reading(resolved.settings.data)  # beside the imports
    from plateau_train.commands import train

    (train.dry_run if dry_run else train.train)(resolved)


@_command()
@_takes(*(key for key in ALL if key != "name"))
def resume(
    resolved: Resolved,
    run: RunArgument = None,
    check: Annotated[
        bool, _option("Verify the run's files, and change nothing", None, "--check")
    ] = False,
) -> None:
    """Continue a run exactly where it stopped, or for more epochs.

    Takes all settings of a training, and reports those that a run cannot change.
    """
    from plateau_train.commands import resume, sweep
    from plateau_train.run.directory import is_sweep

    path = _locate(run, resolved)
    # --runs-dir says where the run is; it does not change a setting of the run.
    overrides = Resolved(resolved.settings, resolved.origins | {"runs_dir": "default"})
    command = sweep if is_sweep(path) else resume
    (command.check if check else command.resume)(path, overrides)


def _locate(run: Path | None, resolved: Resolved) -> Path:
    from plateau_train.run.directory import locate

    return locate(run, resolved.settings.run.runs_dir)


@_command()
@_takes(*(key for key in ALL if key not in CLUSTER), resolve=config.resolve_sweep)
def sweep(
    plan: config.Sweep,
    metric: Annotated[
        str | None,
        _option(
            "Metric of the last epoch to sort by, such as test-loss "
            "[dim]\\[default: the accuracy on held-out images, else on the test images][/dim]",
            "METRIC",
        ),
    ] = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Train each combination of the settings that have several values.

    Values are separated by commas, those of --hidden-sizes by semicolons. Each combination is
    trained with every --seed.

    The command resume, with the folder of the sweep, continues one that was stopped.
    """
    from plateau_train.commands import sweep

    sweep.start(plan, metric, _form(json=json, csv=csv))


@_command(epilog=PLOT_EXAMPLES)
@_takes("runs_dir")
@_draws()
def plot(
    resolved: Resolved,
    figure: FigureOptions,
    run: RunArgument = None,
    output: Annotated[Path | None, _picture("plot.png")] = None,
    replica: Annotated[int | None, _replica("all are drawn")] = None,
) -> None:
    """Draw a run again: scale, losses and accuracies over its epochs.

    Without options it is the figure that the training drew.
    """
    from plateau_train.commands import plot

    plot.print_plot(_locate(run, resolved), output, replica, figure)


@_command("compare")
@_takes("runs_dir")
@_draws(into="plot")
def compare_runs(
    resolved: Resolved,
    figure: FigureOptions,
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more run folders, or names in --runs-dir; a sweep stands for its runs",
            metavar="RUN...",
        ),
    ],
    plot: Annotated[
        Path | None, _option("Draw panels with all runs into this PNG, SVG or PDF file", "FILE")
    ] = None,
    level: Annotated[
        float | None,
        _option(
            "Report the first epoch that reaches this test accuracy "
            "[dim]\\[default: the highest that every seed reaches][/dim]",
            "ACCURACY",
        ),
    ] = None,
    pool: Annotated[
        bool,
        _option("Take runs that differ in their seed alone as replicas of one", None, "--pool"),
    ] = False,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Compare runs, with 95 % confidence intervals.

    Prints the results of each run, the differences from the first one, and the settings that
    differ.
    """
    from plateau_train.commands import compare

    paths = [_locate(run, resolved) for run in runs]
    compare.compare(paths, level, plot, figure, _form(json=json, csv=csv), pool=pool)


@_command()
@_takes("runs_dir")
def runs(
    resolved: Resolved,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A sweep, or another folder of runs, instead of --runs-dir",
            metavar="[FOLDER]",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """List the runs: epochs, accuracies and status, the newest last.

    The accuracies are those on the split in the column split; "at" is the epoch of the best one.
    The status is running, done, failed, stopped (the command resume continues it) or damaged.
    """
    from plateau_train.commands import runs

    runs_dir = config.expand_home(resolved.settings.run.runs_dir)
    path = _locate(folder, resolved) if folder else runs_dir
    runs.print_runs(path, _form(json=json, csv=csv))


@_command()
@_takes("dataset", "data_dir", "cache_dir", "runs_dir", "model")
def evaluate(
    resolved: Resolved,
    run: RunArgument = None,
    checkpoint: Checkpoint = "best",
    replica: Annotated[int | None, _replica("the best is scored")] = None,
    output: Annotated[Path | None, _picture("confusion.png")] = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Score a checkpoint: loss, accuracy, classes, confusion matrix.

    Uses the run's own data: the test images, and those that were held out for validation. If your
    own images have moved, give their new path with --dataset.
    """
    from plateau_train.commands import evaluate

    path, form = _locate(run, resolved), _form(json=json, csv=csv)
    evaluate.evaluate(path, resolved, checkpoint, replica, output, form)


PREDICT_EXAMPLES = _examples(
    "predict runs/latest cat.png dog.jpg",
    "predict runs/latest photos/ --resize --top 3",
    "predict runs/latest images.npz --csv",
)


@_command(epilog=PREDICT_EXAMPLES)
@_takes("cache_dir", "runs_dir", "model")
def predict(
    resolved: Resolved,
    run: Annotated[
        Path, typer.Argument(help="Run folder, or its name in --runs-dir", metavar="RUN")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="PNG or JPEG files, folders of them, or .npz files with an array of images",
            metavar="IMAGE...",
        ),
    ],
    top: Annotated[
        int,
        _option("Print this many of the most likely classes, or all if it is more", "N", min=1),
    ] = 1,
    resize: Annotated[
        bool, _option("Resize images of another size than the run's", None, "--resize")
    ] = False,
    checkpoint: Checkpoint = "best",
    replica: Annotated[int | None, _replica("the best predicts")] = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Predict the classes of images.

    Prints the most likely class of each image and its probability. Gray images become RGB where
    the run has RGB images, and the reverse.
    """
    from plateau_train.commands import predict

    path, form = _locate(run, resolved), _form(json=json, csv=csv)
    predict.print_predictions(path, images, resolved, checkpoint, replica, top, form, resize=resize)


EXPORT_EXAMPLES = _examples(
    "export runs/latest --format safetensors -o weights",
    "export runs/latest --format stablehlo --checkpoint last -o network.stablehlo",
    "export runs/latest --format csv -o metrics.csv",
    "export runs/latest --format tensorboard -o logs/one",
)


@_command(epilog=EXPORT_EXAMPLES)
@_takes("cache_dir", "runs_dir", "model")
def export(
    resolved: Resolved,
    format_: Annotated[
        str,
        _option(
            "safetensors (the weights, and what describes their network), stablehlo (the network "
            "with its weights), csv or tensorboard (the metrics of all seeds)",
            "FORMAT",
            "--format",
        ),
    ],
    run: RunArgument = None,
    checkpoint: Checkpoint = "best",
    replica: Annotated[int | None, _replica("the best is exported")] = None,
    output: Annotated[
        Path | None,
        _option(
            "File, or folder for safetensors and tensorboard; without it a new one in export/ in "
            "the run folder",
            "PATH",
            "--output",
            "-o",
        ),
    ] = None,
) -> None:
    """Write a run for other programs.

    The weights and the network are those of a checkpoint, the metrics those of all seeds. Prints
    the path of what it wrote. An earlier export is replaced; no other file is.
    """
    from plateau_train.commands import export

    path = _locate(run, resolved)
    export.print_export(path, resolved, format_, checkpoint, replica, output)


SCHEDULE_EXAMPLES = _examples(
    "schedule --values 1,1,1,0.5,0.9,0.9 --patience 2 --cooldown 2",
    "schedule losses.csv --column val_loss --patience 3 --compare torch,keras",
    "schedule runs/latest --patience 3 --factor 0.3 --plot replay.png",
    "schedule --from-torch patience=10,threshold=1e-3",
)


@_command(epilog=SCHEDULE_EXAMPLES)
# The mode is checked together with the run's other settings.
@_takes(*RULE_KEYS, "learning_rate", "runs_dir")
@_draws(FIXED_PANELS_OPTIONS, into="plot")
def schedule(
    resolved: Resolved,
    figure: FigureOptions,
    source: Annotated[
        str | None,
        typer.Argument(
            help="CSV or TSV file, - for standard input, or a run folder; without it and --values "
            "the latest run is used",
            metavar="[SOURCE]",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        str | None, _option("The values themselves, separated by commas", "LIST")
    ] = None,
    column: Annotated[str | None, _option("Column of the file, by its name", "NAME")] = None,
    mode: Annotated[
        str | None, _option("Metric of the run, instead of the one that its rule observed", "MODE")
    ] = None,
    replica: Annotated[int | None, _replica("there must be only one")] = None,
    compare: Annotated[
        str | None,
        _option(
            "Compare with the rules of these libraries, with the same numbers: optax, torch, keras",
            "LIBRARIES",
        ),
    ] = None,
    from_torch: Annotated[
        str | None,
        _option(
            "Translate PyTorch's ReduceLROnPlateau, such as patience=10,threshold=1e-3, "
            "and replay it over the values, if any; other parameters have their defaults",
            "PARAMETERS",
        ),
    ] = None,
    from_keras: Annotated[
        str | None,
        _option("The same for Keras, such as patience=10,min_delta=1e-4", "PARAMETERS"),
    ] = None,
    json: Json = False,
    csv: Csv = False,
    plot: Annotated[
        Path | None, _option("Draw values and scale into a PNG, SVG or PDF file", "FILE")
    ] = None,
) -> None:
    """Replay the rule over values: when the rate drops, and why.

    For a run the defaults are the run's own settings; otherwise an observation is one value.
    Values after the first drop that differs from the run's are counterfactual.

    The figure of --plot always shows the values above the scale, so there is no --panels.
    """
    from plateau_train.commands.schedule import ScheduleOptions, run_schedule

    options = ScheduleOptions(
        source, values, column, mode, replica, compare, from_torch, from_keras, plot
    )
    run_schedule(resolved, options, figure, _form(json=json, csv=csv))


@_command("config")
@_takes(*ALL)
def show_config(
    resolved: Resolved,
    describe: Annotated[
        bool, _option("Comment each value with its meaning, not its origin", None, "--describe")
    ] = False,
    schema: Annotated[
        bool, _option("Print the JSON Schema of a configuration file instead", None, "--schema")
    ] = False,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Print the resolved settings as TOML, with their origins."""
    from plateau_train.commands.config import print_config, print_schema

    form = _form(json=json, csv=csv, schema=schema, describe=describe)
    if schema:
        print_schema()
    else:
        print_config(resolved, describe=describe, form=form)


@_data_command()
@_takes("dataset", "data_dir")
def prepare(
    resolved: Resolved,
    manual_dir: Annotated[
        Path | None,
        _option(
            "Folder with the original files of the data set, whose checksums are verified; "
            "without it they are downloaded",
            "DIR",
            "--from",
        ),
    ] = None,
) -> None:
    """Prepare a data set from downloaded files, or from its original files in a folder."""
    from plateau_train.commands import data

    data.prepare(resolved.settings.data, manual_dir)


@_data_command()
@_takes("dataset", "data_dir", "cache_dir", "test_fraction")
def info(resolved: Resolved) -> None:
    """Describe a prepared data set: its images, classes and pixels."""
    from plateau_train.commands import data

    data.info(resolved.settings.data)
