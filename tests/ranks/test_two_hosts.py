"""One torchrun job on two machines: network namespaces of this one, joined by a pair of virtual interfaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from processes import descendants, lives, wait_until_gone
from reliability import Record
from torchrun_jobs import fill, job, wait_for

RANK_TIMEOUT = 10
ADDRESS = "10.77.0.1"

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="makes network namespaces: run it as root, with iproute2 (apt-get install iproute2)",
    ),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces that reach each other."""
    names = [f"blockshock-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth1", "netns", names[1])
        for number, (name, link) in enumerate(zip(names, ("veth0", "veth1"), strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextmanager
def jobs(folder: Path, hosts: Sequence[str], *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The torchrun of each host, with one rank each."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                job(
                    folder,
                    ["--nnodes=2", f"--node-rank={number}", f"--master-addr={ADDRESS}", "--nproc-per-node=1"],
                    *arguments,
                    inside=["ip", "netns", "exec", host],
                )
            )
            for number, host in enumerate(hosts)
        ]


def read(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """All that the processes print until they end."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda process: process.communicate(timeout=280)[0], processes))


def test_two_hosts_run_one_session_until_one_of_them_vanishes(
    tmp_path: Path, hosts: list[str], injected: Record
) -> None:
    tests = ["tests/test_phase0_correctness.py", "tests/test_at_fault.py", "-k=dense or talks"]
    with jobs(fill(tmp_path), hosts, *tests, "-s", "-v", f"--rank-timeout={RANK_TIMEOUT}") as both:
        before = wait_for("talking", both[0])
        assert "torchrun: 2 ranks on 2 machine(s)" in before
        assert before.count("PASSED") == 4, before
        wait_for("talking", both[1])
        pids = [pid for process in both for pid in descendants(process.pid)]
        began = time.monotonic()
        ip("-n", hosts[1], "link", "set", "veth1", "down")
        first, second = read(both)
        seconds = time.monotonic() - began
        wait_until_gone(pids)
        assert all(process.returncode for process in both)
    assert "session starts" not in second, "rank 0 reports"
    assert f"nothing was heard of rank 1 on {os.uname().nodename} for {RANK_TIMEOUT} s" in first
    assert f"the store that connects the ranks has not answered for {RANK_TIMEOUT} s: is the network down?" in second
    assert "in talk_for" in first, "where the rank was that could not be freed"
    injected("torchrun: the network between two hosts goes down", seconds=seconds, orphans=sum(map(lives, pids)))
