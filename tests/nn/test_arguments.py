"""What does not fit a layer is refused in a sentence, and x may be given by the name that it has in nn.Linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

from blockshock import BlockShockLinear, BlockShockParallel
from blockshock.errors import InputError, UnknownName
from blockshock.ranks import Ranks


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def _layer(**options: Any) -> BlockShockLinear:
    return BlockShockLinear(_linear(), **options)


def _x() -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(1))


def _broken(name: str) -> nn.Linear:
    linear = _linear()
    with torch.no_grad():
        getattr(linear, name)[2:3].view(-1)[0] = torch.inf
    return linear


def _nested(layout: torch.layout, *shapes: tuple[int, ...]) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(shape) for shape in shapes], layout=layout)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: _layer(mask=torch.ones(48, 64) > 0), "got a tensor: wrap a boolean"),
        (lambda: _layer(mask=24), "takes a name such as 'tile', a Mask, or None, got 24"),
        (lambda: _layer(kernel=None), "kernel= takes a name, got None: leave it out"),
        (lambda: _layer(storage=None), "storage= takes a name, got None: leave it out"),
        (lambda: _layer(combine="overlap:chunks"), "overlap:chunks"),
        (lambda: BlockShockParallel(input_layouts="x"), "input_layouts takes a placement such as Replicate"),  # type: ignore[arg-type]
        (lambda: BlockShockParallel(output_layouts=1), "output_layouts takes a placement"),  # type: ignore[arg-type]
        (lambda: _layer(combine="overlap:chunks=0"), "2 to 64 chunks, got chunks=0"),
        (lambda: _layer(dtype="bf16"), "such as torch.bfloat16, or None, got 'bf16'"),
        (lambda: _layer(dtype=torch.int8), "takes a floating-point dtype"),
        (lambda: _layer(tokens="x"), "tokens= takes a whole number of rows of x, got 'x'"),
        (lambda: BlockShockLinear(_broken("weight")), "weight of rank 0's nn.Linear holds inf at row 2, column 0: put"),
        (lambda: BlockShockLinear(_broken("bias")), "the bias of rank 0's nn.Linear holds inf at row 2, column 0: put"),
        (lambda: _layer()([1.0]), "x must be a tensor, got list"),
        (lambda: _layer()(_x().to_sparse()), "this one is torch.sparse_coo: pass its to_dense"),
        (lambda: _layer()(_nested(torch.jagged, (2, 64), (3, 64))), "this one is nested"),
        (lambda: _layer()(_nested(torch.strided, (2, 64), (3, 32))), "this one is nested"),
        (lambda: _layer()(_nested(torch.strided)), "this one is nested"),
        (lambda: _layer(dtype=torch.bfloat16)(_x().int()), "must be of floating-point numbers, got torch.int32"),
        (lambda: nn.Sequential(_linear(), _layer()).bfloat16(), "what comes before this layer is moved or cast"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_wrong_arguments_are_refused_in_a_sentence(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


@pytest.mark.parametrize("combine", ["bogus", ""])
def test_a_way_that_one_rank_has_no_use_for_is_looked_at_all_the_same(combine: str) -> None:
    with pytest.raises(UnknownName, match=f"no combine is named '{combine}'. Choices: auto"):
        _layer(combine=combine)


def _x_by_its_name() -> None:
    layer = _layer()
    assert torch.equal(layer(input=_x()), layer(_x()))
    model = nn.Sequential(_linear())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"0": BlockShockParallel(input_layouts=Shard(0))})
    mine = _x().chunk(2)[dist.get_rank()]
    assert torch.equal(model[0](input=mine), layer(_x()))


def test_x_may_be_given_by_its_name(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_x_by_its_name)
