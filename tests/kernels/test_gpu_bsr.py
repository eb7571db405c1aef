"""The kernel bsr on GPUs: right for every size, level, dtype, layout and length; searched, captured and compiled.

Triton compiles some seconds for each of them: so sizes, levels and dtypes go in few pairs, and lengths in one tile.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from gpus import needs_a_gpu
from strategies import LAYOUTS, matrix
from torch import nn

from blockshock import MethodLinear
from blockshock.errors import KernelUnavailable
from blockshock.kernels import bsr, build_block_kernel
from blockshock.kernels.bsr_search import Setting, default_for
from blockshock.machine import memory
from blockshock.machine.collectives import Alone
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights, TensorWeights
from blockshock.measure import timing
from blockshock.methods import METHODS, Layer, Shape
from blockshock.pruning import block_mask
from blockshock.training.parameters import Training

pytestmark = [pytest.mark.gpu, needs_a_gpu]
CUDA = "cuda"
LENGTHS = (1, 16, 17, 64, 100, 129, 300, 1024)


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bsr, "_settings", bsr.AlgorithmCache("bsr-checked", fits=bsr._settings._fits))


def piece_of(spec: str, dtype: torch.dtype, N: int = 512, K: int = 768, device: str = CUDA) -> Piece:
    """Small weights that are exact in every dtype, some of them zeros."""
    source = TensorWeights(matrix(N, K, dtype, N + K, device=device), matrix(1, N, dtype, 1, device=device)[0])
    return Piece(source, mask=block_mask(spec, source))


def pack(piece: Piece, kernel: str = "bsr:search=no") -> bsr.PackedBsr:
    built = build_block_kernel(kernel)
    built.check(piece, piece.kept.size)  # type: ignore[attr-defined]
    packed = built.pack(piece, piece.kept.size, piece.source.bias, backward=True)  # type: ignore[attr-defined]
    assert isinstance(packed, bsr.PackedBsr)
    return packed


def bounded(found_BN: torch.Tensor, x_BK: torch.Tensor, w_KN: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """A sum in float32, in any order, that is rounded once."""
    x64, w64, eps = x_BK.double(), w_KN.double(), torch.finfo(x_BK.dtype).eps
    added = 0 if bias is None else bias.double()
    exact_BN, terms_BN = x64 @ w64 + added, x64.abs() @ w64.abs() + (0 if bias is None else bias.double().abs())
    bound_BN = eps / 2 * exact_BN.abs() + len(w_KN) * 2.0**-24 * terms_BN + 1e-30
    return bool(((found_BN.double() - exact_BN).abs() <= bound_BN).all())


def check(packed: bsr.PackedBsr, piece: Piece, lengths: tuple[int, ...], layout: str = "whole") -> None:
    w_NK = piece.dense()
    for B in lengths:
        x_BK, grad_y_BN = (matrix(B, width, piece.dtype, B, layout, CUDA).to(piece.device) for width in w_NK.T.shape)
        assert bounded(packed(x_BK), x_BK, w_NK.T, piece.source.bias), f"B = {B}, {layout}: {packed.algorithm}"
        assert bounded(packed.grad_input(grad_y_BN), grad_y_BN, w_NK, None), f"backward, B = {B}, {layout}"


def variants() -> int:
    """How many were compiled, or read of Triton's own cache, in this process for this GPU."""
    kernel = importlib.import_module("torch.sparse._triton_ops")._bsr_strided_addmm_kernel
    return len(kernel.device_caches[torch.cuda.current_device()][0])


@pytest.mark.parametrize(
    ("size", "level", "dtype"),
    [(8, 0.8, torch.bfloat16), (16, 0.0, torch.bfloat16), (32, 0.5, torch.float16), (64, 0.99, torch.bfloat16),
     (128, 0.9, torch.float16)],
)  # fmt: skip
def test_every_size_level_and_length(size: int, level: float, dtype: torch.dtype) -> None:
    piece = piece_of(f"blocks:size={size}:level={level}", dtype)
    check(pack(piece), piece, LENGTHS)


def test_every_kind_of_mask() -> None:
    for spec in ("blocks:size=16:inside=1100", "blocks_24:size=16"):
        piece = piece_of(spec, torch.bfloat16)
        check(pack(piece), piece, (3, 64))


