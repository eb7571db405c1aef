"""The gate of what only GPUs can show: what it says and runs on machines with none, one, two and four."""

from __future__ import annotations

import subprocess
from typing import Any

import gpu_gate
import pytest
import torch


@pytest.mark.parametrize(("gpus", "ran"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 2, 4])])
@pytest.mark.parametrize("failing", [False, True])
def test_it_runs_what_the_machine_has_the_gpus_for(
    gpus: int, ran: list[int], failing: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, int(failing and len(started) == 1))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_gate.main(["--seed", "3"]) == failing, "a part that fails fails the gate, whatever the later ones do"
    said = capsys.readouterr().out
    assert [int(command[command.index("--ranks") + 1]) for command in started] == ran
    assert all(command[-2:] == ["--seed", "3"] for command in started)
    for part in gpu_gate.PARTS:
        assert (f"skipped, for it needs {part.gpus} GPUs: {part.shows}" in said) == (part.gpus > gpus)
    assert said.count("passed in") == len(ran) - failing
    assert said.count("FAILED") == failing


def test_without_a_gpu_it_does_not_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_gate.main([]) == 1
    assert "Nothing was checked" in capsys.readouterr().out
