"""Floating-point numbers of eight bits, e4m3: four of exponent, three of mantissa, up to 448, no infinity.

Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from blockshock.kernels.formats.base import FORMATS, Format, Stored
from blockshock.machine import torch_internals
from blockshock.measure import FLOAT32, Sums
from blockshock.stages import stage

TENSOR_CORES = Sums(roundoff=2.0**-13, at_once=32, truncates=True)
"""What they add up with on Hopper: some fourteen bits (DeepSeek-V3 Technical Report, arXiv 2412.19437, §3.3.2)."""


class Floats(Format):
    """Numbers that have a sign, an exponent and a mantissa.

    Attributes:
        mantissa: its bits, less the first.
        least_exponent: of a normal number; numbers below are as far apart as those of this one.
    """

    mantissa: ClassVar[int]
    least_exponent: ClassVar[int]

    def nearest(self, scaled_RK: torch.Tensor) -> torch.Tensor:
        _, exponent_RK = torch.frexp(scaled_RK)  # of a mantissa from 1/2 to 1
        step_RK = torch.exp2((exponent_RK - 1).clamp(min=self.least_exponent).double() - self.mantissa)
        return (scaled_RK / step_RK).round() * step_RK


@FORMATS.register("fp8")
class Fp8(Floats):
    """The dense product is torch's ``_scaled_mm``, with a scale a row of x and of W; on a CPU that of float32.

    A bias comes after it, on a GPU.
    """

    stored = torch.float8_e4m3fn
    largest, mantissa, least_exponent = 448.0, 3, -6

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "cuda":
            if torch.cuda.get_device_capability(device) < (8, 9):
                found = "{}.{}".format(*torch.cuda.get_device_capability(device))
                return f"needs compute capability 8.9 or more, this GPU has {found}: int8 takes 8.0"
            if dtype != torch.bfloat16:
                return f"gives torch.bfloat16 on GPUs, not {dtype}: choose --dtype bf16"
        return super().unavailable(device, dtype)

    def sums(self, device: torch.device) -> Sums:
        return TENSOR_CORES if device.type == "cuda" else FLOAT32

    def roundings(self, device: torch.device, biased: bool) -> int:
        return 2 if device.type == "cuda" and biased else 1

    def product(self, q_BK: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
        if not q_BK.is_cuda:
            return q_BK.float() @ w_NK.float().T
        one_B1, one_1N = (torch.ones(size, device=q_BK.device) for size in ((len(q_BK), 1), (1, len(w_NK))))
        return torch_internals.scaled_mm(q_BK, w_NK.T, (one_B1, one_1N), torch.bfloat16, quick=True)

    def multiply(self, x: Stored, w: Stored, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        features, scale_N = len(w.scale), w.scale
        if x.numbers.is_cuda:
            if missing := len(w.numbers) - features:
                scale_N = torch.nn.functional.pad(scale_N, (0, missing), value=1.0)
            with stage("matmul"):
                scales = x.scale, scale_N[None]
                filled_BN = torch_internals.scaled_mm(x.numbers, w.numbers.T, scales, dtype, quick=True)
            if bias is None:
                return filled_BN[:, :features]
            with stage("dequantise"):  # of few tokens and many features cuBLAS has no such product with a bias
                return filled_BN[:, :features].add_(bias)
        with stage("matmul"):
            sums_BN = self.product(x.numbers, w.numbers)[: len(x.scale), :features]
        return self.descale(sums_BN, x.scale, scale_N, bias, dtype)
