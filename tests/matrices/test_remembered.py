"""W that is remembered is the same, bit for bit; made once for all rows of a point, let go where memory is wanted.

GPUs alone remember one: here a CPU does as if it had the memory of one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from blockshock.machine import memory
from blockshock.matrices import remembered
from blockshock.matrices.weights import GeneratedWeights
from blockshock.phases import Case, correctness, forward
from blockshock.phases.case import build
from blockshock.ranks import Ranks

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ROWS = (
    ("dense_tp_row", {}),
    ("pruned_tp_col", {"kernel": "reference", "pruner": "magnitude"}),
    ("block_shock", {"kernel": "gathered", "mask": "1100"}),
)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """There is memory to spare."""
    remembered.forget()
    monkeypatch.setattr(memory, "can_spare", lambda *_: True)
    yield
    remembered.forget()


def held_of(weights: GeneratedWeights) -> bool:
    return remembered.remembered(weights._key) is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("N", [1, 255, 256, 700])
def test_rows_are_the_same(N: int, dtype: torch.dtype, roomy: None) -> None:
    anew, held = (GeneratedWeights(N, 24, dtype, CPU, seed=3, with_bias=True) for _ in range(2))
    spans = [(0, N), (0, 1), (N // 3, 2 * N // 3), (N - 1, N), (N, N)]
    wanted = [anew.rows(*span) for span in spans]
    held.remember(beside=0)
    assert held_of(held)
    for span, rows in zip(spans, wanted, strict=True):
        found = held.rows(*span)
        assert torch.equal(found, rows)
        found.zero_()  # is the caller's
        assert torch.equal(anew.rows(*span), rows)


def test_one_is_held_at_a_time_and_others_are_others(roomy: None) -> None:
    first = GeneratedWeights(64, 32, torch.float32, CPU, seed=1)
    others = [
        GeneratedWeights(64, 32, torch.float32, CPU, seed=2),
        GeneratedWeights(64, 32, torch.bfloat16, CPU, seed=1),
        GeneratedWeights(32, 64, torch.float32, CPU, seed=1),
    ]
    for other in others:
        first.remember(beside=0)
        other.remember(beside=0)
        assert held_of(other)
        assert not held_of(first)


class Heavy(GeneratedWeights):
    """One whose rows are others."""

    def _block(self, index: int, rows: int) -> torch.Tensor:
        return super()._block(index, rows) * self.seed + 1


def test_a_kind_of_its_own_has_its_own_rows(roomy: None) -> None:
    heavy, plain = (kind(64, 32, torch.float32, CPU, seed=3) for kind in (Heavy, GeneratedWeights))
    for first, then in ((plain, heavy), (heavy, plain)):
        first.remember(beside=0)
        then.remember(beside=0)
        assert torch.equal(heavy.rows(0, 64), plain.rows(0, 64) * 3 + 1)
        assert not torch.equal(heavy.rows(0, 64), plain.rows(0, 64))


def test_a_gpu_spares_what_is_little_of_what_is_free_and_has_room_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1600, 1600))
    assert memory.can_spare(100, GPU, beside=1500)
    assert not memory.can_spare(100, GPU, beside=1501), "of what is to lie there"
    assert not memory.can_spare(101, GPU, beside=0), "much of what is free"
    assert not memory.can_spare(0, CPU, beside=0), "all ranks would hold it"


def test_it_is_let_go_where_memory_is_wanted(monkeypatch: pytest.MonkeyPatch, roomy: None) -> None:
    weights, free = GeneratedWeights(64, 32, torch.float32, CPU), 5 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    weights.remember(beside=0)
    assert memory.free_bytes(GPU, enough=free) == free
    assert held_of(weights)
    assert memory.free_bytes(GPU, enough=free + 1) == free
    assert not held_of(weights)
    for look in (lambda: memory.free_bytes(GPU), memory.release):
        weights.remember(beside=0)
        look()
        assert not held_of(weights)


def _rows_made() -> int:
    """Of W, by all that some rows of a point are built, checked and timed for."""
    remembered.forget()
    made: list[int] = []
    whole = GeneratedWeights._block

    def counted(self: GeneratedWeights, index: int, rows: int) -> torch.Tensor:
        made.append(rows)
        return whole(self, index, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratedWeights, "_block", counted)
        patch.setattr(memory, "can_spare", lambda *_: True)
        for method, picks in ROWS:
            case = Case(method, picks, "gaussian", 512, 256, 4, "bf16")
            correctness.run(case)
            forward.run(case, "sync", 2, 1, False)
    remembered.forget()
    return sum(made)


def test_all_rows_of_a_point_make_it_once(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_rows_made) == [512, 512]


def _room_asked_for() -> list[int]:
    """Beside W, by a build."""
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratedWeights, "remember", lambda self, beside: asked.append(beside))
        build(Case("dense_tp_row", {}, "gaussian", 512, 256, 4, "bf16"))
    return asked


def test_room_is_left_for_all_that_is_built_at_a_time(cpu_ranks: Ranks) -> None:
    (asked,), _ = cpu_ranks.run(_room_asked_for)
    assert asked > 3 * 512 * 128 * 2
