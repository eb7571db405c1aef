"""A feed-forward block with 2:4 activations, for a user's own model; its weights are those of two ``nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.training import block, block_recipe_of


class SparseFFN(nn.Module):
    """y = act(x W₁ᵀ + b₁) W₂ᵀ + b₂, (…, d) → (…, d), with 2:4 activations by a recipe: ``activation`` or ``dropout24``.

    Its parameters are those of ``fc1`` (d → hidden) and ``fc2`` (hidden → d), plain ``nn.Linear``, and so is its
    ``state_dict()``. Where there are no sparse tensor cores, and under ``torch.compile``, zeros are multiplied: the
    same numbers. Under ``torch.autocast`` it multiplies in autocast's dtype, else in its own, that of x.

    **Tokens share masks.** ``activation`` by itself (``masks=tile``) chooses what it keeps for four tokens together, of
    the rows of x.reshape(-1, d) in turn, in evaluation too: an output depends on the other three, so on what is in the
    batch, and in a causal model on tokens to come. Take ``activation:masks=rows`` where that must not be.

    Args:
        d: features of x and y.
        hidden: of the activations, a multiple of four; None for 4·d.
        recipe: spec, as ``activation:act=relu2:where=pre``.
        bias, device, dtype: as of ``nn.Linear``.

    Raises:
        UnknownName, InputError: there is no such recipe of blocks, or ``hidden`` is no multiple of four.
    """

    def __init__(
        self, d: int, hidden: int | None = None, recipe: str = "activation", *, bias: bool = True, **factory: Any
    ) -> None:
        hidden = 4 * d if hidden is None else hidden
        self._hold(nn.Linear(d, hidden, bias, **factory), nn.Linear(hidden, d, bias, **factory), recipe)

    @classmethod
    def of(cls, fc1: nn.Linear, fc2: nn.Linear, recipe: str = "activation") -> SparseFFN:
        """The block of two layers that exist, whose parameters it takes over as they are, in place of the two and the
        activation function between them.

        Raises:
            InputError: also where these are no plain ``nn.Linear``, or one's outputs are not the other's inputs.
        """
        made = cls.__new__(cls)
        made._hold(fc1, fc2, recipe)
        return made

    def _hold(self, fc1: nn.Linear, fc2: nn.Linear, recipe: str) -> None:
        super().__init__()
        found = block_recipe_of(recipe)
        for name, linear in (("fc1", fc1), ("fc2", fc2)):
            if type(linear) is not nn.Linear:
                raise InputError(f"{name} must be an nn.Linear, got {type(linear).__name__}")
        if fc1.out_features != fc2.in_features:
            raise InputError(f"fc1 has {fc1.out_features} outputs and fc2 {fc2.in_features} inputs: they must be equal")
        if fc1.out_features % 4:
            raise InputError(f"hidden is cut into groups of four: it must be a multiple of 4, got {fc1.out_features}")
        self.fc1, self.fc2, self.recipe = fc1, fc2, found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, d) → y (…, d)."""
        if x.shape[-1:] != (self.fc1.in_features,):
            raise InputError(f"x must be (…, {self.fc1.in_features}), got {tuple(x.shape)}")
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            for name, linear in (("fc1", self.fc1), ("fc2", self.fc2)):
                if x.dtype != linear.weight.dtype:
                    raise InputError(
                        f"x is {x.dtype} and the weight of {name} {linear.weight.dtype}: cast one of them, or use "
                        "torch.autocast"
                    )
            return self._block(x, x.dtype)
        if not x.is_floating_point():
            raise InputError(f"x must be of floating-point numbers, got {x.dtype}")
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return self._block(x, dtype)

    def _block(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        first, second = (
            (linear.weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype))
            for linear in (self.fc1, self.fc2)
        )
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        y = block(flat, first, second, self.recipe, self.training)
        return y.view(*x.shape[:-1], self.fc2.out_features)

    def extra_repr(self) -> str:
        return f"recipe={self.recipe}"
