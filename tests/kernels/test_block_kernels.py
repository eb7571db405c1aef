"""Block kernels: each multiplies by the kept blocks as float64 says, takes new values, and holds what it says."""

from __future__ import annotations

import copy

import pytest
import torch
from strategies import LAYOUTS, matrix

from blockshock.errors import InputError, KernelUnavailable, UnknownName
from blockshock.kernels import BLOCK_KERNELS, BlockKernel, BlockLayout, Packed, build_block_kernel
from blockshock.kernels.block_kernels import PackedBlocks
from blockshock.machine.memory import held_bytes
from blockshock.matrices.block_mask import BLOCK_SIZES
from blockshock.matrices.named_masks import MASKS
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.methods import axis_of, parse_row
from blockshock.pruning import PRUNERS, block_mask

CPU = torch.device("cpu")
ON_CPU = tuple(name for name in BLOCK_KERNELS.names() if "cpu" in BLOCK_KERNELS.get(name).device_types)


def piece_of(
    spec: str = "blocks:size=16:level=0.7",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    N: int = 128,
    K: int = 256,
) -> Piece:
    source = TensorWeights(matrix(N, K, dtype, seed), matrix(1, N, dtype, seed + 1)[0])
    return Piece(source, mask=block_mask(spec, source))


def pack(kernel: str, piece: Piece, backward: bool = True) -> Packed:
    built = build_block_kernel(kernel)
    built.check(piece, piece.kept.size)  # type: ignore[attr-defined]
    return built.pack(piece, piece.kept.size, piece.source.bias, backward)  # type: ignore[attr-defined]


