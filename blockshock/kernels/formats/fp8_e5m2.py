"""W in e5m2: five bits of exponent, two of mantissa, up to 57344 and down to 2⁻¹⁶; x in e4m3, as of ``fp8``.

A row of W may then have numbers that lie 2³¹ apart, where e4m3 has 2¹⁸, and each has a bit less. Both matrices in e5m2
are multiplied by nothing that torch has.
"""

from __future__ import annotations

import torch

from blockshock.kernels.formats.base import FORMATS, Format
from blockshock.kernels.formats.fp8 import Floats, Fp8

CUBLAS = (12, 9)
"""CUDA whose cuBLAS has a scale a row; torch's other product of such scales, CUTLASS's, takes W in e4m3 alone."""


class E5m2(Floats):
    """The numbers themselves, of any matrix: no format of rows that are compared, for want of a product."""

    stored = torch.float8_e5m2
    largest, mantissa, least_exponent = 57344.0, 2, -14


@FORMATS.register("fp8_e5m2")
class Fp8E5m2(Fp8):
    """As ``fp8``, but for W."""

    @property
    def weights(self) -> Format:
        return E5m2(self.compiled)

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "cuda":
            capability, cuda = torch.cuda.get_device_capability(device), torch.version.cuda or "0.0"
            built = tuple(int(part) for part in cuda.split(".")[:2])
            if capability[0] != 9 or built < CUBLAS:
                return (
                    f"W in e5m2 is multiplied by cuBLAS on compute capability 9.x, from CUDA 12.9 on; this GPU has "
                    f"{capability[0]}.{capability[1]}, this torch CUDA {cuda}: fp8, all in e4m3, takes 8.9"
                )
        return super().unavailable(device, dtype)
