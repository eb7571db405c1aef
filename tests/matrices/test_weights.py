"""Weight sources: the same rows in any slice, from one seed, without zeros, NaN or inf, and never the whole W."""

from __future__ import annotations

import pytest
import torch
from fuzzing import examples
from hypothesis import example, given
from hypothesis import strategies as st

from blockshock.errors import InputError
from blockshock.matrices.blocks_of_rows import BLOCK_ROWS, generator, row_blocks
from blockshock.matrices.compressed import Compressed24
from blockshock.matrices.masks import DenseMask
from blockshock.matrices.named_masks import build_mask, pattern_mask
from blockshock.matrices.weights import (
    GeneratedWeights,
    TensorWeights,
    TransposedWeights,
    WeightSource,
    check_finite,
    nudge_zeros,
)

pytestmark = pytest.mark.masks

CPU = torch.device("cpu")
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
every_source = pytest.mark.parametrize("kind", ["generated", "tensor", "parameter", "transposed"])
few = examples(25)


def build(kind: str, N: int = 516, K: int = 12, seed: int = 0) -> WeightSource:
    if kind == "generated":
        return GeneratedWeights(N, K, torch.float32, CPU, seed)
    w_NK = torch.arange(N * K).reshape(N, K) % 7 - 3.0
    if kind == "parameter":
        return TensorWeights(torch.nn.Parameter(w_NK), torch.nn.Parameter(torch.ones(N)))
    return TensorWeights(w_NK.T.contiguous().T if kind == "transposed" else w_NK)


class Watched(WeightSource):
    """Rows of ones that cost nothing, whatever K; remembers which rows were asked for."""

    def __init__(self, N: int, K: int) -> None:
        super().__init__(N, K, torch.float32, CPU, seed=0, bias=None)
        self.asked: list[tuple[int, int]] = []

    def rows(self, start: int, stop: int) -> torch.Tensor:
        self.asked.append((start, stop))
        return torch.ones(1).expand(stop - start, self.K)


@every_source
@few
@example(ends=(255, 257))
@example(ends=(256, 256))
@given(ends=st.tuples(st.integers(0, 516), st.integers(0, 516)))
def test_rows_of_any_slice_are_those_of_the_whole(kind: str, ends: tuple[int, int]) -> None:
    start, stop = sorted(ends)
    source = build(kind)
    rows = source.rows(start, stop)
    assert rows.is_contiguous()
    assert not rows.requires_grad
    assert torch.equal(rows, source.rows(0, 516)[start:stop])


@every_dtype
def test_one_seed_one_matrix(dtype: torch.dtype) -> None:
    first, again, other = (GeneratedWeights(512, 8, dtype, CPU, seed, with_bias=True) for seed in (5, 5, 6))
    assert torch.equal(first.rows(0, 512), again.rows(0, 512))
    assert not torch.equal(first.rows(0, 512), other.rows(0, 512))
    assert not torch.equal(first.rows(0, 256), first.rows(256, 512))
    assert first.bias is not None
    assert again.bias is not None
    assert other.bias is not None
    assert first.rows(0, 512).dtype == first.gather(slice(None)).dtype == first.bias.dtype == dtype
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.bias, other.bias)


def test_generated_weights_keep_the_scale_of_inputs() -> None:
    w_NK = GeneratedWeights(512, 400, torch.float32, CPU).rows(0, 512)
    assert w_NK.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert w_NK.mean().item() == pytest.approx(0, abs=1e-3)
    assert GeneratedWeights(4, 8, torch.float32, CPU).bias is None


