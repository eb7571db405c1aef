"""NVIDIA's cuSPARSELt: the sparse tensor cores, with the algorithm searched once for a GPU, weight, octave and dtype.

The packed tensor is [kept values, row-major | metadata], and the metadata depends on the mask alone when no kept
value is zero, so new values under the same mask are written in place and nothing is compressed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from blockshock.errors import KernelUnavailable
from blockshock.kernels.algorithm_cache import AlgorithmCache
from blockshock.kernels.backward import SparseCores, too_old
from blockshock.kernels.base import KERNELS, packed_bytes
from blockshock.kernels.cusparselt_helper import Searcher
from blockshock.kernels.cusparselt_layout import (
    BYTES_TOKENS_MULTIPLE,
    TOKENS_MULTIPLE,
    byte_packed_bytes,
    compressed,
)
from blockshock.kernels.cusparselt_search import (
    DEFAULT,
    Found,
    Request,
    Setting,
    identity,
    multiplied,
    scales_channels,
    sums_of,
)
from blockshock.kernels.cusparselt_thread import claim_thread, thread_obstacle
from blockshock.kernels.cusparselt_traced import traced, traced_of_bytes
from blockshock.kernels.formats import Format, PackedQuantised, Stored, quantised
from blockshock.kernels.layout import dense_rows
from blockshock.kernels.marked import marked, write_kept
from blockshock.kernels.octaves import octave_of
from blockshock.kernels.packed import Packed
from blockshock.machine import torch_internals
from blockshock.matrices import Mask, Piece
from blockshock.stages import stage

BYTES_MULTIPLE = 32
"""Of N and K, in eight bits."""

_searcher = Searcher()
_algorithms = AlgorithmCache("cusparselt-checked", fits=lambda stored: Found.read(stored) is not None)


class _Searched(Packed):
    """A packing whose algorithm is searched for each octave of tokens."""

    packed: torch.Tensor
    unit = "2:4"
    N: int
    K: int
    _search: bool
    _chosen: dict[int, Setting]
    _to, _multiple = "", TOKENS_MULTIPLE

    def _setting(self, x_BK: torch.Tensor) -> Setting:
        least, most = octave_of(len(x_BK), self._multiple)
        if torch.compiler.is_compiling():
            return self._chosen.get(most, DEFAULT)  # no search can be traced: run the layer once, then compile it
        claim_thread(x_BK.device)
        if most not in self._chosen:
            found = self._find(least, most, x_BK) if self._search else Found(DEFAULT)
            if found.setting is None:
                raise KernelUnavailable(
                    f"kernel cusparselt: of what was tried for ({self.N}, {self.K}), {x_BK.dtype} and up to {most} "
                    f"tokens, nothing multiplies right on this GPU: {found.name}; use another kernel"
                )
            self._chosen[most], self.algorithm = found.setting, found.name
        return self._chosen[most]

    def _find(self, least: int, most: int, x_BK: torch.Tensor) -> Found:
        bias, dtype = self.bias is not None and not self._to, str(x_BK.dtype).removeprefix("torch.")
        key = f"N{self.N} K{self.K} B{least}-{most} {dtype} bias={bias}" + (f" to={self._to}" if self._to else "")
        return searched(key, x_BK.device, Request(self.N, self.K, most, least, dtype, bias, to=self._to))


class PackedCusparselt(_Searched):
    def __init__(self, piece: Piece, bias: torch.Tensor | None, search: bool) -> None:
        super().__init__()
        self.N, self.K, self._search = piece.N, piece.K, search
        claim_thread(piece.device)
        w_NK, has_zeros = marked(piece)
        self.register_buffer("packed", compressed(w_NK), persistent=False)
        if has_zeros:
            write_kept(piece, self.values)
        self.hold_bias(bias)
        self._chosen: dict[int, Setting] = {}

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        tokens = len(x_BK)
        if not tokens:
            return x_BK.new_empty(0, self.N)
        setting = self._setting(x_BK)
        if torch.compiler.is_compiling():
            return traced(self.packed, x_BK, self.bias, self.N, *setting)
        x_BK = dense_rows(x_BK, TOKENS_MULTIPLE)
        with stage(self.product_stage):
            # To autograd a view is not the caller's to write over; nobody else has the rest of these rows.
            return multiplied(self.packed, x_BK, self.bias, setting)[:tokens].data

    def laid_out(self, x_BK: torch.Tensor) -> Sequence[torch.Tensor]:
        return (dense_rows(x_BK),)  # which a product of a multiple of eight takes as they are

    @property
    def shape(self) -> tuple[int, int]:
        return self.N, self.K

    @property
    def values(self) -> torch.Tensor:
        return self.packed.view(-1)[: self.N * self.K // 2].view(self.N, self.K // 2)

    def recompress(self, w_NK: torch.Tensor) -> None:
        # Copied, not kept in place of the old packing: a captured graph goes on reading where that lies.
        self.writes += 1
        claim_thread(w_NK.device)
        self.packed.copy_(compressed(dense_rows(w_NK)))
        if self.backward is not None:
            self.backward.recompress(w_NK)


class PackedQuantisedCusparselt(PackedQuantised, _Searched):
    """A piece in eight bits. Zeros among what it keeps need no marks: new values are never written under its mask.

    Attributes:
        fused: the product gives bf16, in int8 having scaled its channels, which is scaled by what is left and rounded
            once more; otherwise it gives plain sums.
    """

    _multiple = BYTES_TOKENS_MULTIPLE

    def __init__(
        self,
        piece: Piece,
        bias: torch.Tensor | None,
        format: Format,
        search: bool,
        fused: bool = True,
        shared_N: torch.Tensor | None = None,
    ) -> None:
        q_NK, scale_N = quantised(piece.kept_block, piece.N, piece.K, format, piece.device, shared_N=shared_N)
        super().__init__(piece.K, format, scale_N, bias, piece.N * piece.K // 2)
        claim_thread(piece.device)
        self.register_buffer("packed", compressed(q_NK), persistent=False)
        self._search, self._chosen = search, {}
        self._out = torch.bfloat16 if fused else sums_of(format.stored)
        self._scales = scales_channels(format.stored, self._out)
        self._to = str(self._out).removeprefix("torch.")
        self.roundings = 2 if fused else 1

    def product(self, q_BK: torch.Tensor) -> torch.Tensor:
        """Sums of what is stored, times the channels' scales where it takes them. Stages ``layout`` and ``matmul``."""
        tokens, setting, scale_N = len(q_BK), self._setting(q_BK), self.scale_N if self._scales else None
        if torch.compiler.is_compiling():
            return traced_of_bytes(self.packed, q_BK, scale_N, self._out, self.N, *setting)
        q_BK = dense_rows(q_BK, BYTES_TOKENS_MULTIPLE)
        with stage("matmul"):
            return torch_internals.sparse_mm_of_bytes(self.packed, q_BK.T, scale_N, self._out, setting)[:tokens]

    def multiply(self, x: Stored, dtype: torch.dtype) -> torch.Tensor:
        sums_BN = self.product(x.numbers)
        return self.format.descale(sums_BN, x.scale, None if self._scales else self.scale_N, self.bias, dtype)


