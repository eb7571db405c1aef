"""A row of the table in the place of the linear layers of a user's own model: of all that it can take, or of none.

    print(blockshock.replace_linears(model, "block_shock-auto", where=lambda name, linear: "mlp" in name))

Its reasons are what it left, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parallel import DistributedDataParallel

from blockshock.errors import BlockShockError, InputError
from blockshock.machine import meet
from blockshock.methods import Promise, Row, parse_row
from blockshock.nn.arguments import check_options
from blockshock.nn.ffn import SparseFFN
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.nn.method_linear import MethodLinear
from blockshock.nn.replaceable import places_in_memory, why_tied
from blockshock.nn.suitable import needs_inputs, ranks_for, why_not

Where = Callable[[str, nn.Linear], bool]


@dataclass(frozen=True, repr=False)
class Replaced:
    """What was replaced, and what was left and why.

    Attributes:
        row: its name.
        replaced: names of the layers in the model.
        left: the reason, by name.
    """

    row: str
    replaced: tuple[str, ...]
    left: dict[str, str]

    def __repr__(self) -> str:
        total = len(self.replaced) + len(self.left)
        names = f": {', '.join(self.replaced)}" if self.replaced else ""
        names = names if total else ": the model holds none"
        lines = [f"{self.row} in the place of {len(self.replaced)} of {total} linear layers{names}"]
        for reason in dict.fromkeys(self.left.values()):
            names = ", ".join(name or "(the model)" for name, found in self.left.items() if found == reason)
            lines.append(f"left {names}: {reason}")
        return "\n".join(lines)


def replace_linears(
    model: nn.Module,
    row: str,
    where: Where | None = None,
    *,
    group: Any = None,
    dtype: torch.dtype | None = None,
    tokens: int = 1024,
    inputs: Mapping[str, torch.Tensor] | None = None,
    frozen: bool = False,
) -> Replaced:
    """Put a ``MethodLinear`` of the row in the place of each ``nn.Linear`` of a model, before its optimizer is built.

    Whether the row can take them is looked at first, and all layers are built before one is put in its place: where
    that fails the model is as it was. Both are held until then. All ranks of a group call it together.

    Args:
        model: what holds them; one that stands in several places is replaced in all of them.
        row: by its name, such as ``block_shock-auto`` or ``dense_tp_row``: the method, then a spec of each of its axes
            in order; blanks between them, as in the tables, are as good. For the last ones, left out, what is usual in
            training is taken: of pruners ``tile_magnitude``, whose masks leave Wᵀ 2:4 too, where ``magnitude``, the
            suite's choice for forward passes, keeps more.
        where: called with the name and the layer, it says which are meant; None for all.
        group, dtype, tokens: as of ``MethodLinear``.
        inputs: some x of each layer by its name, for a pruner that looks at them; others do not.
        frozen: put a ``FrozenLinear`` there instead, which only goes forward and holds nothing for training; what is
            usual is then what it is in forward passes.

    Returns:
        The names of what was replaced, and of what was left with the reason, layers that were replaced before among
        them; it prints as a few lines.

    Raises:
        UnknownName, InputError: there is no such row, which part of its name is wrong is said; it runs on no such
            group; or the model is wrapped for data parallelism already; or its pruner needs inputs of a layer that
            has none here.
        RanksApart: the ranks would not replace the same.
    """
    check_options(dtype, tokens)
    picked = parse_row(row)
    ranks = ranks_for(picked.kind, group)
    inputs = {} if inputs is None else inputs
    _check(model, where, inputs)
    chosen: list[tuple[nn.Linear, list[str]]] = []
    left = there_already(model)
    kind = FrozenLinear if frozen else MethodLinear
    memory = places_in_memory(model)
    for linear, names in linears_of(model):
        reason = _not_meant(linear, names, where) or passed_by(model, linear, names, picked, frozen)
        reason = reason or why_tied(linear, memory)
        if not reason and (reason := why_not(linear, picked, ranks, dtype, kind.__name__, frozen)):
            frozen_fits = not (
                frozen
                or passed_by(model, linear, names, picked, frozen=True)
                or why_not(linear, picked, ranks, dtype, FrozenLinear.__name__, frozen=True)
            )
            reason += "; with frozen=True, which only goes forward, it can be replaced" if frozen_fits else ""
        if reason:
            left |= dict.fromkeys(names, reason)
        else:
            chosen.append((linear, names))
    meet(ranks, f"replace_linears of {', '.join(name for _, names in chosen for name in names) or 'nothing'}")
    found = [_inputs_of(linear, names, picked, inputs, frozen) for linear, names in chosen]
    options = {"dtype": dtype, "tokens": tokens}
    places: list[tuple[str, nn.Linear, nn.Module]] = []
    for (linear, names), x in zip(chosen, found, strict=True):
        layer = _built(kind, names[0], linear, picked, group, inputs=x, **options)
        places += [(name, linear, layer) for name in names]
    _put(model, places)
    return Replaced(picked.name, tuple(name for name, _, _ in places), left)


def _check(model: Any, where: Any, inputs: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"replace_linears takes a torch.nn.Module, got {type(model).__name__}")
    check_where(where)
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs= takes some x of each layer by its name, got {type(inputs).__name__}")
    known = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear)]
    there = there_already(model)
    if taken := [name for name in inputs if name in there]:
        raise InputError(f"inputs= has {taken[0]!r}: {there[taken[0]]}")
    if unknown := [name for name in inputs if name not in known]:
        raise InputError(f"inputs= has {unknown[0]!r}, and no nn.Linear of that name is there: {', '.join(known)}")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise InputError(
            "the model is wrapped in DistributedDataParallel, which holds the parameters that it has now: call "
            "replace_linears first"
        )


def check_where(where: Any) -> None:
    """Raises InputError unless it is a function, or None for all layers."""
    if not (where is None or callable(where)):
        raise InputError(f"where= takes a function (name, linear) -> bool, or None for all layers, got {where!r}")


def there_already(model: nn.Module) -> dict[str, str]:
    """Layers that took a linear's place before, and what to do about each."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MethodLinear):
            found[name] = f"a layer of {module.row.method} is there already: put its to_linear() back first"
        elif isinstance(module, FrozenLinear):
            found[name] = f"a frozen layer of {module.row.method} is there already: begin with the model that it was"
    return found


