"""Modules under the names that they had before the package had wings: layers that were pickled whole name them.

So do a user's own ``conftest.py`` and scripts of then. ``blockshock.sparse`` is the short name of a wing's part.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "blockshock.borrowed": "blockshock.machine.borrowed",
    "blockshock.collectives": "blockshock.machine.collectives",
    "blockshock.compressed": "blockshock.matrices.compressed",
    "blockshock.half_storages": "blockshock.training.sparse_storages",
    "blockshock.training.half_storages": "blockshock.training.sparse_storages",
    "blockshock.kept": "blockshock.matrices.kept",
    "blockshock.linear": "blockshock.nn.linear",
    "blockshock.mask_state": "blockshock.matrices.saved_mask",
    "blockshock.masks": "blockshock.matrices.masks",
    "blockshock.patterns": "blockshock.matrices.named_masks",
    "blockshock.row_patterns": "blockshock.matrices.repeating_rows",
    "blockshock.sparse": "blockshock.training.sparse",
    "blockshock.workloads": "blockshock.matrices.workloads",
}


class _ByOldName(MetaPathFinder, Loader):
    """Asked first: an older installation beside this one must not be found."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def know_old_names() -> None:
    """Have ``import`` find what moved."""
    sys.meta_path.insert(0, _ByOldName())
