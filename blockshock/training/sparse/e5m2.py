"""Floating-point numbers of eight bits that gradients go in: five of exponent, two of mantissa, up to 57344.

Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433. No library multiplies 2:4 matrices of them, so
this is no format of the rows that are compared: what is stored is multiplied in float32, as papers simulate it.
"""

from __future__ import annotations

import torch

from blockshock.kernels import Format


class E5m2(Format):
    """With a scale a row, as the others."""

    stored = torch.float8_e5m2
    largest = 57344.0

    def nearest(self, scaled_RK: torch.Tensor) -> torch.Tensor:
        _, exponent_RK = torch.frexp(scaled_RK)  # of a mantissa from 1/2 to 1
        step_RK = torch.exp2((exponent_RK - 1).clamp(min=-14).double() - 2)
        return (scaled_RK / step_RK).round() * step_RK
