"""Steps that graphs replay are the eager ones, bit for bit; by graphs of Python, which a CPU has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from blockshock.errors import InputError
from blockshock.models import build_task
from blockshock.phases import curves
from blockshock.phases.pupil import Pupil
from blockshock.training import StepGraphs, captured
from blockshock.training.recipes import estimators, schedule, storage
from blockshock.training.sparse import StepAdamW, step_adamw

CPU = torch.device("cpu")
STEPS = 12
RECIPES = (
    *("dense", "ste", "sr_ste:every=3", "fst:every=2:dense_from=9", "s_ste", "step:latest=6", "pruned:dense_until=6"),
    *("supermask:size=8", "dropout24:act=gelu", "activation:act=gelu"),
)
KINDS = {"dense": 1, "sr_ste:every=3": 2, "fst:every=2:dense_from=9": 4, "pruned:dense_until=6": 3}
"""Of steps. fst: sparse, with a mask, the last sparse one, dense."""


class PythonGraphs:
    """Graphs of all steps of a pupil. What the host had counted at a capture, each replay goes by again."""

    def __init__(self, pupil: Pupil, patch: pytest.MonkeyPatch) -> None:
        self._pupil, self._patch, self.captures = pupil, patch, 0
        patch.setattr(captured, "capture", self._capture)
        patch.setattr(pupil, "_graphs", StepGraphs(pupil.storages, pupil._optimizer, CPU))

    def _counted(self) -> list[tuple[Any, str, Any]]:
        held = [(one, name) for one in self._pupil.storages for name in ("steps", "switched", "draws")]
        held += [(one.packed, "is_sparse") for one in self._pupil.storages]
        return [(one, name, getattr(one, name)) for one, name in held]

    def _capture(self, step: Callable[[], object], pool: object) -> Callable[[], object]:
        group = self._pupil._optimizer.param_groups[0]
        self.captures += 1
        counted, of_group = self._counted(), {name: group.get(name) for name in ("steps", "switched")}

        def replay() -> None:
            now, group_now = self._counted(), {name: group[name] for name in of_group if name in group}
            self._set(counted)
            group.update({name: of_group[name] for name in group_now})
            with self._patch.context() as patch:
                for module in (storage, step_adamw, estimators):
                    patch.setattr(module, "is_capturing", lambda device: True)
                step()
            self._set(now)
            group.update(group_now)

        return replay

    @staticmethod
    def _set(counted: list[tuple[Any, str, Any]]) -> None:
        for one, name, value in counted:
            setattr(one, name, value)


def taught(recipe: str, task: str = "digits") -> Pupil:
    found = build_task(task)
    found.load(CPU, None)
    return Pupil(found, CPU, recipe, STEPS, seed=0)


def learned(recipe: str, patch: pytest.MonkeyPatch, is_captured: bool) -> tuple[Pupil, list[list[float]], int]:
    pupil = taught(recipe)
    graphs = PythonGraphs(pupil, patch) if is_captured else None
    curve = pupil.learn(list(range(1, STEPS + 1)))
    return pupil, [curve.bits, curve.flip_rate], graphs.captures if graphs else 0


@pytest.fixture
def one_stream(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eager steps draw from torch's own generator too, as graphs do."""
    monkeypatch.setattr(storage, "stream", lambda *_: None)
    return monkeypatch


@pytest.mark.parametrize("recipe", RECIPES)
def test_replayed_steps_are_the_eager_ones(recipe: str, one_stream: pytest.MonkeyPatch) -> None:
    eager, found, _ = learned(recipe, one_stream, False)
    other, again, captures = learned(recipe, one_stream, True)
    assert again == found
    for one, two in zip(eager.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
    counted = [[(one.steps, one.switched, one.is_sparse) for one in pupil.storages] for pupil in (eager, other)]
    assert counted[0] == counted[1]
    assert captures == KINDS.get(recipe, captures)


def test_step_switches_by_what_a_graph_has_seen(one_stream: pytest.MonkeyPatch) -> None:
    """Before ``latest``: what the host decides of it after a replay is no other than what an eager step decides."""
    one_stream.setattr(StepAdamW, "_has_settled", lambda self, seen: seen == 3)
    eager, found, _ = learned("step:latest=10", one_stream, False)
    other, again, captures = learned("step:latest=10", one_stream, True)
    assert again == found
    changes = [pupil._optimizer.param_groups[0]["changes"] for pupil in (eager, other)]
    torch.testing.assert_close(*changes, rtol=1e-12, atol=0)  # sums, in an order of their own
    assert changes[0].count_nonzero() == 3
    assert all(one.switched and one.steps == STEPS for one in other.storages)
    assert captures == 2, "until the switch, and after it"


def forgets_masks(patch: pytest.MonkeyPatch) -> None:
    kind_of = schedule.kind_of
    patch.setattr(storage.RecipeStorage, "kind", lambda self, by=None: _kind_without_masks(kind_of, self))


def _kind_without_masks(kind_of: Callable[..., schedule.Kind], held: Any) -> schedule.Kind:
    return kind_of(held.recipe, held.every, held.steps, held.switched, held.switched)._replace(takes_mask=False)


def never_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StepGraphs, "_count", lambda self: None)


def one_graph_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StepGraphs, "_kind", lambda self: None)


def draws_beside(patch: pytest.MonkeyPatch) -> None:
    """What is made before a capture moves torch's generator."""
    patch.setattr(torch.random, "fork_rng", lambda devices: torch.enable_grad())


@pytest.mark.parametrize(
    ("planted", "recipe"),
    [
        (forgets_masks, "fst:every=2:dense_from=9"),
        (never_counts, "fst:every=2:dense_from=9"),
        (never_counts, "step:latest=6"),
        (one_graph_for_all, "fst:every=2:dense_from=9"),
        (one_graph_for_all, "pruned:dense_until=6"),
        (one_graph_for_all, "step:latest=6"),
        (draws_beside, "dropout24:act=gelu"),
    ],
)
def test_a_graph_that_does_not_do_what_its_step_does_is_found(
    planted: Callable[[pytest.MonkeyPatch], None], recipe: str, one_stream: pytest.MonkeyPatch
) -> None:
    _, found, _ = learned(recipe, one_stream, False)
    with one_stream.context() as patch:
        planted(patch)
        assert learned(recipe, patch, True)[1] != found


def test_other_optimizers_are_not_captured() -> None:
    with pytest.raises(InputError, match="steps of AdamW alone are captured, got SGD: make eager ones"):
        StepGraphs([], torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))]), CPU)


def test_a_cpu_makes_eager_steps_and_says_nothing_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pupil = taught("dense")
    pupil.capture()
    assert pupil._graphs is None
    monkeypatch.setattr(curves, "this_device", lambda: CPU)
    case = curves.curve_case("dense", "digits", "cpu", "fp32", 0, 4, 1, None)
    assert curves._warm_up(case, pupil.task)[1] is None
