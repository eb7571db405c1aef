"""Ŵ: the weights that a quantised row is right for."""

from __future__ import annotations

import torch

from blockshock.kernels.formats.base import Format
from blockshock.matrices import WeightSource


class QuantisedWeights(WeightSource):
    """Of another source's rows what a format holds of them, in float64, which holds it exactly. Made by rows."""

    def __init__(self, source: WeightSource, format: Format) -> None:
        bias = None if source.bias is None else source.bias.double()
        super().__init__(source.N, source.K, torch.float64, source.device, source.seed, bias)
        self._source, self._format, self.mask = source, format, source.mask

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._format.weights.represented(self._source.rows(start, stop))
