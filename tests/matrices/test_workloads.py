"""Workloads: shapes, seeds, what each docstring promises of its inputs; the recorded layers; targets and losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from inner_pytest import ROOT
from torch.nn import functional as F

from blockshock.errors import InputError
from blockshock.matrices import workloads
from blockshock.matrices.weights import GeneratedWeights
from blockshock.matrices.workloads import WORKLOADS, build_workload
from blockshock.phases.backward import LOSSES

pytestmark = pytest.mark.masks

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_workload = pytest.mark.parametrize("name", WORKLOADS.names())
up_and_down = pytest.mark.parametrize(("N", "K"), [(1536, 384), (384, 1536)])


def inputs(spec: str, B: int, K: int, seed: int = 0, dtype: torch.dtype = torch.float32, N: int = 8) -> torch.Tensor:
    return build_workload(spec).inputs(B, K, dtype, CPU, seed, N)


def any_shape(name: str) -> tuple[int, int]:
    return (build_workload(name).shapes or ((8, 96),))[0]


def normal_mean(function: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The mean of a function of a standard normal variable, by summation."""
    grid = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    density = (-grid.square() / 2).exp()
    return ((density * function(grid)).sum() / density.sum()).item()


def moments(x: torch.Tensor) -> tuple[float, float]:
    return x.mean().item(), x.std().item()


@pytest.fixture
def empty_cache() -> Iterator[None]:
    workloads._recorded.cache_clear()
    yield
    workloads._recorded.cache_clear()


@every_workload
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_are_finite_alike_for_one_seed_and_of_the_shape_asked_for(name: str, dtype: torch.dtype) -> None:
    N, K = any_shape(name)
    most = build_workload(name).most_tokens
    for B in 1, 33, min(most or 300, 300):
        first, again, other = (inputs(name, B, K, seed, dtype, N) for seed in (3, 3, 4))
        assert (first.shape, first.dtype) == ((B, K), dtype)
        assert first.is_contiguous()
        assert first.isfinite().all()
        assert torch.equal(first, again)
        assert torch.equal(first, other) == (most is not None)


@every_workload
@pytest.mark.parametrize("B", [0, -1])
def test_batches_that_are_not_positive_are_refused(name: str, B: int) -> None:
    N, K = any_shape(name)
    with pytest.raises(InputError, match=rf"B must .*, got (B=)?{B}$"):
        inputs(name, B, K, N=N)


@every_workload
def test_weights_have_the_shape_and_dtype_asked_for(name: str) -> None:
    N, K = any_shape(name)
    source = build_workload(name).weights(N, K, torch.bfloat16, CPU, seed=5)
    assert (source.N, source.K, source.dtype, source.seed) == (N, K, torch.bfloat16, 5)
    assert source.rows(0, 8).shape == (8, K)


def test_weights_are_generated_from_the_seed() -> None:
    rows = build_workload("gaussian").weights(8, 16, torch.float32, CPU, seed=5).rows(0, 8)
    assert torch.equal(rows, GeneratedWeights(8, 16, torch.float32, CPU, 5).rows(0, 8))


def test_gaussian_has_the_mean_and_deviation_asked_for() -> None:
    assert moments(inputs("gaussian", 400, 500)) == pytest.approx((0, 1), abs=0.01)
    assert moments(inputs("gaussian:mean=-3:std=0.5", 400, 500)) == pytest.approx((-3, 0.5), abs=0.01)


def test_uniform_fills_its_range_evenly() -> None:
    for spec, low, high in ("uniform", -1, 1), ("uniform:low=2:high=5", 2, 5):
        x_BK = inputs(spec, 400, 500)
        assert low <= x_BK.min() < low + 1e-3 * (high - low)
        assert high - 1e-3 * (high - low) < x_BK.max() < high
        counts = x_BK.histc(10, low, high)
        assert (counts - 20_000).abs().max() < 5 * 20_000**0.5


def test_activation_like_has_outlier_features_and_a_clip() -> None:
    assert inputs("activation_like", 400, 500).abs().max() == 6
    assert inputs("activation_like:clip=2.5", 400, 500).abs().max() == 2.5
    for spread in 0.0, 0.5, 1.0:
        log_scales = inputs(f"activation_like:clip=1e9:spread={spread}", 1000, 500).std(dim=0).log()
        assert moments(log_scales) == pytest.approx((0, spread), abs=0.12)


@pytest.mark.parametrize(("act", "lowest"), [("gelu", -0.17), ("silu", -0.2785), ("relu", 0.0)])
def test_mlp_applies_the_activation_asked_for(act: str, lowest: float) -> None:
    x_BK = inputs(f"transformer_mlp:act={act}", 100, 500)
    assert x_BK.min().item() == pytest.approx(lowest, abs=1e-3)
    assert x_BK.mean().item() == pytest.approx(normal_mean(getattr(F, act)), abs=0.01)


