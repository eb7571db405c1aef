"""Parameters that torch's ``fully_shard`` spreads over replicas: kept as shards, gathered while they are used.

It puts a DTensor, this rank's shard, in the place of each parameter, and around forward and backward the gathered
parameter in the place of the shard. An optimizer steps the shards. What multiplies is packed anew when the gathered
parameter of changed shards comes back.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.machine import Group, global_ranks, meet
from blockshock.matrices import Mask, mask_digest
from blockshock.training.steps import mark_split, part_of


def is_shard(tensor: torch.Tensor | None) -> bool:
    """Whether this is a DTensor; to import the class costs a second."""
    return hasattr(tensor, "placements")


def gathered(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """A plain tensor; of a DTensor the whole, and all ranks of its mesh call it together."""
    if not is_shard(tensor):
        return tensor
    spread: Any = tensor
    for group in spread.device_mesh.get_all_groups():
        meet(group, f"the gathering of {what} from shards")
    return spread.full_tensor()


def spread_as(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A plain tensor that all ranks have, as the parameter lies: whole, or this rank's shard of it."""
    if not is_shard(parameter):
        return whole
    like: Any = parameter
    distribute = importlib.import_module("torch.distributed.tensor").distribute_tensor
    return distribute(whole, like.device_mesh, like.placements, src_data_rank=None)


def check_replicas(wrapper: str, group: Group, parts: Group | None, mask: Mask | None) -> None:
    """Of a wrapper that takes the ranks of a group for replicas.

    Args:
        parts: the ranks that hold the parts of one weight.
        mask: of this rank's part; None where all of it is kept.

    Raises:
        InputError: two of the group's ranks hold parts of one weight.
        RanksApart: its ranks hold different parts.
    """
    if parts is None:
        return
    both = set(global_ranks(parts)) & set(global_ranks(group))
    if parts.size() > 1 and len(both) > 1:
        raise InputError(
            f"{wrapper} over ranks {sorted(both)} would mix the halves, or other parts, of a weight on them: "
            "give it the ranks that hold the same part, the other dimension of a DeviceMesh, or leave the layer's "
            "parameters() to themselves"
        )
    digest = "none" if mask is None else mask_digest(mask)
    meet(group, f"{wrapper} around part {parts.rank()} of a weight of mask {digest}")


def reshard(model: nn.Module) -> None:
    """Put shards in place of the parameters that a forward pass left gathered."""
    made: Any
    for made in model.modules():
        if hasattr(made, "reshard") and hasattr(made, "unshard"):  # what fully_shard makes of a module
            made.reshard()


class Shardable(nn.Module):
    """A module whose parameters may be exchanged for shards, and back."""

    def __init__(self) -> None:
        super().__init__()
        self._shards: dict[str, torch.Tensor] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        # fully_shard sets attributes in this way wherever a class has one of its own.
        held = vars(self).get("_parameters", {}).get(name)
        if held is None or held is value:
            super().__setattr__(name, value)
            return
        if is_shard(value) and value is not self._shards.get(name):
            self._check_shard(held, value)
            if (group := part_of(held)) is not None:
                mark_split(value, group)
            self._shards[name] = value
        super().__setattr__(name, value)
        if not self.is_spread and self._shards:
            self.when_gathered()

    @property
    def is_spread(self) -> bool:
        """Whether a parameter is a shard as of now."""
        return any(is_shard(parameter) for parameter in self._parameters.values())

    def trained(self, name: str) -> torch.Tensor:
        """What an optimizer holds of a parameter: itself, or this rank's shard of it."""
        parameter = self._shards.get(name, self._parameters[name])
        assert parameter is not None
        return parameter

    def trained_parameters(self) -> list[torch.Tensor]:
        """The same of all parameters."""
        return [self.trained(name) for name, parameter in self._parameters.items() if parameter is not None]

    def when_gathered(self) -> None:
        """Called when all parameters are whole again."""

    def _check_shard(self, held: torch.Tensor, shard: torch.Tensor) -> None:
        """Raises if the parameter cannot be spread like this."""

    def _save_to_state_dict(self, *args: object, **kwargs: object) -> None:
        """Nothing: how a layer is split is no part of its state. BlockShockLinear saves it whole."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Nothing, likewise; but fully_shard's hook puts shards back in the place of what a forward pass gathered."""
        for hook in self._load_state_dict_pre_hooks.values():
            hook(*args, **kwargs)
