"""nftk ridge: kernel ridge regression on layer kernels, and Omega learned on them."""

import dataclasses
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nftk
from nftk._checks import check_integer
from nftk._files import replacing, write_text
from nftk._optional import require
from nftk.cli.runs import load_run
from nftk.cli.settings import SettingsError
from nftk.cli.train import InterruptedRun
from nftk.data import DataSplit, Standardizer, load_data
from nftk.regression.kernel_estimator import KernelEstimator
from nftk.tangent import LayerKernels, alignment, effective_rank
from nftk.tangent.plan import free_bytes
from nftk.tangent.progress import Line

FILES = ("omega.png", "summary.json")
# bytes of kernels between test and training examples at a time
TEST_BYTES = 512 << 20
# matrices of n x n in float64 beside those of the layers: to solve with, or to decompose
SOLVING, DECOMPOSING = 3, 6


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command."""

    data: str
    data_dir: str | None
    kernel: str
    run: Path | None
    depth: int
    width: int
    activation: str
    ridge: str
    learn_omega: bool
    objective: str
    constraint: str
    normalize: str
    per_class: bool
    each_depth: bool
    limit: int | None
    seed: int
    threads: int | None
    out: Path | None
    overwrite: bool
    quiet: bool
    given: frozenset[str]  # which of them the user wrote


@dataclasses.dataclass
class Problem:
    """Data and where its kernels come from."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: list[str]
    name: str
    model: nftk.NFTKMLP | None
    request: Request

    @property
    def layers(self) -> int:
        """L."""
        return self.request.depth if self.model is None else len(self.model.hidden_features)

    def kernels(self, x1: Tensor, x2: Tensor | None, what: str = "") -> LayerKernels:
        """Kernels of every layer; of a finite network the mean over its outputs."""
        if self.model is None:
            settings: dict[str, Any] = {"depth": self.request.depth, "activation": self.request.activation}
            made: LayerKernels = nftk.tangent.infinite_ntk(x1, x2, **settings)
            return made
        progress = Line(what) if what and not self.request.quiet else False
        k = nftk.empirical_ntk(self.model, x1, x2, reduction="trace", progress=progress)
        # a number for all outputs, as in the limit: then each class can have weights of its own
        return dataclasses.replace(k / self.model.out_features, reduction="scalar")


def ridge(request: Request) -> dict[str, Any]:
    """Fit, learn Omega if that is asked for, evaluate on the test examples, and leave the files."""
    value = _check(request)
    if request.threads is not None:
        torch.set_num_threads(check_integer("ridge", "threads", request.threads, 1))
    problem = _problem(request)
    _check_memory(problem, decomposes=isinstance(value, str))
    started = time.monotonic()
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        try:
            _say(request, f"kernels of {problem.layers} layers, {len(problem.x)} training examples")
            k = problem.kernels(problem.x, None, "training kernel")
            result, omega = _fit(problem, k, value)
        except KeyboardInterrupt:
            raise InterruptedRun(
                "nftk: interrupted; nothing is saved before the end, the same command starts from the beginning"
            ) from None
        finally:
            said += dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
            for sentence in said if not request.quiet else ():
                print(f"nftk: warning: {sentence.removeprefix('nftk.')}", file=sys.stderr)
    result["seconds"] = time.monotonic() - started
    if said:
        result["warnings"] = said
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (request.out / name).unlink(missing_ok=True)
        if omega is not None:
            figure = nftk.plot_omega(omega, class_names=problem.class_names)
            with replacing(request.out / "omega.png") as temporary:
                figure.savefig(temporary, format="png", dpi=150)
        write_text(request.out / "summary.json", json.dumps(result, indent=2) + "\n")
    return result


