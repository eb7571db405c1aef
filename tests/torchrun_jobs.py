"""pytest on the ranks of a torchrun job, for tests of what such a session does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from inner_pytest import ROOT, environment, suite
from processes import descendants

from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.phases import correctness
from blockshock.phases.case import Case
from blockshock.ranks import spawn

METHODS = "dense_single,dense_tp_row,dense_tp_col,dtensor_row,dtensor_col,masked_split_dense,block_shock"
SMALL = [
    *("--device=cpu", "--N=64", "--B=4", "--cover=grid", "--workloads=gaussian", "--kernels=gathered"),
    f"--methods={METHODS}",
]

TORCHRUN = """
import atexit, gc
gc.disable(), atexit.register(gc.freeze)  # as conftest.py does: nothing of torch is garbage
from torch.distributed.run import main
main()
"""
"""torchrun itself, soon started."""


def fill(folder: Path) -> Path:
    """Put phase 0, and tests that go wrong on one rank, into a folder."""
    suite(folder, "test_phase0_correctness.py")
    shutil.copy(ROOT / "tests" / "data" / "ranks_at_fault.py", folder / "tests" / "test_at_fault.py")
    return folder


@contextmanager
def job(
    folder: Path,
    launch: Sequence[str],
    *arguments: str,
    inside: Sequence[str] = (),
    run: Sequence[str] = ("-m", "pytest", "-p", "no:hypothesispytest"),
) -> Iterator[subprocess.Popen[str]]:
    """pytest, started by torchrun with these options, by the command ``inside`` if there is one; nothing is left."""
    torchrun = [*inside, sys.executable, "-c", TORCHRUN, *launch]
    with subprocess.Popen(
        [*torchrun, *run, *SMALL, *arguments],
        cwd=folder,
        env=environment() | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            for pid in [*descendants(process.pid), process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def wait_for(text: str, process: subprocess.Popen[str]) -> str:
    """What a job printed until it printed this."""
    assert process.stdout is not None
    output = ""
    while text not in output and (line := process.stdout.readline()):
        output += line
    assert text in output, output
    return output


def check_results(saved: Path, size: int) -> None:
    """That a job's phase 0 found, to the bit, what as many spawned ranks find."""
    infos = [bench["extra_info"] for bench in json.loads(saved.read_text())["benchmarks"]]
    assert len(infos) == 7
    with spawn(size) as ranks:
        for info in infos:
            case = Case(**{name: info[name] for name in Case.__dataclass_fields__})
            per_rank = ranks.run(correctness.run, case)
            accuracy = Accuracy.of(sum((one.errors for one in per_rank), ErrorSums()), per_rank[0].roundings)
            assert (info["max_error"], info["error_ratio"]) == (accuracy.max_error, accuracy.error_ratio), case.id
            assert info["ranks"] == size