def test_streams_hang_on_the_whole_key() -> None:
    keys = [(), (0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**64 - 2,)]
    draws = [torch.randn(8, generator=generator(CPU, *key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    assert torch.equal(draws[5], torch.randn(8, generator=generator(CPU, 0, 1)))
    assert BLOCK_ROWS == 256


@few
@given(st.integers(0, 300), st.integers(0, 50), st.integers(1, 400), st.sampled_from((1, 4, 12)))
def test_row_blocks_cover_each_row_once(rows: int, row_bytes: int, block_bytes: int, multiple: int) -> None:
    found = list(row_blocks(rows, row_bytes, block_bytes, multiple))
    assert [row for start, stop in found for row in range(start, stop)] == list(range(rows))
    for start, stop in found:
        assert start % multiple == 0
        assert stop - start <= multiple or (stop - start) * row_bytes <= block_bytes


@every_dtype
def test_zeros_are_nudged_to_the_smallest_normal_number_of_their_sign(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    w = torch.tensor([[0.0, -0.0, 1.0, -tiny / 2]], dtype=dtype)
    nudged = nudge_zeros(w)
    assert torch.equal(nudged, torch.tensor([[tiny, -tiny, 1.0, -tiny / 2]], dtype=dtype))
    assert w[0, 0] == 0


@every_dtype
def test_a_weight_that_is_given_keeps_its_zeros_and_is_not_handed_out_itself(dtype: torch.dtype) -> None:
    w = torch.tensor([[0.0, -0.0, 1.0, -torch.finfo(dtype).tiny / 2]], dtype=dtype)
    for source in (TensorWeights(w), TensorWeights(w).cast(torch.float32)):
        found = source.rows(0, 1)
        assert torch.equal(found, w.to(source.dtype))
        assert found.signbit().tolist() == [[False, True, False, True]]
        assert found.zero_() is not None
        assert w[0, 2] == 1


@every_dtype
def test_generated_weights_hold_no_zeros(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self.zero_())
    tiny = torch.finfo(dtype).tiny
    assert (GeneratedWeights(4, 8, dtype, CPU).rows(0, 4) == tiny).all()
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self.fill_(-1e-9))
    drawn = torch.tensor(-1e-9).to(dtype).item() or -tiny  # which fp16 has no number for
    assert (GeneratedWeights(4, 8, dtype, CPU).rows(0, 4) == drawn).all()


@every_dtype
@pytest.mark.parametrize("K", [12, 64, 388])
def test_a_generated_weight_is_the_draw_of_its_block_times_its_deviation(dtype: torch.dtype, K: int) -> None:
    wide = torch.cat([torch.randn(rows, K, generator=generator(CPU, 5, 0, i)) for i, rows in ((0, 256), (1, 44))])
    assert torch.equal(GeneratedWeights(300, K, dtype, CPU, 5).rows(0, 300), nudge_zeros((wide * K**-0.5).to(dtype)))


def test_rows_that_are_read_in_turn_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source, drawn = GeneratedWeights(600, 8, torch.float32, CPU), []
    draw = source._seeded._make
    monkeypatch.setattr(source._seeded, "_make", lambda index, rows: [drawn.append(index), draw(index, rows)][1])
    for start, stop in row_blocks(600, 8 * 4, block_bytes=100 * 8 * 4):
        source.rows(start, stop).fill_(7)  # it is the caller's
    assert drawn == [0, 1, 2]
    assert torch.equal(source.rows(250, 260), GeneratedWeights(600, 8, torch.float32, CPU).rows(0, 600)[250:260])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@every_dtype
def test_first_value_that_is_not_finite_is_named(value: float, dtype: torch.dtype) -> None:
    w_NK = torch.ones(8, 8, dtype=dtype)
    w_NK[5, 2] = w_NK[5, 3] = w_NK[7, 0] = value
    with pytest.raises(InputError, match=f"W holds {value} at row 5, column 2"):
        TensorWeights(w_NK)


def test_values_that_are_not_finite_are_named_in_later_row_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "blockshock.matrices.weights.row_blocks", lambda rows, size: row_blocks(rows, size, block_bytes=1)
    )
    x_BK = torch.ones(16, 3)
    check_finite(x_BK, "X")
    x_BK[13, 2] = float("nan")
    with pytest.raises(InputError, match="X holds nan at row 13, column 2"):
        check_finite(x_BK, "X")


@pytest.mark.parametrize("w_NK", [torch.ones(8), torch.ones(2, 4, 4), torch.ones(4, 4).int()], ids=["1d", "3d", "int"])
def test_weights_are_a_floating_point_matrix(w_NK: torch.Tensor) -> None:
    with pytest.raises(InputError, match="floating-point"):
        TensorWeights(w_NK)


def test_shapes_without_groups_of_four_are_refused() -> None:
    with pytest.raises(InputError, match="nearest are 4 and 8"):
        GeneratedWeights(4, 6, torch.half, CPU)
    assert TensorWeights(torch.ones(4, 6)).K == 6, "a layer that exists may be dense"
    for make in lambda *shape: TensorWeights(torch.ones(shape)), lambda N, K: GeneratedWeights(N, K, torch.half, CPU):
        for shape in (0, 4), (4, 0):
            with pytest.raises(InputError, match="must be positive"):
                make(*shape)


@pytest.mark.parametrize("shape", [(8,), (4, 1), ()])
def test_bias_holds_one_value_a_row(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"bias must have shape \(4,\), got"):
        TensorWeights(torch.ones(4, 8), torch.ones(shape))


def test_bias_comes_in_the_dtype_of_the_weights() -> None:
    bias = TensorWeights(torch.ones(4, 8).bfloat16(), torch.nn.Parameter(torch.arange(4.0))).bias
    assert bias is not None
    assert bias.dtype == torch.bfloat16
    assert not bias.requires_grad
    assert torch.equal(bias, torch.arange(4).bfloat16())


@every_source
@few
@given(
    columns=st.sets(st.integers(0, 3), min_size=2, max_size=2),
    rows=st.none() | st.sets(st.integers(0, 516), min_size=2, max_size=2),
    masked=st.booleans(),
)
def test_gather_equals_indexing_the_whole(kind: str, columns: set[int], rows: set[int] | None, masked: bool) -> None:
    source = build(kind)
    left, right = (4 * end for end in sorted(columns))
    part = None if rows is None else slice(*sorted(rows))
    kept = build_mask("random", source).dense()[part or slice(None), left:right]
    wanted = source.rows(0, 516)[part or slice(None), left:right]
    wanted = wanted.where(kept, 0) if masked else wanted
    assert torch.equal(source.gather(slice(left, right), DenseMask(kept) if masked else None, part), wanted)


@pytest.mark.parametrize("rows", [None, slice(0, 4), slice(8, 20)])
@pytest.mark.parametrize("masked", [False, True])
def test_gather_of_transposed_weights_equals_indexing_the_whole(rows: slice | None, masked: bool) -> None:
    source = build("generated", 516, 32)
    kept = build_mask("tile_random", source).dense()[256:300, 8:28].T[rows or slice(None)]
    wanted = source.rows(0, 516)[256:300, 8:28].T[rows or slice(None)]
    wanted = wanted.where(kept, 0) if masked else wanted
    mask = DenseMask(kept) if masked else None
    gathered = TransposedWeights(source, slice(8, 28)).gather(slice(256, 300), mask, rows)
    assert torch.equal(gathered, wanted)


def test_gathered_weights_are_the_callers_own() -> None:
    w_NK = torch.ones(4, 8)
    gathered = TensorWeights(w_NK).gather(slice(None))
    gathered.zero_()
    assert (w_NK == 1).all()


@pytest.mark.parametrize("masked", [False, True])
def test_gather_never_asks_for_the_whole(masked: bool) -> None:
    source = Watched(40, 1 << 22)
    mask = pattern_mask("1100", 25, 4) if masked else None
    gathered = source.gather(slice(8, 12), mask, rows=slice(10, 35))
    assert source.asked == [(10, 14), (14, 18), (18, 22), (22, 26), (26, 30), (30, 34), (34, 35)]
    assert gathered.tolist() == [[1, 1, int(not masked), int(not masked)]] * 25
    assert gathered.untyped_storage().nbytes() == 25 * 4 * 4


def test_compression_never_asks_for_the_whole() -> None:
    source = Watched(12, 1 << 22)
    Compressed24.from_source(source, slice(8, 12), pattern_mask("1100", 12, 4))
    assert source.asked == [(0, 4), (4, 8), (8, 12)]
