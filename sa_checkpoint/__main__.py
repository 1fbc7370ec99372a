"""`python -m sa_checkpoint`, and the command `sa-checkpoint`: what is in `cli`, if typer is installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or say how to install what it needs."""
    try:
        from sa_checkpoint.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit('The command needs typer, which is not installed. Install it with: pip install "sa-checkpoint[cli]"')
    app(prog_name="sa-checkpoint")


if __name__ == "__main__":
    main()
