"""The numbers of a layer's own dtype."""

from __future__ import annotations

import torch

from blockshock.kernels.formats.base import FORMATS, Format


@FORMATS.register("plain")
class Plain(Format):
    """Nothing is quantised: what every row has whose name says nothing of a format."""

    quantises_nothing = True

    def __init__(self) -> None:
        super().__init__()

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None
