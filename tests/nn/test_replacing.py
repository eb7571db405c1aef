"""replace_linears: a row in the place of all linear layers of a model that it can take, never of half of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from inner_pytest import ROOT
from torch import nn

from blockshock import MethodLinear, replace_linears
from blockshock.errors import BlockShockError, InputError, RanksApart, UnknownName
from blockshock.kernels import KERNELS
from blockshock.nn import replacing
from blockshock.ranks import Ranks


class _Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class _Model(nn.Module):
    """Linear layers of all sorts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(48, 64)
        self.mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.first = self.again = nn.Linear(64, 64)
        self.odd = nn.Linear(64, 6)
        self.adapted = _Doubled(64, 64)
        self.head = nn.Linear(64, 48, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.first(x + self.mlp(x)))
        return torch.cat([self.head(x), self.odd(x), self.adapted(x)], dim=-1)


def _x() -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(1))


def _is_mlp(name: str, linear: nn.Linear) -> bool:
    return name.startswith("mlp")


def test_what_it_can_take_is_replaced_and_the_rest_left_with_a_reason() -> None:
    model = _Model()
    dense = copy.deepcopy(model)
    found = replace_linears(model, "block_shock-gathered-tile")
    assert found.replaced == ("mlp.0", "mlp.2", "first", "again")
    assert set(found.left) == {"odd", "adapted", "head"}
    assert "6" in found.left["odd"]
    assert "this _Doubled has a forward of its own, which a MethodLinear would drop" in found.left["adapted"]
    assert "is tied: it is also that of another module (Embedding)" in found.left["head"]
    assert model.first is model.again
    assert {
        name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, MethodLinear)
    } == (set(found.replaced))
    torch.testing.assert_close(model(_x()), dense(_x()))
    for one in (model, dense):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        one(_x()).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(model(_x()), dense(_x()))


def test_where_says_which_and_what_it_returns_prints_well() -> None:
    model = _Model()
    found = replace_linears(model, "dense_single", where=_is_mlp)
    assert str(found).splitlines() == [
        "dense_single in the place of 2 of 7 linear layers: mlp.0, mlp.2",
        "left first, again, odd, adapted, head: where says no",
    ]
    assert repr(found) == str(found)
    assert isinstance(model.mlp[2], MethodLinear)
    nothing = replace_linears(nn.Linear(64, 64), "dense_single")
    assert str(nothing).startswith("dense_single in the place of 0 of 1 linear layers\nleft (the model): it is the")
    assert str(replace_linears(nn.ReLU(), "dense_single")) == (
        "dense_single in the place of 0 of 0 linear layers: the model holds none"
    )


def test_a_row_may_be_named_as_the_tables_print_it() -> None:
    found = replace_linears(_Model(), "pruned reference magnitude", where=_is_mlp)
    assert str(found).startswith("pruned-reference-magnitude in the place of 2 of 7 linear layers: mlp.0, mlp.2\n")


def test_a_layer_in_two_places_is_meant_in_both() -> None:
    model = _Model()
    found = replace_linears(model, "dense_single", where=lambda name, linear: name == "first")
    assert found.replaced == ()
    assert found.left["first"] == found.left["again"] == "it also stands at again, of which where says no"


def test_modules_that_read_the_weights_of_what_they_hold_work_on() -> None:
    torch.manual_seed(0)
    dense = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    for row in ("dense_single", "block_shock-gathered"):
        model = copy.deepcopy(dense)
        assert replace_linears(model, row).replaced == ("self_attn.out_proj", "linear1", "linear2")
        for one in (model.train(), model.eval()):
            torch.testing.assert_close(one(_x()[None]), dense.train(one.training)(_x()[None]))


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: replace_linears(_Model(), "block_shock-fast"), UnknownName, "its kernel 'fast'"),
        (lambda: replace_linears(_Model(), "dtensor_row"), InputError, "torch's own parallelize_module"),
        (lambda: replace_linears("model", "dense_single"), InputError, "takes a torch.nn.Module, got str"),  # type: ignore[arg-type]
        (lambda: replace_linears(_Model(), "dense_single", where="mlp"), InputError, "where= takes a function"),  # type: ignore[arg-type]
        (lambda: replace_linears(_Model(), "dense_single", dtype=torch.int8), InputError, "floating-point dtype"),
        (lambda: replace_linears(_Model(), "dense_single", tokens=0), InputError, "tokens"),
        (lambda: replace_linears(_Model(), "dense_single", group="all"), InputError, "must be a process group"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], Any], kind: type[BlockShockError], says: str) -> None:
    with pytest.raises(kind, match=says):
        call()


