"""A folder is a run where it holds the parts of one: of one machine, one torch, and nothing measured at two commits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import ROOT
from rows import Info, checked, saved, timed

from blockshock.__main__ import main
from blockshock.report.answer import answer
from blockshock.saved.results import read_run
from blockshock.saved.run import NotARun
from blockshock.saved.words import several

OURS, DENSE = "block_shock gathered 1100", "dense_single"
H100, H200 = ["NVIDIA H100, 81559 MiB"], ["NVIDIA H200, 143771 MiB"]
HERE = {"gpus": H100, "cpu": "one", "torch": "2.13", "git_commit": "aaa"}


def write(path: Path, infos: list[Info], names: list[str], date: str = "2026-01-01", **machine: Any) -> Path:
    """A part, of tests with these names."""
    document = saved(infos, **HERE | machine) | {"datetime": f"{date}T00:00:00"}
    for bench, name in zip(document["benchmarks"], names, strict=True):
        bench["name"] = name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def two(folder: Path, names: tuple[list[str], list[str]] = (["a"], ["b"]), **other: Any) -> None:
    """The second part is a day younger, and of another machine as far as that is said."""
    write(folder / "1.json", [timed(OURS, 64, 4, 1.0) for _ in names[0]], names[0])
    write(folder / "2.json", [timed(OURS, 128, 4, 1.0) for _ in names[1]], names[1], "2026-01-02", **other)


@pytest.mark.parametrize(
    ("other", "what"), [({"gpus": H200}, "GPUs"), ({"cpu": "another"}, "CPU"), ({"torch": "2.11"}, "torch")]
)
def test_what_was_measured_elsewhere_is_no_part_of_it_and_the_runs_are_named(
    other: dict[str, Any], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two(tmp_path, **other)
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr() == (
        "",
        f"skipped {tmp_path} holds 2 runs, not the parts of one: they differ in their {what}. "
        f"Name one of {tmp_path / '1.json'}, {tmp_path / '2.json'}\n",
    )


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ({"timing": "cuda_graph"}, {"timing": "cuda_events"}, r"timing \(cuda_graph and cuda_events\)"),
        ({"flush": "clean"}, {"flush": "none"}, r"flush of the cache \(clean and none\)"),
        ({"flush": "clean"}, {"flush": None, "l2_flushed": False}, r"flush of the cache \(clean and none\)"),
        ({"device": "cuda"}, {"device": "cpu"}, r"device \(cuda and cpu\)"),
        ({"seed": 0}, {"seed": 5}, r"seed \(0 and 5\)"),
        ({"keep_full_weight": False}, {"keep_full_weight": True}, r"keeping of the full weight \(False and True\)"),
    ],
)
def test_what_was_measured_otherwise_is_no_part_of_it(first: Info, second: Info, what: str, tmp_path: Path) -> None:
    write(tmp_path / "1.json", [timed(OURS, 64, 4, 1.0) | first], ["a"])
    write(tmp_path / "2.json", [timed(DENSE, 64, 4, 1.0) | second], ["b"])
    with pytest.raises(NotARun, match=f"they differ in their {what}"):
        read_run(tmp_path)
    write(tmp_path / "2.json", [timed(DENSE, 64, 4, 1.0) | first], ["b"])
    assert len(read_run(tmp_path).records) == 2


def test_a_check_on_another_device_is_none_of_these_times(tmp_path: Path) -> None:
    write(tmp_path / "1.json", [checked(OURS) | {"device": "cpu"}], ["a"])
    write(tmp_path / "2.json", [timed(OURS, 64, 4, 1.0)], ["b"])
    with pytest.raises(NotARun, match=r"they differ in their device \(cpu and cuda\)"):
        read_run(tmp_path)


def test_the_official_runs_are_not_one_and_each_of_those_named_is(capsys: pytest.CaptureFixture[str]) -> None:
    official = ROOT / "benchmark_results" / "official"
    with pytest.raises(NotARun) as refusal:
        read_run(official)
    named = str(refusal.value).partition("Name one of ")[2].split(", ")
    assert named == [str(path) for path in sorted(official.iterdir())]
    assert all(read_run(Path(path)).records for path in named)


def test_a_folder_alone_in_a_folder_is_looked_into(tmp_path: Path) -> None:
    two(tmp_path / "Linux", gpus=H200)
    with pytest.raises(NotARun, match=rf"Name one of {tmp_path}/Linux/1.json, {tmp_path}/Linux/2.json"):
        read_run(tmp_path)


def test_parts_may_be_of_several_commits_and_days_which_are_all_named(tmp_path: Path) -> None:
    two(tmp_path, git_commit="bbb")
    run = read_run(tmp_path)
    assert len(run.records) == 2
    assert "torch 2.13, commits aaa, bbb, 2026-01-01 to 2026-01-02 · 2 results" in answer(run)[0]
    (tmp_path / "2.json").unlink()
    assert "torch 2.13, commit aaa, 2026-01-01 · 1 result, " in answer(read_run(tmp_path))[0]


def test_what_does_not_say_where_it_ran_is_no_part_of_another_machine(tmp_path: Path) -> None:
    two(tmp_path, gpus=None, cpu=None, torch=None, git_commit=None)
    assert len(read_run(tmp_path).records) == 2


def test_a_part_that_was_measured_again_in_part_at_another_commit_is_of_another_run(tmp_path: Path) -> None:
    two(tmp_path, (["a", "b"], ["b", "c"]), git_commit="bbb")
    with pytest.raises(NotARun, match=r"holds 2 runs, .*: 2.json measured a part of 1.json again at another commit"):
        read_run(tmp_path)
    two(tmp_path, (["a", "b"], ["b", "c"]))
    assert len(read_run(tmp_path).records) == 3, "at the same one it is the same run"


def test_a_part_that_was_measured_again_as_a_whole_is_replaced(tmp_path: Path) -> None:
    """As by a second `tox run -e full`."""
    two(tmp_path, (["a"], ["a", "b"]), git_commit="bbb")
    run = read_run(tmp_path)
    assert [info["N"] for info in run.infos] == [128, 128]
    assert run.machine["git_commit"] == "bbb"
    assert run.taken[:10] == "2026-01-02"
    assert run.notes == ["1 result was measured more than once: shown is the last"]


def test_what_one_part_found_wrong_concerns_the_others(tmp_path: Path) -> None:
    write(tmp_path / "1.json", [timed(OURS, 64, 4, 1.0)], ["a"])
    write(tmp_path / "2.json", [checked(OURS, error_ratio=1e9)], ["b"], git_commit="bbb")
    assert [bool(info.get("wrong")) for info in read_run(tmp_path).infos] == [True, True]


def test_one_is_not_many() -> None:
    assert [several(count, "result") for count in (0, 1, 2)] == ["0 results", "1 result", "2 results"]
    assert several(2, "result was", "results were") == "2 results were"
