"""What multiplies by S(W) while masks come and go: with its zeros, or on the sparse tensor cores."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels import KERNELS, Packed, PackedDense, blocks24, make24, masked24, soft24
from blockshock.kernels.cusparselt import PackedCusparselt
from blockshock.kernels.cusparselt_anew import MULTIPLE, times_packed
from blockshock.kernels.cusparselt_layout import SIDE, compressed
from blockshock.kernels.cusparselt_thread import claim_thread
from blockshock.kernels.layout import dense_rows
from blockshock.matrices import in_blocks, product
from blockshock.measure import Operand
from blockshock.stages import stage
from blockshock.training.recipes.base import EIGHT, Recipe
from blockshock.training.recipes.eight_bits import PackedEightBits, of_gradients, of_values, stored, turned
from blockshock.training.recipes.packed_blocks import BlocksAnew, bsr_takes


def sparse_cores(N: int, K: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a 2:4 (N, K) matrix is multiplied by cuSPARSELt on that device; otherwise with its zeros."""
    kernel = KERNELS.get("cusparselt")()
    return kernel.unavailable(device, dtype) is None and kernel.unsuitable(N, K, dtype) is None


def in_one_pass(x_RC: torch.Tensor) -> bool:
    """Whether our own kernel makes such a matrix 2:4 and packs it, at about the cost of a copy."""
    sizes = all(size and size % SIDE == 0 for size in x_RC.shape)
    return sizes and x_RC.itemsize == 2 and blocks24.unavailable(x_RC) is None


def filled_up(rows_BK: torch.Tensor) -> torch.Tensor:
    """With rows of zeros, to a multiple of 64, as our kernel takes it: they are never drawn, and add nothing."""
    missing = -len(rows_BK) % SIDE
    return F.pad(rows_BK, (0, 0, 0, missing)) if missing else rows_BK


