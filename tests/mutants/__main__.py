"""``tox run -e mutants``: changes the package in one place at a time, and looks whether a test fails.

A sample of five wings' lines, the same one each time. It writes docs/mutants.md, and fails where more than a tenth of
the mutants that a CPU can see survive.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from mutant import WINGS, Mutant
from page import LEAST, PAGE, page, reason_of, reasons, record
from sample import sample
from trial import HANGS, try_all


def main() -> int:
    """Try them, say which survived, write the page."""
    parser = argparse.ArgumentParser(prog="tox run -e mutants --")
    parser.add_argument("--wings", default=",".join(WINGS), help="of which mutants are made, with commas between")
    parser.add_argument("--sample", type=int, default=200, help="how many there would be in all wings together")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many are tried at a time")
    chosen = parser.parse_args()
    each, why, started = chosen.sample // len(WINGS), reasons(), time.monotonic()
    mutants = [mutant for wing in chosen.wings.split(",") for mutant in sample(wing, each, chosen.seed)]
    tried = []
    # The last wings' tests take longest: with the short ones at the end, all jobs end together.
    for mutant, failure in try_all(mutants[::-1], chosen.jobs, lambda one: _reason(one, why) is not None):
        tried.append((mutant, failure is not None))
        number, where = f"{len(tried)}/{len(mutants)}", f"{mutant.file}:{mutant.line}"
        print(number, _outcome(mutant, failure, why), where, mutant.change, flush=True)
    text, share = page(record(tried), why)
    PAGE.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{len(tried)} mutants in {(time.monotonic() - started) / 60:.0f} minutes")
    return int(share < LEAST)


def _outcome(mutant: Mutant, failure: str | None, why: list[dict[str, str]]) -> str:
    if failure is None:
        return f"SURVIVED ({_reason(mutant, why) or 'why is not known'})"
    return f"killed, for it {HANGS}" if failure.startswith(HANGS) else "killed"


def _reason(mutant: Mutant, why: list[dict[str, str]]) -> str | None:
    return reason_of(mutant.file, mutant.text, mutant.change, why)


if __name__ == "__main__":
    sys.exit(main())
