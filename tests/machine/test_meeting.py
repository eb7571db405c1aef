"""A call that only some ranks make, or make in another order, pairs with no other collective."""

import copy
import re
import time
import warnings
from collections.abc import Callable
from weakref import ref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from blockshock import BlockShockLinear, clip_grad_norm_, optimizer_state
from blockshock.errors import InputError, RanksApart
from blockshock.machine import Gathered, Part, build_combine, meeting
from blockshock.ranks import Ranks


def _layer() -> BlockShockLinear:
    torch.manual_seed(0)
    return BlockShockLinear(nn.Linear(16, 8), kernel="gathered")


def _error(call: Callable[[], object]) -> str:
    with pytest.raises(RanksApart) as error:
        call()
    return str(error.value)


def _alone() -> str:
    """Rank 0 alone asks for the state, while rank 1 goes on to a forward; then both go on together."""
    layer, x, says = _layer(), torch.ones(2, 16), ""
    right = nn.functional.linear(x, *layer.to_linear().parameters())
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        patch.setattr(meeting, "WARN_SECONDS", 0.5)
        patch.setattr(meeting, "WAIT_SECONDS", 1.0)
        if dist.get_rank() == 0:
            says = _error(layer.state_dict)
            assert any("waiting for the other ranks of [0, 1]" in str(warning.message) for warning in warned)
    torch.testing.assert_close(layer(x), right)
    assert torch.equal(layer.state_dict()["weight"], layer.to_linear().weight)
    return says


def test_a_state_on_one_rank_alone_is_refused_and_changes_no_other_number(cpu_ranks: Ranks) -> None:
    says, other = cpu_ranks.run(_alone)
    assert "rank 0 waited 1 s at the gathering of weight of layer" in says
    assert "for rank 1: ranks [0, 1] make it together; to save on one rank, let all make the state" in says
    assert other == ""


def _apart() -> list[str]:
    """Layers, a copy, a layer's building and an optimizer's state in another order on rank 1."""
    one, two = _layer(), _layer()
    twin = copy.deepcopy(one)
    optimizer = torch.optim.AdamW(one.parameters())
    one(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    calls: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (one.state_dict, two.state_dict),
        (one.state_dict, twin.state_dict),
        (one.to_linear, _layer),
        (one.to_linear, lambda: optimizer_state(one, optimizer)),
    ]
    found = [_error(pair[dist.get_rank()]) for pair in calls]
    assert torch.equal(one.state_dict()["weight"], one.to_linear().weight)
    return found


def test_different_calls_are_named_on_every_rank(cpu_ranks: Ranks) -> None:
    found, others = cpu_ranks.run(_apart)
    assert found == others
    for says, other in zip(
        found, (r"layer \d+ \(8, 16\)", "copy 1", "the building of", "weight's exp_avg"), strict=True
    ):
        assert says.startswith("the ranks are in different calls: rank 0 in the gathering of weight of layer")
        assert re.search(rf"rank 1 in .*{other}", says)


def _many_times() -> float:
    """Over the default group and over one of a mesh, whose meetings are counted each for itself."""
    layers = [_layer(), BlockShockLinear(nn.Linear(16, 8), init_device_mesh("cpu", (dist.get_world_size(),)))]
    start = time.monotonic()
    for _ in range(20):
        for layer in layers:
            layer.state_dict()
    return time.monotonic() - start


def test_a_meeting_costs_little_and_leaves_nothing_behind(cpu_ranks: Ranks) -> None:
    print(cpu_ranks.run(_many_times))
    assert cpu_ranks.run(_keys)[0] <= 8


def _keys() -> int:
    meeting.meet(dist.group.WORLD, "a look")
    store = meeting._of(dist.group.WORLD)._store
    held = meeting._of(dist.group.WORLD)._held
    return sum(store.check([f"{number}/{name}"]) for number in range(held) for name in ("here", "go", "0", "1"))


def _left_behind() -> None:
    """A trained layer, a copy, its graph and an optimizer are left when their group is destroyed."""
    group = dist.new_group(list(range(dist.get_world_size())))
    ended = ref(group)
    layer, x = BlockShockLinear(nn.Linear(16, 8), group, kernel="gathered"), torch.ones(2, 16, requires_grad=True)
    combine = build_combine("nccl", group, 32, x.dtype, x.device)
    optimizer, twin = torch.optim.SGD(layer.parameters(), lr=0.1), copy.deepcopy(layer)
    loss = layer(x).sum() + Gathered(combine, slice(0, 16), 32).join(Part.of(x.detach())).sum()
    loss.backward()
    clip_grad_norm_(layer.parameters(), 1.0)
    optimizer.step()
    twin.state_dict()
    dist.destroy_process_group(group)
    del group
    assert ended() is None
    assert loss.grad_fn is not None
    assert "ranks=2" in repr(layer)
    with pytest.raises(InputError, match="the process group of these ranks is destroyed"):
        layer(x)


def test_no_layer_keeps_a_group_alive(cpu_ranks: Ranks) -> None:
    """Its threads would outlive Python, and abort it."""
    cpu_ranks.run(_left_behind)
