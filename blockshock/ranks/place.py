"""Where a process that torchrun started stands among the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Which rank this is, of how many, in the job and on this machine; and how many machines there are."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    nodes: int

    @classmethod
    def here(cls) -> Place | None:
        """From what torchrun sets in the environment; None in a process that it did not start."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
        return cls(*(int(os.environ[name]) for name in names))

    def started_by_a_rank(self) -> bool:
        """Whether torchrun started not this process but the one that started it: a script of this rank, or a shell."""
        ours = {f"{name}={os.environ[name]}".encode() for name in ("TORCHELASTIC_RUN_ID", "RANK")}
        try:
            return ours <= set(Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0"))
        except OSError:  # it is gone, or another user's
            return False
