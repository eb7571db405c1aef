"""What W′ loses against W: by hand, over shares of the output features, and where there is nothing to lose."""

from __future__ import annotations

import math

import pytest
import torch

from blockshock.matrices import GeneratedWeights, MaskedWeights, TensorWeights, build_mask
from blockshock.measure import accuracy
from blockshock.measure.quality import Losing, QualitySums, lost

W_NK = torch.tensor([[3.0, 1.0, 2.0, 4.0], [1.0, -5.0, 2.0, 1.0]])
OWN_NK = torch.tensor([[3.0, 0.0, 0.0, 4.0], [0.0, -5.0, 2.0, 0.0]])


class Own(TensorWeights):
    """Whose zeros stay zeros."""

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return OWN_NK[start:stop]


def test_what_is_lost_is_that_by_hand() -> None:
    x_BK = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 0.0]])
    found = lost(x_BK, TensorWeights(W_NK), Own(OWN_NK), 0, 1).quality()
    errors, outputs = [-3.0, -2.0, -2.0, 0.0], [10.0, -1.0, 2.0, -10.0]
    assert found == {
        "output_error": pytest.approx(math.hypot(*errors) / math.hypot(*outputs)),
        "kept_magnitude": 14 / 19,
        "kept_energy": 54 / 61,
    }


def test_shares_of_the_ranks_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    source, own = (GeneratedWeights(64, 32, torch.float32, "cpu", seed) for seed in (1, 2))
    x_BK = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    whole = lost(x_BK, source, own, 0, 1).quality()
    monkeypatch.setattr(accuracy, "row_blocks", lambda rows, _, **__: [(i, i + 8) for i in range(0, rows, 8)])
    shares = sum((lost(x_BK, source, own, rank, 3) for rank in range(3)), QualitySums()).quality()
    assert shares == {name: pytest.approx(value) for name, value in whole.items()}


def test_of_what_is_all_zeros_no_part_is_lost_or_kept() -> None:
    """0 ÷ 0 would read as perfect: of inputs that vanish in fp16 any W′ is as good as W."""
    assert all(math.isnan(part) for part in QualitySums().quality().values())
    assert math.isnan(QualitySums(error_squared=1.0).quality()["output_error"])
    x_BK = (1e-30 * torch.ones(2, 4)).half()
    found = lost(x_BK, TensorWeights(W_NK), Own(OWN_NK), 0, 1).quality()
    assert math.isnan(found["output_error"])
    assert found["kept_magnitude"] == 14 / 19


@pytest.mark.parametrize("right", ["own", "source", "neither"])
@pytest.mark.parametrize("alike", [True, False])
def test_beside_errors_what_is_lost_is_the_same_to_the_bit(
    right: str, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of it the errors are told from, and whatever each of the two is multiplied by."""
    monkeypatch.setattr(accuracy, "row_blocks", lambda rows, _, **__: [(i, i + 8) for i in range(0, rows, 8)])
    source = GeneratedWeights(64, 32, torch.bfloat16, "cpu", seed=1)
    own = MaskedWeights(source, build_mask("random", source))
    x_BK = torch.randn(8, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    own_x_BK = x_BK if alike else x_BK * 2
    by = {"own": own, "source": source, "neither": GeneratedWeights(64, 32, torch.bfloat16, "cpu", seed=2)}
    for index in range(2):
        losing = Losing(x_BK, source, own, own_x_BK)
        errors = accuracy.compare(x_BK @ source.rows(0, 64).T, own_x_BK, by[right], 2, index, 2, beside=[losing])
        assert losing.sums() == lost(x_BK, source, own, index, 2, own_x_BK)
        assert errors == accuracy.compare(x_BK @ source.rows(0, 64).T, own_x_BK, by[right], 2, index, 2)
