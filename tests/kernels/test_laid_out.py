"""A product row by row of what was laid out once is that of all rows, to the bit, and copies nothing of x again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt
from strategies import LAYOUTS, equal, matrix

from blockshock import stages
from blockshock.kernels import Format, Packed, Stored, build_format, build_kernel
from blockshock.kernels.cutlass import PackedCutlass
from blockshock.kernels.formats import Order, PackedDenseQuantised
from blockshock.kernels.streamed import PackedStreamed
from blockshock.kernels.wgmma import PackedWgmma
from blockshock.matrices.masks import TiledMask
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights

__all__ = ["fake_cusparselt"]

N, K, B = 32, 64, 48
CHUNKS = [slice(0, 16), slice(16, 40), slice(40, 48)]
SOURCE = TensorWeights(matrix(N, K, torch.bfloat16, 0))
BIAS = matrix(1, N, torch.bfloat16, 1)[0]

TILES = [["1010"], ["1100", "0011"], ["1100", "1100", "0110", "1001"]]
"""Of one pattern, two and three, some of whose columns are the same."""


def _piece(mask: str) -> Piece:
    return Piece(SOURCE, mask=build_mask(mask, SOURCE))


def _in_chunks(packed: Packed, x_BK: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """y, chunk by chunk; and the bytes that were copied before the first of them, and after that."""
    y_BN = torch.full((len(x_BK), N), torch.nan, dtype=x_BK.dtype)
    with stages.recording(lambda: None) as recorder:
        laid = packed.laid_out(x_BK)
        before = recorder.copied_bytes
        for rows in CHUNKS:
            assert packed.laid_into([held[rows] for held in laid], y_BN[rows]).data_ptr() == y_BN[rows].data_ptr()
    return y_BN, before, recorder.copied_bytes - before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "none"])
@pytest.mark.parametrize("rows", TILES, ids=len)
def test_gathered_takes_the_columns_of_each_pattern_once(
    rows: list[str], bias: torch.Tensor | None, layout: str
) -> None:
    mask = TiledMask(torch.tensor([[kept == "1" for kept in row] for row in rows]), N, K)
    packed = build_kernel("gathered").pack(Piece(SOURCE, mask=mask), bias)
    patterns, x_BK = len(packed.patterns), matrix(B, K, torch.bfloat16, 2, layout)
    y_BN, before, after = _in_chunks(packed, x_BK)
    assert equal(y_BN, packed(x_BK))
    assert equal(packed.into(x_BK, torch.empty_like(y_BN)), y_BN)
    assert before == patterns * B * K // 2 * 2
    assert after == (y_BN.nbytes if patterns > 1 else 0), "features of several patterns are put where they belong"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cusparselt_has_its_rows_laid_out_once(fake_cusparselt: Any, layout: str) -> None:
    packed, x_BK = fake_cusparselt(search=False).pack(_piece("random"), BIAS), matrix(B, K, torch.bfloat16, 2, layout)
    with stages.recording(lambda: None) as recorder:
        wanted = packed(x_BK)
    y_BN, before, after = _in_chunks(packed, x_BK)
    assert equal(y_BN, wanted)
    assert before == recorder.copied_bytes
    assert after == y_BN.nbytes, "it writes to memory of its own alone"


@pytest.mark.parametrize("kind", [PackedStreamed, PackedCutlass])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_others_that_read_memory_get_rows_that_lie_as_they_need(kind: type[Packed], layout: str) -> None:
    """Without a GPU there is no packing of these; what they lay out goes by x alone."""
    x_BK = matrix(B, K, torch.bfloat16, 2, layout)
    (laid,) = kind.laid_out(kind.__new__(kind), x_BK)
    assert equal(laid, x_BK)
    assert laid.stride(1) == 1
    assert not any(laid[rows].data_ptr() % 16 for rows in CHUNKS)


@pytest.mark.parametrize("kernel", ["reference", "dense"])
def test_what_takes_x_as_it_is_copies_none_of_it(kernel: str) -> None:
    packed, x_BK = build_kernel(kernel).pack(_piece("random"), BIAS), matrix(B, K, torch.bfloat16, 2, "part")
    y_BN, before, _ = _in_chunks(packed, x_BK)
    assert equal(y_BN, packed(x_BK))
    assert packed.laid_out(x_BK)[0] is x_BK
    assert not before


def _quantised(kernel: str, name: str) -> Any:
    format = build_format(name)
    assert format is not None
    if kernel == "none":
        return PackedDenseQuantised(SOURCE, BIAS, format)
    return build_kernel(kernel).pack_quantised(_piece("random"), BIAS, format)


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("kernel", ["none", "reference", "cusparselt:search=no"])
def test_in_a_format_x_is_quantised_once(
    fake_cusparselt: Any, kernel: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, x_BK = _quantised(kernel, name), matrix(B, K, torch.bfloat16, 2)
    wanted, kind = packed(x_BK), type(packed.format)
    quantised, quantise = [], kind.quantise_in

    def counted(self: Format, rows_RK: torch.Tensor, order: Order) -> Stored:
        quantised.append(len(rows_RK))
        return quantise(self, rows_RK, order)

    monkeypatch.setattr(kind, "quantise_in", counted)
    y_BN, *_ = _in_chunks(packed, x_BK)
    assert equal(y_BN, wanted)
    assert quantised == [B]


def test_what_lies_in_tiles_has_no_rows_to_take() -> None:
    format = build_format("int8")
    assert format is not None
    packed, x_BK = PackedWgmma(_piece("random"), None, format), matrix(B, K, torch.bfloat16, 2)
    assert packed.order is Order.TILES
    assert packed.laid_out(x_BK)[0] is x_BK
