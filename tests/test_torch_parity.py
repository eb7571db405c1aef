"""What torch publishes for 2:4 tensors (torch.sparse, version 2.11 to 2.13) and what ours gives; docs/torch-parity.md.

torch's conversions run on a CPU, and are compared here with ours. Its products need a GPU: those tests are marked so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fuzzing import examples
from gpus import needs_a_gpu
from hypothesis import given
from hypothesis import strategies as st
from strategies import mask_rows, matrix, seeds
from torch import nn
from torch.nn import functional as F
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, to_sparse_semi_structured
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from blockshock import BlockShockLinear
from blockshock.errors import BlockShockError, InputError, MaskError
from blockshock.kernels import build_kernel
from blockshock.matrices.compressed import Compressed24
from blockshock.matrices.masks import DenseMask
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights, nudge_zeros

HALVES = (torch.bfloat16, torch.float16)


def masked(N: int, K: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A 2:4 matrix without kept zeros, and its mask."""
    mask_NK = mask_rows(N, K, seed)
    return nudge_zeros(matrix(N, K, dtype, seed)).where(mask_NK, 0), mask_NK


@examples(60)
@given(N=st.sampled_from((32, 64)), K=st.sampled_from((64, 128)), dtype=st.sampled_from(HALVES), seed=seeds)
def test_values_and_dense_are_those_of_torchs_conversions(N: int, K: int, dtype: torch.dtype, seed: int) -> None:
    w_NK, mask_NK = masked(N, K, dtype, seed)
    values, meta = sparse_semi_structured_from_dense_cutlass(w_NK)
    ours = Compressed24.from_tensor(w_NK, mask_NK)
    assert torch.equal(ours.values_NJ, values)
    assert torch.equal(ours.decompress(), sparse_semi_structured_to_dense_cutlass(values, meta))
    assert meta.nbytes == ours.positions.nbytes


@examples(40)
@given(seed=seeds, dtype=st.sampled_from(HALVES))
def test_positions_are_torchs_before_it_reorders_them_for_the_hardware(seed: int, dtype: torch.dtype) -> None:
    w_NK, mask_NK = masked(32, 64, dtype, seed)
    _, meta = sparse_semi_structured_from_dense_cutlass(w_NK)
    nibbles = lambda words: sorted(word >> shift & 15 for word in words for shift in (0, 4))  # noqa: E731
    ours = Compressed24.from_tensor(w_NK, mask_NK).positions
    assert nibbles(ours.flatten().tolist()) == nibbles(meta.view(torch.uint8).flatten().tolist())


def test_kept_zeros_stay_where_torch_takes_them_for_dropped() -> None:
    w_NK = torch.zeros(32, 64, dtype=torch.bfloat16)
    mask_NK = torch.tensor([1, 1, 0, 0]).bool().repeat(32, 16)
    assert torch.equal(Compressed24.from_tensor(w_NK, mask_NK).decompress(), w_NK)
    ours = Compressed24.from_tensor(w_NK, mask_NK)
    assert (ours.positions == 0b0100_0100).all()
    _, meta = sparse_semi_structured_from_dense_cutlass(w_NK)
    assert (meta.view(torch.uint8) == 0b1110_1110).all()


def test_three_of_four_are_an_error_where_torch_drops_one() -> None:
    w_NK = torch.tensor([1.0, 2.0, 3.0, 0.0]).bfloat16().repeat(32, 16)
    values, meta = sparse_semi_structured_from_dense_cutlass(w_NK)
    assert not torch.equal(sparse_semi_structured_to_dense_cutlass(values, meta), w_NK)
    with pytest.raises(MaskError, match="row 0, group 0 keeps 3 of 4"):
        Compressed24.from_tensor(w_NK, w_NK != 0)


@pytest.mark.parametrize(
    ("dense", "torchs"),
    [
        (torch.ones(32, 64).bfloat16(), "Only CUDA tensors"),
        (torch.ones(2, 32, 64).bfloat16(), "Only CUDA tensors"),
    ],
)
def test_torch_takes_cuda_tensors_alone(dense: torch.Tensor, torchs: str) -> None:
    with pytest.raises(RuntimeError, match=torchs):
        to_sparse_semi_structured(dense)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((32, 64, 1), torch.bfloat16), ((32,), torch.bfloat16), ((32, 6), torch.bfloat16), ((0, 64), torch.float16)],
)
def test_what_torch_refuses_by_shape_ours_refuses_by_name(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = torch.ones(shape, dtype=dtype)
    with pytest.raises(BlockShockError):
        Compressed24.from_tensor(w, w != 0)
    with pytest.raises(InputError):
        build_mask("random", TensorWeights(w))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 4), (3, 20), (32, 64)])
def test_ours_takes_every_shape_and_layout_that_has_groups(shape: tuple[int, int], dtype: torch.dtype) -> None:
    mask_NK = mask_rows(*shape, 0)
    w_NK = matrix(*shape, torch.float32, 0, "transposed").to(dtype)
    found = Compressed24.from_tensor(w_NK, mask_NK).decompress()
    assert torch.equal(found.float(), w_NK.float().where(mask_NK, 0))


