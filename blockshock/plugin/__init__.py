"""The pytest side: options, cases, the session's ranks, what is saved with a run, and the comparison at its end."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
from pytest_benchmark.utils import safe_dumps

from blockshock.machine import environment
from blockshock.measure import Ceilings
from blockshock.plugin import (
    blame,
    closing,
    devices,
    header,
    journal,
    options,
    parameters,
    progress,
    saving,
    together,
    workers,
)
from blockshock.plugin.ceilings import Measuring
from blockshock.plugin.groups import Groups
from blockshock.plugin.rivals import Rivals
from blockshock.plugin.row import Row
from blockshock.plugin.settings import Settings, resolve
from blockshock.plugin.stash import (
    CEILINGS,
    JOURNAL,
    MISSING,
    MOST_LOSS,
    PROGRESS,
    RECORDS,
    SAVING,
    SETTINGS,
    TOGETHER,
    stage,
    storage,
)
from blockshock.ranks import Place, Ranks, end_with_parent_thread
from blockshock.report import DISTRIBUTED, UNSAVED, print_ending
from blockshock.saved import NotARun, Run, read_run, run_of_session

timed_alone = pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ,
    reason="timing beside other workers measures them too: run `pytest -m bench` without -n",
)
"""For tests that time something."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    options.add_after_others_of_a_conftest(parser, pluginmanager)
    if Place.here():
        end_with_parent_thread(signal.SIGTERM)  # torchrun's, which cannot end its ranks any more where it is killed
    if not _reports():
        pluginmanager.register(together.Silent(), "blockshock-silent")


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser
) -> Generator[None, object, object]:
    result = yield
    options.add(parser, early_config.pluginmanager)  # loaded by -p, before others that have options
    return result


def _reports() -> bool:
    """Whether this process reports and saves what all ranks and workers find."""
    place = Place.here()
    return "PYTEST_XDIST_WORKER" not in os.environ and (place is None or place.rank == 0)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    with blame.refused():
        config.stash[SETTINGS], config.stash[MOST_LOSS] = resolve(config), closing.most_loss(config)
    config.pluginmanager.register(blame.Blame(config), "blockshock-blame")
    config.stash[RECORDS] = []
    config.pluginmanager.register(workers.Workers(config.stash[RECORDS]), "blockshock-workers")
    if config.stash[SETTINGS].profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # or every rank says when its profiler starts and stops
    if place := Place.here():
        config.stash[TOGETHER] = together.Together(config, place, config.stash[SETTINGS])
        config.pluginmanager.register(config.stash[TOGETHER], "blockshock-together")
    config.pluginmanager.register(devices.Devices(config, config.stash[SETTINGS]), "blockshock-devices")
    if _reports():
        config.pluginmanager.register(closing.Closing(config), "blockshock-closing")
        config.stash[SAVING] = saving.Saving(config)
        config.pluginmanager.register(config.stash[SAVING], "blockshock-saving")
        config.stash[JOURNAL] = journal.Writer(config, config.stash[SETTINGS], storage(config), config.stash[SAVING])
        config.pluginmanager.register(config.stash[JOURNAL], "blockshock-journal")
    if _reports() and (reporter := config.pluginmanager.getplugin("terminalreporter")):
        config.stash[PROGRESS] = progress.Progress(reporter, config.stash[SETTINGS].device)
        config.pluginmanager.register(config.stash[PROGRESS], "blockshock-progress")


def pytest_report_header(config: pytest.Config) -> list[str]:
    resumed = config.stash[JOURNAL].describe() if JOURNAL in config.stash else []
    job = config.stash[TOGETHER].describe() if TOGETHER in config.stash else None
    with blame.refused():
        first, *others = header.lines(config, config.stash[SETTINGS])
    return [first, *filter(None, [job]), *resumed, *others]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    for fixture in parameters.FIXTURES & set(metafunc.fixturenames):
        metafunc.parametrize(fixture, parameters.of(fixture, settings))


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    """What the options resolved to."""
    return pytestconfig.stash[SETTINGS]


@pytest.fixture(scope="session")
def groups(pytestconfig: pytest.Config, settings: Settings) -> Iterator[Groups]:
    """The session's groups of ranks, each started at its first use."""
    job = pytestconfig.stash[TOGETHER].job if TOGETHER in pytestconfig.stash else None
    with Groups(settings, job, stage(pytestconfig)) as found:
        yield found


