"""How a process becomes a rank: what it sets up at once."""

from __future__ import annotations

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