def packed_24(x_RC: torch.Tensor, both_ways: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A matrix that is 2:4 already as cuSPARSELt has it; its transpose too, if it is 2:4 both ways. Stage ``compress``.

    Whatever kept two of each four, zeros among them, the two largest hold all that is not zero.
    """
    claim_thread(x_RC.device)
    with stage("compress"):
        if in_one_pass(x_RC):
            made = make24.make24(x_RC, make24.Making("tiles" if both_ways else "rows"))
            assert made.rows is not None
            return made.rows, made.columns
        across = compressed(x_RC.T.contiguous()) if both_ways else None
        return compressed(dense_rows(x_RC)), across


class PackedAnew(PackedCusparselt):
    """A 2:4 matrix (N, K) as cuSPARSELt has it, in whose place another one may come."""

    def __init__(self, packed: torch.Tensor, N: int, K: int, bias: torch.Tensor | None = None) -> None:
        Packed.__init__(self)  # there is no piece to pack
        self.N, self.K, self._search, self._chosen = N, K, packed.is_cuda, {}
        self.register_buffer("packed", packed, persistent=False)
        self.hold_bias(bias)

    def take(self, packed: torch.Tensor) -> None:
        """Another one. Copied: a captured graph goes on reading where the old one lies."""
        self.writes += 1
        self.packed.copy_(packed.view_as(self.packed))


class RecipePacking(Packed):
    """S(W) (N, K) with its zeros; where ``kernel`` is cusparselt packed for x S(W)ᵀ too, and of a recipe whose masks
    are 2:4 both ways for ∇y S(W); where it is bsr, in blocks for both.

    Args:
        w_NK: S(W), of the dtype of the products.
        mask_NK: what it keeps, of a recipe of blocks.

    Attributes:
        soft: where one pass over W writes all that multiplies, and the mask, of ``s_ste`` on a GPU; else None.
        by_bits: one pass over W writes what a mask keeps, which is held as bits.
    """

    soft: soft24.Soft | None = None
    by_bits = False

    def __init__(
        self, w_NK: torch.Tensor, bias: torch.Tensor | None, recipe: Recipe, mask_NK: torch.Tensor | None
    ) -> None:
        super().__init__()
        (N, K), self._recipe = w_NK.shape, recipe
        self.plain, self.is_sparse = PackedDense(w_NK.clone(), bias), recipe.prunes
        self.along: PackedAnew | PackedEightBits | BlocksAnew | None = None
        self.across: PackedAnew | PackedEightBits | BlocksAnew | None = None
        self.register_buffer("bias", self.plain.bias, persistent=False)
        self.kernel, self.algorithm = "dense", "dense, with zeros" if recipe.prunes else "dense"
        if recipe.bits == EIGHT:
            held = stored(w_NK, of_values())
            self.along = PackedEightBits(held, of_values(), w_NK.dtype, self.bias)
            self.across = PackedEightBits(turned(held), of_gradients(), w_NK.dtype)
            self.across.product_stage, self.sums, self.roundings = "grad_x", self.along.sums, self.along.roundings
            self.algorithm = "fp8, with zeros" if self.along.multiplies else "fp8 simulated, with zeros"
            return
        if recipe.size and mask_NK is not None and bsr_takes(N, K, recipe, w_NK.dtype, w_NK.device):
            kept_RC = mask_NK[:: recipe.size, :: recipe.size]
            self.along = BlocksAnew(w_NK, kept_RC, recipe.size, self.bias, tuned=w_NK.is_cuda)
            self.across = BlocksAnew(w_NK.T, kept_RC.T, recipe.size, None, tuned=w_NK.is_cuda)
            self.across.product_stage, self.kernel, self.algorithm = "grad_x", "bsr", "bsr, backward bsr"
        if not recipe.prunes or not recipe.is_24 or not sparse_cores(N, K, w_NK.dtype, w_NK.device):
            return
        self.kernel, self.algorithm = "cusparselt", f"cusparselt, backward {'cusparselt' if recipe.turns else 'dense'}"
        along, across = packed_24(w_NK, recipe.turns)
        self.along = PackedAnew(along, N, K, self.bias)
        self.along.register_buffer("bias", self.bias, persistent=False)
        if across is not None:
            self.across = PackedAnew(across, K, N)
            self.across.product_stage = "grad_x"

    def make_of(self, w_NK: torch.Tensor) -> None:
        """From now on S(W) is made in one pass, of a W like this one, where a GPU can."""
        if not isinstance(self.along, PackedAnew) or not blocks24.takes(w_NK, self.plain.w_NK.dtype):
            return
        self.by_bits = self._recipe.form in ("rows", "tiles")
        if self._recipe.form == "soft":
            self.soft = soft24.Soft.of(self.plain.w_NK, self.along.packed)
            self.register_buffer("mask", self.soft.mask, persistent=False)

    @property
    def values(self) -> torch.Tensor:
        """All of S(W)."""
        return self.plain.w_NK

    @property
    def shape(self) -> tuple[int, int]:
        return self.plain.shape

    @property
    def operand(self) -> Operand:
        return self._along().operand

    @property
    def grad_operand(self) -> Operand:
        """What ∇y is multiplied by."""
        return (self.across if self.is_sparse and self.across is not None else self.plain).operand

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        return self._along()(x_BK)  # type: ignore[no-any-return]

    def _along(self) -> Packed:
        """What multiplies x now."""
        return self.along if self.is_sparse and self.along is not None else self.plain

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        if self.is_sparse and self.across is not None:
            return self.across(grad_y_BN)  # type: ignore[no-any-return]
        return self.plain.grad_input(grad_y_BN)

    def put(
        self, w_NK: torch.Tensor, is_sparse: bool, held: torch.Tensor | None = None, scale: torch.Tensor | None = None
    ) -> None:
        """Take over S(W) of a W, by another mask, or all of W. Stages ``sparsify``, ``refresh`` and ``compress``.

        Args:
            held: the mask, as bits if by them, or of a recipe of blocks which are kept.
            scale: of S(W), if it has one.
        """
        vars(self)["writes"] += 1
        self.is_sparse = is_sparse
        if is_sparse and self.soft is not None:
            self._soften(w_NK, scale)
            return
        if is_sparse and self.by_bits:
            assert held is not None
            self._mask(w_NK, held)
            return
        if is_sparse and not self._recipe.size:
            assert held is not None
            with stage("sparsify"):
                w_NK = self._recipe.weights(w_NK, held, scale)
        with stage("refresh"):
            self.plain.w_NK.copy_(w_NK)
            if is_sparse and self._recipe.size:
                assert held is not None
                in_blocks(self.plain.w_NK, self._recipe.size).masked_fill_(~held[..., None, None], 0)
        if is_sparse:
            self._pack(held)

    def _soften(self, w_NK: torch.Tensor, scale: torch.Tensor | None) -> None:
        assert self.soft is not None
        assert scale is not None
        assert isinstance(self.along, PackedAnew)
        self.along.writes += 1
        with stage("sparsify"):
            soft24.soften24(w_NK, scale, self.soft)

    def _mask(self, w_NK: torch.Tensor, bits: torch.Tensor) -> None:
        packings = [one for one in (self.along, self.across) if isinstance(one, PackedAnew)]
        for one in packings:
            one.writes += 1
        with stage("compress"):
            masked24.masked24(w_NK, bits, masked24.Masked(self.plain.w_NK, *(one.packed for one in packings)))

    def _pack(self, held: torch.Tensor | None) -> None:
        if isinstance(self.along, PackedEightBits) and isinstance(self.across, PackedEightBits):
            stored_NK = stored(self.plain.w_NK, of_values())
            self.along.take(stored_NK)
            self.across.take(turned(stored_NK))
        elif isinstance(self.along, BlocksAnew) and isinstance(self.across, BlocksAnew):
            assert held is not None
            with stage("compress"):
                self.along.take(self.plain.w_NK, held)
                self.across.take(self.plain.w_NK.T, held.T)
        elif isinstance(self.along, PackedAnew):
            along, across = packed_24(self.plain.w_NK, self.across is not None)
            self.along.take(along)
            if isinstance(self.across, PackedAnew) and across is not None:
                self.across.take(across)


def times_24(a_NB: torch.Tensor, x_BK: torch.Tensor, dtype: torch.dtype, tokens_are: str, into: str) -> torch.Tensor:
    """a @ x (N, K) of an ``a`` that is 2:4 along B, in a dtype: on the sparse tensor cores, where they take it.

    What they do not take as it is is filled up with zeros; in compiled code zeros are multiplied.

    Args:
        tokens_are, into: as of ``times_packed``.
    """
    N, B = a_NB.shape
    missing_N, missing_B, device = -N % MULTIPLE, -B % MULTIPLE, a_NB.device
    takes = a_NB.numel() and x_BK.shape[1] % 8 == 0 and not torch.compiler.is_compiling()
    if not takes or not sparse_cores(N + missing_N, B + missing_B, a_NB.dtype, device):
        with stage(into):
            return product(a_NB, x_BK, dtype)
    with stage("layout"):
        filled = F.pad(a_NB, (0, missing_B, 0, missing_N)) if missing_N or missing_B else a_NB
        x_BK = F.pad(x_BK, (0, 0, 0, missing_B)) if missing_B else x_BK
    return times_packed(packed_24(filled)[0], len(filled), x_BK, tokens_are, into)[:N].to(dtype)
