"""NVIDIA's cuSPARSELt: the sparse tensor cores, with the algorithm searched once for each GPU, shape and dtype.

The packed tensor is [kept values, row-major | metadata], and the metadata depends on the mask alone when no kept
value is zero, so new values under the same mask are written in place and nothing is compressed again.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels.algorithm_cache import AlgorithmCache
from blockshock.kernels.backward import backward_of, most_backward_bytes
from blockshock.kernels.base import KERNELS, Half, Kernel, Packed, packed_bytes
from blockshock.kernels.cusparselt_search import DEFAULT, Searcher
from blockshock.masks import Mask
from blockshock.stages import copied, stage

TOKENS_MULTIPLE = 8
"""Rows of X that the product takes; others are padded with zeros."""

_searcher = Searcher()
_algorithms = AlgorithmCache("cusparselt", length=3)


class PackedCusparselt(Packed):
    packed: torch.Tensor
    unit = "2:4"

    def __init__(self, half: Half, bias: torch.Tensor | None, search: bool) -> None:
        super().__init__()
        self.N, self.K, self._search = half.N, half.K, search
        self.register_buffer("packed", torch._cslt_compress(half.dense()), persistent=False)
        self.hold_bias(bias)
        self._chosen: dict[int, tuple[int, int, int]] = {}

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        tokens = len(x_BK)
        if tokens % TOKENS_MULTIPLE:
            with stage("layout"):
                x_BK = copied(F.pad(x_BK, (0, 0, 0, -tokens % TOKENS_MULTIPLE)))
        algorithm, split_k, split_k_mode = self._algorithm(x_BK)
        with stage(self.product_stage):
            y_BN = torch._cslt_sparse_mm(
                self.packed,
                x_BK.t(),
                bias=self.bias,
                transpose_result=True,
                alg_id=algorithm,
                split_k=split_k,
                split_k_mode=split_k_mode,
            )
        return y_BN[:tokens]

    def _algorithm(self, x_BK: torch.Tensor) -> tuple[int, int, int]:
        tokens = len(x_BK)
        if tokens not in self._chosen:
            if torch.compiler.is_compiling():
                return DEFAULT  # a search cannot be traced; run the layer once before it is compiled
            self._chosen[tokens] = self._find(x_BK) if self._search else DEFAULT
            name = "algorithm {}, split_k {}, split_k_mode {}".format(*self._chosen[tokens])
            self.algorithm = "default algorithm" if self._chosen[tokens] == DEFAULT else name
        return self._chosen[tokens]

    def _find(self, x_BK: torch.Tensor) -> tuple[int, int, int]:
        tokens, bias = len(x_BK), self.bias is not None
        key = f"{library_key(x_BK.device)} N{self.N} K{self.K} B{tokens} {x_BK.dtype} bias={bias}"
        algorithm, split_k, split_k_mode = _algorithms.get(
            key, lambda: _searcher.search(self.N, self.K, tokens, x_BK.dtype, bias, x_BK.device)
        )
        return algorithm, split_k, split_k_mode

    @property
    def values(self) -> torch.Tensor:
        return self.packed.view(-1)[: self.N * self.K // 2].view(self.N, self.K // 2)

    def recompress(self, w_NK: torch.Tensor) -> None:
        # Copied, not kept in place of the old packing: a captured graph goes on reading where that lies.
        self.writes += 1
        self.packed.copy_(torch._cslt_compress(w_NK))
        if self.backward is not None:
            self.backward.recompress(w_NK)


def library_key(device: torch.device) -> str:
    """The GPU and the library versions that a searched algorithm is good for."""
    gpu, library = torch.cuda.get_device_name(device), torch.backends.cusparselt.version()
    return f"{gpu} cuSPARSELt {library} torch {torch.__version__}"


@KERNELS.register("cusparselt")
class Cusparselt(Kernel):
    """CUDA devices of compute capability 8.0 and up, bf16 and fp16, any mask. Stores 9/16 of dense bytes.

    Args:
        search: use the fastest algorithm that cuSPARSELt's own search finds; otherwise torch's default one.
    """

    device_types = ("cuda",)
    dtypes = (torch.bfloat16, torch.float16)
    unit = PackedCusparselt.unit

    def __init__(self, search: bool = True) -> None:
        self.search = search

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if reason := super().unavailable(device, dtype):
            return reason
        if not torch.backends.cusparselt.is_available():
            return "this torch was built without cuSPARSELt: install a CUDA build of torch"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"2:4 tensor cores start at compute capability 8.0, this GPU has {major}.{minor}"
        return None

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if N % 16 or K % 16:
            return f"needs N and K to be multiples of 16, got N = {N}, K = {K}"
        return None

    def pack(self, half: Half, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        packed = PackedCusparselt(half, bias, self.search)
        packed.backward = backward_of(self, half) if backward else None
        return packed

    def backward_bytes(self, N: int, K: int, itemsize: int) -> int:
        return most_backward_bytes(N, K, itemsize)

    def weight_bytes(self, N: int, K: int, itemsize: int) -> int:
        return packed_bytes(N, K, itemsize)

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        # The search holds a dense half and a packing of its own on the same GPU.
        return 2 * packed_bytes(N, K, itemsize) + N * K * itemsize