def test_what_cannot_run_here_is_left() -> None:
    model = _Model()
    found = replace_linears(model, "block_shock-cusparselt", where=_is_mlp)
    assert found.replaced == ()
    assert "cusparselt" in found.left["mlp.0"]
    found = replace_linears(model, "block_shock-gathered-random", where=_is_mlp)
    assert "kernel gathered: " in found.left["mlp.0"]
    with torch.no_grad():
        model.mlp[0].weight[1, 2] = torch.nan
    found = replace_linears(model, "dense_single", where=_is_mlp)
    assert (found.replaced, "holds nan at row 1" in found.left["mlp.0"]) == (("mlp.2",), True)
    meta = replace_linears(nn.Sequential(nn.Linear(64, 64, device="meta")), "dense_single")
    assert "lies on the meta device" in meta.left["0"]


def test_what_only_goes_forward_is_left_and_told_how_it_can_be_taken() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(6, 6))
    found = replace_linears(model, "pruned-auto-magnitude-int8")
    assert found.left["0"].endswith("; with frozen=True, which only goes forward, it can be replaced")
    assert "frozen" not in found.left["1"], "that it cannot be either way"
    with pytest.raises(InputError, match="take format plain for what is trained, or a FrozenLinear"):
        MethodLinear(nn.Linear(64, 64), "dense_single-int8")
    assert replace_linears(model, "pruned-auto-magnitude-int8", frozen=True).replaced == ("0",)


def test_what_is_replaced_already_is_told_and_stays() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    replace_linears(model, "pruned", where=lambda name, _: name == "0")
    replace_linears(model, "dense_single", where=lambda name, _: name == "1", frozen=True)
    before = [*model]
    found = replace_linears(model, "dense_single", where=lambda name, _: name == "2")
    assert repr(found) == (
        "dense_single in the place of 1 of 3 linear layers: 2\n"
        "left 0: a layer of pruned is there already: put its to_linear() back first\n"
        "left 1: a frozen layer of dense_single is there already: begin with the model that it was"
    )
    assert [*model][:2] == before[:2]
    with pytest.raises(InputError, match="inputs= has '0': a layer of pruned is there already"):
        replace_linears(model, "pruned-auto-wanda", inputs={"0": torch.ones(4, 64)})


def test_a_dense_row_takes_any_shape() -> None:
    model = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 10, bias=False))
    dense = copy.deepcopy(model)
    assert replace_linears(model, "dense_single").left == {}
    torch.testing.assert_close(model(torch.ones(3, 10)), dense(torch.ones(3, 10)))
    assert "2:4 groups, got K = 10" in replace_linears(dense, "pruned-auto-magnitude").left["0"]


