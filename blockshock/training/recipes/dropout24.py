"""Dropout of two of each four activations in a feed-forward block, so that its products are 2:4 while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.kernels.cusparselt_layout import SIDE
from blockshock.kernels.make24 import Making
from blockshock.matrices import transposable_tiles
from blockshock.training.recipes.activation import ACTS
from blockshock.training.recipes.blocks import BLOCK_RECIPES, BlockRecipe, check_choice
from blockshock.training.sparse import bits_of_mask


@BLOCK_RECIPES.register("dropout24")
@dataclass
class Dropout24(BlockRecipe):
    """One of the 90 tiles that are 2:4 both ways, drawn for each 4 × 4 of tokens and features; what stays is doubled.

    Each activation is kept in half of the draws, so that the mean is what is evaluated: all of them. Draws are of
    torch's own generator, as ``nn.Dropout``'s.

    Args:
        act: gelu, relu, or relu2, its square.
    """

    factor = 2.0
    source = "Srivastava et al., JMLR 15 (2014), of groups; tiles: Hubara et al., arXiv 2102.08124"
    act: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("act", self.act, tuple(ACTS))
        self._tiles = transposable_tiles(torch.device("cpu"))

    def thinned(self, z_BH: torch.Tensor, is_training: bool) -> torch.Tensor:
        a_BH = ACTS[self.act](z_BH)
        return self.factor * self._thin(a_BH) if is_training else a_BH

    def thins(self, is_training: bool) -> bool:
        return is_training

    def making(self) -> Making | None:
        return Making("tiles", "given", self.act)

    def given(self, x_BD: torch.Tensor, hidden: int) -> torch.Tensor:
        bits, rows = bits_of_mask(transposable_tiles(x_BD.device).flatten(0, 1)), -(-len(x_BD) // SIDE) * SIDE // 4
        return bits[:, 0][torch.randint(len(bits), (rows, hidden // 4), device=x_BD.device)]

    def _kept(self, x_BH: torch.Tensor) -> torch.Tensor:
        # Compilers do not see that a function keeps what it has made; graphs that are captured take no copy of it.
        is_traced = torch.compiler.is_compiling()
        tiles = self._tiles.to(x_BH.device) if is_traced else transposable_tiles(x_BH.device)
        rows, columns = (size // 4 for size in x_BH.shape)
        draws = torch.randint(len(tiles), (rows, columns), device=x_BH.device)
        return tiles[draws].transpose(1, 2).reshape(4 * rows, 4 * columns)
