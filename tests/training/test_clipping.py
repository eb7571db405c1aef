"""Clipping by the norm over all ranks, whatever the ranks that each parameter is split over."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

from blockshock import BlockShockLinear, BlockShockParallel, clip_grad_norm_
from blockshock.errors import InputError
from blockshock.ranks import Ranks

INF = float("inf")


def _pair(values: list[torch.Tensor]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Twice the same parameters with the same gradients."""
    pairs = [[nn.Parameter(torch.zeros_like(value)) for value in values] for _ in range(2)]
    for parameters in pairs:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.grad = value.clone()
    return pairs[0], pairs[1]


@pytest.mark.parametrize("norm_type", [1, 2.0, 3.0, INF, "inf"])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_it_is_torchs_function(norm_type: Any, foreach: bool | None) -> None:
    ours, theirs = _pair([torch.randn(3, 4), torch.randn(2), torch.randn(5).double(), torch.randn(0)])
    for max_norm in (100.0, 0.1):
        norm = clip_grad_norm_(iter(ours), max_norm, norm_type, False, foreach)
        expected = nn.utils.clip_grad_norm_(theirs[:3], max_norm, float(norm_type))
        torch.testing.assert_close(norm, expected)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    "dtypes",
    [["float32"], ["bfloat16"], ["bfloat16", "float16"], ["bfloat16", "complex64"], ["float64", "float32"], []],
)
def test_the_norm_is_of_torchs_dtype(dtypes: list[str]) -> None:
    ours, theirs = _pair([torch.ones(3, dtype=getattr(torch, dtype)) for dtype in dtypes])
    expected = nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(clip_grad_norm_(ours, 1.0), expected, rtol=1e-2, atol=0)  # torch adds up rounded norms


def test_one_tensor_alone_is_clipped() -> None:
    tensor = torch.zeros(4, requires_grad=True)
    tensor.grad = torch.full((4,), 3.0)
    assert clip_grad_norm_(tensor, 1.0) == 6
    torch.testing.assert_close(tensor.grad.norm(), torch.tensor(1.0))
    assert clip_grad_norm_([], 1.0) == clip_grad_norm_([nn.Parameter(torch.ones(2))], 1.0) == 0


