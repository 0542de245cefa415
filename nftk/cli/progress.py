"""Progress of long work: a bar with an estimate on a terminal, a line an epoch on a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from nftk.training import EpochRecord


class Progress:
    """Reports to standard error; silent when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True)
        self.visible = self.console.is_terminal and not quiet
        self.quiet = quiet
        self.bar: Bar | None = None
        self.name, self.epochs = "", 0

    @contextmanager
    def run(self, name: str, epochs: int) -> Iterator[None]:
        """Show one training run while the block lasts."""
        self.name, self.epochs = name, epochs
        if not self.visible:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
        )
        with Bar(*columns, console=self.console) as self.bar:
            self.bar.add_task(name, total=epochs, last="")
            yield
        self.bar = None

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Take note of one step of training."""
        if self.bar is not None and steps:
            self.bar.update(self.bar.task_ids[0], completed=round(epoch - 1 + step / steps, 2))

    def line(self, text: str) -> None:
        """Say one line, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def epoch(self, record: EpochRecord) -> None:
        """Take note of one epoch."""
        accuracy = "" if record.test_accuracy is None else f", test accuracy {record.test_accuracy:.4f}"
        zeros = "" if record.zeros is None else f", zeros in Omega {record.zeros}"
        text = f"loss {record.loss:.4f}{accuracy}{zeros}"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=record.epoch, last=text)
        elif not self.quiet:
            print(f"{self.name} epoch {record.epoch} of {self.epochs}: {text}", file=sys.stderr, flush=True)
