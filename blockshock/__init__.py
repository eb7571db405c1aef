"""Block-Shock: dense-equivalent linear layers out of 2:4-sparse halves, and the suite that measures them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from blockshock.nn.old_names import know_old_names

if TYPE_CHECKING:
    from blockshock.kernels import BLOCK_KERNELS, FORMATS, KERNELS, Format
    from blockshock.matrices.masks import TiledMask
    from blockshock.matrices.models import MODELS, Linear, Model
    from blockshock.matrices.named_masks import MASKS
    from blockshock.matrices.saved_mask import saved_mask
    from blockshock.matrices.workloads import WORKLOADS, Workload
    from blockshock.methods import AXES, METHODS, Axis, Method
    from blockshock.models import NETWORKS, Network, compress
    from blockshock.nn.checkpoint import load_optimizer_state, optimizer_state
    from blockshock.nn.ffn import SparseFFN
    from blockshock.nn.frozen_linear import FrozenLinear
    from blockshock.nn.linear import BlockShockLinear
    from blockshock.nn.method_linear import MethodLinear
    from blockshock.nn.parallel_style import BlockShockParallel
    from blockshock.nn.replacing import replace_linears
    from blockshock.phases.hypotheses import HYPOTHESES, Hypothesis, best_of
    from blockshock.pruning import BLOCK_MASKS, BLOCK_SCORES, PRUNERS, BlockScore, Pruner
    from blockshock.training import sparse
    from blockshock.training.clipping import clip_grad_norm_
    from blockshock.training.elementwise import elementwise

_PUBLIC = {
    "AXES": "blockshock.methods",
    "BLOCK_KERNELS": "blockshock.kernels",
    "BLOCK_MASKS": "blockshock.pruning",
    "BLOCK_SCORES": "blockshock.pruning",
    "FORMATS": "blockshock.kernels",
    "Format": "blockshock.kernels",
    "FrozenLinear": "blockshock.nn.frozen_linear",
    "HYPOTHESES": "blockshock.phases.hypotheses",
    "Hypothesis": "blockshock.phases.hypotheses",
    "KERNELS": "blockshock.kernels",
    "MASKS": "blockshock.matrices.named_masks",
    "METHODS": "blockshock.methods",
    "MODELS": "blockshock.matrices.models",
    "Linear": "blockshock.matrices.models",
    "Model": "blockshock.matrices.models",
    "NETWORKS": "blockshock.models",
    "Network": "blockshock.models",
    "PRUNERS": "blockshock.pruning",
    "WORKLOADS": "blockshock.matrices.workloads",
    "Axis": "blockshock.methods",
    "BlockScore": "blockshock.pruning",
    "BlockShockLinear": "blockshock.nn.linear",
    "BlockShockParallel": "blockshock.nn.parallel_style",
    "Method": "blockshock.methods",
    "MethodLinear": "blockshock.nn.method_linear",
    "Pruner": "blockshock.pruning",
    "SparseFFN": "blockshock.nn.ffn",
    "TiledMask": "blockshock.matrices.masks",
    "Workload": "blockshock.matrices.workloads",
    "best_of": "blockshock.phases.hypotheses",
    "compress": "blockshock.models",
    "clip_grad_norm_": "blockshock.training.clipping",
    "elementwise": "blockshock.training.elementwise",
    "load_optimizer_state": "blockshock.nn.checkpoint",
    "optimizer_state": "blockshock.nn.checkpoint",
    "replace_linears": "blockshock.nn.replacing",
    "saved_mask": "blockshock.matrices.saved_mask",
    "sparse": "blockshock.training",
}
__all__ = list(_PUBLIC)
know_old_names()


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: reading results must not import torch.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'blockshock' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
