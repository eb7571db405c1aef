"""Pruners turn W, and inputs that met it, into W′, which is 2:4: each file registers one or a few."""

from blockshock.pruning.as_mask import check_mask, is_pruners, mask_names, mask_of, typical_mask
from blockshock.pruning.base import CALIBRATION_TOKENS, PRUNERS, Inputs, Pruner, pruner_of
from blockshock.pruning.block_masks import BLOCK_MASKS, BLOCK_SCORES, BlockChoice, BlockScore, block_choice, block_mask
from blockshock.pruning.permutation import SEARCH_BYTES, permutation_of
from blockshock.pruning.pruned import JoinedWeights, PrunedWeights, like, prune, pruning_bytes

PRUNERS.load_package(__name__)
