"""S-STE in eight bits, beside its definition in float64: what is stored, multiplied, and saved of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gpus import needs_a_gpu
from torch import nn

from blockshock import MethodLinear
from blockshock.kernels import Stored
from blockshock.measure import FLOAT32
from blockshock.training import RecipeStorage
from blockshock.training.recipes import eight_bits, storage
from blockshock.training.recipes.base import recipe_of
from blockshock.training.recipes.eight_bits import of_gradients, of_values, represented, stored, times

N, K, B = 32, 64, 24
FORMATS = ((of_values(), torch.float8_e4m3fn, 448.0), (of_gradients(), torch.float8_e5m2, 57344.0))


def rounded(x: torch.Tensor, dtype: torch.dtype, largest: float) -> torch.Tensor:
    """x as the paper's code stores it: times what makes the largest number that of the format; in float64."""
    scale = x.float().abs().max() * (1 / largest)
    return (x.float() / scale).to(dtype).double() * scale.double()


def test_what_is_stored_is_the_nearest_with_one_scale_a_matrix() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x_RC = (torch.randn(N, K) * torch.logspace(-6, 3, N)[:, None]).to(dtype)
        for format, kind, largest in FORMATS:
            held = stored(x_RC.T, format)
            assert (held.numbers.dtype, held.scale.shape) == (kind, ())
            assert held.numbers.is_contiguous()
            found = held.numbers.double() * held.scale.double()
            assert torch.equal(found, rounded(x_RC.T, kind, largest))
            assert torch.equal(found, represented(x_RC.T, format))
            assert found.abs().max().item() == pytest.approx(x_RC.abs().max().item(), rel=1e-6)


def test_nothing_zeros_and_what_is_no_number() -> None:
    for format, _, _ in FORMATS:
        assert stored(torch.zeros(0, K), format).numbers.shape == (0, K)
        assert not represented(torch.zeros(0, K), format).numel()
        none = stored(torch.zeros(N, K), format)
        assert not none.numbers.float().any()
        assert not times(none, stored(torch.randn(N, K), of_values()), torch.float32, quick=True).any()
        for wrong in (torch.nan, torch.inf):
            x_NK = torch.randn(N, K)
            x_NK[3, 5] = wrong
            found_NN = times(stored(x_NK, format), stored(torch.randn(N, K), of_values()), torch.float32, quick=True)
            assert found_NN[3].isnan().all()


def worst(spec: str = "s_ste:bits=8") -> float:
    """The farthest that output and gradients of five steps are from the definition, relative."""
    torch.manual_seed(0)
    layer = MethodLinear(nn.Linear(K, N), f"recipe-{spec}")
    (held,) = layer.layer.storages()
    assert isinstance(held, RecipeStorage)
    optimizer, found, drawn = torch.optim.AdamW(layer.parameters(), lr=0.01), [], []
    plain = eight_bits.stored

    def seen(x_RC: torch.Tensor, format: object) -> Stored:
        drawn.append(x_RC)
        return plain(x_RC, format)  # type: ignore[arg-type]

    for _ in range(5):
        x_BK, grad_BN = torch.randn(B, K, requires_grad=True), torch.randn(B, N) * 1e-3
        optimizer.zero_grad()
        y_BN = layer(x_BK)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eight_bits, "stored", seen)
            drawn.clear()
            y_BN.backward(grad_BN)
        sampled_NB = next((one for one in drawn if one.shape[0] == N), grad_BN.T)[:, :B]
        assert (sampled_NB.unflatten(1, (-1, 4)) != 0).sum(-1).max() <= 2
        (e4m3, e5m2), w_NK = (one[1:] for one in FORMATS), held.packed.values
        right = [
            rounded(x_BK.detach(), *e4m3) @ rounded(w_NK, *e4m3).T + layer.bias.detach().double(),  # type: ignore[union-attr]
            rounded(grad_BN, *e5m2) @ rounded(w_NK, *e4m3),
            rounded(sampled_NB, *e5m2) @ rounded(x_BK.detach(), *e4m3),
            grad_BN.double().sum(0),
        ]
        pairs = zip((y_BN.detach(), x_BK.grad, held.parameter.grad, held.bias.grad), right, strict=True)  # type: ignore[union-attr]
        found += [((one.double() - other).norm() / other.norm()).item() for one, other in pairs]  # type: ignore[union-attr]
        optimizer.step()
    return max(found)


