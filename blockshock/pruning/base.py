"""What a pruner is: it turns a piece of W into W′, which is 2:4, in blocks of rows.

A pruner is one class registered in PRUNERS; nothing else needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from blockshock.errors import InputError
from blockshock.machine import indexed
from blockshock.matrices import Mask, Piece, WeightSource, build_mask, check_finite
from blockshock.registry import Registry

CALIBRATION_TOKENS = 1024
"""Rows of the inputs that a pruner may look at."""

BLOCK_BYTES = 16 << 20
"""Of the rows of W that a pruner is given at once."""

Inputs = Callable[[], torch.Tensor]
"""Draws them: a new (T, K) tensor, K of the whole W."""


class Pruner:
    """Prunes one piece of W. What its ``__init__`` takes beside these two is the user's to set: ``name:alpha=0.5``.

    Attributes:
        needs_inputs: it looks at calibration inputs; they are None for all others.
        slow: it takes seconds for a small layer on a CPU, where pairs of choices do without it.
        transposable: its masks are 2:4 along columns too, so that backward products can be sparse; that is checked.
        permutes: what it keeps depends on which columns share a group of four, so that ``permute=yes`` can raise it.

    Args:
        piece: dense.
        x_TK: calibration inputs (T, K) of the piece's columns.
    """

    needs_inputs: ClassVar[bool] = False
    transposable: ClassVar[bool] = False
    slow: ClassVar[bool] = False
    permutes: ClassVar[bool] = True

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None) -> None:
        self.piece, self._x_TK = piece, x_TK

    @classmethod
    def check(cls, **parameters: Any) -> None:
        """Raises InputError for what of a spec can be refused before there is a matrix."""

    @property
    def x_TK(self) -> torch.Tensor:
        """Raises InputError in a pruner that does not say that it needs them."""
        if self._x_TK is None:
            raise InputError(f"{type(self).__name__} reads x_TK: let it say needs_inputs = True")
        return self._x_TK

    @classmethod
    def like(cls, source: WeightSource) -> Mask:
        """A mask that is to kernels as those of this pruner are, and has a tile only if every W gets this very mask."""
        return build_mask("tile_random" if cls.transposable else "random", source)

    @classmethod
    def working_bytes(cls, R: int, K: int, T: int) -> int:
        """Bytes that are held at most while it prunes R rows at once, by arithmetic, beside W, the inputs and W′.

        A pruner that holds more than this says so: 48 for each element of the rows, which are a block as it is in W,
        what ``prune`` gives for it, and the positions that its mask is packed as; 88 where the best of 90 tiles is
        looked for.

        Args:
            T: inputs that it looks at.
        """
        return (88 if cls.transposable else 48) * R * K

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """W′ of the rows of the piece from ``start`` on, (R, K), and its boolean mask (R, K), 2:4.

        R and ``start`` are multiples of four, but for the last rows. Of W′ only what the mask keeps counts; it is
        rounded to the dtype of W.
        """
        raise NotImplementedError(f"{type(self).__name__} has no prune(w_RK, start)")

    def scores(self, w_RK: torch.Tensor) -> torch.Tensor:
        """Of each weight how much it matters (R, K), at least 0, in float64: ``permute=yes`` has the two largest of
        each four add up to as much as they can. Here |w|; where there are inputs, times the ‖x‖₂ of its channel.
        """
        size_RK = w_RK.double().abs()
        return size_RK if self._x_TK is None else size_RK * self._x_TK.double().norm(dim=0)


PRUNERS: Registry[type[Pruner]] = Registry("pruner", {"permute": False})
"""Every pruner takes ``permute=yes``: the input channels are permuted first, see ``permutation.py``."""


def pruner_of(spec: str) -> tuple[type[Pruner], dict[str, Any], bool]:
    """The class that a spec such as ``wanda:permute=yes`` names, what its ``__init__`` takes beside the piece and the
    inputs, and whether the input channels are permuted first.

    Raises:
        UnknownName, InputError: there is none of that name, it takes no such parameter, or not such a value, or no
            permutation helps it.
    """
    kind, parameters = PRUNERS.resolve(spec, skip=2)
    permute = parameters.pop("permute", False)
    if permute and not kind.permutes:
        able = [name for name in PRUNERS.names() if PRUNERS.get(name).permutes]
        raise InputError(
            f"pruner {spec}: what it keeps does not depend on the weights, so no permutation raises it: leave out "
            f"permute=yes, or take {', '.join(able)}"
        )
    kind.check(**parameters)
    return kind, parameters, permute


def calibration(
    spec: str, piece: Piece, inputs: Inputs | None, permutation_K: torch.Tensor | None = None
) -> torch.Tensor:
    """The calibration inputs (T, K) of a piece's columns; of W's columns in that order, where one is given.

    Raises:
        InputError: there are none, or they are not finite floating-point rows of W's width on its device.
    """
    K, device = piece.source.K, piece.device
    if inputs is None:
        raise InputError(f"pruner {spec} needs calibration inputs (T, {K}), and was given none")
    x_TK = inputs()
    if x_TK.ndim != 2 or x_TK.shape[1] != K or not len(x_TK) or not x_TK.is_floating_point():
        raise InputError(
            f"pruner {spec} needs floating-point calibration inputs (T, {K}), T at least 1; "
            f"got {x_TK.dtype} {tuple(x_TK.shape)}"
        )
    if indexed(x_TK.device) != indexed(device):
        raise InputError(f"pruner {spec} needs calibration inputs on {device}, where W is; got some on {x_TK.device}")
    check_finite(x_TK, "calibration inputs", f"pruner {spec} needs finite ones")
    return x_TK[:, piece.columns] if permutation_K is None else x_TK[:, permutation_K[piece.columns]]
