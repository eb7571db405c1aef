"""What pruners leave of MiniLM, on sentences that nothing was calibrated with: its real weights, all of its 36 layers.

Each pruner's model is made once, block by block, of an eighth of the sentences that GPUs calibrate with.
"""

from __future__ import annotations

import copy
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
SENTENCES, FEW, ALL = 60, 2, 6
ORDER = ("alps", "sparsegpt", "wanda", "magnitude", "random")
"""Of errors, the least first."""
CALIBRATED = [name for name in PRUNERS.names() if PRUNERS.get(name).needs_inputs and not PRUNERS.get(name).transposable]
QUICK = [name for name in CALIBRATED if not PRUNERS.get(name).slow]
pytestmark = [
    pytest.mark.models,
    pytest.mark.reliability,
    pytest.mark.skipif(NETWORK.unavailable(CPU) is not None, reason=f"MiniLM's weights: {minilm.INSTALL}"),
]


@cache
def dense() -> nn.Module:
    return NETWORK.build(torch.float32, CPU, 0)


def embeddings(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(*call) for call in NETWORK.unseen(torch.float32, CPU)])


@cache
def dense_embeddings() -> torch.Tensor:
    return embeddings(dense())


@cache
def unseen_inputs() -> dict[str, torch.Tensor]:
    """Of each layer, what meets it in the dense model."""
    linears = {name: module for name, module in dense().named_modules() if isinstance(module, nn.Linear)}
    calls = [(call, {}) for call in minilm.together(minilm.sentences_of("unseen"), CPU)]
    return record(dense(), linears, calls, Survey(dense(), calls))


@cache
def found(pruner: str, blocks: int) -> tuple[dict[str, float], dict[str, float]]:
    """Likeness of the embeddings; and of each layer of the first blocks the relative error of its output."""
    model = copy.deepcopy(dense())
    calibration = minilm.together(minilm.sentences_of("calibration")[:SENTENCES], CPU)
    names = [name for name in unseen_inputs() if int(name.split(".")[1]) < blocks]
    where = lambda name, linear: name in names  # noqa: E731
    replaced = compress(model, f"pruned-auto-{pruner}", calibration, where, frozen=True).replaced
    assert len(replaced) == 6 * blocks
    errors = {}
    for name in names:
        x_TK = unseen_inputs()[name]
        linear = dense().get_submodule(name)
        with torch.inference_mode():
            right_TN = F.linear(x_TK, linear.weight)
            off_TN = model.get_submodule(name)(x_TK) - linear(x_TK)
        errors[name] = (off_TN.norm() / right_TN.norm()).item()
    return likeness(embeddings(model), dense_embeddings()), errors


@pytest.mark.parametrize(("more", "less"), [*pairwise(reversed(ORDER))])
def test_on_all_layers_the_errors_are_in_the_order_of_the_papers(more: str, less: str, soak: bool) -> None:
    """All in the long form; in the short one those of two blocks, and of one by what is slow."""
    blocks = ALL if soak else 1 if PRUNERS.get(less).slow else FEW
    # What comes of a block does not depend on how many are pruned after it.
    better, worse = found(less, blocks)[1], found(more, max(blocks, FEW))[1]
    assert len(better) == 6 * blocks
    assert [name for name in better if not better[name] < worse[name]] == []


def test_the_nearer_its_layers_the_nearer_its_embeddings(soak: bool) -> None:
    for measure in ("cosine", "spearman"):
        quick = [name for name in ORDER if not PRUNERS.get(name).slow]
        values = [found(name, ALL if soak else FEW)[0][measure] for name in (ORDER if soak else quick)]
        assert values == sorted(values, reverse=True), measure


@pytest.mark.parametrize("pruner", QUICK)
def test_who_looks_at_inputs_keeps_more_than_magnitude(pruner: str, soak: bool) -> None:
    blocks = ALL if soak else FEW
    ours, magnitude = found(pruner, blocks)[0], found("magnitude", blocks)[0]
    assert all(ours[measure] > magnitude[measure] for measure in ours)


def test_the_best_of_them_keeps_nine_tenths_without_retraining(soak: bool) -> None:
    if not soak:
        pytest.skip("prunes all layers by every pruner, a minute: run it with --soak")
    assert max(found(name, ALL)[0]["cosine"] for name in CALIBRATED) >= 0.9
