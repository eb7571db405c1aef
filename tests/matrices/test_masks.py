"""Masks: 2:4, complementary, alike in any slice; the patterns' own promises; and what the validators say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from fuzzing import examples
from hypothesis import example, given
from hypothesis import strategies as st

from blockshock.errors import InputError, MaskError
from blockshock.matrices import blocks_of_rows as blocks
from blockshock.matrices import mask_checks, masks
from blockshock.matrices.masks import DenseMask, LazyMask, TiledMask
from blockshock.matrices.named_masks import MASKS, SIX_PATTERNS, build_mask, pattern_mask, transposable_tiles
from blockshock.matrices.weights import GeneratedWeights, TensorWeights

pytestmark = pytest.mark.masks

CPU = torch.device("cpu")
every_mask = pytest.mark.parametrize("name", MASKS.names())
transposable = pytest.mark.parametrize("name", ["tile", "tile_random", "tile_magnitude"])
few = examples(15)
seeds = st.integers(0, 2**32)
row_counts = st.sampled_from((4, 36, 256, 260, 516))
groups = st.integers(1, 9)


def generated(N: int, K: int, seed: int = 0) -> GeneratedWeights:
    return GeneratedWeights(N, K, torch.float32, CPU, seed)


def whole_numbers(N: int, K: int, seed: int, largest: int) -> TensorWeights:
    draws = torch.randint(-largest, largest + 1, (N, K), generator=torch.Generator().manual_seed(seed))
    return TensorWeights(draws.float())


def from_rows(*rows: str) -> DenseMask:
    return DenseMask(torch.tensor([[bit == "1" for bit in row.replace(" ", "")] for row in rows]))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """With tensors this small a second thread only waits, and on a busy machine for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[1 << 20, 1], ids=["one-block", "blocks-of-4-rows"])
def any_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (masks, mask_checks):
        monkeypatch.setattr(module, "row_blocks", lambda rows, size: blocks.row_blocks(rows, size, request.param))


@every_mask
@few
@given(N=row_counts, G=groups, seed=seeds)
def test_mask_and_complement_are_2to4_halves(name: str, N: int, G: int, seed: int) -> None:
    mask = build_mask(name, generated(N, 4 * G, seed))
    ours, theirs = mask.dense(), mask.complement().dense()
    assert ours.shape == (N, 4 * G)
    assert (ours.unflatten(1, (G, 4)).sum(-1) == 2).all()
    assert torch.equal(theirs, ~ours)
    assert torch.equal(mask.complement().complement().dense(), ours)
    mask_checks.check_2to4(mask)
    mask_checks.check_2to4(mask.complement())
    mask_checks.check_complementary(mask, mask.complement())


@every_mask
@few
@example(N=516, ends=(255, 257))
@example(N=516, ends=(3, 514))
@example(N=516, ends=(256, 256))
@given(N=row_counts, ends=st.tuples(st.integers(0, 516), st.integers(0, 516)))
def test_rows_of_any_slice_are_those_of_the_whole(name: str, N: int, ends: tuple[int, int]) -> None:
    start, stop = sorted(min(end, N) for end in ends)
    mask = build_mask(name, generated(N, 12))
    whole = mask.dense()
    assert torch.equal(mask.rows(start, stop), whole[start:stop])
    assert torch.equal(mask.complement().rows(start, stop), ~whole[start:stop])
    assert torch.equal(mask.columns(4, 12).rows(start, stop), whole[start:stop, 4:12])


@every_mask
@few
@given(ends=st.sets(st.integers(0, 8), min_size=2, max_size=2), seed=seeds)
def test_columns_and_complement_commute(name: str, ends: set[int], seed: int) -> None:
    left, right = (4 * end for end in sorted(ends))
    mask = build_mask(name, generated(8, 32, seed))
    wanted = ~mask.dense()[:, left:right]
    assert torch.equal(mask.columns(left, right).complement().dense(), wanted)
    assert torch.equal(mask.complement().columns(left, right).dense(), wanted)
    assert torch.equal(mask.columns(left, 32).complement().columns(0, right - left).dense(), wanted)


