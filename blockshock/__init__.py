"""Block-Shock: dense-equivalent linear layers out of 2:4-sparse halves, and the suite that measures them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockshock.checkpoint import load_optimizer_state as load_optimizer_state
    from blockshock.checkpoint import optimizer_state as optimizer_state
    from blockshock.clipping import clip_grad_norm_ as clip_grad_norm_
    from blockshock.linear import BlockShockLinear as BlockShockLinear
    from blockshock.mask_state import saved_mask as saved_mask
    from blockshock.parallel_style import BlockShockParallel as BlockShockParallel
    from blockshock.steps import elementwise as elementwise

_PUBLIC = {
    "BlockShockLinear": "blockshock.linear",
    "BlockShockParallel": "blockshock.parallel_style",
    "clip_grad_norm_": "blockshock.clipping",
    "elementwise": "blockshock.steps",
    "load_optimizer_state": "blockshock.checkpoint",
    "optimizer_state": "blockshock.checkpoint",
    "saved_mask": "blockshock.mask_state",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: reading results must not import torch.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'blockshock' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
