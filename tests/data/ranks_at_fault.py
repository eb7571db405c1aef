"""Tests that go wrong on one rank, for a pytest that tests/ranks/test_torchrun.py starts under torchrun."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])


def agree() -> float:
    there(dist.get_rank()).touch()
    try:
        total = torch.ones(1, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(total)
        return total.item()
    finally:
        there(dist.get_rank()).unlink()


def there(rank: int) -> Path:
    """A file that says that a rank is in agree()."""
    return Path(f"rank-{rank}-agrees")


def wait_for_the_others() -> None:
    while not all(there(rank).exists() for rank in range(dist.get_world_size()) if rank != dist.get_rank()):
        time.sleep(0.01)


def raise_on_rank_1() -> None:
    if dist.get_rank() == 1:
        wait_for_the_others()
        raise LookupError("only here")
    agree()


def stall_on_rank_1() -> None:
    if dist.get_rank() == 1:
        wait_for_the_others()
        print("about to stall", flush=True)
        time.sleep(600)
    agree()


def end_rank_1(number: int) -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), number)
    agree()


def talk_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    print("talking", flush=True)
    while time.monotonic() < end:
        agree()


def return_megabytes(size: int) -> bytes:
    return bytes(size << 20)


def check_health(ranks):
    assert ranks.run(agree) == [ranks.size] * ranks.size


def test_healthy(ranks):
    check_health(ranks)


def test_raises(ranks):
    ranks.run(raise_on_rank_1)


def test_healthy_after_a_rank_raised(ranks):
    check_health(ranks)


def test_fails_on_rank_1():
    assert RANK != 1, "a local trouble"


def test_skips_on_rank_1():
    if RANK == 1:
        pytest.skip("a local reason")


def test_leaves_before_the_call(ranks):
    if RANK == 1:
        raise OSError("before the call")
    ranks.run(raise_on_rank_1)


def test_healthy_after_a_rank_left(ranks):
    check_health(ranks)


def test_expects_an_error(ranks):
    with pytest.raises(LookupError, match="only here"):
        ranks.run(raise_on_rank_1)
    check_health(ranks)


def test_returns_too_much(ranks):
    ranks.run(return_megabytes, 65)


def test_stalls(ranks):
    ranks.run(stall_on_rank_1)


def test_healthy_after_a_rank_stalled(ranks):
    check_health(ranks)


def test_talks(ranks):
    ranks.run(talk_for, 90)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_ends(ranks, number):
    check_health(ranks)
    print("about to end", flush=True)
    ranks.run(end_rank_1, number)