@every_mask
@pytest.mark.parametrize("ends", [(2, 8), (0, 6)])
def test_columns_must_not_cut_a_group(name: str, ends: tuple[int, int]) -> None:
    with pytest.raises(MaskError, match="cut a group of four"):
        build_mask(name, generated(4, 8)).columns(*ends)


@pytest.mark.parametrize("name", ["random", "magnitude", "tile_random", "tile_magnitude"])
def test_one_seed_one_mask(name: str) -> None:
    first, again, other = (build_mask(name, generated(512, 64, seed)).dense() for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first[:256], other[:256])
    assert not torch.equal(first[256:], other[256:])
    assert not torch.equal(first[:256], first[256:])


@pytest.mark.parametrize("name", [*SIX_PATTERNS, "tile"])
def test_fixed_mask_of_any_size_costs_a_tile(name: str) -> None:
    mask = build_mask(name, generated(40960, 40960))
    period = ("1100", "1100", "0011", "0011") if name == "tile" else (name,)
    wanted = from_rows(*(period[row % len(period)] * 3 for row in range(40957, 40960))).dense()
    for half, expected in (mask, wanted), (mask.complement(), ~wanted), (mask.columns(20480, 40960), wanted):
        assert half.tile is not None
        assert half.tile.numel() == 4 * len(period)
        assert torch.equal(half.rows(40957, 40960)[:, -12:], expected)


@few
@given(P=st.integers(1, 5), Q=st.sampled_from((4, 8, 12)), ends=st.sets(st.integers(0, 6), min_size=2, max_size=2))
def test_wide_tiles_repeat_and_give_columns(P: int, Q: int, ends: set[int]) -> None:
    left, right = (4 * end for end in sorted(ends))
    tile = torch.randint(2, (P, Q), generator=torch.Generator().manual_seed(P + Q)).bool()
    mask = TiledMask(tile, 7, 24)
    assert torch.equal(mask.dense(), torch.cat([tile] * 7)[:7].repeat(1, 24 // Q))
    assert torch.equal(mask.columns(left, right).dense(), mask.dense()[:, left:right])


def test_exactly_90_tiles_closed_under_complement_and_transposition() -> None:
    tiles = transposable_tiles(CPU)
    as_set = {tuple(tile.flatten().tolist()) for tile in tiles}
    assert len(tiles) == len(as_set) == 90
    assert (tiles.sum(1) == 2).all()
    assert (tiles.sum(2) == 2).all()
    assert {tuple((~tile).flatten().tolist()) for tile in tiles} == as_set
    assert {tuple(tile.T.flatten().tolist()) for tile in tiles} == as_set


def test_random_masks_draw_every_choice_evenly() -> None:
    fours = build_mask("random", generated(600, 400)).dense().unflatten(1, (-1, 4)).flatten(0, 1)
    tiles = build_mask("tile_random", generated(600, 400)).dense().unflatten(1, (-1, 4)).unflatten(0, (-1, 4))
    for drawn, choices in (fours, 6), (tiles.transpose(1, 2).reshape(-1, 16), 90):
        counts = drawn.unique(dim=0, return_counts=True)[1].float()
        assert len(counts) == choices
        assert (counts - counts.mean()).abs().max() < 5 * counts.mean().sqrt()


@transposable
@few
@given(N=row_counts, G=groups, seed=seeds)
def test_tiles_are_2to4_both_ways(name: str, N: int, G: int, seed: int) -> None:
    mask = build_mask(name, generated(N, 4 * G, seed))
    assert (mask.dense().unflatten(0, (-1, 4)).sum(1) == 2).all()
    mask_checks.check_transposable(mask)
    mask_checks.check_transposable(mask.complement())


@transposable
def test_tiles_need_whole_groups_of_rows(name: str) -> None:
    with pytest.raises(MaskError, match=r"multiple of 4, got N = 6"):
        build_mask(name, generated(6, 8))


@few
@given(dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)), ties=st.booleans(), seed=seeds)
def test_magnitude_keeps_the_two_largest_and_the_first_of_equals(dtype: torch.dtype, ties: bool, seed: int) -> None:
    source = whole_numbers(9, 12, seed, largest=2) if ties else GeneratedWeights(9, 12, dtype, CPU, seed)
    sizes = source.rows(0, 9).abs().unflatten(1, (3, 4))
    largest = sizes.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    wanted = torch.zeros(sizes.shape, dtype=torch.bool).scatter(-1, largest, True)
    assert torch.equal(build_mask("magnitude", source).dense(), wanted.flatten(1))


