"""W that is remembered is the same, bit for bit; made once for all rows of a point, let go where memory is wanted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from blockshock.machine import memory
from blockshock.matrices import remembered
from blockshock.matrices.weights import GeneratedWeights
from blockshock.phases import Case, correctness, forward
from blockshock.ranks import Ranks

CPU = torch.device("cpu")
ROWS = (
    ("dense_tp_row", {}),
    ("pruned_tp_col", {"kernel": "reference", "pruner": "magnitude"}),
    ("block_shock", {"kernel": "gathered", "mask": "1100"}),
)


@pytest.fixture(autouse=True)
def _nothing_is_held() -> Iterator[None]:
    remembered.forget()
    yield
    remembered.forget()


def held_of(weights: GeneratedWeights) -> bool:
    return remembered.remembered(weights._key) is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("N", [1, 255, 256, 700])
def test_rows_are_the_same(N: int, dtype: torch.dtype) -> None:
    anew, held = (GeneratedWeights(N, 24, dtype, CPU, seed=3, with_bias=True) for _ in range(2))
    spans = [(0, N), (0, 1), (N // 3, 2 * N // 3), (N - 1, N), (N, N)]
    wanted = [anew.rows(*span) for span in spans]
    held.remember()
    assert held_of(held)
    for span, rows in zip(spans, wanted, strict=True):
        found = held.rows(*span)
        assert torch.equal(found, rows)
        found.zero_()  # is the caller's
        assert torch.equal(anew.rows(*span), rows)


def test_one_is_held_at_a_time_and_others_are_others() -> None:
    first = GeneratedWeights(64, 32, torch.float32, CPU, seed=1)
    others = [
        GeneratedWeights(64, 32, torch.float32, CPU, seed=2),
        GeneratedWeights(64, 32, torch.bfloat16, CPU, seed=1),
        GeneratedWeights(32, 64, torch.float32, CPU, seed=1),
    ]
    for other in others:
        first.remember()
        other.remember()
        assert held_of(other)
        assert not held_of(first)


def test_what_is_much_of_what_is_free_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = GeneratedWeights(64, 32, torch.float32, CPU)
    monkeypatch.setattr(memory, "_available", lambda: 16 * 64 * 32 * 4 - 1)
    weights.remember()
    assert not held_of(weights)
    monkeypatch.setattr(memory, "_available", lambda: 16 * 64 * 32 * 4)
    weights.remember()
    assert held_of(weights)


def test_it_is_let_go_where_memory_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = GeneratedWeights(64, 32, torch.float32, CPU)
    weights.remember()
    monkeypatch.setattr(memory, "_available", lambda: 5 << 30)
    assert memory.free_bytes(CPU, enough=5 << 30) == 5 << 30
    assert held_of(weights)
    assert memory.free_bytes(CPU, enough=(5 << 30) + 1) == 5 << 30
    assert not held_of(weights)
    for look in (lambda: memory.free_bytes(CPU), memory.release):
        weights.remember()
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
        for method, picks in ROWS:
            case = Case(method, picks, "gaussian", 512, 256, 4, "bf16")
            correctness.run(case)
            forward.run(case, "sync", 2, 1, False)
    return sum(made)


def test_all_rows_of_a_point_make_it_once(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_rows_made) == [512, 512]
