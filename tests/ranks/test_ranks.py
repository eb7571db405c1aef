"""Tests of blockshock.ranks: what comes back from ranks, and what they take."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import lives
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from blockshock.ranks import RankError, Ranks, spawn, spawned


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    path = tmp_path_factory.mktemp("preload") / "some_file.py"
    path.write_text("WORD = 'loaded'\n")
    with spawn(2, timeout=60, preload=[("rank_preload", path)]) as group:
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


def collector() -> tuple[bool, int]:
    return gc.isenabled(), gc.get_freeze_count()


def all_reduce(value: torch.Tensor) -> torch.Tensor:
    total = value * (dist.get_rank() + 1)
    dist.all_reduce(total)
    return total


def all_reduce_unwaited(seconds: float) -> torch.Tensor:
    """What DTensor returns at once, while rank 1 has yet to begin."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    time.sleep(seconds * dist.get_rank())
    return (
        DTensor.from_local(torch.ones(2), mesh, [Partial()]).redistribute(mesh, [Replicate()], async_op=True).to_local()
    )


def say(word: str) -> None:
    print(f"rank {dist.get_rank()} says {word}")


def raise_on_rank_1(kind: type[BaseException], *arguments: str) -> None:
    if dist.get_rank() == 1:
        raise kind(*arguments)


def look_up_preloaded(name: str) -> str:
    word: str = sys.modules[name].WORD
    return word


# Results.


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


def test_a_result_that_a_collective_still_fills_is_waited_for(ranks: Ranks) -> None:
    for result in ranks.run(all_reduce_unwaited, 0.3):
        assert type(result) is torch.Tensor
        assert result.tolist() == [2.0, 2.0]


def test_preload(ranks: Ranks) -> None:
    assert ranks.run(look_up_preloaded, "rank_preload") == ["loaded", "loaded"]


def test_garbage_is_collected_but_not_looked_for_in_what_imports_made(ranks: Ranks) -> None:
    for enabled, frozen in ranks.run(collector):
        assert enabled
        assert frozen > 100_000, "torch's: with them a rank takes half as long again to start, and to end"


# Errors.


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
        spawn(1, timeout=60, preload=[("rank_preload", path)])
    assert "some_file.py" in str(caught.value.__cause__)


# Arguments of spawn.


def test_more_ranks_than_gpus() -> None:
    gpus = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"there are {gpus} CUDA GPUs"):
        spawn(gpus + 1, device="cuda")


@pytest.mark.parametrize("size", [0, -1])
def test_bad_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 rank, not {size}"):
        spawn(size)


def test_bad_device() -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu': choose from cpu, cuda"):
        spawn(1, device="tpu")


def test_bad_timeout() -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        spawn(1, timeout=0)


# The end.


def test_second_group_and_its_end(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks.run(own_pid)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(spawned, "STOP_SECONDS", 30.0)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    group = spawn(2, timeout=60)  # started here, so that the ranks inherit the captured output
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
