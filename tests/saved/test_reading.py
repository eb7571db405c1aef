"""What is read as a saved run: regular files and folders of them. What is none is named, and costs no other a thing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inner_pytest import ROOT, python_path
from rows import checked, saved, timed

from blockshock.__main__ import main
from blockshock.saved.results import latest_run, read_run

OURS = "block_shock gathered 1100"


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved([timed(OURS, 64, 4, 1.0), checked(OURS)])))
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("name", ["/dev/full", "/dev/zero", "pipe.json", "pipe.json.gz"])
def test_what_has_no_end_is_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name  # an absolute one stays what it is
    if path.is_relative_to(tmp_path):
        pipe(path)
    elif not path.exists():
        pytest.skip(f"there is no {path} here")
    # Of little memory: what reads without end is to end here.
    program = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
        "runpy.run_module('blockshock', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, "report", str(path)]
    env = os.environ | {"PYTHONPATH": python_path(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"skipped {path}: a device or a pipe, not a file\n")


def test_a_folder_called_as_a_run_is_skipped_and_the_others_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "1.json")
    (tmp_path / "dir.json").mkdir()
    pipe(tmp_path / "pipe.json")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    run = read_run(tmp_path)
    assert len(run.records) == 2
    assert run.notes == [
        f"skipped {tmp_path / 'dir.json'}: a folder, not a file",
        f"skipped {tmp_path / 'gone.json'}: No such file or directory",
        f"skipped {tmp_path / 'pipe.json'}: a device or a pipe, not a file",
    ]
    assert main(["report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "dir.json: a folder, not a file" in " ".join(out.split())


def test_a_folder_called_as_a_run_may_hold_parts(tmp_path: Path) -> None:
    write(tmp_path / "dir.json" / "1.json")
    assert len(read_run(tmp_path).records) == 2
    assert read_run(tmp_path / "dir.json").notes == []


def test_the_latest_run_is_found_beside_a_pipe(tmp_path: Path) -> None:
    mine = write(tmp_path / "Linux" / "0001_mine.json")
    pipe(tmp_path / "Linux" / "0002_pipe.json")
    (tmp_path / "Linux" / "0003_dir.json").mkdir()
    assert latest_run(tmp_path) == mine
