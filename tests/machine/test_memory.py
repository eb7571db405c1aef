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


@pytest.mark.parametrize(("used", "given_back"), [(3 << 30, 0), (0, 0), (0, 1)])
def test_room_for_a_capture_is_what_this_process_keeps_and_does_not_use(
    used: int, given_back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    stats = {"reserved_bytes.all.current": KEPT, "allocated_bytes.all.current": used}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _: stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (KEPT - used - given_back, 8 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(KEPT))
    memory.make_room(torch.device("cuda"))
    assert len(given) == given_back
