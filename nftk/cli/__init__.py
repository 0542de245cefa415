"""The command line, ``nftk``."""

import signal
import sys


def main() -> None:
    """Run the command line; the entry point of the ``nftk`` script."""
    try:
        from nftk._optional import require

        try:
            require("typer", purpose="the command line", extra="app")
            require("rich", purpose="the command line", extra="app")
        except ImportError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        from nftk.cli.app import app
    except KeyboardInterrupt:
        # imports take seconds, and the commands, which end by themselves, are not yet there
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("nftk: interrupted", file=sys.stderr)
        sys.exit(130)
    app()
