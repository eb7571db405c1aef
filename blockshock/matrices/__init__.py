"""Matrices and what is kept of them: weights, workloads, 2:4 masks, compressed and kept values."""

from blockshock.matrices.block_mask import (
    BLOCK_SIZES,
    BlockMask,
    check_level,
    check_size_of_blocks,
    count_kept,
    in_blocks,
    kept_blocks,
    why_not_blocks,
)
from blockshock.matrices.blocks_of_rows import generator, row_blocks
from blockshock.matrices.columns_of_halves import ColumnsOfHalves
from blockshock.matrices.compressed import Compressed24, bits, gather_kept
from blockshock.matrices.kept import Kept, product
from blockshock.matrices.mask_checks import check_2to4, check_complementary, check_transposable
from blockshock.matrices.masks import LazyMask, Mask, TiledMask
from blockshock.matrices.models import MODELS, Linear, Model
from blockshock.matrices.named_masks import (
    MASKS,
    best_tiles,
    build_mask,
    pattern_mask,
    random_mask,
    transposable_tiles,
    two_largest,
)
from blockshock.matrices.permuted import PermutedMask, PermutedWeights, in_own_order, inverse
from blockshock.matrices.pieces import MaskedWeights, Piece, PieceWeights
from blockshock.matrices.positions import KeptMask, Positions, mask_positions
from blockshock.matrices.repeating_rows import MOST_PATTERNS, Every, RowPatterns
from blockshock.matrices.saved_mask import (
    MASK_KEYS,
    faults_of_state,
    is_saved_mask,
    mask_digest,
    mask_state,
    mask_tensor,
    saved_mask,
    settled,
)
from blockshock.matrices.sizes import MOST_FEATURES, check_shape
from blockshock.matrices.weights import (
    GeneratedWeights,
    TensorWeights,
    TransposedWeights,
    WeightSource,
    check_finite,
    nudge_zeros,
)
from blockshock.matrices.workloads import WORKLOADS, Workload, build_workload
