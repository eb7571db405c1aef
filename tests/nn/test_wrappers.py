"""Block-Shock layers inside torch's data parallelism: right over replicas, refused over the halves."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from blockshock import (
    BlockShockLinear,
    clip_grad_norm_,
    load_optimizer_state,
    optimizer_state,
    replace_linears,
)
from blockshock.errors import InputError, RanksApart
from blockshock.ranks import Ranks, spawn
from blockshock.training import gathered


def _dense(device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)).to(device)


def _mesh(device: str) -> DeviceMesh:
    """Two halves over two replicas; with two ranks, both halves on each."""
    ranks = dist.get_world_size()
    return init_device_mesh(device, (2, ranks // 2), mesh_dim_names=("replicas", "halves"))


def _batch(seed: int, device: str) -> torch.Tensor:
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(seed)).to(device)


def _model(group: Any, device: str = "cpu", **options: Any) -> nn.Sequential:
    model = _dense(device)
    model[2] = BlockShockLinear(model[2], group, **options)
    return model


def _refused_over_the_halves() -> None:
    """Before anything is written; with the layer left out of it, it works."""
    model = _model(None)
    before = model[2].to_linear().weight
    with pytest.raises(InputError, match=r"DistributedDataParallel over ranks \[0, 1\] would mix the halves"):
        DistributedDataParallel(model)
    assert torch.equal(model[2].to_linear().weight, before)
    model._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
        name for named in (model.named_parameters(), model.named_buffers()) for name, _ in named if name[0] == "2"
    ]
    wrapped = DistributedDataParallel(model)
    x = torch.ones(3, 12)
    torch.testing.assert_close(wrapped(x), _dense()(x))
    DistributedDataParallel(_model(DeviceMesh("cpu", [dist.get_rank()])))(x)  # both halves on each rank: replicas


class FullyShardedDataParallel(nn.Module):
    """What torch's does first; it needs a GPU."""

    def __init__(self, module: nn.Module, ignored: set[nn.Parameter]) -> None:
        super().__init__()
        self.process_group, self._ignored_params = None, ignored
        self._fsdp_wrapped_module = module


def test_flattened_parameters_are_refused() -> None:
    model = _model(None)
    with pytest.raises(InputError, match="FullyShardedDataParallel flattens parameters"):
        FullyShardedDataParallel(model, set())
    FullyShardedDataParallel(model, set(model[2].parameters()))


def test_over_the_ranks_of_the_halves_it_is_refused(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_refused_over_the_halves)
    cpu_ranks.run(_sharded_over_the_halves)


def _over_replicas(storage: str, dtype: torch.dtype | None, device: str = "cpu") -> None:
    """On a 2 × 2 mesh: four steps as the dense model's on the whole batch, also from other values on each replica."""
    mesh = _mesh(device)
    dense, model = _dense(device), _model(mesh["halves"], device, storage=storage, dtype=dtype, kernel="gathered")
    if mesh.get_local_rank("replicas"):  # the constructor copies the first replica's
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        model[2].refresh()
    wrapped = DistributedDataParallel(model, device_mesh=mesh["replicas"])
    assert not wrapped.modules_buffers  # what multiplies is packed on each rank, and never sent
    ours, theirs = (torch.optim.SGD(one.parameters(), lr=0.5, momentum=0.9) for one in (wrapped, dense))
    exact = {} if dtype is None else {"rtol": 0.03, "atol": 0.03}
    for step in range(4):
        x = _batch(step, device)
        part = x.chunk(2)[mesh.get_local_rank("replicas")]
        for trained, optimizer, given in ((wrapped, ours, part), (dense, theirs, x)):
            optimizer.zero_grad()
            trained(given).float().square().mean().backward()
        norms = clip_grad_norm_(wrapped.parameters(), 0.1), nn.utils.clip_grad_norm_(dense.parameters(), 0.1)
        torch.testing.assert_close(norms[0].float(), norms[1], **exact)
        ours.step()
        theirs.step()
    torch.testing.assert_close(model[2].to_linear().weight, dense[2].weight, **exact)
    assert "module.2.weight" in wrapped.state_dict()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))


