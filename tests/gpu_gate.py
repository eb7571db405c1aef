"""The gate of what only GPUs can show: `tox run -e gpu`, or `python tests/gpu_gate.py` where all is installed.

It says first what it will run on the GPUs of this machine, and what it will skip and why; then runs it part by part,
each a pytest session, and ends with a line for each. Options are handed on to pytest.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from blockshock.machine import environment, turns
from blockshock.saved import several

ROOT = Path(__file__).parent.parent
PHASES = ("phase0_correctness", "phase1_forward", "phase2_backward", "phase3_train", "drift", "hypotheses")
TIMED = (*(f"tests/test_{name}.py" for name in (*PHASES, "same_against_itself")), "tests/measure/test_timing.py")
"""What is to have a GPU for itself."""
LATER = tuple(f"tests/test_{name}.py" for name in ("models", "learning", "blocks"))
"""What takes half a minute a row: the gate tries its parts, in tests/phases and tests/models."""
OF_FOUR = ("tests/nn/test_wrappers.py", "tests/machine/test_gpu_fused.py", "tests/machine/test_gpu_combines.py")
"""What tries more where it sees four GPUs."""
WORKERS = str(min(8, max((os.cpu_count() or 1) // 2, 1)))
"""Processes that share a GPU where nothing is timed: tests wait for compilers and hosts. They take turns on it, so that
many make each slow."""
SHARED = ("-n", WORKERS, "--dist", "worksteal")
"""How tests go to them: some take a minute."""
SMALL = shlex.split(
    "--N 2048x1024 --B 250 --kernels gathered,cusparselt --workloads gaussian --optimizers adamw --rounds 20 "
    "--cover grid --recipes dense,fst,s_ste"
)
"""Of phases: layers small enough to be quick, and a B that no kernel takes without padding; the fuzz covers more."""


@dataclass(frozen=True)
class Part:
    """One pytest session of the gate.

    Attributes:
        gpus: that it needs.
        shows: what it is for.
        arguments: of pytest.
        shared: its workers use the GPU side by side.
    """

    gpus: int
    shows: str
    arguments: tuple[str, ...]
    shared: bool = False


PARTS = (
    Part(
        1,
        "kernels, layers and pruners on one GPU",
        ("tests", *(f"--ignore={path}" for path in (*TIMED, *LATER)), "-m", "gpu", "--ranks", "1", *SHARED),
        shared=True,
    ),
    Part(
        1,
        "timing and the phases on one GPU",
        (*TIMED, "-m", "gpu", "--ranks", "1", "-k", "not sgd and not momentum", *SMALL),
    ),
    Part(
        2,
        "layers and the phases on two ranks, but for rows of one device",
        (
            *(f"--ignore={path}" for path in LATER),
            *("-m", "gpu2 and not gpu and not reliability", "-k", "not sgd and not momentum", "--ranks", "2", *SMALL),
        ),
    ),
    Part(
        4,
        "layers and the phases on four ranks",
        (
            *(f"tests/test_{name}.py" for name in PHASES),
            *OF_FOUR,
            *("-m", "gpu2 and not gpu and not reliability", "-k", "not sgd and not momentum", "--ranks", "4", *SMALL),
        ),
    ),
)


def main(more: list[str]) -> int:
    """Run the parts that this machine has the GPUs for; 1 if one failed, or if there is no GPU."""
    gpus = torch.cuda.device_count()
    print(f"{gpus} GPUs of {', '.join(environment.gpus()) or 'none that nvidia-smi shows'}")
    for part in PARTS:
        what = "runs" if part.gpus <= gpus else f"is skipped, for it needs {several(part.gpus, 'GPU', 'GPUs')}:"
        print(f"  {what} {part.shows}")
    print('  is left to `pytest -m "reliability and gpu2"`: faults and kills, which take minutes of waiting')
    print(
        f"  is left to `pytest -m gpu {' '.join(LATER)}`: whole networks, blocks, learning curves; half a minute each"
    )
    if not gpus:
        print("Nothing was checked: run this on a machine with a CUDA GPU")
        return 1
    told = [line for batch in batches(gpus) for line in _side_by_side(batch, more)]
    print("\n".join(["", *(line for _, line in told)]))
    return max(code for code, _ in told)


def batches(gpus: int) -> list[list[Part]]:
    """Parts that run at a time, each on GPUs of its own: in their order, as many as so many GPUs are enough for."""
    found: list[list[Part]] = []
    free = 0
    for part in (part for part in PARTS if part.gpus <= gpus):
        if part.gpus > free:
            found.append([])
            free = gpus
        found[-1].append(part)
        free -= part.gpus
    return found


def _side_by_side(batch: list[Part], more: list[str]) -> list[tuple[int, str]]:
    """What came of each part."""
    uuids = iter(environment.first_gpus(sum(part.gpus for part in batch)))
    given = [list(islice(uuids, part.gpus)) for part in batch]
    with ThreadPoolExecutor(len(batch)) as pool:
        return list(pool.map(lambda place: _run(batch[place], more, given[place], place), range(len(batch))))


def _run(part: Part, more: list[str], gpus: list[str], place: int) -> tuple[int, str]:
    """The exit status of a part, and the line that says what came of it.

    Args:
        gpus: those that it is to see.
        place: among those that run beside it: lines of all but the first are marked.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "--benchmark-quiet", *part.arguments, *more]
    print(f"\n$ pytest {' '.join(command[3:])}", flush=True)
    with turns.shared(gpus, print) if part.shared else nullcontext():
        environ = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        code = _marked(command, environ, place) if place else subprocess.run(command, cwd=ROOT, env=environ).returncode
    outcome = "passed" if code == 0 else f"FAILED (pytest's status {code})"
    return min(code, 1), f"{part.shows}: {outcome} in {time.monotonic() - started:.0f} s"


def _marked(command: list[str], environ: dict[str, str], place: int) -> int:
    """The exit status of a command, whose lines are printed as they come, behind as many bars."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
    ) as ran:
        assert ran.stdout is not None
        for line in ran.stdout:
            print(f"  {'|' * place} {line}", end="", flush=True)
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
