"""Rows whose pruner permutes the input channels: right forward and backward, trained, saved; and what they copy."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from gpus import needs_a_gpu
from learning import linear_of, optimizer_of, train, x_of
from torch import nn

import blockshock
from blockshock import MethodLinear
from blockshock.errors import MaskError
from blockshock.machine.collectives import Alone
from blockshock.matrices import saved_mask
from blockshock.matrices.weights import TensorWeights
from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.measure.quality import QualitySums
from blockshock.methods import METHODS, Layer, permuted
from blockshock.methods.whole import Spread
from blockshock.phases import backward, correctness, drift, trajectory
from blockshock.phases.case import Case, build
from blockshock.pruning import permutation
from blockshock.ranks import Ranks
from blockshock.stages import recording

pytestmark = pytest.mark.correctness
PICKED = {"kernel": "reference", "pruner": "magnitude:permute=yes"}
CASE = Case("pruned", PICKED, "gaussian", 64, 96, 8, "bf16")
METHODS_OF_IT = ("pruned", "pruned_dense", "pruned_tp_row", "pruned_tp_col")
Fault = Callable[[pytest.MonkeyPatch], None]


@contextmanager
def _patched(fault: Fault | None = None) -> Iterator[None]:
    """A short search, and a fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "ROUNDS", (6, 6))
        if fault is not None:
            fault(patch)
        yield


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "ROUNDS", (6, 6))


def _x_in_its_own_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(permuted.Order, "take", lambda self, x_BK: x_BK[:, : len(self.channels_S)])


def _grad_in_another_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(permuted.Order, "undo", lambda self, grad_BK: grad_BK)


def _grad_permuted_once_more(patch: pytest.MonkeyPatch) -> None:
    """By the permutation, not by its inverse."""
    patch.setattr(permuted, "inverse", lambda order_K: order_K)


def _w_in_another_order(patch: pytest.MonkeyPatch) -> None:
    """What is trained is said to be W as it lies."""
    patch.setattr(Spread, "channels", property(lambda self: self.columns))


def _forward(case: Case, fault: Fault | None = None) -> correctness.CorrectnessResult:
    with _patched(fault):
        return correctness.run(case)


def _backward(case: Case, fault: Fault | None = None) -> ErrorSums:
    with _patched(fault):
        return backward.check(case).errors["mse_zero"]


def _trajectory(case: Case, fault: Fault | None = None) -> str | None:
    with _patched(fault):
        return trajectory.run(case, steps=20).failure()


def _drift(case: Case) -> str | None:
    with _patched():
        return drift.run(replace(case, N=96), steps=4).failure()


def _wrong(sums: list[ErrorSums], roundings: int = 1) -> str | None:
    return Accuracy.of(sum(sums, ErrorSums()), roundings).failure()


def _of(method: str) -> Case:
    return CASE.of(method, METHODS.get(method).axes)


def test_every_one_is_right_both_ways(cpu_ranks: Ranks) -> None:
    for method in METHODS_OF_IT:
        results = cpu_ranks.run(_forward, _of(method))
        assert _wrong([result.errors for result in results], results[0].roundings) is None, method
        assert all(result.same_again and result.same_on_ranks for result in results), method
        lost = sum((result.lost for result in results if result.lost is not None), QualitySums()).quality()
        plain = cpu_ranks.run(_forward, _of(method).picking(pruner="magnitude"))
        before = sum((result.lost for result in plain if result.lost is not None), QualitySums()).quality()
        assert lost["kept_magnitude"] > before["kept_magnitude"], method
        assert _wrong(cpu_ranks.run(_backward, _of(method)), results[0].roundings) is None, method


def test_each_fault_is_found(cpu_ranks: Ranks) -> None:
    for method in ("pruned", "pruned_tp_row", "pruned_tp_col"):
        results = cpu_ranks.run(_forward, _of(method), _x_in_its_own_order)
        assert _wrong([result.errors for result in results], results[0].roundings), method
        for fault in (_grad_in_another_order, _grad_permuted_once_more):
            assert _wrong(cpu_ranks.run(_backward, _of(method), fault), 2), (method, fault.__name__)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_it_trains_as_its_own_w_under_its_mask(storage: str, cpu_ranks: Ranks) -> None:
    for method in ("pruned", "pruned_tp_row", "pruned_tp_col"):
        case = replace(CASE, dtype="fp32", optimizer="momentum").picking(storage=storage)
        case = case.of(method, METHODS.get(method).axes)
        assert cpu_ranks.run(_trajectory, case) == [None, None], method
        assert all("W is" in (found or "") for found in cpu_ranks.run(_trajectory, case, _w_in_another_order)), method
    assert cpu_ranks.run(_drift, CASE) == [None, None]


def _held(cases: list[Case]) -> list[tuple[int, int]]:
    with _patched():
        built = [build(case, backward=True) for case in cases]
        return [(one.method.weight_bytes(), one.estimate.steady) for one in built]


