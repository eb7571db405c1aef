"""A session on the ranks of a torchrun job: every rank runs the same tests and agrees on them, rank 0 reports."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from blockshock.plugin.settings import Settings
from blockshock.ranks import START_SECONDS, Place, RankLost, answers, join
from blockshock.ranks.torchrun import Job

LOST_SECONDS = 30.0
"""Without a sign of life of another rank. Native code that holds the interpreter lock can keep one from it for long."""
WRITING = {
    "benchmark_autosave": False,
    "benchmark_save": None,
    "benchmark_json": None,
    "benchmark_compare": None,
    "benchmark_compare_fail": None,
    "json_report": False,
    "xmlpath": None,
}
"""Options of those that write or compare files, and their values where only rank 0 does."""


RESUME = "`pytest --resume` goes on with what is left"
_BY_A_RANK = (
    "This pytest was started by a process that is itself rank {} of a torchrun job. Have every rank start it (torchrun "
    "... -m pytest ...), or unset TORCHELASTIC_RUN_ID to run it on this one alone."
)


class Silent:
    """A pytest plugin for the ranks that report and save nothing."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        for option, off in WRITING.items():
            if hasattr(config.option, option):
                setattr(config.option, option, off)
        # pytest makes its terminal reporter next, and that keeps what it is made on.
        self._stdout, self._nowhere = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
        sys.stdout = self._nowhere

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        sys.stdout = self._stdout  # what tests print is shown all the same, with -s

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        self._nowhere.close()


class Together:
    """A pytest plugin that keeps the ranks of a job in step.

    Raises:
        pytest.UsageError: the tests are to be distributed over workers of pytest-xdist as well.
    """

    def __init__(self, config: pytest.Config, place: Place, settings: Settings) -> None:
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("-n under torchrun: its ranks run the tests together, so leave out -n")
        self._settings = settings
        lost_after, alone = min(LOST_SECONDS, settings.rank_timeout), place.size > 1 and place.started_by_a_rank()
        if alone:
            print(f"{_BY_A_RANK.format(place.rank)} Waiting {lost_after:g} s for theirs", file=sys.stderr, flush=True)
        with _ended_by_loss(_BY_A_RANK.format(place.rank) if alone else RESUME):
            self.job = Job(place, lost_after, lost_after if alone else START_SECONDS)
        self._exchange = self.job.exchange

    def describe(self) -> str:
        """For the header: whose ranks these are."""
        place = self.job.place
        return f"torchrun: {place.size} ranks on {place.nodes} machine(s), rank 0 on {self._exchange.hosts[0]} reports"

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        self._check_same([item.nodeid for item in items])
        yield
        # What is left after a --resume is known to rank 0 alone, for it has the journal.
        left = set(self._everyone([item.nodeid for item in items])[0])
        dropped = [item for item in items if item.nodeid not in left]
        if dropped:
            config.hook.pytest_deselected(items=dropped)
            items[:] = [item for item in items if item.nodeid in left]

    def _everyone(self, value: Any) -> list[Any]:
        with _ended_by_loss():
            return [json.loads(posted) for posted in self._exchange.everyone(json.dumps(value).encode())]

    def _check_same(self, names: list[str]) -> None:
        mine = {"settings": self._settings.described(), "tests": names}
        first, *others = self._everyone(mine)
        for rank, other in enumerate(others, start=1):
            if difference := _difference(first, other):
                where = f"rank {rank} on {self._exchange.hosts[rank]}"
                raise pytest.UsageError(
                    f"{where} is to run other tests than rank 0: {difference}. "
                    "Start every rank with the same options and the same version of the project"
                )

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # outside pytest-timeout's clock: rank 0 may be waiting for its GPUs
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self._outcomes("started", "")
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        different = [
            f"rank {rank} on {self._exchange.hosts[rank]} {outcome}:\n\n{text}"
            for rank, (outcome, text) in enumerate(self._outcomes(report.outcome, report.longreprtext))
            if outcome != report.outcome
        ]
        if different and report.outcome != "failed":
            report.longrepr = "\n\n".join([f"the ranks disagree: this one {report.outcome}", *different])
            report.outcome = "failed"
        return report

    def _outcomes(self, outcome: str, text: str) -> list[tuple[str, str]]:
        """What all ranks say of the same moment of the same test; waits for them."""
        mine = answers.encode("outcome", (outcome, text))
        with _ended_by_loss():
            while True:
                outcomes = [answers.decode(rank, value) for rank, value in enumerate(self._exchange.everyone(mine))]
                if all(kind == "outcome" for kind, _ in outcomes):
                    return [value for _, value in outcomes]
                # A rank that was in a call has heard by this turn that others are not, and comes here. This frees it.
                join.leave()

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        # torchrun ends all ranks as soon as one has failed, so none may end before rank 0 has saved what it reports.
        with suppress(RankLost):
            self._exchange.everyone(b"end")
        self._exchange.close()


@contextmanager
def _ended_by_loss(advice: str = RESUME) -> Iterator[None]:
    """Ends the session where a rank is gone."""
    try:
        yield
    except RankLost as error:
        pytest.exit(f"{error}. {advice}", returncode=1)


def _difference(first: dict[str, Any], other: dict[str, Any]) -> str:
    for name, value in first["settings"].items():
        if value != other["settings"][name]:
            return f"{name} is {other['settings'][name]} there and {value} here"
    ours, theirs = first["tests"], other["tests"]
    for tests, where in ((set(theirs) - set(ours), "only it"), (set(ours) - set(theirs), "only rank 0")):
        if tests:
            return f"{where} has {min(tests)}" + (f" and {len(tests) - 1} more" if len(tests) > 1 else "")
    return "" if ours == theirs else "the same ones in another order"
