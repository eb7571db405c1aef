"""Tests of ``python -m blockshock doctor``: this machine, and machines on which something is broken."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from inner_pytest import ROOT, python_path

import blockshock.kernels
from blockshock import doctor
from blockshock.__main__ import main
from blockshock.doctor import Finding, State, on_ranks
from blockshock.kernels import KERNELS, Kernel
from blockshock.ranks import spawn
from blockshock.registry import Registry

ON_ONE_GPU = "1 CUDA rank (NCCL), both halves on one GPU against the dense layer there"
RUNS = rf"The main job runs here: (2 CPU ranks \(gloo\)|2 CUDA ranks \(NCCL\)|{re.escape(ON_ONE_GPU)})\."
WOULD_NOT_RUN = "The main job would not run: fix the lines marked broken."


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder; what is on the path there comes before every installed package."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"PYTHONPATH": python_path(folder, ROOT), "XDG_CACHE_HOME": str(folder / "cache"), **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def run_doctor(folder: Path, **variables: str) -> tuple[int, str]:
    """Run the doctor; return its exit status and its output in one line, once it proved to be one plain screen."""
    done = run(folder, "-m", "blockshock", "doctor", **variables)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    return done.returncode, " ".join(done.stdout.split())


def put_package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def look_at(check: Callable[..., Finding], *args: object) -> Finding:
    """What the doctor keeps of one check."""
    findings: list[Finding] = []
    kept = doctor.look_into(findings, lambda name: None, "it", "mend it", check, *args)
    assert findings == [kept]
    return kept


# The whole.


def test_this_machine(tmp_path: Path) -> None:
    status, shown = run_doctor(tmp_path)
    assert status == 0, shown
    assert re.search(RUNS, shown)
    for name in KERNELS.names():
        assert f" kernel {name} " in shown
    for requirement in {requirement for packages in doctor.PACKAGES.values() for requirement in packages}:
        assert f"{requirement.partition('>')[0]} " in shown
    assert not (tmp_path / "benchmark_results").exists(), "a look leaves nothing behind"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("raise OSError('cannot open libsome.so.13\\nsecond line')", "broken cannot open libsome.so.13"),
        ("raise RuntimeError", "broken RuntimeError"),
        ("raise ImportError('half installed')", "broken half installed"),
        ("raise SystemExit('no licence')", "broken no licence"),
        ("import no_such_module", "missing No module named 'no_such_module'"),
        ("__version__ = '2.9.1+cu130'", "broken 2.9.1+cu130 is too old"),
    ],
)
def test_torch_that_does_not_work(tmp_path: Path, code: str, found: str) -> None:
    put_package(tmp_path, "torch", code)
    status, shown = run_doctor(tmp_path, COLUMNS="200")
    assert status == 1
    assert f" torch {found}" in shown
    assert "second line" not in shown
    assert "python -m pip install" in shown
    assert '"torch>=2.11"' in shown
    assert "not checked: they need torch" in shown
    assert shown.endswith(WOULD_NOT_RUN if found.startswith("broken") else WOULD_NOT_RUN.replace("broken", "missing"))


def test_gloo_that_does_not_work(tmp_path: Path) -> None:
    status, shown = run_doctor(tmp_path, COLUMNS="100", GLOO_SOCKET_IFNAME="none0", CUDA_VISIBLE_DEVICES="")
    assert status == 1
    assert shown.endswith(WOULD_NOT_RUN)
    assert shown.count("none0") == 2
    for name in ("gloo ranks", "kernels on cpu"):
        assert f"{name} broken" in shown
    assert "unset GLOO_SOCKET_IFNAME" in shown


def test_rich_that_does_not_work(tmp_path: Path) -> None:
    put_package(tmp_path, "rich", "raise ImportError('half installed')")
    assert run_doctor(tmp_path) == (1, "The main job would not run, and what it shows needs rich: half installed")


# The command line.


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    done = run(tmp_path, "-X", "importtime", "-m", "blockshock", "--help")
    assert done.returncode == 0
    assert "doctor" in done.stdout
    assert "argparse" in done.stderr
    assert "torch" not in done.stderr


def test_unknown_command_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nurse"])
    assert "'nurse' (choose from " in (errors := capsys.readouterr().err)
    assert "doctor" in errors


def test_status_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    for function, status in ((lambda: 0, 0), (lambda: 1, 1), (interrupt, 130)):
        monkeypatch.setattr(doctor, "main", function)
        assert main(["doctor"]) == status


# Packages and folders.


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "filelock":
            raise importlib.metadata.PackageNotFoundError(package)
        return "13.8.10" if package == "rich" else real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.check_packages("packages")
    assert (finding.state, finding.found) == ("missing", "filelock missing, rich 13.8.10")
    assert finding.remedy == 'python -m pip install "filelock>=3.16" "rich>=13.9"'


def test_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {*doctor.PACKAGES["packages"], "torch>=2.11"} == {*project["dependencies"], *extras["suite"]}
    assert set(doctor.PACKAGES["for report --to"]) == set(extras["report"])
    assert project["requires-python"] == ">=3.11"


def test_what_only_the_report_needs_does_not_keep_the_main_job_from_running() -> None:
    findings = [Finding(needed, "ok", "") for needed in NEEDED]
    assert doctor.conclude([*findings, Finding("for report --to", "missing", "")], "cpu")[0]


def test_folders(tmp_path: Path) -> None:
    assert look_at(doctor.check_folder, tmp_path).found == f"{tmp_path} is writable"
    assert look_at(doctor.check_folder, tmp_path / "a" / "b").found == f"{tmp_path}/a/b can be made"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        finding = look_at(doctor.check_folder, folder)
        assert (finding.state, finding.remedy) == ("broken", "mend it")
        assert "Not a directory" in finding.found


# Kernels and ranks.

FAULTY_KERNELS = textwrap.dedent("""
    import os
    import signal

    from blockshock.kernels import KERNELS
    from blockshock.kernels.gathered import Gathered


    @KERNELS.register("wrong")
    class Wrong(Gathered):
        def pack(self, half, bias=None):
            packed = super().pack(half, bias)
            packed.write(half.kept_values(0, half.N).flip(1))
            return packed


    @KERNELS.register("raising")
    class Raising(Gathered):
        def pack(self, half, bias=None):
            raise LookupError("no such packing\\nsecond line")


    @KERNELS.register("dying")
    class Dying(Gathered):
        def pack(self, half, bias=None):
            os.kill(os.getpid(), signal.SIGSEGV)
