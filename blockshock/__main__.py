"""The command line: ``python -m blockshock``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockshock import doctor
from blockshock.doctor.extras import need
from blockshock.errors import ExtraMissing
from blockshock.saved import journal


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
    ).set_defaults(run=lambda _: doctor.main())
    _add_report(commands)
    _add_recover(commands)
    chosen = parser.parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
    except KeyboardInterrupt:
        return 130
    except ExtraMissing as error:
        print(error, file=sys.stderr)
        return 1
    return status


def _add_report(commands: Any) -> None:
    about = "Say what saved runs found: the answer, tables and plots of times, memory, accuracy and verdicts."
    parser = commands.add_parser("report", help="say what saved runs found", description=about)
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="*",
        help="saved runs, .json or .json.gz, or folders with the parts of one; the latest run if none is named",
    )
    parser.add_argument("--format", choices=["terminal", "md"], default="terminal", help="md is for pasting")
    written = "also write FOLDER/report.html, every table as CSV, and every plot as PNG and SVG"
    parser.add_argument("--to", metavar="FOLDER", type=Path, help=written)
    parser.set_defaults(run=_report)


def _add_recover(commands: Any) -> None:
    about = "Turn the journal of a session that died into a saved run. `pytest --resume` goes on with it instead."
    parser = commands.add_parser("recover", help="save what a session that died had measured", description=about)
    parser.add_argument(
        "journal",
        metavar="JOURNAL",
        type=Path,
        nargs="?",
        help="its folder; the last unfinished one below benchmark_results if none is named",
    )
    parser.set_defaults(run=_recover)


def _recover(chosen: argparse.Namespace) -> int:
    try:
        folder, *others = [chosen.journal] if chosen.journal else journal.unfinished_below()
        path = journal.recover(folder)
    except (journal.NoJournal, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Saved: {path}")
    for other in others:
        print(f"Unfinished too: python -m blockshock recover {other}")
    return 0


def _report(chosen: argparse.Namespace) -> int:
    # Imported here, for a plain install has no rich.
    need("report", "report", *(["rich"] if chosen.to is None else []))
    command = importlib.import_module("blockshock.report.command")
    return command.report(chosen.runs, chosen.format == "md", chosen.to)


if __name__ == "__main__":
    sys.exit(main())
