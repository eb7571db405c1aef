"""Tests of blockshock.ranks: results, failures of every kind, and that no process is left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import blockshock
from blockshock.ranks import RankError, Ranks, RankTimeout, spawned


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    path = tmp_path_factory.mktemp("preload") / "some_file.py"
    path.write_text("WORD = 'loaded'\n")
    with Ranks.spawn(2, timeout=60, preload=[("rank_preload", path)]) as group:
        yield group


# What the ranks run.


class RankTrouble(Exception):
    """An exception that survives pickling."""


class TwoPartTrouble(Exception):
    """An exception that pickles, but cannot be rebuilt."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def describe(word: str, *, times: int) -> tuple[int, str]:
    return dist.get_rank(), word * times


def own_pid() -> int:
    return os.getpid()


def all_reduce(value: torch.Tensor) -> torch.Tensor:
    total = value * (dist.get_rank() + 1)
    dist.all_reduce(total)
    return total


def say(word: str) -> None:
    print(f"rank {dist.get_rank()} says {word}")


def raise_on_rank_1(kind: type[BaseException], *arguments: str) -> None:
    if dist.get_rank() == 1:
        raise kind(*arguments)


def raise_while_rank_0_waits() -> None:
    if dist.get_rank() == 1:
        raise RankTrouble("before the barrier")
    dist.barrier()


def crash_rank_1() -> None:
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def exit_rank_1(code: int, child_seconds: float) -> None:
    """Exit, but leave a forked process, which holds all pipes of the rank open."""
    if dist.get_rank() == 1:
        if os.fork() == 0:
            time.sleep(child_seconds)
        os._exit(code)
    dist.barrier()


def sleep_on_rank_1(seconds: float) -> None:
    if dist.get_rank() == 1:
        time.sleep(seconds)


def return_a_generator() -> object:
    return (number for number in range(3))


def look_up_preloaded(name: str) -> str:
    word: str = sys.modules[name].WORD
    return word


# Results.


