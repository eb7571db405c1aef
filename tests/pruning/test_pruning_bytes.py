"""What pruning takes is said by arithmetic, for every pruner, and held to what is counted."""

from __future__ import annotations

import pytest
import torch
from live_bytes import LiveBytes

from blockshock.matrices import GeneratedWeights, Piece
from blockshock.methods import METHODS, Shape
from blockshock.pruning import PRUNERS, PrunedWeights, Pruner, prune, pruned

SHAPES = {"many rows": (2048, 64, 8), "many channels": (16, 512, 8), "many tokens": (8, 64, 4096)}
DTYPES = (torch.bfloat16, torch.float32)


def _counted(name: str, N: int, K: int, T: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that were held at most, and that were said to be."""
    x_TK = torch.randn(T, K, generator=torch.Generator().manual_seed(0)).to(dtype)
    prune(name, Piece(GeneratedWeights(8, 16, dtype, "cpu")), lambda: x_TK[:, :16])  # what is made once and kept
    piece = Piece(GeneratedWeights(N, K, dtype, "cpu"))
    with LiveBytes() as live:
        prune(name, piece, lambda: x_TK)
    kind = PRUNERS.get(name)
    said = PrunedWeights.held_bytes(N, K, dtype.itemsize) + kind.working_bytes(N, K, T if kind.needs_inputs else 0)
    return live.peak, said


@pytest.mark.parametrize("name", PRUNERS.names())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_more_is_held_than_is_said(name: str, shape: str, dtype: torch.dtype) -> None:
    counted, said = _counted(name, *SHAPES[shape], dtype)
    assert counted <= said < 5 * counted, "an allocator and a library need some beside, so no closer"


class _Unsaid(PRUNERS.get("magnitude")):  # type: ignore[misc]
    """Holds a (K, K) matrix of which it does not tell."""

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None) -> None:
        super().__init__(piece, x_TK)
        self._moments_KK = torch.eye(piece.K, dtype=torch.float64)


def test_one_that_does_not_say_what_it_holds_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRUNERS._entries, "unsaid", _Unsaid)
    counted, said = _counted("unsaid", *SHAPES["many channels"], torch.bfloat16)
    assert counted > said


@pytest.mark.parametrize("method", ["pruned", "pruned_tp_row", "torch_semi_structured"])
def test_a_layers_estimate_holds_what_its_pruner_does(method: str) -> None:
    def building(pruner: str) -> int:
        picks = {"kernel": "reference", "pruner": pruner}
        return METHODS.get(method).estimate(Shape(4096, 8192, 2, 1, picks=picks)).building

    inputs, blocks = 1024 * 8192 * 2, 1024 * 8192
    assert building("alps") >= 40 * 8192**2 + inputs
    assert building("sparsegpt") >= 32 * 8192**2 + inputs
    assert building("tile_wanda") >= 80 * blocks + inputs
    assert building("magnitude") < 48 * blocks + 2 * 4096 * 8192 * 2


def test_blocks_are_as_high_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part of the columns too, whose blocks are cut by the whole."""
    heights = []

    class Looking(PRUNERS.get("magnitude")):  # type: ignore[misc]
        @classmethod
        def working_bytes(cls, R: int, K: int, T: int) -> int:
            heights.append((R, K))
            return 0

        def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
            heights.append(tuple(w_RK.shape))  # type: ignore[arg-type]
            return super().prune(w_RK, start)  # type: ignore[no-any-return]

    monkeypatch.setitem(PRUNERS._entries, "looking", Looking)
    monkeypatch.setattr(pruned, "BLOCK_BYTES", 64 << 10)
    prune("looking", Piece(GeneratedWeights(512, 128, torch.bfloat16, "cpu"), slice(0, 64)))
    pruned.pruning_bytes("looking", 512, 64, 128, 2)
    assert heights == [(256, 64), (256, 64), (256, 64)]
    assert Pruner.working_bytes(4, 8, 0) > 0
