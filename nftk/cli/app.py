"""The commands and their options, for typer; the work is done in the modules beside this one."""

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import nftk
from nftk.cli import evaluate as evaluating
from nftk.cli import explain as explaining
from nftk.cli import info as informing
from nftk.cli import kernel as kerneling
from nftk.cli import report as reporting
from nftk.cli import reproduce as reproducing
from nftk.cli import ridge as ridging
from nftk.cli import train as training
from nftk.cli.progress import Progress
from nftk.cli.settings import PRESETS, Settings, SettingsError, constraint_config, hidden_features
from nftk.data.load import NAMES

app = typer.Typer(
    name="nftk",
    help="Layerwise tangent kernels: networks with a readout on every hidden layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else.")]
DataDir = Annotated[str | None, typer.Option(help="Folder with the files of --data mnist or imdb.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(nftk.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Layerwise tangent kernels: networks with a readout on every hidden layer."""


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help="digits (bundled), mnist, imdb (reviews; imdb-gpt2: by GPT-2's embeddings), a folder with the four "
            "idx files, or an .npz file."
        ),
    ] = "digits",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/ and the name of the data.")] = None,
    data_dir: DataDir = None,
    depth: Annotated[int | None, typer.Option(help="Hidden layers; default 5 for digits and imdb, else 10.")] = None,
    width: Annotated[
        str | None,
        typer.Option(
            help="Width of all hidden layers, or one a layer: 256,128,64; default 128 for digits and imdb, else 256."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data; default 40 for digits, 2 for imdb, else 10.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a step; default 25 for digits and imdb, else 50.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of theta; default 0.1 for imdb, else 0.02.")] = None,
    lr_omega: Annotated[
        float | None, typer.Option(help="Learning rate of Omega; default 0.1 for imdb, else 0.05.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty on theta and Omega.")] = 2e-6,
    proximal: Annotated[float, typer.Option(help="lambda of the paper's equation 13.")] = 0.0,
    loss: Annotated[str, typer.Option(help="cross_entropy or mse.")] = "cross_entropy",
    schedule: Annotated[str, typer.Option(help="joint or alternating.")] = "joint",
    activation: Annotated[
        str, typer.Option(help="relu, leaky_relu, gelu, silu, tanh, erf, elu, sin or identity.")
    ] = "relu",
    parameterization: Annotated[str, typer.Option(help="standard or ntk.")] = "standard",
    output_bias: Annotated[bool, typer.Option("--output-bias", help="Add a bias to the output.")] = False,
    constraint: Annotated[
        str, typer.Option(help="Set that Omega is held to: nonnegative, simplex, l1ball, groupsparse or none.")
    ] = "nonnegative",
    radius: Annotated[float | None, typer.Option(help="Size of simplex, l1ball or groupsparse.")] = None,
    max_layers: Annotated[int | None, typer.Option(help="Most layers that groupsparse leaves open.")] = None,
    standardize: Annotated[
        str, typer.Option(help="global, feature or none; auto takes global for images, else feature.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the initialisation and the shuffling.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads; default 1 for digits, which is too small for more, else torch's choice."),
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Train the plain MLP beside it.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of an interrupted run to finish; goes with --epochs and --json only.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let a run replace what --out holds.")] = False,
    as_json: Json = False,
) -> None:
    """Train an NFT-K network and leave it, its Omega and its history in a folder."""

    def work() -> dict[str, Any]:
        progress = Progress(quiet=as_json)
        if resume is not None:
            _only(context, {"resume", "epochs", "as_json"})
            settings = Settings.read(resume)
            if epochs is not None:
                settings = dataclasses.replace(settings, epochs=epochs)
            return training.train(settings, resume, progress, resume=True, overwrite=False)
        preset = PRESETS.get(data, PRESETS["other"])
        settings = Settings(
            data=data if data in NAMES else str(Path(data).resolve()),
            data_dir=None if data_dir is None else str(Path(data_dir).resolve()),
            hidden_features=hidden_features(
                width or str(preset["width"]), preset["depth"] if depth is None and "," not in (width or "") else depth
            ),
            epochs=preset["epochs"] if epochs is None else epochs,
            batch_size=preset["batch_size"] if batch_size is None else batch_size,
            lr=preset["lr"] if lr is None else lr,
            lr_omega=preset["lr_omega"] if lr_omega is None else lr_omega,
            standardize=standardize,
            activation=activation,
            parameterization=parameterization,
            output_bias=output_bias,
            loss=loss,
            schedule=schedule,
            weight_decay=weight_decay,
            proximal=proximal,
            constraint=constraint_config(constraint, radius, max_layers),
            seed=seed,
            device=device,
            threads=preset["threads"] if threads is None else threads,
            baseline=baseline,
        )
        return training.train(settings, folder, progress, resume=False, overwrite=overwrite)

    folder = resume or out or Path("runs") / Path(data).resolve().stem
    _report(_guarded(work), as_json, f"Run in {folder}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that nftk train left.")],
    data: Annotated[str | None, typer.Option(help="Other data than the run's, as for train.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained network on test data."""
    _report(_guarded(lambda: evaluating.evaluate(run, data, data_dir)), as_json, f"Evaluation of {run}")


@app.command()
def kernel(
    run: Annotated[Path, typer.Argument(help="Folder that nftk train left, or the model file in it.")],
    out: Annotated[Path, typer.Option(help="File for the kernel, as nftk.LayerKernels.load reads it.")],
    data: Annotated[str | None, typer.Option(help="Other data than the run's, as for train.")] = None,
    data_dir: DataDir = None,
    rows: Annotated[str, typer.Option(help="train or test: which examples.")] = "train",
    columns: Annotated[
        str | None, typer.Option(help="train or test: which examples with them; default: the rows with themselves.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take so many of the first examples only.")] = None,
    per: Annotated[str, typer.Option(help="layer, module or model.")] = "layer",
    reduction: Annotated[str, typer.Option(help="full, trace, diagonal or sum_logits.")] = "trace",
    normalize: Annotated[str | None, typer.Option(help="cosine or joint.")] = None,
    include_omega: Annotated[
        bool, typer.Option("--include-omega", help="Count Omega among the parameters (module, model).")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    precision: Annotated[str, typer.Option(help="highest, tf32 or bf16, on a GPU.")] = "highest",
    memory_budget: Annotated[
        int | None, typer.Option(help="MiB beside the network and its inputs; default: half of what is free.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out, and forget what was begun.")] = False,
    as_json: Json = False,
) -> None:
    """Compute the tangent kernel of a trained network into a file; the same command goes on after an interruption."""
    result = _guarded(
        lambda: kerneling.kernel(
            run,
            out,
            data=data,
            data_dir=data_dir,
            rows=rows,
            columns=columns,
            limit=limit,
            per=per,
            reduction=reduction,
            normalize=normalize,
            include_omega=include_omega,
            dtype=dtype,
            device=device,
            precision=precision,
            memory_budget=memory_budget,
            overwrite=overwrite,
            quiet=as_json,
        )
    )
    _report(result, as_json, f"Kernel in {out}")


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Folder that nftk train left.")],
    index: Annotated[int, typer.Option(help="Which test example, from 0.")] = 0,
    data: Annotated[str | None, typer.Option(help="Other data than the run's, as for train.")] = None,
    data_dir: DataDir = None,
    class_: Annotated[
        str | None, typer.Option("--class", help="The class to explain; default: the one that the network predicts.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many training examples for and against.")] = 5,
    limit: Annotated[int, typer.Option(help="Fit the surrogate to so many training examples, drawn by --seed.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of --limit and of the examples that choose the penalty.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The picture; default explain_INDEX_class_N.png in the run.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Json = False,
) -> None:
    """Explain a prediction: the training examples that speak for and against it, and through which layers."""
    result = _guarded(
        lambda: explaining.explain(
            run,
            index,
            data=data,
            data_dir=data_dir,
            class_=class_,
            top=top,
            limit=limit,
            seed=seed,
            out=out,
            overwrite=overwrite,
            progress=Progress(quiet=as_json),
        )
    )
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        explaining.show(result)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder that nftk train left.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default report.html in the run.")] = None,
    data: Annotated[str | None, typer.Option(help="Other data than the run's, as for train.")] = None,
    data_dir: DataDir = None,
    limit: Annotated[
        int, typer.Option(help="Compute importances on at most so many test examples, drawn with a fixed seed.")
    ] = 2000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a trained network: its layers, its classes, its worst errors."""
    result = _guarded(lambda: reporting.report(run, out, data, data_dir, limit=limit, overwrite=overwrite))
    _report(result, as_json, f"Report of {run}")


@app.command()
def ridge(
    context: typer.Context,
    data: Annotated[str | None, typer.Option(help="As for train; default digits, or those of --run.")] = None,
    data_dir: DataDir = None,
    kernel: Annotated[str, typer.Option(help="infinite (the limit of wide networks) or empirical.")] = "infinite",
    run: Annotated[
        Path | None, typer.Option(help="With --kernel empirical: a trained network; default: one before training.")
    ] = None,
    depth: Annotated[int, typer.Option(help="Layers, each with its kernel.")] = 10,
    width: Annotated[int, typer.Option(help="Of an empirical kernel's layers.")] = 256,
    activation: Annotated[str, typer.Option(help="As for train.")] = "relu",
    ridge: Annotated[str, typer.Option(help="A number; or loo or gcv, which choose it.")] = "loo",
    learn_omega: Annotated[bool, typer.Option("--learn-omega", help="Learn the weights of the layers.")] = False,
    objective: Annotated[str, typer.Option(help="regularized or loo: what learning makes small.")] = "regularized",
    constraint: Annotated[
        str, typer.Option(help="Set of the squared weights: simplex, l1ball, groupsparse; nonnegative for loo.")
    ] = "simplex",
    normalize: Annotated[
        str, typer.Option(help="trace: kernels of one size, so that none wins by its own; or none.")
    ] = "trace",
    per_class: Annotated[
        bool, typer.Option("--per-class/--shared", help="Weights for each class, or the same for all.")
    ] = True,
    each_depth: Annotated[bool, typer.Option("--each-depth", help="Also each layer's kernel alone.")] = False,
    limit: Annotated[int | None, typer.Option(help="So many training examples, drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Of --limit and of a network before training.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's choice.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for summary.json and omega.png; default: none.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")] = False,
    as_json: Json = False,
) -> None:
    """Fit kernel ridge regression on the kernels of all layers, and learn which layer serves which class."""
    request = ridging.Request(
        data="" if data is None else data,
        data_dir=data_dir,
        kernel=kernel,
        run=run,
        depth=depth,
        width=width,
        activation=activation,
        ridge=ridge,
        learn_omega=learn_omega,
        objective=objective,
        constraint=constraint,
        normalize=normalize,
        per_class=per_class,
        each_depth=each_depth,
        limit=limit,
        seed=seed,
        threads=threads,
        out=out,
        overwrite=overwrite,
        quiet=as_json,
        given=frozenset(_written(context)),
    )
    result = _guarded(lambda: ridging.ridge(request))
    if not as_json:
        # a matrix, which omega.png shows better
        result.pop("omega", None)
    _report(result, as_json, "Kernel ridge regression" if out is None else f"Kernel ridge regression in {out}")


@app.command()
def reproduce(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(help=f"{', '.join(reproducing.EXPERIMENTS)}; default: {', '.join(reproducing.ALL)}."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and records.")] = Path("results"),
    runs: Annotated[Path, typer.Option(help="Folder for the networks, which are trained once.")] = Path(
        "runs/reproduce"
    ),
    data_dir: Annotated[str | None, typer.Option(help="Folder with MNIST and the movie reviews.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="How many, from 0; default 5, two-digits 20, ten-digits 3; with --quick 1.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small and soon done, to see that it works.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Networks trained at a time; default: one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Reproduce the paper's experiments, and those that it leaves open; the same command goes on where it was."""
    result = _guarded(
        lambda: reproducing.reproduce(
            experiments or [],
            out=out,
            runs=runs,
            data_dir=data_dir,
            seeds=seeds,
            quick=quick,
            jobs=jobs,
            progress=Progress(quiet=as_json),
        )
    )
    _report(result, as_json, f"Experiments in {out}")


@app.command()
def info(as_json: Json = False) -> None:
    """Tell what runs here, and for what does not, why and what would mend it."""
    _report(_guarded(informing.info), as_json, "nftk")


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a command; what the user can mend ends in one sentence on standard error."""
    try:
        return work()
    except training.InterruptedRun as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C should not cut the sentence off
        _stop(str(error), 130)
    except KeyboardInterrupt:
        _stop("nftk: interrupted", 130)
    except FloatingPointError as error:
        _stop(str(error), 1)
    except (ValueError, TypeError, NotImplementedError, ImportError, RuntimeError) as error:
        # our own errors name the function; anything else is a fault of nftk and shows its traceback
        if not str(error).startswith("nftk"):
            raise
        _stop(str(error), 2)
    except OSError as error:
        _stop(f"nftk: {error.filename or 'a file'} must be readable and writable, got: {error.strerror or error}", 2)


def _stop(sentence: str, code: int) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    raise typer.Exit(code)


def _only(context: typer.Context, allowed: set[str]) -> None:
    for name in _written(context):
        if name not in allowed:
            option = "--" + name.replace("_", "-")
            raise SettingsError(f"nftk: {option} must not go with --resume, which takes the settings of the run")


def _written(context: typer.Context) -> Iterator[str]:
    """Names of the parameters that the user wrote."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            yield name


def _report(result: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    # Text, since names and values are the user's and may look like markup
    table = Table(title=Text(title), title_justify="left", show_header=False)
    for _ in range(2):
        # nothing is cut off: a checksum or a path may be wanted whole
        table.add_column(overflow="fold")
    for name, value in _rows(result):
        table.add_row(Text(name), Text(value))
    Console().print(table)


def _rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in result.items():
        if isinstance(value, dict) and "usable" in value:
            told = "no: " + value["why"] if "why" in value else " ".join(["yes", *map(str, list(value.values())[1:])])
            rows.append((prefix + name, told))
        elif isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name} ")
        elif value is not None:
            rows.append((prefix + name, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.3g}"
    if isinstance(value, list) and all(isinstance(entry, float) for entry in value):
        return ", ".join(f"{entry:.4g}" for entry in value)
    return str(value)
