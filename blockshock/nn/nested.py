"""Nested tensors of strided layout, as torch's ``TransformerEncoder`` makes of a padded x: by the rows that they hold.

All others are refused where they are met.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def is_nested(x: Any, features: int) -> bool:
    """Whether it is one of tensors (…, features), at least one."""
    if not (isinstance(x, torch.Tensor) and x.is_nested and x.layout == torch.strided):
        return False
    parts = x.unbind()
    return len(parts) > 0 and all(part.shape[-1:] == (features,) for part in parts)


def nested_rows(x: torch.Tensor) -> torch.Tensor:
    """All that it holds, (T, K): tensors (…, K) one behind the other."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in x.unbind()])


def map_rows(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What a function (T, K) → (T, N) makes of its rows, all at once, nested as they were."""
    parts = x.unbind()
    found = function(nested_rows(x)).split([part.numel() // part.shape[-1] for part in parts])
    pairs = zip(found, parts, strict=True)
    return torch.nested.as_nested_tensor([y.reshape(*part.shape[:-1], y.shape[-1]) for y, part in pairs])