def _loaded_after_it_was_wrapped() -> None:
    """A state of another mask goes into the module that is wrapped, before anything went forward."""
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(32, 16)))
        replace_linears(models[-1], "pruned-auto-magnitude")
    saved, fresh = models
    wrapped = DistributedDataParallel(fresh)
    fresh.load_state_dict(saved.state_dict())
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        torch.testing.assert_close(wrapped(x), saved(x))
    wrapped(x).square().mean().backward()


def test_a_state_of_another_mask_is_loaded_into_what_is_wrapped(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_loaded_after_it_was_wrapped)


def _fully_sharded(
    storage: str, every_module: bool, policy: torch.dtype | None, foreach: bool, device: str = "cpu"
) -> None:
    """The same by fully_shard: parameters, gradients and states are spread over the replicas.

    With ``foreach``, which is the default on GPUs, torch writes shards without counting it.
    """
    mesh = _mesh(device)
    dense, model = _dense(device), _model(mesh["halves"], device, storage=storage, kernel="gathered")
    options: dict[str, Any] = {"mesh": mesh["replicas"]}
    if policy is not None:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=policy, output_dtype=torch.float32)
    for module in (model[2], model[0]) if every_module else ():
        fully_shard(module, **options)
    fully_shard(model, **options)
    half = next(iter(model[2].layer.storages()))
    assert isinstance(half.parameter, DTensor)
    ours, theirs = (torch.optim.AdamW(one.parameters(), lr=0.01, foreach=foreach) for one in (model, dense))
    exact = {} if policy is None else {"rtol": 0.05, "atol": 0.05}
    for step in range(4):
        x = _batch(step, device)
        for trained, optimizer in ((model, ours), (dense, theirs)):
            optimizer.zero_grad()
            given = x.chunk(2)[mesh.get_local_rank("replicas")] if trained is model else x
            trained(given).square().mean().backward()
        norms = clip_grad_norm_(model.parameters(), 0.1), nn.utils.clip_grad_norm_(dense.parameters(), 0.1)
        torch.testing.assert_close(norms[0].float(), norms[1], **exact)
        ours.step()
        theirs.step()
    torch.testing.assert_close(model(x), dense(x), **exact)
    torch.testing.assert_close(model[2].to_linear().weight, dense[2].weight, **exact)
    states = optimizer_state(model, ours), optimizer_state(dense, theirs)
    if policy is None:
        torch.testing.assert_close(states[0]["state"], states[1]["state"])
    again = _model(mesh["halves"], device, storage=storage, kernel="gathered")
    for fresh, options_of in ((again, options), (_model(mesh["halves"], device, kernel="gathered"), None)):
        if options_of is not None:
            fully_shard(fresh, **options_of)
        state = model[2].state_dict()
        fresh[2].load_state_dict(state)
        optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.01)
        load_optimizer_state(fresh, optimizer, states[0])
        assert torch.equal(fresh[2].state_dict()["weight"], state["weight"])
        torch.testing.assert_close(optimizer_state(fresh, optimizer), states[0])


def _sharded_over_the_halves() -> None:
    """Refused when it is asked for; with the layer's parameters left out, it works."""
    mesh = init_device_mesh("cpu", (2,))
    with pytest.raises(InputError, match=r"fully_shard over ranks \[0, 1\] would mix the halves"):
        fully_shard(_model(mesh), mesh=mesh)
    model = _model(mesh)
    fully_shard(model, mesh=mesh, ignored_params=set(model[2].parameters()))
    assert isinstance(model[0].weight, DTensor)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False), torch.ones(3, 12)
    dense = _dense()
    for trained, one in ((model, optimizer), (dense, torch.optim.SGD(dense.parameters(), lr=0.1))):
        trained(x).square().mean().backward()
        one.step()
    torch.testing.assert_close(model(x), dense(x))
    with pytest.raises(InputError, match="x is a DTensor: BlockShockParallel takes one in a plan"):
        model[2](distribute_tensor(torch.ones(4, 16), mesh, [Replicate()]))


