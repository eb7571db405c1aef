"""The process that searches cuSPARSELt's algorithms, and what is said of a search that it did not outlive."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import IO

from blockshock.kernels.cusparselt_search import DEFAULT, Found, Request, shortened


class Searcher:
    """Searches in a helper process, which ends when this process does, however it ends."""

    def __init__(self) -> None:
        self._helper: subprocess.Popen[str] | None = None
        self._said: IO[bytes] | None = None
        self._crashed: dict[str, str] = {}

    def search(self, request: Request) -> Found:
        """What the helper found; the default algorithm after a crash. The next helper then starts beside what goes on,
        for that takes seconds, and other dtypes are to be searched."""
        if request.dtype in self._crashed:
            return Found(DEFAULT, failed=self._crashed[request.dtype])
        answer = self._ask(json.dumps(asdict(request)))
        if not answer:
            self._crashed[request.dtype] = self._last_words()
            self._discard()
            self._start()
            return Found(DEFAULT, failed=self._crashed[request.dtype])
        found = Found.read(json.loads(answer))
        assert found is not None
        return found

    def _ask(self, request: str) -> str:
        """The helper's answer, or an empty string if it ended without one."""
        helper = self._helper or self._start()
        assert helper.stdin is not None
        assert helper.stdout is not None
        try:
            print(request, file=helper.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return helper.stdout.readline()

    def _start(self) -> subprocess.Popen[str]:
        start = [sys.executable, "-c", "from blockshock.kernels import cusparselt_search as s; s.serve()"]
        atexit.register(self._discard)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads would fill up)
        self._helper = subprocess.Popen(
            start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        return self._helper

    def _last_words(self) -> str:
        """Of a helper that ended."""
        if self._helper is None or self._said is None:
            return "its process ended"
        self._helper.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        told = [line.strip() for line in lines if line[:1].strip() and "Error" in line]
        return shortened(told[-1]) if told else f"its process ended with status {self._helper.returncode}"

    def _discard(self) -> None:
        atexit.unregister(self._discard)
        if self._helper is not None:
            self._helper.kill()
            self._helper.communicate()
            self._helper = None
        if self._said is not None:
            self._said.close()
            self._said = None