@few
@given(largest=st.sampled_from((1, 1000)), seed=seeds)
def test_tile_magnitude_keeps_the_best_of_all_tiles_in_any_slice(largest: int, seed: int) -> None:
    source = whole_numbers(32, 48, seed, largest)
    mask = build_mask("tile_magnitude", source)
    kept, sizes = mask.dense(), source.rows(0, 32).abs()
    rows = torch.tensor([[column in pair for column in range(4)] for pair in itertools.combinations(range(4), 2)])
    every = rows[torch.cartesian_prod(*[torch.arange(6)] * 4)]
    every = every[(every.sum(1) == 2).all(-1)]
    blocks_of_4x4 = sizes.unfold(0, 4, 4).unfold(1, 4, 4)
    best = (blocks_of_4x4.unsqueeze(2) * every).sum((-2, -1)).amax(-1)
    assert torch.equal((sizes * kept).unfold(0, 4, 4).unfold(1, 4, 4).sum((-2, -1)), best)
    assert torch.equal(torch.cat([mask.rows(row, row + 1) for row in range(32)]), kept)


@pytest.mark.usefixtures("any_blocks")
@pytest.mark.parametrize(("group", "kept"), [("1000", 1), ("0111", 3), ("0000", 0)])
def test_first_group_that_is_not_2to4_is_named(group: str, kept: int) -> None:
    mask = from_rows(*["1100 1010"] * 9, f"0011 {group}", "1111 1111", "0000 1111")
    with pytest.raises(MaskError, match=rf"row 9, group 1 keeps {kept} of 4"):
        mask_checks.check_2to4(mask)


@pytest.mark.usefixtures("any_blocks")
@pytest.mark.parametrize(("group", "what", "column"), [("0111", "both keep", 5), ("0001", "neither keeps", 6)])
def test_first_overlap_or_hole_is_named(group: str, what: str, column: int) -> None:
    theirs = from_rows(*["0011 0011"] * 9, f"0011 {group}", "1111 1111", "0000 0000")
    with pytest.raises(MaskError, match=rf"{what} row 9, group 1 \(column {column}\)"):
        mask_checks.check_complementary(pattern_mask("1100", 12, 8), theirs)
    with pytest.raises(MaskError, match=r"different shapes: \(12, 4\) and \(12, 8\)"):
        mask_checks.check_complementary(pattern_mask("1100", 12, 4), theirs)


@pytest.mark.usefixtures("any_blocks")
def test_first_column_that_is_not_transposable_is_named() -> None:
    tile = ["1100 1010", "1100 1010", "0011 0101", "0011 0101"]
    mask_checks.check_transposable(from_rows(*tile * 3))
    with pytest.raises(MaskError, match="column 5, rows 8 to 11 keep 1 of 4"):
        mask_checks.check_transposable(from_rows(*tile * 2, *tile[:3], "0011 0011"))
    with pytest.raises(MaskError, match="row 7, group 0 keeps 3 of 4"):
        mask_checks.check_transposable(from_rows(*tile, *tile[:3], "1011 0101"))
    with pytest.raises(MaskError, match="multiple of 4, got N = 2"):
        mask_checks.check_transposable(from_rows(*tile[:2]))


