"""Train the networks of the experiments, side by side, each once: what has been trained is found again."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

import nftk
from nftk._files import write_text
from nftk.data import DataSplit, Standardizer, load_data
from nftk.experiments.held_zeros import HeldZerosSGD
from nftk.experiments.recipe import Recipe
from nftk.experiments.relu_omega import ReluOmegaSGD, draw
from nftk.modules.plain_mlp import plain_mlp
from nftk.training import ProximalSGD

RESULT, MODEL, CHECKPOINT = "result.json", "model.safetensors", "checkpoint.pt"
# of every subset: the same examples whatever the seed of the network
SUBSET_SEED = 20211


@dataclasses.dataclass(frozen=True)
class Place:
    """Where networks are kept, and where data are found."""

    runs: Path
    data_dir: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """Standardised data as a recipe takes them."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    split: DataSplit
    standardizer: Standardizer


@functools.lru_cache(maxsize=2)
def inputs(data: str, data_dir: str | None, train_limit: int, test_limit: int, held_out: int) -> Inputs:
    """Load, cut and standardise; with held_out, the training examples held out stand where the test set would."""
    split = load_data(data, data_dir)
    order = torch.randperm(len(split.x_train), generator=torch.Generator().manual_seed(SUBSET_SEED))
    left_out, kept = order[:held_out], order[held_out:].sort().values
    x, y = split.x_train[kept], split.y_train[kept]
    x_test, y_test = split.x_test, split.y_test
    if held_out:
        x_test, y_test = split.x_train[left_out], split.y_train[left_out]
    x, y, x_test, y_test = (
        _first(x, train_limit),
        _first(y, train_limit),
        _first(x_test, test_limit),
        _first(y_test, test_limit),
    )
    standardizer = Standardizer.fit(x, split.standardize)
    pairs = (standardizer.transform(x), y), (standardizer.transform(x_test), y_test)
    return Inputs(*pairs, split, standardizer)


def _first(values: Tensor, limit: int) -> Tensor:
    """A fixed draw of so many rows, or all."""
    if not limit or limit >= len(values):
        return values
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(SUBSET_SEED))
    return values[order[:limit]]


@functools.lru_cache(maxsize=4)
def checksum(data: str, data_dir: str | None) -> str:
    """Of a data set as it was loaded, whatever its files are."""
    split, total = load_data(data, data_dir), hashlib.sha256()
    for part in (split.x_train, split.y_train, split.x_test, split.y_test):
        total.update(part.contiguous().numpy().data)
    return total.hexdigest()


def inputs_of(recipe: Recipe, place: Place) -> Inputs:
    """The data of a recipe."""
    return inputs(recipe.data, place.data_dir, recipe.train_limit, recipe.test_limit, recipe.held_out)