def test_swiglu_is_a_gate_times_an_independent_normal() -> None:
    x_BK = inputs("transformer_mlp:act=swiglu", 400, 500)
    assert moments(x_BK)[0] == pytest.approx(0, abs=0.01)
    assert moments(x_BK)[1] == pytest.approx(normal_mean(lambda z: F.silu(z).square()) ** 0.5, rel=0.02)
    assert 0.45 < (x_BK > 0).float().mean() < 0.55


def test_mlp_is_layer_normalised_unless_told_not_to() -> None:
    normed, plain = (inputs(f"transformer_mlp:act=relu:norm={norm}", 400, 2000) for norm in ("yes", "no"))
    assert torch.equal(normed, inputs("transformer_mlp:act=relu", 400, 2000))
    assert moments(normed.square().mean(1))[0] == pytest.approx(0.5, rel=0.01)
    assert moments(plain.square().mean(1))[0] == pytest.approx((1.5**2 + 0.3**2) / 2, rel=0.05)
    assert plain.mean(1).std() > 0.1 > 0.01 > normed.mean(1).std()


@pytest.mark.parametrize("act", ["tanh", "GELU"])
def test_unknown_activations_are_refused_with_the_choices(act: str) -> None:
    with pytest.raises(InputError, match=f"act is one of gelu, silu, relu, swiglu; got '{act}'"):
        build_workload(f"transformer_mlp:act={act}")


def test_attention_correlates_the_tokens_of_a_window() -> None:
    x_BK = inputs("attention_like:window=64", 128, 1000)
    alike = F.cosine_similarity(x_BK[:-1], x_BK[1:])
    assert alike[:63].mean() > 0.3
    assert alike[64:].mean() > 0.3
    assert alike[63].abs() < 0.1


