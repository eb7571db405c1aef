"""What meets the linear layers of a model while it is called: recorded by hooks, no further than is wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from graphlib import CycleError, TopologicalSorter
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.machine import torch_internals
from blockshock.nn.nested import is_nested, nested_rows

Batch = tuple[tuple[Any, ...], dict[str, Any]]
"""What a model is called with: arguments, and named ones."""


class _Enough(Exception):
    """All that is wanted of a call has been seen."""


def arguments(batch: Any) -> Batch:
    """A tuple is many arguments, a mapping named ones, and all else is one."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, tuple) else (batch,)), {}


class Survey:
    """How calls go through a model: in which order its linear layers are first met, and in each call how often.

    Calls may go different ways, as where layers are experts, or a loop that is as long as its input.

    Args:
        model: it is called once with each of the batches.

    Attributes:
        calls: of each batch, how often each layer was met.
    """

    def __init__(self, model: nn.Module, batches: list[Batch]) -> None:
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        ways: list[list[nn.Module]] = []
        with _evaluating(model), _hooked(linears, lambda linear, x: ways[-1].append(linear)):
            for number, (positional, named) in enumerate(batches):
                ways.append([])
                with _told(number, (positional, named)):
                    model(*positional, **named)
        self.calls = [Counter(way) for way in ways]
        self._turns = {
            linear: turn for turn, linear in enumerate(_in_order([list(dict.fromkeys(way)) for way in ways]))
        }

    def turn(self, linear: nn.Module) -> int:
        """When it is first met; last of all, if never."""
        return self._turns.get(linear, len(self._turns))


def _in_order(ways: list[list[nn.Module]]) -> list[nn.Module]:
    """An order in which each comes behind all that any way has before it; that in which they are met one way after the
    other, where ways go round in circles."""
    sorter = TopologicalSorter[nn.Module]()
    for way in ways:
        for module in way:
            sorter.add(module)
        for before, after in pairwise(way):
            sorter.add(after, before)
    try:
        return list(sorter.static_order())
    except CycleError:
        return list(dict.fromkeys(chain(*ways)))


def record(
    model: nn.Module, linears: Mapping[str, nn.Linear], batches: list[Batch], survey: Survey
) -> dict[str, torch.Tensor]:
    """What meets some layers, (T, K) of each by its name; those that nothing meets are left out.

    A call ends where each has been met as often as the survey found of it, or with the model.
    """
    seen: dict[nn.Module, list[torch.Tensor]] = {linear: [] for linear in linears.values()}
    to_come = Counter[nn.Module]()

    copies = _Copies()

    def keep(linear: nn.Module, x: torch.Tensor) -> None:
        seen[linear].append(copies.of(x))
        to_come[linear] -= 1
        if all(left <= 0 for left in to_come.values()):
            raise _Enough

    with _evaluating(model), _hooked(seen, keep):
        for number, (positional, named) in enumerate(batches if seen else ()):
            to_come.update({linear: survey.calls[number][linear] - to_come[linear] for linear in seen})
            with suppress(_Enough), _told(number, (positional, named)):
                model(*positional, **named)
    joined: dict[tuple[int, ...], torch.Tensor] = {}
    for parts in filter(None, seen.values()):
        if _ids(parts) not in joined:
            joined[_ids(parts)] = torch.cat(parts)
    return {name: joined[_ids(seen[linear])] for name, linear in linears.items() if seen[linear]}


def _ids(parts: list[torch.Tensor]) -> tuple[int, ...]:
    return tuple(map(id, parts))


class _Copies:
    """Copies of what meets layers, for the model may write over it. Layers that the same x meets share one."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Its rows (B, K)."""
        writes = -1 if x.is_inference() else torch_internals.version(x)  # which these do not count
        if self._last is None or self._last[0] is not x or self._last[1] != writes or writes < 0:
            self._last = x, writes, x.detach().reshape(-1, x.shape[-1]).clone()
        return self._last[2]


@contextmanager
def _told(number: int, batch: Batch) -> Iterator[None]:
    """What a model raises says what it was called with."""
    try:
        yield
    except _Enough:
        raise
    except Exception as error:
        given = [*map(_kind, batch[0]), *(f"{name}={_kind(value)}" for name, value in batch[1].items())]
        error.add_note(f"while the model was called with calibration, call {number}: {', '.join(given)}")
        if any(type(value) is list for value in batch[0]):
            error.add_note("a list is one argument: of a DataLoader's [x, label] give (x for x, _ in loader)")
        raise


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each module of it, nothing tracked, and nothing run that was compiled before there
    were hooks."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        # Without gradients, but where a tensor counts what is written to it.
        with torch.no_grad(), torch_internals.all_eager():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _hooked(linears: Any, keep: Any) -> Iterator[None]:
    """While it lasts, ``keep`` is called with each of the layers and its x, before the layer is."""

    def hook(linear: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = positional[0] if positional else named["input"]
        features: Any = linear.in_features
        if is_nested(x, features):
            x = nested_rows(x)
        # Some calls end before the layer itself can say so.
        if not isinstance(x, torch.Tensor) or x.ndim == 0 or x.shape[-1] != features:
            raise InputError(f"a layer takes (…, {features}), and is called with {_kind(x)}")
        keep(linear, x)

    with ExitStack() as stack:
        for linear in linears:
            handle = linear.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield
