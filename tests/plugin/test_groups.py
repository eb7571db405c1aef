"""Which ranks run what: a row of one device by itself, a pair together with what it is compared with."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus
from resolving import CPU_DEFAULTS

from blockshock.errors import MaskError
from blockshock.machine import memory
from blockshock.phases import obstacle
from blockshock.phases.case import Case
from blockshock.plugin import Row
from blockshock.plugin.groups import Groups
from blockshock.ranks import RankError

BOTH = Case("dense_tp_row", {}, "gaussian", 64, 64, 4, "fp32")
ALONE = BOTH.of("dense_single")


def _place() -> tuple[int, int]:
    return dist.get_world_size(), os.getpid()


def test_what_runs_on_one_device_has_a_rank_of_its_own_and_no_other_is_started_for_it() -> None:
    with Groups(CPU_DEFAULTS) as groups:
        ((size, pid),) = groups.of(ALONE, ALONE).run(_place)
        assert size == 1
        assert groups.of(ALONE).pids == [pid]
        assert list(groups._started) == [1]
    with pytest.raises(RuntimeError, match="closed"):
        groups.of(ALONE).run(_place)


def test_a_pair_runs_on_all_ranks_if_one_of_it_does() -> None:
    groups = Groups(replace(CPU_DEFAULTS, ranks=4))
    assert [groups.size(*cases) for cases in ([ALONE], [BOTH], [ALONE, BOTH], [BOTH, ALONE])] == [1, 4, 4, 4]
    assert Groups(replace(CPU_DEFAULTS, ranks=1)).size(BOTH) == 1


def test_ranks_that_torchrun_started_compute_all_together() -> None:
    assert Groups(CPU_DEFAULTS, cast(Any, object())).size(ALONE) == CPU_DEFAULTS.ranks


def _fill(gibibytes: int) -> None:
    torch.empty(gibibytes << 30, dtype=torch.uint8, device="cuda")


def _free() -> int:
    return memory.free_bytes(torch.device("cuda"))


@pytest.mark.gpu2
@needs_two_gpus
def test_what_a_group_has_kept_is_given_back_before_another_has_its_turn() -> None:
    with Groups(replace(CPU_DEFAULTS, device="cuda")) as groups:
        before = min(groups.of(BOTH).run(_free))
        groups.of(BOTH).run(_fill, 8)
        assert groups.of(ALONE).run(_free)[0] > before - (4 << 30)


def test_what_is_refused_on_a_rank_is_said_before_where_that_was() -> None:
    class Refusing:
        def run(self, function: Any, *_: object) -> list[None]:
            if function is obstacle:
                return [None]
            raise MaskError("pruner mine: not 2:4: row 0") from RankError("rank 0 raised MaskError; its own traceback")

    row = Row.__new__(Row)
    vars(row)["_groups"] = SimpleNamespace(of=lambda *_: Refusing())
    with pytest.raises(pytest.fail.Exception, match=r"^pruner mine: not 2:4: row 0\n\nrank 0 raised") as failed:
        row.run(print, ALONE)
    assert not failed.value.pytrace
