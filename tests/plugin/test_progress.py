"""What a session says of itself: a line on a terminal, now and then one in a log, and how long the rest takes."""

from __future__ import annotations

import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inner_pytest import LIGHT_OPTIONS, environment, light_suite
from resolving import GPU_DEFAULTS

from blockshock.phases.case import Case
from blockshock.plugin.blocks import block_hypotheses
from blockshock.plugin.cases import hypotheses, network_hypotheses
from blockshock.plugin.pace import USUAL, Pace, Usual
from blockshock.plugin.phases import PHASES
from blockshock.plugin.progress import EVERY_SECONDS, Progress

KINDS = [*PHASES, "forward claim", "training claim", "network claim", "ffn claim"]


def test_every_phase_has_a_usual_time_on_every_device() -> None:
    assert [sorted(kinds) for kinds in USUAL.values()] == [sorted(KINDS)] * 2
    case = Case("dense_single", {}, "gaussian", 64, 64, 4, "bf16")
    small, large = (Usual.of({"forward_case": one}, "cuda") for one in (case, _at(40960)))
    assert small.seconds < large.seconds
    claims = {Usual.of({"claim": claim}, "cuda").kind for claim in hypotheses(GPU_DEFAULTS)}
    assert claims == {"forward claim", "training claim"}
    (claim, *_) = network_hypotheses(GPU_DEFAULTS)
    assert Usual.of({"network_claim": claim}, "cuda").kind == "network claim"
    (claim, *_) = block_hypotheses(GPU_DEFAULTS)
    assert Usual.of({"block_claim": claim}, "cuda").kind == "ffn claim"
    assert Usual.of({"number": 3, "forward_case": None}, "cpu").kind == "other"


def _at(N: int, B: int = 1024) -> Case:
    return Case("dense_single", {}, "gaussian", N, N, B, "bf16")


def _session(stream: random.Random, device: str) -> tuple[dict[str, Usual], dict[str, float]]:
    """Tests in the order of their files, and how long each takes on a machine of its own: so many times as fast as is
    usual, each phase and each size up to a seventh more or less than the others, each test up to half as long again."""
    sizes = {"cpu": (256, 512, 1024), "cuda": (4096, 8192, 16384, 40960)}[device]
    phases = stream.sample(["correctness_case", "forward_case", "gradient_case", "backward_case", "training_case"], 3)
    speed, usual, takes = stream.uniform(0.2, 5), {}, {}
    for phase in phases:
        odd = speed * stream.uniform(0.87, 1.15)
        for N in sizes:
            for B in (16, 64, 256, 1024):
                here = odd * stream.uniform(0.87, 1.15)
                for row in range(10):
                    test = f"{phase} {N} {B} {row}"
                    usual[test] = Usual.of({phase: _at(N, B)}, device)
                    takes[test] = usual[test].seconds * here * stream.uniform(0.66, 1.5)
    return usual, takes


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("seed", range(10))
def test_after_a_tenth_of_the_work_the_estimate_is_within_a_factor_of_one_and_a_half(device: str, seed: int) -> None:
    usual, takes = _session(random.Random(seed), device)
    pace, whole, passed, off = Pace(usual), sum(takes.values()), 0.0, []
    assert pace.seconds_left() is None
    for test, seconds in takes.items():
        passed += seconds
        pace.done(test, seconds)
        estimate = pace.seconds_left()
        assert estimate is not None
        if 0.1 * whole < passed < 0.95 * whole:
            off.append(estimate / (whole - passed))
    assert min(off) > 1 / 1.5
    assert max(off) < 1.5


def test_what_is_skipped_or_was_not_expected_says_nothing() -> None:
    pace = Pace({"a": Usual("forward_case", 1.0), "b": Usual("forward_case", 1.0), "c": Usual("forward_case", 2.0)})
    pace.done("a", None)
    assert pace.seconds_left() is None
    pace.done("b", 10.0)
    pace.done("x", 99.0)
    assert pace.seconds_left() == pytest.approx(20.0)


class _Terminal:
    """Keeps what a terminal, or a log, is told."""

    def __init__(self, isatty: bool, verbosity: int = 0) -> None:
        self.isatty, self.lines, self.rewritten, self.written = isatty, list[str](), list[str](), list[str]()
        writer = SimpleNamespace(fullwidth=60)
        manager = SimpleNamespace(get_plugin=lambda name: None)
        self.config = SimpleNamespace(
            get_verbosity=lambda: verbosity, get_terminal_writer=lambda: writer, pluginmanager=manager
        )

    def ensure_newline(self) -> None: ...

    def flush(self) -> None: ...

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def write(self, text: str, **markup: bool) -> None:
        self.written.append(text)

    def rewrite(self, line: str, erase: bool) -> None:
        self.rewritten.append(line)


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _run(terminal: _Terminal, clock: _Clock, tests: int, seconds: float, names: tuple[str, ...] = ("row",)) -> Progress:
    """A session of so many tests, each as long; the first starts ranks for 50 s."""
    progress = Progress(terminal, "cpu", clock)
    items: Any = [SimpleNamespace(nodeid=f"tests/test_x.py::test_y[{n}]", fixturenames=names) for n in range(tests)]
    progress.pytest_collection_finish(SimpleNamespace(items=items))  # type: ignore[arg-type]
    for number, item in enumerate(items):
        progress.pytest_runtest_logstart(item.nodeid)
        if number == 0:
            with progress.stage("starting 2 CPU ranks"):
                clock.now += 50
            for what in ("launch", "memory"):
                with progress.stage(f"measuring ceilings: {what}"):
                    clock.now += 5
        clock.now += seconds
        report: Any = SimpleNamespace(skipped=False, failed=number == 1, passed=number != 1, when="call", nodeid="t")
        progress.pytest_runtest_logreport(report)
        progress.pytest_runtest_logfinish(item.nodeid)
    return progress


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    terminal = _Terminal(isatty=True)
    progress = _run(terminal, _Clock(), 3, 7.0)
    assert terminal.rewritten == [
        "0 of 3 done in 0:00: test_y[0]",
        "blockshock: starting 2 CPU ranks",
        "blockshock: measuring ceilings: launch",
        "blockshock: measuring ceilings: memory",
        "1 of 3 done in 1:07, about 0:14 to go: test_y[0]",
        "1 of 3 done in 1:07, about 0:14 to go: test_y[1]",
        "",
        "2 of 3 done in 1:14, about 0:07 to go: test_y[1]",
        "2 of 3 done in 1:14, about 0:07 to go: test_y[2]",
        "3 of 3 done in 1:21, about 0:00 to go: test_y[2]",
    ]
    assert (terminal.lines, terminal.written) == ([], ["\rFAILED t\n"])
    assert len(progress.line("t" * 100)) > 60
    progress._rewrite(progress.line("t" * 100))
    assert len(terminal.rewritten[-1]) == 59
    assert terminal.rewritten[-1].endswith("t…")


