"""How a process becomes a rank: what it has of its GPU, and what it sets up at once."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from blockshock.ranks import join


def test_a_rank_alone_sets_up_no_communicator_and_others_do_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[object] = []
    monkeypatch.setattr(torch, "zeros", lambda size, device: noted.append(device))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, device_id, **__: noted.append(device_id))
    monkeypatch.setattr(dist, "all_reduce", lambda _: noted.append("all_reduce"))
    gpu = torch.device("cuda", 0)
    join.join(0, 1, "cuda", timedelta(seconds=9))
    assert noted == [None, gpu]
    noted.clear()
    join.join(0, 2, "cuda", timedelta(seconds=9))
    assert noted == [gpu, gpu, "all_reduce"]


@pytest.mark.parametrize("users", [None, "1"])
def test_a_rank_has_all_of_cudas_queues_unless_the_user_says_how_many(
    users: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA reads it: when a process uses its GPU for the first time."""
    found = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: found.append(os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]))
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", users or "")  # to be as it was, in the end
    if users is None:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    join.bind("cuda", 0, 2)
    assert found == [users or "32"]
