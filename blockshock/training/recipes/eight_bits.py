"""Products of eight bits: operands are stored with one scale a matrix, and multiplied by a GPU's own product of these.

What goes forward is stored as e4m3, and gradients as e5m2, which reach further (Micikevicius et al., FP8 Formats for
Deep Learning, arXiv 2209.05433). A scale is the largest |number| by that of the format. Where there is no such product,
the same numbers are multiplied in 16 bits, which hold them exactly, or in more, and added up in float32.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels import E5m2, Format, Packed, Stored, build_format
from blockshock.machine import torch_internals
from blockshock.matrices import product
from blockshock.measure import FLOAT32, Operand
from blockshock.stages import stage

MULTIPLE = 16
"""Of both sizes of what the GPU's product multiplies by."""


def of_values() -> Format:
    """Of what goes forward."""
    found = build_format("fp8")
    assert found is not None
    return found


def of_gradients() -> Format:
    """Of gradients."""
    return E5m2()


def stored(x_RC: torch.Tensor, format: Format) -> Stored:
    """What is stored of a matrix, densely, with one scale, float32 (). Stage ``quantise``."""
    with stage("quantise"):
        if not x_RC.numel():
            return Stored(x_RC.to(format.stored), torch.ones((), device=x_RC.device))
        row = x_RC.reshape(1, -1)  # of one row there is one scale
        numbers, scale = format.quantise(row.float() if row.dtype == torch.float64 else row)
        return Stored(numbers.view(x_RC.shape), scale.view(()))


def turned(held: Stored) -> Stored:
    """The transpose, which lies densely too."""
    return Stored(held.numbers.T.contiguous(), held.scale)


def represented(x_RC: torch.Tensor, format: Format) -> torch.Tensor:
    """What that stands for, in float64, by the definition."""
    return format.represented(x_RC.reshape(1, -1)).view(x_RC.shape) if x_RC.numel() else x_RC.double()


def multiplies(N: int, C: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has such a product by an (N, C) matrix, with results in a dtype."""
    if device.type != "cuda" or dtype == torch.float64 or N % MULTIPLE or C % MULTIPLE:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def times(a_MC: Stored, b_NC: Stored, dtype: torch.dtype, quick: bool) -> torch.Tensor:
    """a @ bᵀ (M, N) in a dtype. At most one of them is e5m2: of two no library has the product.

    Args:
        quick: add up as the GPU does it fastest, in some fourteen bits; otherwise in more.
    """
    (M, C), N = a_MC.numbers.shape, len(b_NC.numbers)
    if M and C and multiplies(N, C, dtype, a_MC.numbers.device):
        return torch_internals.scaled_mm(a_MC.numbers, b_NC.numbers.T, (a_MC.scale, b_NC.scale), dtype, quick)
    wide = torch.promote_types(dtype, torch.float32)
    sums_MN = product(a_MC.numbers.bfloat16(), b_NC.numbers.T.bfloat16(), wide)
    return (sums_MN * a_MC.scale * b_NC.scale).to(dtype)


def grad_weight(grad_NB: torch.Tensor, x_BK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """∇yᵀ x (N, K) in a dtype, of a ∇yᵀ that lies by features. Stages ``quantise`` and ``grad_w``."""
    missing = -len(x_BK) % MULTIPLE
    a_NB, b_KB = stored(F.pad(grad_NB, (0, missing)), of_gradients()), stored(F.pad(x_BK.T, (0, missing)), of_values())
    with stage("grad_w"):
        return times(a_NB, b_KB, dtype, quick=False)


class PackedEightBits(Packed):
    """W (N, K) in eight bits, in whose place another may come.

    Args:
        w_NK: as it is stored.
        met: the format of what it is multiplied by.
        dtype: of the results.
    """

    q_NK: torch.Tensor
    scale: torch.Tensor
    roundings = 2  # of the product, and of its sum with the bias

    def __init__(self, w_NK: Stored, met: Format, dtype: torch.dtype, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        (N, K), device = w_NK.numbers.shape, w_NK.numbers.device
        self._met, self.multiplies = met, multiplies(N, K, dtype, device)
        self.sums = of_values().sums(device) if self.multiplies else FLOAT32
        for name, held in (("q_NK", w_NK.numbers), ("scale", w_NK.scale), ("bias", bias)):
            self.register_buffer(name, held, persistent=False)

    @property
    def values(self) -> torch.Tensor:
        return self.q_NK

    @property
    def shape(self) -> tuple[int, int]:
        N, K = self.q_NK.shape
        return N, K

    @property
    def operand(self) -> Operand:
        return Operand(self.q_NK.numel(), self.q_NK.nbytes, "fp8" if self.multiplies else "dense")

    @staticmethod
    def held_bytes(N: int, K: int) -> int:
        """Bytes that it holds of W, by arithmetic."""
        return N * K + 4

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        q_BK = stored(x_BK, self._met)
        with stage(self.product_stage):
            y_BN = times(q_BK, Stored(self.q_NK, self.scale), x_BK.dtype, quick=self.product_stage == "matmul")
            return y_BN if self.bias is None else y_BN.add_(self.bias)

    def take(self, w_NK: Stored) -> None:
        """Another one. Copied: a captured graph goes on reading where the old one lies."""
        vars(self)["writes"] += 1
        self.q_NK.copy_(w_NK.numbers)
        self.scale.copy_(w_NK.scale)
