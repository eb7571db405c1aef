"""What an algorithm of cuSPARSELt has to multiply right before it is used."""

from __future__ import annotations

import torch

from blockshock.kernels.formats import format_of, quantised
from blockshock.kernels.right import is_product
from blockshock.matrices import GeneratedWeights, Piece, generator, random_mask


class Trial:
    """Random weights under a random mask, and random inputs of mean zero: no error of a product can hide in them."""

    def __init__(self, N: int, K: int, tokens: int, dtype: torch.dtype, bias: bool, device: torch.device) -> None:
        source = GeneratedWeights(N, K, dtype if dtype.itemsize > 1 else torch.float32, device, seed=5, with_bias=bias)
        piece, x_BK = Piece(source, slice(0, K), random_mask(source)), _normal(tokens, K, device)
        self.bias = source.bias
        if dtype.itemsize > 1:
            self.w_NK, self.x_BK, self.eps = piece.dense(), x_BK.to(dtype), torch.finfo(dtype).eps
            return
        format = format_of(dtype)
        self.w_NK, _ = quantised(piece.kept_block, N, K, format, device)
        self.x_BK, _ = format.quantise(x_BK)
        self.eps = torch.finfo(torch.bfloat16).eps + format.sums(device).error(K)

    def is_right(self, y_BN: torch.Tensor) -> bool:
        """Whether y is the product of the first rows of x."""
        return is_product(y_BN, self.x_BK[: len(y_BN)], self.w_NK, self.bias, self.eps)


def _normal(tokens: int, K: int, device: torch.device) -> torch.Tensor:
    return torch.randn(tokens, K, device=device, generator=generator(device, 5, 4))
