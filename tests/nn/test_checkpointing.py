"""torch.distributed.checkpoint of models that hold Block-Shock layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from blockshock import BlockShockLinear, replace_linears
from blockshock.errors import InputError
from blockshock.ranks import Ranks


def _trained(seed: int, **options: Any) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    model[2] = BlockShockLinear(model[2], **{"kernel": "gathered", "mask": "tile", **options})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        model(torch.randn(3, 12, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    return model, optimizer


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    model(torch.ones(3, 12)).square().mean().backward()
    optimizer.step()
    weight: torch.Tensor = model.get_submodule("2").to_linear().weight  # type: ignore[operator]
    return weight.detach()


def _saved(folder: str) -> torch.Tensor:
    """Saves a model and its optimizer, loads them into another, and steps both."""
    model, optimizer = _trained(0)
    state, states = get_state_dict(model, optimizer)
    assert torch.equal(state["2.weight"], model[2].to_linear().weight)  # type: ignore[operator]
    dcp.save({"model": state, "optimizer": states}, checkpoint_id=folder)
    _loads(folder, model, optimizer)
    full = StateDictOptions(full_state_dict=True)
    other, _ = _trained(3)
    set_model_state_dict(other, get_model_state_dict(model, options=full), options=full)
    assert torch.equal(other[2].to_linear().weight, model[2].to_linear().weight)  # type: ignore[operator]
    return _step(model, optimizer)


def _loads(folder: str, model: nn.Module | None, optimizer: torch.optim.Optimizer | None) -> torch.Tensor:
    other, resumed = _trained(3)
    state, states = get_state_dict(other, resumed)
    dcp.load({"model": state, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(other, resumed, model_state_dict=state, optim_state_dict=states)
    for one, parameter in zip(other.parameters(), model.parameters() if model else (), strict=model is not None):
        assert torch.equal(one, parameter)
        assert optimizer is not None
        assert torch.equal(resumed.state[one]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    return _step(other, resumed)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_two_ranks_loads_there_and_on_one(cpu_ranks: Ranks, tmp_path: Path) -> None:
    first, second = cpu_ranks.run(_saved, str(tmp_path))
    assert torch.equal(first, second)
    torch.testing.assert_close(_loads(str(tmp_path), None, None), first)


def _other_layouts(folder: str) -> None:
    """A state of one rank's part, or of rows in another order, is never taken for another's."""
    model, optimizer = _trained(0)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder)
    for options in ({"kernel": "reference"}, {"storage": "masked"}):
        state = {"optimizer": get_optimizer_state_dict(*_trained(3, **options))}
        with pytest.raises((CheckpointException, ValueError), match=r"Missing key in checkpoint|Size mismatch"):
            dcp.load(state, checkpoint_id=folder)
    full = StateDictOptions(full_state_dict=True)
    box = [get_optimizer_state_dict(model, optimizer, options=full)]
    dist.broadcast_object_list(box, 0)
    if dist.get_rank() == 1:  # rank 0's half is there alone
        with pytest.raises(RuntimeError, match=r"Missing optimizer state for parameter '2\.layer\.halves\.1"):
            set_optimizer_state_dict(model, optimizer, box[0], options=full)
    else:
        set_optimizer_state_dict(model, optimizer, box[0], options=full)


def test_a_state_of_another_layout_is_refused(cpu_ranks: Ranks, tmp_path: Path) -> None:
    cpu_ranks.run(_other_layouts, str(tmp_path))


def _alone_in_groups(row: str, kind: str, lr: float, steps: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Nothing but layers of ours, in two groups."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    replace_linears(model, row)
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [one for name, one in named.items() if name.endswith("bias") == is_bias], "weight_decay": decay}
        for is_bias, decay in ((False, 0.1), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr) if kind == "AdamW" else torch.optim.SGD(groups, lr=lr, momentum=0.9)
    _step_alone(model, optimizer, steps)
    return model, optimizer


def _step_alone(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> torch.Tensor:
    for step in range(steps):
        optimizer.zero_grad()
        y: torch.Tensor = model(torch.randn(4, 16, generator=torch.Generator().manual_seed(step)))
        y.square().mean().backward()
        optimizer.step()
    return y.detach() if steps else torch.empty(0)


def _goes_on(folder: str, row: str, kind: str) -> None:
    """To the bit, though no parameter has a name that all ranks have; and with the options that were saved."""
    model, optimizer = _alone_in_groups(row, kind, 0.01, steps=3)
    state, states = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": states}, checkpoint_id=folder)
    other, resumed = _alone_in_groups(row, kind, 0.5, steps=0)
    state, states = get_state_dict(other, resumed)
    dcp.load({"model": state, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(other, resumed, model_state_dict=state, optim_state_dict=states)
    assert [(group["lr"], group["weight_decay"]) for group in resumed.param_groups] == [(0.01, 0.1), (0.01, 0.0)]
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert resumed.state[theirs].keys() == optimizer.state[ours].keys()
    assert torch.equal(_step_alone(other, resumed, 3), _step_alone(model, optimizer, 3))


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize("row", ["block_shock", "dense_tp_row", "pruned_tp_col"])
def test_a_model_of_nothing_but_parts_goes_on(row: str, kind: str, cpu_ranks: Ranks, tmp_path: Path) -> None:
    cpu_ranks.run(_goes_on, str(tmp_path), row, kind)


def _options_are_lost() -> None:
    model, optimizer = _alone_in_groups("block_shock", "AdamW", 0.01, steps=1)
    saved = optimizer.state_dict()
    fresh = torch.optim.AdamW([one for group in optimizer.param_groups for one in group["params"]], lr=0.5)
    fresh.load_state_dict({**saved, "param_groups": [{**saved["param_groups"][0], "params": [0, 1, 2, 3]}]})
    _step_alone(model, fresh, 1)  # it was not known to hold halves before
    assert all("group_options" not in state for state in fresh.state.values())
    for state in saved["state"].values():
        state.pop("group_options", None)
    with pytest.raises(InputError, match="a group of this optimizer came without its options"):
        optimizer.load_state_dict({**saved, "param_groups": [{"params": [0, 1]}, saved["param_groups"][1]]})


def test_a_group_without_its_options_is_refused(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_options_are_lost)


ROWS = [
    "recipe-ste",
    "recipe-fst",
    "recipe-s_ste",
    "recipe-supermask:size=16:level=0.5",
    "pruned-auto-ria:permute=yes",
    "dense_single",
]


def _goes_on_under(wrap: Callable[[nn.Module], nn.Module], folder: str, row: str) -> None:
    """Saved of what wraps the model, and loaded into its module: the names are the same."""

    def built() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        replace_linears(model, row, inputs={"0": torch.randn(8, 32), "2": torch.randn(8, 64)})
        model = wrap(model)
        return model, torch.optim.AdamW(model.parameters(), lr=0.01)

    def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        for step in range(3):
            optimizer.zero_grad()
            y: torch.Tensor = model(torch.randn(8, 32, generator=torch.Generator().manual_seed(step)))
            y.square().mean().backward()
            optimizer.step()
        return y.detach()

    model, optimizer = built()
    trained(model, optimizer)
    state, states = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": states}, checkpoint_id=folder)
    other, resumed = built()
    module: nn.Module = getattr(other, "module", other)
    state, states = get_state_dict(module, resumed)
    dcp.load({"model": state, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(module, resumed, model_state_dict=state, optim_state_dict=states)
    assert torch.equal(trained(other, resumed), trained(model, optimizer))
    if other is not module:
        with pytest.raises(InputError, match=r"as by set_model_state_dict\(model\.module"):
            set_model_state_dict(other, get_model_state_dict(other), options=StateDictOptions(strict=False))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("row", ROWS)
def test_what_a_state_names_is_there_to_be_looked_up(row: str, tmp_path: Path) -> None:
    _goes_on_under(nn.Module.train, str(tmp_path), row)


def test_under_data_parallelism_too(cpu_ranks: Ranks, tmp_path: Path) -> None:
    for row in ROWS:
        cpu_ranks.run(_goes_on_under, DistributedDataParallel, str(tmp_path / row.split(":")[0]), row)


def test_what_the_state_does_not_name_is_no_attribute() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))
    replace_linears(model, "dense_single")
    assert not hasattr(model[0], "recipe_mask")
    assert not hasattr(model[0], "permutation")
