"""What torch's block-sparse kernel is launched with: the packing itself, in parts, and nothing that goes by length."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import fake_bsr
import pytest
import torch
from fake_bsr import FakeKernel, check, faked, packed_of
from strategies import matrix

from blockshock.kernels import bsr, build_block_kernel
from blockshock.kernels.block_kernels import PackedBlocks
from blockshock.kernels.bsr_search import MOST_TRIED, Setting
from blockshock.kernels.right import is_product
from blockshock.machine import bsr_kernel, torch_internals

OPTIONS = ("BLOCKSIZE_COL", "GROUP_SIZE_ROW", "num_stages", "num_warps")
"""What a setting is to torch's kernel."""


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_launch_reads_the_packing_itself() -> None:
    with faked() as kernel:
        packed, w_NK, _ = packed_of()
        packed(matrix(16, 256, torch.bfloat16, 0))
    assert isinstance(packed, bsr.PackedBsr)
    ((_, given),) = kernel.launches
    assert given["values_ptr"] is packed.blocks
    assert given["col_indices_ptr"] is packed.columns
    assert given["crow_indices_ptr"] is packed.starts
    assert given["input_ptr"] is packed.bias
    assert torch.equal(packed._blocks.dense(256).double(), w_NK)


def test_more_tiles_than_a_grid_has_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bsr._TILES == fake_bsr.MOST_TILES
    monkeypatch.setattr(fake_bsr, "MOST_TILES", 4)
    with faked():
        found = packed_of()
        with pytest.raises(AssertionError):
            check(*found, 300)
        monkeypatch.setattr(bsr, "_TILES", 4)
        check(*found, 300)


def test_rows_farther_apart_than_32_bits_count_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bsr, "_ADDRESSED", 256 * 70)
    with faked():
        packed, w_NK, bias = packed_of()
        x_BK = matrix(16, 2048, torch.bfloat16, 0)[:, :256]
        assert is_product(packed(x_BK), x_BK, w_NK, bias)


def variants_of(kernel: FakeKernel, packed: PackedBlocks, *lengths: int) -> int:
    """How many are compiled, x also being columns of something that is no multiple of 16 wide."""
    for B in lengths:
        packed(matrix(B, 256, torch.bfloat16, B))
        packed(matrix(B, 264, torch.bfloat16, B)[:, :256])
    return len(kernel.variants())


def test_no_length_is_compiled_for() -> None:
    with faked() as kernel:
        packed, *_ = packed_of()
        assert variants_of(kernel, packed, 65, 127, 129, 250, 400) == 1, "none is whole tiles: they are copied"
        assert variants_of(kernel, packed, 64, 128, 192, 256, 320) == 2, (
            "rows that are not aligned are read differently"
        )
        assert variants_of(kernel, packed, 3, 14, 20, 31) == 2 + 2, "smaller tiles"
        packed.grad_input(matrix(64, 128, torch.bfloat16, 0))
        assert len(kernel.variants()) == 5, "without a bias"
    with pytest.MonkeyPatch.context() as patch, faked() as kernel:
        product = bsr_kernel.bsr_arguments
        tiles = lambda *given: product(*given) | {"SPLIT_N": len(given[1]) // given[4][0]}  # noqa: E731
        patch.setattr(bsr_kernel, "bsr_arguments", tiles)
        assert variants_of(kernel, packed_of()[0], 64, 128, 192) == 2 * 3, "as torch's own launch does it"


def test_octaves_and_weights_share_what_is_compiled() -> None:
    with faked() as kernel:
        for N, K in ((32, 64), (64, 32)):
            packed, *_ = packed_of(kernel="bsr", N=N, K=K)
            for B in (400, 600):
                packed(matrix(B, K, torch.bfloat16, 0))
                packed.grad_input(matrix(B, N, torch.bfloat16, 0))
        tried = {tuple(given[name] for name in OPTIONS) for _, given in kernel.launches}
        assert len(kernel.variants()) == len(tried) + 1, "with a bias what was found alone"
        assert len(tried) <= MOST_TRIED


def test_what_a_search_tries_is_compiled_side_by_side_before() -> None:
    with faked(lambda meta: meta["num_stages"] == 3) as kernel:
        packed, *_ = packed_of(kernel="bsr")
        packed(matrix(400, 256, torch.bfloat16, 0))
        tried, ahead = kernel.launches[:-2], [given for batch in kernel.compiled for given in batch]
        assert kernel.variants(given for _, given in tried) <= kernel.variants(ahead)
        assert len(kernel.variants(ahead)) == len(ahead), "none is compiled twice"
        batches = [len(batch) for batch in kernel.compiled]
        assert batches[0] >= 6, "what it begins with, and all neighbours"
        assert len(batches) < len({tuple(given[name] for name in OPTIONS) for _, given in tried}) / 2
        assert [given["beta"] for _, given in kernel.launches[-2:]] == [1, 1], "the setting that was found, checked"
        assert {given["beta"] for _, given in tried} == {0}


def test_a_setting_that_is_wrong_with_a_bias_alone_is_searched_with_one() -> None:
    with faked(lambda meta: meta["beta"] == 1 and meta["num_stages"] > 1) as kernel:
        found = packed_of(kernel="bsr")
        check(*found, 400)
        assert isinstance(found[0], bsr.PackedBsr)
        assert {setting.stages for setting in found[0]._chosen.values()} == {1}
        assert "turned away: tile 256, group 1, 4 stages, 4 warps" in found[0].algorithm
    assert len(kernel.compiled) > 1


def test_without_a_mode_for_it_nothing_is_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with faked() as kernel:
        monkeypatch.setattr("torch.sparse._triton_ops.triton", SimpleNamespace())
        check(*packed_of(kernel="bsr"), 400)
        assert not kernel.compiled


def test_a_kernel_that_takes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with faked() as kernel:
        assert torch_internals.knows_bsr(), "what torch has here"
        kernel.fn = lambda values_ptr: None
        assert not torch_internals.knows_bsr()
        packed, *_ = packed_of()
        with pytest.raises(TypeError):
            packed(matrix(16, 256, torch.bfloat16, 0))
    monkeypatch.setattr(torch_internals, "has_bsr", lambda: True)
    monkeypatch.setattr(torch_internals, "knows_bsr", lambda: False)
    said = str(build_block_kernel("bsr").unavailable(torch.device("cuda"), torch.bfloat16))
    assert (
        said == f"is written in Triton, which torch {torch.__version__} calls with other arguments: take 2.11 to 2.13"
    )


def test_a_weight_without_blocks_is_its_bias() -> None:
    with faked():
        packed, _, bias = packed_of()
        none = bsr.Blocks(packed.blocks[:0], packed.columns[:0], torch.zeros_like(packed.starts))
        y_BN = bsr.multiplied(none, matrix(40, 256, torch.bfloat16, 0), packed.bias, Setting(16, 4, 1, 4))
        assert torch.equal(y_BN.double(), bias.expand(40, -1))
