"""torch.distributed.checkpoint of models that hold Block-Shock layers."""

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

from blockshock import BlockShockLinear
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
