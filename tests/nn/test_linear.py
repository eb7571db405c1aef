"""BlockShockLinear as people use it: in models, beside torch's parallel layers, saved, resumed, compiled, copied."""

import copy
import gc
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus
from inner_pytest import ROOT, python_path
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

import blockshock
from blockshock import BlockShockLinear, BlockShockParallel
from blockshock.errors import InputError, MaskError, StalePacking
from blockshock.matrices.masks import DenseMask, TiledMask
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure import timing
from blockshock.ranks import Ranks, spawn

KINDS = [
    ("gathered", "1100", "compressed"),
    ("gathered", "tile", "masked"),
    ("reference", "random", "compressed"),
    ("reference", "tile_random", "masked"),
]


def _linear(seed: int = 0, N: int = 48, K: int = 64, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    linear = nn.Linear(K, N, bias)
    with torch.no_grad():
        linear.weight[3, 5:9] = 0.0  # kept zeros must survive
    return linear


def _x(seed: int = 1, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 64)), generator=torch.Generator().manual_seed(seed))


def _train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        layer(_x(step)).square().mean().backward()
        blockshock.clip_grad_norm_(layer.parameters(), 0.05)
        optimizer.step()


def _same_as_linear(kernel: str, mask: str, storage: str) -> None:
    """Output, exact conversion, and five steps of training."""
    linear = _linear()
    layer = BlockShockLinear(linear, kernel=kernel, mask=mask, storage=storage)
    torch.testing.assert_close(layer(_x()), linear(_x()))
    torch.testing.assert_close(layer(_x()[0, 0]), linear(_x()[0, 0]))
    back = layer.to_linear()
    assert torch.equal(back.weight, linear.weight)
    assert torch.equal(back.bias, linear.bias)
    for trained in (layer, back):
        _train(trained, torch.optim.SGD(trained.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1), 5)
    torch.testing.assert_close(layer.to_linear().weight, back.weight)
    torch.testing.assert_close(layer.to_linear().bias, back.bias)
    assert (back.weight - linear.weight).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_linear_and_trains_like_it(kind: tuple[str, str, str], cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_same_as_linear, *kind)


def test_it_is_the_linear_on_one_and_on_four_ranks(other_ranks: Ranks) -> None:
    for kind in KINDS:
        other_ranks.run(_same_as_linear, *kind)


@pytest.mark.parametrize("kind", KINDS)
def test_it_needs_no_process_group(kind: tuple[str, str, str]) -> None:
    _same_as_linear(*kind)