def test_of_a_tile_that_repeats_its_last_row_is_looked_at_too() -> None:
    tile = from_rows("1100", "1010", "1001", "0110", "0101", "0011").mask_NK
    mask, turned = TiledMask(tile, 1200, 8), TiledMask(tile[[0, 0, 5, 5]], 1200, 8)
    mask_checks.check_complementary(mask, mask.complement())
    mask_checks.check_transposable(turned)
    with pytest.raises(MaskError, match="not transposable: column 0, rows 0 to 3 keep 3 of 4"):
        mask_checks.check_transposable(mask)
    with pytest.raises(MaskError, match="column 0, rows 4 to 7 keep 3 of 4"):
        mask_checks.check_transposable(TiledMask(tile[[0, 0, 5, 5, 0, 0, 0, 5, 1, 1, 4, 4]], 1200, 8))
    with pytest.raises(MaskError, match=r"neither keeps row 2, group 0 \(column 1\)"):
        mask_checks.check_complementary(turned, TiledMask(~tile[[0, 0, 3]], 1200, 8))
    tile[5] = True
    with pytest.raises(MaskError, match="row 5, group 0 keeps 4 of 4"):
        mask_checks.check_2to4(TiledMask(tile, 1200, 8))


@pytest.mark.parametrize("name", MASKS.names())
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(None), slice(None)),
        (slice(0, 3), slice(4, 12)),
        (slice(5, 16), slice(None)),
        (slice(None, 7), slice(8, None)),
    ],
)
def test_a_part_of_a_mask_is_that_of_the_whole(name: str, rows: slice, columns: slice) -> None:
    whole = build_mask(name, GeneratedWeights(16, 16, torch.float32, "cpu"))
    part, wanted = whole.part(rows, columns), whole.dense()[rows, columns]
    assert torch.equal(part.dense(), wanted)
    assert torch.equal(part.rows(1, 3), wanted[1:3])
    assert torch.equal(part.complement().dense(), ~wanted)
    assert (part.tile is None) == (whole.tile is None)
    if len(wanted) % 4 == 0:
        assert torch.equal(part.transposed().dense(), wanted.T)


@pytest.mark.parametrize(("N", "K"), [(4, 10), (0, 8), (4, 0), (4, -4)])
def test_shapes_that_hold_no_groups_are_refused(N: int, K: int) -> None:
    with pytest.raises(InputError, match="nearest are 8 and 12" if K == 10 else f"positive, got N = {N}, K = {K}"):
        LazyMask(N, K, lambda start, stop: torch.zeros(stop - start, K, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(4,), (1, 3), (0, 4), (4, 0)])
def test_tiles_and_masks_are_boolean_matrices_that_fit(shape: tuple[int, ...]) -> None:
    for tile in torch.ones(shape, dtype=torch.bool), torch.ones(1, 4):
        with pytest.raises(MaskError, match="a tile is a boolean"):
            TiledMask(tile, 4, 8)
    for tensor in torch.ones(4, 8), torch.ones(8).bool():
        with pytest.raises(MaskError, match="a mask is a boolean"):
            DenseMask(tensor)


def test_a_users_mask_takes_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MASKS, "_entries", dict(MASKS._entries))
    MASKS.register("rolled")(lambda source, by=0: TiledMask(from_rows("1100").dense().roll(by, 1), source.N, source.K))
    for spec, row in ("rolled", "1100"), ("rolled:by=1", "0110"):
        assert torch.equal(build_mask(spec, generated(4, 4)).dense(), from_rows(*[row] * 4).dense())
    with pytest.raises(InputError, match="takes by, not 'source'"):
        build_mask("rolled:source=1", generated(4, 4))