def test_what_is_held_is_what_was_estimated(cpu_ranks: Ranks) -> None:
    for held, estimated in cpu_ranks.run(_held, [_of(method) for method in METHODS_OF_IT])[0]:
        assert held == pytest.approx(estimated, rel=0.005)
    large = replace(_of("pruned"), N=16384, K=16384)
    estimate, plain = (large.picking(pruner=spec).estimate(1) for spec in (PICKED["pruner"], "magnitude"))
    assert estimate.building >= permutation.SEARCH_BYTES * large.N * large.K > plain.building


# In a model -----------------------------------------------------------------------------------------------------------

ROWS = (
    "pruned-reference-magnitude:permute=yes",
    "pruned-auto:search=no-tile_magnitude:permute=yes",
    "pruned_dense-wanda:permute=yes",
    "pruned_tp_row-reference-magnitude:permute=yes-masked",
    "pruned_tp_col-reference-magnitude:permute=yes",
)
X = x_of(5, 40, 64) * torch.linspace(0.1, 2, 64)


def _layer(row: str, seed: int = 0) -> MethodLinear:
    return MethodLinear(linear_of(slice(4, 12), seed), row, inputs=X)


def _is_its_w_prime(row: str) -> None:
    """In W's own order: its weight, its gradients, and what it becomes in training."""
    with _patched():
        linear, layer = linear_of(slice(4, 12)), _layer(row)
    assert layer.mask is not None
    kept = layer.mask.dense()
    assert torch.equal(kept[:, layer.mask.permutation].unflatten(1, (-1, 4)).sum(-1), torch.full((48, 16), 2))
    dense = layer.to_linear()
    assert torch.equal(dense.weight, linear.weight * kept)
    dense.weight.register_hook(lambda grad: grad * kept)
    found, right = (x_of().requires_grad_() for _ in range(2))
    for trained, x in ((layer, found), (dense, right)):
        trained(x).square().sum().backward()
        trained.zero_grad()
        train(trained, optimizer_of(trained), 3)
    torch.testing.assert_close(found.grad, right.grad)
    torch.testing.assert_close(layer.to_linear().weight, dense.weight)
    assert torch.equal(layer.weight, layer.to_linear().weight)
    torch.testing.assert_close(layer(x_of()), dense(x_of()))
    layer.check()


def _all_are() -> None:
    for row in ROWS:
        _is_its_w_prime(row)


@pytest.mark.parametrize("row", ROWS)
def test_a_layer_is_its_w_prime(row: str) -> None:
    _is_its_w_prime(row)


def test_so_it_is_on_two_ranks(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_all_are)


def _saved(row: str) -> bytes:
    with _patched():
        layer = _layer(row)
    optimizer, file = optimizer_of(layer), io.BytesIO()
    train(layer, optimizer, 2)
    torch.save({"model": layer.state_dict(), "optimizer": blockshock.optimizer_state(layer, optimizer)}, file)
    return file.getvalue()


def _resumed(file: bytes, row: str) -> torch.Tensor:
    """W′ after two more steps of a layer of other weights, permuted otherwise or not at all."""
    saved = torch.load(io.BytesIO(file), weights_only=True)
    with _patched():
        layer = _layer(row, 9)
    optimizer = optimizer_of(layer)
    train(layer, optimizer, 1)
    layer.load_state_dict(saved["model"])
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in saved["model"].items())
    blockshock.load_optimizer_state(layer, optimizer, saved["optimizer"])
    train(layer, optimizer, 2, first=2)
    layer.check()
    return layer.to_linear().weight.detach()


def test_a_state_goes_on_on_other_ranks_and_in_another_order(cpu_ranks: Ranks) -> None:
    for row in ROWS:
        layer = _layer(row)
        train(layer, optimizer_of(layer), 4)
        plain = row.replace(":permute=yes", "")
        file = _saved(row)
        assert len(torch.load(io.BytesIO(file), weights_only=True)["model"]["permutation"]) == 64
        for weight in (_resumed(file, row), _resumed(file, plain), *cpu_ranks.run(_resumed, file, row)):
            torch.testing.assert_close(weight, layer.to_linear().weight.detach())
        back = _resumed(_saved(plain), row)  # one that was never permuted
        other = _layer(plain)
        train(other, optimizer_of(other), 4)
        torch.testing.assert_close(back, other.to_linear().weight.detach())


def test_a_state_that_lost_its_permutation_is_refused() -> None:
    layer = _layer(ROWS[0])
    state, weight = layer.state_dict(), layer.to_linear().weight
    for change, says in (
        (lambda state: state.pop("permutation"), "which the mask drops"),
        (lambda state: state.update(permutation=torch.zeros(64).long()), "not a permutation"),
        (lambda state: state.update(permutation=state["permutation"][:8]), r"int64 \(64,\)"),
    ):
        changed = dict(state)
        change(changed)
        with pytest.raises(RuntimeError, match=says):
            layer.load_state_dict(changed)
        assert torch.equal(layer.to_linear().weight, weight)
    with pytest.raises(MaskError, match="not 2:4"):
        blockshock.BlockShockLinear(layer.to_linear(), mask=saved_mask(state))
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"permutation"'):
        blockshock.BlockShockLinear(layer.to_linear()).load_state_dict(
            {name: state[name] for name in ("weight", "bias", "permutation")}
        )


