"""Groups of ranks last: a thousand calls leak nothing, fifty groups and four at once never meet, all on loopback."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from reliability import Record

from blockshock.phases import correctness
from blockshock.phases.case import Case
from blockshock.ranks import spawn

pytestmark = pytest.mark.reliability

CASE = Case("block_shock", {"kernel": "gathered", "mask": "1100"}, "gaussian", 64, 64, 4, "bf16")


def share(value: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(value)
    return value


@dataclass
class Held:
    """What a process holds."""

    files: int
    threads: int
    resident_bytes: int

    @classmethod
    def by(cls, pid: int) -> Held:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files, threads = (len(os.listdir(f"/proc/{pid}/{name}")) for name in ("fd", "task"))
        return cls(files, threads, pages * os.sysconf("SC_PAGE_SIZE"))


def listening(pid: int) -> list[str]:
    """The addresses that a process listens on, IPv4 and IPv6."""
    sockets = {os.path.basename(os.readlink(path)) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                words = bytes.fromhex(local.partition(":")[0])
                address = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                found.append(socket.inet_ntop(family, address))
    return found


def test_many_calls_leak_nothing_and_listen_on_loopback_only(soak: bool, injected: Record) -> None:
    calls = 1000 if soak else 300
    with spawn(2) as ranks:

        def call(times: int) -> None:
            for _ in range(times):
                ranks.run(share, torch.ones(100))
                if soak:
                    ranks.run(correctness.run, CASE)

        call(calls)  # allocators take their time until they ask for no more
        pids = [os.getpid(), *ranks.pids]
        before, shared = [Held.by(pid) for pid in pids], os.listdir("/dev/shm")
        call(calls)
        assert ranks.starts == 1
        for then, now in zip(before, [Held.by(pid) for pid in pids], strict=True):
            assert now.files <= then.files
            assert now.threads <= then.threads
            assert now.resident_bytes <= 1.01 * then.resident_bytes
        assert os.listdir("/dev/shm") == shared
        assert ranks.run(os.getenv, "GLOO_SOCKET_IFNAME") == ranks.run(os.getenv, "NCCL_SOCKET_IFNAME") == ["lo", "lo"]
        addresses = [address for pid in pids for address in listening(pid)]
        assert addresses
        assert set(addresses) <= {"127.0.0.1", "::1"}
    if soak:
        injected("a thousand calls of one group")


def use_a_group(value: int) -> list[float]:
    with spawn(2) as ranks:
        return [result.item() for result in ranks.run(share, torch.tensor(float(value)))]


@pytest.mark.timeout(1800)
def test_groups_at_once_and_one_after_another(soak: bool, injected: Record) -> None:
    if not soak:
        pytest.skip("starts 63 groups: it runs with --soak; every other test file starts one, beside other workers")
    use_a_group(0)
    files = Held.by(os.getpid()).files
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(use_a_group, range(4))) == [[2.0 * value] * 2 for value in range(4)]
    injected("groups started four at once", times=12)
    for value in range(50):
        assert use_a_group(value) == [2.0 * value] * 2
    assert Held.by(os.getpid()).files == files
    injected("groups started one after another", times=50)
