"""A feed-forward block with 2:4 activations, for a user's own model; its weights are those of two ``nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError, UnknownName
from blockshock.nn.arguments import check_options, check_widths
from blockshock.nn.replaceable import check_plain, hooks_of
from blockshock.registry import parse_spec
from blockshock.training import RECIPES, BlockRecipe, block, block_recipe_of

ACT = "act"
"""What the metadata of a state have."""
CALLED = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Of a module's hooks those that see it called."""


def _check(hidden: Any, recipe: str) -> BlockRecipe:
    """The recipe of a block of so many hidden features. Raises UnknownName or InputError where one is none."""
    check_widths(hidden=hidden)
    if hidden % 4:
        raise InputError(f"hidden is cut into groups of four: it must be a multiple of 4, got {hidden}")
    try:
        return block_recipe_of(recipe)
    except UnknownName as error:
        if parse_spec(recipe)[0] not in RECIPES.names():
            raise
        raise UnknownName(f"{error}. A layer takes that one: replace_linears(model, 'recipe-{recipe}')") from None


class SparseFFN(nn.Module):
    """y = act(x W₁ᵀ + b₁) W₂ᵀ + b₂, (…, d) → (…, d), with 2:4 activations by a recipe: ``activation`` or ``dropout24``.

    Its parameters are those of ``fc1`` (d → hidden) and ``fc2`` (hidden → d), plain ``nn.Linear``, and so is its
    ``state_dict()``; its metadata, which safetensors drops, say the activation function, and a block with another one
    does not load it. Without sparse tensor cores, and under ``torch.compile``, zeros are multiplied: the same numbers.
    Under ``torch.autocast`` it multiplies in autocast's dtype, else in its own, that of x.

    **Tokens share masks.** ``activation`` by itself (``masks=tile``) chooses what it keeps for four tokens together, of
    the rows of x.reshape(-1, d) in turn, in evaluation too: an output depends on the other three, so on what is in the
    batch, and in a causal model on tokens to come. Take ``activation:masks=rows`` where that must not be.

    Args:
        d: features of x and y.
        hidden: of the activations, a multiple of four; None for 4·d.
        recipe: spec, as ``activation:act=relu2:where=pre``.
        bias, device, dtype: as of ``nn.Linear``.

    Raises:
        UnknownName, InputError: there is no such recipe of blocks, or a width is no whole number above 0, or
            ``hidden`` no multiple of four; or ``dtype`` is none of floating point.
    """

    def __init__(
        self,
        d: int,
        hidden: int | None = None,
        recipe: str = "activation",
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_widths(d=d)
        hidden = 4 * d if hidden is None else hidden
        _check(hidden, recipe)
        check_options(dtype, tokens=1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self._hold(nn.Linear(d, hidden, bias, **factory), nn.Linear(hidden, d, bias, **factory), recipe)

    @classmethod
    def of(cls, fc1: nn.Linear, fc2: nn.Linear, recipe: str = "activation") -> SparseFFN:
        """The block of two layers that exist, whose parameters it takes over as they are, in place of the two and the
        activation function between them.

        Raises:
            InputError: also where these are no plain ``nn.Linear`` (what else one computes, and hooks that see it
                called, would be lost: the block multiplies by their weights), or one's outputs are not the other's
                inputs.
        """
        made = cls.__new__(cls)
        made._hold(fc1, fc2, recipe)
        return made

    def _hold(self, fc1: nn.Linear, fc2: nn.Linear, recipe: str) -> None:
        super().__init__()
        for name, linear in (("fc1", fc1), ("fc2", fc2)):
            if type(linear) is not nn.Linear:
                raise InputError(f"{name} must be an nn.Linear, got {type(linear).__name__}")
            check_plain(linear, "SparseFFN")
            if called := [kind for kind, hooks in hooks_of(linear).items() if hooks and kind in CALLED]:
                raise InputError(
                    f"{name} has hooks ({called[0].strip('_')}) and is never called: set them on the block"
                )
        if fc1.out_features != fc2.in_features:
            raise InputError(f"fc1 has {fc1.out_features} outputs and fc2 {fc2.in_features} inputs: they must be equal")
        check_widths(d=fc1.in_features)
        self.fc1, self.fc2, self.recipe = fc1, fc2, _check(fc1.out_features, recipe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, d) → y (…, d)."""
        if not isinstance(x, torch.Tensor):
            raise InputError(f"x must be a tensor, got {type(x).__name__}")
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

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] |= {ACT: self._act}

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *others: Any) -> None:
        super()._load_from_state_dict(state, prefix, metadata, *others)
        if (saved := metadata.get(ACT, self._act)) != self._act:
            *_, errors = others
            errors.append(
                f"{prefix}fc1 and fc2 are of a SparseFFN with act={saved}, and here it is act={self._act}: build it "
                f"with act={saved} in its recipe, or load dict(state), which does not say, if that is meant"
            )

    @property
    def _act(self) -> str | None:
        """The activation function; None where a recipe does not say."""
        return getattr(self.recipe, "act", None)

    def extra_repr(self) -> str:
        return f"recipe={self.recipe}"
