"""torch's block-sparse kernel on a CPU, by the addresses and strides that it is launched with.

It takes no more than what Triton and a GPU take, and may be told to be wrong.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from strategies import matrix

from blockshock.kernels import BlockKernel, bsr, build_block_kernel
from blockshock.kernels.block_kernels import PackedBlocks
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import block_mask

Meta = dict[str, Any]
MOST_TILES = 65535
"""A GPU's grid in its second direction."""
ALIGNED = 16
"""What Triton compiles for: strides, and addresses in bytes, that are a multiple of it."""


@cache
def declaration() -> Callable[..., None]:
    """The function that torch's kernel is, of this torch's own source and without its body: there may be no triton."""
    source = Path(importlib.import_module("torch.sparse._triton_ops").__file__).read_text()  # type: ignore[arg-type]
    is_kernel = lambda node: isinstance(node, ast.FunctionDef) and node.name == "_bsr_strided_addmm_kernel"  # noqa: E731
    (kernel,) = filter(is_kernel, ast.walk(ast.parse(source)))
    kernel.decorator_list, kernel.body = [], [ast.Pass()]  # type: ignore[attr-defined]
    names: Meta = {}  # annotations stay text
    exec(compile(ast.unparse(kernel), "torch", "exec"), names)
    function: Callable[..., None] = names["_bsr_strided_addmm_kernel"]
    return function


class FakeKernel:
    """What Triton makes of that function.

    Attributes:
        fn: the function.
        launches: the grid and the arguments of each launch.
        compiled: what was compiled side by side, the arguments of each, together.
    """

    def __init__(self, wrong_where: Callable[[Meta], bool]) -> None:
        self.fn, self.wrong_where = declaration(), wrong_where
        parameters = inspect.signature(self.fn).parameters
        self._variable = [name for name, of in parameters.items() if "constexpr" not in str(of.annotation)]
        self.launches: list[tuple[tuple[int, ...], Meta]] = []
        self.compiled: list[list[Meta]] = []

    @contextmanager
    def side_by_side(self, executor: object, ignore_errors: bool) -> Iterator[None]:
        """Triton's AsyncCompileMode."""
        assert ignore_errors, "some settings take more than the GPU has"
        self.compiled.append([])
        yield

    def warmup(self, grid: tuple[int, ...], **given: Any) -> None:
        self.compiled[-1].append(given)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def variants(self, those: Iterable[Meta] | None = None) -> set[tuple[object, ...]]:
        """What would have been compiled of such arguments, or of all launches: a variant for each of these."""
        return {
            tuple((name, self._specialised(name, value)) for name, value in sorted(given.items()))
            for given in ((given for _, given in self.launches) if those is None else those)
        }

    def _specialised(self, name: str, value: Any) -> object:
        if name not in self._variable:
            return value
        if isinstance(value, torch.Tensor):
            return value.dtype, value.data_ptr() % ALIGNED == 0
        return value == 1, value % ALIGNED == 0, value < 2**31

    def _launch(self, grid: tuple[int, ...], **given: Any) -> None:
        self.launches.append((grid, given))
        options = {"num_stages": given["num_stages"], "num_warps": given["num_warps"]}
        at = inspect.signature(self.fn).bind(**{name: value for name, value in given.items() if name not in options})
        size, tile = given["BLOCKSIZE_ROW"], given["BLOCKSIZE_COL"]
        rows, tiles, batches = grid
        assert tile >= 16
        assert tile & (tile - 1) == 0, "Triton's ranges are powers of two"
        assert size >= 16
        assert tiles <= MOST_TILES
        assert batches == 1
        for name in ("dense", "output"):
            across = given[f"{name}_col_block_stride"]
            assert max(across * (tile - 1), given[f"{name}_tiled_col_stride"] * (tiles - 1)) < bsr._ADDRESSED
        if given["num_warps"] > 4:
            raise RuntimeError("out of resource: shared memory")
        self._multiply(at.arguments, rows, tiles, self.wrong_where(given))

    def _multiply(self, at: Meta, rows: int, tiles: int, wrong: bool) -> None:
        """As the kernel does it, the tiles of tokens at once."""

        def tiled(name: str, count: int) -> torch.Tensor:
            strides = [at[f"{name}_{each}_stride"] for each in ("tiled_row", "tiled_col", "row_block", "col_block")]
            shape = (count, tiles, at["BLOCKSIZE_ROW"], at["BLOCKSIZE_COL"])
            return at[f"{name}_ptr"].as_strided(shape, strides)

        starts = at["crow_indices_ptr"].as_strided((rows + 1,), (at["crow_indices_stride"],)).tolist()
        columns = at["col_indices_ptr"].as_strided((starts[-1],), (at["col_indices_stride"],))
        strides = [at[f"values_{each}_stride"] for each in ("nnz", "row_block", "col_block")]
        blocks = at["values_ptr"].as_strided((starts[-1], at["BLOCKSIZE_ROW"], at["BLOCKSIZE_INNER"]), strides).float()
        x_tiles = tiled("dense", int(columns.max()) + 1 if starts[-1] else 0)
        y_tiles = tiled("output", rows)
        for row, (first, last) in enumerate(pairwise(starts)):
            lost = wrong and last > first
            wrong = wrong and not lost  # of the first row of blocks that has one
            kept = slice(first, first if lost else last)
            sums = torch.einsum("nij,ntjk->tik", blocks[kept], x_tiles[columns[kept]].float())
            added = tiled("input", rows)[row].float() if at["beta_is_nonzero"] else 0
            y_tiles[row] = sums + added