def linears_of(model: nn.Module) -> Iterator[tuple[nn.Linear, list[str]]]:
    """Each linear layer with the names of all places where it stands."""
    places: dict[nn.Linear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            places.setdefault(module, []).append(name)
    yield from places.items()


def _not_meant(linear: nn.Linear, names: list[str], where: Where | None) -> str | None:
    """Why a layer is left before it is looked at; None if it is meant in all of its places."""
    left = [] if where is None else [name for name in names if not where(name, linear)]
    if len(left) == len(names):
        return "where says no"
    if left:
        return f"it also stands at {', '.join(left)}, of which where says no"
    return (
        "it is the model itself, which stands in no other: MethodLinear(model, row) is its layer"
        if "" in names
        else None
    )


def passed_by(model: nn.Module, linear: nn.Linear, names: list[str], row: Row, frozen: bool) -> str | None:
    """Why a layer would be lost: what holds it multiplies by all of its weight, and never calls it.

    Nothing is lost of what multiplies by a weight that can be read, as W or W′ can where they are trained.
    """
    learns = row.kind.promise is Promise.LEARNS
    if not (learns or frozen):
        return None
    lost = "a recipe would be passed by" if learns else "a frozen layer, which has it packed, would not be asked"
    for parent in (model.get_submodule(name.rpartition(".")[0]) for name in names):
        # Other linear layers that subclasses of attention hold are called.
        attends = isinstance(parent, nn.MultiheadAttention) and isinstance(linear, NonDynamicallyQuantizableLinear)
        if attends or isinstance(parent, SparseFFN):
            return (
                f"the {type(parent).__name__} that holds it reads its weight and never calls it, so that {lost}: it "
                "stays dense"
            )
    return None


def _inputs_of(
    linear: nn.Linear, names: list[str], row: Row, inputs: Mapping[str, torch.Tensor], frozen: bool
) -> torch.Tensor | None:
    """Those of one layer. Raises InputError where it needs some, and has none."""
    if not needs_inputs(row, linear.weight.device.type, frozen):
        return None
    given = next((inputs[name] for name in names if name in inputs), None)
    if given is None:
        raise InputError(
            f"the pruner of {row.name} looks at inputs, and {names[0]} has none: give "
            f"inputs={{{names[0]!r}: x, …}}, some x (…, {linear.in_features}) of each layer that it is to prune"
        )
    return given


def _built(
    kind: type[MethodLinear] | type[FrozenLinear], name: str, linear: nn.Linear, row: Row, group: Any, **options: Any
) -> nn.Module:
    try:
        return kind(linear, row, group, **options)
    except BlockShockError as error:
        raise type(error)(f"{name}: {error}; nothing is replaced") from error
    except Exception as error:
        error.add_note(f"while {row.name} was built for {name}: nothing is replaced")
        raise


def _put(model: nn.Module, places: list[tuple[str, nn.Linear, nn.Module]]) -> None:
    done: list[tuple[str, nn.Linear]] = []
    try:
        for name, linear, layer in places:
            done.append((name, linear))
            model.set_submodule(name, layer)
    except BaseException:
        for name, linear in done:
            model.set_submodule(name, linear)
        raise
