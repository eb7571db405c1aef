"""docs/architecture.md: its code runs as it stands there, and what it names is there."""

from __future__ import annotations

import dis
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import CodeType

import pytest
from inner_pytest import ROOT, python_path, start, suite

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CODE = "\n\n".join(SNIPPETS)
MOST_LINES, CODE_FILES = 250, {".py", ".cu", ".js", ".css", ".html"}
METHODS = "back_to_front,in_order,masked_split_dense,block_shock,pruned_dense"
OPTIONS = (
    *("--device=cpu", "--ranks=1", "--N=64", "--B=4", "--dtype=fp32", "--rounds=2", "--cover=grid"),
    *(
        "--workloads=sparse_inputs:zeros=0.9",
        "--kernels=einsum",
        "--masks=outer",
        "--pruners=weight_times_input",
        f"--methods={METHODS}",
    ),
    *("-m", "bench or correctness", "-p", "no:cacheprovider", "--benchmark-save=page"),
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What is saved of the results of a session that has all of the page's code."""
    folder = suite(
        tmp_path_factory.mktemp("page"), "test_phase0_correctness.py", "test_hypotheses.py", conftest=f"\n\n{CODE}"
    )
    session = start(folder, *OPTIONS, "-k", "correctness or OrderIsFree or right")
    output, _ = session.communicate()
    assert session.returncode == pytest.ExitCode.OK, output
    (path,) = folder.glob("benchmark_results/*/0001_page.json")
    return [benchmark["extra_info"] for benchmark in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]]


def test_each_thing_that_the_page_adds_is_run_and_right(rows: list[dict[str, object]]) -> None:
    checked = {row["label"]: row for row in rows if row["kind"] == "accuracy"}
    assert set(checked) == {
        "back_to_front",
        "in_order reversed",
        "masked_split_dense outer",
        "block_shock einsum outer",
        "pruned_dense weight_times_input",
    }
    for row in checked.values():
        assert (row["status"], row["workload"]) == ("right", "sparse_inputs:zeros=0.9")
    assert checked["in_order reversed"]["picks"] == {"order": "reversed"}
    assert {label for label, row in checked.items() if "quality" in row} == {"pruned_dense weight_times_input"}


def test_its_hypothesis_is_decided(rows: list[dict[str, object]]) -> None:
    (verdict,) = (row for row in rows if row["kind"] == "verdict")
    assert (verdict["hypothesis"], verdict["method"], verdict["rival"]) == (
        "OrderIsFree",
        "back_to_front",
        "dense_single",
    )


def test_its_wings_are_the_packages_in_the_order_of_their_imports() -> None:
    told = re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    packages = [layer for layer in reversed(layers) if (ROOT / "blockshock" / layer / "__init__.py").exists()]
    assert told == packages


def test_no_file_of_the_package_is_longer_than_one_can_hold_in_mind() -> None:
    files = [path for path in sorted((ROOT / "blockshock").rglob("*")) if path.suffix in CODE_FILES]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lines) > 200, "it looks where the package is"
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not long, f"at most {MOST_LINES} lines: make it simpler, or move what belongs together to a file of its own"


def test_the_files_that_it_names_are_there() -> None:
    told = {name for name in re.findall(r"`([\w/]+(?:\.py|\.md)?)`", PAGE) if "/" in name or name.endswith(".py")}
    here = (ROOT, ROOT / "blockshock", *(path for path in (ROOT / "blockshock").iterdir() if path.is_dir()))
    missing = {name for name in told if not any((Path(folder) / name).exists() for folder in here)}
    assert missing <= {"conftest.py", "blockshock/kernels/x.py"}


def unknown(code: CodeType, known: set[str]) -> set[str]:
    """Names that the code, and each function in it, takes from its module, and which are not known there."""
    taken = {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return (taken - known).union(*(unknown(one, known) for one in inner))


def test_each_snippet_runs_by_itself() -> None:
    """With nothing but what it imports, its functions too, by the names they take; in a process that ends with what
    they register."""
    program = (
        f"import builtins, json, sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from test_architecture import unknown\n"
        "for snippet in json.loads(sys.argv[1]):\n"
        "    code, found = compile(snippet, 'snippet', 'exec'), {'__name__': 'snippet'}\n"
        "    exec(code, found)\n"
        "    missing = unknown(code, {*found, *dir(builtins)})\n"
        "    assert not missing, f'{sorted(missing)} in {snippet}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(SNIPPETS)],
        env=os.environ | {"PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