@pytest.mark.parametrize("bad", [INF, float("nan")])
@pytest.mark.parametrize("norm_type", [2.0, INF])
def test_a_norm_that_is_not_finite_raises_where_it_is_asked_to(bad: float, norm_type: float) -> None:
    ours, theirs = _pair([torch.tensor([1.0, bad]), torch.ones(2)])
    with pytest.raises(RuntimeError, match="nothing was clipped"):
        clip_grad_norm_(ours, 1.0, norm_type, error_if_nonfinite=True)
    assert torch.equal(ours[1].grad, torch.ones(2))  # type: ignore[arg-type]
    norm, expected = clip_grad_norm_(ours, 1.0, norm_type), nn.utils.clip_grad_norm_(theirs, 1.0, norm_type)
    torch.testing.assert_close(norm, expected, equal_nan=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_norm": -1.0}, "max_norm"),
        ({"norm_type": 0}, "norm_type must be a number above zero, or inf, got 0"),
        ({"norm_type": object()}, "ranks go by group="),
        ({"group": "all"}, "must be a process group or a DeviceMesh, got str"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        clip_grad_norm_([], **{"max_norm": 1.0, **options})


class _Block(nn.Module):
    """Norms and layers over (batch, sequence, 32)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.second, self.middle, self.third = nn.LayerNorm(32), nn.Linear(32, 32), nn.LayerNorm(32)
        self.last = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(F.relu(self.up(self.first(x))))
        return self.last(self.third(self.middle(self.second(x))))  # type: ignore[no-any-return]


def _plan(local: bool) -> dict[str, ParallelStyle]:
    """Sequence shards between the layers, as DTensors or as plain tensors."""
    return {
        "first": SequenceParallel(use_local_output=local),
        "up": BlockShockParallel(input_layouts=Shard(1), kernel="gathered"),
        "down": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=local),
        "second": SequenceParallel(use_local_output=local),
        "middle": BlockShockParallel(
            input_layouts=Shard(1), output_layouts=Shard(1), use_local_output=local, kernel="reference", mask="random"
        ),
        "third": SequenceParallel(use_local_output=local),
        "last": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _dense(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: _full(value) for name, value in model.state_dict().items() if not name.endswith("mask")}


def _trained_in_a_plan(local: bool, norm_type: float, device: str = "cpu") -> list[list[float]]:
    """Losses and norms of a model in a plan beside the same model in float64 on one rank."""
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    dense, model = _Block().double().to(device), _Block().to(device)
    parallelize_module(model, mesh, _plan(local))
    found: list[list[float]] = []
    for trained in (dense, model):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, foreach=False)
        for step in range(4):
            x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(device)
            given = x if trained is dense else x.float().chunk(dist.get_world_size(), 1)[dist.get_rank()]
            optimizer.zero_grad()
            loss = 30 * trained(given).square().mean()
            loss.backward()
            if trained is dense:
                norm = nn.utils.clip_grad_norm_(trained.parameters(), 0.5, norm_type)
            else:
                norm = clip_grad_norm_(trained.parameters(), 0.5, norm_type)
            optimizer.step()
            found.append([loss.item(), norm.item()])
    torch.testing.assert_close(found[4:], found[:4], rtol=1e-4, atol=1e-5)
    ours, theirs = _dense(model), _dense(dense)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value.double(), theirs[name], rtol=1e-3, atol=1e-5)
    replicated = [value for name, value in ours.items() if name.endswith("bias")]
    return [*found[4:], *(value.tolist() for value in replicated)]


def test_beside_sequence_parallel_the_norm_is_that_of_the_dense_model(cpu_ranks: Ranks) -> None:
    for local, norm_type in ((False, 2.0), (True, 2.0), (False, INF)):
        first, second = cpu_ranks.run(_trained_in_a_plan, local, norm_type)
        assert first == second, "the ranks have the same norms and the same replicated parameters"


def _on_a_mesh() -> None:
    """Layers over either dimension of a 2 × 2 mesh, DTensors over one and both, and a replicated parameter."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    torch.manual_seed(0)
    linears = [nn.Linear(16, 8), nn.Linear(16, 8, bias=False)]
    tensors = [torch.randn(8, 6) for _ in range(3)]
    layers = [
        BlockShockLinear(linear, mesh[name], kernel="gathered")
        for linear, name in zip(linears, ("b", "a"), strict=True)
    ]
    placements = [[Shard(0), Shard(1)], [Shard(0), Replicate()], [Replicate(), Replicate()]]
    sharded = [nn.Parameter(distribute_tensor(t, mesh, p)) for t, p in zip(tensors, placements, strict=True)]
    x = torch.randn(3, 16)
    for norm_type in (2.0, 1.0, INF):
        whole = [nn.Parameter(tensor.clone()) for tensor in tensors]
        for modules, others in ((layers, sharded), (linears, whole)):
            for one in [*(p for module in modules for p in module.parameters()), *others]:
                one.grad = None
            sum(module(x).square().sum() for module in modules).backward()  # type: ignore[union-attr]
            for one, tensor, layout in zip(others, tensors, placements, strict=True):
                one.grad = distribute_tensor(tensor, mesh, layout) if others is sharded else tensor.clone()
        ours = [*(p for layer in layers for p in layer.parameters()), *sharded]
        theirs = [*(p for linear in linears for p in linear.parameters()), *whole]
        layers[1].layer.storages()[0].parameter.grad.mul_(3)  # type: ignore[union-attr]
        linears[1].weight.grad.mul_(3)  # type: ignore[union-attr]
        norm = clip_grad_norm_(iter(ours), 0.5, norm_type, group=mesh)
        torch.testing.assert_close(norm.float(), nn.utils.clip_grad_norm_(theirs, 0.5, norm_type))
        torch.testing.assert_close(layers[0].bias.grad, linears[0].bias.grad)  # type: ignore[union-attr]
        torch.testing.assert_close(sharded[0].grad.full_tensor(), whole[0].grad)  # type: ignore[union-attr]
        alone = clip_grad_norm_(layers[0].parameters(), 100.0, norm_type, group=mesh["b"])
        torch.testing.assert_close(alone.float(), nn.utils.clip_grad_norm_(linears[0].parameters(), 100.0, norm_type))
    for one in ours:  # no gradient on some of the ranks alone: the others still find each other
        if dist.get_rank() == 2:
            one.grad = None
    clip_grad_norm_(ours, 0.5)
    with pytest.raises(InputError, match=r"split over ranks \[(0, 1|2, 3)\], and group= has ranks"):
        clip_grad_norm_(layers[0].parameters(), 1.0, group=mesh["a"])
    nan = layers[1].layer.storages()[0].parameter
    nan.grad = torch.zeros_like(nan)
    if dist.get_rank() < 2:  # that is on one rank of the layer's two
        nan.grad[0, 0] = float("nan")
    for norm_type in (2.0, INF):
        with pytest.raises(RuntimeError, match="is nan, so nothing was clipped"):
            clip_grad_norm_([nan], 1.0, norm_type, error_if_nonfinite=True)


def test_each_layers_own_ranks_count_on_a_mesh(other_ranks: Ranks) -> None:
    if other_ranks.size == 4:
        other_ranks.run(_on_a_mesh)


@pytest.mark.gpu2
@needs_two_gpus
def test_beside_sequence_parallel_on_gpus(gpu_ranks: Ranks) -> None:
    for local, norm_type in ((False, 2.0), (True, INF)):
        first, second = gpu_ranks.run(_trained_in_a_plan, local, norm_type, "cuda")
        assert first == second
