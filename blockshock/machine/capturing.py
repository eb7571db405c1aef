"""Whether a call runs now, or becomes a part of a CUDA graph, which will run it as often as it is replayed."""

from __future__ import annotations

import torch


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on that device now is captured, so that there is no result to wait for."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