@pytest.fixture(scope="session")
def ranks(groups: Groups) -> Ranks:
    """All ranks of the session."""
    return groups.whole


@pytest.fixture(scope="session")
def ceilings(pytestconfig: pytest.Config, settings: Settings) -> Callable[[Ranks, str], Ceilings | None]:
    """What this machine reaches at most with a group of ranks, measured once, also in the dtype of a case, which may
    be none of the session's; None where nothing is timed, or with ``--no-ceilings``. That of all ranks is saved with
    the run, or if they are not asked for that of the one."""

    @functools.cache
    def measured(ranks: Ranks, dtypes: tuple[str, ...]) -> Ceilings:
        stash = pytestconfig.stash
        measuring = Measuring(ranks, settings.timing, settings.flush, stage(pytestconfig))
        found = measuring.ceilings(dtypes, settings.formats)
        stash.setdefault(MISSING, {}).update(measuring.missing)
        if ranks.size == settings.ranks or CEILINGS not in stash:
            stash[CEILINGS] = found
            if JOURNAL in stash:
                stash[JOURNAL].ceilings(found)
        return found

    def reached(ranks: Ranks, dtype: str) -> Ceilings | None:
        if settings.timing == "none" or not settings.ceilings:
            return None
        return measured(ranks, tuple(dict.fromkeys((*settings.dtypes, dtype))))

    return reached


@pytest.fixture(scope="session")
def rivals(settings: Settings, groups: Groups) -> Rivals:
    """Finds the fastest of several cases, and times each only once."""
    return Rivals(settings, groups)


@pytest.fixture
def row(request: pytest.FixtureRequest, benchmark: Any, settings: Settings, groups: Groups) -> Row:
    """Runs a case and saves its row."""
    return Row(request, settings, groups)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["blockshock"] = environment.describe()
    if CEILINGS in config.stash:
        machine_info["blockshock"]["ceilings"] = asdict(config.stash[CEILINGS])


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_compare_machine_info() -> Generator[None, object, object]:
    # Where machines differ pytest-benchmark names the storage by its path from the current folder on, and raises where
    # it lies elsewhere. The comparison at the end says in what they differ.
    with contextlib.suppress(ValueError):
        return (yield)
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:  # after all others, whatever they raise: the answer is what stays on the screen
        if config.stash[RECORDS] and _reports():
            terminalreporter.section("Block-Shock")
            _end(terminalreporter, config)


def _end(terminalreporter: Any, config: pytest.Config) -> None:
    if missing := config.stash.get(MISSING, {}):
        reasons = "; ".join(f"{name} ({why})" for name, why in missing.items())
        text = f"No ceiling of {reasons}: it could not be measured, and rows that need it have no limit"
        terminalreporter.line(text, yellow=True)
    saved = config.stash[SAVING].saved if SAVING in config.stash else None
    try:
        run = read_run(saved) if saved else _unsaved(config)
    except NotARun as error:
        terminalreporter.line(str(error), red=True)
        return
    distributed = bool(config.getoption("numprocesses", None))
    unsaved, most = DISTRIBUTED if distributed else UNSAVED, config.stash[MOST_LOSS]
    print_ending(run, _compared(config), saved, sys.stdout, unsaved, most)


def _unsaved(config: pytest.Config) -> Run:
    """What the session measured, as pytest-benchmark would have saved it."""
    machine_info: dict[str, Any] = {}
    pytest_benchmark_update_machine_info(config, machine_info)
    now = datetime.now(UTC).isoformat()
    document = {"benchmarks": config.stash[RECORDS], "machine_info": machine_info, "datetime": now}
    return run_of_session(safe_dumps(document))


def _compared(config: pytest.Config) -> list[Run]:
    """The runs that ``--benchmark-compare`` names, as far as they are such."""
    session: Any = config.pluginmanager.get_plugin("pytest-benchmark")
    found = []
    for path in session.compared_mapping or ():
        with contextlib.suppress(NotARun):
            found.append(read_run(storage(config) / path))  # which leaves a path of its own as it is
    return found
