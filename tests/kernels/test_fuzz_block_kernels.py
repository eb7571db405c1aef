"""Block masks and kernels, of every shape, layout, dtype and spec, beside float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, LAYOUTS, matrix, seeds, specs

from blockshock.kernels.block_kernels import BLOCK_KERNELS, BlockLayout, build_block_kernel
from blockshock.matrices.block_mask import (
    BLOCK_SIZES,
    BlockMask,
    check_level,
    check_size_of_blocks,
    count_kept,
    in_blocks,
    kept_blocks,
    why_not_blocks,
)
from blockshock.matrices.pieces import MaskedWeights, Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import BLOCK_MASKS, BLOCK_SCORES, block_choice, block_mask

pytestmark = pytest.mark.reliability
CPU = torch.device("cpu")
sizes = st.sampled_from((8, 16, 24, 32, 40, 64))


@pytest.mark.parametrize("kernel", ["dense", "reference"])
@examples(80)
@given(
    data=st.data(), N=sizes, K=sizes, B=st.integers(0, 7), seed=seeds, dtype=st.sampled_from(FLOATS),
    name=st.sampled_from(BLOCK_MASKS.names()), size=st.sampled_from((8, 16, 32)), level=st.floats(0, 1),
    by=st.sampled_from(BLOCK_SCORES.names()), inside=st.sampled_from(("", ":inside=1100", ":inside=random")),
)  # fmt: skip
def test_kernels_multiply_by_the_kept_blocks(
    kernel: str, data: Any, N: int, K: int, B: int, seed: int, dtype: torch.dtype, name: str, size: int, level: float,
    by: str, inside: str,
) -> None:  # fmt: skip
    x_BK, grad_y_BN = (
        matrix(max(B, 1), width, dtype, seed + 1, data.draw(st.sampled_from(LAYOUTS)))[:B] for width in (K, N)
    )
    source = TensorWeights(matrix(N, K, dtype, seed, data.draw(st.sampled_from(LAYOUTS))), matrix(1, N, dtype, 1)[0])
    spec = f"{name}:size={size}:by={by}{inside}" + (f":level={level}" if name == "blocks" else "")
    mask = attempt(block_mask, spec, source, lambda: matrix(3, K, dtype, seed))
    if mask is None:
        assert level == 1 or block_choice(spec).unsuitable(N, K)
        return
    assert int(mask.kept_RC.sum()) == block_choice(spec).count(N, K)
    own = MaskedWeights(source, mask)
    packed = build_block_kernel(kernel).pack(Piece(source, mask=mask), size, source.bias, backward=True)
    w64, bias = own.rows(0, N).double(), source.bias
    assert bias is not None
    close = {"rtol": torch.finfo(dtype).eps, "atol": 1e-30}
    torch.testing.assert_close(packed(x_BK).double(), x_BK.double() @ w64.T + bias.double(), **close)
    torch.testing.assert_close(packed.grad_input(grad_y_BN).double(), grad_y_BN.double() @ w64, **close)
    assert torch.equal(kept_blocks(mask, size), mask.kept_RC)
    assert bool(in_blocks(mask.dense(), size)[~mask.kept_RC].logical_not().all())


@examples(200)
@given(spec=specs((*BLOCK_MASKS.names(), *BLOCK_KERNELS.names())))
def test_any_spec_is_taken_or_refused(spec: str) -> None:
    attempt(block_choice, spec)
    attempt(build_block_kernel, spec)


@examples(200)
@given(
    N=st.integers(1, 300), K=st.integers(1, 300), size=st.integers(-8, 300), across=st.sampled_from((1, 4)),
    level=st.floats(allow_nan=True) | st.floats(0, 1),
)  # fmt: skip
def test_sizes_and_levels_are_taken_or_told(N: int, K: int, size: int, across: int, level: float) -> None:
    taken = attempt(lambda: check_size_of_blocks(size) or True)
    assert bool(taken) == (size in BLOCK_SIZES)
    assert (attempt(lambda: check_level(level) or True) is not None) == (0 <= level < 1)
    if not taken:
        return
    reason = why_not_blocks(N, K, size, across)
    assert (reason is None) == (N % size == 0 == K % (size * across))
    if 0 <= level < 1:
        blocks = max(N // size * (K // size), 1)
        assert 1 <= count_kept(blocks, level) <= blocks
        layout = BlockLayout(N // size * size, K // size * size, size, count_kept(blocks, level))
        assert layout.transposed.transposed == layout
        assert layout.value_bytes(2) == 2 * layout.count * size**2
        assert layout.index_bytes() > 8 * layout.count


@examples(60)
@given(kept=st.lists(st.booleans(), min_size=6, max_size=6), start=st.integers(0, 16), stop=st.integers(0, 16))
def test_rows_of_a_mask_are_those_of_all(kept: list[bool], start: int, stop: int) -> None:
    mask = BlockMask(torch.tensor(kept).view(2, 3), 8)
    whole = torch.tensor(kept).view(2, 1, 3, 1).expand(2, 8, 3, 8).reshape(16, 24)
    assert torch.equal(mask.dense(), whole)
    assert torch.equal(mask.transposed().dense(), whole.T)
    assert torch.equal(mask.complement().dense(), ~whole)
    found = attempt(mask.rows, start, stop)
    assert (found is None) == (start > stop)
    assert found is None or torch.equal(found, whole[start:stop])