@pytest.fixture(autouse=True)
def heeded_interrupts() -> Iterator[None]:
    """A shell without job control starts what it puts in the background with SIGINT ignored, children included."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_results_come_in_rank_order(ranks: Ranks) -> None:
    assert ranks.run(describe, "ab", times=2) == [(0, "abab"), (1, "abab")]
    assert (ranks.size, ranks.device) == (2, "cpu")


def test_processes_stay_between_calls(ranks: Ranks) -> None:
    ranks.run(own_pid)
    starts = ranks.starts
    assert ranks.run(own_pid) == ranks.run(own_pid) == ranks.pids
    assert ranks.starts == starts
    assert os.getpid() not in ranks.pids


def test_collectives_and_tensors_by_value(ranks: Ranks) -> None:
    value = torch.tensor([1.0, 2.0])
    for result in ranks.run(all_reduce, value):
        torch.testing.assert_close(result, torch.tensor([3.0, 6.0]))
    torch.testing.assert_close(value, torch.tensor([1.0, 2.0]))


def test_preload(ranks: Ranks) -> None:
    assert ranks.run(look_up_preloaded, "rank_preload") == ["loaded", "loaded"]


# Failures. Each ends the group, so `starts` tells that the next call has a new one.


def test_exception_keeps_its_type_and_tells_its_rank(ranks: Ranks) -> None:
    with pytest.raises(RankTrouble, match=r"^broken$") as caught:
        ranks.run(raise_on_rank_1, RankTrouble, "broken")
    assert isinstance(caught.value.__cause__, RankError)
    shown = "".join(traceback.format_exception(caught.value))
    assert "rank 1 raised RankTrouble" in shown
    assert "in raise_on_rank_1" in shown
    assert ranks.pids == []


@pytest.mark.parametrize(("kind", "arguments"), [(TwoPartTrouble, ("this", "that")), (SystemExit, ("leaving",))])
def test_other_exceptions_become_rank_errors(
    ranks: Ranks, kind: type[BaseException], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(RankError, match=f"(?s)rank 1 raised {kind.__name__}.*in raise_on_rank_1.*{arguments[-1]}"):
        ranks.run(raise_on_rank_1, kind, *arguments)


def test_error_while_the_other_rank_waits(ranks: Ranks) -> None:
    ranks.run(own_pid)
    starts, began = ranks.starts, time.monotonic()
    with pytest.raises(RankTrouble, match="before the barrier"):
        ranks.run(raise_while_rank_0_waits)
    assert time.monotonic() - began < 5
    assert ranks.run(describe, "a", times=1) == [(0, "a"), (1, "a")]
    assert ranks.starts == starts + 1


def test_crashed_rank_names_the_signal_and_shows_its_stack(ranks: Ranks) -> None:
    ranks.run(own_pid)
    began = time.monotonic()
    with pytest.raises(RankError, match=r"(?s)rank 1 was killed by SIGSEGV.*in crash_rank_1"):
        ranks.run(crash_rank_1)
    assert time.monotonic() - began < 4


def test_exited_rank_names_the_code(ranks: Ranks) -> None:
    ranks.run(own_pid)
    began = time.monotonic()
    with pytest.raises(RankError, match="rank 1 ended with exit code 7"):
        ranks.run(exit_rank_1, 7, child_seconds=8)
    assert time.monotonic() - began < 6


def test_killed_rank_names_the_signal(ranks: Ranks) -> None:
    ranks.run(own_pid)
    os.kill(ranks.pids[0], signal.SIGKILL)
    wait_until_gone(ranks.pids[:1])
    with pytest.raises(RankError, match="rank 0 was killed by SIGKILL"):
        ranks.run(own_pid)


def test_timeout_shows_the_stacks() -> None:
    with Ranks.spawn(2, timeout=2) as group:
        began = time.monotonic()
        with pytest.raises(RankTimeout, match="no answer within 2 s from rank 1\n") as caught:
            group.run(sleep_on_rank_1, 60)
        assert 2 <= time.monotonic() - began < 8
        before, _, stack = str(caught.value).partition("\nrank 1:\n")
        assert "in sleep_on_rank_1" in stack
        assert "in sleep_on_rank_1" not in before
        assert group.pids == []


def test_interrupted_call(ranks: Ranks) -> None:
    ranks.run(own_pid)
    pids = ranks.pids
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert ranks.run(own_pid) == pids  # an interrupt is for the caller alone
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ranks.run(sleep_on_rank_1, 60)
    wait_until_gone(pids)
    assert ranks.run(describe, "a", times=1) == [(0, "a"), (1, "a")]


def test_unpicklable_result(ranks: Ranks) -> None:
    with pytest.raises(RankError, match=r"rank [01] returned a generator, which cannot be pickled"):
        ranks.run(return_a_generator)


def test_unpicklable_call_is_not_sent(ranks: Ranks) -> None:
    ranks.run(own_pid)
    starts = ranks.starts
    with pytest.raises(TypeError, match=r"cannot send function .*<lambda> to the ranks"):
        ranks.run(lambda: None)
    with pytest.raises(TypeError, match="cannot send argument 1 of raise_on_rank_1 to the ranks"):
        ranks.run(raise_on_rank_1, RankTrouble, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot send argument 'times' of describe to the ranks"):
        ranks.run(describe, "a", times=threading.Lock())  # type: ignore[arg-type]
    assert ranks.run(describe, "a", times=1) == [(0, "a"), (1, "a")]
    assert ranks.starts == starts


def test_failing_preload(tmp_path: Path) -> None:
    path = tmp_path / "some_file.py"
    path.write_text("raise LookupError('no such thing')\n")
    with pytest.raises(LookupError, match="no such thing") as caught:
        Ranks.spawn(1, timeout=60, preload=[("rank_preload", path)])
    assert "some_file.py" in str(caught.value.__cause__)


# Arguments of spawn.


def test_more_ranks_than_gpus() -> None:
    gpus = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"there are {gpus} CUDA GPUs"):
        Ranks.spawn(gpus + 1, device="cuda")


@pytest.mark.parametrize("size", [0, -1])
def test_bad_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 rank, not {size}"):
        Ranks.spawn(size)


def test_bad_device() -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu': choose from cpu, cuda"):
        Ranks.spawn(1, device="tpu")


def test_bad_timeout() -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        Ranks.spawn(1, timeout=0)


# The end.


def test_second_group_and_its_end(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks.run(own_pid)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(spawned, "STOP_SECONDS", 30.0)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    group = Ranks.spawn(2, timeout=60)  # started here, so that the ranks inherit the captured output
    assert [result.item() for result in group.run(all_reduce, torch.tensor(1.0))] == [3.0, 3.0]
    assert [result.item() for result in ranks.run(all_reduce, torch.tensor(1.0))] == [3.0, 3.0]
    assert not set(group.pids) & set(ranks.pids)
    group.run(say, "hello")
    assert "rank 1 says hello" in capfd.readouterr().out

    pids, began = group.pids, time.monotonic()
    assert len(pids) == 2
    assert len(list(tmp_path.iterdir())) == 1
    group.close()
    assert time.monotonic() - began < 30, "the ranks had to be killed"
    assert not any(map(lives, pids))
    assert group.pids == []
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    group.close()
    with pytest.raises(RuntimeError, match="closed"):
        group.run(own_pid)


SCRIPT = textwrap.dedent("""
    import ctypes
    import sys
    import threading
    import time

    import torch.distributed as dist

    from blockshock.ranks import Ranks


    def stall(in_native_code):
        if dist.get_rank() == 0:
            print("stalled", flush=True)
            dist.barrier()
        elif in_native_code:
            ctypes.PyDLL(None).sleep(600)  # keeps the interpreter lock
        else:
            time.sleep(600)


    def main():
        groups = []
        if "thread" in sys.argv:
            starter = threading.Thread(target=lambda: groups.append(Ranks.spawn(2)))
            starter.start()
            starter.join()
        else:
            groups.append(Ranks.spawn(2))
        if "return" not in sys.argv:
            groups[0].run(stall, "native" in sys.argv)


    if __name__ == "__main__":
        main()
