"""Which blocks of W are kept: so large a share, of the largest score. A score is one class registered in BLOCK_SCORES,
a way to choose by scores one in BLOCK_MASKS; nothing else needs to know of it.

Block sparsity with one score a block is that of SuperBlock (pytorch/ao, 2024), which learns the scores; here they are
computed of W.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from blockshock.errors import InputError
from blockshock.matrices import (
    BlockMask,
    Mask,
    Piece,
    WeightSource,
    build_mask,
    check_level,
    check_size_of_blocks,
    count_kept,
    generator,
    in_blocks,
    row_blocks,
    two_largest,
    why_not_blocks,
)
from blockshock.pruning.base import Inputs, calibration
from blockshock.registry import Registry


class BlockScore:
    """What says how much a block is worth: the sum of what its elements are.

    Attributes:
        needs_inputs: it looks at calibration inputs; they are None for all others.

    Args:
        x_TK: calibration inputs (T, K).
    """

    needs_inputs: ClassVar[bool] = False

    def __init__(self, x_TK: torch.Tensor | None) -> None:
        self.x_TK = x_TK

    def elements(self, w_RK: torch.Tensor) -> torch.Tensor:
        """Of rows of W in float64: (R, K), in float64."""
        raise NotImplementedError(f"{type(self).__name__} has no elements(w_RK)")

    def blocks(self, source: WeightSource, size: int) -> torch.Tensor:
        """Of all blocks: float64 (N/size, K/size), larger for what is worth more."""
        found = [
            in_blocks(self.elements(source.rows(start, stop).double()), size).sum((-2, -1))
            for start, stop in row_blocks(source.N, source.K * 8, multiple=size)
        ]
        return torch.cat(found)


BLOCK_SCORES: Registry[type[BlockScore]] = Registry("block score")


@BLOCK_SCORES.register("magnitude")
class Magnitude(BlockScore):
    """Σ|w|."""

    def elements(self, w_RK: torch.Tensor) -> torch.Tensor:
        return w_RK.abs()


@BLOCK_SCORES.register("norm")
class Norm(BlockScore):
    """Σw²: the order is that of Frobenius norms."""

    def elements(self, w_RK: torch.Tensor) -> torch.Tensor:
        return w_RK.square()


@BLOCK_SCORES.register("random")
class RandomScore(BlockScore):
    """Drawn from the seed of W: what any score should beat."""

    def blocks(self, source: WeightSource, size: int) -> torch.Tensor:
        stream = generator(source.device, source.seed, 9, size)
        shape = source.N // size, source.K // size
        return torch.rand(shape, dtype=torch.float64, device=source.device, generator=stream)


@BLOCK_SCORES.register("score")
class WeightTimesInput(BlockScore):
    """Σ|w_nk|·‖x_k‖₂, the norm over all calibration tokens: Wanda's score (Sun et al., arXiv 2306.11695), by block."""

    needs_inputs = True

    def __init__(self, x_TK: torch.Tensor | None) -> None:
        super().__init__(x_TK)
        assert x_TK is not None
        self._norm_K = x_TK.double().norm(dim=0)

    def elements(self, w_RK: torch.Tensor) -> torch.Tensor:
        return w_RK.abs() * self._norm_K


class BlockChoice:
    """How blocks are chosen. What its ``__init__`` takes is the user's to set: ``blocks:size=32:level=0.8``.

    Attributes:
        across: the blocks beside each other come in groups of so many.
        size: of a block.
        scores: what they are chosen by.
        inside: spec of a 2:4 mask of what is kept of a block; None for all of it.
    """

    across: ClassVar[int] = 1

    def __init__(self, size: int, by: str, inside: str | int) -> None:
        check_size_of_blocks(size)
        self.size, self.scores = size, BLOCK_SCORES.get(str(by))
        # A spec's 0011 is read as a number.
        self.inside = str(inside).zfill(4) if inside != "" else None

    def unsuitable(self, N: int, K: int) -> str | None:
        """None, or one sentence that says why it cannot take that shape."""
        return why_not_blocks(N, K, self.size, self.across)

    def count(self, N: int, K: int) -> int:
        """How many blocks are kept of an (N, K) matrix."""
        raise NotImplementedError(f"{type(self).__name__} has no count(N, K)")

    def kept(self, scores_RC: torch.Tensor) -> torch.Tensor:
        """Of scores of all blocks those that are kept, boolean."""
        raise NotImplementedError(f"{type(self).__name__} has no kept(scores_RC)")

    def mask(self, source: WeightSource, x_TK: torch.Tensor | None) -> BlockMask:
        """The mask of these weights. Raises InputError where it cannot take their shape."""
        if reason := self.unsuitable(source.N, source.K):
            raise InputError(reason)
        inside: Mask | None = None if self.inside is None else build_mask(self.inside, source)
        return BlockMask(self.kept(self.scores(x_TK).blocks(source, self.size)), self.size, inside)


BLOCK_MASKS: Registry[type[BlockChoice]] = Registry("block mask")


@BLOCK_MASKS.register("blocks")
class Blocks(BlockChoice):
    """Of all blocks of W a share of 1 − level, those of the largest score; among equals the first stay.

    Args:
        size: rows, and columns, of a block.
        level: share of blocks that are dropped, from 0 up to below 1.
        by: the score.
        inside: the 2:4 mask of what is kept of a block, as ``1100``.
    """

    def __init__(self, size: int = 64, level: float = 0.9, by: str = "magnitude", inside: str = "") -> None:
        super().__init__(size, by, inside)
        check_level(level)
        self.level = level

    def count(self, N: int, K: int) -> int:
        return count_kept(N // self.size * (K // self.size), self.level)

    def kept(self, scores_RC: torch.Tensor) -> torch.Tensor:
        order = scores_RC.flatten().argsort(descending=True, stable=True)
        kept = torch.zeros(scores_RC.numel(), dtype=torch.bool, device=scores_RC.device)
        kept[order[: count_kept(scores_RC.numel(), self.level)]] = True
        return kept.view(scores_RC.shape)


@BLOCK_MASKS.register("blocks_24")
class Blocks24(BlockChoice):
    """2:4 by blocks: of each four beside each other the two of the largest score.

    Args:
        size, by, inside: as of ``blocks``.
    """

    across = 4

    def __init__(self, size: int = 64, by: str = "magnitude", inside: str = "") -> None:
        super().__init__(size, by, inside)

    def count(self, N: int, K: int) -> int:
        return N // self.size * (K // self.size) // 2

    def kept(self, scores_RC: torch.Tensor) -> torch.Tensor:
        return two_largest(scores_RC)


def block_choice(spec: str) -> BlockChoice:
    """What a spec such as ``blocks:size=32:level=0.8:by=score`` names.

    Raises:
        UnknownName, InputError: there is none of that name, or it takes no such parameter, or not such a value.
    """
    kind, parameters = BLOCK_MASKS.resolve(spec)
    return kind(**parameters)


def block_mask(spec: str, source: WeightSource, inputs: Inputs | None = None) -> BlockMask:
    """The blocks of W that a spec keeps.

    Raises:
        UnknownName, InputError: as of ``block_choice``; the blocks do not divide W; it needs inputs and there are
            none, or not (T, K) ones.
    """
    choice = block_choice(spec)
    x_TK = calibration(spec, Piece(source), inputs) if choice.scores.needs_inputs else None
    return choice.mask(source, x_TK)