""")


def test_faulty_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY_KERNELS)
    names: Registry[type[Kernel]] = Registry("kernel")
    for name in ("gathered", "wrong", "raising", "reference", "dying"):
        names.register(name)(Kernel)
    monkeypatch.setattr(blockshock.kernels, "KERNELS", names)
    monkeypatch.setattr("blockshock.ranks.spawn", partial(spawn, preload=[("faulty_kernels", tmp_path / "faulty.py")]))

    findings: list[Finding] = []
    look = partial(doctor.look_into, findings, lambda name: None)
    look("all", "", doctor.check_kernels, "cpu", 0, look)
    gathered, wrong, raising, reference, dying, together = findings
    for right in (gathered, reference):
        assert (right.state, right.found[:12]) == ("ok", "right on cpu")
    assert (raising.state, raising.found) == ("broken", "no such packing")
    assert (dying.state, dying.found) == ("broken", "rank 0 was killed by SIGSEGV")
    assert (wrong.state, wrong.found[:15]) == ("broken", "relative error ")
    assert wrong.remedy == "choose other --kernels"
    assert (together.name, together.state) == ("all", "ok")
    assert together.found == "sparse and right: gathered, reference"


class FakeRanks:
    """Answers for ranks: every kernel that is not broken is right, sums are what they are said to be."""

    def __init__(self, broken: tuple[str, ...] = (), sums: tuple[int, ...] | None = None) -> None:
        self.broken, self.sums, self.size = broken, sums, 0

    def __call__(self, size: int, device: str, timeout: float) -> FakeRanks:
        if device in self.broken and size > 1:
            raise RuntimeError("no peer")
        self.size = size
        return self

    def __enter__(self) -> FakeRanks:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, function: Callable[..., Any], *args: str) -> list[Any]:
        if function is on_ranks.sum_of_numbers:
            return [{1: 1, 2: 3}[self.size]] * self.size if self.sums is None else list(self.sums)
        if function is on_ranks.try_internal:
            return [None]
        name, kernel, device = args
        state: State = "broken" if kernel in self.broken else "ok"
        return [Finding(name, state, f"on {device}")]


def test_a_sparse_kernel_has_to_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = tuple(name for name in KERNELS.names() if KERNELS.get(name).sparse)
    monkeypatch.setattr("blockshock.ranks.spawn", FakeRanks(broken=sparse))
    findings: list[Finding] = []
    look = partial(doctor.look_into, findings, lambda name: None)
    look("all", "", doctor.check_kernels, "cpu", 0, look)
    assert {finding.name for finding in findings if finding.state == "ok"} == {"kernel dense"}


def test_a_kernel_of_formats_alone_multiplies_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves by the scales of the whole rows, so that what they store adds up too."""
    monkeypatch.setattr(KERNELS.get("reference"), "plain", False)
    right = on_ranks.multiply("kernel reference", "reference", "cpu")
    assert (right.state, right.found[:12]) == ("ok", "right on cpu")
    monkeypatch.setattr(blockshock.kernels, "row_scales", lambda *_: None)
    with pytest.raises(ArithmeticError):
        on_ranks.multiply("kernel reference", "reference", "cpu")