""")


@contextmanager
def run_script(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start SCRIPT as the leader of a new session, to which its ranks then belong as well; kill what is left of it."""
    path = folder / "script.py"
    path.write_text(SCRIPT)
    root = Path(blockshock.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env=os.environ | {"PYTHONPATH": str(root), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        try:
            yield parent
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "arguments"),
    [(signal.SIGTERM, ["native"]), (signal.SIGKILL, ["thread"]), (signal.SIGINT, [])],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "-".join(value),
)
def test_no_rank_outlives_its_parent(tmp_path: Path, number: signal.Signals, arguments: list[str]) -> None:
    with run_script(tmp_path, *arguments) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "stalled\n"
        end_script(parent, number, seconds=5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_no_rank_outlives_a_parent_that_ends_at_start_up(tmp_path: Path, number: signal.Signals) -> None:
    with run_script(tmp_path) as parent:
        deadline = time.monotonic() + 30
        while len(session(parent.pid)) < 4 and time.monotonic() < deadline:  # the parent, its tracker, 2 ranks
            time.sleep(0.01)
        end_script(parent, number, seconds=30)  # the ranks see it once they have imported torch


def end_script(parent: subprocess.Popen[str], number: signal.Signals, seconds: float) -> None:
    """Send a signal to a script, or SIGINT to its ranks as well, as a terminal does; check that all of them end."""
    assert len(session(parent.pid)) == 4
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.send_signal(number)
    assert parent.wait(timeout=10) == -number
    wait_until_gone(session(parent.pid), seconds)
    _, errors = parent.communicate(timeout=10)
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == (number == signal.SIGINT)


def test_parent_that_does_not_close_ends_cleanly(tmp_path: Path) -> None:
    with run_script(tmp_path, "return") as parent:
        output, errors = parent.communicate(timeout=60)
    assert (parent.returncode, output, errors) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, or none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def lives(pid: int) -> bool:
    return bool(fields := stat(pid)) and fields[0] not in "ZX"


def session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if lives(pid) and stat(pid)[3:4] == [str(leader)]]


def wait_until_gone(pids: list[int], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if lives(pid)]:
        assert time.monotonic() < deadline, f"still alive: {left}"
        time.sleep(0.02)
