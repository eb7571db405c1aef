"""Weights that are trained: how they are stored, and what an optimizer's steps do to them."""

from blockshock.training import sparse
from blockshock.training.captured import StepGraphs
from blockshock.training.clipping import clip_grad_norm_
from blockshock.training.dense_storage import DenseStorage
from blockshock.training.optimizers import OPTIMIZERS, optimizer_of
from blockshock.training.parameters import Training
from blockshock.training.recipes import (
    BLOCK_RECIPES,
    EIGHT,
    PROGRESS,
    RECIPES,
    SCORES,
    BlockRecipe,
    PackedEightBits,
    Recipe,
    RecipePacking,
    RecipeStorage,
    any_recipe_of,
    block,
    block_bytes,
    block_recipe_of,
    is_of_blocks,
    of_gradients,
    of_values,
    recipe_of,
    represented,
)
from blockshock.training.scaling import watch_scalers
from blockshock.training.seen import first_difference
from blockshock.training.sharded import check_replicas, gathered, is_shard, reshard, spread_as
from blockshock.training.sparse_storages import STORAGES, CompressedStorage, MaskedStorage, SparseStorage, storage_of
from blockshock.training.steps import check_elementwise, mark_split, part_of, replace
from blockshock.training.storages import Storage
from blockshock.training.together import Together