def test_a_log_has_a_line_now_and_then() -> None:
    terminal = _Terminal(isatty=False)
    _run(terminal, _Clock(), 12, 7.0)
    assert EVERY_SECONDS == 30
    assert terminal.lines == [
        "blockshock: starting 2 CPU ranks",
        "blockshock: measuring ceilings",
        "3 of 12 done in 1:21, about 1:03 to go: test_y[2]",
        "8 of 12 done in 1:56, about 0:28 to go: test_y[7]",
        "12 of 12 done in 2:24, about 0:00 to go: test_y[11]",
    ]
    assert terminal.rewritten == []


def test_nothing_is_estimated_from_the_first_few_of_many() -> None:
    terminal = _Terminal(isatty=False)
    _run(terminal, _Clock(), 100, 7.0)
    assert terminal.lines[2] == "3 of 100 done in 1:21: test_y[2]"
    assert terminal.lines[3] == "8 of 100 done in 1:56, about 10:44 to go: test_y[7]"


@pytest.mark.parametrize(("verbosity", "names"), [(-1, ("row",)), (0, ("tmp_path",))], ids=["quiet", "without ranks"])
@pytest.mark.parametrize("isatty", [True, False])
def test_nothing_is_said_with_q_and_where_no_case_is_run(isatty: bool, verbosity: int, names: tuple[str, ...]) -> None:
    terminal = _Terminal(isatty, verbosity)
    _run(terminal, _Clock(), 12, 7.0, names)
    assert (terminal.lines, terminal.rewritten, terminal.written) == ([], [], [])


def _report(outcome: str, when: str) -> pytest.TestReport:
    return pytest.TestReport("t", ("t", 0, "t"), {}, outcome, None, when)  # type: ignore[arg-type]


def test_the_line_takes_the_place_of_letters_and_counts_stay() -> None:
    live, log = (Progress(_Terminal(isatty), "cpu", _Clock()) for isatty in (True, False))
    for progress in (live, log):
        item: Callable[..., Any] = SimpleNamespace  # a test of a case
        progress.pytest_collection_finish(SimpleNamespace(items=[item(nodeid="t", fixturenames=("row",))]))  # type: ignore[arg-type]
    found = {
        (outcome, when): live.pytest_report_teststatus(_report(outcome, when))
        for outcome in ("passed", "skipped", "failed")
        for when in ("setup", "call")
    }
    assert {key: status and status[0] for key, status in found.items()} == {
        ("passed", "setup"): "",
        ("passed", "call"): "passed",
        ("skipped", "setup"): "skipped",
        ("skipped", "call"): "skipped",
        ("failed", "setup"): "error",
        ("failed", "call"): "failed",
    }
    assert {status and status[1:] for status in found.values()} == {("", "")}
    assert log.pytest_report_teststatus(_report("passed", "call")) is None


OTHERS = """
def test_of_another(benchmark): benchmark.pedantic(sum, ([1, 2],), rounds=3)
"""


def test_a_session_on_a_real_terminal(tmp_path: Path) -> None:
    light_suite(tmp_path)
    (tmp_path / "test_other.py").write_text(OTHERS)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", *LIGHT_OPTIONS]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=theirs, stderr=theirs) as session:
        os.close(theirs)
        told = "".join(_read(ours))
    assert session.returncode == pytest.ExitCode.OK, told
    assert told.startswith("blockshock: loading torch ...\r"), "before pytest's first line"
    shown = re.findall(r"\r(\d of 4 done in \d+:\d\d(?:, about \d+:\d\d to go)?: [^ ]+)", told)
    assert (shown[0], len(shown)) == ("0 of 4 done in 0:00: test_light[0]", 8)
    assert shown[-1].startswith("4 of 4 done in ")
    assert re.search(r"4 passed in ", told)
    table = told.partition("Name (time in ")[2].partition("Legend:")[0]
    assert "test_of_another" in table
    assert "test_light" not in table, "our own tables have it"


def _read(terminal: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(terminal, 1 << 16).decode()
        except OSError:  # nobody writes to it any more
            os.close(terminal)
            return
