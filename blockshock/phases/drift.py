"""Drift: how far does a layer's output wander from float64 when it is fed back to the layer, again and again?

x ← normalise(x Wᵀ + b), each row to unit root mean square, T times: in the dtype of the case beside the same iteration
in float64 from the same rounded W (or W′, where that is what a method promises), bias and x. The dense product on one
device has a drift of its own; a method passes while its error stays below twice that. Rows of zeros stay such: where
rows of W are lost, an iteration may come to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from blockshock.errors import InputError
from blockshock.phases.case import Case, build

STEPS = 256
ALLOWED = 2.0


@dataclass
class DriftResult:
    """Errors against the float64 iteration after each step.

    Attributes:
        relative_error, dense_relative_error: Frobenius norms, of the method and of the dense product.
        max_error, mean_error: of single elements, absolute, of the method.
        ratio: of the method's root-mean-square relative error up to each step over the dense product's. One step's own
            ratio says little: an error that is fed back grows and shrinks with the directions it happens to have.
        algorithm: kernel and algorithm that ran.
    """

    relative_error: list[float]
    dense_relative_error: list[float]
    max_error: list[float]
    mean_error: list[float]
    ratio: list[float]
    algorithm: str

    def failure(self) -> str | None:
        """None if the ratio stays below what passes, else the step where it does not."""
        for step, ratio in enumerate(self.ratio):
            if not ratio < ALLOWED:  # so that NaN fails
                at = f"after {step + 1} steps the error is {ratio:.3g}"
                return f"{at} times the dense product's; {ALLOWED:g} times passes"
        return None


@torch.inference_mode()
def run(case: Case, steps: int = STEPS) -> DriftResult:
    """Iterate the case's method on this rank; all ranks call it together.

    Raises:
        InputError: N and K differ, so that outputs are no inputs.
    """
    if case.N != case.K:
        raise InputError(f"drift feeds outputs back: N and K must be equal, got N = {case.N}, K = {case.K}")
    built = build(case)
    right = built.reference()
    w_NK, bias = right.gather(slice(None)), right.bias
    w64_NK, bias64 = w_NK.double(), None if bias is None else bias.double()
    ours, dense, exact = built.x_BK, built.x_BK, built.x_BK.double()
    errors, dense_errors, largest, mean = [], [], [], []
    for _ in range(steps):
        ours = _again(built.method, ours)
        dense = _again(lambda x: F.linear(x, w_NK, bias), dense)
        exact = _again(lambda x: F.linear(x, w64_NK, bias64), exact)
        off = (ours.double() - exact).abs()
        errors.append(_relative(off, exact))
        dense_errors.append(_relative(dense.double() - exact, exact))
        largest.append(off.max().item())
        mean.append(off.mean().item())
    return DriftResult(errors, dense_errors, largest, mean, _ratios(errors, dense_errors), built.method.algorithm)


def _again(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """One step: the layer, then rows of unit root mean square; a row of zeros stays one."""
    y = layer(x).double()
    size = y.square().mean(1, keepdim=True).sqrt()
    return (y / size.where(size != 0, 1.0)).to(x.dtype)


def _relative(off: torch.Tensor, exact: torch.Tensor) -> float:
    """Frobenius norms; beside zeros nothing may be off."""
    found, whole = off.norm().item(), exact.norm().item()
    return found / whole if whole else (math.inf if found else 0.0)


def _ratios(errors: list[float], dense_errors: list[float]) -> list[float]:
    ratios, ours, dense = [], 0.0, 0.0
    for error, dense_error in zip(errors, dense_errors, strict=True):
        ours, dense = ours + error**2, dense + dense_error**2
        ratios.append(math.sqrt(ours / dense) if dense else (1.0 if ours == 0 else math.inf))
    return ratios
