"""torch users' own path for a pruned layer: right on a GPU, eager, compiled and captured; elsewhere it says why not."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gpus import needs_a_gpu

from blockshock.machine import torch_internals
from blockshock.machine.collectives import Alone
from blockshock.measure import timing
from blockshock.measure.accuracy import Accuracy, compare
from blockshock.measure.roofline import Work
from blockshock.methods import METHODS, Layer, Promise, Role, Span
from blockshock.phases.case import Case, obstacle
from blockshock.phases.hypotheses import best_of
from blockshock.ranks import Ranks

CASE = Case("torch_semi_structured", {"pruner": "magnitude"}, "gaussian", 512, 768, 16, "bf16")
TRAINED = replace(CASE, optimizer="sgd")


def test_it_is_an_alternative_and_no_dense_one() -> None:
    kind = METHODS.get("torch_semi_structured")
    assert (kind.role, kind.promise, kind.span) == (Role.RIVAL, Promise.OWN_WEIGHTS, Span.ONE)
    assert "torch_semi_structured" not in best_of().names()
    assert best_of(promise=Promise.OWN_WEIGHTS).names() == ("torch_semi_structured",)


def test_where_it_cannot_run_it_says_so(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(obstacle, CASE) == ["torch_semi_structured: needs a cuda device, this is cpu"] * 2
    forward_only = "torch_semi_structured: torch packs W′ for the forward pass alone"
    assert cpu_ranks.run(obstacle, CASE, True) == cpu_ranks.run(obstacle, TRAINED) == [forward_only] * 2


def test_its_limit_is_of_the_values_that_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two of four elements and their positions, in a tensor of torch's that needs a GPU."""

    def packed(w_NK: torch.Tensor) -> SimpleNamespace:
        kept_NJ, positions = w_NK[:, : 768 // 2].clone(), w_NK[:, : 768 // 16].clone()
        return SimpleNamespace(packed=kept_NJ, meta=positions, packed_t=None, meta_t=None)

    monkeypatch.setattr(torch_internals, "semi_structured", packed)
    method = METHODS.get("torch_semi_structured")(CASE.layer(torch.device("cpu")), Alone())
    x, y, dense = 2 * 16 * 768, 2 * 16 * 512, 512 * 768
    kept = Work(Counter({"2:4": 2 * 16 * dense // 2}), dense + dense // 8 + x, 0, y)
    assert method.work(16) == {"products": kept}


FIRST = """
import sys
import torch
from blockshock.machine import torch_internals
kind = torch.sparse.SparseSemiStructuredTensorCUTLASS
parts = torch.zeros(64, 32), torch.zeros(64, 4), None, None, None
torch.sparse.to_sparse_semi_structured = lambda w_NK: kind(w_NK.shape, *parts)  # which needs a GPU
for made in (torch_internals.semi_structured(torch.zeros(64, 64)), kind((64, 64), *parts)):
    assert made.shape == (64, 64) and torch.ops.aten.linear in made.SPARSE_DISPATCH
print("torch._dynamo" in sys.modules)
"""


def test_the_first_one_imports_no_compiler_and_warns_of_nothing() -> None:
    started = [sys.executable, "-W", "error", "-c", FIRST]
    assert subprocess.run(started, capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("spec", ["torch_semi_structured", "torch_semi_structured:compiled=yes"])
@pytest.mark.parametrize(("workload", "N", "K"), [("gaussian", 512, 768), ("recorded", 1536, 384)])
def test_it_is_right_eager_and_captured(spec: str, dtype: str, workload: str, N: int, K: int) -> None:
    """With a bias, too, which the recorded layer has."""
    device = torch.device("cuda")
    case = replace(CASE, method=spec, dtype=dtype, workload=workload, N=N, K=K)
    layer: Layer = case.layer(device)
    kind, parameters = METHODS.resolve(spec, skip=2)
    with torch.inference_mode():
        method = kind(layer, Alone(), **parameters)
        right = method.reference(layer, 1)
        for B in (1, 7, 16, 100):
            x_BK = torch.randn(B, K, device=device, generator=torch.Generator(device).manual_seed(B))
            x_BK = x_BK.to(case.torch_dtype)
            y_BN = method(x_BK)
            assert y_BN.is_contiguous()
            errors = compare(y_BN, x_BK, right, method.roundings, 0, 1)
            assert Accuracy.of(errors, method.roundings).failure() is None, B
        protocol = timing.Protocol("cuda_graph", rounds=3, warmup=1)
        assert len(timing.time_call(lambda: method(x_BK), device, protocol)) == 3
    estimate = kind.estimate(case.shape(1))
    held = method.weight_bytes() - (0 if layer.source.bias is None else layer.source.bias.nbytes)
    assert held == pytest.approx(estimate.steady, rel=0.01)
