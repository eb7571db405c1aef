"""The search for cuSPARSELt's fastest algorithm, in a process of its own, and the check of what it finds.

The search runs every algorithm the library has, and some of those crash: with cuSPARSELt 0.8 on Hopper every search in
fp16 ends in an illegal instruction, after which the process can use its GPU no more. Here that process is a helper,
which is replaced; the answer is then torch's default algorithm, and that dtype is not searched again. What a search
failed of goes with its answer into every row, for the default algorithm may be far slower.

Others are reported to multiply wrongly (pytorch issue 155333). So what is found is used only after it multiplied right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from blockshock.kernels.cusparselt_layout import compressed
from blockshock.kernels.cusparselt_trial import Trial
from blockshock.kernels.found import Searched
from blockshock.kernels.right import is_product
from blockshock.machine import torch_internals

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
        tokens_are: of a W that is packed anew at each step, its ``rows`` or its ``columns``: N or K is then the most of
            them, and ``tokens`` are features. Empty where they are columns of x.
        x_turned, y_turned: x (K, tokens) and the product (N, tokens) lie as (tokens, K) and (tokens, N).
    """

    N: int
    K: int
    tokens: int
    least: int
    dtype: str
    bias: bool
    gpu: str = ""
    to: str = ""
    tokens_are: str = ""
    x_turned: bool = True
    y_turned: bool = True


def identity(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def serve() -> None:
    """Answer requests, one a line, until standard input ends. This is the helper's program."""
    for line in sys.stdin:
        request = Request(**json.loads(line))
        try:
            found = _search(request)
        except Exception as error:
            torch.cuda.synchronize()  # where the GPU is lost, the process ends here; else others can be searched
            found = Found(DEFAULT, failed=shortened(f"{type(error).__name__}: {error}"))
        torch.cuda.empty_cache()
        print(json.dumps(asdict(found)), flush=True)


def shortened(error: str) -> str:
    """What says why, for a row: a library's errors go on with a whole call, or with advice."""
    return error.partition("\n")[0].partition(" when calling")[0][:160]


def _search(request: Request) -> Found:
    (index,) = (i for i in range(torch.cuda.device_count()) if identity(torch.device("cuda", i)) == request.gpu)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    if request.to:
        return _search_bytes(request, device)
    if request.tokens_are:
        return _search_anew(request, device)
    trial = Trial(request.N, request.K, request.tokens, getattr(torch, request.dtype), request.bias, device)
    packed = compressed(trial.w_NK)
    fastest = Found.parse(torch_internals.search(packed, trial.x_BK.t(), trial.bias))

    def multiply(x_BK: torch.Tensor, setting: Setting) -> torch.Tensor:
        return multiplied(packed, x_BK, trial.bias, setting)

    return checked(fastest, trial, request.least, multiply)


def _search_anew(request: Request, device: torch.device) -> Found:
    """The same of a W whose rows or columns are tokens."""
    trial = Trial(request.N, request.K, request.tokens, getattr(torch, request.dtype), False, device)

    def laid(tokens: int) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], bool]]:
        """W of so many tokens as cuSPARSELt has it, x as it will lie, and whether a product is theirs."""
        rows, columns = (tokens, request.K) if request.tokens_are == "rows" else (request.N, tokens)
        w_NK, x_BK = trial.w_NK[:rows, :columns].contiguous(), trial.x_BK[:, :columns].contiguous()
        x_KB = x_BK.T if request.x_turned else x_BK.T.contiguous()
        return compressed(w_NK), x_KB, lambda y_BN: is_product(y_BN, x_BK, w_NK, None, trial.eps)

    most = request.N if request.tokens_are == "rows" else request.K
    ends = [laid(tokens) for tokens in dict.fromkeys((most, request.least))]
    (packed, x_KB, _), *_ = ends
    fastest = Found.parse(torch_internals.search(packed, x_KB, None, turned=request.y_turned))

    def multiplied_by(setting: Setting, packed: torch.Tensor, x_KB: torch.Tensor) -> torch.Tensor:
        y = torch_internals.sparse_mm(packed, x_KB, None, setting, request.y_turned)
        return y if request.y_turned else y.T

    return settled(
        fastest, lambda setting: all(fits(multiplied_by(setting, packed, x_KB)) for packed, x_KB, fits in ends)
    )


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
    packed = compressed(trial.w_NK)
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
    """What is settled by products of both ends of a range of tokens."""
    inputs = dict.fromkeys((len(trial.x_BK), least))
    return settled(
        fastest,
        lambda setting: all(trial.is_right(multiply(trial.x_BK[:tokens], setting)) for tokens in inputs),
    )


def settled(fastest: Setting, is_right: Callable[[Setting], bool]) -> Found:
    """The fastest setting, or else the default one, if it multiplies right."""
    tried = tuple(dict.fromkeys((fastest, DEFAULT)))
    wrong = tuple(setting for setting in tried if not is_right(setting))
    right = [setting for setting in tried if setting not in wrong]
    return Found(right[0] if right else None, wrong)