@pytest.mark.parametrize("where", ["building", "putting"])
def test_a_fault_in_the_middle_leaves_the_model_as_it_was(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Model()
    before = dict(model.named_modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if where == "building":

        class Faulty(MethodLinear):
            def __init__(self, linear: nn.Linear, *args: Any, **kwargs: Any) -> None:
                if linear is model.first:
                    raise MemoryError("planted")
                super().__init__(linear, *args, **kwargs)

        monkeypatch.setattr(replacing, "MethodLinear", Faulty)
    else:

        def set_submodule(name: str, module: nn.Module) -> None:
            nn.Module.set_submodule(model, name, module)
            if isinstance(module, MethodLinear) and name == "again":
                raise MemoryError("planted")

        model.set_submodule = set_submodule  # type: ignore[method-assign,assignment]
    with pytest.raises(MemoryError, match="planted") as error:
        replace_linears(model, "block_shock-gathered-tile")
    if where == "building":
        assert "while block_shock-gathered-tile was built for first: nothing is replaced" in error.value.__notes__
    del error
    assert {name: id(module) for name, module in model.named_modules()} == {
        name: id(module) for name, module in before.items()
    }
    model(_x()).sum().backward()
    optimizer.step()


def test_the_pages_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert found is not None
    exec(compile(found[1], "layer.md", "exec"), names := {})  # type: ignore[var-annotated]
    assert capsys.readouterr().out == found[2]
    names["model"](torch.ones(2, 64)).sum().backward()
    names["optimizer"].step()
    zeros = [int((layer.to_linear().weight == 0).sum()) for layer in names["model"] if isinstance(layer, MethodLinear)]
    assert zeros == [64 * 256 // 2] * 2


def test_the_readmes_example_trains() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (example,) = (block for block in blocks if "replace_linears" in block)
    assert len([line for line in example.splitlines() if line]) <= 10
    torch.manual_seed(0)
    exec(compile(example, "README.md", "exec"), names := {})  # type: ignore[var-annotated]
    assert names["loss"].item() < 0.6  # of 2: half of the weights are gone
    assert all(isinstance(names["model"][index], MethodLinear) for index in (0, 2))


def test_an_optimizer_from_before_is_told() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_linears(model, "dense_single")
    model(_x()).sum().backward()
    with pytest.raises(InputError, match="build the optimizer after the layer is replaced"):
        optimizer.step()


@pytest.mark.parametrize("held", ["zeroed", "bias", "frozen weight"])
def test_an_optimizer_from_before_is_told_whatever_it_holds(held: str) -> None:
    """Nothing would train, and nothing say so."""
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].weight.requires_grad_(held != "frozen weight")
    optimizer = torch.optim.SGD([model[0].bias] if held == "bias" else model.parameters(), lr=0.1)
    if held == "zeroed":
        model(_x()).sum().backward()
    replace_linears(model, "dense_single")
    optimizer.zero_grad(set_to_none=held != "zeroed")
    model(_x()).sum().backward()
    with pytest.raises(InputError, match="build the optimizer after the layer is replaced"):
        optimizer.step()


def test_a_linear_that_still_trains_elsewhere_may_be_stepped() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    old, optimizer = model[0], torch.optim.SGD(model.parameters(), lr=0.1)
    replace_linears(model, "dense_single")
    (model(_x()).sum() + old(_x()).sum()).backward()
    before = old.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, old.weight)


def test_weights_that_are_tied_by_their_data_are_left() -> None:
    head = nn.Linear(64, 32, bias=False)
    model = nn.ModuleDict({"emb": nn.Embedding(32, 64), "mid": nn.Linear(64, 64), "head": head})
    head.weight.data = model["emb"].weight.data  # type: ignore[assignment]
    found = replace_linears(model, "dense_single")
    assert found.replaced == ("mid",)
    assert "its weight lies in the memory of another parameter (emb.weight and head.weight)" in found.left["head"]
    head.weight = nn.Parameter(head.weight.detach().clone())
    assert replace_linears(model, "dense_single").replaced == ("head",)


def _small_parts() -> str:
    """A kernel that takes the layer, and not the half of its columns that a rank holds."""

    class Large(KERNELS.get("reference")):  # type: ignore[misc]
        def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Any) -> str | None:
            return "K is too small" if K < 64 else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KERNELS, "_entries", {**KERNELS._entries, "large": Large})
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(128, 64))
        found = replace_linears(model, "pruned_tp_row-large-magnitude")
    assert found.replaced == ("2",)
    return found.left["0"]


def test_a_part_that_the_kernel_cannot_take_leaves_the_layer(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_small_parts) == ["kernel large, of a rank's part (64, 32): K is too small"] * 2


def _over_ranks() -> None:
    left = {"dense_tp_row": set(), "dense_tp_col": {"4"}, "block_shock-gathered-tile": {"4"}}
    for row, expected in left.items():
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 5))
        model = copy.deepcopy(dense)
        assert set(replace_linears(model, row).left) == expected, row
        torch.testing.assert_close(model(_x()), dense(_x()))
    with pytest.raises(RanksApart, match=r"rank 0 in replace_linears of 0, 2, 4; rank 1 in replace_linears of 0, 2\."):
        replace_linears(dense, "dense_tp_row", where=lambda name, linear: name != "4" or dist.get_rank() == 0)
    assert isinstance(dense[0], nn.Linear)
    replicated = nn.parallel.DistributedDataParallel(dense)
    with pytest.raises(InputError, match="wrapped in DistributedDataParallel"):
        replace_linears(replicated, "dense_single")


def test_over_ranks_all_replace_the_same(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_over_ranks)
