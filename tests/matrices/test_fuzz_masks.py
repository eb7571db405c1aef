"""Masks, patterns, compression and blocks, with matrices of every layout and with what is no mask at all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ANY,
    FLOATS,
    HUGE,
    LAYOUTS,
    counts,
    equal,
    fours,
    is_2to4,
    mask_rows,
    matrices,
    matrix,
    names,
    rows,
    seeds,
)

from blockshock.matrices import mask_checks, masks
from blockshock.matrices.blocks_of_rows import SeededRows, generator, row_blocks
from blockshock.matrices.masks import DenseMask, LazyMask, Mask, TiledMask
from blockshock.matrices.named_masks import (
    MASKS,
    SIX_PATTERNS,
    build_mask,
    magnitude_mask,
    pattern_mask,
    random_mask,
    tile_magnitude_mask,
    tile_mask,
    tile_random_mask,
    transposable_tiles,
)
from blockshock.matrices.permuted import PermutedMask
from blockshock.matrices.positions import mask_positions
from blockshock.matrices.saved_mask import is_saved_mask, mask_digest, mask_state, mask_tensor, saved_mask, settled
from blockshock.matrices.weights import GeneratedWeights, TensorWeights

pytestmark = pytest.mark.reliability

CPU = torch.device("cpu")


def on_tensor(N: int, K: int, seed: int, layout: str = "whole") -> TensorWeights:
    return TensorWeights(matrix(N, K, torch.float32, seed, layout))


@examples(560)
@given(matrices(st.sampled_from((0, 1, 2, 3, 4, 5, 8)), st.sampled_from((0, 1, 3, 4, 6, 8, 12)), ANY), st.booleans())
def test_a_given_mask_is_checked_as_it_is_defined(drawn: torch.Tensor, whole: bool) -> None:
    mask_NK = drawn > 0 if whole and drawn.dtype not in (torch.complex64,) else drawn
    mask = attempt(DenseMask, mask_NK)
    fits = mask_NK.dtype == torch.bool and mask_NK.numel() > 0 and mask_NK.shape[1] % 4 == 0
    assert (mask is not None) == fits
    if mask is None:
        return
    for check in (mask_checks.check_2to4, mask_checks.check_transposable):
        turned = mask_NK.shape[0] % 4 == 0 and is_2to4(mask_NK.T)
        wanted = is_2to4(mask_NK) and (check is mask_checks.check_2to4 or turned)
        assert (attempt(lambda check=check: check(mask) or True) is not None) == wanted
    assert torch.equal(mask.complement().dense(), ~mask_NK)
    mask_checks.check_complementary(mask, mask.complement())
    if wanted := not is_2to4(mask_NK):
        assert wanted == (attempt(mask_positions, mask) is None)


@examples(370)
@given(data=st.data(), P=rows, tiles=st.integers(1, 3), N=st.integers(1, 13), seed=seeds)
def test_every_view_of_a_mask_is_that_of_the_whole(data: Any, P: int, tiles: int, N: int, seed: int) -> None:
    Q = data.draw(fours)
    K, tile = Q * tiles, mask_rows(P, Q, seed)
    whole = tile.repeat(-(-N // P), tiles)[:N]
    kinds: list[Mask] = [TiledMask(tile, N, K), DenseMask(whole), LazyMask(N, K, lambda a, b, made=whole: made[a:b])]
    mask = data.draw(st.sampled_from(kinds))
    for _ in range(data.draw(st.integers(0, 3))):
        step = data.draw(st.sampled_from(("complement", "columns", "transposed")))
        if step == "complement":
            mask, whole = mask.complement(), ~whole
        elif step == "transposed" and mask.N % 4 == 0:
            mask, whole = mask.transposed(), whole.T
        else:
            start, stop = sorted(data.draw(st.tuples(counts, counts)))
            part = attempt(mask.columns, start, stop)
            fits = start % 4 == stop % 4 == 0 and 0 <= start < stop <= mask.K
            assert (part is not None) == fits
            mask, whole = (mask, whole) if part is None else (part, whole[:, start:stop])
    assert tuple(whole.shape) == (mask.N, mask.K)
    assert torch.equal(mask.dense(), whole)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, mask.N), st.integers(0, mask.N))))
    assert torch.equal(mask.rows(start, stop), whole[start:stop])
    mask.check_unchanged()


@examples(250)
@given(
    start=counts, stop=counts, kind=st.sampled_from(("tile", "dense", "complement", "columns", "random", "magnitude"))
)
def test_rows_that_a_mask_has_not_are_refused(start: int, stop: int, kind: str) -> None:
    source, whole = on_tensor(8, 8, 0), DenseMask(mask_rows(8, 8, 1))
    mask = {"dense": whole, "complement": whole.complement(), "columns": whole.columns(0, 4)}.get(kind)
    mask = build_mask(kind, source) if mask is None else mask
    found = attempt(mask.rows, start, stop)
    assert (found is not None) == (0 <= start <= stop <= 8)
    assert found is None or found.shape == (stop - start, mask.K)


@examples(250)
@given(tile=matrices(st.integers(0, 5), st.integers(0, 9), ANY), N=counts, K=counts)
def test_a_tile_is_taken_or_refused(tile: torch.Tensor, N: int, K: int) -> None:
    for given_tile in (tile, tile.real > 0, tile[0] if len(tile) else tile):
        mask = attempt(TiledMask, given_tile, N, K)
        assert (attempt(masks.check_shape, N, K) is None) or N > 0
        if mask is not None:
            assert N > 0
            assert K % given_tile.shape[1] == K % 4 == 0
            assert mask.rows(0, min(N, 3)).shape == (min(N, 3), K) or K > 2**20


@pytest.mark.parametrize("name", MASKS.names())
@examples(60)
@given(N=counts, K=counts, seed=st.integers(-5, 5) | st.sampled_from(HUGE), dtype=st.sampled_from(FLOATS))
def test_named_masks_are_2to4_halves_of_any_weights(name: str, N: int, K: int, seed: int, dtype: torch.dtype) -> None:
    if max(N, K) > 100:
        N, K = min(N, 100), min(K, 100)
    source = attempt(GeneratedWeights, N, K, dtype, CPU, seed)
    assert (source is not None) == (N > 0 and K > 0 and K % 4 == 0)
    mask = None if source is None else attempt(build_mask, name, source)
    if mask is None:
        assert source is None or N % 4
        return
    assert is_2to4(mask.dense())
    assert name[:4] != "tile" or is_2to4(mask.dense().T)


@examples(250)
@given(N=rows, K=fours, seed=seeds, layout=st.sampled_from(LAYOUTS))
def test_magnitude_keeps_what_brute_force_keeps(N: int, K: int, seed: int, layout: str) -> None:
    source = on_tensor(N, K, seed, layout)
    sizes = source.rows(0, N).abs()
    kept = magnitude_mask(source).dense()
    for row, mask in zip(sizes.tolist(), kept.tolist(), strict=True):
        for i in range(0, K, 4):
            best = sorted(range(4), key=lambda j: -row[i + j])[:2]
            assert [j for j in range(4) if mask[i + j]] == sorted(best)
    if N % 4 == 0:
        tile = tile_magnitude_mask(source).dense()[:4, :4]
        most = max((sizes[:4, :4] * one).sum().item() for one in transposable_tiles(CPU))
        assert (sizes[:4, :4] * tile).sum().item() == pytest.approx(most)
        assert is_2to4(tile_random_mask(source).dense().T)
        assert is_2to4(tile_mask(source).dense().T)
    assert is_2to4(random_mask(source).dense())


@examples(160)
@given(pattern=st.sampled_from(SIX_PATTERNS) | names, N=counts, K=counts)
def test_a_pattern_is_one_of_six(pattern: str, N: int, K: int) -> None:
    mask = attempt(pattern_mask, pattern, N, K)
    assert mask is None or "".join("01"[int(bit)] for bit in mask.rows(0, 1)[0, :4]) == pattern or K > 2**20
    assert (mask is None) == (pattern not in SIX_PATTERNS or attempt(lambda: masks.check_shape(N, K) or 1) is None)


@examples(250)
@given(data=st.data(), N=rows, K=fours, seed=seeds, tiled=st.booleans(), permuted=st.booleans())
def test_a_mask_is_saved_and_read_back(data: Any, N: int, K: int, seed: int, tiled: bool, permuted: bool) -> None:
    mask = ordered = TiledMask(mask_rows(4, 4, seed), N, K) if tiled else DenseMask(mask_rows(N, K, seed))
    if permuted:
        mask = PermutedMask(ordered, torch.randperm(K, generator=torch.Generator().manual_seed(seed)))
    state = mask_state(mask)
    saved = {"a.weight": torch.zeros(N, K), **{f"a.{name}": tensor for name, tensor in state.items()}}
    found = saved_mask(saved, "a.")
    assert torch.equal(found.dense(), mask.dense())
    assert torch.equal(settled(found, CPU).dense(), mask.dense())
    assert is_saved_mask(state, mask)
    assert mask_digest(mask) == mask_digest(found)
    assert is_saved_mask(state | {"mask": mask_tensor(DenseMask(ordered.dense()))}, mask)
    assert is_saved_mask({"mask": state["mask"]}, mask) == (not permuted)
    if not equal(ordered.dense(), ordered.complement().dense()):
        assert not is_saved_mask(state, ordered.complement())
        assert mask_digest(ordered) != mask_digest(ordered.complement())
    prefix = data.draw(st.sampled_from(("", "a.")) | names)
    name = data.draw(st.sampled_from(("a.mask", "a.weight", "a.permutation")))
    saved[name] = data.draw(matrices(rows, rows, ANY)).squeeze(data.draw(st.sampled_from((0, 1))))
    other = attempt(saved_mask, saved, prefix)
    assert other is None or is_2to4(other.ordered.dense())
    assert is_saved_mask({"mask": saved["a.mask"]}, mask) in (True, False)


@examples(310)
@given(total=counts, row_bytes=counts, block=st.integers(1, 2000), multiple=st.integers(1, 9))
def test_row_blocks_cover_all_rows_once(total: int, row_bytes: int, block: int, multiple: int) -> None:
    found = list(itertools.islice(row_blocks(total, row_bytes, block, multiple), 50))
    assert all(start % multiple == 0 and start < stop <= total for start, stop in found)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(found))
    assert len(found) == 50 or (found[-1][1] if found else 0) == max(total, 0)


@examples(190)
@given(key=st.lists(counts, max_size=3), start=st.integers(0, 600), length=st.integers(0, 300))
def test_seeded_rows_depend_on_the_key_alone(key: list[int], start: int, length: int) -> None:
    def block(index: int, count: int) -> torch.Tensor:
        return torch.rand(count, 1, generator=generator(CPU, *key, index))

    seeded = SeededRows(1000, block)
    whole = seeded.rows(0, 1000)
    for _ in range(2):
        found = seeded.rows(start, start + length)
        assert torch.equal(found, whole[start : start + length])
        found.fill_(2)  # it is the caller's
    rest = seeded.rows(start + length, 1000)
    assert torch.equal(rest, whole[start + length :])


@pytest.mark.parametrize("kind", ["tile", "dense", "computed"])
def test_a_settled_mask_lies_where_the_weight_does(kind: str) -> None:
    """One out of a saved state lies on the CPU, whatever device the layer is on."""
    mask = pattern_mask("1100", 8, 16)
    given = {"tile": mask, "dense": DenseMask(mask.dense()), "computed": LazyMask(8, 16, mask.rows)}[kind]
    assert settled(given, torch.device("meta")).rows(0, 4).device.type == "meta"
    here = settled(given, torch.device("cpu"))
    assert torch.equal(here.dense(), mask.dense())
    assert (here is given) == (kind != "computed"), "nothing is copied that is there"
