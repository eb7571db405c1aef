"""The toolkit on a GPU: the bits of a CPU where nothing is drawn, the mean and the seed where something is."""

from __future__ import annotations

import copy

import pytest
import torch
from blockshock.sparse import (
    Sparse24,
    StepAdamW,
    bits_of_mask,
    fixed_scale,
    mask_24,
    masked_decay_,
    mvue_24,
    soft_threshold_24,
    transposable_mask,
)
from gpus import needs_a_gpu
from strategies import LAYOUTS, equal, matrix
from test_mvue import GROUPS, check_mean
from test_sparse24 import close, represented
from test_sparse_masks import wide
from torch.nn import functional as F

from blockshock.kernels import build_format, build_kernel, fours
from blockshock.training import recipe_of

pytestmark = [pytest.mark.gpu, needs_a_gpu]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KERNEL = "cusparselt:search=no"


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_and_thresholds_have_the_bits_of_a_cpu(dtype: torch.dtype) -> None:
    limit = float(torch.finfo(dtype).max)
    w_RC = torch.cat([drawn(4, 4096), drawn(4, 4096).round(), wide(512, torch.float64, 1).clamp(max=limit)], 1)
    w_RC = w_RC.to(dtype).view(16, -1).clone()
    w_RC[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    found = w_RC.cuda()
    for signed in (False, True):
        assert torch.equal(mask_24(found, signed=signed).cpu(), mask_24(w_RC, signed=signed))
    assert torch.equal(transposable_mask(found).cpu(), transposable_mask(w_RC))
    for dim in (0, 1):
        ours, wanted = soft_threshold_24(found, dim).cpu(), soft_threshold_24(w_RC, dim)
        assert equal(ours.isnan(), wanted.isnan()), "whose bits are a device's own"
        assert equal(ours.nan_to_num(), wanted.nan_to_num())
    whole = w_RC[4:8].clone()
    torch.testing.assert_close(fixed_scale(whole.cuda()).cpu(), fixed_scale(whole), rtol=1e-12, atol=0)
    grad, mask = drawn(*w_RC.shape, seed=1).to(dtype), mask_24(w_RC)
    right = masked_decay_(grad.clone(), w_RC, mask, 0.1)
    for held in (mask, bits_of_mask(mask)):
        decayed = masked_decay_(grad.cuda(), found, held.cuda(), 0.1).cpu()
        torch.testing.assert_close(decayed, right, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("R", "C", "before"), [(4, 4, 0), (8, 24, 0), (12, 20, 0), (256, 448, 0), (256, 448, 4)])
def test_decay_of_a_mask_and_of_its_bits_has_the_bits_of_plain_torch(
    dtype: torch.dtype, R: int, C: int, before: int
) -> None:
    """Torch's on a CPU, which rounds a product before it adds; a GPU's own need not, and is what float64 has, for no
    kernel takes it. Of sizes that one load has whole and in part, and of tensors that lie where it cannot begin."""

    def placed(seed: int) -> torch.Tensor:
        return torch.cat([drawn(before), drawn(R, C, seed=seed).flatten()]).to("cuda", dtype)[before:].view(R, C)

    w, mask = placed(2), placed(3) > 0
    w[mask] = torch.nan
    right = placed(1).cpu().addcmul_(w.cpu().masked_fill(mask.cpu(), -0.0), ~mask.cpu(), value=0.1)
    for held in (mask, bits_of_mask(mask)):
        decayed = masked_decay_(placed(1), w, held, 0.1).cpu()
        torch.testing.assert_close(decayed, right)
        assert dtype == torch.float64 or equal(decayed, right)
    if fours.takes(w):
        version = (dropped := placed(1))._version
        assert equal(fours.zero_dropped_(dropped, bits_of_mask(mask)), placed(1).masked_fill_(~mask, 0))
        assert dropped._version > version


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_the_two_largest_are_those_of_the_mask(dtype: torch.dtype) -> None:
    recipe = recipe_of("ste")
    for shape in ((4, 4), (8, 24), (1028, 260)):
        w_NK = drawn(*shape).to("cuda", dtype)
        w_NK[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
        assert torch.equal(recipe.mask_bits(w_NK), bits_of_mask(mask_24(w_NK)))


def test_powers_of_two_are_exact() -> None:
    """Which the search for tiles takes for granted."""
    exponents = torch.arange(-1074, 1024, dtype=torch.float64)
    assert torch.equal(torch.exp2(exponents.cuda()).cpu(), torch.exp2(exponents))


def test_a_captured_graph_finds_the_same_tiles() -> None:
    w_RC = wide(512, torch.float32, 2).cuda()
    wanted = transposable_mask(w_RC)
    graph, held = torch.cuda.CUDAGraph(), torch.zeros_like(w_RC)
    with torch.cuda.graph(graph):
        found = transposable_mask(held)
    held.copy_(w_RC)
    graph.replay()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("exact", [False, True])
def test_an_estimate_is_right_on_average_and_its_seed_makes_the_bits(exact: bool) -> None:
    def estimator(x: torch.Tensor) -> torch.Tensor:
        return mvue_24(x.cuda(), generator=torch.Generator("cuda").manual_seed(0), exact=exact).cpu()

    check_mean(estimator, exact)
    assert equal(estimator(GROUPS), estimator(GROUPS))
    for dtype in DTYPES:
        x = torch.tensor([[0.0, 0, 0, 0], [0, -3, 0, 0], [2, 0, 0, 5], [1, 1, float("nan"), 1]], dtype=dtype)
        found = estimator(x)
        torch.testing.assert_close(found[:3], x[:3])
        assert found[3].isnan().any()


def test_step_switches_as_on_a_cpu_and_resumes_to_the_bit() -> None:
    parameters = [torch.nn.Parameter(drawn(64, 64).float().to(device)) for device in ("cpu", "cuda")]
    optimizers = [StepAdamW([one], lr=0.01, betas=(0.7, 0.8), least=3, most=8) for one in parameters]

    def step(number: int, pairs: list[tuple[torch.nn.Parameter, StepAdamW]]) -> None:
        for parameter, optimizer in pairs:
            parameter.grad = drawn(64, 64, seed=number).float().to(parameter.device)
            optimizer.step()

    for number in range(6):
        step(number, list(zip(parameters, optimizers, strict=True)))
    again = torch.nn.Parameter(parameters[1].detach().clone())
    resumed = StepAdamW([again], least=0, most=0)
    resumed.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for number in range(6, 12):
        step(number, [*zip(parameters, optimizers, strict=True), (again, resumed)])
    assert all(one.switched for one in (*optimizers, resumed))
    torch.testing.assert_close(parameters[1].cpu(), parameters[0], rtol=1e-5, atol=1e-6)
    assert equal(again.detach(), parameters[1].detach())


def test_a_captured_step_after_the_switch_goes_on_as_it_would() -> None:
    parameters = [torch.nn.Parameter(drawn(64, 64).float().cuda()) for _ in range(2)]
    optimizers = [StepAdamW([one], lr=0.01, least=0, most=0) for one in parameters]
    gradient = drawn(64, 64, seed=1).float().cuda()
    for parameter, optimizer in zip(parameters, optimizers, strict=True):
        parameter.grad = gradient
        for _ in range(3):
            optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[0].step()
    for _ in range(3):
        graph.replay()
        optimizers[1].step()
    assert optimizers[0].switched
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposable", [False, True])
def test_products_are_those_of_what_is_kept(dtype: torch.dtype, transposable: bool) -> None:
    if reason := build_kernel(KERNEL).unavailable(torch.device("cuda"), dtype):
        pytest.skip(reason)
    x_NK = drawn(256, 512).to("cuda", torch.float32)
    x_NK[0], x_NK[1, 1:] = 0.0, 0.0
    a_BK, b_BN = (drawn(37, size, seed=size).to("cuda", dtype).requires_grad_() for size in (512, 256))
    mask = transposable_mask(x_NK) if transposable else mask_24(x_NK)
    A = Sparse24(x_NK, mask, dtype=dtype, both_ways=True, kernel=KERNEL)
    kept = x_NK.where(mask, 0).to(dtype).double()
    y_BN = F.linear(a_BK, A)
    close(y_BN, a_BK.double() @ kept.T)
    close(A @ a_BK.T, (a_BK.double() @ kept.T).T)
    close(b_BN @ A, b_BN.double() @ kept)
    (gradient,) = torch.autograd.grad(y_BN, a_BK, b_BN)
    close(gradient, b_BN.double() @ kept)
    of_mvue = Sparse24.by_mvue(x_NK, torch.Generator("cuda").manual_seed(1), dtype=dtype, kernel=KERNEL)
    wanted = mvue_24(x_NK, 1, torch.Generator("cuda").manual_seed(1)).to(dtype).double()
    close(F.linear(a_BK, of_mvue), a_BK.double() @ wanted.T)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_sides_may_lie_as_they_will(layout: str) -> None:
    if reason := build_kernel(KERNEL).unavailable(torch.device("cuda"), torch.bfloat16):
        pytest.skip(reason)
    x_NK, a_BK = (matrix(rows, 64, torch.bfloat16, rows, layout, "cuda") for rows in (32, 9))
    A, same = (Sparse24(x, both_ways=True, kernel=KERNEL) for x in (x_NK, x_NK.contiguous().clone()))
    assert torch.equal(F.linear(a_BK, A), F.linear(a_BK.contiguous().clone(), same))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
def test_in_eight_bits_products_are_those_of_what_is_stored(dtype: torch.dtype, source: torch.dtype) -> None:
    format = build_format("fp8" if dtype.is_floating_point else "int8")
    assert format is not None
    if reason := format.unavailable(torch.device("cuda"), torch.bfloat16):
        pytest.skip(reason)
    x_NK, a_BK = (drawn(rows, 512, seed=rows).to("cuda", source) for rows in (256, 37))
    fused = "" if source == torch.bfloat16 else ":fused=no"
    A = Sparse24(x_NK, dtype=dtype, kernel=None if dtype == torch.float8_e5m2 else KERNEL + fused)
    exact = represented(a_BK, dtype) @ represented(x_NK.where(mask_24(x_NK), 0), dtype).T
    found = F.linear(a_BK, A)
    # Of fp8 the sums themselves have some fourteen bits.
    bound = 4 * torch.finfo(source).eps + (2.0**-10 if dtype == torch.float8_e4m3fn else 1e-6)
    assert (found.double() - exact).norm() <= bound * exact.norm()
