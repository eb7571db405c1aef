"""The search for cuSPARSELt's fastest algorithm, in a process of its own.

The search runs every algorithm the library has, and some of those crash: with cuSPARSELt 0.8 on Hopper every search in
fp16 ends in an illegal instruction, after which the process can use its GPU no more. Here that process is a helper,
which is replaced; the answer is then torch's default algorithm, and that dtype is not searched again.
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch

DEFAULT = (0, 1, -1)
"""Algorithm, split-k and split-k mode that torch uses when it is not told otherwise."""

Request = dict[str, int | str | bool]


class Searcher:
    """Searches in a helper process, which ends when this process does, however it ends."""

    def __init__(self) -> None:
        self._helper: subprocess.Popen[str] | None = None
        self._crashed: set[torch.dtype] = set()

    def search(self, N: int, K: int, tokens: int, dtype: torch.dtype, bias: bool, device: torch.device) -> list[int]:
        """Algorithm, split-k and split-k mode for a sparse (N, K) times a dense (K, tokens); DEFAULT after a crash."""
        if dtype in self._crashed:
            return list(DEFAULT)
        request: Request = {"N": N, "K": K, "tokens": tokens, "bias": bias}
        request |= {"dtype": str(dtype).removeprefix("torch."), "device": device.index or 0}
        answer = self._ask(json.dumps(request))
        if not answer:
            self._discard()
            self._crashed.add(dtype)
            return list(DEFAULT)
        found: list[int] = json.loads(answer)
        return found

    def _ask(self, request: str) -> str:
        """The helper's answer, or an empty string if it ended without one."""
        if self._helper is None:
            start = [sys.executable, "-c", "from blockshock.kernels import cusparselt_search as s; s.serve()"]
            self._helper = subprocess.Popen(
                start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        helper = self._helper
        assert helper.stdin is not None
        assert helper.stdout is not None
        try:
            print(request, file=helper.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return helper.stdout.readline()

    def _discard(self) -> None:
        if self._helper is not None:
            self._helper.kill()
            self._helper.communicate()
            self._helper = None


def serve() -> None:
    """Answer requests, one a line, until standard input ends. This is the helper's program."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = _search(**request)
        print(json.dumps(answer), flush=True)


def _search(N: int, K: int, tokens: int, dtype: str, bias: bool, device: int) -> list[int]:
    """Search on a random 2:4 matrix: the speed does not depend on values or mask.

    What was found must also multiply as the default algorithm does, or the default it is.
    """
    torch.cuda.set_device(device)
    kind = getattr(torch, dtype)
    kept = torch.tensor([True, True, False, False], device="cuda")
    dense = torch.randn(N, K // 4, 4, device="cuda", dtype=kind).add_(4).mul_(kept).flatten(1)
    packed = torch._cslt_compress(dense)
    del dense
    x_KB = torch.randn(tokens, K, device="cuda", dtype=kind).t()
    bias_N = torch.randn(N, device="cuda", dtype=kind) if bias else None
    mm_search = torch._C._cusparselt.mm_search  # type: ignore[attr-defined]
    found = list(mm_search(packed, x_KB, bias_N, None, None, True)[:3])
    expected, result = (
        torch._cslt_sparse_mm(
            packed, x_KB, bias=bias_N, transpose_result=True, alg_id=alg, split_k=split, split_k_mode=mode
        ).float()
        for alg, split, mode in (DEFAULT, found)
    )
    close = (result - expected).norm() <= 4 * torch.finfo(kind).eps * expected.norm()
    torch.cuda.empty_cache()
    return found if close.item() else list(DEFAULT)
