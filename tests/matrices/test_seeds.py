"""What a seed means: the same weights, bias, masks and inputs in every version, so that saved runs can be repeated."""

from __future__ import annotations

import pytest
import torch

from blockshock.matrices import GeneratedWeights, build_mask, build_workload
from blockshock.matrices.blocks_of_rows import BLOCK_ROWS, generator

pytestmark = pytest.mark.masks

CPU = torch.device("cpu")
N, K, SEED = BLOCK_ROWS + 4, 8, 3


def rounded(values: torch.Tensor) -> list[float]:
    """To what every processor draws alike."""
    return [round(value, 2) for value in values.tolist()]


@pytest.fixture
def source() -> GeneratedWeights:
    return GeneratedWeights(N, K, torch.float32, CPU, SEED, with_bias=True)


def test_a_key_is_the_same_stream_as_ever() -> None:
    streams = [generator(CPU, *key).initial_seed() for key in ((0,), (3, 0), (3, 1, 2))]
    assert streams == [7070836379803831727, 4381436861485254807, 120165839918338250]


def test_a_seed_is_the_same_weights_and_bias(source: GeneratedWeights) -> None:
    assert rounded(source.rows(0, 1)[0, :4]) == [-0.52, -0.06, 0.47, 0.69]
    assert rounded(source.rows(BLOCK_ROWS, BLOCK_ROWS + 1)[0, :4]) == [0.19, 0.04, 0.03, -0.15]
    assert source.bias is not None
    assert rounded(source.bias[:4]) == [0.82, -0.48, -1.29, -0.64]


@pytest.mark.parametrize(
    ("name", "first", "later"),
    [
        ("random", ["11000101", "10100101", "11001001", "10101001"], "01100011"),
        ("tile_random", ["10100101", "01011001", "11000110", "00111010"], "10010011"),
    ],
)
def test_a_seed_is_the_same_masks(name: str, first: list[str], later: str, source: GeneratedWeights) -> None:
    mask = build_mask(name, source)
    found = torch.cat([mask.rows(0, 4), mask.rows(BLOCK_ROWS, BLOCK_ROWS + 1)]).int().tolist()
    assert ["".join(map(str, row)) for row in found] == [*first, later]


def test_a_seed_is_the_same_inputs() -> None:
    assert rounded(build_workload("gaussian").inputs(1, 4, torch.float32, CPU, SEED, 8)[0]) == [1.93, 1.05, -0.07, 0.02]
