"""Training steps as CUDA graphs: when they can be, when one is captured, and when it is launched."""

import inspect
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from nftk.modules import NFTKMLP
from nftk.training.batches import TensorBatches
from nftk.training.meter import Meter
from nftk.training.step import Active, StaticSteps

if TYPE_CHECKING:
    from nftk.training.run import Run

# eager steps with the same settings before a capture; three, as in torch's notes on CUDA graphs, so that libraries
# and optimizers have made what they make at first use
WARM_UP = 3
# graphs alive at a time, one for each phase of the alternating schedule; each has the memory of a step
KEPT = 2

# the allocator goes on asking a graph whose capture failed, so such a one must never be freed
_failed: list[Any] = []


def why_not(run: "Run", *, sure: bool = False) -> str | None:
    """Say why the steps of a run are not to be CUDA graphs, or None."""
    if run.device.type != "cuda":
        return f"the device is {run.device.type}"
    if not isinstance(run.train, TensorBatches):
        return "train is no pair of tensors"
    optimizers = [o for o in (run.optimizer, run.optimizer_omega) if o is not None]
    for optimizer in optimizers:
        capturable = type(optimizer) is SGD or all(group.get("capturable") for group in optimizer.param_groups)
        if not capturable:
            return f"an optimizer, {type(optimizer).__name__}, is made without capturable=True"
    # a replay runs no Python; nftk's and torch's does the same at every step, of other code only the caller can be sure
    if sure:
        return None
    parts: list[Any] = [run.loss, run.constraint, *optimizers, *run.model.modules()]
    if isinstance(run.model, NFTKMLP):
        parts += [phi.function for phi in run.model._plan.activations]
    for part in parts:
        if _is_own(part):
            name = getattr(part, "__name__", type(part).__name__)
            return f"{name} is code of your own, of which a graph runs the Python only once"
    if any(_has_hooks(part) for part in (*parts, *run.model.parameters())):
        return "there are hooks, of which a graph runs the Python only once"
    return None


def graphs_for(run: "Run", wanted: bool | None) -> "StepGraphs | None":
    """Make what runs the steps of a run as graphs; None where they are not to be any, ValueError where they cannot."""
    reason = why_not(run, sure=wanted is True)
    if wanted is False or (wanted is None and reason is not None):
        return None
    if reason is not None:
        raise ValueError(f"nftk.fit: cuda_graph must be None or False where {reason}, got True")
    assert isinstance(run.train, TensorBatches)
    meter = Meter(run.device, 0, len(run.train), "")
    meter.at_once = False
    return StepGraphs(StaticSteps(run.train, meter, run.step), run.model, Cuda(run.device), required=wanted is True)


def _is_own(part: Any) -> bool:
    """Whether the code behind a module, an object or a function is the caller's own."""
    home = getattr(part if inspect.isroutine(part) else type(part), "__module__", None)
    # functions written in C need not have one; torch.compile wraps code of any origin
    if part is None or home is None:
        return False
    return home.split(".")[0] not in ("torch", "nftk") or home.startswith("torch._dynamo")


def _has_hooks(part: Any) -> bool:
    names = [
        "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
        "_post_accumulate_grad_hooks", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks",
    ]  # fmt: skip
    return any(getattr(part, name, None) for name in names)