def test_no_length_is_compiled_for() -> None:
    piece = piece_of("blocks:size=64:level=0.8", torch.bfloat16)
    packed, w_NK = pack(piece), piece.dense()
    check(packed, piece, (64,))
    compiled = variants()
    for B in (65, 128, 130, 448, 511, 777, 1000, 1024, 4096, 5000):
        check(packed, piece, (B,))
    other = piece_of("blocks:size=64:level=0.5", torch.bfloat16, 256, 1024)
    check(pack(other), other, (200, 640))
    assert variants() == compiled, "nor for another shape of W"
    for B in (64, 128, 1920):
        x_BK = matrix(B, 777, torch.bfloat16, B, device=CUDA)[:, 9:]
        assert bounded(packed(x_BK), x_BK, w_NK.T, piece.source.bias)
    assert variants() <= compiled + 1, "rows that are not aligned"


def test_a_weight_without_blocks_is_its_bias() -> None:
    piece = piece_of("blocks:size=64:level=0.8", torch.bfloat16)
    packed = pack(piece)
    none = bsr.Blocks(packed.blocks[:0], packed.columns[:0], torch.zeros_like(packed.starts))
    y_BN = bsr.multiplied(none, matrix(100, 768, torch.bfloat16, 0, device=CUDA), packed.bias, default_for(100))
    assert torch.equal(y_BN, packed.bias.expand(100, -1))  # type: ignore[union-attr]


def test_more_tiles_than_a_grid_has_go_in_parts() -> None:
    piece = piece_of("blocks:size=16:level=0.5", torch.bfloat16, 32, 64)
    packed, x_BK = pack(piece), torch.randint(-8, 9, (16 * 65535 + 40, 64), device=CUDA).to(torch.bfloat16)
    y_BN = bsr.multiplied(packed._blocks, x_BK, packed.bias, default_for(16))
    assert bounded(y_BN, x_BK, piece.dense().T, piece.source.bias)


def test_x_may_lie_anyhow() -> None:
    piece = piece_of("blocks:size=32:level=0.8", torch.bfloat16)
    packed = pack(piece)
    for layout in LAYOUTS:
        check(packed, piece, (100, 128), layout)


