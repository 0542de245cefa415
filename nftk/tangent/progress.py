"""A line that tells how far a long computation is, and when it will end."""

import sys
import time


class Line:
    """Called with what is done and all there is; written over itself on a terminal, ten lines in all on a pipe."""

    def __init__(self, what: str = "kernel") -> None:
        self.what = what
        self._started = time.monotonic()
        self._told = 0

    def __call__(self, done: int, total: int) -> None:
        """Take note."""
        elapsed = time.monotonic() - self._started
        left = elapsed / max(done, 1) * (total - done)
        text = f"{self.what}: {done / max(total, 1):.0%}, {_clock(elapsed)} passed, {_clock(left)} left"
        tenth = 10 * done // max(total, 1)
        if sys.stderr.isatty():
            end = "\n" if done >= total else ""
            print(f"\r\x1b[K{text}", end=end, file=sys.stderr, flush=True)
        elif tenth > self._told:
            print(text, file=sys.stderr, flush=True)
        self._told = tenth


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
