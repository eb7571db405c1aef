"""torch's GradScaler beside weights that are split over ranks: an inf in one rank's part makes all ranks skip the step.

A scaler looks for inf and NaN in the gradients that its own process holds, and skips the step where it finds one. Were
a half's rank to skip alone, the halves would part for good. torch calls hooks around an optimizer's step, which comes
too late, and none around a scaler's: so its one method that looks is wrapped. For optimizers that hold nothing that is
split by us it does what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from blockshock.machine import global_ranks, torch_internals
from blockshock.training.clipping import local_gradient
from blockshock.training.sharded import is_shard
from blockshock.training.steps import links_of, split_over

Found = dict[torch.device, torch.Tensor]
Unscale = Callable[[Any, Any, torch.Tensor, torch.Tensor, bool], Found]


def _agreeing(unscale: Unscale) -> Unscale:
    @wraps(unscale)
    def unscale_and_agree(
        self: Any, optimizer: Any, inv_scale: torch.Tensor, found_inf: torch.Tensor, allow_fp16: bool
    ) -> Found:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        ours = [parameter for parameter in links_of(optimizer).parts if split_over(parameter)]
        if not ours:
            return unscale(self, optimizer, inv_scale, found_inf, allow_fp16)
        # torch's kernel takes no DTensors and plain tensors together.
        local = SimpleNamespace(param_groups=[{"params": [_local(parameter) for parameter in held]}])
        found = unscale(self, local, inv_scale, found_inf, allow_fp16)
        flag = torch.stack(
            [torch.zeros((), device=ours[0].device), *(one.to(ours[0].device) for one in found.values())]
        )
        flag = flag.amax()
        groups = {global_ranks(group): group for parameter in held for group in split_over(parameter)}
        for group in groups.values():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
        for one in found.values():
            one.copy_(flag)
        return found

    return unscale_and_agree


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a parameter, with what it holds of the gradient."""
    if not is_shard(parameter):
        return parameter
    local: torch.Tensor = parameter.to_local().detach()  # type: ignore[attr-defined]
    local.grad = None if parameter.grad is None else local_gradient(parameter)
    return local


def watch_scalers() -> None:
    """From now on all of torch's scalers agree over the ranks."""
    torch_internals.wrap_unscale(_agreeing)
