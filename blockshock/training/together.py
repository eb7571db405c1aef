"""Weights of one layer that are looked at together: once before a product, once after an optimizer's step.

Each storage can do so by itself; of a small layer that takes longer than its products.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakMethod

import torch
from torch.autograd.graph import increment_version

from blockshock.errors import StalePacking
from blockshock.machine import all_states_of, kept_states_of, states_of, torch_internals
from blockshock.training.sparse_storages import CompressedStorage


class Together:
    """Follows the parameters of some storages in their place. A subclass says what is made of what they hold.

    Where parameters are the packings' own memory, a step leaves nothing to be written there.

    Args:
        left: told when they are looked at each by itself again.

    Attributes:
        parts: the storages; the first has the bias, if there is one.
        held: the parameters of each, and its bias or None, as they are now.
        writes: how often it was made.
        is_own: parameters are the packings' own memory.
    """

    def __init__(self, parts: Sequence[CompressedStorage], left: WeakMethod[Callable[[], None]] | None = None) -> None:
        self.parts, self.writes, self._left = parts, 0, left
        self._seen: list[Any] = []
        self._states_of = all_states_of
        self._lock = threading.RLock()
        self.held = [part._parameters.values() for part in parts]
        watched = {id(one[0]): one for part in parts if (one := part.mask.watched) is not None}
        self._marks = [writes for _, writes in watched.values()]  # halves have one mask in common
        self._followed = [*self.held, [tensor for tensor, _ in watched.values()]]
        for part in parts:
            part.lead(self)
        self._look()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy is made of copied parts, anew

    def renew(self) -> None:
        """Be made of what the packings hold, which may lie elsewhere than before."""
        raise NotImplementedError

    def make(self) -> None:
        """The same, where all lies where it lay."""
        raise NotImplementedError

    def check(self) -> None:
        """Be what the parameters are.

        Raises:
            StalePacking, MaskError: as each of the storages does.
        """
        if self._states_of(self._followed)[0] != self._seen:
            self._look_again()

    def _look_again(self) -> None:
        """Once for all threads that come for a product at a time."""
        with self._lock:
            if self._states_of(self._followed)[0] != self._seen:
                for part in self.parts:
                    part.check()
                self._look()

    def check_since(self, writes: int) -> None:
        """Raises StalePacking if it was made anew since, or a weight changed."""
        if self.writes == writes and self._states_of(self._followed)[0] == self._seen:
            return
        if self.writes != writes or not self._seen or any(part.has_changed for part in self.parts):
            raise StalePacking.before_backward(self.parts[0].parameter)

    def _look(self) -> None:
        """Of packings that hold what the parameters are: find out where, and be made of it."""
        own = [part.shares_memory() for part in self.parts]
        self._lasts = not torch.is_inference_mode_enabled()  # whose tensors are not to be written later
        self.is_own = all(own) and self._lasts
        self._states_of = kept_states_of if self.is_own else all_states_of
        self._apart = _apart(self.parts) if self.is_own else []
        self.renew()
        self._packings, self._known, count = [vars(part.packed) for part in self.parts], [], 0
        for part, held in zip(self.parts, self.held, strict=True):
            part.states[:] = states_of((held,))
            for at in range(0, len(part.states), 3):
                self._known.append((part.states, at, 2 * count))
                count += 1
        self._masks = slice(2 * count, None, 2)
        seen, _ = self._states_of(self._followed)
        self._where = seen[1::2]
        self.writes += 1
        self._is(seen)
        if type(self.parts[0].packed.values.new_empty(0)) is not torch.Tensor:
            self.forget()  # a mode made what holds no numbers: who comes without it makes it anew

    def _is(self, seen: list[Any]) -> None:
        """It was made of what was so."""
        seen[self._masks] = self._marks  # a mask that changed meanwhile is one that changed
        self._seen = seen  # last: who finds this goes on with all of it

    def forget(self) -> None:
        self._seen = []

    def disband(self) -> None:
        """From now on each storage follows its own parameters."""
        for part in self.parts:
            del vars(part)["_leader"]
            part._follow()
        if self._left is not None and (told := self._left()) is not None:
            told()

    def after_step(self, held: Sequence[torch.Tensor]) -> None:
        """What the step of an optimizer ends with that holds these of the parameters."""
        seen, _ = self._states_of(self._followed)
        if seen[1::2] != self._where or not self._lasts:
            self._take_over(held)
            self._look()
            return
        written = seen[:1] != self._seen[:1] or not all(part.is_spared(held) for part in self.parts)
        if not self.is_own:
            self._take_over(held)
            seen, _ = self._states_of(self._followed)
        elif written:
            if self._apart:
                increment_version(self._apart)
            for packing in self._packings:
                packing["writes"] += 1
        for known, at, index in self._known:
            known[at] = seen[index]
        if written or not self.is_own:
            self.make()
        self.writes += written
        self._is(seen)

    def _take_over(self, held: Sequence[torch.Tensor]) -> None:
        for part in self.parts:
            part.after_step(held)


def _apart(parts: Sequence[CompressedStorage]) -> list[torch.Tensor]:
    """Those packings' values whose writes are not counted where their parameters' are, though their memory is one."""
    found = []
    for part in parts:
        values, before = part.packed.values, torch_internals.version(part.parameter)
        increment_version([values])
        if torch_internals.version(part.parameter) == before:
            found.append(values)
    return found
