"""What a person at a terminal sees of long work."""

import contextlib
from collections.abc import Callable, Iterator

from nftk._optional import require


@contextlib.contextmanager
def bar(name: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of bytes just received; a bar shows them if shown."""
    if not shown:
        yield lambda size: None
        return
    progress = require("rich.progress", purpose="a progress bar", extra="app")
    console = require("rich.console", purpose="a progress bar", extra="app").Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as shown_bar:
        task = shown_bar.add_task(name, total=total)
        yield lambda size: shown_bar.advance(task, size)


@contextlib.contextmanager
def spinner(text: str, *, shown: bool) -> Iterator[None]:
    """Show the text while the block lasts, if shown."""
    if not shown:
        yield
        return
    console = require("rich.console", purpose="a progress bar", extra="app").Console(stderr=True)
    with console.status(text):
        yield
