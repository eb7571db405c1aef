"""What W′ loses against W, for rows that promise no more than to be right for W′."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from blockshock.matrices import WeightSource
from blockshock.measure.accuracy import ratio, share


@dataclass
class QualitySums:
    """Sums over the output features that one rank looked at; they add up to the whole."""

    error_squared: float = 0.0
    output_squared: float = 0.0
    kept_magnitude: float = 0.0
    magnitude: float = 0.0
    kept_energy: float = 0.0
    energy: float = 0.0

    def __add__(self, other: QualitySums) -> QualitySums:
        return QualitySums(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def quality(self) -> dict[str, float]:
        """output_error: ‖x W′ᵀ − x Wᵀ‖ / ‖x Wᵀ‖ (Frobenius). kept_magnitude: Σ|w′| / Σ|w|. kept_energy: Σw′² / Σw²."""
        return {
            "output_error": math.sqrt(ratio(self.error_squared, self.output_squared)),
            "kept_magnitude": ratio(self.kept_magnitude, self.magnitude),
            "kept_energy": ratio(self.kept_energy, self.energy),
        }


def lost(
    x_BK: torch.Tensor,
    source: WeightSource,
    own: WeightSource,
    index: int,
    count: int,
    own_x_BK: torch.Tensor | None = None,
) -> QualitySums:
    """What W′ (own) loses against W (source), in float64 and without a bias, of a ``share`` of the output features.

    Args:
        own_x_BK: what W′ is multiplied by, where that is not x itself.
    """
    x64_BK, sums = x_BK.double(), QualitySums()
    own64_BK = x64_BK if own_x_BK is None else own_x_BK.double()
    for start, stop in share(source, index, count):
        w_RK, own_RK = (weights.rows(start, stop).double() for weights in (source, own))
        exact_BR = x64_BK @ w_RK.T
        sums += QualitySums(
            error_squared=(own64_BK @ own_RK.T - exact_BR).square().sum().item(),
            output_squared=exact_BR.square().sum().item(),
            kept_magnitude=own_RK.abs().sum().item(),
            magnitude=w_RK.abs().sum().item(),
            kept_energy=own_RK.square().sum().item(),
            energy=w_RK.square().sum().item(),
        )
    return sums
