"""The command line: words in, one call, an exit code out. No logic."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from plateau_train import config
from plateau_train.config import SETTINGS, RawValue, Resolved, Setting
from plateau_train.errors import ConfigError

ALL = tuple(knob.key for knob in SETTINGS)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with settings, which flags outrank", metavar="FILE"),
]

RunArgument = Annotated[Path, typer.Argument(help="Run folder, such as runs/latest", metavar="RUN")]


def _picture(name: str) -> Any:
    """Describe the option that puts a picture elsewhere."""
    return typer.Option(
        "--output", "-o", metavar="FILE", help=f"PNG, SVG or PDF file, instead of {name} there"
    )


def _replica(otherwise: str) -> Any:
    """Describe the option that takes one training of a run of several."""
    help_text = f"Which replica, from 0, of a run with --seeds; without it {otherwise}"
    return typer.Option("--replica", metavar="N", min=0, help=help_text)


EXAMPLES = """\
[bold]Examples[/bold]

plateau-train --mode train-loss --patience 5

plateau-train --mode val-loss --val-fraction 0.1 --epochs 20

plateau-train --config configs/test_loss.toml --seed 3

plateau-train resume runs/latest --epochs 80

plateau-train evaluate runs/latest --checkpoint last

plateau-train plot runs/latest -o plot.svg

plateau-train sweep --patience 2,5,10 --factor 0.1,0.5 --seeds 0-3

plateau-train compare runs/ONE runs/TWO --plot compare.png
"""

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"max_content_width": 100},
)
data_app = typer.Typer()
app.add_typer(data_app, name="data", help="Prepare and describe data sets.")


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        return app(standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "plateau-train"
        raise ConfigError(error.format_message().rstrip("."), hint=f"see {path} --help") from error


def _takes(
    *keys: str, resolve: Callable[..., Any] = config.resolve
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these knobs as flags, and call it with the resolved configuration."""
    knobs = [knob for knob in SETTINGS if knob.key in keys]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(context: typer.Context, config_file: Path | None, **values: Any) -> None:
            if context.invoked_subcommand is not None:
                _refuse_flags_before(context)
                return
            given = {
                knob.key: RawValue(config.as_text(value), _origin(context, knob))
                for knob in knobs
                if (value := values.pop(knob.key)) is not None
            }
            command(resolve(given, file=config_file), **values)

        parameters = [
            _keyword("context", typer.Context),
            _keyword("config_file", ConfigFile, default=None),
            *list(inspect.signature(command).parameters.values())[1:],
            *(_keyword(knob.key, _option(knob), default=None) for knob in knobs),
        ]
        # Typer reads both.
        call.__signature__ = inspect.Signature(  # pyright: ignore[reportAttributeAccessIssue]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _keyword(name: str, annotation: Any, **default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, **default)


def _option(knob: Setting) -> Any:
    """Describe one knob to Typer. All are text to it: ``config`` validates, all at once."""
    choices = knob.choices
    return Annotated[
        bool | None if knob.is_switch else str | None,
        typer.Option(
            f"{knob.flag}/--no-{knob.key}" if knob.is_switch else knob.flag,
            help=_help(knob),
            show_default=False,
            metavar=None if knob.is_switch else knob.key.split("_")[-1].upper(),
            rich_help_panel=knob.table.capitalize(),
            envvar=knob.variable,
            autocompletion=(lambda: list(choices)) if choices else None,
        ),
    ]


def _help(knob: Setting) -> str:
    choices = f": {', '.join(knob.choices)}" if knob.choices else ""
    default = "" if knob.is_switch else f" [dim]\\[default: {knob.default}][/dim]"
    return knob.help.replace("[", r"\[") + choices + default


def _origin(context: typer.Context, knob: Setting) -> str:
    source = context.get_parameter_source(knob.key)
    return knob.variable if knob.variable and source and source.name == "ENVIRONMENT" else "flag"


def _refuse_flags_before(context: typer.Context) -> None:
    """Refuse a flag of the training that stands before another command's name."""
    flags = {"config_file": "--config"} | {knob.key: knob.flag for knob in SETTINGS}
    for name, flag in flags.items():
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE":
            raise ConfigError(
                f"{flag} stands before the command {context.invoked_subcommand}",
                hint=f"write it behind: plateau-train {context.invoked_subcommand} ... {flag} ...",
            )


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"plateau-train {version('plateau-train')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version", callback=_print_version, is_eager=True),
]


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
@_takes(*ALL)
def bare(resolved: Resolved, version: Version = False) -> None:
    """Train a network with reduce-on-plateau, and show when the rate drops and why.

    Without a command it trains, as the command train does.
    """
    del version
    _train(resolved)


