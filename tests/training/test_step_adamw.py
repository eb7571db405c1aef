"""StepAdamW beside a transcription of STEP in float64, and resumed before, at and after its switch."""

from __future__ import annotations

import copy
import io
import itertools
import math
from typing import Any

import pytest
import torch
from blockshock.sparse import StepAdamW
from strategies import equal
from torch import nn

from blockshock.errors import InputError

LR, BETAS, EPS, DECAY = 0.01, (0.7, 0.8), 1e-8, 0.1
ARGS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}


def gradients(
    steps: int, size: int = 12, settled: int = 10**9, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """Noise, and from one step on always the same."""
    stream = torch.Generator().manual_seed(0)
    drawn = [torch.randn(size, generator=stream, dtype=torch.float64).to(dtype) for _ in range(steps)]
    return [drawn[min(step, settled)] for step in range(steps)]


def step_by_the_paper(
    w: torch.Tensor, every: list[torch.Tensor], least: int, most: int, geometric: bool = False
) -> tuple[list[torch.Tensor], int | None]:
    """All w, and the step after which v is held."""
    (beta1, beta2), window = BETAS, round(1 / (1 - BETAS[1]))
    m, v, held, found, zs = torch.zeros_like(w), torch.zeros_like(w), None, [], []
    at = None
    for t, g in enumerate(every, start=1):
        w, m = w * (1 - LR * DECAY), beta1 * m + (1 - beta1) * g
        if held is None:
            before, v = v, beta2 * v + (1 - beta2) * g**2
            change = (v - before).abs()
            zs.append(change[change > 0].log().mean().exp() if geometric else change.mean())
            w = w - LR * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + EPS)
            if t > most or (t > least and torch.stack(zs[-window:]).mean() < EPS):
                held, at = v / (1 - beta2**t), t
        else:
            w = w - LR * (m / (1 - beta1**t)) / (held.sqrt() + EPS**0.75)
        found.append(w)
    return found, at


def trained(optimizer: StepAdamW, parameter: nn.Parameter, every: list[torch.Tensor]) -> list[torch.Tensor]:
    found = []
    for gradient in every:
        parameter.grad = gradient.clone()
        optimizer.step()
        found.append(parameter.detach().clone())
    return found


def start(dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("geometric", [False, True])
@pytest.mark.parametrize(
    ("least", "most", "settled", "between"),
    [(3, 12, 10**9, (13, 13)), (0, 0, 10**9, (1, 1)), (0, 10**6, 5, (40, 120)), (120, 10**6, 5, (121, 121))],
)
def test_it_is_step(geometric: bool, least: int, most: int, settled: int, between: tuple[int, int]) -> None:
    """Switched by ``most``, at once, by what is seen, and not before ``least``."""
    every, parameter = gradients(between[1] + 5, settled=settled), start()
    wanted, at = step_by_the_paper(start().detach(), every, least, most, geometric)
    assert at is not None
    assert between[0] <= at <= between[1]
    optimizer = StepAdamW([parameter], **ARGS, least=least, most=most, geometric=geometric)
    found = trained(optimizer, parameter, every[: at - 1])
    assert not optimizer.switched
    found += trained(optimizer, parameter, every[at - 1 : at])
    assert optimizer.switched
    found += trained(optimizer, parameter, every[at:])
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-9, atol=1e-12)


def test_until_the_switch_it_is_adamw_and_what_is_not_masked_stays_so() -> None:
    masked, other, theirs = start(torch.float32), start(torch.float32), start(torch.float32)
    ours = StepAdamW([{"params": [masked]}, {"params": other, "masked": False}], **ARGS, least=0, most=4)
    adamw = torch.optim.AdamW([theirs], **ARGS, fused=True)
    for step, gradient in enumerate(gradients(12, dtype=torch.float32)):
        for parameter in (masked, other, theirs):
            parameter.grad = gradient
        ours.step()
        adamw.step()
        assert equal(other.detach(), theirs.detach())
        assert equal(masked.detach(), theirs.detach()) == (step < 5)
    assert ours.switched


def test_the_switch_makes_no_step_larger() -> None:
    """Of a v that few steps have seen: without the correction of its bias, at once by 1 / √(1 − β₂²)."""
    parameter = start()
    optimizer = StepAdamW([parameter], lr=LR, betas=(0.0, 0.999), weight_decay=0.0, least=0, most=1)
    before = [start().detach(), *trained(optimizer, parameter, [torch.ones(12, dtype=torch.float64)] * 4)]
    sizes = [(new - old).abs().mean() for old, new in itertools.pairwise(before)]
    assert [float(size) for size in sizes] == pytest.approx([LR] * 4, rel=1e-4)


