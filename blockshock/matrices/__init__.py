"""Matrices and what is kept of them: weights, workloads, 2:4 masks, compressed and kept values."""

from blockshock.matrices.blocks_of_rows import generator, row_blocks
from blockshock.matrices.compressed import Compressed24, KeptMask, bits, gather_kept, kept_columns, pick
from blockshock.matrices.kept import Kept, product
from blockshock.matrices.masks import (
    MOST_FEATURES,
    LazyMask,
    Mask,
    check_2to4,
    check_complementary,
    check_shape,
    check_transposable,
)
from blockshock.matrices.models import MODELS, Linear, Model
from blockshock.matrices.named_masks import MASKS, build_mask, pattern_mask, random_mask, transposable_tiles
from blockshock.matrices.pieces import Piece
from blockshock.matrices.repeating_rows import MOST_PATTERNS, RowPatterns
from blockshock.matrices.saved_mask import faults_of_state, is_saved_mask, mask_tensor, saved_mask, settled
from blockshock.matrices.weights import (
    GeneratedWeights,
    TensorWeights,
    TransposedWeights,
    WeightSource,
    check_finite,
    nudge_zeros,
)
from blockshock.matrices.workloads import LOSSES, WORKLOADS, Workload, build_workload

__all__ = [
    "LOSSES",
    "MASKS",
    "MODELS",
    "MOST_FEATURES",
    "MOST_PATTERNS",
    "WORKLOADS",
    "Compressed24",
    "GeneratedWeights",
    "Kept",
    "KeptMask",
    "LazyMask",
    "Linear",
    "Mask",
    "Model",
    "Piece",
    "RowPatterns",
    "TensorWeights",
    "TransposedWeights",
    "WeightSource",
    "Workload",
    "bits",
    "build_mask",
    "build_workload",
    "check_2to4",
    "check_complementary",
    "check_finite",
    "check_shape",
    "check_transposable",
    "faults_of_state",
    "gather_kept",
    "generator",
    "is_saved_mask",
    "kept_columns",
    "mask_tensor",
    "nudge_zeros",
    "pattern_mask",
    "pick",
    "product",
    "random_mask",
    "row_blocks",
    "saved_mask",
    "settled",
    "transposable_tiles",
]
