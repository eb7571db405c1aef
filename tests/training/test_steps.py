"""What an optimizer's step costs beside ours, and that whatever changes what an optimizer holds is seen at its step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from counting import calls_of
from torch import nn

from blockshock import BlockShockLinear, elementwise
from blockshock.errors import InputError
from blockshock.machine.collectives import Alone
from blockshock.training.steps import Links, _known, follow, links_of, mark_split


@elementwise
class Still(torch.optim.Optimizer):
    """Changes nothing: its step is what torch and we do around one."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


class Whole(Still):
    """Not known to act elementwise, for it steps in its own way."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


class Told:
    steps = 0
    held: Sequence[torch.Tensor] = ()

    def after_step(self, held: Sequence[torch.Tensor]) -> None:
        self.steps += 1
        self.held = held


def scalars(count: int) -> list[nn.Parameter]:
    """All equal, so that only their identity tells them apart."""
    return [nn.Parameter(torch.zeros(1)) for _ in range(count)]


def test_thousands_of_other_parameters_are_not_asked_one_by_one() -> None:
    layer = BlockShockLinear(nn.Linear(16, 8), kernel="reference")
    few, many = Still(scalars(2)), Still(scalars(2000))
    few.step(), many.step()
    assert calls_of(many.step) == calls_of(few.step) < 120
    alone, beside = Still(layer.parameters()), Still([*scalars(2000), *layer.parameters()])
    alone.step(), beside.step()
    assert calls_of(beside.step) == calls_of(alone.step)


def exchanged(optimizer: Still, new: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"][1] = new


def appended(optimizer: Still, new: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"].append(new)


def another_list(optimizer: Still, new: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"] = [new]


def another_group(optimizer: Still, new: nn.Parameter) -> None:
    optimizer.add_param_group({"params": [new]})


def another_state(optimizer: Still, new: nn.Parameter) -> None:
    optimizer.__setstate__({"param_groups": [{"params": [new]}]})


CHANGES = [exchanged, appended, another_list, another_group, another_state]


@pytest.mark.parametrize("change", CHANGES)
def test_a_parameter_that_an_optimizer_gets_later_is_seen(change: Callable[[Still, nn.Parameter], None]) -> None:
    told, ours = Told(), nn.Parameter(torch.zeros(1))
    follow(ours, told)
    optimizer = Still(scalars(3))
    optimizer.step()
    assert not told.steps
    change(optimizer, ours)
    optimizer.step()
    assert told.steps == 1
    optimizer.param_groups[:] = [{"params": scalars(3)}]
    optimizer.step()
    assert told.steps == 1


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_that_an_optimizer_of_whole_matrices_gets_later_is_refused(
    change: Callable[[Still, nn.Parameter], None],
) -> None:
    told, ours = Told(), nn.Parameter(torch.zeros(1))
    follow(ours, told)
    mark_split(ours, Alone())
    optimizer = Whole(scalars(3))
    optimizer.step()
    change(optimizer, ours)
    with pytest.raises(InputError, match="may look at whole matrices"):
        optimizer.step()
    assert not told.steps


def test_what_becomes_ours_after_a_step_is_seen() -> None:
    told, held = Told(), scalars(3)
    optimizer = Whole(held)
    optimizer.step()
    follow(held[2], told)
    optimizer.step()
    other = Told()
    follow(held[2], other)
    optimizer.step()
    assert (told.steps, other.steps) == (1, 1)
    mark_split(held[2], Alone())
    with pytest.raises(InputError, match="may look at whole matrices"):
        optimizer.step()


def test_a_layer_that_takes_a_linears_place_after_a_step_is_seen() -> None:
    linear = nn.Linear(16, 8)
    optimizer = Still(linear.parameters())
    optimizer.step()
    layer = BlockShockLinear(linear, kernel="reference")
    layer(torch.ones(2, 16)).sum().backward()
    with pytest.raises(InputError, match="build the optimizer after the layer is replaced"):
        optimizer.step()


def test_who_steps_twice_is_told_twice_and_once_for_all_of_its_parameters() -> None:
    told, held = Told(), scalars(3)
    for parameter in held:
        follow(parameter, told)
    optimizer = Still(held)
    optimizer.step(), optimizer.step()
    assert told.steps == 2
    assert [*map(id, told.held)] == [*map(id, held)]
    known = links_of(optimizer)
    assert isinstance(known, Links)
    assert links_of(optimizer) is known
    assert links_of(copy.deepcopy(optimizer)) is not known


def test_an_optimizer_that_is_gone_is_forgotten_and_another_in_its_place_is_looked_at() -> None:
    told, ours = Told(), nn.Parameter(torch.zeros(1))
    follow(ours, told)
    for count in range(10):  # some lie where one lay before
        optimizer = Still(scalars(1) if count % 2 else [ours])
        optimizer.step(), optimizer.step()
        assert told.steps == 2 * (count // 2 + 1)
        key = id(optimizer)
        del optimizer
        assert key not in _known
