"""Sessions on the ranks of a torchrun job: the same results, agreement on every outcome, no hang when one is gone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import descendants, lives, wait_until_gone
from reliability import Record
from torchrun_jobs import check_results, fill, job, wait_for

from blockshock.plugin.together import _difference

pytestmark = pytest.mark.reliability
LOST_SECONDS = 10
"""As --rank-timeout, where a rank is gone."""
CALL_SECONDS = 12
"""As --rank-timeout, of calls that are to end."""
OTHER_ON_RANK_1 = """

import os
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    if os.environ["RANK"] == "1":
        items.pop(1)
    yield
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path)


def here(size: int) -> list[str]:
    return ["--standalone", f"--nproc-per-node={size}"]


def run(folder: Path, size: int, *arguments: str) -> tuple[int, str]:
    """The exit code of a job that ends by itself, and all that it printed."""
    with job(folder, here(size), *arguments) as process:
        output = process.communicate(timeout=280)[0]
    return process.returncode, output


SLOW_REPORTER = """

import os
import time
import torch.distributed.tensor  # here, or the first call of DTensor's would take as long as four imports

def pytest_sessionfinish():
    if os.environ["RANK"] == "0":
        time.sleep(2)
"""
"""torchrun ends all ranks when the first one fails: rank 0 must have saved what it reports by then."""


def test_the_ranks_agree_on_every_outcome_and_find_what_spawned_ones_do(
    folder: Path, soak: bool, injected: Record
) -> None:
    size = 4 if soak else 2
    with (folder / "conftest.py").open("a") as conftest:
        conftest.write(SLOW_REPORTER)
    saved = ["--json-report", "--json-report-file=report.json", "--benchmark-json=run.json"]
    code, output = run(folder, size, f"--rank-timeout={CALL_SECONDS}", "-k=not ends and not talks", *saved)
    assert code == 1, output
    assert output.count("test session starts") == 1, "one rank reports"
    assert f"torchrun: {size} ranks on 1 machine(s)" in output
    assert "6 failed, 12 passed" in output, "rank 0 came to its end"
    check_results(folder / "run.json", size)
    tests = json.loads((folder / "report.json").read_text())["tests"]
    tests = [test for test in tests if "at_fault" in test["nodeid"]]
    found = {test["nodeid"].partition("::")[2]: test for test in tests}
    calls = {name: test["call"] for name, test in found.items()}
    failed = {name: _plain(call["longrepr"]) for name, call in calls.items() if call["outcome"] == "failed"}
    assert set(calls) - set(failed) == {name for name in calls if "healthy" in name or "expects" in name}

    assert "LookupError: only here" in failed["test_raises"]
    assert 'in raise_on_rank_1\nraise LookupError("only here")' in failed["test_raises"], "its own traceback"
    assert "in raise_on_rank_1\nagree()" in failed["test_raises"], "where the other one was"
    assert "rank 1 on" in failed["test_fails_on_rank_1"]
    assert "AssertionError: a local trouble" in failed["test_fails_on_rank_1"]
    assert "this one passed" in failed["test_skips_on_rank_1"]
    assert "a local reason" in failed["test_skips_on_rank_1"]
    assert "rank 1 is not in this call: it has left the test" in failed["test_leaves_before_the_call"]
    assert "returned a bytes of 65 MiB; at most 64 MiB are sent" in failed["test_returns_too_much"]
    for fault, name in (
        ("torchrun: a rank raises while others wait", "test_raises"),
        ("torchrun: a test fails on one rank only", "test_fails_on_rank_1"),
        ("torchrun: a test is skipped on one rank only", "test_skips_on_rank_1"),
        ("torchrun: a rank leaves the test, others wait in a collective", "test_leaves_before_the_call"),
    ):
        injected(fault, seconds=calls[name]["duration"])

    late = ", ".join(f"rank {rank}" for rank in range(size))
    assert f"no answer within {CALL_SECONDS} s from {late}" in failed["test_stalls"]
    assert "in stall_on_rank_1\ntime.sleep(600)" in failed["test_stalls"]
    assert "in stall_on_rank_1\nagree()" in failed["test_stalls"]
    injected("torchrun: a rank stalls", seconds=calls["test_stalls"]["duration"] - CALL_SECONDS)


