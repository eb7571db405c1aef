"""Faults of ranks, each injected on CPU ranks and on GPUs: named in time, with stacks, and the next call runs."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import CPU_AND_TWO_GPUS
from processes import wait_until_gone
from reliability import Record

from blockshock.ranks import RankError, Ranks, RankTimeout, spawn

pytestmark = pytest.mark.reliability

TIMEOUT, SOON = 5, 2
"""Seconds that a call may take: of half a gigabyte, and of one that does not end, which is in its fault within a few
hundredths of one."""
SLACK = 30
"""Seconds within which a fault must be named: it takes two, and on a busy machine more."""


@pytest.fixture(scope="module", params=CPU_AND_TWO_GPUS)
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with spawn(2, request.param, timeout=TIMEOUT) as group:
        yield group


# What the ranks run. All of it goes wrong on rank 1 while rank 0 waits in a collective.


class Trouble(Exception):
    """An exception that survives pickling."""


def waits(parent: int) -> Path:
    """A file that says that rank 0 of this process waits for the others."""
    return Path(tempfile.gettempdir()) / f"blockshock-rank-0-waits-{parent}"


def meet() -> float:
    if dist.get_rank() == 0:
        waits(os.getppid()).touch()
    total = torch.ones(1, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.item()


def trouble_rank_1(how: Callable[..., object], *arguments: Any) -> None:
    if dist.get_rank() == 1:
        while not waits(os.getppid()).exists():
            time.sleep(0.01)
        how(*arguments)
    meet()


def raise_trouble() -> None:
    raise Trouble("only here")


def kill_itself(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)


def exit_but_leave_a_child(code: int) -> None:
    """The forked process holds all pipes of the rank open."""
    if os.fork() == 0:
        time.sleep(SLACK)
    os._exit(code)


def allocate(elements: int) -> None:
    torch.zeros(elements, dtype=torch.int64, device="cuda" if dist.get_backend() == "nccl" else "cpu")


def loop_forever() -> None:
    while True:
        pass


def return_on_rank_1(what: Callable[..., object], *arguments: Any) -> object:
    return what(*arguments) if dist.get_rank() == 1 else None


def make_generator() -> object:
    return (number for number in range(3))


@dataclass
class Fault:
    """How it goes wrong, what is raised for it, and whether the stacks of the ranks that waited are attached."""

    name: str
    call: tuple[Any, ...]
    error: type[BaseException]
    message: str
    waiting: bool = True


PETABYTE = 1 << 47
FAULTS = [
    Fault("a rank raises", (trouble_rank_1, raise_trouble), Trouble, r"^only here\n"),
    Fault("a rank gets SIGKILL", (trouble_rank_1, kill_itself, 9), RankError, "rank 1 was killed by SIGKILL"),
    Fault("a rank crashes", (trouble_rank_1, kill_itself, 11), RankError, "(?s)killed by SIGSEGV.*in kill_itself"),
    Fault("a rank exits", (trouble_rank_1, exit_but_leave_a_child, 7), RankError, "rank 1 ended with exit code 7"),
    Fault("a rank is out of memory", (trouble_rank_1, allocate, PETABYTE), RuntimeError, "(?i)tried to allocate [0-9]"),
    Fault("a rank loops", (trouble_rank_1, loop_forever), RankTimeout, "(?s)rank 1:.*in loop_forever", False),
    Fault("a rank is stopped", (trouble_rank_1, kill_itself, 19), RankTimeout, "(?s)rank 1:.*it is stopped", False),
    Fault("a rank never meets the others", (trouble_rank_1, time.sleep, 60), RankTimeout, "in trouble_rank_1", False),
    Fault(
        "a result cannot be pickled", (return_on_rank_1, make_generator), RankError, "which cannot be pickled", False
    ),
    Fault("a result of 500 MB", (return_on_rank_1, bytes, 500 << 20), RankError, "of 500 MiB; at most 64 MiB", False),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_named_and_the_next_call_runs(fault: Fault, ranks: Ranks, injected: Record) -> None:
    ranks.run(meet)
    waits(os.getpid()).unlink()
    pids, starts = ranks.pids, ranks.starts
    limit = SOON if fault.error is RankTimeout else TIMEOUT
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_timeout", limit)
        with pytest.raises(fault.error, match=fault.message) as caught:
            ranks.run(*fault.call)
    seconds = time.monotonic() - began - (limit if fault.error is RankTimeout else 0)
    assert seconds < SLACK
    shown = "".join(traceback.format_exception(caught.value))
    if fault.error is Trouble:
        assert "rank 1 raised Trouble" in shown
        assert "in raise_trouble" in shown, "its own traceback"
    if fault.waiting:
        assert "Where the other ranks were meanwhile:\n\nrank 0:" in shown
        assert "in meet" in shown.partition("rank 0:")[2]
    wait_until_gone(pids)
    assert ranks.run(meet) == [2.0, 2.0]
    assert ranks.starts == starts + 1
    injected(fault.name, seconds=seconds, orphans=0)


def test_a_rank_that_was_killed_between_calls(ranks: Ranks, injected: Record) -> None:
    ranks.run(meet)
    os.kill(ranks.pids[0], signal.SIGKILL)
    wait_until_gone(ranks.pids[:1])
    began = time.monotonic()
    with pytest.raises(RankError, match="rank 0 was killed by SIGKILL"):
        ranks.run(meet)
    injected("a rank gets SIGKILL between calls", seconds=time.monotonic() - began)


@pytest.mark.usefixtures("heeded_interrupts")
def test_interrupted_call(ranks: Ranks, injected: Record) -> None:
    ranks.run(meet)
    pids = ranks.pids
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    ranks.run(meet)
    assert ranks.pids == pids, "an interrupt is for the caller alone"
    waits(os.getpid()).unlink()
    interrupted: list[float] = []

    def interrupt() -> None:
        while not waits(os.getpid()).exists():
            time.sleep(0.01)
        interrupted.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        ranks.run(trouble_rank_1, time.sleep, 60)
    wait_until_gone(pids)
    injected("Ctrl-C in a call", seconds=time.monotonic() - interrupted[0], orphans=0)
    assert ranks.run(meet) == [2.0, 2.0]
