"""The commands of the README can be given: its environments, markers, options and extras are there."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest

from blockshock.__main__ import parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    command
    for command in (*re.findall(r"```sh\n(.*?)```", README, re.DOTALL), *re.findall(r"`([^`\n]+)`", README))
    if re.search(r"\b(tox|pytest|pip|blockshock)\b", command) and " " in command
]


def test_a_new_user_begins_with_a_clone() -> None:
    first = next(command for command in COMMANDS if "\n" in command)
    assert first.startswith("git clone ")
    assert re.search(r"&& cd (\S+)", first)[1] in first.partition("&&")[0]  # type: ignore[index]
    assert len(COMMANDS) >= 6


def test_environments_markers_and_extras_are_there(pytestconfig: pytest.Config) -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    text = "\n".join(COMMANDS)
    environments, extras = re.findall(r"tox run -e (\w+)", text), re.findall(r"\.\[([\w,]+)\]", text)
    assert {*environments} <= {name.removeprefix("testenv:") for name in tox.sections()}
    assert len(environments) >= 3
    markers = re.findall(r"pytest -m (\w+)|^-m (\w+)$", text, re.MULTILINE)
    known = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert {first or second for first, second in markers} <= known
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {name for names in extras for name in names.split(",")} <= set(project["optional-dependencies"])
    commands = re.findall(r"python -m blockshock (\w+)", text)
    assert len(commands) >= 2
    for command in commands:
        parser().parse_args([command])


def test_options_are_there_and_paths_come_behind_an_equals_sign(pytestconfig: pytest.Config) -> None:
    given = {option for command in COMMANDS for option in re.findall(r"--[\w-]+", command)}
    groups = [pytestconfig._parser._anonymous, *pytestconfig._parser._groups]
    assert given <= {name for group in groups for option in group.options for name in option.names()}
    assert "--extend" in given
    for page in (README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))):
        assert not re.findall(r"pytest[^`\n]* --(?:extend|points) ", page), "which takes the path for one of tests"