@pytest.mark.parametrize("kernel", ["reference", "gathered"])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 1, 3, 8), (0, 8), (2, 0, 8)])
def test_linear_takes_inputs_of_any_dimensions_as_torchs_does(kernel: str, shape: tuple[int, ...]) -> None:
    linear = nn.Linear(8, 12)
    layer, x = BlockShockLinear(linear, kernel=kernel), torch.randn(shape)
    assert torch.allclose(layer(x), F.linear(x, linear.weight, linear.bias), atol=1e-5)


@pytest.mark.parametrize("x", [torch.ones(5, 9), torch.ones(()), torch.ones(5, 8).bfloat16()])
def test_inputs_that_do_not_fit_are_named(x: torch.Tensor) -> None:
    with pytest.raises(InputError, match="x must be"):
        BlockShockLinear(nn.Linear(8, 12))(x)


def test_the_transpose_of_a_transposable_half_is_packed_of_its_own_as_torchs_packed_t_is() -> None:
    source = TensorWeights(matrix(8, 16, torch.float32, 0))
    half = Piece(source, slice(0, 16), build_mask("tile_random", source))
    turned = half.transposed()
    packed = build_kernel("reference").pack(turned)
    x = matrix(3, 8, torch.float32, 1)
    assert torch.equal(packed(x), x @ half.dense())


@pytest.fixture
def cusparselt() -> Iterator[Any]:
    """torch's own class on this GPU, without the warning that it is a prototype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype")
        yield SparseSemiStructuredTensorCUSPARSELT


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("N", "K"), [(32, 64), (128, 256), (256, 128)])
def test_products_are_torchs_on_a_gpu(cusparselt: Any, N: int, K: int, dtype: torch.dtype) -> None:
    w_NK, mask_NK = (tensor.cuda() for tensor in masked(N, K, dtype, N + K))
    theirs = cusparselt.from_dense(w_NK)
    bias = matrix(1, N, dtype, 1)[0].cuda()
    ours = Compressed24.from_tensor(w_NK, mask_NK)
    assert torch.equal(theirs.values(), ours.values_NJ)
    assert torch.equal(theirs.to_dense(), ours.decompress())
    half = Piece(TensorWeights(w_NK), slice(0, K), DenseMask(mask_NK))
    for tokens in (1, 7, 8, 64):
        x_BK = matrix(tokens, K, dtype, tokens).cuda()
        exact = x_BK.double() @ w_NK.double().T
        # A library may round partial sums to the dtype too: so twice the unit roundoff of all that is added.
        bound = torch.finfo(dtype).eps * (x_BK.double().abs() @ w_NK.double().abs().T)
        products = [build_kernel(name).pack(half)(x_BK) for name in ("reference", "cusparselt:search=no")]
        products += [F.linear(x_BK, theirs), torch.mm(x_BK, theirs.t()), torch.mm(theirs, x_BK.t()).t()]
        assert all(((product.double() - exact).abs() <= bound).all() for product in products)
        biased = [build_kernel(name).pack(half, bias)(x_BK) for name in ("reference", "cusparselt:search=no")]
        biased += [F.linear(x_BK, theirs, bias), torch.addmm(bias, x_BK, theirs.t())]
        exact, bound = exact + bias.double(), bound + torch.finfo(dtype).eps * bias.double().abs()
        assert all(((product.double() - exact).abs() <= bound).all() for product in biased)


@pytest.mark.gpu
@needs_a_gpu
def test_linear_of_three_dimensions_is_torchs_on_a_gpu(cusparselt: Any) -> None:
    w_NK, _ = masked(64, 128, torch.bfloat16, 0)
    x = matrix(6, 128, torch.bfloat16, 1).cuda().view(2, 3, 128)
    theirs = F.linear(x, cusparselt.from_dense(w_NK.cuda()))
    linear = nn.Linear(128, 64, bias=False, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight.copy_(w_NK)
    assert torch.allclose(BlockShockLinear(linear, kernel="cusparselt:search=no", mask="random")(x), theirs, rtol=2e-2)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize(
    ("w", "torchs"),
    [
        (torch.ones(2, 32, 64), "Only 2d tensors"),
        (torch.ones(64, 32).t(), "Only contiguous tensors"),
        (torch.ones(32, 64).double(), "not a supported dtype"),
        (torch.ones(8, 64), "multiple of"),
        (torch.ones(32, 20), "multiple of"),
    ],
)
def test_torch_refuses_on_a_gpu_what_the_page_says(cusparselt: Any, w: torch.Tensor, torchs: str) -> None:
    w = w if w.dtype == torch.float64 else w.bfloat16()
    # A copy to the GPU keeps the strides: the transposed matrix stays one.
    with pytest.raises(RuntimeError, match=torchs):
        cusparselt.from_dense(w.cuda())
