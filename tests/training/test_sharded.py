"""What torch's ``fully_shard`` and its like spread: ranks gather it together, and only the same part over replicas."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from blockshock.errors import InputError, RanksApart
from blockshock.machine.collectives import Alone
from blockshock.matrices.masks import TiledMask
from blockshock.ranks import Ranks
from blockshock.training.sharded import check_replicas, gathered, spread_as


def _gathered() -> str:
    """Of other calls on other ranks nothing is gathered; then they go on together."""
    whole, rank = torch.arange(6.0), dist.get_rank()
    shard = distribute_tensor(whole, init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])
    with pytest.raises(RanksApart) as error:
        gathered(shard, ("a weight", "a bias")[rank])
    assert torch.equal(gathered(shard, "a weight"), whole)
    assert torch.equal(spread_as(shard, 2 * whole).to_local(), 2 * shard.to_local())
    assert gathered(whole, "what is whole") is spread_as(whole, whole) is whole
    return str(error.value)


def test_ranks_gather_the_same_shards_or_none(cpu_ranks: Ranks) -> None:
    for says in cpu_ranks.run(_gathered):
        assert "rank 0 in the gathering of a weight from shards; rank 1 in the gathering of a bias from shards" in says


def _replicas() -> list[str]:
    """A wrapper around parts of one weight, around the same part, around parts of other masks, and around none."""
    world, rank = dist.group.WORLD, dist.get_rank()
    assert world is not None
    masks = [TiledMask(torch.tensor([row]).bool(), 4, 8) for row in ([1, 1, 0, 0], [0, 0, 1, 1])]
    with pytest.raises(InputError) as mixed:
        check_replicas("a wrapper", world, world, masks[rank])
    with pytest.raises(RanksApart) as apart:
        check_replicas("a wrapper", world, Alone(), masks[rank])
    for parts, mask in ((Alone(), masks[0]), (Alone(), None), (None, masks[rank])):
        check_replicas("a wrapper", world, parts, mask)
    check_replicas("a wrapper", Alone(), world, masks[rank])
    return [str(mixed.value), str(apart.value)]


def test_replicas_hold_the_same_part_of_a_weight(cpu_ranks: Ranks) -> None:
    for mixed, apart in cpu_ranks.run(_replicas):
        assert "a wrapper over ranks [0, 1] would mix the halves" in mixed
        assert "rank 0 in a wrapper around part 0 of a weight of mask" in apart