def searched(key: str, device: torch.device, request: Request) -> Found:
    """What is fastest for a request; searched once on such a GPU for a key that names what the request is of."""
    key = f"{library_key(device)} {key}"
    stored = _algorithms.get(key, lambda: asdict(_searcher.search(replace(request, gpu=identity(device)))))
    found = Found.read(stored)
    assert found is not None
    return found


def library_key(device: torch.device) -> str:
    """The GPU and the library versions that a searched algorithm is good for."""
    library = f"cuSPARSELt {torch.backends.cusparselt.version()} torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)} {library}"


@KERNELS.register("cusparselt")
class Cusparselt(SparseCores):
    """CUDA devices of compute capability 8.0 and up, bf16 and fp16, any mask. Stores 9/16 of dense bytes.

    Args:
        search: use the fastest algorithm that cuSPARSELt's own search finds; otherwise torch's default one.
        fused: in a format, the product gives bf16, and in int8 it scales its output channels itself; otherwise it gives
            sums in 32 bits, and all scales come after it.
    """

    formats = ("int8", "fp8")

    def __init__(self, search: bool = True, fused: bool = True) -> None:
        self.search, self.fused = search, fused

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if reason := super().unavailable(device, dtype):
            return reason
        if not torch.backends.cusparselt.is_available():
            return "this torch was built without cuSPARSELt: install a CUDA build of torch"
        return too_old(device) or thread_obstacle(device)

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if N % 16 or K % 16:
            return f"needs N and K to be multiples of 16, got N = {N}, K = {K}"
        return None

    def pack_forward(self, piece: Piece, bias: torch.Tensor | None) -> Packed:
        return PackedCusparselt(piece, bias, self.search)

    def unsuitable_format(self, format: Format, N: int, K: int, dtype: torch.dtype) -> str | None:
        if self.fused and dtype != torch.bfloat16:
            return f"cusparselt gives torch.bfloat16, not {dtype}: choose --dtype bf16, or cusparselt:fused=no"
        if N % BYTES_MULTIPLE or K % BYTES_MULTIPLE:
            return f"in eight bits cusparselt needs N and K to be multiples of {BYTES_MULTIPLE}, got N = {N}, K = {K}"
        return super().unsuitable_format(format, N, K, dtype)

    def pack_quantised(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> Packed:
        return PackedQuantisedCusparselt(piece, bias, format, self.search, self.fused, shared_N)

    def quantised_bytes(self, N: int, K: int, format: Format, mask: Mask | None = None) -> tuple[int, int]:
        held = byte_packed_bytes(N, K) + 4 * N
        # The search holds what was quantised, and its numbers in bf16, beside a packing of its own.
        return held, 2 * held - 4 * N + 3 * N * K

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        # The search holds a dense piece and a packing of its own on the same GPU.
        return 2 * packed_bytes(N, K, itemsize) + N * K * itemsize