@pytest.mark.parametrize("size", [8, 64])
def test_what_is_searched_is_right_for_every_length_of_its_octave(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is compiled twice: not for another octave, nor for another weight."""
    settings = set()
    product, compile_ahead = bsr.torch_internals.bsr_product, bsr.torch_internals.compile_bsr

    def noted(
        weight: bsr.Blocks, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, setting: Setting
    ) -> None:
        settings.add((setting, bias is not None))
        product(weight, x, bias, y, setting)

    def noted_ahead(
        weight: bsr.Blocks, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, some: list[Setting]
    ) -> None:
        settings.update((setting, bias is not None) for setting in some)
        compile_ahead(weight, x, bias, y, some)
        compiled = variants()
        compile_ahead(weight, x, bias, y, some[:1])
        assert variants() == compiled

    monkeypatch.setattr(bsr.torch_internals, "bsr_product", noted)
    monkeypatch.setattr(bsr.torch_internals, "compile_bsr", noted_ahead)
    before = variants()
    for level, shape in ((0.8, (512, 768)), (0.9, (768, 256))):
        piece = piece_of(f"blocks:size={size}:level={level}", torch.bfloat16, *shape)
        packed = pack(piece, "bsr")
        check(packed, piece, (130, 200, 256, 700))
        print(packed.algorithm)
        assert sorted(packed._chosen) == [256, 1024]
    assert variants() - before <= len(settings)


def test_a_setting_that_multiplies_wrongly_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: with three stages one row of blocks is lost, as one number of stages did in 2023."""
    product = bsr.torch_internals.bsr_product

    def faulty(w: bsr.Blocks, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, setting: Setting) -> None:
        product(w, x, bias, y, setting)
        if setting.stages == 3:
            y[:, :64] = 0

    monkeypatch.setattr(bsr.torch_internals, "bsr_product", faulty)
    piece = piece_of("blocks:size=64:level=0.8", torch.bfloat16)
    packed = pack(piece, "bsr")
    check(packed, piece, (64,))
    assert "turned away" in packed.algorithm
    assert all(setting.stages != 3 for setting in packed._chosen.values())


def test_a_wrong_block_index_is_caught() -> None:
    piece = piece_of("blocks:size=32:level=0.8", torch.bfloat16)
    packed = pack(piece)
    check(packed, piece, (64,))
    packed.columns[5] = (packed.columns[5] + 1) % (768 // 32)
    with pytest.raises(AssertionError):
        check(packed, piece, (64,))


def test_a_captured_product_goes_on_reading_x_and_the_blocks() -> None:
    piece = piece_of("blocks:size=64:level=0.8", torch.bfloat16)
    packed, w_NK = pack(piece, "bsr"), piece.dense()
    x_BK, y_BN = (
        matrix(50, 768, torch.bfloat16, 0, device=CUDA),
        torch.empty(50, 512, device=CUDA, dtype=torch.bfloat16),
    )
    graph = timing.capture(lambda: y_BN.copy_(packed(x_BK)))
    for seed in (1, 2):
        x_BK.copy_(matrix(50, 768, torch.bfloat16, seed, device=CUDA))
        graph.replay()
        assert bounded(y_BN, x_BK, w_NK.T, piece.source.bias)
    packed.recompress(2 * w_NK)
    graph.replay()
    assert bounded(y_BN, x_BK, 2 * w_NK.T, piece.source.bias)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # what was to be captured is refused
def test_what_was_never_run_is_not_searched_while_it_is_captured() -> None:
    packed = pack(piece_of("blocks:size=64:level=0.8", torch.bfloat16), "bsr")
    x_BK = matrix(50, 768, torch.bfloat16, 0, device=CUDA)
    told = pytest.raises(KernelUnavailable, match="run the layer once before it is captured")
    with told, torch.cuda.graph(torch.cuda.CUDAGraph()):
        packed(x_BK)


@pytest.mark.filterwarnings("ignore")  # compilers say this and that
def test_compiled_code_multiplies_by_it() -> None:
    piece = piece_of("blocks:size=32:level=0.8", torch.bfloat16)
    packed, w_NK = pack(piece), piece.dense()
    compiled = torch.compile(packed, fullgraph=True)
    for B in (5, 64):
        x_BK = matrix(B, 1024, torch.bfloat16, B, device=CUDA)[:, 256:]
        assert bounded(compiled(x_BK), x_BK, w_NK.T, piece.source.bias)


def test_many_tokens_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bsr, "_ADDRESSED", 768 * 130)
    piece = piece_of("blocks:size=32:level=0.8", torch.bfloat16)
    check(pack(piece), piece, (1000,))


def test_a_layer_trains_with_what_is_searched() -> None:
    """The packing of Wᵀ is searched in the first backward pass, on autograd's own thread."""
    linear = nn.Linear(512, 256, device=CUDA, dtype=torch.bfloat16)
    layer = MethodLinear(linear, "block_sparse-bsr-blocks:size=32:level=0.5")
    dense, kept = layer.to_linear(), layer.mask.dense()  # type: ignore[union-attr]
    dense.weight.register_hook(lambda grad: grad * kept)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (layer, dense)]
    for step in range(3):
        x_BK = torch.randn(70, 512, device=CUDA, generator=torch.Generator(CUDA).manual_seed(step)).to(torch.bfloat16)
        found = []
        for model, optimizer in zip((layer, dense), optimizers, strict=True):
            optimizer.zero_grad()
            x = x_BK.clone().requires_grad_()
            y = model(x)
            y.float().square().mean().backward()
            optimizer.step()
            found.append((y, x.grad))
        torch.testing.assert_close(*found, rtol=0.05, atol=0.05)
    layer.check()
    print(layer)


@pytest.mark.parametrize(("size", "trained"), [(16, True), (64, False)])
def test_a_gpu_gives_out_what_a_layer_was_estimated(size: int, trained: bool) -> None:
    device, N = torch.device("cuda"), 8192
    source = GeneratedWeights(N, N, torch.bfloat16, device)
    training = Training() if trained else None
    picks = {"block_kernel": "bsr:search=no", "block_mask": f"blocks:size={size}:level=0.9"}
    layer = Layer(source, picks, 64, True, training)
    _ = layer.blocks
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with memory.peak_bytes(device) as peak:
        method = METHODS.get("block_sparse")(layer, Alone())
    held = torch.cuda.memory_allocated() - before
    estimate = METHODS.get("block_sparse").estimate(Shape(N, N, 2, 1, True, training, picks=picks))
    assert method.weight_bytes() == pytest.approx(estimate.steady, rel=0.005)
    assert held == pytest.approx(estimate.steady, rel=0.02), "something is held that is not counted"
    assert peak[0] <= estimate.building + (768 << 20), "and a few blocks of rows"
