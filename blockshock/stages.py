"""Named stages of a forward pass that cost nothing when nobody is timing.

    with stage("matmul"):
        part_BN = F.linear(x_BK, w_NK)

Stages nest; each is charged its own time without that of the stages inside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_recorder: Recorder | None = None
_NOTHING = nullcontext()


class Recorder:
    """Collects the marks around each stage of one pass, and the bytes that the layout stages copied.

    Args:
        mark: makes a mark now (a host time, or an event recorded on the device).
    """

    def __init__(self, mark: Callable[[], Any]) -> None:
        self._mark = mark
        self._spans: list[tuple[str, int | None, Any, Any]] = []
        self._open: list[int] = []
        self.copied_bytes = 0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        index = len(self._spans)
        start = self._mark()
        self._spans.append((name, self._open[-1] if self._open else None, start, None))
        self._open.append(index)
        try:
            yield
        finally:
            self._open.pop()
            self._spans[index] = (*self._spans[index][:3], self._mark())

    def seconds(self, elapsed: Callable[[Any, Any], float]) -> dict[str, float]:
        """Own time of each stage name, in the unit of ``elapsed(start mark, end mark)``."""
        totals: dict[str, float] = defaultdict(float)
        for name, parent, start, end in self._spans:
            duration = elapsed(start, end)
            totals[name] += duration
            if parent is not None:
                totals[self._spans[parent][0]] -= duration
        return dict(totals)


@contextmanager
def recording(mark: Callable[[], Any]) -> Iterator[Recorder]:
    """Record the stages that run inside this block."""
    global _recorder
    outer, _recorder = _recorder, Recorder(mark)
    try:
        yield _recorder
    finally:
        _recorder = outer


def stage(name: str) -> AbstractContextManager[None]:
    """A stage of the pass; a shared do-nothing context when nobody records."""
    return _NOTHING if _recorder is None else _recorder.span(name)


def in_stage(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, as a stage: where nobody records, in fewer steps than a ``with`` takes."""
    if _recorder is None:
        return function(*arguments)
    with _recorder.span(name):
        return function(*arguments)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Say that this tensor is a copy made only for its layout; returns it."""
    if _recorder is not None:
        _recorder.copied_bytes += tensor.nbytes
    return tensor
