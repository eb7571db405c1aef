"""Paths that options take are no paths of tests: where pytest took one for that, it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from inner_pytest import LIGHT_OPTIONS, light_suite, start

from blockshock.plugin import rootdir

MINE = "from blockshock import METHODS\nMETHODS.register('mine')(METHODS.get('dense_single'))\n"
POINTS = "N,K,B,count\n64,64,4,1\n"


def _said(folder: Path, *arguments: str) -> tuple[int, str]:
    inner = start(folder, *LIGHT_OPTIONS, "--collect-only", "-q", *arguments)
    output, _ = inner.communicate()
    return inner.returncode, " ".join(output.split())


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite inside a project that has settings for pytest too, and the files of a user's above both."""
    outer = tmp_path_factory.mktemp("outer")
    (outer / "mine.py").write_text(MINE)
    (outer / "mine.csv").write_text(POINTS)
    (outer / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (outer / "suite").mkdir()
    (outer / "suite" / "mine.py").write_text(MINE)
    return light_suite(outer / "suite")


@pytest.mark.parametrize(("option", "file"), [("--extend", "mine.py"), ("--blockshock-points", "mine.csv")])
def test_a_path_behind_a_blank_that_moves_the_settings_is_refused(option: str, file: str, suite: Path) -> None:
    status, said = _said(suite, option, f"../{file}", "test_light.py")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"{option} ../{file}: pytest takes ../{file} for a path of tests" in said
    assert f"its settings from {suite.parent} in place of {suite}." in said
    assert said.endswith(f"Write it with = and no blank: {option}=../{file}")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["--extend=../mine.py", "test_light.py"],
        ["--extend", "mine.py"],
        ["--extend", "../mine.py", "-c", "pytest.ini", "test_light.py"],
    ],
    ids=["with =", "beside the tests", "with settings by name"],
)
def test_a_path_that_moves_nothing_is_taken(arguments: list[str], suite: Path) -> None:
    status, said = _said(suite, *arguments)
    assert status == pytest.ExitCode.OK, said
    assert "3 tests collected" in said


def test_the_help_and_the_docs_tell_what_pytest_says_where_nothing_of_ours_is_loaded(suite: Path) -> None:
    status, said = _said(suite, "--extend", "../mine.py")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "error: unrecognized arguments: " in said
    options = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    assert "unrecognized arguments" in options
    assert options.count("Before a path write = and no blank") == 2
    assert rootdir.__doc__
