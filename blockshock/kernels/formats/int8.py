"""Whole numbers of eight bits, from −127 to 127, multiplied and added up exactly in 32 bits."""

from __future__ import annotations

import torch

from blockshock.kernels.formats.base import FORMATS, Format, Stored
from blockshock.machine import torch_internals
from blockshock.stages import stage


@FORMATS.register("int8")
class Int8(Format):
    """The dense product is torch's ``_int_mm``, on a CPU too; then come the scales, in kernels of their own."""

    stored = torch.int8
    largest = 127.0
    least_tokens = 17

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            found = "{}.{}".format(*torch.cuda.get_device_capability(device))
            return f"needs compute capability 8.0 or more, this GPU has {found}"
        return super().unavailable(device, dtype)

    def nearest(self, scaled_RK: torch.Tensor) -> torch.Tensor:
        return scaled_RK.round()

    def product(self, q_BK: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
        return torch_internals.int_mm(q_BK, w_NK.T)

    def multiply(self, x: Stored, w: Stored, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        with stage("matmul"):
            sums_BN = self.product(x.numbers, w.numbers)[: len(x.scale), : len(w.scale)]
        return self.descale(sums_BN, x.scale, w.scale, bias, dtype)
