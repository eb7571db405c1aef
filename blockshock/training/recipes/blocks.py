"""A feed-forward block whose activations are 2:4: three steps to autograd, of which each hands on what is 2:4.

z = x W₁ᵀ, whose backward products take a 2:4 ∇z; a = S(act(z)), or act(S(z)); and y = a Wᵀ of that 2:4 a. Four of the
six products of a step then have a 2:4 operand; ∇a = ∇y W₂ and z itself are dense.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from blockshock.errors import InputError
from blockshock.kernels import blocks24
from blockshock.kernels.cusparselt_layout import SIDE
from blockshock.kernels.make24 import Making
from blockshock.matrices import product
from blockshock.registry import Registry
from blockshock.stages import stage
from blockshock.training.recipes.base import Recipe
from blockshock.training.recipes.fused import fused_block
from blockshock.training.recipes.packing import sparse_cores, times_24
from blockshock.training.sparse import mask_24

MULTIPLE_OF_THIN = 128
"""Features that are thinned along tokens are a multiple of these, or all."""


class BlockRecipe(Recipe):
    """What becomes of the activations of a block.

    Attributes:
        gradient: as of ``Activation``.
        both_ways: masks are 2:4 along tokens too.
        dense: as of ``Activation``.
        factor: of what is kept.
    """

    operand = "activations, and ∇ of them"
    gradient: str = "sp24"
    dense: float = 0.0
    factor: ClassVar[float] = 1.0

    @property
    def both_ways(self) -> bool:
        return True

    def thins(self, is_training: bool) -> bool:
        """Whether activations are thinned."""
        return True

    def making(self) -> Making | None:
        """How a GPU makes a of z in one pass; None where it does not."""
        return None

    def given(self, x_BD: torch.Tensor, hidden: int) -> torch.Tensor | None:
        """The mask of the z of an x, where S does not look at it; as of ``fused_block``."""
        return None

    def thinned(self, z_BH: torch.Tensor, is_training: bool) -> torch.Tensor:
        """a (T, h) of z (T, h): the activation function, and S before or after it."""
        raise NotImplementedError

    def _kept(self, x_BH: torch.Tensor) -> torch.Tensor:
        """What S keeps of a matrix both of whose sizes are multiples of four."""
        raise NotImplementedError

    def _thin(self, x_BH: torch.Tensor) -> torch.Tensor:
        with stage("sparsify"), torch.no_grad():
            filled_BH = F.pad(x_BH.detach(), (0, 0, 0, -len(x_BH) % 4))  # zeros, which no tile is chosen for
            kept_BH = self._kept(filled_BH)[: len(x_BH)]
        return _Thin.apply(x_BH, kept_BH, self.gradient == "ste")  # type: ignore[no-any-return]


BLOCK_RECIPES: Registry[type[BlockRecipe]] = Registry("block recipe")


def block_recipe_of(spec: str) -> BlockRecipe:
    """The recipe that a spec such as ``activation:act=relu2`` names.

    Raises:
        UnknownName, InputError: there is none of that name, or it takes no such parameter, or not such a value.
    """
    kind, parameters = BLOCK_RECIPES.resolve(spec)
    return kind(**parameters)


def check_choice(name: str, found: str, choices: tuple[str, ...]) -> None:
    """Raises InputError unless what a spec has of a parameter is one of its choices."""
    if found not in choices:
        raise InputError(f"{name} is one of {', '.join(choices)}, got {name}={found}")


def block(
    x_BD: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor | None],
    second: tuple[torch.Tensor, torch.Tensor | None],
    recipe: BlockRecipe,
    is_training: bool = True,
) -> torch.Tensor:
    """y (T, N) = act(x W₁ᵀ + b₁) W₂ᵀ + b₂ with 2:4 activations, all of one dtype.

    Args:
        x_BD: (T, D), any number of tokens; they are filled up with zeros where a product needs that.
        first, second: W₁ (h, D) and W₂ (N, h), each with its bias or None; h is a multiple of four.
    """
    if not recipe.thins(is_training):
        return F.linear(recipe.thinned(F.linear(x_BD, *first), is_training), *second)
    making, h = recipe.making(), len(first[0])
    thin = thin_features(h, recipe.dense)  # a number here, where what is traced backward may be none
    if making is not None and _fuses(x_BD, first[0], second[0]):
        mask, others = recipe.given(x_BD, h), 0 if recipe.both_ways else h - thin
        return fused_block(x_BD, first, second, making, recipe.gradient, mask, recipe.factor, others)
    sparse_back = recipe.gradient == "sp24"
    z_BH, told_H = _LinearTo24.apply(x_BD, *first, recipe, thin) if sparse_back else (F.linear(x_BD, *first), None)
    return _LinearOf24.apply(recipe.thinned(z_BH, is_training), told_H, *second, recipe, thin)  # type: ignore[no-any-return]


def _fuses(x_BD: torch.Tensor, w_HD: torch.Tensor, w_NH: torch.Tensor) -> bool:
    """Whether matrices are made 2:4 in one pass there, and multiplied by the sparse tensor cores."""
    (H, D), N = w_HD.shape, len(w_NH)
    if torch.compiler.is_compiling() or not len(x_BD) or H % SIDE or D % 8 or N % 8 or x_BD.itemsize != 2:
        return False
    return blocks24.unavailable(x_BD) is None and sparse_cores(SIDE, H, x_BD.dtype, x_BD.device)


def thin_features(h: int, dense: float) -> int:
    """Of h features those that products over tokens thin, where a share ``dense`` at most is not."""
    return min(-(-math.ceil((1 - dense) * h) // MULTIPLE_OF_THIN) * MULTIPLE_OF_THIN, h)


def over_tokens(
    a_BH: torch.Tensor, x_BK: torch.Tensor, recipe: BlockRecipe, counts_H: torch.Tensor, thin: int
) -> torch.Tensor:
    """aᵀ x (h, K) of an ``a`` that is 2:4 along features: exact where masks are 2:4 along tokens too.

    Otherwise the features with most zeros keep the two largest of each four tokens, and the others are dense.

    Args:
        counts_H: how many activations of each feature are not zero; of ∇z the same.
        thin: how many of the features are those with most zeros.
    """
    if recipe.both_ways:
        return times_24(a_BH.T.contiguous(), x_BK, x_BK.dtype, "columns", "grad_w")
    h, missing = a_BH.shape[1], -len(a_BH) % 4
    order = counts_H.argsort(stable=True)
    a_HB = a_BH.T[order]
    some = F.pad(a_HB[:thin], (0, missing)) if missing else a_HB[:thin]
    x_filled = F.pad(x_BK, (0, 0, 0, missing)) if missing else x_BK
    found_HK = x_BK.new_empty(h, x_BK.shape[1])
    found_HK[order[:thin]] = times_24(some.where(mask_24(some), 0), x_filled, x_BK.dtype, "columns", "grad_w")
    found_HK[order[thin:]] = product(a_HB[thin:], x_BK, x_BK.dtype)
    return found_HK


class _Thin(torch.autograd.Function):
    """What a mask keeps; the gradient likewise, or straight through."""

    @staticmethod
    def forward(ctx: Any, x_BH: torch.Tensor, kept_BH: torch.Tensor, straight: bool) -> torch.Tensor:
        ctx.save_for_backward(*([] if straight else [kept_BH]))
        return x_BH.where(kept_BH, 0)

    @staticmethod
    def backward(ctx: Any, grad_BH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (kept_BH,) = ctx.saved_tensors or (None,)
        return grad_BH if kept_BH is None else grad_BH.where(kept_BH, 0), None, None


class _LinearTo24(torch.autograd.Function):
    """x Wᵀ + b, a dense product, whose gradient comes back 2:4; and beside it zeros (h,), as whose gradient it is told
    how many activations of each feature are not zero."""

    @staticmethod
    def forward(
        ctx: Any, x_BD: torch.Tensor, w_HD: torch.Tensor, bias: torch.Tensor | None, recipe: BlockRecipe, thin: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.recipe, ctx.thin = recipe, thin
        ctx.save_for_backward(x_BD, w_HD)
        with stage("matmul"):
            return F.linear(x_BD, w_HD, bias), x_BD.new_zeros(len(w_HD), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_z_BH: torch.Tensor, counts_H: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_BD, w_HD = ctx.saved_tensors
        needs_x, needs_w, needs_bias, *_ = ctx.needs_input_grad
        grad_x = times_24(grad_z_BH, w_HD, x_BD.dtype, "rows", "grad_x") if needs_x else None
        grad_w = over_tokens(grad_z_BH, x_BD, ctx.recipe, counts_H, ctx.thin) if needs_w else None
        return grad_x, grad_w, grad_z_BH.sum(0) if needs_bias else None, None, None


class _LinearOf24(torch.autograd.Function):
    """a Wᵀ + b of an ``a`` that is 2:4; its gradient is dense. Who made it is told how much of it is not zero."""

    @staticmethod
    def forward(
        ctx: Any,
        a_BH: torch.Tensor,
        told_H: torch.Tensor | None,
        w_NH: torch.Tensor,
        bias: torch.Tensor | None,
        recipe: BlockRecipe,
        thin: int,
    ) -> torch.Tensor:
        ctx.recipe, ctx.thin = recipe, thin
        ctx.save_for_backward(a_BH, w_NH)
        y_BN = times_24(a_BH, w_NH.T, a_BH.dtype, "rows", "matmul")
        return y_BN if bias is None else y_BN + bias

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        a_BH, w_NH = ctx.saved_tensors
        needs_a, tells, needs_w, needs_bias, *_ = ctx.needs_input_grad
        counts_H = (a_BH != 0).sum(0, dtype=torch.float32)
        with stage("grad_x"):
            grad_a = grad_y_BN @ w_NH if needs_a else None
        grad_w = over_tokens(a_BH, grad_y_BN, ctx.recipe, counts_H, ctx.thin).T.contiguous() if needs_w else None
        grad_b = grad_y_BN.sum(0) if needs_bias else None
        return grad_a, counts_H if tells else None, grad_w, grad_b, None, None
