"""How a layer is trained with 2:4 products: a file a recipe, registered by name; what they share is in the others."""

from blockshock.training.recipes.base import EIGHT, RECIPES, Recipe, recipe_of
from blockshock.training.recipes.blocks import BLOCK_RECIPES, BlockRecipe, block, block_recipe_of
from blockshock.training.recipes.eight_bits import PackedEightBits, of_gradients, of_values, represented
from blockshock.training.recipes.either import any_recipe_of, is_of_blocks
from blockshock.training.recipes.packed_blocks import block_bytes
from blockshock.training.recipes.packing import RecipePacking
from blockshock.training.recipes.saved_state import PROGRESS, SCORES
from blockshock.training.recipes.storage import RecipeStorage

RECIPES.load_package(__name__)