def test_it_is_what_its_definition_says() -> None:
    assert worst() < 1e-6


def rows_of_their_own(patch: pytest.MonkeyPatch) -> None:
    """A scale a row, in its mean: no product of one scale is that."""
    plain = eight_bits.stored

    def stored_by_rows(x_RC: torch.Tensor, format: object) -> Stored:
        one = plain(x_RC, format)  # type: ignore[arg-type]
        return Stored(one.numbers, one.scale * 1.01)

    patch.setattr(eight_bits, "stored", stored_by_rows)


def gradients_as_what_goes_forward(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(eight_bits, "of_gradients", of_values)


def all_gradients_drawn_in_the_layers_dtype(patch: pytest.MonkeyPatch) -> None:
    plain = storage.sampled_grad_weight
    patch.setattr(storage, "sampled_grad_weight", lambda *given: plain(*given[:4]))


@pytest.mark.parametrize(
    "fault", [rows_of_their_own, gradients_as_what_goes_forward, all_gradients_drawn_in_the_layers_dtype]
)
def test_what_is_something_else_is_found(fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises(AssertionError):
            assert worst() < 1e-6


def test_other_bits_are_refused_and_a_state_of_before_is_gone_on_from() -> None:
    with pytest.raises(ValueError, match="bits must be 8 or 16, got bits=4"):
        recipe_of("s_ste:bits=4")
    eight, sixteen = (MethodLinear(nn.Linear(K, N), f"recipe-{spec}") for spec in ("s_ste:bits=8", "s_ste"))
    state = sixteen.state_dict()
    state["recipe"] = torch.tensor(list(b"s_ste:seed=0"), dtype=torch.uint8)
    sixteen.load_state_dict(state)
    for spec in (b"s_ste:seed=0", b"s_ste:seed=1:bits=8", b"no_such", b"s_ste:bits=5"):
        state["recipe"] = torch.tensor(list(spec), dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="and this layer's is s_ste:seed=0:bits=8"):
            eight.load_state_dict(state)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("sizes", [(1, 64, 128), (100, 256, 512), (4096, 512, 4096), (7, 40, 64)])
def test_a_gpus_own_product_is_within_its_bound_and_so_is_the_simulation(
    sizes: tuple[int, int, int], quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    M, columns, C = sizes
    bf16, fp32 = torch.bfloat16, torch.float32
    for format, dtype in ((of_values(), bf16), (of_gradients(), bf16), (of_gradients(), fp32)):
        a_MC, b_NC = (torch.randn(size, C, device="cuda", dtype=bf16) for size in (M, columns))
        a, b = stored(a_MC, format), stored(b_NC, of_values())
        exact_a, exact_b = (one.numbers.double() * one.scale.double() for one in (a, b))
        right_MN, sizes_MN = exact_a @ exact_b.T, exact_a.abs() @ exact_b.abs().T
        for real in (True, False):
            if not real:
                monkeypatch.setattr(eight_bits, "multiplies", lambda *_: False)
            sums = of_values().sums(a_MC.device) if eight_bits.multiplies(columns, C, dtype, a_MC.device) else FLOAT32
            # Of a rounding to the dtype, one of each scale's product, and what adding up loses of Σ|a||b|.
            passes = torch.finfo(dtype).eps / 2 + 2.0**-22 + sums.bound(C)
            off_MN = (times(a, b, dtype, quick).double() - right_MN).abs()
            assert (off_MN <= passes * sizes_MN).all(), (sizes, format, dtype, real)
        monkeypatch.undo()
