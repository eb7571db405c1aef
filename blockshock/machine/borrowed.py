"""Process groups end with ``destroy_process_group()``, whatever layers of theirs are left.

torch ends a group, and joins gloo's threads, when nobody holds it any more. Layers, their graphs and the marks of
their parameters outlive it, up to the end of Python: a thread that then comes to free a Python object, such as the
default device that a collective was started under, aborts the process.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch.distributed as dist

from blockshock.errors import InputError


class Borrowed:
    """A group that whoever keeps this does not keep alive."""

    def __init__(self, group: Any) -> None:
        self._is_weak = isinstance(group, dist.ProcessGroup)
        self._lent = ref(group) if self._is_weak else group

    @property
    def group(self) -> Any:
        """Raises InputError where it is destroyed."""
        group = self._lent() if self._is_weak else self._lent
        if group is None:
            raise InputError("the process group of these ranks is destroyed: build the layer anew, on another one")
        return group

    def __deepcopy__(self, memo: dict[int, Any]) -> Borrowed:
        return self
