"""How a dense weight is held while it is trained."""

from __future__ import annotations

import torch
from torch import nn

from blockshock.kernels import Packed
from blockshock.matrices import product
from blockshock.stages import stage
from blockshock.training.parameters import Training
from blockshock.training.storages import Storage


class DenseStorage(Storage):
    """All of a dense weight, for methods that do not split it by a mask."""

    def __init__(self, packed: Packed, training: Training, bias: nn.Parameter | None) -> None:
        super().__init__(nn.Parameter(packed.values.to(training.parameter_dtype(packed.values.dtype))), packed, bias)

    def grad_weight(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("grad_w"):
            return product(grad_y_BN.T, x_BK, self.parameter.dtype)