class Cuda:
    """What graphs need of torch.cuda, in one place, so that tests without a GPU can stand in for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Run the block on a stream of its own, between the work before and after it, as a capture has to be."""
        before = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(before)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            before.wait_stream(self.stream)

    def waits(self, step: Callable[[], None]) -> bool:
        """Run a step, and say whether it made the host wait for the device; a capture of it would then fail."""
        mode = torch.cuda.get_sync_debug_mode()
        if mode:  # the caller is watching for the same thing
            step()
            return False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        return any("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record a step without running it; returns what runs it."""
        # a capture takes the default generator along, and a replay reads its seed and offset, so the epoch's
        # torch.cuda.manual_seed rules dropout in a graph too (pytorch/pytorch#84967)
        graph = torch.cuda.CUDAGraph()
        try:
            # torch.cuda.graph does the same after making the host wait and emptying the cache
            graph.capture_begin()
            step()
            graph.capture_end()
        except BaseException:
            _failed.append(graph)
            with suppress(RuntimeError):
                graph.capture_end()
            # torch leaves the generator believing that it is captured, and dropout would raise
            index = torch.cuda.current_device()
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        return graph.replay


class _Captured:
    """A graph, and the gradients that it writes."""

    def __init__(self, replay: Callable[[], None], parameters: list[nn.Parameter]) -> None:
        self.replay = replay
        self.gradients = [(p, p.grad) for p in parameters]

    def show_gradients(self) -> None:
        """Let ``p.grad`` be what a replay writes; an eager step before it has left its own there."""
        for p, grad in self.gradients:
            p.grad = grad


class StepGraphs:
    """Runs epochs step by step, each full batch from a graph as soon as there is one for the settings of the moment.

    Learning rates and all other numbers of an optimizer are part of a graph, so a graph holds for one set of them, and
    is captured after :data:`WARM_UP` steps in a row with the same ones. Those steps are real ones, and a capture runs
    nothing, so none is lost or done twice.
    """

    def __init__(self, steps: StaticSteps, model: nn.Module, cuda: Cuda, *, required: bool) -> None:
        self.steps, self.cuda, self.required = steps, cuda, required
        self.model, self.parameters = model, list(model.parameters())
        self.kept: dict[Hashable, _Captured] = {}
        self.given_up = False
        self.last: Hashable = None
        self.alike = 0
        self.shown: _Captured | None = None

    def epoch(
        self, number: int, advice: str, active: Active, on_step: Callable[[int, int, int], None] | None
    ) -> tuple[float, float | None]:
        """Train for one epoch; returns its mean loss and accuracy."""
        full = len(self.steps.full)
        total = len(self.steps.data)
        with self.cuda.side_stream():
            self.steps.start(number, advice)
            # on_epoch may have changed a dropout or the like; once an epoch, since it is slow
            form = repr(self.model)
            settings = form, _settings(active, self.parameters)
            self.shown = None
            for step in range(1, total + 1):
                if step <= full:
                    self._run_full(active, settings)
                else:
                    self.steps.run_short(active)
                if on_step is not None:
                    on_step(number, step, total)
                    settings = form, _settings(active, self.parameters)
            return self.steps.read()

    def _run_full(self, active: Active, settings: Hashable) -> None:
        step = partial(self.steps.run_full, active)
        self.alike = self.alike + 1 if settings == self.last else 1
        self.last = settings
        captured = self.kept.get(settings)
        if captured is None and self.alike > WARM_UP and not self.given_up:
            captured = self._capture(settings, step)
        if captured is not None:
            if captured is not self.shown:
                captured.show_gradients()
                self.shown = captured
            captured.replay()
            return
        self.shown = None
        if self.alike < WARM_UP or self.given_up:
            step()
        elif self.cuda.waits(step):
            self._give_up("it makes the host wait for the device", None)

    def _capture(self, settings: Hashable, step: Callable[[], None]) -> _Captured | None:
        while len(self.kept) >= KEPT:
            self.kept.pop(next(iter(self.kept)))
        try:
            replay = self.cuda.capture(step)
        except RuntimeError as error:
            self._give_up(f"capturing it failed: {(str(error) or repr(error)).splitlines()[0]}", error)
            return None
        self.kept[settings] = _Captured(replay, self.parameters)
        return self.kept[settings]

    def _give_up(self, reason: str, error: RuntimeError | None) -> None:
        self.given_up = True
        self.kept.clear()
        if self.required:
            raise RuntimeError(
                f"nftk.fit: cuda_graph must be None or False for this step, got True: {reason}"
            ) from error
        warnings.warn(f"nftk.fit: training goes on without a CUDA graph of its step, since {reason}", stacklevel=2)


def _settings(active: Active, parameters: list[nn.Parameter]) -> Hashable:
    """All that a graph holds fixed and that may change between two steps."""
    numbers = tuple(
        _constant(value)
        for optimizer in active
        for group in optimizer.param_groups
        for name, value in group.items()
        if name not in ("params", "param_names")
    )
    # the phase of the alternating schedule shows in what requires a gradient
    places = tuple((p.data_ptr(), p.requires_grad) for p in parameters)
    return numbers, places


def _constant(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        # on the device a graph reads it anew at each replay, on the CPU its value is part of the graph
        return repr(value.tolist()) if value.device.type == "cpu" else value.data_ptr()
    return value if isinstance(value, Hashable) else repr(value)
