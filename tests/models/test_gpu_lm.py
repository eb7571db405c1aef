"""The language model on a GPU: what bf16, formats and pruners lose of it, in bits per byte of all that is held out."""

from __future__ import annotations

import json

import pytest
import torch
from gpus import needs_a_gpu

from blockshock.models import build_network, compress, lm, text

pytestmark = [
    pytest.mark.gpu,
    needs_a_gpu,
    pytest.mark.skipif(not lm.WEIGHTS.is_file(), reason=lm.MISSING),
]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def dense() -> torch.Tensor:
    """Bits of each byte in bf16."""
    network = build_network("lm")
    return network.judged(network.build(torch.bfloat16, GPU, 0), torch.bfloat16, GPU)


def added(row: str, dense: torch.Tensor) -> float:
    network = build_network("lm")
    model = network.build(torch.bfloat16, GPU, 0)
    calls = network.calibration(torch.bfloat16, GPU, 0)
    with torch.inference_mode():
        compress(model, row, calls, lambda name, linear: network.is_meant(name, "blocks"), frozen=True)
    return network.likeness(network.judged(model, torch.bfloat16, GPU), dense)["added_bits_per_byte"]


def test_in_bf16_it_needs_the_bits_that_its_record_says(dense: torch.Tensor) -> None:
    about = json.loads(lm.WEIGHTS.with_suffix(".json").read_text())
    assert len(dense) > 0.98 * text.about_texts()["files"][text.HELD_OUT]["bytes"], "all but the end"
    assert dense.mean().item() == pytest.approx(about["held_out_bits_per_byte"], abs=0.02)


def test_a_format_of_8_bits_loses_next_to_nothing(dense: torch.Tensor) -> None:
    assert abs(added("dense_single-int8", dense)) < 0.02


def test_pruners_lose_in_the_order_of_their_papers(dense: torch.Tensor) -> None:
    losses = [added(f"pruned-auto-{name}", dense) for name in ("sparsegpt", "wanda", "magnitude", "random")]
    assert losses == sorted(losses)
    assert losses[-1] > 2 * losses[0]