@pytest.mark.parametrize("sums", [(3, 2), (1, 2), (3,)])
def test_wrong_sum(monkeypatch: pytest.MonkeyPatch, sums: tuple[int, ...]) -> None:
    monkeypatch.setattr("blockshock.ranks.spawn", FakeRanks(sums=sums))
    assert look_at(doctor.check_ranks, "cpu", 0) == Finding(
        "it", "broken", f"an all-reduce of 1 and 2 gives {list(sums)}", "mend it"
    )


# Machines with GPUs.

FACTS = {"cuda": "13.0", "nccl": "2.28.9", "cusparselt": 800, "driver": "580.95.05", "interconnect": "NV18"}


Examine = Callable[..., tuple[dict[str, list[Finding]], str]]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examine:
    """Examines a machine that is made up: returns its findings by name, and the last line."""

    def look(ranks: FakeRanks, usable: int, gpus: list[str], **facts: Any) -> tuple[dict[str, list[Finding]], str]:
        monkeypatch.setattr(doctor, "facts", lambda: FACTS | {"gpus": gpus} | facts)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
        monkeypatch.setattr("shutil.which", lambda name: name)
        monkeypatch.setattr("blockshock.ranks.spawn", ranks)
        findings: list[Finding] = []
        job = doctor.examine(partial(doctor.look_into, findings, lambda name: None))
        names = {finding.name: [one for one in findings if one.name == finding.name] for finding in findings}
        return names, doctor.conclude(findings, *job)[1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return look


def states(findings: dict[str, list[Finding]], *wanted: State) -> set[str]:
    return {name for name, some in findings.items() if {one.state for one in some} & set(wanted)}


def test_many_gpus(examine: Examine) -> None:
    found, ending = examine(FakeRanks(), 8, ["GPU A, 80 GiB"] * 6 + ["GPU B, 40 GiB"] * 2)
    assert ending == "The main job runs here: 2 CUDA ranks (NCCL)."
    assert states(found, "n.a.", "missing", "broken") == set()
    assert {"kernels on cuda", "kernel cutlass", "NCCL ranks", "gloo ranks", "cuSPARSELt"} <= set(found)
    assert found["GPUs"][0].found == "6 x GPU A, 80 GiB, 2 x GPU B, 40 GiB"
    assert found["GPU link"][0].found == "NV18"


def test_one_gpu(examine: Examine) -> None:
    found, ending = examine(FakeRanks(), 1, ["GPU A"], interconnect=None)
    assert ending == f"The main job runs here: {ON_ONE_GPU}."
    assert states(found, "n.a.", "missing", "broken") == {"GPU link"}
    assert found["GPUs"][0].found == "1 x GPU A"
    assert found["NCCL ranks"][0].found == "1 rank; what spreads over GPUs, as tensor parallelism does, takes 2"
    assert [finding.found for finding in found["kernel gathered"]] == ["on cuda"]
    assert [finding.found for finding in found["kernel cutlass"]] == ["on cuda"]
    _, ending = examine(FakeRanks(sums=(2,)), 1, ["GPU A"], interconnect=None)
    assert ending == WOULD_NOT_RUN, "it takes an all-reduce that is right"


@pytest.mark.parametrize(
    ("broken", "would_run"), [(("cuda",), False), (("cpu",), True), (("cutlass",), True), (KERNELS.names(), False)]
)
def test_what_two_gpus_need(examine: Examine, broken: tuple[str, ...], would_run: bool) -> None:
    found, ending = examine(FakeRanks(broken), 2, ["GPU A"] * 2)
    assert states(found, "broken")
    assert ending == ("The main job runs here: 2 CUDA ranks (NCCL)." if would_run else WOULD_NOT_RUN)


def test_torch_without_cuda_beside_gpus(examine: Examine) -> None:
    found, ending = examine(FakeRanks(), 0, ["GPU A"] * 2, cuda=None, nccl=None, cusparselt=None)
    assert re.fullmatch(RUNS, ending)
    assert states(found, "missing", "broken") == {"CUDA", "NCCL", "cuSPARSELt"}
    assert "CUDA build" in found["CUDA"][0].remedy


def test_gpus_that_torch_cannot_use(examine: Examine) -> None:
    found, ending = examine(FakeRanks(), 0, ["GPU A"] * 2)
    assert re.fullmatch(RUNS, ending)
    assert states(found, "missing", "broken") == {"GPUs"}
    assert found["GPUs"][0].found == "torch can use 0 of 2 x GPU A"
    assert "driver" in found["GPUs"][0].remedy


def test_driver_that_does_not_answer(examine: Examine) -> None:
    found, ending = examine(FakeRanks(), 0, [], driver=None, interconnect=None)
    assert re.fullmatch(RUNS, ending)
    assert states(found, "missing", "broken") == {"driver"}


def test_facts_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, Any]:
        raise OSError("no such library")

    with monkeypatch.context() as patch:
        patch.setattr("blockshock.machine.environment.describe", fail)
        doctor.facts.cache_clear()
        finding = look_at(doctor.check_fact, "cuda", "")
    assert (finding.state, finding.found, finding.remedy) == ("broken", "no such library", "mend it")


# The last line.

NEEDED = ("Python", "packages", "results folder", "torch", "kernels on cpu", "gloo ranks")


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("state", ["missing", "broken"])
def test_each_needed_thing_is_needed(name: str, state: State) -> None:
    findings = [Finding(needed, "ok", "") for needed in NEEDED]
    assert doctor.conclude([*findings, Finding("GPUs", "broken", "")], "cpu")[0]
    findings[NEEDED.index(name)] = Finding(name, state, "")
    assert doctor.conclude(findings, "cpu") == (False, WOULD_NOT_RUN.replace("broken", state))


def test_what_was_not_looked_at_is_not_there() -> None:
    for index in range(len(NEEDED)):
        findings = [Finding(needed, "ok", "") for needed in NEEDED[:index] + NEEDED[index + 1 :]]
        assert not doctor.conclude(findings, "cpu")[0]
