"""Paths that options take are no paths of tests: where pytest took one for that, it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from inner_pytest import LIGHT_OPTIONS, light_suite

from blockshock import registry
from blockshock.methods import METHODS
from blockshock.plugin import rootdir

pytest_plugins = ["pytester"]
Said = Callable[..., tuple[int, str]]

MINE = "from blockshock import METHODS\nMETHODS.register('mine')(METHODS.get('dense_single'))\n"
POINTS = "N,K,B,count\n64,64,4,1\n"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite inside a project that has settings for pytest too, and the files of a user's above both."""
    outer = pytester.path
    (outer / "mine.py").write_text(MINE)
    (outer / "mine.csv").write_text(POINTS)
    (outer / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (outer / "suite").mkdir()
    (outer / "suite" / "mine.py").write_text(MINE)
    monkeypatch.chdir(outer / "suite")
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    for name, kept in (("_extensions", []), ("_brought", {})):
        monkeypatch.setattr(registry, name, kept)
    monkeypatch.setattr(METHODS, "_entries", {name: METHODS.get(name) for name in METHODS.names()})
    return light_suite(outer / "suite")


@pytest.fixture
def said(suite: Path, pytester: pytest.Pytester) -> Said:
    """What a session in the suite ends with, and says."""

    def run(*arguments: str) -> tuple[int, str]:
        result = pytester.runpytest_inprocess(*LIGHT_OPTIONS, "--collect-only", "-q", *arguments)
        return result.ret, " ".join(" ".join(result.outlines + result.errlines).split())

    return run


@pytest.mark.parametrize(("option", "file"), [("--extend", "mine.py"), ("--blockshock-points", "mine.csv")])
def test_a_path_behind_a_blank_that_moves_the_settings_is_refused(
    option: str, file: str, suite: Path, said: Said
) -> None:
    status, text = said(option, f"../{file}", "test_light.py")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"{option} ../{file}: pytest takes ../{file} for a path of tests" in text
    assert f"its settings from {suite.parent} in place of {suite}." in text
    assert text.endswith(f"Write it with = and no blank: {option}=../{file}")
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--extend=../mine.py", "test_light.py"],
        ["--extend", "mine.py"],
        ["--extend", "../mine.py", "-c", "pytest.ini", "test_light.py"],
    ],
    ids=["with =", "beside the tests", "with settings by name"],
)
def test_a_path_that_moves_nothing_is_taken(arguments: list[str], said: Said) -> None:
    status, text = said(*arguments)
    assert status == pytest.ExitCode.OK, text
    assert "3 tests collected" in text


def test_the_help_and_the_docs_tell_what_pytest_says_where_nothing_of_ours_is_loaded(said: Said) -> None:
    status, text = said("--extend", "../mine.py")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "error: unrecognized arguments: " in text
    options = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    assert "unrecognized arguments" in options
    assert options.count("Before a path write = and no blank") == 3
    assert rootdir.__doc__
