"""torch's own pruner, as torch.ao.pruning has it."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from blockshock.pruning.base import PRUNERS, Pruner


@PRUNERS.register("weight_norm")
class WeightNorm(Pruner):
    """torch's WeightNormSparsifier at 2:4: of each four the two smallest w² go.

    It squares in the dtype of W: where squares underflow, as those of small weights do in fp16, it can no longer tell
    which is smaller. Prune before such a cast, or by ``magnitude``.
    """

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Imported when it is asked for: it takes long, and no other pruner needs it.
        kind = importlib.import_module("torch.ao.pruning").WeightNormSparsifier
        layer = nn.Linear(w_RK.shape[1], len(w_RK), bias=False, device="meta")
        layer.weight = nn.Parameter(w_RK, requires_grad=False)
        sparsifier = kind(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
        sparsifier.prepare(nn.Sequential(layer), [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
        mask_RK: torch.Tensor = layer.parametrizations["weight"][0].mask  # type: ignore[index,assignment,union-attr]
        return w_RK, mask_RK.bool()