def _plain(longrepr: str) -> str:
    """Without the margin that pytest gives to the message of an error."""
    return re.sub(r"(?m)^(E )?\s*", "", longrepr)


def test_another_collection_is_an_error_on_every_rank(folder: Path, injected: Record) -> None:
    with (folder / "conftest.py").open("a") as conftest:
        conftest.write(OTHER_ON_RANK_1)
    began = time.monotonic()
    code, output = run(folder, 2, "tests/test_at_fault.py")
    assert code != 0
    assert "is to run other tests than rank 0: only rank 0 has tests/test_at_fault.py::test_" in output
    assert "passed" not in output
    injected("torchrun: ranks collect different tests", seconds=time.monotonic() - began)


def test_what_is_different_is_named() -> None:
    def named(first: list[str], other: list[str], **settings: object) -> str:
        return _difference(
            {"settings": {"seed": 0}, "tests": first}, {"settings": {"seed": 0} | settings, "tests": other}
        )

    assert named(["a", "b"], ["a", "b"]) == ""
    assert named(["a", "b"], ["b", "a"]) == "the same ones in another order"
    assert named(["a"], ["a", "b", "c"]) == "only it has b and 1 more"
    assert named(["a", "b"], ["b"]) == "only rank 0 has a"
    assert named(["a"], ["a"], seed=3) == "seed is 3 there and 0 here"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "Signal 9 (SIGKILL) received by PID"),
        (signal.SIGSTOP, f"nothing was heard of rank 1 on {socket.gethostname()} for {LOST_SECONDS} s"),
    ],
    ids=["SIGKILL", "SIGSTOP"],
)
def test_a_rank_that_is_gone_ends_the_job(
    number: signal.Signals, message: str, folder: Path, soak: bool, injected: Record
) -> None:
    if number == signal.SIGSTOP and not soak:
        pytest.skip("waits for torchrun's own half minute: it runs with --soak")
    only = f"-k=ends and {number.name}"
    with job(folder, here(2), "tests/test_at_fault.py", "-s", f"--rank-timeout={LOST_SECONDS}", only) as process:
        wait_for("about to end", process)
        began, pids = time.monotonic(), descendants(process.pid)
        wait_for(message, process)
        seconds = time.monotonic() - began
        # torchrun itself gives a rank half a minute to end.
        for pid in pids if number == signal.SIGSTOP else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=120)
        wait_until_gone(pids)
    assert process.returncode != 0
    injected(f"torchrun: a rank gets {number.name}", seconds=seconds, orphans=sum(map(lives, pids)))


STARTER = """
import os, subprocess, sys, time

command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", *sys.argv[2:]]
if sys.argv[1] in ("all", os.environ["RANK"]):
    sys.exit(subprocess.call(command))
time.sleep(600)
"""
"""A script that starts pytest on one rank, or on all of them."""


def test_pytest_that_only_one_rank_starts_says_so_at_once_and_does_not_wait_for_long(folder: Path) -> None:
    (folder / "starter.py").write_text(STARTER)
    arguments = "tests/test_at_fault.py", "-k=test_healthy"
    with job(folder, here(2), *arguments, "--rank-timeout=5", run=["starter.py", "0"]) as process:
        wait_for("started by a process that is itself rank 0 of a torchrun job.", process)
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "rank 1 has not come within 5 s. This pytest was started by a process that is itself rank 0" in output
    assert "unset TORCHELASTIC_RUN_ID" in output
    with job(folder, here(2), *arguments, run=["starter.py", "all"]) as process:
        output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output
    assert "4 passed" in output


def test_a_job_whose_torchrun_is_killed_leaves_nobody(folder: Path, injected: Record) -> None:
    with job(folder, here(2), "tests/test_at_fault.py", "-s", "-k=stalls") as process:
        wait_for("about to stall", process)
        pids, began = descendants(process.pid), time.monotonic()
        process.kill()
        wait_until_gone(pids)
    injected("torchrun is killed", seconds=time.monotonic() - began, orphans=sum(map(lives, pids)))
