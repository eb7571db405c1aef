"""A row in the place of a model's linear layers, calibrated block by block on what really meets them.

    blockshock.compress(model, "pruned-auto-sparsegpt", [x, x], where=lambda name, linear: "mlp" in name)

A block's layers are pruned by the inputs that they have once earlier blocks are what they became, as by SparseGPT
(arXiv 2301.00774) and Wanda (arXiv 2306.11695): what one block loses, the next ones are calibrated with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.matrices import check_finite
from blockshock.methods import parse_row
from blockshock.models.recording import Batch, Survey, arguments, record
from blockshock.nn.replacing import Replaced, Where, check_where, linears_of, passed_by, replace_linears, there_already
from blockshock.nn.suitable import needs_inputs

Block = dict[nn.Linear, list[str]]
"""Its layers, with the names of all places where each stands."""


def compress(
    model: nn.Module,
    row: str,
    calibration: Iterable[Any] = (),
    where: Where | None = None,
    *,
    group: Any = None,
    dtype: torch.dtype | None = None,
    tokens: int = 1024,
    frozen: bool = False,
) -> Replaced:
    """Put a row in the place of a model's linear layers, one block after the other.

    A block is an entry of an outermost ``nn.ModuleList`` or ``nn.Sequential``; a layer outside of all of them is one by
    itself. If the row's pruner looks at inputs, the model is run on the calibration once to see in which order its
    blocks are met, and for each block anew, in evaluation mode, up to that block; all inputs of the block's layers are
    held meanwhile. What fails leaves the model as it was. All ranks of a group call it together.

    Args:
        model: any.
        row: by its name, as of ``replace_linears``.
        calibration: what the model is called with: each a tensor, a tuple of arguments or a mapping of named ones. Rows
            of rank 0 count. None are needed for pruners that look at no inputs.
        where: called with the name and the layer, it says which are meant; None for all.
        group, dtype, tokens, frozen: as of ``replace_linears``.

    Returns:
        What was replaced, and what was left with the reason, layers that were replaced before among them.

    Raises:
        UnknownName, InputError: there is no such row, or it cannot run on such a group.
        InputError: the model has no linear layer; the pruner looks at inputs and there are none, or none meets a layer;
            or they, or what they become on their way, are not finite: the message says where.
    """
    picked = parse_row(row)
    check_where(where)
    batches = _checked(model, calibration)
    blocks = blocks_of(model)
    before = {name: linear for block in blocks for linear, names in block.items() for name in names}
    survey = None
    if needs_inputs(picked, next(iter(before.values())).weight.device.type, frozen):
        if not batches:
            raise InputError(
                f"the pruner of {row} looks at inputs: give calibration=[x, …], what the model is called with"
            )
        survey = Survey(model, batches)
        blocks.sort(key=lambda block: min(map(survey.turn, block)))
    replaced: list[str] = []
    left = there_already(model)
    try:
        for block in blocks:
            names = {name for places in block.values() for name in places}
            meant = lambda name, linear, names=names: name in names and (where is None or where(name, linear))  # noqa: E731
            met = {one: at for one, at in block.items() if not passed_by(model, one, at, picked, frozen)}
            inputs = None if survey is None else _inputs(model, met, batches, survey, meant)
            options = {"group": group, "dtype": dtype, "tokens": tokens, "frozen": frozen}
            found = replace_linears(model, row, meant, inputs=inputs, **options)
            replaced += found.replaced
            left |= {name: reason for name, reason in found.left.items() if name in names}
    except BaseException:
        for name, linear in before.items():
            model.set_submodule(name, linear)
        raise
    return Replaced(picked.name, tuple(replaced), left)


def blocks_of(model: nn.Module) -> list[Block]:
    """The linear layers of a model by block, in the order in which they are registered."""
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList | nn.Sequential) and not inside:
            lists.append(name)
    blocks: dict[str, Block] = {}
    for linear, names in linears_of(model):
        outer = next((outer for outer in lists if not outer or names[0].startswith(f"{outer}.")), None)
        entry = names[0] if outer is None else names[0].removeprefix(outer).removeprefix(".").split(".")[0]
        blocks.setdefault(entry if outer is None else f"{outer}.{entry}", {})[linear] = names
    return list(blocks.values())


def _checked(model: Any, calibration: Any) -> list[Batch]:
    """The calibration as arguments of the model."""
    if not isinstance(model, nn.Module):
        raise InputError(f"compress takes a torch.nn.Module, got {type(model).__name__}")
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        why = next((f"{name}: {reason}" for name, reason in there_already(model).items()), "")
        why = why or "there is nothing that a row could replace"
        raise InputError(f"this {type(model).__name__} has no nn.Linear: {why}")
    if isinstance(calibration, torch.Tensor | Mapping | str) or not isinstance(calibration, Iterable):
        raise InputError(
            f"calibration= takes a list of what the model is called with, got {type(calibration).__name__}: put it "
            "into a list, as in [x]"
        )
    batches = [arguments(batch) for batch in calibration]
    for number, (positional, named) in enumerate(batches):
        for at, value in [*enumerate(positional), *named.items()]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                rows = value.reshape(-1, value.shape[-1]) if value.ndim > 1 else value.reshape(1, -1)
                check_finite(rows, f"calibration, call {number}, argument {at},", "give finite inputs")
    return batches


def _inputs(
    model: nn.Module, block: Block, batches: list[Batch], survey: Survey, meant: Where
) -> dict[str, torch.Tensor]:
    """Of the block's layers that are meant, by the name of its first place, what meets them."""
    wanted = {names[0]: linear for linear, names in block.items() if all(meant(name, linear) for name in names)}
    found = record(model, wanted, batches, survey)
    for name in wanted:
        if name not in found:
            raise InputError(f"none of the calibration meets {name}: leave it out by where=, or give inputs that do")
        check_finite(found[name], f"what meets {name}", "with these inputs, and what is pruned before it")
    return found