def _fit(problem: Problem, k: LayerKernels, value: float | str) -> tuple[dict[str, Any], Tensor | None]:
    """All regressions, their accuracies, and Omega where it was learned."""
    request, size = problem.request, problem.layers
    scales = torch.ones(size, dtype=torch.float64)
    if request.normalize == "trace":
        scales = k.diagonal().double().mean(1)
    uniform = (1 / (size * scales)).sqrt()
    fits: dict[str, KernelEstimator] = {}
    _say(request, "ridge regression with equal weights")
    equal = nftk.KernelRidge(value, omega=uniform).fit(k, problem.y)  # type: ignore[arg-type]
    fits["uniform"] = equal
    result: dict[str, Any] = {
        "data": problem.name,
        "kernel": request.kernel,
        "depth": size,
        "training_examples": len(problem.x),
        "test_examples": len(problem.x_test),
        "classes": len(problem.class_names),
        "ridge": equal.ridge_,
    }
    omega = None
    if request.learn_omega:
        learner = nftk.MultipleKernelRidge(
            equal.ridge_,
            request.constraint,
            request.objective,  # type: ignore[arg-type]
            per_class=request.per_class,
            normalize="trace" if request.normalize == "trace" else None,
            progress=Line("learning Omega") if not request.quiet else False,
        ).fit(k, problem.y)
        omega = learner.omega
        fits["learned"] = learner
        if isinstance(value, str):
            # the ridge that suits equal weights need not suit these
            again = nftk.KernelRidge(value, omega=omega).fit(k, problem.y)  # type: ignore[arg-type]
            fits["learned"] = again
            result["ridge_learned"] = again.ridge_
        result["learning"] = {
            "objective": request.objective,
            "constraint": request.constraint,
            "start": float(learner.history_[0]),
            "end": learner.objective_,
            "iterations": learner.n_iter_,
            "converged": learner.converged_,
            "largest_gap": float(learner.gap_.max()),
            "zeros": int((omega == 0).sum()),
        }
    if request.each_depth:
        tell = Line("each depth alone") if not request.quiet else None
        for layer in range(size):
            alone = torch.zeros(size, dtype=torch.float64)
            alone[layer] = scales[layer].rsqrt()
            fits[f"depth {layer + 1}"] = nftk.KernelRidge(value, omega=alone).fit(k, problem.y)  # type: ignore[arg-type]
            if tell is not None:
                tell(layer + 1, size)
    result["alignment"] = alignment(k, problem.y, centred=True).tolist()
    result["effective_rank"] = effective_rank(k, "participation").tolist()
    scores = _evaluate(problem, fits)
    result |= {"test_accuracy": scores["learned" if request.learn_omega else "uniform"], "test_accuracy_of": scores}
    if omega is not None:
        result["omega"] = omega.tolist()
    return result, omega


