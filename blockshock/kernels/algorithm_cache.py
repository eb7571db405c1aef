"""What was searched or measured, remembered in the process and in the user's cache folder.

A file lock makes one process search while the others wait for its answer, so that all ranks run the same algorithm.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from blockshock.machine import cache_folder, environment
from blockshock.saved import write_whole


def are_seconds(stored: Any) -> bool:
    """Whether this is what candidates took. What is wrong for one thing takes infinitely long there, and is not
    remembered of others."""
    return isinstance(stored, list) and all(type(one) is float and 0 < one < math.inf for one in stored)


@cache
def measured_on(device: torch.device, folder: Path) -> str:
    """What seconds are good for: a device, torch, and the candidates as they are, whose sources lie in a folder."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else environment.cpu_name()
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".py", ".cu"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return f"{name} torch {torch.__version__} {folder.name} {digest}"


class AlgorithmCache:
    """A JSON file of key → answer, shared by all processes of a user.

    Args:
        fits: whether something read from the file is an answer; what is none is taken for damaged, and searched again.
    """

    def __init__(self, name: str, fits: Callable[[Any], bool]) -> None:
        self._name, self._fits = name, fits
        self._known: dict[str, Any] = {}

    @property
    def _path(self) -> Path:
        return cache_folder() / f"{self._name}.json"

    def get(self, key: str, search: Callable[[], Any]) -> Any:
        """The remembered answer for ``key``, or ``search()``, remembered. An unwritable folder is no error."""
        if key not in self._known:
            self._known[key] = self._get_shared(key, search)
        return self._known[key]

    def known(self, key: str) -> Any:
        """The answer that the file has for ``key``, or None."""
        return self._read(self._path).get(key)

    def keep(self, key: str, found: Any) -> None:
        """Put an answer into the file, in place of what it has. An unwritable folder is no error."""
        path = self._path
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                self._write(path, self._read(path) | {key: found})

    def _get_shared(self, key: str, search: Callable[[], Any]) -> Any:
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        except OSError:
            return search()
        try:
            stored = self._read(path)
            if key not in stored:
                stored[key] = search()
                self._write(path, stored)
            return stored[key]
        finally:
            lock.release()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return {key: found for key, found in stored.items() if self._fits(found)} if isinstance(stored, dict) else {}

    def _write(self, path: Path, stored: dict[str, Any]) -> None:
        with suppress(OSError):
            write_whole(path, json.dumps(stored, indent=1, sort_keys=True))