def _all_gradients(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad is not None
    return x.grad


def test_gradients_reach_the_input() -> None:
    linear = _linear()
    torch.testing.assert_close(_all_gradients(BlockShockLinear(linear), _x()), _all_gradients(linear, _x()))


def test_without_gradients_and_with_frozen_weights() -> None:
    linear = _linear().requires_grad_(False)
    layer = BlockShockLinear(linear)
    assert not any(half.parameter.requires_grad for half in layer.layer.storages())
    with torch.no_grad():
        torch.testing.assert_close(layer(_x()), linear(_x()))
    with torch.inference_mode():
        torch.testing.assert_close(layer(_x()), linear(_x()))


def test_products_in_bf16_train_float32_parameters() -> None:
    linear = _linear()
    layer = BlockShockLinear(linear, dtype=torch.bfloat16, kernel="gathered")
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
    assert layer(_x()).dtype == torch.bfloat16
    torch.testing.assert_close(layer(_x()).float(), linear(_x()), rtol=0.02, atol=0.02)
    assert torch.equal(layer.to_linear().weight, linear.weight), "the parameters are not rounded"
    _train(layer, torch.optim.AdamW(layer.parameters(), lr=0.01), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert BlockShockLinear(linear)(_x().bfloat16()).dtype == torch.float32


def _saved(kernel: str, mask: str, storage: str, steps: int) -> bytes:
    """A layer and its optimizer after some steps, as a file."""
    layer = BlockShockLinear(_linear(), kernel=kernel, mask=mask, storage=storage)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    _train(layer, optimizer, steps)
    file = io.BytesIO()
    torch.save({"model": layer.state_dict(), "optimizer": blockshock.optimizer_state(layer, optimizer)}, file)
    return file.getvalue()


def _resumed(file: bytes, kernel: str, storage: str, steps: int, first: int) -> torch.Tensor:
    """W after more steps of another layer that was loaded from the file."""
    saved = torch.load(io.BytesIO(file), weights_only=True)
    layer = BlockShockLinear(_linear(9), kernel=kernel, mask=blockshock.saved_mask(saved["model"]), storage=storage)
    layer.load_state_dict(saved["model"])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.5)
    blockshock.load_optimizer_state(layer, optimizer, saved["optimizer"])
    _train(layer, optimizer, steps, first)
    return layer.to_linear().weight.detach()


@pytest.mark.parametrize("mask", ["tile", "random"])
def test_a_step_after_resuming_is_the_step_that_would_have_come(mask: str, cpu_ranks: Ranks) -> None:
    kernel = "gathered" if mask == "tile" else "reference"
    straight = torch.load(io.BytesIO(cpu_ranks.run(_saved, kernel, mask, "compressed", 5)[0]), weights_only=True)
    file = cpu_ranks.run(_saved, kernel, mask, "compressed", 3)[0]
    for found in cpu_ranks.run(_resumed, file, kernel, "compressed", 2, 3):
        assert torch.equal(found, straight["model"]["weight"])


def test_a_state_loads_into_any_ranks_kernel_and_storage(cpu_ranks: Ranks, other_ranks: Ranks) -> None:
    file = cpu_ranks.run(_saved, "gathered", "tile", "compressed", 3)[0]
    straight = torch.load(io.BytesIO(cpu_ranks.run(_saved, "gathered", "tile", "compressed", 5)[0]), weights_only=True)
    for storage in ("compressed", "masked"):
        assert torch.equal(
            other_ranks.run(_resumed, file, "reference", storage, 0, 3)[0],
            torch.load(io.BytesIO(file), weights_only=True)["model"]["weight"],
        ), "loaded exactly"
        went_on = other_ranks.run(_resumed, file, "reference", storage, 2, 3)[0]
        torch.testing.assert_close(went_on, straight["model"]["weight"])


def test_a_dense_layer_resumes_what_halves_began(cpu_ranks: Ranks) -> None:
    saved = torch.load(io.BytesIO(cpu_ranks.run(_saved, "gathered", "1100", "compressed", 3)[0]), weights_only=True)
    model = dict(saved["model"])
    del model["mask"]
    linear = _linear(9)
    linear.load_state_dict(model)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.5)
    blockshock.load_optimizer_state(linear, optimizer, saved["optimizer"])
    _train(linear, optimizer, 2, 3)
    straight = torch.load(io.BytesIO(cpu_ranks.run(_saved, "gathered", "1100", "compressed", 5)[0]), weights_only=True)
    torch.testing.assert_close(linear.weight, straight["model"]["weight"])


def test_the_state_of_a_linear_loads() -> None:
    layer, other = BlockShockLinear(_linear()), _linear(5)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.to_linear().weight, other.weight)
    torch.testing.assert_close(layer(_x()), other(_x()))