@app.command(epilog=EXAMPLES)
@_takes(*ALL)
def train(resolved: Resolved) -> None:
    """Train a network, print every epoch, and leave a run folder with a plot."""
    _train(resolved)


def _train(resolved: Resolved) -> None:
    from plateau_train.report.console import Report
    from plateau_train.training import setup

    setup.start(resolved, Report(quiet=resolved.settings.run.quiet))


# Where the folder is and what it is called is the run's own.
@app.command()
@_takes(*(key for key in ALL if key not in ("runs_dir", "name")))
def resume(
    resolved: Resolved,
    run: RunArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Verify the run's files, and change nothing")
    ] = False,
) -> None:
    """Continue a run exactly where it stopped; with more --epochs, further than planned.

    Takes the settings of the training so that it can say which of them a run cannot change.
    """
    from plateau_train.commands import sweep
    from plateau_train.report.console import Report
    from plateau_train.training import setup

    room = sweep if sweep.is_sweep(run) else setup
    if check:
        for line in room.check(run, resolved):
            typer.echo(line)
        return
    room.resume(run, resolved, Report(quiet=resolved.settings.run.quiet))


@app.command()
@_takes(
    *(key for key in ALL if key not in {knob.key for knob in SETTINGS if knob.table == "cluster"}),
    resolve=config.resolve_sweep,
)
def sweep(
    plan: config.Sweep,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of the last epoch to sort by, such as test-loss "
            "[dim]\\[default: the accuracy on held-out images, else on the test images][/dim]"
        ),
    ] = None,
) -> None:
    """Train every combination of settings that have several values, each with all --seeds.

    Values are separated by commas, those of --hidden-sizes by semicolons.

    A sweep that was stopped goes on with plateau-train resume.
    """
    from plateau_train.commands import sweep
    from plateau_train.report.console import Report

    sweep.start(plan, metric, Report(quiet=plan.cells[0].settings.run.quiet))


@app.command()
def plot(
    run: RunArgument,
    output: Annotated[Path | None, _picture("plot.png")] = None,
    replica: Annotated[int | None, _replica("all are drawn")] = None,
) -> None:
    """Draw the five panels of a run again."""
    from plateau_train.plots.panels import plot_run

    typer.echo(plot_run(run, output, replica))


@app.command("compare")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more", metavar="RUN...")],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the five panels with all runs into this PNG, SVG or PDF file",
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            help="Report the first epoch that reaches this test accuracy "
            "[dim]\\[default: the highest that every seed reaches][/dim]",
            metavar="ACCURACY",
        ),
    ] = None,
) -> None:
    """Compare runs, with 95 % confidence intervals.

    Prints the results of each run, the differences from the first one, and the settings that
    differ.
    """
    from plateau_train.commands import compare
    from plateau_train.report.console import configure_logging

    configure_logging()
    compare.print_comparison(compare.compare(runs, level=level, picture=picture))


@app.command()
@_takes("runs_dir")
def runs(resolved: Resolved) -> None:
    """List the runs, the newest last: epochs, accuracies and state of each.

    The accuracies are those on the images of the split beside them, the best one at its epoch.
    States: running, done, failed, stopped (plateau-train resume continues it), damaged.
    """
    from plateau_train.commands import runs
    from plateau_train.report.console import configure_logging

    configure_logging()
    runs.print_runs(runs.list_runs(resolved.settings.run.runs_dir.expanduser()))


