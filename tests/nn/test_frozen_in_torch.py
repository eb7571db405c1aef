"""Layers that only go forward inside torch's own modules, which read weights: what was asked for is what multiplies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blockshock import FrozenLinear, SparseFFN, compress, replace_linears
from blockshock.errors import InputError
from blockshock.nn.frozen_tensor import FrozenTensor, NotReadable

ROWS = ["dense_single-int8", "pruned-auto-magnitude", "block_shock"]
MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


def _encoder(batch_first: bool = True, norm_first: bool = False, activation: str = "relu") -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {"batch_first": batch_first, "norm_first": norm_first, "activation": activation}
    return nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, **options)


def _decoder(batch_first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerDecoderLayer(64, 4, 128, dropout=0.0, batch_first=batch_first)


def _stack(batch_first: bool = True) -> nn.Module:
    return nn.TransformerEncoder(_encoder(batch_first), 2)  # type: ignore[arg-type]


def _whole(batch_first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Transformer(64, 4, 1, 1, 128, dropout=0.0, batch_first=batch_first)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (3, 8, 64)), generator=torch.Generator().manual_seed(1))


def _called(model: Any, x: torch.Tensor, **named: Any) -> torch.Tensor:
    if isinstance(model, nn.MultiheadAttention):
        return model(x, x, x, **named)[0]
    return model(x, x, **named) if isinstance(model, nn.TransformerDecoderLayer | nn.Transformer) else model(x, **named)


class _Called(nn.Module):
    """A layer that torch's modules see nothing of: all that they can do is to call it."""

    def __init__(self, layer: FrozenLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def _right(model: nn.Module, x: torch.Tensor, **named: Any) -> torch.Tensor:
    """What it computes where its layers can only be called, in training mode, which has no fast path."""
    plain = copy.deepcopy(model).train()
    for name, module in list(plain.named_modules()):
        if isinstance(module, FrozenLinear):
            plain.set_submodule(name, _Called(module))
    with torch.no_grad():
        return _called(plain, x, **named)


def _frozen(model: nn.Module, row: str, where: Any = None) -> nn.Module:
    """All that can be frozen of it is, the inner of an attention aside."""
    found = replace_linears(model, row, where, frozen=True)
    assert found.replaced
    assert all(name.endswith("out_proj") for name, why in found.left.items() if why != "where says no")
    return model


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("make", [_encoder, _decoder, _stack, _whole])
def test_its_output_is_that_of_the_layers_that_were_asked_for(
    make: Callable[[bool], nn.Module], batch_first: bool, row: str
) -> None:
    dense = make(batch_first)
    model = _frozen(copy.deepcopy(dense), row)
    x = _x()
    right = _right(model, x)
    if row != "block_shock":
        with torch.no_grad():
            assert (right - _called(dense.train(), x)).abs().max() > 1e-3, "it would pass with the dense weights"
    for training in (True, False):
        for grad in MODES.values():
            with grad():
                torch.testing.assert_close(_called(model.train(training), x), right, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(_called(model, x[0]), _right(model, x[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_each_kind_of_fast_path_is_left_alone(norm_first: bool, activation: str) -> None:
    model = _frozen(_encoder(True, norm_first, activation), "dense_single-int8").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(_x()), _right(model, _x()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("only", ["", "layers.0.", "layers.1.", "linear2"])
@pytest.mark.parametrize("frozen", [True, False])
def test_padded_rows_that_torch_nests_meet_the_same_layers(frozen: bool, only: str) -> None:
    """Of a stack whose first layer is dense, torch nests x, and hands that on to the others."""
    model = _stack()
    replace_linears(model, "pruned-auto-magnitude", lambda name, _: only in name and "linear" in name, frozen=frozen)
    x, padded = _x(), torch.arange(8)[None] >= torch.tensor([8, 5, 3])[:, None]
    with torch.no_grad():
        right = model.train()(x, src_key_padding_mask=padded)
        found = model.eval()(x, src_key_padding_mask=padded)
    torch.testing.assert_close(found[~padded], right[~padded], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["frozen", "trained"])
def test_a_nested_x_gives_what_its_parts_give(kind: str) -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    replace_linears(model, "pruned-auto-magnitude", frozen=kind == "frozen")
    parts = [_x(2, 64), _x(0, 64), _x(3, 64)]
    with torch.no_grad():
        found = model(torch.nested.nested_tensor(parts))
        assert found.is_nested
        for y, part in zip(found.unbind(), parts, strict=True):
            torch.testing.assert_close(y, model(part))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by the compiler
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [_encoder, _decoder, _stack])
def test_compiled_it_is_one_graph_with_the_same_layers(make: Callable[[bool], nn.Module], training: bool) -> None:
    torch._dynamo.reset()
    model = _frozen(make(True), "dense_single-int8").train(training)
    compiled = torch.compile(lambda x: _called(model, x), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(_x()), _right(model, _x()), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by the compiler
@pytest.mark.parametrize(("row", "dtype"), [("recipe-fst", None), ("dense_single", torch.bfloat16)])
def test_compiled_layers_that_train_are_not_passed_by_either(row: str, dtype: torch.dtype | None) -> None:
    """A recipe's weight is the dense one, and a layer may multiply in another dtype than it has its weight in."""
    torch._dynamo.reset()
    model = _encoder()
    replace_linears(model, row, lambda name, _: "linear" in name, dtype=dtype)
    with torch.no_grad():
        right = model.train()(_x())
        found = torch.compile(model.eval(), backend="aot_eager")(_x())
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_what_an_attention_multiplies_by_itself_stays_dense_with_the_reason(batch_first: bool) -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(64, 4, batch_first=batch_first)
    model = copy.deepcopy(dense)
    found = replace_linears(model, "dense_single-int8", frozen=True)
    assert not found.replaced
    assert "MultiheadAttention that holds it reads its weight and never calls it" in found.left["out_proj"]
    for training in (True, False):
        with torch.no_grad():
            assert torch.equal(*(_called(one.train(training), _x()) for one in (model, dense)))
    # That frozen=True would help is not said of it where it would not.
    assert "frozen=True" not in replace_linears(model, "dense_single-int8").left["out_proj"]
    model.out_proj = FrozenLinear(dense.out_proj, "dense_single-int8")  # type: ignore[assignment]
    for training in (True, False):
        with torch.no_grad(), pytest.raises(InputError, match="multi_head_attention_forward reads the weight or bias"):
            _called(model.train(training), _x())


def test_a_block_of_ours_that_reads_its_layers_weights_keeps_them_dense() -> None:
    found = replace_linears(nn.Sequential(SparseFFN(64)), "dense_single-int8", frozen=True)
    assert not found.replaced
    assert "the SparseFFN that holds it reads its weight" in found.left["0.fc1"]


@pytest.mark.parametrize("row", ["pruned-auto-sparsegpt", "pruned-auto-sparsegpt-int8", "pruned-auto-magnitude-int8"])
@pytest.mark.parametrize("named", [False, True])
def test_a_transformer_is_compressed_frozen(row: str, named: bool) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(*[_encoder() for _ in range(2)], nn.Linear(64, 8))
    found = compress(model, row, [_x(), _x() + 1], lambda name, _: "linear" in name or not named, frozen=True)
    linears = ("0.linear1", "0.linear2", "1.linear1", "1.linear2")
    assert found.replaced == (linears if named else (*linears, "2"))
    assert set(found.left) >= {"0.self_attn.out_proj", "1.self_attn.out_proj"}
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(_x()), _right(model, _x()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_transformer_is_compressed_by_calls_with_padding(frozen: bool) -> None:
    """torch nests what meets the layers; what lies in it is what is recorded."""
    x, padded = _x(), torch.arange(8)[None] >= torch.tensor([8, 5, 3])[:, None]
    calls = [{"src": x, "src_key_padding_mask": padded}]
    found = compress(_stack(), "pruned-auto-sparsegpt", calls, lambda name, _: "linear" in name, frozen=frozen)
    assert len(found.replaced) == 4


@pytest.mark.parametrize("bias", [True, False])
def test_a_module_that_gives_weight_and_bias_to_linear_gets_the_layers_product(bias: bool) -> None:
    layer, x = FrozenLinear(nn.Linear(64, 32, bias=bias), "dense_single-int8"), _x()
    with torch.no_grad():
        right = layer(x)
        assert torch.equal(F.linear(x, layer.weight, layer.bias), right)  # type: ignore[arg-type]
        assert torch.equal(F.linear(input=x, weight=layer.weight, bias=layer.bias), right)  # type: ignore[arg-type]


def test_what_else_reads_its_weight_is_told() -> None:
    layer, other, x = (*(FrozenLinear(nn.Linear(64, 64), "dense_single") for _ in range(2)), _x())
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, FrozenTensor)
    assert isinstance(bias, FrozenTensor)
    assert (weight.shape, weight.dtype, weight.device) == ((64, 64), torch.float32, torch.device("cpu"))
    assert (bias.shape, bias.requires_grad) == ((64,), False)
    given: Any
    for given in ((x, weight), (x, weight, torch.zeros(64)), (x, weight, other.bias), (x, bias), (weight, weight)):
        with pytest.raises(InputError, match="linear is given the weight or the bias of a frozen layer"):
            F.linear(*given)
    with pytest.raises(InputError, match="linear is given"):
        F.linear(x, torch.zeros(64, 64), bias)  # type: ignore[arg-type]
    for call in (lambda: torch.mm(x[0], weight), lambda: x * weight, lambda: torch.stack([weight])):  # type: ignore[call-overload, list-item, operator]
        with pytest.raises(InputError, match=r"reads the weight or bias of a frozen layer.*by where="):
            call()
    assert (weight.ndim, weight.dim(), weight.numel(), weight.size(-1)) == (2, 2, weight.shape.numel(), weight.shape[1])
    assert copy.deepcopy(weight).shape == weight.shape
    with pytest.raises(NotReadable, match="data of it would be lost"):
        weight.data = torch.zeros(weight.shape)
    with pytest.raises(NotReadable, match=r"the weight of a frozen layer is packed, .* but no T: call the layer"):
        _ = weight.T
    assert not hasattr(bias, "data")
    with pytest.raises(InputError, match=r"the weight of a FrozenLinear is packed, and no parameter: tie or set"):
        layer.weight = nn.Parameter(torch.zeros(64, 64))  # type: ignore[assignment, misc]
    with pytest.raises(InputError, match=r"in dense_single.*keep the one that it was made of"):
        layer.to_linear()
