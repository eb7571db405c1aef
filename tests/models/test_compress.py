"""A row in the place of a model's linear layers, block by block: by which inputs, in which order, what is refused."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from inner_pytest import ROOT
from torch import nn

import blockshock
from blockshock.errors import InputError, UnknownName
from blockshock.matrices import Piece, TensorWeights
from blockshock.models import compress
from blockshock.models.compress import blocks_of
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.nn.method_linear import MethodLinear
from blockshock.pruning import PRUNERS, prune


class Block(nn.Module):
    """Two layers of one input, and one of what they make; it writes over its input, as models do."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.left, self.right = nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(0.5).add_(self.out(self.left(x).tanh() * self.right(input=x)))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 4)
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = self.drop(self.first(x)) * scale
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def calls() -> list[Any]:
    stream = torch.Generator().manual_seed(1)
    return [torch.randn(size, 8, generator=stream) for size in (40, 3)]


def test_blocks_are_the_entries_of_the_outermost_lists(model: Toy) -> None:
    found = [[name for names in block.values() for name in names] for block in blocks_of(model)]
    each = [[f"blocks.{index}.{name}" for name in ("out", "left", "right")] for index in range(3)]
    assert found == [["last"], ["first"], *each]
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 4))
    assert [len(block) for block in blocks_of(nested)] == [2, 1]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pruner", [name for name in PRUNERS.names() if PRUNERS.get(name).needs_inputs])
def test_each_layer_is_pruned_by_what_meets_it_behind_pruned_blocks(
    model: Toy, calls: list[Any], pruner: str, frozen: bool
) -> None:
    """Beside a loop by hand: a block's inputs are those that it has while it is dense, and all before it is pruned."""
    by_hand = Toy().eval()
    by_hand.load_state_dict(model.state_dict())
    for names in (
        ["first"],
        *([f"blocks.{i}.{name}" for name in ("left", "right", "out")] for i in range(3)),
        ["last"],
    ):
        met = {name: list[torch.Tensor]() for name in names}
        handles = [
            by_hand.get_submodule(name).register_forward_pre_hook(
                lambda _, x, named, found=met[name]: found.append((x[0] if x else named["input"]).clone()),
                with_kwargs=True,
            )
            for name in names
        ]
        with torch.no_grad():
            for x in calls:
                by_hand(x)
        for name, handle in zip(names, handles, strict=True):
            handle.remove()
            weight = by_hand.get_submodule(name).weight
            x_TK = torch.cat(met[name])
            weight.data = prune(pruner, Piece(TensorWeights(weight.detach())), lambda x_TK=x_TK: x_TK).rows(
                0, len(weight)
            )
    found = compress(model, f"pruned-reference-{pruner}", calls, frozen=frozen)
    assert len(found.replaced) == 11
    assert model.training
    assert all(type(layer) is (FrozenLinear if frozen else MethodLinear) for layer in model.blocks[0].children())
    x = torch.randn(20, 8)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), by_hand(x), rtol=1e-4, atol=1e-5)


def test_arguments_come_as_the_model_takes_them(model: Toy, calls: list[Any]) -> None:
    """As one, several, or by name: the same layers come out."""
    states = []
    for calibration in ([(calls[0], 2.0)], [{"x": calls[0], "scale": 2.0}], iter([(calls[0], 2.0)])):
        other = Toy()
        other.load_state_dict(model.state_dict())
        compress(other, "pruned-auto-wanda", calibration)
        states.append(other.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], held) for name, held in states[0].items())


def test_where_says_which_and_the_rest_is_told(model: Toy, calls: list[Any]) -> None:
    found = blockshock.compress(model, "pruned-auto-wanda", calls, where=lambda name, linear: name.endswith("out"))
    assert found.replaced == ("blocks.0.out", "blocks.1.out", "blocks.2.out")
    assert set(found.left.values()) == {"where says no"}
    assert len(found.left) == 8


def test_a_pruner_that_needs_no_inputs_needs_no_calibration(model: Toy) -> None:
    assert len(compress(model, "pruned-auto-magnitude").replaced) == 11


