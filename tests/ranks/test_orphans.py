"""However the process that has ranks ends, at whatever moment, none of its processes is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gpus import CPU_AND_TWO_GPUS
from inner_pytest import ROOT, python_path, start, suite
from processes import END_SECONDS, ended, lives, session, wait_until_gone
from reliability import Record

pytestmark = [pytest.mark.reliability, pytest.mark.usefixtures("heeded_interrupts")]


SCRIPT = textwrap.dedent("""
    import ctypes
    import sys
    import threading
    import time

    import torch.distributed as dist

    from blockshock.ranks import Ranks, spawn


    def stall(in_native_code):
        if dist.get_rank() == 0:
            print("stalled", flush=True)
            dist.barrier()
        elif in_native_code:
            ctypes.PyDLL(None).sleep(600)  # keeps the interpreter lock
        else:
            time.sleep(600)


    def main():
        groups = []
        if "thread" in sys.argv:
            starter = threading.Thread(target=lambda: groups.append(spawn(2)))
            starter.start()
            starter.join()
        else:
            groups.append(spawn(2))
        if "return" not in sys.argv:
            groups[0].run(stall, "native" in sys.argv)


    if __name__ == "__main__":
        main()
""")


@contextmanager
def run_script(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start SCRIPT as the leader of a new session, to which its ranks then belong as well; kill what is left of it."""
    path = folder / "script.py"
    path.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env=os.environ | {"PYTHONPATH": python_path(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with ended(parent):
        yield parent


@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGTERM, "native"), (signal.SIGKILL, "thread")],
    ids=["SIGTERM in native code", "SIGKILL of the parent of a thread"],
)
def test_no_rank_outlives_its_parent(tmp_path: Path, number: signal.Signals, how: str) -> None:
    with run_script(tmp_path, how) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "stalled\n"
        pids = session(parent.pid)
        assert len(pids) == 4, "the parent, its tracker, two ranks"
        parent.send_signal(number)
        assert parent.wait(timeout=60) == -number
        wait_until_gone(pids)
        assert "Traceback" not in parent.communicate(timeout=60)[1]


def test_parent_that_does_not_close_ends_cleanly(tmp_path: Path) -> None:
    with run_script(tmp_path, "return") as parent:
        output, errors = parent.communicate(timeout=120)
    assert (parent.returncode, output, errors) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


# pytest itself.

WAITING = """
import os, time
from pathlib import Path

import pytest
import torch, torch.distributed as dist

def wait_for_rank_1():
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    held = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    if dist.get_rank() == 1:
        Path("collective").touch()
        time.sleep(600)
    dist.all_reduce(held)

def test_ends(ranks, request):
    request.addfinalizer(Path("end").touch)

def test_waits(ranks):
    ranks.run(wait_for_rank_1)
"""
MOMENTS = {"start-up": "test_waits", "collective": "test_waits", "end": "test_ends"}
IN_CI = [("SIGKILL", "start-up"), ("SIGINT", "collective"), ("SIGTERM", "end")]


def used_gpu_mib() -> int:
    """What nvidia-smi says is taken of all GPUs, in MiB; 0 without GPUs."""
    if not torch.cuda.device_count():
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(map(int, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()))


@pytest.mark.parametrize("device", CPU_AND_TWO_GPUS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_pytest_leaves_nothing(
    number: str, moment: str, device: str, tmp_path: Path, soak: bool, injected: Record
) -> None:
    if device == "cpu" and not soak and (number, moment) not in IN_CI:
        pytest.skip("each signal and each moment has had its turn: all pairs of them run with --soak")
    (suite(tmp_path) / "tests" / "test_waiting.py").write_text(WAITING)
    before = used_gpu_mib()
    with ended(start(tmp_path, f"--device={device}", "-k", MOMENTS[moment], new_session=True)) as process:
        deadline = time.monotonic() + 240
        while not begun(moment, process.pid, tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        began = time.monotonic()
        os.kill(process.pid, signal.Signals[number])
        process.wait(timeout=60)
        left = [pid for pid in session(process.pid) if pid != process.pid]
        wait_until_gone(left)
        while used_gpu_mib() > before:
            assert time.monotonic() - began < END_SECONDS, "GPU memory is not back"
        seconds = time.monotonic() - began
    injected(f"pytest gets {number}: {moment}", seconds=seconds, orphans=sum(map(lives, left)))


def begun(moment: str, leader: int, folder: Path) -> bool:
    """Whether it is time: the ranks' processes are there, or a rank has said that it is."""
    return len(session(leader)) >= 4 if moment == "start-up" else (folder / moment).exists()
