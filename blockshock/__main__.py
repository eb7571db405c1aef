"""The command line: ``python -m blockshock``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from blockshock import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that the arguments name; return its exit status."""
    description = "What Block-Shock does beside its tests, which run with pytest."
    parser = argparse.ArgumentParser(prog="python -m blockshock", description=description)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="command", required=True)
    commands.add_parser(
        "doctor",
        help="say what this machine can run, and what to do about the rest",
        description="Say what this machine can run, and what to do about the rest. "
        "The exit status is 0 if the main job (tox run -e bench) would run here, else 1.",
    ).set_defaults(run=doctor.main)
    run = parser.parse_args(arguments).run
    try:
        status: int = run()
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