def _state_but(**changes: Any) -> dict[str, Any]:
    state = BlockShockLinear(_linear()).state_dict()
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": torch.zeros(48, 32)}, r"weight has shape \(48, 32\), this layer's is \(48, 64\)"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\), this layer's is \(48,\)"),
        ({"weight": torch.zeros(48, 64, dtype=torch.complex64)}, r"weight is torch\.complex64, this layer's is real"),
        ({"bias": None}, r'Missing key\(s\) in state_dict: "bias"'),
        ({"more": torch.zeros(1)}, r'Unexpected key\(s\) in state_dict: "more"'),
        ({"mask": torch.tensor([[True, False, True, False]])}, "mask is not this layer's: build the layer with mask="),
        ({"mask": torch.zeros(7, dtype=torch.uint8)}, "mask is not this layer's"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(changes: dict[str, Any], says: str) -> None:
    layer = BlockShockLinear(_linear())
    with pytest.raises(RuntimeError, match=says):
        layer.load_state_dict(_state_but(**changes))
    if "shape" in says or "real" in says or "mask" in says:
        assert torch.equal(layer.to_linear().weight, _linear().weight)


def test_a_mask_in_another_form_is_the_same_mask() -> None:
    layer = BlockShockLinear(
        _linear(),
        mask=DenseMask(build_mask("tile", GeneratedWeights(48, 64, torch.float32, "cpu")).dense()),
        kernel="reference",
    )
    BlockShockLinear(_linear(), mask="tile").load_state_dict(layer.state_dict())
    with pytest.raises(InputError, match=r"no 'x.weight'; prefixes of layers with a mask: \[''\]"):
        blockshock.saved_mask(layer.state_dict(), "x.")


def test_an_optimizer_state_that_does_not_fit_is_refused() -> None:
    layer = BlockShockLinear(_linear())
    optimizer = torch.optim.AdamW(layer.parameters())
    _train(layer, optimizer, 1)
    state = blockshock.optimizer_state(layer, optimizer)
    small = BlockShockLinear(_linear(0, 32))
    with pytest.raises(InputError, match=r"state of 'weight' has shape \(48, 64\), not \(32, 64\)"):
        blockshock.load_optimizer_state(small, torch.optim.AdamW(small.parameters()), state)
    model = nn.Sequential(layer)
    with pytest.raises(InputError, match=r"no '0.weight'; it has weight, bias"):
        blockshock.load_optimizer_state(model, torch.optim.AdamW(model.parameters()), state)


def test_a_parameter_changed_by_hand_is_caught_until_it_is_packed_again() -> None:
    # In bf16 the parameters are not the memory that multiplies.
    layer = BlockShockLinear(_linear(), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
    with pytest.raises(StalePacking, match=r"changed after it was packed.*call refresh\(\)"):
        layer(_x())
    layer.refresh()
    torch.testing.assert_close(layer(_x()).float(), 2 * _linear()(_x()), rtol=0.02, atol=0.05)


def test_a_mask_that_changes_under_the_weights_is_caught() -> None:
    for given, mask in (
        (tensor := build_mask("random", GeneratedWeights(48, 64, torch.float32, "cpu")).dense(), DenseMask(tensor)),
        (tile := torch.tensor([[True, True, False, False]]), TiledMask(tile, 48, 64)),
    ):
        layer = BlockShockLinear(_linear(), mask=mask)
        layer(_x())
        given.logical_not_()
        with pytest.raises(MaskError, match="mask changed after weights were packed under it"):
            layer(_x())


def test_an_optimizer_of_a_replaced_layer_is_caught() -> None:
    model = nn.Sequential(_linear(), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0] = BlockShockLinear(model[0])
    model(_x()).sum().backward()
    with pytest.raises(InputError, match=r"holds a parameter \(48, 64\) of an nn.Linear that a BlockShock"):
        optimizer.step()
    linear = _linear()
    beside = BlockShockLinear(linear)
    for layer in (linear, beside):  # both in use: nothing was replaced
        layer(_x()).sum().backward()
    torch.optim.SGD(linear.parameters(), lr=0.1).step()


def test_a_gradient_of_another_shape_is_refused() -> None:
    layer = BlockShockLinear(_linear())
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        layer(_x()).backward(torch.ones(2, 3, 47))
    with pytest.raises(RuntimeError, match="assign a gradient of size"):
        layer.layer.storages()[0].parameter.grad = torch.zeros(48, 64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: BlockShockLinear(nn.ReLU()), "takes the nn.Linear that it is to compute, got ReLU"),
        (lambda: BlockShockLinear(nn.Linear(8, 8, device="meta")), "meta device: give it values"),
        (lambda: BlockShockLinear(nn.Linear(6, 8)), "K must be a multiple of 4"),
        (lambda: BlockShockLinear(_linear(), group="all"), "must be a process group or a DeviceMesh, got str"),
        (lambda: BlockShockLinear(_linear(), mask="110"), "no mask is named '110'"),
        (lambda: BlockShockLinear(_linear(), storage="packed"), "no storage is named 'packed'"),
        (lambda: BlockShockLinear(_linear(), storage="masked:every=-1"), "got every=-1"),
        (lambda: BlockShockLinear(_linear(), kernel="dense"), "compressed storage needs a kernel that holds kept"),
        (lambda: BlockShockLinear(_linear())(_x(1, 2, 60)), r"x must be \(B, 64\)"),
        (lambda: BlockShockLinear(_linear())(_x().double()), "x must be torch.float32 on cpu, got torch.float64"),
        (lambda: BlockShockLinear(_linear()).share_memory(), "cannot be shared between processes"),
        (lambda: BlockShockLinear(_linear()).double(), "stays where it was built, in torch.float32 on cpu"),
    ],
)
def test_wrong_use_is_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_a_copy_trains_by_itself() -> None:
    layer = BlockShockLinear(_linear())
    average = copy.deepcopy(layer).float()
    _train(average, torch.optim.SGD(average.parameters(), lr=0.5), 2)
    torch.testing.assert_close(average(_x()), average.to_linear()(_x()))
    assert torch.equal(layer.to_linear().weight, _linear().weight)


