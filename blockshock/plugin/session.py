"""What a session says of itself in its journal: what it runs, with which code, and where. By that it can be resumed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_benchmark
import torch
from pytest_benchmark.utils import get_machine_id

import blockshock
from blockshock.plugin.saving import name_of_run
from blockshock.plugin.settings import Settings
from blockshock.registry import extensions, packages

_SELECTS = {
    "keyword": "-k",
    "markexpr": "-m",
    "deselect": "--deselect",
    "ignore": "--ignore",
    "ignore_glob": "--ignore-glob",
    "pyargs": "--pyargs",
    "lf": "--lf",
    "stepwise": "--stepwise",
    "benchmark_only": "--benchmark-only",
    "benchmark_skip": "--benchmark-skip",
    "benchmark_disable": "--benchmark-disable",
    "numprocesses": "-n",
}
"""Options by which tests are picked, or which keep those that are from being timed, by the names that pytest has."""
_SOURCES = (".py", ".cu")
_OF_GPUS = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_MAX_CONNECTIONS")
"""Variables of the environment by which GPUs are chosen, and work runs side by side on them."""


def decisive(config: pytest.Config, settings: Settings) -> dict[str, Any]:
    """What a session must have in common with one that it goes on with, but for its machine and its tests' files."""
    return {
        "settings": settings.described(),
        "selection": selection(config),
        "code": code(settings.extend, config.rootpath),
        "machine_id": get_machine_id(),
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "gpus": {name: os.environ.get(name) for name in _OF_GPUS},
    }


def described(config: pytest.Config) -> dict[str, Any]:
    """What ``session.json`` says beside that; what a saved run needs beside its benchmarks."""
    machine_info = config.hook.pytest_benchmark_generate_machine_info(config=config)
    config.hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    return {
        "arguments": list(config.invocation_params.args),
        "save": name_of_run(config),
        "machine_info": machine_info,
        "commit_info": commit_info(config),
        "datetime": datetime.now(UTC).isoformat(),  # as pytest-benchmark dates what it saves
        "version": pytest_benchmark.__version__,
    }


def commit_info(config: pytest.Config) -> dict[str, Any]:
    """The commit, as pytest-benchmark saves it."""
    info: dict[str, Any] = config.hook.pytest_benchmark_generate_commit_info(config=config)
    config.hook.pytest_benchmark_update_commit_info(config=config, commit_info=info)
    return info


def selection(config: pytest.Config) -> str:
    """Which tests are to run, in the words of a command line: paths and whatever picks among what is there."""
    words = sorted({_below_root(config, path) for path in config.args})
    for name, option in _SELECTS.items():
        value = config.getoption(name, None)
        for one in value if isinstance(value, list) else [value]:
            words += [] if not one else [option] if one is True else [option, str(one)]
    return shlex.join(words)


def _below_root(config: pytest.Config, word: str) -> str:
    path, *test = word.partition("::")
    return os.path.relpath(config.invocation_params.dir / path, config.rootpath) + "".join(test)


def code(extend: Iterable[str], root: Path) -> dict[str, str]:
    """Digests of what decides the numbers: the sources and data of this package and of those that extend it, and the
    user's files that register something."""
    packaged = {name: _sources(name) for name in ("blockshock", *sorted(packages()))}
    files = dict.fromkeys([*map(os.path.abspath, extend), *(file for _, file in extensions())])
    return {name: _digest(paths) for name, paths in packaged.items()} | digests(map(Path, files), root)


def digests(files: Iterable[Path], root: Path) -> dict[str, str]:
    """Digests of single files, by their places below the root, wherever pytest was started."""
    return {str(path.relative_to(root) if path.is_relative_to(root) else path): _digest([path]) for path in files}


def tests_of(items: Iterable[pytest.Item], root: Path) -> dict[str, str]:
    """Digests of the files of tests, and of each conftest.py that stands for them."""
    files = {item.path for item in items}
    above = {folder / "conftest.py" for file in files for folder in file.parents if folder.is_relative_to(root)}
    return digests([*files, *filter(Path.is_file, above)], root)


def _sources(package: str) -> list[Path]:
    """What a package is made of: its code, and what lies in its folders of data."""
    if package == blockshock.__name__:
        homes = [str(Path(blockshock.__file__).parent)]
    else:
        found = importlib.util.find_spec(package)
        homes = list(found.submodule_search_locations or filter(None, [found.origin])) if found else []
    inside = [path for home in map(Path, homes) for path in (home.rglob("*") if home.is_dir() else [home])]
    return sorted(path for path in inside if path.suffix in _SOURCES or (path.parent.name == "data" and path.is_file()))


def _digest(paths: Iterable[Path]) -> str:
    """Of files, in their order; of one that cannot be read, that."""
    found = hashlib.sha256()
    for path in paths:
        try:
            found.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            found.update(type(error).__name__.encode())
    return found.hexdigest()[:12]
