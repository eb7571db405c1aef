"""The gate of what only GPUs can show: what it says and runs on machines with none, one, two and four."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_gate
import pytest
import torch

from blockshock.machine import environment, turns


@pytest.mark.parametrize(("gpus", "ran"), [(1, [1, 1]), (2, [1, 1, 2]), (3, [1, 1, 2]), (4, [1, 1, 2, 4])])
@pytest.mark.parametrize("failing", [False, True])
def test_it_runs_what_the_machine_has_the_gpus_for(
    gpus: int,
    ran: list[int],
    failing: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    started: list[tuple[int, str, str, list[str]]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        ranks, together = int(command[command.index("--ranks") + 1]), "-n" in command
        shared = env.get(turns.SHARED, "").strip(",") if together else "its own"
        started.append((ranks, shared, env.get("CUDA_VISIBLE_DEVICES", "all"), command))
        return subprocess.CompletedProcess(command, int(failing and together))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment, "first_gpus", lambda count: [f"GPU-{index}" for index in range(count)])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(gpu_gate, "_marked", lambda command, environ, _: run(command, environ).returncode)
    assert gpu_gate.main(["--seed", "3"]) == failing, "a part that fails fails the gate, whatever the later ones do"
    said = capsys.readouterr().out
    assert all(command[-2:] == ["--seed", "3"] for *_, command in started)
    second, two = "GPU-1" if gpus > 1 else "GPU-0", "GPU-2,GPU-3" if gpus > 3 else "GPU-0,GPU-1"
    four = ",".join(f"GPU-{index}" for index in range(4))
    seen = [(1, "GPU-0", "GPU-0"), (1, "its own", second), (2, "its own", two), (4, "its own", four)]
    assert {(*told,) for *told, _ in started} == set(seen[: len(ran)]), "what is timed has its GPUs for itself"
    assert len(started) == len(ran)
    for part in gpu_gate.PARTS:
        assert (f"GPU{'s' * (part.gpus > 1)}: {part.shows}" in said) == (part.gpus > gpus)
    assert said.count("passed in") == len(ran) - failing
    assert said.count("FAILED") == failing


def test_what_is_timed_is_there_and_left_out_of_what_shares_a_gpu() -> None:
    for path in (*gpu_gate.TIMED, *gpu_gate.LATER, *gpu_gate.OF_FOUR):
        assert (gpu_gate.ROOT / path).is_file(), path
    (together,) = (part.arguments for part in gpu_gate.PARTS if part.shared)
    assert {f"--ignore={path}" for path in (*gpu_gate.TIMED, *gpu_gate.LATER)} <= set(together)


def test_lines_of_what_runs_beside_are_marked_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys; print('one', flush=True); sys.exit(print('two µ') or 3)"
    assert gpu_gate._marked([sys.executable, "-c", program], os.environ | {"PYTHONUTF8": "1"}, 2) == 3
    assert capsys.readouterr().out == "  || one\n  || two µ\n"


def test_without_a_gpu_it_does_not_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_gate.main([]) == 1
    assert "Nothing was checked" in capsys.readouterr().out
