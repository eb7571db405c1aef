"""What pruners leave of MiniLM, on sentences that nothing was calibrated with: its real weights, all of its 36 layers.

Each pruner's model is made once, block by block, of an eighth of the sentences that GPUs calibrate with.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blockshock.models import build_network, compress, likeness, minilm
from blockshock.models.recording import Survey, record
from blockshock.pruning import PRUNERS

CPU = torch.device("cpu")
NETWORK = build_network("minilm")
SENTENCES = 60
ORDER = ("alps", "sparsegpt", "wanda", "magnitude", "random")
"""Of errors, the least first."""
CALIBRATED = [name for name in PRUNERS.names() if PRUNERS.get(name).needs_inputs and not PRUNERS.get(name).transposable]
pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(NETWORK.unavailable(CPU) is not None, reason=f"MiniLM's weights: {minilm.INSTALL}"),
]


@cache
def dense() -> nn.Module:
    return NETWORK.build(torch.float32, CPU, 0)


def embeddings(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(*call) for call in NETWORK.unseen(torch.float32, CPU)])


@cache
def unseen_inputs() -> dict[str, torch.Tensor]:
    """Of each layer, what meets it in the dense model."""
    linears = {name: module for name, module in dense().named_modules() if isinstance(module, nn.Linear)}
    calls = [(call, {}) for call in minilm.together(minilm.sentences_of("unseen"), CPU)]
    return record(dense(), linears, calls, Survey(dense(), calls[0]))


@cache
def found(pruner: str) -> tuple[dict[str, float], dict[str, float]]:
    """Likeness of the embeddings; and of each layer the relative error of its output."""
    model = NETWORK.build(torch.float32, CPU, 0)
    calibration = minilm.together(minilm.sentences_of("calibration")[:SENTENCES], CPU)
    replaced = compress(model, f"pruned-auto-{pruner}", calibration, frozen=True).replaced
    assert len(replaced) == 36
    errors = {}
    for name, x_TK in unseen_inputs().items():
        linear = dense().get_submodule(name)
        with torch.inference_mode():
            right_TN = F.linear(x_TK, linear.weight)
            off_TN = model.get_submodule(name)(x_TK) - linear(x_TK)
        errors[name] = (off_TN.norm() / right_TN.norm()).item()
    return likeness(embeddings(model), embeddings(dense())), errors


@pytest.mark.parametrize(("more", "less"), [*pairwise(reversed(ORDER))])
def test_on_all_layers_the_errors_are_in_the_order_of_the_papers(more: str, less: str) -> None:
    better, worse = found(less)[1], found(more)[1]
    assert len(better) == 36
    assert [name for name in better if not better[name] < worse[name]] == []


def test_the_nearer_its_layers_the_nearer_its_embeddings() -> None:
    for measure in ("cosine", "spearman"):
        values = [found(name)[0][measure] for name in ORDER]
        assert values == sorted(values, reverse=True), measure


@pytest.mark.parametrize("pruner", CALIBRATED)
def test_who_looks_at_inputs_keeps_more_than_magnitude(pruner: str) -> None:
    ours, magnitude = found(pruner)[0], found("magnitude")[0]
    assert all(ours[measure] > magnitude[measure] for measure in ours)


def test_the_best_of_them_keeps_nine_tenths_without_retraining() -> None:
    assert max(found(name)[0]["cosine"] for name in CALIBRATED) >= 0.9
