"""The search for cuSPARSELt's fastest algorithm, in a process of its own, and the check of what it finds.

The search runs every algorithm the library has, and some of those crash: with cuSPARSELt 0.8 on Hopper every search in
fp16 ends in an illegal instruction, after which the process can use its GPU no more. Here that process is a helper,
which is replaced; the answer is then torch's default algorithm, and that dtype is not searched again.

Others are reported to multiply wrongly (pytorch issue 155333). So what is found is used only after it multiplied right.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from blockshock.kernels.formats import format_of, quantised
from blockshock.kernels.found import Searched
from blockshock.kernels.right import is_product
from blockshock.machine import torch_internals
from blockshock.matrices import GeneratedWeights, Piece, generator, random_mask

Setting = tuple[int, int, int]
"""Algorithm, split-k and split-k mode."""

DEFAULT: Setting = (0, 1, -1)
"""What torch uses when it is not told otherwise."""


class Found(Searched[Setting]):
    """Of cuSPARSELt's algorithms."""

    nothing = "no algorithm"

    @staticmethod
    def parse(stored: Any) -> Setting:
        algorithm, split_k, split_k_mode = stored
        if any(type(number) is not int for number in stored):
            raise ValueError(f"an algorithm is three whole numbers, got {stored}")
        return algorithm, split_k, split_k_mode

    @staticmethod
    def told(setting: Setting) -> str:
        if setting == DEFAULT:
            return "default algorithm"
        return "algorithm {}, split_k {}, split_k_mode {}".format(*setting)


@dataclass(frozen=True)
class Request:
    """A sparse (N, K) times a dense (K, tokens) in a dtype, with a bias or without.

    Attributes:
        least: the fewest tokens that the answer will be used for; ``tokens`` are the most.
        dtype: its name in torch.
        gpu: its identity, which is the same in every process; indices are not.
        to: the dtype of the product in eight bits, by its name; empty where it is that of the factors.
    """

    N: int
    K: int
    tokens: int
    least: int
    dtype: str
    bias: bool
    gpu: str
    to: str = ""


def identity(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


class Searcher:
    """Searches in a helper process, which ends when this process does, however it ends."""

    def __init__(self) -> None:
        self._helper: subprocess.Popen[str] | None = None
        self._crashed: set[str] = set()

    def search(self, request: Request) -> Found:
        """What the helper found; the default algorithm after a crash."""
        if request.dtype in self._crashed:
            return Found(DEFAULT)
        answer = self._ask(json.dumps(asdict(request)))
        if not answer:
            self._discard()
            self._crashed.add(request.dtype)
            return Found(DEFAULT)
        found = Found.read(json.loads(answer))
        assert found is not None
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
        request = Request(**json.loads(line))
        try:
            found = _search(request)
        except torch.OutOfMemoryError:
            found = Found(DEFAULT)  # no fault of the dtype's: it goes on being searched
        torch.cuda.empty_cache()
        print(json.dumps(asdict(found)), flush=True)


def _search(request: Request) -> Found:
    (index,) = (i for i in range(torch.cuda.device_count()) if identity(torch.device("cuda", i)) == request.gpu)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    if request.to:
        return _search_bytes(request, device)
    trial = Trial(request.N, request.K, request.tokens, getattr(torch, request.dtype), request.bias, device)
    packed = torch_internals.compress(trial.w_NK)
    fastest = Found.parse(torch_internals.search(packed, trial.x_BK.t(), trial.bias))

    def multiply(x_BK: torch.Tensor, setting: Setting) -> torch.Tensor:
        return multiplied(packed, x_BK, trial.bias, setting)

    return checked(fastest, trial, request.least, multiply)


def sums_of(stored: torch.dtype) -> torch.dtype:
    """In what cuSPARSELt gives sums of products of what is stored, as they are."""
    return torch.float32 if stored.is_floating_point else torch.int32


def scales_channels(stored: torch.dtype, out: torch.dtype) -> bool:
    """Whether the product multiplies each output channel by a scale before it gives the sum in another dtype.

    cuSPARSELt 0.8 does in int8, and refuses it in fp8 (operation not supported).
    """
    return not stored.is_floating_point and out != sums_of(stored)


def _search_bytes(request: Request, device: torch.device) -> Found:
    """The same in eight bits; with scales of the output channels where the product takes them."""
    stored, out = getattr(torch, request.dtype), getattr(torch, request.to)
    trial = Trial(request.N, request.K, request.tokens, stored, False, device)
    packed = torch_internals.compress(trial.w_NK)
    # Powers of two: the product is then exact wherever that without them is.
    powers_N = torch.arange(request.N, device=device).remainder(3).float().sub(1).exp2()
    scale_N = powers_N if scales_channels(stored, out) else None
    fastest = Found.parse(torch_internals.search(packed, trial.x_BK.t(), None, scale_N, out))

    def multiply(x_BK: torch.Tensor, setting: Setting) -> torch.Tensor:
        y_BN = torch_internals.sparse_mm_of_bytes(packed, x_BK.t(), scale_N, out, setting)
        return (y_BN.float() if scale_N is None else y_BN.float() / scale_N).to(torch.bfloat16)

    return checked(fastest, trial, request.least, multiply)


def multiplied(packed: torch.Tensor, x_BK: torch.Tensor, bias: torch.Tensor | None, setting: Setting) -> torch.Tensor:
    """cuSPARSELt's product (B, N) of a packed (N, K) and of rows that lie densely, B a multiple of eight."""
    return torch_internals.sparse_mm(packed, x_BK.t(), bias, setting)


def checked(
    fastest: Setting, trial: Trial, least: int, multiply: Callable[[torch.Tensor, Setting], torch.Tensor]
) -> Found:
    """The fastest setting, or else the default one, if it multiplies right at both ends of its range of tokens."""
    tried = tuple(dict.fromkeys((fastest, DEFAULT)))
    inputs = dict.fromkeys((len(trial.x_BK), least))
    wrong = tuple(
        setting
        for setting in tried
        if not all(trial.is_right(multiply(trial.x_BK[:tokens], setting)) for tokens in inputs)
    )
    right = [setting for setting in tried if setting not in wrong]
    return Found(right[0] if right else None, wrong)


class Trial:
    """Random weights under a random mask, and random inputs of mean zero: no error of a product can hide in them."""

    def __init__(self, N: int, K: int, tokens: int, dtype: torch.dtype, bias: bool, device: torch.device) -> None:
        source = GeneratedWeights(N, K, dtype if dtype.itemsize > 1 else torch.float32, device, seed=5, with_bias=bias)
        piece, x_BK = Piece(source, slice(0, K), random_mask(source)), _normal(tokens, K, device)
        self.bias = source.bias
        if dtype.itemsize > 1:
            self.w_NK, self.x_BK, self.eps = piece.dense(), x_BK.to(dtype), torch.finfo(dtype).eps
            return
        format = format_of(dtype)
        self.w_NK, _ = quantised(piece.kept_block, N, K, format, device)
        self.x_BK, _ = format.quantise(x_BK)
        self.eps = torch.finfo(torch.bfloat16).eps + format.sums(device).error(K)

    def is_right(self, y_BN: torch.Tensor) -> bool:
        """Whether y is the product of the first rows of x."""
        return is_product(y_BN, self.x_BK[: len(y_BN)], self.w_NK, self.bias, self.eps)


def _normal(tokens: int, K: int, device: torch.device) -> torch.Tensor:
    return torch.randn(tokens, K, device=device, generator=generator(device, 5, 4))