@contextmanager
def faked(wrong_where: Callable[[Meta], bool] = lambda meta: False) -> Iterator[FakeKernel]:
    """The kernel ``bsr`` runs on CPUs, over a product that is wrong where it is told to be; each takes one second."""
    kernel = FakeKernel(wrong_where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.sparse._triton_ops._bsr_strided_addmm_kernel", kernel)
        patch.setattr("torch.sparse._triton_ops.tl", SimpleNamespace(float32="float32"), raising=False)
        triton = SimpleNamespace(AsyncCompileMode=kernel.side_by_side)
        patch.setattr("torch.sparse._triton_ops.triton", triton, raising=False)
        patch.setattr(bsr.Bsr, "unavailable", BlockKernel.unavailable)
        patch.setattr(bsr.Bsr, "device_types", ("cpu",))
        patch.setattr(bsr.timing, "medians", lambda device, rounds: lambda call: call() is None or 1.0)
        # Nor what this process remembers.
        patch.setattr(bsr, "_settings", bsr.AlgorithmCache("bsr-checked", fits=bsr._settings._fits))
        yield kernel


def packed_of(
    spec: str = "blocks:size=16:level=0.7", kernel: str = "bsr:search=no", N: int = 128, K: int = 256, seed: int = 0
) -> tuple[PackedBlocks, torch.Tensor, torch.Tensor]:
    """A packing both ways, its dense W′ in float64 and its bias."""
    source = TensorWeights(matrix(N, K, torch.bfloat16, seed), matrix(1, N, torch.bfloat16, 1)[0])
    piece, built = Piece(source, mask=block_mask(spec, source)), build_block_kernel(kernel)
    built.check(piece, piece.kept.size)  # type: ignore[attr-defined]
    packed = built.pack(piece, piece.kept.size, source.bias, backward=True)  # type: ignore[attr-defined]
    assert isinstance(packed, PackedBlocks)
    assert source.bias is not None
    return packed, piece.dense().double(), source.bias.double()


def check(packed: PackedBlocks, w_NK: torch.Tensor, bias: torch.Tensor, B: int, layout: str = "whole") -> None:
    close = {"rtol": torch.finfo(torch.bfloat16).eps, "atol": 1e-30}
    x_BK, grad_y_BN = (matrix(B, width, torch.bfloat16, B, layout) for width in (w_NK.shape[1], len(w_NK)))
    y_BN, grad_x_BK = packed(x_BK), packed.grad_input(grad_y_BN)
    assert y_BN.is_contiguous()
    torch.testing.assert_close(y_BN.double(), x_BK.double() @ w_NK.T + bias, **close)
    torch.testing.assert_close(grad_x_BK.double(), grad_y_BN.double() @ w_NK, **close)
