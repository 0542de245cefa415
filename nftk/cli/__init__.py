"""The command line: ``nftk train``, ``nftk evaluate``, ``nftk info``."""

import sys


def main() -> None:
    """Run the command line; the entry point of the ``nftk`` script."""
    from nftk._optional import require

    try:
        require("typer", purpose="the command line", extra="app")
        require("rich", purpose="the command line", extra="app")
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    from nftk.cli.app import app

    app()
