"""Packings as cuSPARSELt has them, beside two that the library itself made on an H100 (cuSPARSELt 0.8.0, float16)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockshock.errors import InputError
from blockshock.kernels.cusparselt_layout import dense_of, packed_as
from blockshock.matrices import GeneratedWeights, random_mask

MADE_BY_THE_LIBRARY = Path(__file__).parent / "data" / "cusparselt_packings.safetensors"


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_the_library_packs_the_same_bits(name: str) -> None:
    held = load_file(MADE_BY_THE_LIBRARY)
    w_RC, packed = held[f"{name}_dense"].half(), held[f"{name}_packed"]
    assert torch.equal(packed_as(w_RC, w_RC != 0), packed)
    assert torch.equal(dense_of(packed, w_RC.shape[1]), w_RC)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_packed_is_what_the_mask_keeps(dtype: torch.dtype) -> None:
    source = GeneratedWeights(192, 128, dtype, "cpu")
    mask = random_mask(source).dense()
    found = dense_of(packed_as(source.rows(0, 192), mask), 128)
    assert torch.equal(found, source.rows(0, 192).where(mask, 0))


def test_a_place_that_is_wrong_shows() -> None:
    w_RC = load_file(MADE_BY_THE_LIBRARY)["wide_dense"].half()
    packed = packed_as(w_RC, w_RC != 0)
    packed.view(torch.int16)[-1, -1] ^= 0b0101  # the places of two groups, each one further on
    assert not torch.equal(dense_of(packed, 128), w_RC)


def test_what_is_not_known_is_refused() -> None:
    for shape in ((32, 64), (64, 96), (64,)):
        with pytest.raises(InputError, match="multiples of 64"):
            packed_as(torch.zeros(shape, dtype=torch.float16), torch.zeros(shape, dtype=torch.bool))
    with pytest.raises(InputError, match=r"torch\.float32"):
        packed_as(torch.zeros(64, 64), torch.zeros(64, 64, dtype=torch.bool))
