"""The kernel streamed, as far as a CPU can see it: the order of its metadata, its plans, and what is kept on disk."""

from __future__ import annotations

import ctypes
import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from counting import calls_of, run_in
from strategies import mask_rows

from blockshock.kernels import streamed, streamed_launch, streamed_layout, streamed_plan
from blockshock.kernels.layout import aligned_rows
from blockshock.kernels.streamed_plan import MOST_TOKENS, STEP, Plan, plan_for
from blockshock.machine import CudaKernel, cache_folder, compiled, torch_internals
from blockshock.matrices import Mask, TensorWeights, TiledMask, build_mask, mask_positions
from blockshock.matrices.masks import DenseMask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights

CPU = torch.device("cpu")


def _gpu(major: int, processors: int, kib: int, memory_mhz: int, bus: int) -> SimpleNamespace:
    return SimpleNamespace(
        major=major,
        multi_processor_count=processors,
        shared_memory_per_multiprocessor=kib << 10,
        memory_clock_rate=1000 * memory_mhz,
        memory_bus_width=bus,
    )


GPUS = {
    "H200": _gpu(9, 132, 228, 3201, 6016),
    "H100": _gpu(9, 132, 228, 2619, 5120),
    "A100": _gpu(8, 108, 164, 1215, 5120),
    "L4": _gpu(8, 58, 100, 6251, 192),
}


