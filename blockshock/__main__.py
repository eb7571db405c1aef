"""The command line: ``python -m blockshock``."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockshock.errors import ExtraMissing, InputError
from blockshock.registry import not_negative

# What a command takes is imported when it runs: to ask for help must not take longer than to read it.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that the arguments name; return its exit status."""
    if sys.stdout is None:  # closed by who called: nobody reads it
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        _say_no_more()
        return 0
    except ExtraMissing as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITTEN:
            raise
        _say_no_more()
        print(f"cannot write the output: {error.strerror}", file=sys.stderr)
        return 1


UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why a stream takes no more, where whoever reads it is not gone: the disk that it is redirected to is full, say."""


def _run(arguments: Sequence[str] | None) -> int:
    try:
        chosen = parser().parse_args(arguments)
        status: int = chosen.run(chosen)
        return status
    finally:
        sys.stdout.flush()  # what cannot be written shows here, not when Python ends


def _say_no_more() -> None:
    """What is still to be flushed when Python ends goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Of the command line, with all its commands."""
    description = "What Block-Shock does beside its tests, which run with pytest."
    found = argparse.ArgumentParser(prog="python -m blockshock", description=description)
    commands = found.add_subparsers(title="commands", dest="command", metavar="command", required=True)
    commands.add_parser(
        "doctor",
        help="say what this machine can run, and what to do about the rest",
        description="Say what this machine can run, and what to do about the rest. "
        "The exit status is 0 if the main job (tox run -e bench) would run here, else 1.",
    ).set_defaults(run=lambda _: importlib.import_module("blockshock.doctor").main())
    _add_report(commands)
    _add_recover(commands)
    return found


def _add_report(commands: Any) -> None:
    about = "Say what saved runs found: the answer, tables and plots of times, memory, accuracy and verdicts."
    status = (
        "The exit status is 0; 1 if no run could be read, a result of the run is WRONG (of several runs: in one after "
        "the first), or --fail-if-slower says so; 2 for a wrong option, or tables that a run has none of."
    )
    parser = commands.add_parser("report", help="say what saved runs found", description=about, epilog=status)
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=_path,
        nargs="*",
        help="saved runs, .json or .json.gz, or folders with the parts of one, measured on one machine; the latest run "
        "if none is named; two or more are compared with the first",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--tables",
        metavar="NAME",
        nargs="*",
        help="print tables in place of the answer: those of a part (forward, training, verdicts, accuracy, …), or all. "
        "Runs may follow",
    )
    shown.add_argument(
        "--format",
        choices=["terminal", "md", "csv", "json"],
        default="terminal",
        help="md: to paste into a comment; csv, json: every result as a row, for a program",
    )
    written = "also write FOLDER/report.html, every table as CSV, and every plot as SVG"
    parser.add_argument("--to", metavar="FOLDER", type=_path, help=written)
    parser.add_argument(
        "--fail-if-slower",
        metavar="PERCENT",
        type=_share,
        help="of two runs or more: exit with 1 if a benchmark is slower than in the first run by more than "
        "that (3%%, say), and all of its interval is; if one is no longer there, or was measured in another way",
    )
    parser.add_argument(
        "--most-loss",
        metavar="LOSS",
        type=_loss,
        help="of each batch size the answer names the fastest row that loses at most that: of a layer the relative "
        "error of its output; of a network with trained weights 1 − cosine of its embeddings, or of a language model "
        "the bits per byte that it adds. Default 0.1",
    )
    parser.set_defaults(run=_report)


def _path(text: str) -> Path:
    """An empty one, from an unset variable of a script say, is not this folder."""
    if text:
        return Path(text)
    raise argparse.ArgumentTypeError("takes a path, got an empty one: this folder is .")


def _share(text: str) -> float:
    """``3%`` as 0.03."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text):
        return float(found[1]) / 100
    raise argparse.ArgumentTypeError(f"takes a percentage such as 3% or 0.5%, got {text!r}")


def _loss(text: str) -> float:
    try:
        return not_negative("it", text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_recover(commands: Any) -> None:
    about = "Turn the journal of a session that died into a saved run. `pytest --resume` goes on with it instead."
    parser = commands.add_parser("recover", help="save what a session that died had measured", description=about)
    parser.add_argument(
        "journal",
        metavar="JOURNAL",
        type=_path,
        nargs="?",
        help="its folder; the last unfinished one below benchmark_results if none is named",
    )
    parser.set_defaults(run=_recover)


def _recover(chosen: argparse.Namespace) -> int:
    journal = importlib.import_module("blockshock.saved.journal")
    recovering = importlib.import_module("blockshock.saved.recovering")
    try:
        (folder, *others), passed_over = ([chosen.journal], []) if chosen.journal else journal.unfinished_below()
        journal.read_session(folder)
        runs = recovering.is_running(folder)
        before = recovering.recovered(folder)
        path = before or recovering.recover(folder)
    except (journal.NoJournal, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'Saved before, and nothing came since' if before else 'Saved'}: {path}")
    if runs:
        print("Its session still runs: this is what it has so far")
    elif (folder / journal.FINISHED).exists():
        print("Its session came to its end by itself" + (", and its run was saved" if before else ""))
    for line in passed_over:
        print(line)
    for other in others:
        print(f"Unfinished too: python -m blockshock recover {shlex.quote(str(other))}")
    return 0


def _report(chosen: argparse.Namespace) -> int:
    # A plain install has no rich.
    importlib.import_module("blockshock.doctor.extras").need(
        "report", "report", *(["rich"] if chosen.to is None else [])
    )
    command = importlib.import_module("blockshock.report.command")
    runs, tables = chosen.runs, None
    if chosen.tables is not None:
        tables, behind = command.tables_of(chosen.tables)
        runs = [*runs, *behind]
    status: int = command.report(runs, chosen.format, tables, chosen.to, chosen.fail_if_slower, chosen.most_loss)
    return status


if __name__ == "__main__":
    sys.exit(main())
