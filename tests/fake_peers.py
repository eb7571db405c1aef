"""Memory that CPU ranks read of each other, in the place of that of GPUs: for what is built on it, without a GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
import torch
import torch.distributed as dist

from blockshock.machine.combines import fused, symmetric
from blockshock.machine.combines.fused import Fused
from blockshock.machine.combines.overlap import Overlap
from blockshock.machine.combines.symmetric import OneShot, PeerAdd, TwoShot
from blockshock.machine.combines.workspace import Workspace, workspace_bytes

MISSING = -1.0
"""What peers see of memory that its rank has not written."""


class FakeWorkspace(Workspace):
    """Files that all ranks map; the second stream is the first, and what ranks wait for each other by is gloo's."""

    def __init__(self, group: Any, size: int, device: torch.device) -> None:
        self.size, self.rank, self.ranks, self._group = size, group.rank(), group.size(), group
        self._device = device
        first = torch.tensor([os.getpid()])
        dist.broadcast(first, 0, group=group)
        self._paths = [Path(gettempdir()) / f"blockshock-peers-{first.item()}-{rank}" for rank in range(self.ranks)]
        self._paths[self.rank].write_bytes(bytes(size))
        dist.barrier(group=group)
        self._memories = [torch.from_file(str(path), True, size, dtype=torch.uint8) for path in self._paths]
        dist.barrier(group=group)
        self._paths[self.rank].unlink()
        self._memories[self.rank].view(torch.float32).fill_(MISSING)

    def view(self, rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._memories[rank][: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def barrier(self) -> None:
        dist.barrier(group=self._group)

    def add_up(self, shots: str, part: torch.Tensor, total: torch.Tensor) -> None:
        assert part.nbytes % 4 == 0, "torch reads four bytes at a time"
        assert part.data_ptr() == self._memories[self.rank].data_ptr(), "peers read elsewhere"
        self.barrier()
        views = [self.view(rank, tuple(part.shape), part.dtype) for rank in range(self.ranks)]
        total.copy_(torch.stack(views).sum(0))
        self.barrier()

    def enter(self) -> None:
        pass

    @contextmanager
    def beside(self) -> Iterator[None]:
        yield

    def mark(self) -> Any:
        return None

    def wait_for(self, mark: Any) -> None:
        pass

    def wait(self) -> None:
        pass


@contextmanager
def faked(most_bytes: int = 1 << 20, made: type[FakeWorkspace] = FakeWorkspace) -> Iterator[None]:
    """GPUs' ways of combining run on CPU ranks."""

    def fake(group: Any, needed: int, device: torch.device, use: str = "parts") -> FakeWorkspace:
        return made(group, min(workspace_bytes(needed), most_bytes), device)

    with pytest.MonkeyPatch.context() as patch:
        for module in (symmetric, fused):
            patch.setattr(module, "workspace_for", fake)
        for kind in (OneShot, TwoShot, PeerAdd, Overlap, Fused):
            patch.setattr(kind, "device_types", ("cpu", "cuda"))
        yield
