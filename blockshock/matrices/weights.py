"""Where W comes from: seeded row blocks or a tensor, handed out by rows, never materialised whole unless asked.

What is given keeps its zeros: kernels whose compressors look at values, and take a kept zero for a dropped one, are
told of those (``kernels/marked.py``). What is generated has none: exact zeros are ± the dtype's smallest normal number.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.matrices import remembered
from blockshock.matrices.blocks_of_rows import SeededRows, check_slice, generator, row_blocks
from blockshock.matrices.masks import Mask
from blockshock.matrices.sizes import check_shape, check_size


def nudge_zeros(w: torch.Tensor) -> torch.Tensor:
    """``w`` with each exact zero replaced by the smallest normal number of its dtype, of the zero's sign."""
    tiny = torch.full((), torch.finfo(w.dtype).tiny, dtype=w.dtype, device=w.device)
    return torch.where(w == 0, torch.copysign(tiny, w), w)


def _span(part: slice, total: int, what: str) -> tuple[int, int]:
    """The ends of a slice of consecutive ones, and at least one."""
    first, last, step = part.indices(total)
    if step != 1 or first >= last:
        raise InputError(f"{what} {part.start}:{part.stop}:{part.step} of {total} are none, or not consecutive")
    return first, last


class WeightSource:
    """W of one linear layer, by rows.

    Attributes:
        N, K: out-features and in-features.
        dtype, device: of what ``rows`` returns.
        seed: what seeded masks over these weights derive from.
        bias: (N,) tensor, or None.
        mask: of what was kept, where W is pruned.
    """

    mask: Mask | None = None

    def __init__(
        self, N: int, K: int, dtype: torch.dtype, device: torch.device | str, seed: int, bias: torch.Tensor | None
    ) -> None:
        if not dtype.is_floating_point:
            raise InputError(f"weights are of a floating-point dtype, got {dtype}")
        self.N, self.K, self.dtype, self.device, self.seed = N, K, dtype, torch.device(device), seed
        if bias is not None and tuple(bias.shape) != (N,):
            raise InputError(f"bias must have shape ({N},), got {tuple(bias.shape)}")
        if bias is not None and not bias.is_floating_point():
            raise InputError(f"bias must be floating-point, as W is, got {bias.dtype}")
        self.bias = None if bias is None else bias.to(self.device, dtype)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of W, (stop - start, K), as a new tensor."""
        check_slice(start, stop, self.N)
        return self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError

    def held_values(self, start: int, stop: int) -> torch.Tensor | None:
        """What ``mask`` keeps of rows [start, stop), (stop - start, K/2), not to be written to; None where that is not
        what is held."""
        return None

    def remember(self, beside: int) -> None:
        """Hold what is made anew each time it is read, if there is such, for all sources of the same; where a GPU can
        spare it beside so many bytes, and until others are held or memory is wanted."""

    def cast(self, dtype: torch.dtype) -> WeightSource:
        """These weights and their bias, rounded to another dtype."""
        return self if dtype == self.dtype else CastWeights(self, dtype)

    def gather(self, columns: slice, mask: Mask | None = None, rows: slice | None = None) -> torch.Tensor:
        """A new tensor of the given columns and rows of W, zero where the mask (of those columns and rows) drops.

        Made in row blocks: nothing larger than the result, and one block, is ever held.

        Raises:
            InputError: the rows or the columns are none, or not consecutive.
        """
        first, *size = self._size(columns, rows)
        mask = None if mask is self.mask else mask  # what its own drops is zero already
        return self._gathered(torch.empty(size, dtype=self.dtype, device=self.device), first, columns, mask)

    def gather_transposed(self, columns: slice, rows: slice) -> torch.Tensor:
        """The same matrix as ``gather`` makes, whose memory holds its transpose; made likewise."""
        first, *size = self._size(columns, rows)
        return self._gathered(torch.empty(size[::-1], dtype=self.dtype, device=self.device).T, first, columns)

    def _size(self, columns: slice, rows: slice | None) -> tuple[int, int, int]:
        """The first of these rows, and how many rows and columns there are."""
        first, last = _span(rows or slice(None), self.N, "rows")
        left, right = _span(columns, self.K, "columns")
        return first, last - first, right - left

    def _gathered(self, out: torch.Tensor, first: int, columns: slice, mask: Mask | None = None) -> torch.Tensor:
        """``out``, with these columns of the rows from the first on."""
        for start, stop in row_blocks(len(out), self.K * self.dtype.itemsize):
            block = self.rows(first + start, first + stop)[:, columns]
            out[start:stop] = block if mask is None else block.where(mask.rows(start, stop), 0)
        return out


class TransposedWeights(WeightSource):
    """Wᵀ of the given columns of another source, (columns, N), without a bias; for products that contract over N."""

    def __init__(self, source: WeightSource, columns: slice = slice(None)) -> None:
        self._source, self._columns = source, range(source.K)[columns]
        super().__init__(len(self._columns), source.N, source.dtype, source.device, source.seed, bias=None)

    def _columns_of(self, rows: slice) -> slice:
        first, last = _span(rows, self.N, "rows")
        return slice(self._columns[first], self._columns[last - 1] + 1)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        # A view: the product with it then is the one that backward runs, not contiguous, over the same memory.
        if start == stop:
            return torch.empty(0, self.K, dtype=self.dtype, device=self.device)
        return self._source.gather(self._columns_of(slice(start, stop))).T

    def gather(self, columns: slice, mask: Mask | None = None, rows: slice | None = None) -> torch.Tensor:
        # One pass over the source's rows; the inherited way would make them anew for each block of columns.
        out = self._source.gather(self._columns_of(rows or slice(None)), rows=columns).T.contiguous()
        if mask is not None:
            for start, stop in row_blocks(len(out), out.shape[1] * out.itemsize):
                out[start:stop].masked_fill_(~mask.rows(start, stop), 0)
        return out


class CastWeights(WeightSource):
    """The weights of another source, rounded to a dtype."""

    def __init__(self, source: WeightSource, dtype: torch.dtype) -> None:
        super().__init__(source.N, source.K, dtype, source.device, source.seed, source.bias)
        self._source = source

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._source.rows(start, stop).to(self.dtype)


class GeneratedWeights(WeightSource):
    """Normal weights of standard deviation 1/√K, so that outputs have the scale of inputs; the same for one seed."""

    def __init__(
        self, N: int, K: int, dtype: torch.dtype, device: torch.device | str, seed: int = 0, with_bias: bool = False
    ) -> None:
        check_shape(N, K)
        super().__init__(N, K, dtype, device, seed, bias=None)
        self._seeded = SeededRows(N, self._block)
        if with_bias:
            self.bias = torch.randn(N, device=self.device, generator=generator(self.device, seed, 3)).to(dtype)

    @property
    def _key(self) -> Hashable:
        return type(self), self.N, self.K, self.dtype, self.device, self.seed

    def remember(self, beside: int) -> None:
        if type(self) is GeneratedWeights:  # another one may make other rows
            size = self.N * self.K * self.dtype.itemsize
            remembered.remember(self._key, size, self.device, beside, partial(self.gather, slice(None)))

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        whole_NK = remembered.remembered(self._key)
        return self._seeded.rows(start, stop) if whole_NK is None else whole_NK[start:stop].clone()

    def _block(self, index: int, rows: int) -> torch.Tensor:
        stream = generator(self.device, self.seed, 0, index)
        # The bits of randn() times the deviation: a draw has its deviation before its mean, 0, is added.
        wide = torch.empty(rows, self.K, device=self.device).normal_(0, self.K**-0.5, generator=stream)
        w = wide.to(self.dtype)
        if self.dtype == torch.float16:
            return nudge_zeros(w)
        # No zero is negative, for 0 was added to it; the other dtypes round no draw to one that is.
        return w.masked_fill_(w == 0, torch.finfo(self.dtype).tiny)


_MEND = "put finite values there first, by load_state_dict() of a sound state or torch.nan_to_num_()"


class TensorWeights(WeightSource):
    """The weights of a layer that exists: a (N, K) tensor, on the device where it lies.

    Args:
        of: whose they are, for messages.

    Raises:
        InputError: the tensor is not a floating-point matrix, or holds NaN or inf (the first row is named).
    """

    def __init__(self, w_NK: torch.Tensor, bias: torch.Tensor | None = None, seed: int = 0, of: str = "") -> None:
        if w_NK.ndim != 2 or not w_NK.is_floating_point():
            raise InputError(f"W must be a floating-point (N, K) matrix, got {w_NK.dtype} {tuple(w_NK.shape)}")
        check_finite(w_NK, f"the weight of {of}" if of else "W", _MEND)
        N, K = w_NK.shape
        check_size(N, K)
        super().__init__(N, K, w_NK.dtype, w_NK.device, seed, None if bias is None else bias.detach())
        self._w_NK = w_NK.detach()
        if bias is not None:
            check_finite(bias[:, None], f"the bias of {of}" if of else "bias", _MEND)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._w_NK[start:stop].clone(memory_format=torch.contiguous_format)


def check_finite(tensor: torch.Tensor, name: str, what: str = "only finite values can be compared") -> None:
    """Raises InputError, naming the first bad row, if a matrix holds NaN or inf."""
    for start, stop in row_blocks(len(tensor), tensor[0].numel() * tensor.itemsize if len(tensor) else 1):
        bad = (~torch.isfinite(tensor[start:stop])).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            value = tensor[start + row, column].item()
            raise InputError(f"{name} holds {value} at row {start + row}, column {column}: {what}")


def check_drawn(drawn: Any, rows: int, K: int, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Inputs (rows, K) that a workload drew, in a dtype.

    Raises:
        InputError: they are not that, or hold NaN or inf.
    """
    if not isinstance(drawn, torch.Tensor) or drawn.shape != (rows, K):
        got = tuple(drawn.shape) if isinstance(drawn, torch.Tensor) else type(drawn).__name__
        raise InputError(f"{name} must be drawn as a tensor {(rows, K)}, got {got}: mend the workload's draw")
    check_finite(found := drawn.to(dtype), name)
    return found