def _small_layers_each_sharded(row: str) -> None:
    """Two forward passes, then backward: weights are gathered at other memory each time, and none is written."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32, bias=False))
    replace_linears(alone, row, group=DeviceMesh("cpu", [dist.get_rank()]) if row == "block_shock" else None)
    assert alone[0].layer.joined  # type: ignore[union-attr]
    model = copy.deepcopy(alone)
    for module in (model[0], model[2], model[4], model):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=True)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.01) for one in (model, alone)]
    for step in range(3):
        batch = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
        for one, optimizer in zip((model, alone), optimizers, strict=True):
            optimizer.zero_grad()
            x = (batch.chunk(2)[dist.get_rank()] if one is model else batch).clone().requires_grad_()
            (one(x).square().mean() + one(2 * x).square().mean()).backward()
            optimizer.step()
    torch.testing.assert_close(model(batch), alone(batch), rtol=1e-4, atol=1e-5)
    assert "joined" not in model[0].layer.algorithm  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("row", ["pruned", "block_shock"])
def test_small_layers_that_are_each_sharded_train_as_one_alone(row: str, cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_small_layers_each_sharded, row)


def _loaded_while_gathered(row: str) -> None:
    """A forward pass leaves what the root holds gathered, until a state is asked for or loaded."""
    models = []
    for factor in (1.0, 2.0):
        torch.manual_seed(0)  # one mask: another one is loaded before
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        replace_linears(model, row, where=lambda name, _: name == "0")
        models.append(fully_shard(model, mesh=init_device_mesh("cpu", (2,))))
    (model, other), x = models, torch.ones(4, 32)
    before = {name: gathered(held, name).clone() for name, held in model.state_dict().items()}
    wanted, _ = model(x).detach(), other(x)
    state = model.state_dict()
    assert all(torch.equal(gathered(held, name), before[name]) for name, held in state.items())
    other.load_state_dict(state)
    assert torch.equal(other(x), wanted)
    other[0].refresh()  # type: ignore[operator]
    assert torch.equal(other(x), wanted)


@pytest.mark.parametrize("row", ["pruned", "dense_single"])
def test_a_state_is_loaded_right_after_a_forward_pass(row: str, cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_loaded_while_gathered, row)


def _other_parts_are_no_replicas() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "halves"))
    crossed = DeviceMesh("cpu", [[0, 3], [1, 2]])
    with pytest.raises(RanksApart, match=r"around part [01] of a weight.*around part [01] of a weight"):
        DistributedDataParallel(_model(mesh["halves"]), process_group=crossed.get_group(1))
    mask = "1100" if mesh.get_local_rank("replicas") else "1010"
    with pytest.raises(RanksApart, match="of mask"):
        DistributedDataParallel(_model(mesh["halves"], mask=mask, kernel="gathered"), device_mesh=mesh["replicas"])


REPLICAS: list[tuple[str, torch.dtype | None]] = [
    ("compressed", None),
    ("masked", None),
    ("compressed", torch.bfloat16),
]
SHARDED: list[tuple[str, bool, torch.dtype | None, bool]] = [
    ("compressed", False, None, False),
    ("compressed", False, None, True),
    ("masked", True, None, True),
    ("compressed", True, torch.bfloat16, True),
]


def test_over_replicas_it_trains_as_the_dense_model_on_the_whole_batch(other_ranks: Ranks) -> None:
    if other_ranks.size == 4:
        for kind in REPLICAS:
            other_ranks.run(_over_replicas, *kind)
        other_ranks.run(_other_parts_are_no_replicas)
        for sharding in SHARDED:
            other_ranks.run(_fully_sharded, *sharding)


@pytest.mark.gpu2
@needs_two_gpus
def test_over_replicas_on_gpus(request: pytest.FixtureRequest) -> None:
    four = torch.cuda.device_count() >= 4
    with spawn(4, device="cuda") if four else nullcontext(request.getfixturevalue("gpu_ranks")) as gpus:
        for kind in REPLICAS:
            gpus.run(_over_replicas, *kind, device="cuda")
        for sharding in SHARDED:
            gpus.run(_fully_sharded, *sharding, device="cuda")