def _kept_by(metadata: torch.Tensor, K: int) -> torch.Tensor:
    """The mask that the tensor cores see: PTX ISA, metadata of mma.sp m16n8k32 with 16-bit operands, lane by lane."""
    tiles, steps = metadata.shape[:2]
    weights = torch.tensor([1 << 8 * byte for byte in range(4)])
    words = metadata.reshape(tiles, steps, 32, 2, 4).to(torch.int64) @ weights
    mask_NK = torch.zeros(16 * tiles, steps * STEP, dtype=torch.bool)
    for tile, step, product, lane in torch.cartesian_prod(*map(torch.arange, (tiles, steps, 4, 32))).tolist():
        group, thread = divmod(lane, 4)
        selector = product % 2
        if thread // 2 != selector:  # the other pair's lanes are not read
            continue
        word = int(words[tile, step, lane, product // 2])
        for half in 0, 1:  # rows group and group + 8
            for place in range(8):
                at = word >> (16 * half + 2 * place) & 3
                column = step * STEP + 32 * product + 16 * (thread % 2) + 4 * (place // 2) + at
                mask_NK[16 * tile + group + 8 * half, column] = True
    return mask_NK[:, :K]


@pytest.mark.parametrize(("N", "K"), [(16, 32), (48, 160), (32, 256)])
def test_the_tensor_cores_see_the_mask(N: int, K: int) -> None:
    mask_NK = mask_rows(N, K, 0)
    positions = mask_positions(DenseMask(mask_NK))
    metadata = streamed_layout.in_fragments(positions)
    assert torch.equal(_kept_by(metadata, K), mask_NK)
    assert torch.equal(streamed_layout.in_rows(metadata, N, K), positions)
    assert metadata.nbytes == streamed_layout.metadata_bytes(N, K)


REPEATING = ("1100", "0110", "1001", "tile", "11000011/00111100")
"""Masks of tiles that divide 16 rows and a step."""


def _mask(name: str, N: int, K: int) -> Mask:
    rows = [[bit == "1" for bit in row] for row in name.split("/")]
    return TiledMask(torch.tensor(rows), N, K) if "/" in name else build_mask(name, _zeros(N, K))


def _zeros(N: int, K: int) -> TensorWeights:
    return TensorWeights(torch.zeros(N, K))


@pytest.mark.parametrize("name", REPEATING)
@pytest.mark.parametrize(("N", "K"), [(16, 32), (48, 128), (64, 160), (32, 416)])
def test_of_a_mask_that_repeats_the_metadata_of_one_tile_are_held(N: int, K: int, name: str) -> None:
    mask = _mask(name, N, K)
    for one in (mask, mask.complement()):
        whole, held = streamed_layout.in_fragments(mask_positions(one)), streamed_layout.fragments(one, CPU)
        assert held.shape == (1, 1, 32, 8)
        assert held.nbytes == streamed_layout.metadata_bytes(N, K, mask=one)
        assert torch.equal(streamed_layout.in_rows(held, N, K), mask_positions(one))
        assert torch.equal(_kept_by(held.expand(whole.shape), K), one.dense())


@pytest.mark.parametrize("name", REPEATING)
@pytest.mark.parametrize("fp8", [False, True])
def test_in_eight_bits_too(fp8: bool, name: str) -> None:
    mask = _mask(name, 48, 512)
    positions = mask_positions(mask)
    whole = streamed_layout.in_fragments_of_bytes(positions, fp8)
    held = streamed_layout.fragments_of_bytes(mask, fp8, positions)
    assert held.shape == (1, 1, 32, 16)
    assert torch.equal(held.expand(whole.shape), whole)
    assert held.nbytes == streamed_layout.metadata_bytes(48, 512, 2 * STEP, mask)


def test_of_other_masks_all_are_held() -> None:
    tall = TiledMask(torch.tensor([[True, True, False, False]]).repeat(32, 1), 64, 256)
    wide = TiledMask(torch.tensor([[True, True, False, False]]).repeat(1, 24), 64, 288)
    for mask in (tall, wide, build_mask("random", _zeros(64, 256))):
        assert not streamed_layout.repeats(mask)
        assert streamed_layout.fragments(mask, CPU).shape[:2] == (4, -(-mask.K // STEP))
        assert streamed_layout.metadata_bytes(64, mask.K, mask=mask) == streamed_layout.metadata_bytes(64, mask.K)


FASTEST = {
    "H200": [
        (8192, 8192, 16, 1, 2),
        (9216, 8192, 16, 2, 2),
        (16384, 16384, 16, 1, 1),
        (28672, 8192, 16, 2, 1),
        (8192, 28672, 16, 1, 2),
        (12288, 12288, 32, 2, 2),
        (8192, 8192, 32, 1, 2),
        (16384, 16384, 32, 2, 2),
        (28672, 8192, 32, 2, 1),
        (5120, 17408, 32, 2, 4),
        (16384, 16384, 64, 2, 2),
        (28672, 8192, 64, 2, 2),
        (18432, 8192, 64, 2, 3),
        (8192, 8192, 128, 2, 3),
        (24576, 8192, 128, 2, 1),
        (128256, 4096, 64, 2, 1),
        (40960, 40960, 1, 1, 8),
        (40960, 40960, 16, 1, 8),
        (40960, 40960, 64, 2, 8),
    ],
    "H100": [
        (8192, 8192, 16, 1, 2),
        (8192, 8192, 32, 1, 2),
        (16384, 16384, 32, 2, 2),
        (14336, 4096, 32, 1, 1),
        (28672, 8192, 64, 2, 1),
        (16384, 16384, 64, 2, 2),
    ],
}
"""By GPU: N, K and tokens of layers, and the row tiles and splits of their plan."""


@pytest.mark.parametrize(
    ("gpu", "N", "K", "tokens", "row_tiles", "splits"),
    [(gpu, *layer) for gpu, layers in FASTEST.items() for layer in layers],
)
def test_plans_are_those_that_were_fastest(
    gpu: str, N: int, K: int, tokens: int, row_tiles: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layers at which some others took a few percent longer at least."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPUS[gpu])
    plan = plan_for.__wrapped__(N, K, tokens, torch.device("cuda", 0))
    assert (plan.row_tiles, plan.splits) == (row_tiles, splits)


@pytest.mark.parametrize("gpu", ["H200", "H100"])
def test_of_more_blocks_than_a_gpu_holds_each_has_several_steps(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of fewer took up to 1.5 times as long: steps of memory that are under way are as many."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPUS[gpu])
    for N, K, tokens in itertools.product(range(10240, 160001, 5120), range(1024, 8193, 1024), (8, 16, 32, 64, 128)):
        plan = plan_for.__wrapped__(N, K, tokens, torch.device("cuda", 0))
        blocks = -(-N // plan.rows) * plan.splits
        assert plan.splits == 1 or plan.steps(K) >= 8 or blocks <= plan.blocks * 132, (N, K, tokens, plan)


def test_memory_that_gives_few_bytes_is_asked_for_two_steps_at_a_time_where_a_block_has_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ahead(gpu: str, N: int, tokens: int, **numbers: bool) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPUS[gpu])
        return bool(plan_for.__wrapped__(N, N, tokens, torch.device("cuda", 0), **numbers).ahead)

    assert ahead("H100", 8192, 16)
    assert ahead("H100", 16384, 64, one_tile=True)
    assert not ahead("H200", 16384, 16), "its memory gives many"
    assert not ahead("H100", 4096, 16), "11 steps"
    assert not ahead("H100", 16384, MOST_TOKENS), "it has much to do with each"
    assert not ahead("H100", 16384, 16, eight_bits=True), "was not measured"


def test_of_a_gpu_that_does_not_say_how_fast_its_memory_is_nothing_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = SimpleNamespace(**vars(GPUS["H100"]) | {"memory_clock_rate": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: silent)
    assert not plan_for.__wrapped__(16384, 16384, 16, torch.device("cuda", 0)).ahead


@pytest.mark.parametrize("gpu", GPUS)
def test_every_plan_fits_its_gpu(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = GPUS[gpu]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    plans: Any = plan_for.__wrapped__
    for N, K in (
        (16, 32),
        (64, 256),
        (1024, 640),
        (4096, 4096),
        (8192, 8192),
        (16384, 16384),
        (28672, 8192),
        (40960, 40960),
    ):
        for tokens, eight_bits in itertools.product((1, 8, 9, 16, 17, 32, 33, 64, 65, MOST_TOKENS), (False, True)):
            monkeypatch.setattr(streamed_plan, "plan_for", plans)
            plan = plans(N, K, tokens, torch.device("cuda", 0), eight_bits)
            assert plan.blocks * (plan.shared_bytes + 1024) <= found.shared_memory_per_multiprocessor
            assert plan.shared_bytes <= found.shared_memory_per_multiprocessor - 1024
            assert 1 <= plan.splits <= min(8, -(-K // plan.columns))
            assert (plan.columns, plan.eight_bits) == (STEP * (1 + eight_bits), eight_bits)
            assert plan.stages >= 2
            assert plan.tokens >= tokens or found.major < 9
            assert plan.clusters == (found.major >= 9)


def test_a_plan_is_what_its_source_is_compiled_with() -> None:
    plan = Plan(2, 1, 5, 2, 3)
    macros = {*plan.definitions(), "BF16", "ORDERED"}
    source = streamed_launch.source()
    assert all(macro in source for macro in macros)
    assert (plan.tokens, plan.rows, plan.shared_bytes) == (16, 128, 5 * (128 * 128 + 128 * 16 + 16 * 256))
    assert replace(plan, eight_bits=True).shared_bytes == plan.shared_bytes + 5 * 128 * 16, "twice the metadata"
    assert replace(plan, one_tile=True).shared_bytes == plan.shared_bytes - 5 * 128 * 16, "none of them"
    assert all(macro in streamed_launch.source(eight_bits=True) for macro in (*macros, "FP8"))


def test_a_block_has_room_for_the_sums_of_its_tokens_where_they_are_more_than_what_is_under_way() -> None:
    assert Plan(16, 2, 1, 1).shared_bytes == 4 * 128 * (256 + 4)


def test_x_is_read_where_it_lies_if_each_row_begins_at_an_aligned_address() -> None:
    """Copies take as long as few tokens' products do."""
    x_BK, wide_BK = torch.randn(4, 64).bfloat16(), torch.randn(4, 4096).bfloat16()
    for taken in (x_BK, x_BK[:1], wide_BK, wide_BK[:, 64:128], wide_BK[::2], torch.randn(1, 72).bfloat16()[:, 8:]):
        assert aligned_rows(taken) is taken
    for copied in (wide_BK[:, 1:65], torch.randn(4, 65).bfloat16()[:, :64], torch.randn(64, 4).bfloat16().T):
        found = aligned_rows(copied)
        assert found.is_contiguous()
        assert torch.equal(found, copied)
        assert found.data_ptr() != copied.data_ptr()


@pytest.mark.parametrize(("cuda", "ordered"), [("12.4", 0), ("12.5", 1), ("12.10", 1), ("13.0", 1)])
def test_a_compiler_is_told_what_it_knows_and_a_launch_has_the_memory_that_it_needs(
    cuda: str, ordered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(
        streamed_launch, "compiled", lambda source, name, definitions, shared_bytes: (definitions, shared_bytes)
    )
    plan = Plan(2, 1, 5, 2, 3)
    for dtype, is_bf16 in ((torch.bfloat16, 1), (torch.float16, 0)):
        for name, shared_bytes in (("streamed_product", plan.shared_bytes), ("add_splits", 0)):
            definitions, given = streamed_launch._kernel.__wrapped__(name, dtype, plan, torch.device("cuda", 0))
            assert definitions == plan.definitions() | {"BF16": is_bf16, "ORDERED": ordered, "EARLY": 0}
            assert given == shared_bytes
            definitions, _ = streamed_launch._kernel.__wrapped__(
                name, dtype, replace(plan, eight_bits=True), torch.device("cuda", 0), 0, True, True
            )
            assert [definitions[macro] for macro in ("EIGHT_BITS", "FP8", "EARLY")] == [1, 1, 1]


@pytest.mark.parametrize("tokens", [1, 16, 17, 50])
@pytest.mark.parametrize("splits", [1, 3])
def test_each_token_is_in_one_launch_and_each_sum_of_splits_has_a_thread(
    splits: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    N, K, plan = 400, 64, Plan(2, 1, 5, 2, splits, clusters=False)
    launches: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(streamed_launch, "on_gpu", lambda device: nullcontext())

    def kernel(name: str, *_: object) -> Any:
        assert len(launches) < 10, "no token is reached"
        return lambda **given: launches.append((name, given))

    monkeypatch.setattr(streamed_launch, "_kernel", kernel)
    values_NJ, x_BK = torch.zeros(N, K // 2, dtype=torch.bfloat16), torch.zeros(tokens, K, dtype=torch.bfloat16)
    y_BN = streamed_launch.multiplied(values_NJ, torch.zeros(0), x_BK, None, plan)
    products = [given for name, given in launches if name == "streamed_product"]
    assert y_BN.shape == (tokens, N)
    assert [given["args"][2].data_ptr() for given in products] == [x_BK[i].data_ptr() for i in range(0, tokens, 16)]
    assert [given["args"][8] for given in products] == [len(part) for part in x_BK.split(16)]
    assert all(given["grid"] == (4, splits, 1) for given in products)
    sums = [given for name, given in launches if name == "add_splits"]
    assert len(sums) == (0 if splits == 1 else len(products))
    for given, part in zip(sums, x_BK.split(16), strict=False):
        threads = given["grid"][0] * given["block"][0]
        assert 0 <= threads * 4 - len(part) * N < 4 * given["block"][0], "four elements a thread"


@pytest.mark.parametrize(("tokens", "slices"), [(0, 0), (1, 0), (16, 0), (17, 4)])
def test_nothing_is_sliced_where_one_launch_takes_all(
    tokens: int, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(2, 1, 5, 2)
    monkeypatch.setattr(streamed_launch, "on_gpu", lambda device: nullcontext())
    monkeypatch.setattr(streamed_launch, "_kernel", lambda *_: lambda **given: None)
    values_NJ, x_BK = torch.zeros(400, 32, dtype=torch.bfloat16), torch.zeros(tokens, 64, dtype=torch.bfloat16)
    metadata = torch.zeros(0)
    ran = run_in(lambda: streamed_launch.multiplied(values_NJ, metadata, x_BK, None, plan))
    assert ran == ["new_empty", *["slice"] * slices]


class _Driver:
    """Stands for CUDA's: reads what a launch is given as the GPU's driver would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> None:
        self.launches: list[Any] = []
        self.status, self.before = status, lambda: None
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)

    def launch(self, function: Any, *given: Any) -> int:
        self.before()
        *sizes, stream, places, extra = given
        pointers = [ctypes.cast(place, ctypes.POINTER(ctypes.c_void_p)).contents.value for place in places[:2]]
        numbers = [ctypes.cast(place, ctypes.POINTER(ctypes.c_int)).contents.value for place in places[2:]]
        self.launches.append((function, sizes, stream.value, pointers, numbers, extra))
        return self.status

    @staticmethod
    def check(status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA error: {status}")

    def kernel(self) -> CudaKernel:
        return CudaKernel(SimpleNamespace(func="function"), self.launch, self.check, {3: 77}.__getitem__)


def test_a_launch_hands_over_what_torchs_own_does(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, x, y = _Driver(monkeypatch), torch.zeros(8)[3:], torch.zeros(1)
    driver.kernel()(grid=(4, 3, 1), block=(256, 1, 1), args=[x, y, 7, -1, 2**31 - 1], shared_mem=99)
    (launched,) = driver.launches
    assert launched == (
        "function", [4, 3, 1, 256, 1, 1, 99], 77, [x.data_ptr(), y.data_ptr()], [7, -1, 2**31 - 1], None
    )  # fmt: skip


def test_launches_side_by_side_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where backward runs in a thread of its own: the second comes before the driver has read the first."""
    driver, x, y = _Driver(monkeypatch), torch.zeros(1), torch.zeros(1)
    kernel = driver.kernel()

    def other() -> None:
        driver.before = lambda: None
        kernel((1, 1, 1), (1, 1, 1), [y, x, 2])

    driver.before = other
    kernel((1, 1, 1), (1, 1, 1), [x, y, 1])
    assert [(pointers, numbers) for _, _, _, pointers, numbers, _ in driver.launches] == [
        ([y.data_ptr(), x.data_ptr()], [2]), ([x.data_ptr(), y.data_ptr()], [1]),
    ]  # fmt: skip


def test_a_launch_that_fails_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _Driver(monkeypatch, status=700)
    with pytest.raises(RuntimeError, match="CUDA error: 700"):
        driver.kernel()((1, 1, 1), (1, 1, 1), [torch.zeros(1), torch.zeros(1)])


def test_a_product_of_few_tokens_takes_few_steps_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes about a third of a microsecond, and a GPU is done with so few tokens in ten."""
    _Driver(monkeypatch)
    kernel = CudaKernel(SimpleNamespace(func="function"), lambda *_: 0, lambda status: None, lambda index: 0)
    monkeypatch.setattr(streamed_launch, "on_gpu", lambda device: nullcontext())
    monkeypatch.setattr(streamed_launch, "plan_for", lambda *_: Plan(2, 1, 5, 2))
    monkeypatch.setattr(streamed_launch, "_kernel", lambda *_: kernel)
    source = GeneratedWeights(32, 64, torch.bfloat16, torch.device("cpu"))
    packed = streamed.PackedStreamed(Piece(source, mask=DenseMask(mask_rows(32, 64, 0))), None)
    x_BK = torch.zeros(4, 64, dtype=torch.bfloat16)
    packed.forward(x_BK)  # once, for what is computed once
    assert calls_of(lambda: packed.forward(x_BK)) < 110


class _Nvrtc:
    """Stands for torch's: counts what it compiled and hands it back as it is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sources: list[str] = []
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(torch_internals, "compile_cuda", self.compile)
        monkeypatch.setattr(torch_internals, "load_cubin", lambda binary, name: binary)

    def compile(self, source: str, name: str, capability: str) -> bytes:
        self.sources.append(source)
        return f"{capability} {name} {source}".encode()


def test_what_was_compiled_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nvrtc = _Nvrtc(monkeypatch)
    first = compiled("int a;", "f", {"A": 1})
    assert compiled("int a;", "f", {"A": 1}) == first == b"90 f #define A 1\nint a;"
    compiled("int a;", "f", {"A": 2})
    compiled("int b;", "f", {"A": 1})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert compiled("int a;", "f", {"A": 1}).startswith(b"80")
    assert compiled("int a;", "f", {"A": 1}, of_its_own=True).startswith(b"80a")
    assert len(nvrtc.sources) == 5


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_one_is_compiled_again(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nvrtc = _Nvrtc(monkeypatch)
    first = compiled("int a;", "f")
    (path,) = (cache_folder() / "kernels").iterdir()
    path.write_bytes(damage)
    assert compiled("int a;", "f") == first
    assert len(nvrtc.sources) == 2
    assert compiled("int a;", "f") == first
    assert len(nvrtc.sources) == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blockshock").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nvrtc = _Nvrtc(monkeypatch)
    assert compiled("int a;", "f") == compiled("int a;", "f")
    assert len(nvrtc.sources) == 2
