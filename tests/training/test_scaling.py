"""A scaler's inf on one rank is an inf on all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import RowwiseParallel, SequenceParallel, parallelize_module

from blockshock import BlockShockLinear, BlockShockParallel, clip_grad_norm_
from blockshock.ranks import Ranks
from blockshock.training.steps import split_over

KINDS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"momentum": 0.9, "foreach": False}),
    (torch.optim.AdamW, {"foreach": False}),
    (torch.optim.AdamW, {"fused": True}),
]


def _model(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(8, 4)).to(device)


def _in_a_plan(model: nn.Sequential) -> nn.Module:
    plan = {
        "0": SequenceParallel(use_local_output=False),
        "1": BlockShockParallel(kernel="gathered"),
        "2": RowwiseParallel(input_layouts=Replicate()),
    }
    return parallelize_module(model, init_device_mesh(model[0].weight.device.type, (dist.get_world_size(),)), plan)


def _beside(model: nn.Sequential) -> nn.Module:
    model[1] = BlockShockLinear(model[1], kernel="gathered")
    return model


def _skipped_together(unscale_first: bool, device: str = "cpu") -> list[list[float]]:
    """The scales of each kind, in four steps with an inf on one rank in the second."""
    kinds = [(_beside, *kind) for kind in KINDS]
    # torch has no fused step for DTensors and plain tensors together.
    kinds += [(_in_a_plan, kind, options) for kind, options in KINDS if not options.get("fused")]
    return [_skipped(unscale_first, device, *kind) for kind in kinds]


def _skipped(
    unscale_first: bool,
    device: str,
    build: Callable[[nn.Sequential], nn.Module],
    kind: type[torch.optim.Optimizer],
    options: dict[str, Any],
) -> list[float]:
    """The scales; the weights must be those of a dense model that does not make that step."""
    model, dense, ranks, rank = build(_model(device)), _model(device), dist.get_world_size(), dist.get_rank()
    layer: Any = model.get_submodule("1")
    half = next(parameter for parameter in layer.parameters() if split_over(parameter))
    ours, theirs = (kind(trained.parameters(), lr=0.1, **options) for trained in (model, dense))
    scaler, scales = torch.amp.GradScaler(device, init_scale=64.0), []
    for step in range(4):
        x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(step)).to(device)
        ours.zero_grad()
        scaler.scale(model(x.chunk(ranks, 1)[rank] if build is _in_a_plan else x).square().mean()).backward()
        if step == 1 and rank == ranks - 1:
            half.grad[0, 0] = float("inf")
        if unscale_first:
            scaler.unscale_(ours)
            clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(ours)
        scaler.update()
        scales.append(scaler.get_scale())
        if step != 1:
            theirs.zero_grad()
            dense(x).square().mean().backward()
            if unscale_first:
                nn.utils.clip_grad_norm_(dense.parameters(), 0.1)
            theirs.step()
    torch.testing.assert_close(layer.to_linear().weight, dense[1].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias, dense[1].bias, rtol=1e-4, atol=1e-5)
    return scales


@pytest.mark.parametrize("unscale_first", [False, True])
def test_an_inf_in_one_ranks_half_makes_all_ranks_skip_the_step(unscale_first: bool, cpu_ranks: Ranks) -> None:
    for scales in cpu_ranks.run(_skipped_together, unscale_first):
        assert scales == [[64.0, 32.0, 32.0, 32.0]] * 5


@pytest.mark.gpu2
@needs_two_gpus
def test_an_inf_on_one_gpu_makes_all_skip_the_step(gpu_ranks: Ranks) -> None:
    for scales in gpu_ranks.run(_skipped_together, True, "cuda"):
        assert scales == [[64.0, 32.0, 32.0, 32.0]] * 5


def test_a_scaler_without_split_weights_is_torchs() -> None:
    linear = nn.Linear(4, 4)
    optimizer, scaler = torch.optim.SGD(linear.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = linear.weight.detach().clone()
    for value, changes in ((float("nan"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(value * linear(torch.ones(2, 4)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (not torch.equal(linear.weight, before)) == changes
