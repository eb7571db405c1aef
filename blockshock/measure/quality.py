"""What W′ loses against W, for rows that promise no more than to be right for W′."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from blockshock.matrices import MaskedWeights, WeightSource
from blockshock.measure.accuracy import share
from blockshock.measure.exact import Exact


@dataclass
class QualitySums:
    """Sums over the output features that one rank looked at; they add up to the whole."""

    error_squared: float = 0.0
    output_squared: float = 0.0
    kept_magnitude: float = 0.0
    kept_energy: float = 0.0
    magnitude: float = 0.0
    energy: float = 0.0

    def __add__(self, other: QualitySums) -> QualitySums:
        return QualitySums(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def quality(self) -> dict[str, float]:
        """output_error: ‖x W′ᵀ − x Wᵀ‖ / ‖x Wᵀ‖ (Frobenius). kept_magnitude: Σ|w′| / Σ|w|. kept_energy: Σw′² / Σw².

        NaN of what is all zeros, such as the output for inputs that vanish in their dtype: it has no parts to lose.
        """
        return {
            "output_error": math.sqrt(_part(self.error_squared, self.output_squared)),
            "kept_magnitude": _part(self.kept_magnitude, self.magnitude),
            "kept_energy": _part(self.kept_energy, self.energy),
        }


def _part(of: float, whole: float) -> float:
    return of / whole if whole else math.nan


class Losing:
    """Adds up what W′ (own) loses against W (source), block by block, in float64 and without a bias.

    Args:
        own_x_BK: what W′ is multiplied by, where that is not x itself.
    """

    def __init__(
        self, x_BK: torch.Tensor, source: WeightSource, own: WeightSource, own_x_BK: torch.Tensor | None = None
    ) -> None:
        self._source, self._own = source, own
        self._x_BK, self._own_x_BK = x_BK, x_BK if own_x_BK is None else own_x_BK
        self._x64_BK, self._own_x64_BK = self._x_BK.double(), self._own_x_BK.double()
        self._found: list[torch.Tensor] = []

    def add(self, start: int, stop: int, known: Exact | None = None) -> None:
        """Of rows [start, stop).

        Args:
            known: where it is of W or W′, as they are multiplied here, that is not computed again.
        """
        of = known if known and known.is_of(self._source, self._x_BK) else self._exact(start, stop)
        own = known if known and known.is_of(self._own, self._own_x_BK) else self._own_exact(start, stop, of)
        sums = (
            (own.y_BR - of.y_BR).square().sum(),
            of.y_BR.square().sum(),
            *_magnitude_and_energy(own.w_RK),
            *_magnitude_and_energy(of.w_RK),
        )
        self._found.append(torch.stack(sums))

    def _exact(self, start: int, stop: int) -> Exact:
        w_RK = self._source.rows(start, stop).double()
        return Exact(self._source, self._x_BK, w_RK, self._x64_BK @ w_RK.T)

    def _own_exact(self, start: int, stop: int, of: Exact) -> Exact:
        own = self._own
        if isinstance(own, MaskedWeights) and own.source is of.weights:
            w_RK = own.masked(of.w_RK, start)
        else:
            w_RK = own.rows(start, stop).double()
        return Exact(own, self._own_x_BK, w_RK, self._own_x64_BK @ w_RK.T)

    def sums(self) -> QualitySums:
        """Of all blocks; waits for the device."""
        return sum((QualitySums(*found.tolist()) for found in self._found), QualitySums())


def _magnitude_and_energy(w_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ|w| and Σw², reading w and writing nothing of its size."""
    w = w_RK.flatten()
    return torch.linalg.vector_norm(w, 1), w.dot(w)


def lost(
    x_BK: torch.Tensor,
    source: WeightSource,
    own: WeightSource,
    index: int,
    count: int,
    own_x_BK: torch.Tensor | None = None,
) -> QualitySums:
    """What W′ loses against W as of ``Losing``, of a ``share`` of the output features."""
    losing = Losing(x_BK, source, own, own_x_BK)
    for start, stop in share(source, index, count):
        losing.add(start, stop)
    return losing.sums()