@app.command()
@_takes("data_dir", "cache_dir")
def evaluate(
    resolved: Resolved,
    run: RunArgument,
    checkpoint: Annotated[
        str,
        typer.Option(
            help="Which checkpoint: best, last (the newest that is sound), or an epoch's number",
            metavar="best|last|N",
        ),
    ] = "best",
    replica: Annotated[int | None, _replica("the best is scored")] = None,
    output: Annotated[Path | None, _picture("confusion.png")] = None,
) -> None:
    """Score a checkpoint again: loss and accuracy, each class, the confusion matrix.

    Uses the run's own data: the test images, and those that were held out for validation.
    """
    from plateau_train.commands import evaluate
    from plateau_train.report.console import configure_logging

    configure_logging()
    evaluation = evaluate.evaluate_run(
        run, resolved, which=checkpoint, replica=replica, output=output
    )
    evaluate.print_evaluation(evaluation)


SCHEDULE_EXAMPLES = """\
[bold]Examples[/bold]

plateau-train schedule --values 1,1,1,0.5,0.9,0.9 --patience 2 --cooldown 2

plateau-train schedule losses.csv --column val_loss --patience 3 --compare torch,keras

plateau-train schedule runs/latest --patience 3 --factor 0.3 --plot replay.png

plateau-train schedule --from-torch patience=10,threshold=1e-3
"""


@app.command(epilog=SCHEDULE_EXAMPLES)
# The mode is judged together with the run's other settings.
@_takes(
    *({knob.key for knob in SETTINGS if knob.table == "plateau"} - {"mode"} | {"learning_rate"})
)
def schedule(
    resolved: Resolved,
    source: Annotated[
        str | None,
        typer.Argument(
            help="CSV or TSV file, - for standard input, or a run folder", metavar="SOURCE"
        ),
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="The values themselves, separated by commas", metavar="LIST")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of the file, by its name", metavar="NAME")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Metric of the run, if not the one that its rule observed", metavar="MODE"
        ),
    ] = None,
    replica: Annotated[int | None, _replica("there must be a single one")] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Step other libraries' rules with the same numbers beside it: optax, torch, keras",
            metavar="LIBRARIES",
        ),
    ] = None,
    from_torch: Annotated[
        str | None,
        typer.Option(
            help="Translate PyTorch's ReduceLROnPlateau, such as patience=10,threshold=1e-3, "
            "and step it if there are values; what is not given has its default",
            metavar="PARAMETERS",
        ),
    ] = None,
    from_keras: Annotated[
        str | None,
        typer.Option(
            help="The same for that of Keras, such as patience=10,min_delta=1e-4",
            metavar="PARAMETERS",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object a value")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw values and scale into a PNG, SVG or PDF file", metavar="FILE"),
    ] = None,
) -> None:
    """Step the plateau rule over values, and show when it would lower the rate and why.

    Over a run the settings are the run's own, those that are given outrank them; elsewhere an
    observation is one value. What follows the first drop that did not happen is counterfactual.
    """
    from plateau_train.commands import schedule as room
    from plateau_train.report.console import Report

    asked = room.Asked(source, values, column, mode, replica, compare, from_torch, from_keras, plot)
    for line in room.answer(resolved, asked, Report(), wants_json=json):
        typer.echo(line)


@app.command("config")
@_takes(*ALL)
def show_config(
    resolved: Resolved,
    describe: Annotated[
        bool, typer.Option("--describe", help="Comment each value with its meaning, not its origin")
    ] = False,
) -> None:
    """Print the resolved settings as TOML, and where each value came from."""
    from plateau_train.config.toml import to_toml

    typer.echo(to_toml(*resolved, describe=describe), nl=False)


@data_app.command()
@_takes("dataset", "data_dir")
def prepare(
    resolved: Resolved,
    manual_dir: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Folder with the set's original files, whose checksums are verified; "
            "without it they are downloaded",
        ),
    ] = None,
) -> None:
    """Download a data set, or take its original files from a folder, and prepare it."""
    from plateau_train import data
    from plateau_train.report.console import Report

    typer.echo(data.prepare(resolved.settings.data, manual_dir, say=Report().say))


@data_app.command()
@_takes("dataset", "data_dir", "cache_dir")
def info(resolved: Resolved) -> None:
    """Describe a prepared data set: images, classes, pixels."""
    from plateau_train import data
    from plateau_train.report.console import Report

    for name, text in data.describe(resolved.settings.data, say=Report().say).items():
        typer.echo(f"{name:<10} {text}")
