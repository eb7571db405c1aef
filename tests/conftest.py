"""Fixtures and options that several test files share."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from fuzzing import pytest_pyfunc_call
from reliability import Ledger, injected

from blockshock.plugin.settings import Settings
from blockshock.ranks import Ranks, spawn

__all__ = ["injected", "pytest_pyfunc_call"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("blockshock's own tests")
    group.addoption("--reliability", metavar="NAME", help="write docs/reliability/NAME.json and docs/reliability.md")
    group.addoption(
        "--soundness",
        metavar="NAME",
        help="try verdicts at length, on GPUs; write docs/soundness/NAME.json and docs/soundness.md",
    )
    group.addoption("--soak", action="store_true", help="inject faults as often as `tox run -e soak` does")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reliability") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(config.getoption("--reliability")), "blockshock-reliability")


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether the long form was asked for."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """A shell without job control starts what it puts in the background with SIGINT ignored, children included."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def cpu_ranks(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Two ranks on CPUs, whatever the session measures; the session's own, if they are that."""
    if (settings.device, settings.ranks) == ("cpu", 2):
        yield request.getfixturevalue("ranks")
    else:
        with spawn(2) as group:
            yield group


@pytest.fixture(scope="session")
def gpu_ranks(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Two ranks on GPUs, for tests that need them; the session's own, if they are that."""
    if (settings.device, settings.ranks) == ("cuda", 2):
        yield request.getfixturevalue("ranks")
    else:
        with spawn(2, device="cuda") as group:
            yield group


@pytest.fixture(scope="session")
def gpu_rank(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """One rank by itself, on a GPU; the session's own, if it is that."""
    if (settings.device, settings.ranks) == ("cuda", 1):
        yield request.getfixturevalue("ranks")
    else:
        with spawn(1, device="cuda") as group:
            yield group


@pytest.fixture(scope="session")
def groups_of_other_sizes() -> Iterator[Callable[[int], Ranks]]:
    """Groups on CPUs, of each size one, that live as long as the session: to start four ranks takes seconds."""
    with ExitStack() as ends:
        yield cache(lambda size: ends.enter_context(spawn(size)))


@pytest.fixture(scope="session")
def four_ranks(groups_of_other_sizes: Callable[[int], Ranks]) -> Ranks:
    """Four ranks on CPUs."""
    return groups_of_other_sizes(4)


@pytest.fixture(scope="session", params=[1, 4])
def other_ranks(request: pytest.FixtureRequest, groups_of_other_sizes: Callable[[int], Ranks]) -> Ranks:
    """Groups on CPUs of other sizes."""
    return groups_of_other_sizes(request.param)
