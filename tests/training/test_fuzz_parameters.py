"""What stands beside parameters: norms of gradients, writes that are seen, differences, optimizers that are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import ANY, counts, equal, matrices, matrix, names, numbers, seeds, with_special
from torch import nn

from blockshock import clip_grad_norm_, elementwise
from blockshock.machine.collectives import Alone, groups_of, ranks_of
from blockshock.training import elementwise as _elementwise
from blockshock.training.seen import Seen, first_difference
from blockshock.training.steps import check_elementwise, mark_split, split_over

pytestmark = pytest.mark.reliability

ORDERS = (0.5, 1, 1.0, 2, 3.5, "2", float("inf"), "inf")


@examples(430)
@given(
    seed=seeds, count=st.integers(0, 3), most=numbers, p=st.sampled_from(ORDERS) | numbers | names | st.none(),
    special=st.booleans(), alone=st.booleans(), foreach=st.none() | st.booleans(),
)  # fmt: skip
def test_gradients_are_clipped_as_torch_clips_them(
    seed: int, count: int, most: float, p: Any, special: bool, alone: bool, foreach: bool | None
) -> None:
    ours, theirs = ([nn.Parameter(torch.zeros(2, 3)) for _ in range(count)] for _ in range(2))
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        mine.grad = matrix(2, 3, torch.float32, seed + index) * (float("inf") if special and not index else 1)
        other.grad = mine.grad.clone()
        mark_split(mine, Alone())
        assert split_over(mine) == []
    given_parameters = ours[0] if alone and count == 1 else ours
    norm = attempt(clip_grad_norm_, given_parameters, most, p, foreach=foreach)
    assert norm is not None or most != most or most < 0 or p not in ORDERS
    if norm is None or (not 0.5 <= float(p) <= 4 and p not in ("inf", float("inf"))):
        return  # torch's own sum of such powers leaves float32
    wanted = torch.nn.utils.clip_grad_norm_(theirs, float(min(most, 1e30)), float(p))
    torch.testing.assert_close(norm.float(), wanted.float(), equal_nan=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, equal_nan=True, rtol=1e-4, atol=1e-5)


@examples(60)
@given(group=names | counts | st.builds(object) | st.builds(Alone))
def test_a_group_is_one_of_ranks_or_refused(group: Any) -> None:
    is_one = isinstance(group, Alone)
    assert attempt(groups_of, group) == ([group] if is_one else None)
    assert isinstance(attempt(ranks_of, group), Alone) == is_one
    assert (attempt(clip_grad_norm_, [], 1.0, group=group) is not None) == is_one


READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "read": lambda w: w.sum(),
    "copied": lambda w: w.clone().add_(1),
    "viewed": lambda w: w.view(-1)[1:],
    "asked": lambda w: (w.is_contiguous(), w.data_ptr()),
}
WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "added": lambda w: w.add_(1),
    "a view": lambda w: w.view(-1)[:1].zero_(),
    "an element": lambda w: w.__setitem__((0, 0), 3),
    "other data": lambda w: setattr(w, "data", torch.ones_like(w)),
    "set_": lambda w: w.set_(torch.ones_like(w)),
}


@examples(190)
@given(w=matrices(st.integers(1, 4), st.integers(2, 5)), does=st.lists(st.sampled_from([*READS, *WRITES]), max_size=4))
def test_every_write_that_torch_counts_is_seen(w: torch.Tensor, does: list[str]) -> None:
    w = w.contiguous()
    seen = Seen(w)
    for name in does:
        (READS | WRITES)[name](w)
    assert seen.is_still(w) == (not set(does) & set(WRITES))
    assert Seen(w).is_still(w)


@examples(310)
@given(found=matrices(st.integers(1, 4), st.integers(1, 5), ANY), seed=seeds, special=st.booleans())
def test_the_first_different_bits_are_named(found: torch.Tensor, seed: int, special: bool) -> None:
    should = found.contiguous()
    if special and found.is_floating_point():
        should = with_special(should, seed, (float("nan"), -0.0, 65504.0))
    what = first_difference(found, should)
    assert (what is None) == equal(found, should)
    places = [tuple(where) for where in torch.ones(found.shape).nonzero().tolist()]
    different = [where for where in places if not equal(found[where], should[where])]
    assert what is None or f" at {different[0]}, not {should[different[0]].item()}" in what


KINDS = (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad)
WHOLE = (torch.optim.Adafactor, torch.optim.LBFGS, torch.optim.Muon)


@examples(60)
@given(kind=st.sampled_from((*KINDS, *WHOLE)), part=st.booleans(), own=st.booleans(), said=st.booleans())
def test_an_optimizer_of_parts_acts_elementwise_or_is_refused(kind: Any, part: bool, own: bool, said: bool) -> None:
    chosen = type("Own", (kind,), {"step": lambda self: None} if own else {})
    held = nn.Parameter(torch.zeros(2, 4))
    if part:
        mark_split(held, Alone())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_elementwise, "_ELEMENTWISE", copy.copy(_elementwise._ELEMENTWISE))
        optimizer = (elementwise(chosen) if said else chosen)([held], lr=0.1)
        taken = attempt(lambda: check_elementwise(optimizer) or True)
    assert (taken is not None) == (not part or said or (kind in KINDS and not own))


@examples(30)
@given(kind=st.sampled_from((*KINDS, *WHOLE)), follows=st.booleans(), own=st.booleans())
def test_an_optimizer_that_computes_losses_within_its_step_is_refused_by_layers(
    kind: Any, follows: bool, own: bool
) -> None:
    chosen = type("Own", (kind,), {}) if own else kind
    taken = attempt(lambda: _elementwise.check_within(chosen, follows) or True)
    assert (taken is None) == (follows and kind is torch.optim.LBFGS)