@pytest.mark.parametrize("row", ROWS)
def test_copies_and_pickles(row: str) -> None:
    layer = _layer(row)
    y = layer(x_of())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x_of()), y)
        train(twin, optimizer_of(twin), 1)
        twin.load_state_dict(layer.state_dict())
        assert torch.equal(twin(x_of()), y)


def test_compiled_it_is_the_same() -> None:
    layer = _layer(ROWS[0])
    x, again = x_of().requires_grad_(), x_of().requires_grad_()
    layer(x).square().sum().backward()
    grads = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
    layer.zero_grad()
    torch.compile(layer, backend="aot_eager")(again).square().sum().backward()
    torch.testing.assert_close(again.grad, x.grad)
    for parameter, grad in zip(layer.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_the_gather_is_counted_as_layout() -> None:
    layer, x = _layer(ROWS[0]), x_of(1, 6, 64).requires_grad_()
    with recording(iter(range(1000)).__next__) as recorder:
        y = layer(x)
    assert recorder.copied_bytes == 6 * 64 * 4
    assert "layout" in recorder.seconds(lambda start, end: end - start)
    with recording(iter(range(1000)).__next__) as recorder:
        y.square().sum().backward()
    assert recorder.copied_bytes == 6 * 64 * 4


@pytest.mark.parametrize("B", [0, 1, 5])
def test_x_of_any_layout(B: int) -> None:
    layer = _layer(ROWS[0])
    dense = layer.to_linear()
    wide = x_of(2, 2 * B + 2, 192)
    for x in (wide[:B, :64], wide[::2, 1:129:2][:B], wide[:B, ::3], wide[:1, :64].expand(B, 64)):
        torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("kernel", ["cusparselt:search=no", "auto:search=no", "reference"])
@pytest.mark.parametrize("pruner", ["magnitude:permute=yes", "tile_magnitude:permute=yes"])
def test_on_a_gpu(kernel: str, pruner: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 256).cuda()
    layer = MethodLinear(linear, f"pruned-{kernel}-{pruner}", dtype=torch.bfloat16, tokens=256)
    again = MethodLinear(linear, f"pruned-{kernel}-{pruner}", dtype=torch.bfloat16, tokens=256)
    assert torch.equal(layer.to_linear().weight, again.to_linear().weight), "the same search finds the same"
    dense = layer.to_linear().bfloat16()
    x, right = (torch.randn(256, 512, device="cuda", generator=_seeded()).requires_grad_() for _ in range(2))
    graph_x = x.detach().bfloat16()
    for one, given in ((layer, x), (dense, right)):
        one(given.bfloat16()).float().square().sum().backward()
    assert x.grad is not None
    assert right.grad is not None
    assert (x.grad - right.grad).norm() < 0.02 * right.grad.norm()
    with torch.no_grad():
        layer(graph_x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(graph_x)
        graph_x.copy_(graph_x.flip(0))
        graph.replay()
        torch.testing.assert_close(y, dense(graph_x), rtol=0.02, atol=0.02)


def _seeded() -> torch.Generator:
    return torch.Generator("cuda").manual_seed(1)


@pytest.mark.gpu
@needs_a_gpu
def test_torchs_own_tensor_on_a_gpu() -> None:
    source = TensorWeights(torch.randn(256, 512, device="cuda", generator=_seeded()).bfloat16())
    layer = Layer(source, {"pruner": "magnitude:permute=yes"})
    method = METHODS.get("torch_semi_structured")(layer, Alone())
    x_BK = torch.randn(64, 512, device="cuda", generator=_seeded()).bfloat16()
    right = x_BK.float() @ method.reference(layer, 1).gather(slice(None)).float().T
    torch.testing.assert_close(method(x_BK).float(), right, rtol=0.02, atol=0.1)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize(("N", "K"), [(4096, 4096), (4096, 11008), (11008, 4096)])
def test_the_layers_of_a_large_model_are_searched_in_the_memory_that_is_said(N: int, K: int) -> None:
    source = TensorWeights(torch.randn(N, K, device="cuda", generator=_seeded()).bfloat16())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = permutation.permutation_of("magnitude:permute=yes", source, None)
    assert torch.cuda.max_memory_allocated() - before <= permutation.SEARCH_BYTES * N * K + (256 << 20)
    assert found is not None
    score_KN = permutation._scaled(permutation.Pruner(permutation.Piece(source), None), permutation.Piece(source), "")
    own = permutation.retained(score_KN, torch.arange(K))
    assert permutation.retained(score_KN, found.cpu()) > own