def _copied() -> None:
    test_a_copy_trains_by_itself()


def test_a_copy_stays_on_its_ranks(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_copied)


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.up, self.middle, self.down = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.middle(F.relu(self.up(x)))))


def _in_a_plan() -> list[torch.Tensor]:
    """A model with a Block-Shock layer between torch's own, and the dense model, after three steps each."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    dense, model = _MLP(), _MLP()
    hooked: list[int] = []
    model.middle.register_forward_hook(lambda module, args, y: hooked.append(len(y)))
    plan = {
        "up": ColwiseParallel(output_layouts=Replicate(), use_local_output=False),
        "middle": BlockShockParallel(kernel="gathered"),
        "down": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)
    assert isinstance(model.middle, BlockShockLinear)
    for trained in (dense, model):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.2, foreach=False)
        for step in range(3):
            optimizer.zero_grad()
            trained(_x(step, 4, 32)).square().mean().backward()
            blockshock.clip_grad_norm_(trained.parameters(), 0.02)
            optimizer.step()
    assert hooked == [4, 4, 4]
    return [
        dense(_x(7, 4, 32)).detach(),
        model(_x(7, 4, 32)).detach(),
        model.middle.to_linear().weight.detach(),
        dense.middle.weight.detach(),
    ]


def test_it_stands_in_a_plan_beside_torchs_own_styles(cpu_ranks: Ranks) -> None:
    for dense_y, y, weight, dense_weight in cpu_ranks.run(_in_a_plan):
        torch.testing.assert_close(y, dense_y)
        torch.testing.assert_close(weight, dense_weight)


def _style_of_relu() -> str:
    two_by_one = init_device_mesh("cpu", (dist.get_world_size(), 1))
    with pytest.raises(InputError, match=r"BlockShockParallel is for nn\.Linear, got ReLU"):
        BlockShockParallel()._apply(nn.ReLU(), two_by_one)
    with pytest.raises(InputError) as error:
        BlockShockLinear(_linear(), two_by_one)
    return str(error.value)


def test_a_mesh_of_two_dimensions_is_refused(cpu_ranks: Ranks) -> None:
    assert "takes a DeviceMesh of one dimension, got 2" in cpu_ranks.run(_style_of_relu)[0]


def _different_linears() -> torch.Tensor:
    return BlockShockLinear(_linear(dist.get_rank())).to_linear().weight.detach()


def test_rank_0s_values_are_used_on_all_ranks(cpu_ranks: Ranks) -> None:
    for weight in cpu_ranks.run(_different_linears):
        assert torch.equal(weight, _linear(0).weight)


GPU_KINDS = [
    ("cusparselt", "tile", "compressed"),
    ("cusparselt:search=no", "tile_random", "compressed"),
    ("cusparselt:search=no", "1100", "compressed"),  # backward by a dense half
    ("cusparselt:search=no", "random", "masked"),
    ("cusparselt:search=no", "tile_magnitude", "masked"),
    ("gathered", "tile", "compressed"),
    ("streamed", "tile_random", "compressed"),
    ("auto:search=no", None, "compressed"),
]
OF_ALL_DTYPES = GPU_KINDS[1]
"""What trains in every dtype here: the fuzz on one GPU draws dtypes for the others."""
DTYPES = [
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float16),
]
"""Of parameters, and of products."""


def _trains_on_gpus(
    kernel: str, mask: str | None, storage: str, parameters: torch.dtype, products: torch.dtype
) -> None:
    """Eight steps beside the dense layer, whose products are of the same dtype; then saved and loaded."""
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    linear = nn.Linear(512, 256).to(device, parameters)
    x, target = torch.randn(2, 64, 512, device=device), torch.randn(2, 64, 256, device=device)
    layer = BlockShockLinear(linear, kernel=kernel, mask=mask, storage=storage, dtype=products)
    assert torch.equal(layer.to_linear().weight, linear.weight)
    start = linear.weight.detach().clone()
    for model in (layer, linear):
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cuda", products, enabled=model is linear):
                y = model(x.to(products))
            assert y.dtype == products
            F.mse_loss(y.float(), target).backward()
            optimizer.step()
    update, exact = layer.to_linear().weight - start, linear.weight - start
    assert exact.norm() > 0.05 * start.norm()
    assert (update - exact).norm() < (0.02 if parameters == torch.float32 else 0.1) * exact.norm()
    twin = BlockShockLinear(nn.Linear(512, 256).to(device, parameters), mask=layer.mask, kernel=kernel, dtype=products)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x.to(products)), layer(x.to(products)))


@pytest.mark.gpu2
@needs_two_gpus
def test_it_trains_on_gpus_with_every_kernel_mask_and_storage(gpu_ranks: Ranks) -> None:
    for kind in GPU_KINDS:
        for parameters, products in DTYPES if kind == OF_ALL_DTYPES else DTYPES[:1]:
            gpu_ranks.run(_trains_on_gpus, *kind, parameters, products)


def _compiled_on_gpus() -> None:
    """One layer compiled without a graph break, and captured: as the dense linear, forward and backward."""
    device, N, B = torch.device("cuda", torch.cuda.current_device()), 1024, 256
    torch.manual_seed(0)  # the same on both ranks
    linear = nn.Linear(N, N, bias=False, device=device, dtype=torch.bfloat16)
    layer, x = BlockShockLinear(linear, kernel="gathered"), torch.randn(B, N, device=device, dtype=torch.bfloat16)
    parameters = [x.requires_grad_(), *layer.parameters()]
    right = torch.autograd.grad(layer(x).sum(), parameters)
    torch.testing.assert_close(right[0], torch.autograd.grad(linear(x).sum(), x)[0], rtol=0.05, atol=0.05)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), linear(x), rtol=0.05, atol=0.05)

    def step() -> Any:
        return torch.autograd.grad(compiled(x).sum(), parameters)

    torch.testing.assert_close(step(), right, rtol=0.05, atol=0.05)
    gc.collect()  # nodes of another stream than the one that captures must not be alive any more
    timing.capture(step).replay()
    torch.cuda.synchronize()


@pytest.mark.gpu2
@needs_two_gpus
def test_it_compiles_on_gpus() -> None:
    # cuSPARSELt's part is compiled on one GPU: test_a_compiled_layer_takes_slices_on_one_gpu.
    with spawn(2, device="cuda") as gpus:
        gpus.run(_compiled_on_gpus)


def _graphed_on_gpus(combine: str) -> None:
    """By torch's own callables of graphs a layer trains as it does eager."""
    device, N, B = torch.device("cuda", torch.cuda.current_device()), 512, 256
    torch.manual_seed(0)  # the same on both ranks
    linear, given = nn.Linear(N, N, device=device, dtype=torch.bfloat16), torch.randn(5, B, N, device=device).bfloat16()
    eager, graphed = (
        BlockShockLinear(copy.deepcopy(linear), kernel="gathered", combine=combine, tokens=B) for _ in range(2)
    )
    torch.cuda.make_graphed_callables(graphed, (given[0].clone().requires_grad_(),))
    models = [(model, torch.optim.SGD(model.parameters(), lr=0.5)) for model in (eager, graphed)]
    for x in given:
        found = []
        for model, optimizer in models:
            leaf = x.clone().requires_grad_()
            optimizer.zero_grad()
            y = model(leaf)
            y.square().mean().backward()
            found.append([y.detach().clone(), leaf.grad, *(one.grad.clone() for one in model.parameters())])
            optimizer.step()
        torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=1e-5)
    start = linear.weight.detach()
    assert (graphed.to_linear().weight - start).norm() > 1e-3 * start.norm()


@pytest.mark.gpu2
@needs_two_gpus
def test_callables_of_graphs_train_as_eager_ones(gpu_ranks: Ranks) -> None:
    for combine in ("nccl", "two_shot", "overlap"):
        gpu_ranks.run(_graphed_on_gpus, combine)


@pytest.mark.parametrize("ranks", [1, 2], ids=["python train.py", "torchrun"])
def test_the_example_of_several_ranks_runs(ranks: int, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "layer.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (example,) = [block for block in blocks if "BlockShockLinear(" in block]
    assert len([line for line in example.splitlines() if line]) <= 15
    (tmp_path / "train.py").write_text(example)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    outer = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment = {**outer, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"rank ([01]): loss ([\d.]+)", done.stdout)
    assert sorted(rank for rank, _ in losses) == ["0", "1"][:ranks]
    assert len({loss for _, loss in losses}) == 1
    assert float(losses[0][1]) < 0.05
