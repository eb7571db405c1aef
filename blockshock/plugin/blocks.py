"""Phase 6: which recipes train feed-forward blocks of which sizes, and beside which dense blocks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from blockshock.phases import Case, Claim, FFNCase, act_of, ffn_case, ffn_claims
from blockshock.plugin.settings import Settings
from blockshock.plugin.usual_sizes import CHECKED, DEFAULT_D, DEFAULT_FFN, DEFAULT_TOKENS
from blockshock.plugin.values import widths_of
from blockshock.training import is_of_blocks


def blocks(settings: Settings) -> list[Case]:
    """Each recipe in each block, behind the dense blocks with its activation function; in float32 on a CPU.

    Of recipes, widths and tokens those that were asked for.
    """
    on_gpu, widths = settings.device == "cuda", settings.widths or widths_of(DEFAULT_D[settings.device])
    dtypes = settings.dtypes if on_gpu else ("fp32",)
    recipes = _recipes(settings)
    found: list[Case] = []
    for (d, hidden), B, dtype in product(widths, _tokens(settings), dtypes):
        for act in dict.fromkeys(map(act_of, recipes)):
            size = (act, d, hidden, B, dtype, settings.seed)
            dense = ffn_case(None, *size)
            found += [dense, *([replace(dense, compiled=True)] if on_gpu else [])]
            found += [ffn_case(recipe, *size) for recipe in recipes if act_of(recipe) == act]
    return found


def block_hypotheses(settings: Settings) -> list[Claim]:
    """Every hypothesis about blocks, about each recipe in one."""
    return list(ffn_claims([case for case in blocks(settings) if isinstance(case, FFNCase)]))


def checked(settings: Settings) -> list[Case]:
    """A small block for each recipe whose activations are 2:4, whatever widths and tokens are to be timed: it is
    trained beside float64, and must learn."""
    d, hidden, B, dtype = CHECKED[settings.device]
    recipes = [recipe for recipe in _recipes(settings) if is_of_blocks(recipe)]
    return [ffn_case(recipe, act_of(recipe), d, hidden, B, dtype, settings.seed) for recipe in recipes]


def _recipes(settings: Settings) -> tuple[str, ...]:
    if "recipe" not in settings.methods:
        return ()
    return settings.axes["recipe"] or DEFAULT_FFN[settings.device]


def _tokens(settings: Settings) -> tuple[int, ...]:
    return settings.points.tokens if "B" in settings.asked else DEFAULT_TOKENS[settings.device]
