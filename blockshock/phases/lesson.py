"""What a trajectory learns: a teacher's outputs for inputs of a workload, by which schedule, and how it is clipped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F

from blockshock.matrices import GeneratedWeights, build_workload
from blockshock.phases.case import Case, this_device
from blockshock.training import Training

BATCHES = 8


@dataclass(frozen=True)
class Lesson:
    """The data, the schedule and the clipping of a case; the same for every run of it.

    Attributes:
        gradient_dtype: that the gradient of W is computed in.
    """

    x: torch.Tensor
    targets: torch.Tensor
    lr: float
    max_norm: float
    steps: int
    gradient_dtype: torch.dtype

    def rate(self, step: int) -> float:
        """Factor of the learning rate: five steps of warm-up, then half a cosine."""
        return (step + 1) / 5 if step < 5 else 0.5 * (1 + math.cos(math.pi * (step - 5) / max(self.steps - 5, 1)))

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[step % BATCHES], self.targets[step % BATCHES]


@lru_cache(maxsize=2)
def prepare(case: Case, steps: int, rounds_gradients: bool) -> Lesson:
    """Inputs of the workload, and a teacher of their own for their targets."""
    device, workload = this_device(), build_workload(case.workload)
    x = workload.inputs(case.B * BATCHES, case.K, case.torch_dtype, device, case.seed, case.N)
    teacher = GeneratedWeights(case.N, case.K, torch.float32, device, case.seed + 1).gather(slice(None))
    targets = F.linear(x.float(), teacher)
    # SGD on a quadratic is stable up to 2/λ; λ = 2‖X‖₂²/(BN) is the curvature of the loss over one batch.
    stretch = torch.linalg.matrix_norm(x.float(), 2).item() ** 2
    sgd_lr = 0.5 * case.B * case.N / (2 * stretch)
    dtype = case.torch_dtype if rounds_gradients else Training().parameter_dtype(case.torch_dtype)
    lr = {"sgd": sgd_lr, "momentum": 0.2 * sgd_lr}.get(case.optimizer or "", 2e-3)
    return Lesson(
        x=x.unflatten(0, (BATCHES, -1)),
        targets=targets.unflatten(0, (BATCHES, -1)),
        lr=lr,
        max_norm=_clip(case, x, targets),
        steps=steps,
        gradient_dtype=dtype,
    )


def _clip(case: Case, x_BK: torch.Tensor, targets_BN: torch.Tensor) -> float:
    """Three quarters of the norm of the first gradient: early steps are clipped, later ones are not."""
    source = build_workload(case.workload).weights(case.N, case.K, torch.float32, x_BK.device, case.seed)
    x_BK, targets_BN = x_BK[: case.B].float(), targets_BN[: case.B]
    error_BN = F.linear(x_BK, source.gather(slice(None)), source.bias) - targets_BN
    return 0.75 * (2 / error_BN.numel() * (error_BN.T @ x_BK).norm().item())