def _evaluate(problem: Problem, fits: dict[str, KernelEstimator]) -> dict[str, float]:
    """Test accuracies; the kernels with the training examples are made once, some rows at a time."""
    step = max(1, TEST_BYTES // (8 * len(problem.x) * problem.layers))
    right = dict.fromkeys(fits, 0)
    done, tell = 0, Line("test examples") if not problem.request.quiet else None
    for x, y in zip(problem.x_test.split(step), problem.y_test.split(step), strict=True):
        k = problem.kernels(x, problem.x)
        for name, fitted in fits.items():
            right[name] += int((fitted.predict(k) == y).sum())
        done += len(x)
        if tell is not None:
            tell(done, len(problem.x_test))
    return {name: count / len(problem.y_test) for name, count in right.items()}


def _check(request: Request) -> float | str:
    """Refuse what cannot be, before any work; returns the ridge as the estimators take it."""
    for option, value, choices in (
        ("--kernel", request.kernel, ("infinite", "empirical")),
        ("--objective", request.objective, ("regularized", "loo")),
        ("--constraint", request.constraint, ("simplex", "l1ball", "groupsparse", "nonnegative")),
        ("--normalize", request.normalize, ("trace", "none")),
    ):
        if value not in choices:
            raise SettingsError(f"nftk: {option} must be {' or '.join(choices)}, got {value!r}")
    for option, number in (("--limit", request.limit), ("--depth", request.depth), ("--width", request.width)):
        if number is not None and number < 1:
            raise SettingsError(f"nftk: {option} must be at least 1, got {number}")
    if not 0 <= request.seed < 2**63:
        raise SettingsError(f"nftk: --seed must be at least 0 and below 2**63, got {request.seed}")
    if request.run is not None and request.kernel != "empirical":
        raise SettingsError(f"nftk: --run must go with --kernel empirical, got --kernel {request.kernel}")
    _check_given(request)
    if request.constraint == "nonnegative" and request.objective == "regularized" and request.learn_omega:
        raise SettingsError(
            "nftk: --constraint must be a bounded set for --objective regularized, got nonnegative: larger weights "
            "always lower the objective; take simplex, or --objective loo"
        )
    if request.out is not None:
        if request.out.exists() and not request.out.is_dir():
            raise SettingsError(f"nftk: --out must be a folder, got the file {request.out}")
        if request.out.is_dir() and any(request.out.iterdir()) and not request.overwrite:
            raise SettingsError(
                f"nftk: --out must be a new or empty folder, got {request.out} with files in it; name another folder, "
                "or pass --overwrite"
            )
        if request.learn_omega:
            require("matplotlib", purpose="drawing omega.png", extra="app")
        _try(request.out)
    if request.ridge in ("loo", "gcv"):
        return request.ridge
    try:
        ridge = float(request.ridge)
    except ValueError:
        ridge = -1.0
    if not 0 < ridge < float("inf"):
        raise SettingsError(f"nftk: --ridge must be a number above 0, loo or gcv, got {request.ridge!r}")
    return ridge


def _check_given(request: Request) -> None:
    """Refuse what would change nothing."""
    trained = request.run is not None
    for name, goes, rule in (
        ("width", request.kernel == "empirical", f"go with --kernel empirical, got --kernel {request.kernel}"),
        ("width", not trained, "not go with --run, whose network has its own"),
        ("depth", not trained, "not go with --run, whose network has its own"),
        ("activation", not trained, "not go with --run, whose network has its own"),
        ("objective", request.learn_omega, "go with --learn-omega"),
        ("constraint", request.learn_omega, "go with --learn-omega"),
        ("per_class", request.learn_omega, "go with --learn-omega"),
        ("overwrite", request.out is not None, "go with --out"),
    ):
        if name in request.given and not goes:
            option = "--per-class or --shared" if name == "per_class" else f"--{name}"
            raise SettingsError(f"nftk: {option} must {rule}")


def _try(out: Path) -> None:
    """Make a file in the folder, before the work that it is for, and leave nothing."""
    missing: list[Path] = []
    try:
        missing += [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SettingsError(
            f"nftk: --out must be a folder that can be written to, got {out}: {error.strerror}"
        ) from None
    finally:
        for folder in missing:
            if folder.is_dir():
                folder.rmdir()


def _problem(request: Request) -> Problem:
    """Data, standardised by its training part, of which --limit are drawn; and the network of an empirical kernel."""
    model: nftk.NFTKMLP | None = None
    if request.run is not None:
        trained = load_run(request.run, request.data or None, request.data_dir)
        split, standardizer, model = trained.data, trained.standardizer, trained.model
    else:
        split = load_data(request.data or "digits", request.data_dir, progress=not request.quiet)
        standardizer = Standardizer.fit(split.x_train, split.standardize)
        if request.kernel == "empirical":
            model = _network(request, split)
    kept = torch.arange(len(split.x_train))
    if request.limit is not None and request.limit < len(kept):
        generator = torch.Generator().manual_seed(request.seed)
        kept = torch.randperm(len(kept), generator=generator)[: request.limit]
    y = split.y_train[kept]
    missing = set(range(split.classes)) - set(y.tolist())
    if missing:
        raise SettingsError(
            f"nftk: --limit must leave examples of all {split.classes} classes, got {len(kept)} without class "
            f"{split.class_names[min(missing)]}"
        )
    x, x_test = (standardizer.transform(part) for part in (split.x_train[kept], split.x_test))
    if model is None:
        x, x_test = x.double(), x_test.double()
    return Problem(x, y, x_test, split.y_test, list(split.class_names), split.name, model, request)


def _network(request: Request, split: DataSplit) -> nftk.NFTKMLP:
    torch.manual_seed(request.seed)
    return nftk.NFTKMLP(
        split.in_features,
        [request.width] * request.depth,
        split.classes,
        activation=request.activation,
        parameterization="ntk",
    )


def _check_memory(problem: Problem, *, decomposes: bool) -> None:
    """Say so before hours of work if the kernels do not fit."""
    n, each = len(problem.x), 8 if problem.model is None else 4
    per_pair = each * problem.layers + 8 * (DECOMPOSING if decomposes else SOLVING)
    free = free_bytes(problem.x.device)
    if n * n * per_pair > free:
        most = int((free / per_pair) ** 0.5)
        raise SettingsError(
            f"nftk: --limit must be at most some {most} examples here, whose kernels of {problem.layers} layers fill "
            f"the free memory, got {n}"
        )


def _say(request: Request, text: str) -> None:
    if not request.quiet:
        print(f"nftk ridge: {text}", file=sys.stderr, flush=True)
