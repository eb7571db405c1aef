"""Where pytest took the value of one of our options for a test path, and its settings from beside that.

pytest looks for its settings before it loads a `conftest.py`, and so before it knows of any option that one adds: of
``--extend ../mine.py`` it sees a word that it does not know, and a path. With ``=`` it is one word, and no path.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from blockshock.errors import InputError

SETTINGS_FILES = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")


def typed(config: Any) -> list[str]:
    """The words of the command line, those of PYTEST_ADDOPTS first, as pytest reads them."""
    return [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *map(str, config.invocation_params.args)]


def check(config: Any, ours: Collection[str]) -> None:
    """Raises InputError where a path behind a blank, and not ``=``, has moved pytest away from its settings.

    Args:
        ours: names of options that take a value.
    """
    known = config.known_args_namespace
    here = config.invocation_params.dir
    taken = {value: name for name, value in pairwise(typed(config)) if name in ours and (here / value).exists()}
    if not taken or known.inifilename or known.rootdir or "PYTEST_XDIST_WORKER" in os.environ:
        return
    meant = [path for word in known.file_or_dir if word not in taken and (path := _path(here, word)).exists()]
    home = next(_homes([path if path.is_dir() else path.parent for path in meant] or [here]), None)
    if home not in (None, config.rootpath):
        for value, name in taken.items():
            raise InputError(
                f"{name} {value}: pytest takes {value} for a path of tests, and its settings from {config.rootpath} in "
                f"place of {home}. Write it with = and no blank: {name}={value}"
            )


def _path(here: Path, word: str) -> Path:
    return Path(os.path.abspath(here / word.partition("::")[0]))


def _homes(folders: list[Path]) -> Iterator[Path]:
    """Folders with settings, from what these have in common on upwards."""
    common = Path(os.path.commonpath(folders))
    for folder in (common, *common.parents):
        if any((folder / name).is_file() for name in SETTINGS_FILES):
            yield folder