@pytest.mark.parametrize("geometric", [False, True])
def test_what_never_changes_does_not_decide_alone(geometric: bool) -> None:
    """A dead input's weights get no gradient; log 0 made the published geometric mean zero."""
    every = gradients(8)
    for gradient in every:
        gradient[0] = 0
    parameter = start()
    optimizer = StepAdamW([parameter], **ARGS, least=0, most=100, geometric=geometric)
    trained(optimizer, parameter, every)
    assert not optimizer.switched


def test_it_looks_back_as_far_as_said() -> None:
    for beta, steps in (0.95, 20), (0.9, 10), (0.999, 1000), (0.9999, 2000), (0.0, 1):
        optimizer = StepAdamW([start()], betas=(0.9, beta), least=0, most=2000)
        assert len(optimizer.param_groups[0]["changes"]) == steps


@pytest.mark.parametrize("saved", [1, 4, 5, 8])
@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy"])
def test_resumed_it_goes_on_to_the_bit(saved: int, how: str) -> None:
    """Before, one before, at and after the switch."""
    every = gradients(30, settled=2, dtype=torch.float32)
    for least, most in (0, 4), (0, 10**6):
        parameter = start(torch.float32)
        optimizer = StepAdamW([parameter], **ARGS | {"eps": 0.02}, least=least, most=most)
        trained(optimizer, parameter, every[:saved])
        if how == "deepcopy":
            again, resumed = copy.deepcopy((parameter, optimizer))
        else:
            again, state = nn.Parameter(parameter.detach().clone()), copy.deepcopy(optimizer.state_dict())
            if how == "file":
                file = io.BytesIO()
                torch.save(state, file)
                file.seek(0)
                state = torch.load(file, weights_only=True)
            resumed = StepAdamW([again], lr=0.5, least=0, most=0)
            resumed.load_state_dict(state)
        assert resumed.switched == optimizer.switched
        for one, other in zip(
            trained(optimizer, parameter, every[saved:]), trained(resumed, again, every[saved:]), strict=True
        ):
            assert equal(one, other)
        assert resumed.switched
        assert optimizer.switched


def test_it_goes_on_from_a_state_of_adamw() -> None:
    parameter = start()
    adamw = torch.optim.AdamW([parameter], **ARGS)
    trained(adamw, parameter, gradients(3))  # type: ignore[arg-type]
    optimizer = StepAdamW([parameter], **ARGS, least=0, most=5)
    optimizer.load_state_dict(adamw.state_dict())
    trained(optimizer, parameter, gradients(6))
    assert optimizer.switched
    assert float(optimizer.state[parameter]["step"]) == 9


def test_a_scaler_that_skips_a_step_moves_nothing() -> None:
    parameter = start(torch.float32)
    optimizer, scaler = StepAdamW([parameter], **ARGS, least=0, most=2), torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, math.inf, math.nan, 1.0):
        before = parameter.detach().clone()
        parameter.grad = scaler.scale(torch.full((12,), factor))
        scaler.step(optimizer)
        scaler.update()
        parameter.grad = None
        assert equal(before, parameter.detach()) == (factor != 1)
    assert optimizer.param_groups[0]["steps"] == 2
    assert optimizer.state[parameter]["exp_avg_sq"].max() < 1, "of gradients that were unscaled"
    assert not optimizer.switched


def test_a_first_gradient_after_the_switch_is_held_too() -> None:
    early, late = start(), start()
    optimizer = StepAdamW([early, late], lr=LR, weight_decay=0.0, least=0, most=0)
    trained(optimizer, early, gradients(2))
    assert optimizer.switched
    late.grad = torch.full((12,), 3.0, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(late.detach(), start().detach() - LR, rtol=1e-5, atol=1e-6)


def test_without_gradients_and_with_a_closure() -> None:
    parameter = start()
    optimizer = StepAdamW([parameter], **ARGS, least=5, most=9)
    optimizer.step()
    assert equal(parameter.detach(), start().detach())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    assert optimizer.param_groups[0]["steps"] == 2


@pytest.mark.parametrize(("least", "most"), [(3, 2), (-1, 2), (0.1, 2), (0, 2.0), (True, 2)])
def test_steps_that_make_no_sense_are_refused(least: Any, most: Any) -> None:
    with pytest.raises(InputError, match="whole numbers of steps, 0 ≤ least ≤ most; got"):
        StepAdamW([start()], least=least, most=most)
