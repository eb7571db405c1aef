"""The options of an optimizer's groups, in its ``state_dict()`` beside a parameter's state too.

torch.distributed.checkpoint saves the groups as one rank has them, and looks for a group by its parameters' names. Of
halves these differ between ranks, so that where a group holds nothing else, all others would load no options at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import Optimizer

from blockshock.errors import InputError

_KEY = "group_options"
_NAMES = {"params", "param_names"}
_kept: WeakSet[Optimizer] = WeakSet()


def keep_options(optimizer: Optimizer, is_ours: Callable[[torch.Tensor], bool]) -> None:
    """From now on its state has them, of groups all of whose parameters are ours."""
    if optimizer in _kept:
        return
    _kept.add(optimizer)
    for one in optimizer.state.values():
        one.pop(_KEY, None)  # of a state that was loaded before
    optimizer.register_state_dict_post_hook(partial(_add, is_ours))
    optimizer.register_load_state_dict_pre_hook(_take)


def _add(is_ours: Callable[[torch.Tensor], bool], optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """To the state of the first parameter of each group that has one."""
    state = dict(saved["state"])
    for group, packed in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        first = next((key for key in packed["params"] if key in state), None)
        if first is not None and all(map(is_ours, group["params"])):
            options = {name: value for name, value in packed.items() if name not in _NAMES}
            state[first] = {**state[first], _KEY: [options]}  # what the optimizer itself holds stays as it is
    return {**saved, "state": state}


def _take(optimizer: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
    """Back into a group that came without.

    Raises:
        InputError: it came without, and they are not there.
    """
    state, groups = dict(loaded["state"]), [dict(group) for group in loaded["param_groups"]]
    for group, held in zip(groups, optimizer.param_groups, strict=False):  # torch says so where their numbers differ
        options: dict[str, Any] = {}
        for key in group["params"]:
            if _KEY in state.get(key, {}):
                state[key] = dict(state[key])
                (options,) = state[key].pop(_KEY)
        if _NAMES.issuperset(group) and not _NAMES.issuperset(held):
            if not options:
                raise InputError(
                    "a group of this optimizer came without its options, as lr: torch.distributed.checkpoint looks for "
                    "it by names of parameters, which differ between the ranks that halves lie on, and the file is of "
                    "before they were kept beside a state; blockshock.load_optimizer_state takes what "
                    "blockshock.optimizer_state saved"
                )
            group |= options
    return {**loaded, "state": state, "param_groups": groups}