def test_a_block_that_stands_in_many_places_is_pruned_once_by_all_that_meets_it(calls: list[Any]) -> None:
    block = nn.Linear(8, 8)
    model = nn.ModuleDict({"blocks": nn.ModuleList([block] * 3)})
    met = list[int]()

    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = model["blocks"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for one in self.blocks:
                met.append(len(x))
                x = one(x)
            return x

    looped = Looped()
    found = compress(looped, "pruned-auto-wanda", calls)
    assert found.replaced == ("blocks.0", "blocks.1", "blocks.2")
    assert len({id(one) for one in looped.blocks}) == 1
    assert met == ([40] * 3 + [3] * 3) * 2  # one call of each that looks, and one that records


class Loop(nn.Module):
    """As often as its input is long, from a state of zeros on."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 8)

    def forward(self, x_BTK: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(x_BTK[:, 0])
        for t in range(x_BTK.shape[1]):
            h = torch.tanh(self.hidden(h) + x_BTK[:, t])
        return h


def test_a_later_call_may_go_through_a_layer_more_often_than_the_first() -> None:
    torch.manual_seed(0)
    looped, calls = Loop(), [torch.randn(4, length, 8) for length in (1, 12)]
    met = list[torch.Tensor]()
    handle = looped.hidden.register_forward_pre_hook(lambda _, given: met.append(given[0]))
    for call in calls:
        looped(call)
    handle.remove()
    wanted = MethodLinear(looped.hidden, "pruned-auto-wanda", inputs=torch.cat(met).detach())
    for order in (calls, calls[::-1]):
        model = copy.deepcopy(looped)
        compress(model, "pruned-auto-wanda", order)
        assert torch.equal(model.hidden.to_linear().weight, wanted.to_linear().weight)  # type: ignore[operator]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.positive, self.negative = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((self.positive if x.mean() > 0 else self.negative)(x).relu())


def test_what_the_first_call_does_not_meet_is_pruned_before_what_it_feeds_all_the_same() -> None:
    torch.manual_seed(0)
    calls = [torch.randn(40, 8) + shift for shift in (1, -1, -1)]
    for order in (calls, calls[::-1]):
        *experts, last = compress(Experts(), "pruned-auto-wanda", order).replaced
        assert (sorted(experts), last) == (["negative", "positive"], "out")


def test_ways_that_go_round_in_circles_are_gone_as_they_are_met() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(self.other(x)) if x.mean() > 0 else self.other(self.one(x))

    assert compress(Turned(), "pruned-auto-wanda", [torch.ones(9, 8), -torch.ones(9, 8)]).replaced == ("other", "one")


def test_a_model_that_ran_compiled_is_calibrated_as_any(model: Toy, calls: list[Any]) -> None:
    """Compiled code passes by hooks that came later."""
    wanted = copy.deepcopy(model)
    compress(wanted, "pruned-auto-wanda", calls)
    torch._dynamo.reset()
    compiled = torch.compile(model.eval(), backend="eager")
    with torch.no_grad():
        for call in calls:
            compiled(call.clone())
    assert all(name.startswith("_orig_mod.") for name in compress(compiled, "pruned-auto-wanda", calls).replaced)
    assert all(map(torch.equal, model.state_dict().values(), wanted.state_dict().values()))


def test_calls_end_behind_the_block_that_is_recorded(model: Toy, calls: list[Any]) -> None:
    turns = list[str]()
    for name in ("first", "blocks.2", "last"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: turns.append(name))
    compress(model, "pruned-auto-wanda", calls[:1], where=lambda name, linear: name.startswith("blocks.0"))
    assert turns == ["first", "blocks.2", "last", "first"]


def test_the_page_on_layers_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n([^`]*import compress\n.*?)```\s+```text\n(.*?)```", page, re.DOTALL)
    exec(compile(found[0], "layer.md", "exec"), {})
    assert capsys.readouterr().out == found[1]


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_model_without_linears_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"this Sequential has no nn\.Linear: there is nothing that a row could replace"
    ):
        compress(nn.Sequential(nn.ReLU()), "pruned")


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ("prunned-auto-wanda", UnknownName, "Did you mean 'pruned'"),
        ("pruned-auto-vanda", UnknownName, "Did you mean 'wanda'"),
        ("dtensor_row", InputError, "parallelize_module"),
    ],
)
def test_unknown_rows_are_refused_before_anything_runs(model: Toy, row: str, error: type[Exception], says: str) -> None:
    model.register_forward_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(error, match=says):
        compress(model, row, [torch.ones(1, 8)])


@pytest.mark.parametrize(
    ("calibration", "says"),
    [
        ([], r"looks at inputs: give calibration=\[x, …\]"),
        (torch.ones(4, 8), r"got Tensor: put it into a list"),
        ({"x": torch.ones(4, 8)}, r"got dict: put it into a list"),
        (None, r"got NoneType"),
        (
            [torch.ones(4, 8), torch.tensor([[1.0] * 7 + [float("nan")]])],
            r"call 1, argument 0, holds nan at row 0, column 7",
        ),
        ([{"x": torch.full((2, 2, 8), float("inf"))}], r"call 0, argument x, holds inf at row 0, column 0"),
        ([(torch.ones(4, 8), float("inf"))], r"what meets blocks\.0\.\w+ holds (nan|-?inf) at row 0"),
        ([torch.ones(0, 8)], r"pruner wanda needs .* T at least 1"),
    ],
)
def test_calibration_that_is_none_is_refused_and_nothing_is_replaced(model: Toy, calibration: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        compress(model, "pruned-auto-wanda", calibration)
    assert all(type(model.get_submodule(name)) is nn.Linear for name in ("first", "last", "blocks.1.out"))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_no_calibration_meets_is_named(model: Toy, calls: list[Any]) -> None:
    model.unused = nn.Linear(8, 8)
    with pytest.raises(InputError, match=r"none of the calibration meets unused: leave it out by where="):
        compress(model, "pruned-auto-wanda", calls)
    assert type(model.first) is nn.Linear, "what came before it is put back"
    compress(model, "pruned-auto-wanda", calls, where=lambda name, linear: name != "unused")


def test_what_a_model_raises_says_what_it_was_called_with(model: Toy, calls: list[Any]) -> None:
    before = dict(model.named_modules())
    for number, wrong in enumerate(([torch.ones(4, 8), 1], torch.ones(4, 7), {"x": torch.ones(4, 8), "y": 1})):
        batches = [calls[0]] * number + [wrong]
        with pytest.raises((TypeError, InputError)) as error:
            compress(model, "pruned-auto-wanda", batches)
        notes = " | ".join(error.value.__notes__)
        given = ("list", r"torch.float32 (4, 7)", "x=torch.float32 (4, 8), y=int")[number]
        assert f"while the model was called with calibration, call {number}: {given}" in notes
        assert ("(x for x, _ in loader)" in notes) == (number == 0)
    assert dict(model.named_modules()) == before
    with pytest.raises(InputError, match="calibration= takes a list of what the model is called with, got str"):
        compress(model, "pruned-auto-wanda", "calibration.pt")
    with pytest.raises(InputError, match="where= takes a function"):
        compress(model, "pruned-auto-wanda", calls, where=3)  # type: ignore[arg-type]


def test_a_model_that_was_compressed_before_is_told(model: Toy, calls: list[Any]) -> None:
    first = compress(model, "pruned-auto-wanda", calls, where=lambda name, linear: name == "first")
    again = compress(model, "pruned-auto-wanda", calls)
    assert first.replaced == ("first",)
    assert again.left == {"first": "a layer of pruned is there already: put its to_linear() back first"}
    with pytest.raises(InputError, match=r"this Toy has no nn\.Linear: last: a layer of pruned is there already"):
        compress(model, "pruned-auto-wanda", calls)


def test_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Module, got str"):
        compress("model", "pruned")  # type: ignore[arg-type]