def train(recipe: Recipe, place: Place) -> dict[str, Any]:
    """Train one network unless it is there, and return its result; after a kill, go on from the last whole epoch."""
    folder = place.runs / recipe.name()
    if (found := result(recipe, place)) is not None:
        return found
    start = None
    if recipe.after is not None:
        train(recipe.after, place)
        start = load(recipe.after, place)
    data = inputs_of(recipe, place)
    folder.mkdir(parents=True, exist_ok=True)
    model, options = _build(recipe, data, start)
    zeros_at_start = None
    if isinstance(model, nftk.NFTKMLP):
        zeros_at_start = (model.omega <= 0).nonzero().tolist()
    history = nftk.fit(
        model,
        data.train,
        data.test,
        loss=recipe.loss,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        lr_omega=recipe.lr_omega,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
        checkpoint=folder / CHECKPOINT,
        resume=True,
        **options,
    )
    found = {
        "recipe": recipe.to_dict(),
        "data": checksum(recipe.data, place.data_dir),
        "history": [record.to_dict() for record in history],
        "test_accuracy": history[-1].test_accuracy,
        "test_loss": history[-1].test_loss,
        "seconds": sum(history.column("seconds")),
        "omega": None,
        "zeros_at_start": zeros_at_start,
        **_without_duplicates(model, data),
        "versions": {"nftk": nftk.__version__, "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
    }
    if isinstance(model, nftk.NFTKMLP):
        found["omega"] = model.omega.detach().tolist()
        model.save(folder / MODEL)
    write_text(folder / RESULT, json.dumps(found) + "\n")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return found


def _build(recipe: Recipe, data: Inputs, start: nftk.NFTKMLP | None) -> tuple[nn.Module, dict[str, Any]]:
    """A network before its first step, and what fit takes beside the usual."""
    m, d = data.split.in_features, data.split.classes
    torch.manual_seed(recipe.seed)
    # None is 1 / L, the module's own default
    starts: dict[float | str, Tensor | None] = {"xavier": draw(d, recipe.depth, recipe.seed), "uniform": None}
    omega: Any = starts.get(recipe.omega_start, recipe.omega_start)
    model = nftk.NFTKMLP(m, [recipe.width] * recipe.depth, d, omega_init=omega, constraint=recipe.constraint)
    if recipe.model == "mlp":
        torch.manual_seed(recipe.seed)
        return plain_mlp(model), {}
    if start is not None:
        model.load_state_dict(start.state_dict())
    options: dict[str, Any] = {}
    decay, lr = recipe.weight_decay, recipe.lr_omega
    if recipe.omega_form == "relu":
        options["optimizer_omega"] = functools.partial(ReluOmegaSGD, lr=lr, weight_decay=decay)
    elif recipe.omega_form == "held":
        options["optimizer_omega"] = functools.partial(HeldZerosSGD, lr=lr, weight_decay=decay)
    elif recipe.l1 or recipe.group:
        options["optimizer_omega"] = functools.partial(
            ProximalSGD, lr=lr, weight_decay=decay, l1=recipe.l1, group=recipe.group
        )
    else:
        options["optimizer_omega"] = functools.partial(SGD, lr=lr, weight_decay=decay, fused=True)
        model.project_()
    return model, options


def _without_duplicates(model: nn.Module, data: Inputs) -> dict[str, Any]:
    """Accuracy on the test examples that are in no training set, where the data say which are."""
    seen = getattr(data.split, "test_duplicates", None)
    if seen is None or not len(seen) or len(data.test[0]) != len(data.split.x_test):
        return {}
    kept = torch.ones(len(data.test[0]), dtype=torch.bool)
    kept[seen] = False
    accuracy = nftk.evaluate(model, (data.test[0][kept], data.test[1][kept])).accuracy
    return {"test_accuracy_without_duplicates": accuracy, "duplicates": int(len(seen))}


def result(recipe: Recipe, place: Place) -> dict[str, Any] | None:
    """What training left of a recipe, or None.

    Args:
        recipe: The recipe.
        place: Where networks are kept.

    Returns:
        The same as :func:`train`; None where nothing whole is left.

    Raises:
        ValueError: If it was trained on other data than those that are there now.
    """
    folder = place.runs / recipe.name()
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    whole = isinstance(found, dict) and found.keys() >= {"data", "history", "test_accuracy", "omega", "seconds"}
    if not whole or (recipe.model == "nftk" and not (folder / MODEL).exists()):
        # not ours, or cut off by a full disk: trained anew
        shutil.rmtree(folder)
        return None
    if found["data"] != checksum(recipe.data, place.data_dir):
        raise ValueError(
            f"nftk: the networks in --runs must be of the data that are found now, got others in {folder}; give "
            "another folder"
        )
    kept: dict[str, Any] = found
    return kept


def load(recipe: Recipe, place: Place) -> nftk.NFTKMLP:
    """The trained network of a recipe."""
    path = place.runs / recipe.name() / MODEL
    try:
        return nftk.NFTKMLP.load(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove {path.parent}, and the same command trains it again") from None


def train_all(
    recipes: Iterable[Recipe], place: Place, *, jobs: int = 1, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Train what is not there yet, jobs at a time with one thread each, and return all results in order.

    A network of another is trained after it. Interrupted, the same call goes on where this one was.

    Returns:
        What :func:`train` returns, one a recipe.
    """
    wanted = list(dict.fromkeys(recipes))
    missing = {recipe for one in wanted for recipe in _chain(one) if result(recipe, place) is None}
    started, whole, behind = time.monotonic(), sum(map(_work, missing)), 0.0
    for done, (recipe, found) in enumerate(_trained(missing, place, jobs), 1):
        behind += _work(recipe)
        left = (time.monotonic() - started) * (whole / behind - 1)
        ahead = f"; {_minutes(left)} left" if done < len(missing) else ""
        say(f"{done} of {len(missing)}: {recipe.describe()}: {_said(found)}{ahead}")
    results = [result(recipe, place) for recipe in wanted]
    assert all(found is not None for found in results)
    return [found for found in results if found is not None]


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 60 else "less than a minute"


def _chain(recipe: Recipe | None) -> Iterator[Recipe]:
    while recipe is not None:
        yield recipe
        recipe = recipe.after


def _trained(missing: set[Recipe], place: Place, jobs: int) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    # long ones first, so that the last core is not left with one
    waiting: Sequence[Recipe] = sorted(missing, key=lambda r: (-_work(r), r.name()))
    if jobs == 1:
        yield from _in_turn(waiting, place)
        return
    if not waiting:
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        running: dict[Future[dict[str, Any]], Recipe] = {}
        try:
            while waiting or running:
                blocked = {*waiting, *running.values()}
                for recipe in [r for r in waiting if r.after not in blocked][: jobs - len(running)]:
                    running[pool.submit(train, recipe, place)] = recipe
                    waiting = [r for r in waiting if r is not recipe]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _work(recipe: Recipe) -> float:
    """Something that a network's training time goes with."""
    examples = recipe.train_limit or {"mnist": 60_000, "imdb": 25_000}.get(recipe.data, 10_000)
    # a step costs as much again as the products of one example with some 60 others
    return examples * recipe.epochs * recipe.depth * recipe.width**2 * (1 + 60 / recipe.batch_size)


def _in_turn(waiting: Sequence[Recipe], place: Place) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Without other processes."""
    threads = torch.get_num_threads()
    _one_thread()
    try:
        for recipe in waiting:
            for one in reversed(list(_chain(recipe))):
                if result(one, place) is None:
                    yield one, train(one, place)
    finally:
        torch.set_num_threads(threads)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _said(found: dict[str, Any]) -> str:
    accuracy = found["test_accuracy"]
    return f"test accuracy {100 * accuracy:.2f} %, {found['seconds']:.0f} s"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
