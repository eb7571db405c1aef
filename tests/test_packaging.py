"""What ``pip install .`` installs, what it can do without any extra, and what it says where one is needed."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from inner_pytest import ROOT, environment, start

import blockshock
from blockshock.__main__ import main
from blockshock.doctor.extras import EXTRAS, LAYERS, need
from blockshock.errors import ExtraMissing

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pytest-json-report": "pytest_jsonreport", "pytest-xdist": "xdist"}
"""Packages whose module is not called as they are, but for dashes."""


def names(requirements: tuple[str, ...]) -> list[str]:
    return [re.split("[>=<]", requirement)[0] for requirement in requirements]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without any extra."""
    real, absent = importlib.metadata.version, {name for extra in EXTRAS.values() for name in names(extra)}

    def version(package: str) -> str:
        if package in absent:
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_is_said_to_be_installed_is_what_is() -> None:
    optional = PROJECT["optional-dependencies"]
    assert list(LAYERS) == PROJECT["dependencies"]
    assert {name: list(packages) for name, packages in EXTRAS.items()} == {name: optional[name] for name in EXTRAS}
    assert "blockshock[report,suite]" in optional["dev"]


def test_a_plain_install_gives_the_layers_and_the_recorded_layer(tmp_path: Path) -> None:
    """In a process that finds no module of the extras, outside a checkout."""
    absent = {MODULES.get(name, name.replace("-", "_")) for extra in EXTRAS.values() for name in names(extra)}
    script = textwrap.dedent(f"""
        import sys

        class Without:
            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

            def find_spec(self, name, path=None, target=None):
                return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)

        sys.meta_path[:] = map(Without, sys.meta_path)
        import torch
        from blockshock import *

        layer = BlockShockLinear(torch.nn.Linear(64, 64))
        x = torch.randn(8, 64)
        layer(x).square().mean().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        print(tuple(layer(x).shape), len(layer.state_dict()) > 0)
        recorded = WORKLOADS.resolve("recorded")[0]()
        print(recorded.weights(1536, 384, torch.float32, torch.device("cpu"), 0).rows(0, 4).shape)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(8, 64) True", "torch.Size([4, 384])"]


def test_all_that_is_public_is_listed_and_there() -> None:
    """A shell that completes names asks for them before anything is imported."""
    assert set(blockshock.__all__) <= set(dir(blockshock))
    assert all(getattr(blockshock, name) is not None for name in blockshock.__all__)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("arguments", "lacks"),
    [(["report"], "report needs rich"), (["report", "--to", "x"], "report needs jinja2, rich")],
)
def test_the_report_says_which_extra_it_needs(
    arguments: list[str], lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr() == ("", f"{lacks}: python -m pip install 'blockshock[report]'\n")


@pytest.mark.usefixtures("plain")
def test_what_an_extra_lacks_is_an_import_error() -> None:
    with pytest.raises(ExtraMissing, match=r"^it needs jinja2: python -m pip install 'blockshock\[report\]'$") as error:
        need("it", "report", "jinja2")
    assert isinstance(error.value, ImportError)
    need("it", "report", "torch")


def test_pytest_says_which_extra_the_suite_needs(tmp_path: Path) -> None:
    """Where pytest is, and its plugins are not: it must not end in a traceback of what imports them."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    hidden = "import importlib.metadata as m\nreal = m.version\n"
    hidden += "def version(name):\n    if name == 'pytest-timeout': raise m.PackageNotFoundError(name)\n"
    (tmp_path / "test_it.py").touch()
    (tmp_path / "hide.py").write_text(f"{hidden}    return real(name)\nm.version = version\n")
    session = start(tmp_path, "-p", "hide", "-p", "no:cacheprovider")
    shown, _ = session.communicate(timeout=120)
    assert session.returncode == 4
    assert "the suite needs pytest-timeout: python -m pip install 'blockshock[suite]'" in shown
    assert shown.count("\n") < 20


def test_the_wheel_holds_all_that_git_does_and_asks_for_four_packages(tmp_path: Path) -> None:
    project, built = tmp_path / "project", tmp_path / "built"
    shutil.copytree(ROOT / "blockshock", project / "blockshock", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    script = f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        there = set(wheel.namelist())
        metadata = Parser().parsestr(wheel.read(next(name for name in there if name.endswith("METADATA"))).decode())
    files = {path.relative_to(project).as_posix() for path in (project / "blockshock").rglob("*") if path.is_file()}
    assert files <= there
    licences = {Path(name).name for name in there if "LICENSE" in name and "dist-info" in name}
    assert licences == {"LICENSE", *(path.name for path in (ROOT / "blockshock").rglob("LICENSE*"))}
    assert metadata["License-Expression"] == "MIT AND Apache-2.0 AND BSD-3-Clause AND CC-BY-4.0"
    asked = [requirement for requirement in metadata.get_all("Requires-Dist", []) if "extra ==" not in requirement]
    assert sorted(names(tuple(asked))) == ["filelock", "numpy", "safetensors", "torch"]
