"""Methods over a kernel that contracts over K alone, as those of GPUs do: what they say ran, what bounds its time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt

from blockshock.machine.collectives import Alone
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure.roofline import Work
from blockshock.methods import METHODS, Layer

__all__ = ["fake_cusparselt"]

N, K, B = 64, 96, 16
X, Y, DENSE = 2 * B * K, 2 * B * N, 2 * N * K
SPARSE = Work(Counter({"2:4": 2 * B * N * K // 2}))
OTHERS = {
    "tile_magnitude": ("cusparselt default algorithm", SPARSE + Work(first_bytes=DENSE * 9 // 16)),
    "magnitude": ("dense, for the mask is not transposable", Work(Counter(dense=2 * B * N * K), DENSE)),
}


def _method(pruner: str, both_ways: bool) -> Any:
    source = GeneratedWeights(N, K, torch.bfloat16, "cpu")
    picks = {"kernel": "cusparselt:search=no", "pruner": pruner}
    method = METHODS.get("pruned")(Layer(source, picks, B, both_ways), Alone())
    y_BN = method(torch.ones(B, K, dtype=torch.bfloat16, requires_grad=both_ways))
    if both_ways:
        y_BN.sum().backward()
    return method


@pytest.mark.usefixtures("fake_cusparselt")
@pytest.mark.parametrize("pruner", OTHERS)
def test_what_goes_backward_is_named_and_bounds_the_time_beside_what_goes_forward(pruner: str) -> None:
    says, other = OTHERS[pruner]
    forward = SPARSE + Work(first_bytes=DENSE * 9 // 16 + X, written_bytes=Y)
    frozen, method = _method(pruner, False), _method(pruner, True)
    assert frozen.algorithm == "cusparselt default algorithm"
    assert method.algorithm == f"cusparselt default algorithm, backward {says}"
    assert frozen.work(B) == method.work(B) == {"products": forward}
    assert method.work(B, backward=True) == {"products": forward + other + Work(first_bytes=Y, written_bytes=X)}
