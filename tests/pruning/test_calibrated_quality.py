"""What pruners lose on tokens that they did not see: of a real layer, and where there is nothing to learn of tokens."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from calibrated import output_lost, some_weights

from blockshock.matrices import Piece, build_workload
from blockshock.measure import lost
from blockshock.pruning import prune

CPU = torch.device("cpu")


@pytest.mark.parametrize(("N", "K"), [(1536, 384), (384, 1536)])
def test_the_order_of_errors_on_unseen_tokens_of_the_recorded_layer(N: int, K: int) -> None:
    """Pruned by the last 128 of its tokens, judged by the first 384."""
    workload = build_workload("recorded")
    source = workload.weights(N, K, torch.float32, CPU, 0)
    x_BK = workload.inputs(384, K, torch.float32, CPU, 0, N)
    inputs = partial(workload.calibration, 1024, K, torch.float32, CPU, 0, N, len(x_BK))

    def error(name: str) -> float:
        return lost(x_BK, source, prune(name, Piece(source), inputs), 0, 1).quality()["output_error"]

    found = {name: error(name) for name in ("alps", "sparsegpt", "wanda", "magnitude", "random")}
    assert list(found.values()) == sorted(found.values()), found
    assert found["alps"] < 0.96 * found["sparsegpt"] < 0.96 * 0.96 * found["wanda"], found
    assert found["sparsegpt"] < error("ria") < found["magnitude"], "on either side of wanda"
    assert error("tile_sparsegpt") < error("tile_wanda") < error("tile_magnitude")
    assert error("sparsegpt:shrink=no") > found["wanda"], "what goes together in 128 tokens is chance for the most part"


def test_of_channels_that_do_not_go_together_it_learns_nothing() -> None:
    """Of white noise H is I, and whoever believes in what 64 tokens have in common makes it worse."""
    piece, stream = some_weights(64, 256), torch.Generator().manual_seed(0)
    x_TK, unseen_TK = (torch.randn(T, 256, dtype=torch.float64, generator=stream) for T in (64, 2000))
    found = {
        name: output_lost(prune(name, piece, lambda: x_TK), piece, unseen_TK)
        for name in ("magnitude", "sparsegpt", "alps", "sparsegpt:shrink=no", "alps:shrink=no")
    }
    assert found["sparsegpt"] == pytest.approx(found["magnitude"], rel=0.03)
    assert found["alps"] == pytest.approx(found["magnitude"], rel=0.03)
    assert found["sparsegpt:shrink=no"] > 1.2 * found["magnitude"]
    assert found["alps:shrink=no"] > 1.2 * found["magnitude"]


def test_of_many_tokens_hardly_anything_is_chance() -> None:
    """There the paper's own and ours are one."""
    piece, stream = some_weights(64, 64), torch.Generator().manual_seed(0)
    mixing_KK = torch.randn(64, 64, dtype=torch.float64, generator=stream)
    x_TK = torch.randn(4096, 64, dtype=torch.float64, generator=stream) @ mixing_KK
    for name in ("sparsegpt", "alps"):
        ours, theirs = (
            output_lost(prune(f"{name}{rest}", piece, lambda: x_TK), piece, x_TK) for rest in ("", ":shrink=no")
        )
        assert ours == pytest.approx(theirs, rel=0.02), name
