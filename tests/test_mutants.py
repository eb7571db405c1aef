"""``tox run -e mutants``: what it runs, and what docs/mutants.md says. What is found is that command's to show."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inner_pytest import ROOT

FOLDER = ROOT / "tests" / "mutants"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The command's modules, which find each other beside themselves."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ("mutant", "page", "trial")
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    yield found
    for name in names:
        del sys.modules[name]


def mutant(modules: SimpleNamespace, file: str, line: int = 1, text: str = "x = 1", becomes: str = "x = 2") -> Any:
    return modules.mutant.Mutant(file, line, text, f"{text} → {becomes}", "")


def test_a_mutant_meets_the_tests_that_are_named_after_its_file_first(modules: SimpleNamespace) -> None:
    tests = modules.trial.tests_of("matrices/compressed.py")
    assert tests[:2] == ["tests/matrices/test_compressed.py", "tests/matrices/test_fuzz_compressed.py"]
    assert {*tests} > {f"tests/matrices/{path.name}" for path in (ROOT / "tests/matrices").glob("test_*.py")}
    for wing in modules.mutant.WINGS:
        tests = modules.trial.tests_of(f"{wing}/base.py")
        assert all((ROOT / path).is_file() for path in tests)
        assert len({*tests}) == len(tests)


def test_tests_that_start_ranks_come_last_and_a_mutant_with_a_reason_meets_none_of_them(
    modules: SimpleNamespace,
) -> None:
    def test(*fixtures: str, ranks: int = 0, code: Any = len) -> Any:
        params = SimpleNamespace(params={"other_ranks": ranks})
        return SimpleNamespace(fixturenames=fixtures, callspec=params, function=code)

    def alone() -> None: ...
    def program() -> None:
        subprocess.run([])

    items = [
        test("other_ranks", ranks=4, code=alone),
        test(code=program),
        test("cpu_ranks", code=alone),
        test("tmp_path", code=alone),
        test("other_ranks", ranks=1, code=alone),
    ]
    found = list(items)
    modules.trial.Quick(False, sys.stderr).pytest_collection_modifyitems(found)
    assert found == [items[3], items[4], items[2], items[0], items[1]]
    modules.trial.Quick(True, sys.stderr).pytest_collection_modifyitems(found)
    assert found == [items[3]]


def test_a_test_that_fails_kills_a_mutant_and_one_that_hangs_does(
    modules: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in ("passes", "pass"), ("fails", "assert 0, 'why'"), ("hangs", "import time; time.sleep(600)"):
        (tmp_path / f"test_{name}.py").write_text(f"def test_it(): {body}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setattr(modules.trial, "place", tmp_path, raising=False)
    monkeypatch.setattr(modules.trial, "OPTIONS", ("-x", "-q", "-p", "no:cacheprovider"))
    assert modules.trial._failure(["test_passes.py"]) is None
    assert "AssertionError: why" in modules.trial._failure(["test_fails.py"])
    monkeypatch.setattr(modules.trial, "SECONDS", 2)
    assert modules.trial._failure(["test_hangs.py"]) == "did not end in 2 seconds"


def test_a_reason_is_for_the_file_the_line_and_the_change_that_it_names(modules: SimpleNamespace) -> None:
    for named, fits in (
        ({"file": "kernels/a.py"}, True),
        ({"file": "kernels/b.py"}, False),
        ({"file": "kernels/a.py", "line": "x = 1"}, True),
        ({"file": "kernels/a.py", "line": "x = 3"}, False),
        ({"line": "x = 1", "becomes": "= 2"}, True),
        ({"line": "x = 1", "becomes": "= 1"}, False),
    ):
        reason = modules.page.reason_of("kernels/a.py", "x = 1", "x = 1 → x = 2", [named | {"reason": "no"}])
        assert reason == ("no" if fits else None), named


def test_the_share_is_of_what_a_cpu_can_see(modules: SimpleNamespace, tmp_path: Path) -> None:
    tried = [(mutant(modules, "kernels/a.py", line, f"x = {line}"), line > 2) for line in range(1, 12)]
    tried.append((mutant(modules, "measure/b.py", 1, "a | b"), True))
    why = [{"file": "kernels/a.py", "line": "x = 1", "reason": "only a GPU"}]
    path = tmp_path / "found.json"
    text, share = modules.page.page(modules.page.record(tried, path), why)
    assert share == 10 / 11
    assert "10 of 11 were killed (91%)" in text
    assert "| kernels | 11 | 9 | 1 | 1 |" in text
    assert "| kernels/a.py:1 | `` x = 1 → x = 2 `` | only a GPU |" in text
    assert "| kernels/a.py:2 | `` x = 2 → x = 2 `` | **not known: it lacks a test** |" in text
    again = [(mutant(modules, "measure/b.py", 1, "a | b"), False)]
    text, _ = modules.page.page(modules.page.record(again, path), why)
    assert "| measure | 1 | 0 | 0 | 1 |" in text
    assert "| kernels | 11 | 9 | 1 | 1 |" in text, "what another run found of other wings is kept"
    assert "a \\| b" in text


def test_the_page_is_what_was_found_and_each_reason_is_of_a_line_that_is_there(modules: SimpleNamespace) -> None:
    page, why = modules.page, modules.page.reasons()
    text, share = page.page(json.loads(page.FOUND.read_text(encoding="utf-8")), why)
    assert page.PAGE.read_text(encoding="utf-8") == text, "run `tox run -e mutants`, or write the page anew"
    assert share >= page.LEAST
    for one in why:
        paths = (ROOT / "blockshock").rglob("*.py") if "file" not in one else [ROOT / "blockshock" / one["file"]]
        lines = {line.strip() for path in paths for line in path.read_text(encoding="utf-8").splitlines()}
        assert one.get("line") in {None, *lines}, f"no such line is left: {one}"


@pytest.mark.usefixtures("modules")
def test_a_sample_is_the_same_each_time_and_of_what_runs() -> None:
    pytest.importorskip("cosmic_ray", reason="`tox run -e mutants` brings cosmic-ray")
    sample = importlib.import_module("sample")
    drawn = sample.sample("measure", 30, 0)
    assert drawn == sample.sample("measure", 40, 0)[:30]
    assert drawn != sample.sample("measure", 30, 1)
    assert len({(one.file, one.line) for one in drawn}) == 30
    code = (
        "from __future__ import annotations\ndef f(a: int | None = None, *b: str | 1) -> dict | 2:\n    return a + 1\n"
    )
    assert set(sample._mutations(code)) == {3}
    for one in [*drawn, *sample.sample("kernels", 40, 0)]:
        assert one.code != (ROOT / "blockshock" / one.file).read_text(encoding="utf-8")
        ast.parse(one.code)
