"""Masks of blocks: levels to the block, the largest score kept, the same each time, and wrong values told."""

from __future__ import annotations

import pytest
import torch

from blockshock.errors import InputError, MaskError, UnknownName
from blockshock.matrices.block_mask import BLOCK_SIZES, BlockMask, count_kept, kept_blocks
from blockshock.matrices.masks import DenseMask
from blockshock.matrices.named_masks import pattern_mask
from blockshock.matrices.pieces import MaskedWeights
from blockshock.matrices.weights import GeneratedWeights, TensorWeights
from blockshock.pruning import BLOCK_MASKS, BLOCK_SCORES, BlockScore, block_choice, block_mask

CPU = torch.device("cpu")


def source_of(N: int = 256, K: int = 384, seed: int = 0) -> GeneratedWeights:
    return GeneratedWeights(N, K, torch.float32, CPU, seed)


def inputs() -> torch.Tensor:
    return torch.randn(50, 384, generator=torch.Generator().manual_seed(1))


def by_hand(w_NK: torch.Tensor, size: int) -> list[list[float]]:
    """The sum of each block, in a loop."""
    rows, columns = (count // size for count in w_NK.shape)
    return [
        [w_NK[r * size : (r + 1) * size, c * size : (c + 1) * size].double().sum().item() for c in range(columns)]
        for r in range(rows)
    ]


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_a_level_is_kept_to_the_block(size: int, level: float) -> None:
    mask = block_mask(f"blocks:size={size}:level={level}", source_of())
    blocks = (256 // size) * (384 // size)
    kept = int(mask.kept_RC.sum())
    assert kept == count_kept(blocks, level) == block_choice(f"blocks:size={size}:level={level}").count(256, 384)
    assert abs(kept - blocks * (1 - level)) <= 0.5 or kept == 1
    assert int(mask.dense().sum()) == kept * size**2


SCORES = {"magnitude": lambda w, x: w.abs(), "norm": lambda w, x: w**2, "score": lambda w, x: w.abs() * x}


@pytest.mark.parametrize("by", SCORES)
def test_the_largest_stay(by: str) -> None:
    source = source_of()
    mask = block_mask(f"blocks:size=32:level=0.75:by={by}", source, inputs)
    scores = torch.tensor(by_hand(SCORES[by](source.rows(0, 256).double(), inputs().double().norm(dim=0)), 32))
    assert scores[mask.kept_RC].min() > scores[~mask.kept_RC].max()


def test_an_input_that_is_large_keeps_its_blocks() -> None:
    """A planted fault: what forgets x keeps other blocks."""
    source, loud = source_of(), inputs()
    loud[:, 64:96] *= 1e3
    kept = block_mask("blocks:size=32:level=0.9:by=score", source, lambda: loud).kept_RC
    assert bool(kept[:, 2].all())
    assert not bool(block_mask("blocks:size=32:level=0.9:by=magnitude", source).kept_RC[:, 2].all())


@pytest.mark.parametrize("by", BLOCK_SCORES.names())
def test_the_same_each_time_and_random_by_its_seed(by: str) -> None:
    first, again, other = (
        block_mask(f"blocks:size=16:by={by}", source_of(seed=seed), inputs).kept_RC for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_among_equals_the_first_stay() -> None:
    mask = block_mask("blocks:size=8:level=0.5", TensorWeights(torch.ones(16, 32)))
    assert mask.kept_RC.tolist() == [[True] * 4, [False] * 4]


def test_of_each_four_blocks_two() -> None:
    source = source_of(64, 256)
    mask = block_mask("blocks_24:size=16", source)
    scores = torch.tensor(by_hand(source.rows(0, 64).abs(), 16)).unflatten(1, (-1, 4))
    kept = mask.kept_RC.unflatten(1, (-1, 4))
    assert torch.equal(kept.sum(-1), torch.full((4, 4), 2))
    assert bool((scores.where(kept, torch.inf).amin(-1) > scores.where(~kept, 0).amax(-1)).all())
    assert int(mask.kept_RC.sum()) == block_choice("blocks_24:size=16").count(64, 256)


@pytest.mark.parametrize(("inside", "pattern"), [("1100", "1100"), ("0011", "0011"), ("0101", "0101")])
def test_what_is_kept_inside_is_2to4(inside: str, pattern: str) -> None:
    source = source_of(64, 128)
    mask = block_mask(f"blocks:size=16:level=0.5:inside={inside}", source)
    whole = block_mask("blocks:size=16:level=0.5", source)
    assert torch.equal(mask.dense(), whole.dense() & pattern_mask(pattern, 64, 128).dense())
    assert torch.equal(kept_blocks(mask, 16), whole.kept_RC)
    assert torch.equal(mask.transposed().dense(), mask.dense().T)


def test_blocks_of_any_mask_are_found() -> None:
    mask_NK = torch.zeros(32, 64, dtype=torch.bool)
    mask_NK[17, 9], mask_NK[3, 63] = True, True
    assert kept_blocks(DenseMask(mask_NK), 16).nonzero().tolist() == [[0, 3], [1, 0]]
    small = BlockMask(torch.tensor([[True, False, False, False]]), 8)
    with pytest.raises(RuntimeError):
        kept_blocks(small, 16)
    assert kept_blocks(BlockMask(torch.eye(4, dtype=torch.bool), 8), 16).tolist() == [[True, False], [False, True]]


def test_w_is_zero_where_blocks_are_dropped() -> None:
    source = source_of()
    mask = block_mask("blocks:size=64", source)
    own = MaskedWeights(source, mask)
    for start, stop in ((0, 256), (60, 70), (100, 100)):
        wanted = source.rows(start, stop).where(mask.rows(start, stop), 0)
        assert torch.equal(own.rows(start, stop), wanted)
    with pytest.raises(MaskError, match=r"for a \(256, 384\) weight, this one is \(384, 256\)"):
        MaskedWeights(source_of(384, 256), mask)


def test_a_mask_whose_blocks_were_written_to_is_refused() -> None:
    kept = torch.eye(4, dtype=torch.bool)
    mask = BlockMask(kept, 8)
    kept[0, 1] = True
    with pytest.raises(MaskError, match="changed after weights were packed"):
        mask.check_unchanged()
    with pytest.raises(MaskError, match="blocks are a boolean"):
        BlockMask(torch.eye(4), 8)
    with pytest.raises(MaskError, match=r"inside a mask of \(32, 64\)"):
        BlockMask(torch.eye(4, dtype=torch.bool), 8, pattern_mask("1100", 32, 64))


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("blocks:level=1.5", InputError, r"level must lie in 0 … 1, got level=1\.5"),
        ("blocks:level=-0.1", InputError, r"level must lie in 0 … 1, got level=-0\.1"),
        ("blocks:level=nan", InputError, "level must lie in 0 … 1, got level=nan"),
        ("blocks:level=1.0", InputError, r"level=1 drops all blocks: take a level from 0 up to below 1"),
        ("blocks:level=high", InputError, "level takes a number, not 'high'"),
        ("blocks:size=48", InputError, r"size must be one of 8, 16, 32, 64, 128, got size=48: nearest 32 and 64"),
        ("blocks:size=4", InputError, "got size=4: nearest 8$"),
        ("blocks:size=256", InputError, "got size=256: nearest 128$"),
        ("blocks:size=big", InputError, "size takes a whole number"),
        ("blocks:by=magnitud", UnknownName, r"no block score is named 'magnitud'\. Did you mean 'magnitude'\?"),
        ("blocks:by=7", UnknownName, "no block score is named '7'.* Choices: magnitude, norm, random, score"),
        ("blocks:inside=1110", UnknownName, "no mask is named '1110'"),
        ("blocks_24:level=0.5", InputError, "takes size, by, inside, not 'level'"),
        ("blok", UnknownName, r"no block mask is named 'blok'\. Did you mean 'blocks'\?"),
        ("blocks:by=score", InputError, r"blocks:by=score needs calibration inputs \(T, 384\), and was given none"),
    ],
)
def test_wrong_values_are_told(spec: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        block_mask(spec, source_of())


@pytest.mark.parametrize(
    ("spec", "N", "K", "said"),
    [
        ("blocks:size=64", 96, 384, "blocks of 64 do not divide N = 96, K = 384: the nearest size that does is 32"),
        ("blocks:size=8", 100, 384, "nor does any other size: the nearest that they divide are N = 96 or 104"),
        ("blocks:size=64", 4, 100, "nor does any other size: the nearest that they divide are N = 64, K = 64 or 128"),
        ("blocks_24:size=64", 64, 384, "blocks of 64 in groups of 4 do not divide N = 64, K = 384: .* is 32"),
    ],
)
def test_blocks_that_do_not_divide_w_name_what_does(spec: str, N: int, K: int, said: str) -> None:
    source = TensorWeights(torch.ones(N, K))
    assert block_choice(spec).unsuitable(N, K) is not None
    with pytest.raises(InputError, match=said):
        block_mask(spec, source)


def test_calibration_with_nan_is_refused() -> None:
    x_TK = inputs()
    x_TK[3, 5] = float("nan")
    with pytest.raises(InputError, match="calibration inputs holds nan at row 3, column 5"):
        block_mask("blocks:by=score", source_of(), lambda: x_TK)


def test_ones_own_score_is_a_class() -> None:
    @BLOCK_SCORES.register("largest_only")
    class LargestOnly(BlockScore):
        """w² of those above 1."""

        def elements(self, w_RK: torch.Tensor) -> torch.Tensor:
            return w_RK.square() * (w_RK.abs() > 1)

    try:
        w_NK = torch.full((16, 16), 0.9)
        w_NK[9, 2] = 2
        assert block_mask("blocks:size=8:level=0.7:by=largest_only", TensorWeights(w_NK)).kept_RC.tolist() == [
            [False, False],
            [True, False],
        ]
    finally:
        del BLOCK_SCORES._entries["largest_only"]
    assert BLOCK_MASKS.names() == ("blocks", "blocks_24")