def test_attention_mixes_convexly_and_causally(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BK = inputs("attention_like", 300, 1000)
    scale = x_BK.std(dim=1)
    assert scale[[0, 256]].tolist() == pytest.approx([1, 1], abs=0.1)
    assert scale[200:256].max() < 0.3
    assert scale.max() < 1.1
    monkeypatch.setattr(workloads, "_normal", lambda B, K, _: torch.ones(B, K))
    assert torch.allclose(inputs("attention_like", 300, 12), torch.ones(300, 12))


@pytest.mark.parametrize(("spec", "stride"), [("vision_conv", 8), ("vision_conv:stride=3", 3)])
def test_patches_overlap_by_all_but_a_stride(spec: str, stride: int) -> None:
    x_BK = inputs(spec, 50, 96)
    assert torch.equal(x_BK[:-1, stride:], x_BK[1:, :-stride])
    assert not torch.equal(x_BK[:-1, :stride], x_BK[1:, :stride])


def test_patches_are_rectified_and_smooth() -> None:
    x_BK = inputs("vision_conv:stride=500", 400, 500)
    rough_BK = inputs("vision_conv:stride=500:smooth=1", 400, 500)
    for patches in x_BK, rough_BK:
        assert patches.min() == 0
        assert (patches == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
        assert patches.square().mean().item() == pytest.approx(0.5, rel=0.05)
    neighbours, strangers = (
        torch.corrcoef(torch.stack((patches[:, :-1].flatten(), patches[:, 1:].flatten())))[0, 1].item()
        for patches in (x_BK, rough_BK)
    )
    assert neighbours > 0.8
    assert abs(strangers) < 0.02


@pytest.mark.parametrize("spec", ["gaussian:std=1e6", "uniform:high=1e6", "gaussian:mean=1e6"])
def test_inputs_that_are_not_finite_in_the_dtype_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"X holds .* at row \d+, column \d+"):
        inputs(spec, 4, 8, dtype=torch.float16)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("gaussian:std=0", "std must lie in 1e-37 … 1e+37, got std=0.0"),
        ("gaussian:std=-1", "std must lie in 1e-37 … 1e+37, got std=-1.0"),
        ("gaussian:std=inf", "std must lie in 1e-37 … 1e+37, got std=inf"),
        ("gaussian:std=nan", "std must lie in 1e-37 … 1e+37, got std=nan"),
        ("gaussian:std=1e300", "std must lie in 1e-37 … 1e+37, got std=1e+300"),
        ("gaussian:mean=nan", "mean must lie in -1e+37 … 1e+37, got mean=nan"),
        ("uniform:high=inf", "high must lie in -1e+37 … 1e+37, got high=inf"),
        ("uniform:low=0:high=0", "high - low must lie in 1e-37 … 2e+37, got high - low=0.0"),
        ("uniform:low=2", "high - low must lie in 1e-37 … 2e+37, got high - low=-1.0"),
        ("activation_like:clip=0", "clip must lie in 1e-37 … 1e+37, got clip=0.0"),
        ("activation_like:spread=inf", "spread must lie in 0 … 1e+37, got spread=inf"),
    ],
)
def test_what_could_draw_no_inputs_or_zeros_alone_is_refused_when_it_is_read(spec: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        build_workload(spec)
    assert str(refused.value) == told


@pytest.mark.parametrize("name", ["gaussian:std=1e-37", "gaussian:std=1e37", "uniform:low=-1e37:high=1e37"])
def test_all_else_that_is_taken_draws_finite_inputs_that_are_no_zeros(name: str) -> None:
    x_BK = inputs(name, 33, 96)
    assert x_BK.isfinite().all()
    assert x_BK.count_nonzero() == x_BK.numel()


@up_and_down
def test_recorded_layers_come_as_recorded(N: int, K: int) -> None:
    layer = build_workload("recorded")
    x_BK = inputs("recorded", 512, K, dtype=torch.float16, N=N)
    source = layer.weights(N, K, torch.float16, CPU, seed=2)
    assert x_BK.shape == (512, K)
    assert source.rows(0, N).shape == (N, K)
    assert source.bias is not None
    assert source.bias.shape == (N,)
    assert source.seed == 2
    assert torch.equal(inputs("recorded", 7, K, dtype=torch.float16, N=N), x_BK[:7])
    x_BK.zero_()
    assert inputs("recorded", 512, K, dtype=torch.float16, N=N).any()


def test_recorded_up_layer_leads_to_the_down_layer() -> None:
    layer = build_workload("recorded")
    source = layer.weights(1536, 384, torch.float64, CPU, seed=0)
    x_BK = inputs("recorded", 512, 384, dtype=torch.float64, N=1536)
    hidden_BN = inputs("recorded", 512, 1536, dtype=torch.float64, N=384)
    w_NK, bias = source.rows(0, 1536), source.bias
    assert bias is not None
    error = (F.gelu(F.linear(x_BK, w_NK, bias)) - hidden_BN).abs()
    bound = 2**-11 * (1.13 * F.linear(x_BK.abs(), 2 * w_NK.abs(), bias.abs()) + hidden_BN.abs()) + 2**-16
    assert (error <= bound).all()
    assert error.norm() / hidden_BN.norm() < 1e-3


def test_recorded_holds_512_tokens_of_two_shapes() -> None:
    with pytest.raises(InputError, match=r"holds 512 tokens: B must lie in 1 … 512, got 513"):
        inputs("recorded", 513, 384, N=1536)
    for N, K in (384, 384), (1536, 1536), (768, 384):
        with pytest.raises(InputError, match=f"1536x384 and 384x1536, not {N}x{K}"):
            inputs("recorded", 4, K, N=N)
        with pytest.raises(InputError, match=f"1536x384 and 384x1536, not {N}x{K}"):
            build_workload("recorded").weights(N, K, torch.float32, CPU, seed=0)


@pytest.mark.usefixtures("empty_cache")
def test_missing_recording_names_the_script_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "RECORDED_FILE", tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match=r"nothing\.safetensors.*tests/data/record_minilm\.py"):
        inputs("recorded", 4, 384, N=1536)
    assert (ROOT / "tests" / "data" / "record_minilm.py").is_file()


@pytest.mark.parametrize("name", [name for name in WORKLOADS.names() if name != "recorded"])
def test_calibration_inputs_are_others_that_meet_the_same_layer(name: str) -> None:
    """Its features are as large as those of X: a pruner that looks at them learns of X."""
    workload, size = build_workload(name), (64, torch.float32, torch.device("cpu"), 3)
    x_BK, x_TK = workload.inputs(4096, *size, 64), workload.calibration(4096, *size, 64, 4096)
    assert not torch.isin(x_TK[:8], x_BK).all()
    rms_K, others_K = (x.square().mean(0).sqrt() for x in (x_BK, x_TK))
    assert ((rms_K / others_K).log().abs() < 0.4).all()


def test_the_recorded_layer_keeps_tokens_for_calibration() -> None:
    workload = build_workload("recorded")
    size = 384, torch.float32, CPU, 0, 1536
    tokens = workload.inputs(512, *size)
    assert torch.equal(workload.calibration(1024, *size, 384), tokens[384:])
    assert torch.equal(workload.calibration(5, *size, 1), tokens[384:389])
    with pytest.raises(InputError, match="keeps its last 128 tokens for calibration: B must be at most 384, got 385"):
        workload.calibration(1024, *size, 385)


@pytest.mark.parametrize(("name", "wanted"), [("sum", 4.0), ("mse_zero", 7.5), ("mse_target", 4.25)])
def test_losses_by_hand(name: str, wanted: float) -> None:
    loss = LOSSES.get(name)(torch.tensor([[1.0, -2.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [3.0, 7.0]]))
    assert loss.shape == ()
    assert loss.item() == wanted