def check(packed: Packed, piece: Piece, layout: str = "whole", B: int = 5) -> None:
    """Small whole numbers and halves, that all sums add up to exactly before they are rounded."""
    x_BK, grad_y_BN = (matrix(B, width, piece.dtype, 3, layout) for width in (piece.K, piece.N))
    w_NK, bias = piece.dense().double(), piece.source.bias
    assert bias is not None
    close = {"rtol": torch.finfo(piece.dtype).eps, "atol": 1e-30}
    torch.testing.assert_close(packed(x_BK).double(), x_BK.double() @ w_NK.T + bias.double(), **close)
    torch.testing.assert_close(packed.grad_input(grad_y_BN).double(), grad_y_BN.double() @ w_NK, **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("kernel", ON_CPU)
def test_products_are_right(kernel: str, size: int, dtype: torch.dtype) -> None:
    for more in ("level=0.0", "level=0.5", "level=0.9", "level=0.99", "level=0.5:inside=1100"):
        piece = piece_of(f"blocks:size={size}:{more}", dtype)
        packed = pack(kernel, piece)
        for B in (0, 1, 7, 16):
            check(packed, piece, B=B) if B else None
            assert packed(matrix(max(B, 1), 256, dtype, 0)[:B]).shape == (B, 128)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", ON_CPU)
def test_x_may_lie_anyhow(kernel: str, layout: str) -> None:
    piece = piece_of()
    check(pack(kernel, piece), piece, layout)


@pytest.mark.parametrize(
    "spec", ["blocks:size=16:level=0.7", "blocks:size=8:level=0.5:inside=1010", "blocks_24:size=16"]
)
@pytest.mark.parametrize("kernel", ON_CPU)
def test_new_values_are_taken_over_both_ways(kernel: str, spec: str) -> None:
    old, source = piece_of(spec), TensorWeights(matrix(128, 256, torch.float32, 9), matrix(1, 128, torch.float32, 1)[0])
    new = Piece(source, mask=old.kept)
    packed = pack(kernel, old)
    packed.write(packed.kept_of(new.dense()).double())
    check(packed, new)
    packed.recompress(old.dense())
    check(packed, old)
    values = packed.values
    values.copy_(packed.kept_of(new.dense()))  # an optimizer writes where the packing has them
    packed.write(values)
    check(copy.deepcopy(packed), new)


@pytest.mark.parametrize("spec", ["blocks:size=8:level=0.9", "blocks:size=64:level=0.8", "blocks_24:size=16"])
@pytest.mark.parametrize("kernel", ON_CPU)
def test_what_is_held_is_what_is_said(kernel: str, spec: str) -> None:
    piece, built = piece_of(spec, torch.bfloat16), build_block_kernel(kernel)
    mask = piece.kept
    layout = BlockLayout(128, 256, mask.size, int(mask.kept_RC.sum()))  # type: ignore[attr-defined]
    forward, both = pack(kernel, piece, backward=False), pack(kernel, piece)
    for packed in (forward, both):
        assert packed.bias is not None
    told = built.weight_bytes(layout, 2)
    assert held_bytes(forward.tensors()) - forward.bias.nbytes == told  # type: ignore[union-attr]
    assert held_bytes(both.tensors()) - both.bias.nbytes == told + built.backward_bytes(layout, 2)  # type: ignore[union-attr]
    operand = forward.operand
    stored = 128 * 256 if kernel == "dense" else layout.count * layout.size**2
    assert (operand.values, operand.unit) == (stored, "dense")
    assert operand.size == told


def test_a_wrong_place_of_a_block_is_caught() -> None:
    """A planted fault: one column index off by one."""
    piece = piece_of()
    packed = pack("reference", piece)
    check(packed, piece)
    assert isinstance(packed, PackedBlocks)
    packed.columns[3] = (packed.columns[3] + 1) % (256 // 16)
    with pytest.raises(AssertionError):
        check(packed, piece)


def test_a_backward_packing_in_another_order_is_caught() -> None:
    piece = piece_of()
    packed = pack("reference", piece)
    assert packed.backward is not None
    packed.backward.order = packed.backward.order.roll(1)  # type: ignore[attr-defined]
    packed.write(packed.kept_of(piece.dense()))
    with pytest.raises(AssertionError):
        check(packed, piece)


def test_each_says_why_it_cannot_run() -> None:
    for name in BLOCK_KERNELS.names():
        built = build_block_kernel(name)
        reason = built.unavailable(CPU, torch.float32)
        assert (reason is None) == ("cpu" in built.device_types)
        assert reason is None or "needs a cuda device, this is cpu" in reason
        assert "int8" in str(built.unavailable(CPU, torch.int8)) or "cuda" in str(reason)
    with pytest.raises(InputError, match="needs a mask of blocks, and this piece is dense"):
        build_block_kernel("reference").check(Piece(TensorWeights(torch.ones(16, 16))), 16)

    class Never(BlockKernel):
        def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
            return "is never there"

        def unsuitable(self, N: int, K: int, size: int) -> str | None:
            return "takes nothing"

    with pytest.raises(KernelUnavailable, match="block kernel never: is never there"):
        Never().check(piece_of(), 16)


def test_a_name_of_the_other_registry_is_told_whose_it_is() -> None:
    with pytest.raises(UnknownName, match=r"^no block kernel is named 'streamed', but a kernel is\. Choices: .*dense"):
        build_block_kernel("streamed")
    with pytest.raises(UnknownName, match=r"^no pruner is named 'blocks', but a block mask is\. Choices: "):
        PRUNERS.resolve("blocks:size=64")
    with pytest.raises(UnknownName, match=r"^no mask is named 'blocks', but a block mask is\. Choices: "):
        MASKS.resolve("blocks:size=64", skip=1)


def test_ones_own_kernel_is_picked_where_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCK_KERNELS, "_entries", dict(BLOCK_KERNELS._entries))

    @BLOCK_KERNELS.register("mine")
    class Mine(BLOCK_KERNELS.get("dense")):  # type: ignore[misc]
        contender = True

    axis = axis_of("block_kernel")
    assert axis.option == "--block-kernels"
    assert axis.usual("cpu", {}, False) == axis.each("cpu", {}) == ("mine",)
    assert set(axis.names("cpu")) == {"reference", "dense", "mine"}
    assert parse_row("block_sparse-mine-blocks:size=16").picks == {
        "block_kernel": "mine",
        "block_mask": "blocks:size=16",
    }
