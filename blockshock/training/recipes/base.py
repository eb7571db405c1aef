"""What a recipe of sparse training is: which operand is 2:4 and how its mask changes, what estimates gradients, what is
added to them, and what happens at which step.

A recipe decides, and holds nothing that changes: masks, steps and draws are of the layer (``storage.py``), which asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar

import torch

from blockshock.errors import InputError
from blockshock.registry import Registry, check_range
from blockshock.training.sparse import bits_of_mask

MOST_STEPS = 2**31
EIGHT, SIXTEEN = 8, 16
"""Bits of the numbers that are multiplied."""


class Recipe:
    """Dense training, of which a subclass says what is different. Its dataclass fields are the user's to set.

    W is the dense weight (N, K) that the optimizer trains, S(W) what multiplies in its place: y = x S(W)ᵀ,
    ∇x = ∇y S(W), and ∇W = ∇yᵀ x goes straight through to all of W (Bengio et al., arXiv 1308.3432).

    Attributes:
        operand: what is 2:4, in words; for the documentation.
        source: where it is from.
        prunes: S(W) is not all of W.
        form: of S(W), for the checks, which know these: ``rows`` keeps the two largest |w| of each four of a row,
            ``tiles`` the most that a mask can whose tiles are 2:4 both ways, ``soft`` is S-STE's, and ``blocks`` keeps
            blocks by their trained scores.
        is_24: S(W) is 2:4 along rows, as sparse tensor cores take it.
        size: of the blocks that S(W) is of; 0 for none.
        own_forward: its S(W) is no other recipe's, so that a forward pass by itself is worth a row.
        turns: masks are 2:4 along columns too, so that ∇y S(W) has a 2:4 operand as well.
        samples: ∇yᵀ is replaced by two of each four tokens, drawn without bias and with least variance (MVUE).
        keeps_dropped: what a mask drops is trained on, and may come back. Otherwise the first mask is for good, and
            what it drops is zero.
        working_bytes: held of an element, at most, while its mask and its scale are looked for.
        every: optimizer steps from one mask to the next.
        decay: λ of λ(1 − mask)⊙W, which is added to the gradient before the optimizer's step.
        seed: of what is drawn.
        bits: that numbers are multiplied in; sixteen stand for those of the layer's dtype.
    """

    operand: ClassVar[str] = "none"
    source: ClassVar[str] = ""
    prunes: ClassVar[bool] = False
    form: ClassVar[str] = ""
    is_24: ClassVar[bool] = True
    own_forward: ClassVar[bool] = True
    turns: ClassVar[bool] = False
    samples: ClassVar[bool] = False
    keeps_dropped: ClassVar[bool] = True
    working_bytes: ClassVar[int] = 20
    every: int = 1
    decay: float = 0.0
    seed: int = 0
    bits: int = SIXTEEN
    size: int = 0

    def __post_init__(self) -> None:
        """Raises InputError for a value out of its range."""
        check_range(1, MOST_STEPS, every=self.every)
        check_range(0, MOST_STEPS, seed=self.seed)
        check_range(0, 1e6, decay=self.decay)
        if self.bits not in (EIGHT, SIXTEEN):
            raise InputError(f"bits must be {EIGHT} or {SIXTEEN}, got bits={self.bits}")

    def unsuitable(self, N: int, K: int) -> str | None:
        """None, or one sentence that says why it cannot train a (N, K) weight."""
        if self.prunes and K % 4:
            return f"it cuts rows into groups of four: K must be a multiple of 4, got {K}"
        if self.turns and N % 4:
            return f"it cuts columns into groups of four too: N must be a multiple of 4, got {N}"
        return None

    def is_sparse(self, steps: int, switched: bool) -> bool:
        """Whether S(W) multiplies in the step after so many; before or after that, W does.

        Args:
            switched: the optimizer has said that sparse training begins (``StepAdamW``).
        """
        return self.prunes

    def first_sparse(self) -> int:
        """The number of steps before the first sparse one, if the optimizer never says."""
        return 0

    @classmethod
    def scaled(cls, steps: int) -> dict[str, int]:
        """Parameters that its paper has by the length of training, for one of so many steps."""
        return {}

    def optimizer(self, groups: Iterable[dict[str, Any]], steps: int, **rates: Any) -> torch.optim.Optimizer:
        """AdamW, as the recipe has it; on a GPU its steps can be captured in a CUDA graph.

        Args:
            groups: of parameters, each with ``masked``: whether they are the recipe's.
            steps: of the training.
            rates: as of AdamW.
        """
        held = list(groups)
        on_gpu = all(parameter.is_cuda for group in held for parameter in group["params"])
        return torch.optim.AdamW(held, fused=True, capturable=on_gpu, **rates)

    def mask(self, w_NK: torch.Tensor) -> torch.Tensor:
        """What of W is kept, as a boolean (N, K) with two of each four of a row at the most."""
        raise NotImplementedError

    def mask_bits(self, w_NK: torch.Tensor) -> torch.Tensor:
        """The same as bits, of which N and K are multiples of four: as of ``bits_of_mask``."""
        return bits_of_mask(self.mask(w_NK))

    def scores(self, w_NK: torch.Tensor) -> torch.Tensor | None:
        """What is trained beside W and decides its mask, at the first step; None where |w| decides."""
        return None

    def elements_beside(self, N: int, K: int) -> int:
        """How many numbers that is."""
        return 0

    def kept(self, blocks: int) -> int:
        """How many of so many blocks S(W) keeps."""
        raise NotImplementedError

    def of_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Which blocks scores decide to keep, boolean (N/size, K/size)."""
        raise NotImplementedError

    def spread(self, kept_RC: torch.Tensor) -> torch.Tensor:
        """The mask (N, K) of blocks that are kept."""
        raise NotImplementedError

    def grad_scores(self, grad_NK: torch.Tensor) -> torch.Tensor:
        """The gradient of the scores from that of S(W)."""
        raise NotImplementedError

    def grad_scores_alone(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The same, in a dtype, where nothing else needs that of S(W), ∇yᵀ x."""
        raise NotImplementedError

    def scale(self, w_NK: torch.Tensor) -> torch.Tensor | None:
        """A factor of S(W) that is found once, of the first W; None for none."""
        return None

    def weights(self, w_NK: torch.Tensor, mask_NK: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """S(W), of the dtype of W."""
        return w_NK.where(mask_NK, 0)


RECIPES: Registry[type[Recipe]] = Registry("recipe")


def recipe_of(spec: str) -> Recipe:
    """The recipe that a spec such as ``fst:every=40`` names.

    Raises:
        UnknownName, InputError: there is none of that name, or it takes no such parameter, or not such a value.
    """
    kind, parameters = RECIPES.resolve(spec)
    made: Any = kind(**parameters)
    return made


def spec_of(recipe: Recipe) -> str:
    """The spec of a recipe with all that can be set: ``sr_ste:every=1:decay=0.0002``."""
    made: Any = recipe
    settings = (f"{one.name}={getattr(recipe, one.name)}" for one in fields(made))
    return ":".join([RECIPES.name_of(type(recipe)), *settings])
