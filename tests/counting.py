"""How many steps something takes: counts where times would depend on the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


def calls_of(function: Callable[[], Any]) -> int:
    """Functions of Python and C that run in it, those that C calls by itself left out."""
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


class _Seeing(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def run_in(function: Callable[[], Any]) -> list[str]:
    """The operators of torch that run in it, by name."""
    with _Seeing() as seen:
        function()
    return seen.names
