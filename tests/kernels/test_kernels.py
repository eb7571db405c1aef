"""Kernels: each multiplies by a half as float64 says, refreshes, and says in a sentence why it cannot run."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from blockshock.errors import InputError, KernelUnavailable, UnknownName
from blockshock.kernels import KERNELS, Packed, build_kernel
from blockshock.kernels import auto as auto_module
from blockshock.kernels.algorithm_cache import AlgorithmCache
from blockshock.kernels.gathered import Gathered
from blockshock.machine import cache_folder
from blockshock.matrices.masks import Mask, TiledMask
from blockshock.matrices.named_masks import SIX_PATTERNS, build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.repeating_rows import RowPatterns
from blockshock.matrices.weights import GeneratedWeights, TensorWeights

CPU = torch.device("cpu")
ANY_DEVICE = ("dense", "reference", "gathered")
PERIODIC = (*SIX_PATTERNS, "tile")


def _half(mask: str = "1100", N: int = 64, K: int = 96, dtype: torch.dtype = torch.float32, seed: int = 0) -> Piece:
    source = GeneratedWeights(N, K, dtype, CPU, seed, with_bias=True)
    return Piece(source, slice(0, K), build_mask(mask, source))


def _input(half: Piece, B: int = 5) -> torch.Tensor:
    return torch.randn(B, half.K, generator=torch.Generator().manual_seed(7)).to(half.dtype)


def _check(y_BN: torch.Tensor, x_BK: torch.Tensor, half: Piece, bias: torch.Tensor | None = None) -> None:
    exact_BN = x_BK.double() @ half.dense().double().T + (0 if bias is None else bias.double())
    tolerance = 4 * torch.finfo(half.dtype).eps
    assert (y_BN.double() - exact_BN).norm() <= tolerance * exact_BN.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [*PERIODIC, "random", "magnitude", "tile_random"])
@pytest.mark.parametrize("kernel", ANY_DEVICE)
def test_product_is_right(kernel: str, mask: str, dtype: torch.dtype) -> None:
    half, built = _half(mask, dtype=dtype), build_kernel(kernel)
    if built.unsuitable(half.N, half.K, half.dtype, half.mask):
        assert kernel == "gathered"
        assert mask not in PERIODIC
        return
    packed, with_bias = built.pack(half), built.pack(half, half.source.bias)
    x_BK = _input(half)
    _check(packed(x_BK), x_BK, half)
    _check(with_bias(x_BK), x_BK, half, half.source.bias)


@pytest.mark.parametrize("mask", PERIODIC)
def test_gathered_takes_columns_of_a_larger_input(mask: str) -> None:
    source = GeneratedWeights(64, 192, torch.bfloat16, CPU)
    whole = build_mask(mask, source)
    half = Piece(source, slice(96, 192), whole.columns(96, 192))
    x_BK = torch.randn(5, 192).bfloat16()[:, 96:]
    assert not x_BK.is_contiguous()
    _check(build_kernel("gathered").pack(half)(x_BK), x_BK, half)


def test_gathered_takes_wide_tiles_and_inputs_that_do_not_align_in_pairs() -> None:
    source = GeneratedWeights(6, 16, torch.bfloat16, CPU)
    tile = torch.tensor([[1, 0, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    wide = Piece(source, slice(0, 16), TiledMask(tile, 6, 16))
    x_BK = torch.randn(3, 17).bfloat16()[:, 1:]
    _check(build_kernel("gathered").pack(wide)(x_BK), x_BK, wide)
    pairs = Piece(source, slice(0, 16), build_mask("1100", source))
    _check(build_kernel("gathered").pack(pairs)(x_BK), x_BK, pairs)


def test_gathered_counts_the_distinct_rows_of_a_tile() -> None:
    tile = _half("tile").mask.tile
    assert tile is not None
    found = [(pattern.rows.positions, pattern.kept.positions) for pattern in RowPatterns(tile, 64)]
    assert found == [((0, 1), (0, 1)), ((2, 3), (2, 3))]


@pytest.mark.parametrize("mask", ["1100", "0110", "tile"])
@pytest.mark.parametrize("kernel", ANY_DEVICE)
def test_new_values_are_taken_over_under_the_same_mask(kernel: str, mask: str) -> None:
    old, new = _half(mask), _half(mask, seed=1)
    packed = build_kernel(kernel).pack(old)
    x_BK = _input(new)
    packed.write(packed.kept_of(new.dense()))
    _check(packed(x_BK), x_BK, new)
    packed.recompress(old.dense())
    _check(packed(x_BK), x_BK, old)
    packed.write(build_kernel(kernel).pack(new).values.double())
    _check(packed(x_BK), x_BK, new)


@pytest.mark.parametrize("kernel", KERNELS.names())
def test_estimated_bytes_are_those_stored(kernel: str) -> None:
    half, built = _half(), build_kernel(kernel)
    if built.unavailable(CPU, half.dtype) or kernel == "auto":
        return
    stored = sum(buffer.nbytes for buffer in built.pack(half).buffers())
    assert stored == built.weight_bytes(half.N, half.K, half.dtype.itemsize)


def test_cutlass_values_can_be_refreshed_in_place() -> None:
    # The product needs a GPU of compute capability 8.x, but torch's packing is plain tensors: kept values in row
    # order, so that writing them is a refresh.
    old = _half("random", 64, 128, torch.float16)
    values, meta = sparse_semi_structured_from_dense_cutlass(old.dense())
    assert torch.equal(values, old.kept_values(0, 64))
    doubled = sparse_semi_structured_to_dense_cutlass(2 * values, meta)
    assert torch.equal(doubled, 2 * old.dense())


@pytest.mark.parametrize("kernel", KERNELS.names())
def test_every_kernel_says_why_it_is_not_available(kernel: str) -> None:
    built = build_kernel(kernel)
    reason = built.unavailable(CPU, torch.float32)
    assert (reason is None) == ("cpu" in built.device_types)
    assert reason is None or "needs a cuda device, this is cpu" in reason
    for_integers = built.unavailable(CPU, torch.int8)
    assert for_integers is not None
    assert "int8" in for_integers or "cuda" in for_integers


def test_a_kernel_that_is_not_available_refuses_with_the_reason() -> None:
    with pytest.raises(KernelUnavailable, match="cusparselt: needs a cuda device, this is cpu"):
        build_kernel("cusparselt").check(_half(dtype=torch.bfloat16))


def test_a_shape_that_does_not_fit_a_gpu_kernel_is_named() -> None:
    for kernel, N, K, rule in (("cusparselt", 64, 100, "multiples of 16"), ("cutlass", 40, 128, "multiple of 32")):
        reason = build_kernel(kernel).unsuitable(N, K, torch.bfloat16)
        assert reason is not None
        assert rule in reason
        assert f"N = {N}, K = {K}" in reason


def test_gathered_refuses_a_mask_without_a_period() -> None:
    with pytest.raises(InputError, match="gathered: needs a row-periodic mask"):
        build_kernel("gathered").check(_half("random"))


def test_a_typo_suggests_the_nearest_kernel() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'cusparselt'"):
        build_kernel("cusparsellt")


def _resolved(half: Piece) -> str:
    return type(build_kernel("auto").resolve(half, 5, False, lambda seconds: seconds)).__name__


@pytest.fixture
def nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by this process nor by others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(auto_module, "_measured", AlgorithmCache("auto", auto_module.are_seconds))


def test_auto_takes_the_compressed_kernel_that_fits_the_mask() -> None:
    assert _resolved(_half("1100")) == "Gathered"
    assert _resolved(_half("random")) == "Reference"


def test_auto_measures_once_and_takes_what_is_fastest_for_all_ranks(
    nothing_measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockshock.kernels.reference.Reference.contender", True)
    measured = []

    def measure(kernel: object, *_: object) -> float:
        measured.append(type(kernel).__name__)
        return {"Reference": 1.0, "Gathered": 2.0}[type(kernel).__name__]

    monkeypatch.setattr(auto_module, "_median_seconds", measure)
    assert _resolved(_half()) == "Reference"
    assert _resolved(_half()) == "Reference"
    assert sorted(measured) == ["Gathered", "Reference"]
    slower_elsewhere = build_kernel("auto").resolve(_half(), 5, False, lambda found: [3.0 - second for second in found])
    assert type(slower_elsewhere).__name__ == "Gathered"
    # The next process of this user on this machine.
    monkeypatch.setattr(auto_module, "_measured", AlgorithmCache("auto", auto_module.are_seconds))
    assert _resolved(_half()) == "Reference"
    assert len(measured) == 2
    assert type(build_kernel("auto").resolve(_half(), 6, False, lambda found: found)).__name__ == "Reference"
    assert len(measured) == 4


def test_auto_measures_each_mask_for_itself(nothing_measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of more distinct rows costs a kernel more; masks that repeat nothing are alike to every kernel."""
    monkeypatch.setattr("blockshock.kernels.reference.Reference.contender", True)
    monkeypatch.setattr(Gathered, "unsuitable", lambda *_: None)
    times = iter([1.0, 2.0, 2.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(auto_module, "_seconds", lambda *_: next(times))
    assert [_resolved(_half(mask)) for mask in ("1100", "tile", "1100", "tile")] == [*["Gathered", "Reference"] * 2]
    assert [_resolved(_half("random", seed=seed)) for seed in (0, 1)] == ["Gathered"] * 2


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_auto_takes_no_kernel_that_multiplies_wrongly(
    backward: bool, dtype: torch.dtype, nothing_measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Gathered):
        """One element of its product is wrong: the gradient's, where it goes backward too."""

        def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
            packed = super().pack(piece, bias, backward)
            which = "grad_input" if backward else "forward"
            right = getattr(packed, which)
            setattr(packed, which, lambda x: right(x).index_fill_(1, torch.tensor([3]), 7.0))
            return packed

    half, seconds = _half(dtype=dtype), {"gathered": 2.0, "wrong": 1.0}
    monkeypatch.setattr(KERNELS, "_entries", {**KERNELS._entries, "wrong": Wrong})
    monkeypatch.setattr(auto_module, "_median_seconds", lambda kernel, *_: seconds[kernel.name])
    assert build_kernel("auto").resolve(half, 5, backward, lambda found: found).name == "gathered"
    # What was wrong is tried again by the next process.
    monkeypatch.setattr(auto_module, "_measured", AlgorithmCache("auto", auto_module.are_seconds))
    monkeypatch.setattr(KERNELS, "_entries", {**KERNELS._entries, "gathered": Wrong})
    with pytest.raises(KernelUnavailable, match="none of gathered, wrong multiplies right"):
        build_kernel("auto").resolve(half, 5, backward, lambda found: found)


def test_auto_takes_weights_whose_products_overflow_densely_too(
    nothing_measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockshock.kernels.reference.Reference.contender", True)
    source = TensorWeights(torch.full((64, 96), 6e4, dtype=torch.float16))
    half = Piece(source, slice(0, 96), build_mask("1100", source))
    assert build_kernel("auto").resolve(half, 5, True, lambda found: found).name in ("gathered", "reference")


def test_ranks_agree_once_whoever_has_measured(nothing_measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks hold other pieces, and one may have met its own before: did it agree less often, the others would wait."""
    monkeypatch.setattr("blockshock.kernels.reference.Reference.contender", True)
    monkeypatch.setattr(auto_module, "_median_seconds", lambda *_: 1.0)
    agreed: list[list[float]] = []
    for calls in (1, 2):
        build_kernel("auto").resolve(_half(), 5, False, lambda found: agreed.append(found) or found)  # type: ignore[func-returns-value]
        assert agreed == [[1.0, 1.0]] * calls


def _are_numbers(answer: object) -> bool:
    return isinstance(answer, list) and all(type(number) is int for number in answer)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AlgorithmCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return AlgorithmCache("test", _are_numbers)


def _never() -> list[int]:
    raise AssertionError("searched again")


def test_a_search_is_remembered_in_the_process_and_on_disk(cache: AlgorithmCache) -> None:
    assert cache.get("key", lambda: [1, 2, 3]) == [1, 2, 3]
    assert cache.get("key", _never) == [1, 2, 3]
    assert AlgorithmCache("test", _are_numbers).get("key", _never) == [1, 2, 3]
    assert AlgorithmCache("test", _are_numbers).get("other", lambda: [4]) == [4]
    assert json.loads((cache_folder() / "test.json").read_text()) == {"key": [1, 2, 3], "other": [4]}


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]"])
def test_a_damaged_cache_is_replaced(damage: str, cache: AlgorithmCache) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "test.json").write_text(damage)
    assert cache.get("key", lambda: [5]) == [5]
    assert AlgorithmCache("test", _are_numbers).get("key", _never) == [5]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert AlgorithmCache("test", _are_numbers).get("key", lambda: [6]) == [6]


def test_a_file_that_cannot_be_written_is_no_error_and_leaves_nothing_behind(cache: AlgorithmCache) -> None:
    (cache_folder() / "test.json").mkdir(parents=True)  # in the place of the file
    assert cache.get("key", lambda: [6]) == [6]
    cache.keep("other", [7])
    assert sorted(path.name for path in cache_folder().iterdir()) == ["test.json", "test.lock"]


def _search_slowly(folder: Path) -> None:
    def search() -> list[int]:
        with (folder / "searches").open("a") as log:
            log.write("x")
        return [7]

    assert AlgorithmCache("test", _are_numbers).get("key", search) == [7]


def test_of_several_processes_one_searches(cache: AlgorithmCache, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_search_slowly, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "searches").read_text() == "x"


def test_a_users_mask_object_needs_nothing_but_rows() -> None:
    class Checkered(Mask):
        def rows(self, start: int, stop: int) -> torch.Tensor:
            return (torch.arange(start, stop)[:, None] + torch.arange(self.K)) % 2 == 0

    source = GeneratedWeights(64, 96, torch.float32, CPU)
    half = Piece(source, slice(0, 96), Checkered(64, 96))
    x_BK = _input(half)
    _check(build_kernel("reference").pack(half)(x_BK), x_BK, half)


@pytest.mark.parametrize(("variable", "wanted"), [(None, ".cache"), ("", ".cache"), ("elsewhere", "elsewhere")])
def test_the_cache_is_in_the_folder_for_caches(
    variable: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if variable is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", variable and str(tmp_path / variable))
    assert cache_folder() == tmp_path / wanted / "blockshock"
