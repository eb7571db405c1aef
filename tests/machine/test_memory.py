"""Memory that is free: what a process keeps for itself is given back only where it is needed."""

from __future__ import annotations

import pytest
import torch

from blockshock.machine import memory

KEPT = 3 << 30
"""Bytes that this process keeps, of a GPU of which no other byte is taken."""


@pytest.mark.parametrize(
    ("enough", "found", "given_back"),
    [(None, 8 << 30, 1), (5 << 30, 5 << 30, 0), ((5 << 30) + 1, 8 << 30, 1), (9 << 30, 8 << 30, 1)],
)
def test_what_is_kept_is_given_back_where_it_is_needed(
    enough: int | None, found: int, given_back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, given = torch.device("cuda"), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: ((8 << 30) - (0 if given else KEPT), 8 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(KEPT))
    assert memory.free_bytes(device, enough) == found
    assert len(given) == given_back
