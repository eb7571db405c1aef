"""A feed-forward block y = act(x W₁ᵀ) W₂ᵀ as a case, and built: dense, with a recipe of blocks, or of both layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.errors import BlockShockError, InputError
from blockshock.machine import held_bytes, memory
from blockshock.matrices import generator
from blockshock.nn.ffn import SparseFFN
from blockshock.nn.method_linear import MethodLinear
from blockshock.nn.replacing import replace_linears
from blockshock.phases.case import Case, this_device, unavailable
from blockshock.phases.compilers import why_not_compiled
from blockshock.registry import parse_spec
from blockshock.training import RecipeStorage, block_recipe_of, is_of_blocks, recipe_of
from blockshock.training.recipes.activation import ACTS

WORKLOAD = "ffn"
USUAL_ACT = "relu2"
"""Of blocks whose recipe is of layers, and says nothing of it."""


@dataclass(frozen=True)
class FFNCase(Case):
    """A row in a feed-forward block, which is the ``workload``, ``ffn:act=relu2``; without biases, of random weights.

    W₁ is (N, K): K is the width d, N the hidden features, and B the tokens. The recipe is picked; of the dense block,
    the method ``dense_single``, there is none.

    Attributes:
        compiled: by ``torch.compile``, of the dense block.
    """

    compiled: bool = False

    @property
    def id(self) -> str:
        compiled = ["compiled"] if self.compiled else []
        return "-".join([self.method, *self.picks.values(), *compiled, self.point])

    @property
    def place(self) -> list[str]:
        return [self.workload, f"d={self.K}", f"hidden={self.N}", f"tokens={self.B}", self.dtype]

    @property
    def label(self) -> str:
        return f"{super().label} compiled" if self.compiled else super().label

    @property
    def act(self) -> str:
        """The activation function, a name in ACTS."""
        return str(parse_spec(self.workload)[1]["act"])

    @property
    def recipe(self) -> str | None:
        return self.pick("recipe")


def ffn_case(recipe: str | None, act: str, d: int, hidden: int, B: int, dtype: str, seed: int = 0) -> FFNCase:
    """A recipe in a block; without one the dense block."""
    method, picks = ("dense_single", {}) if recipe is None else ("recipe", {"recipe": recipe})
    return FFNCase(method, picks, f"{WORKLOAD}:act={act}", hidden, d, B, dtype, seed)


def act_of(recipe: str) -> str:
    """The activation function of a block that a recipe trains: what the recipe of a block says."""
    return str(getattr(block_recipe_of(recipe), "act", USUAL_ACT)) if is_of_blocks(recipe) else USUAL_ACT


class FeedForward(nn.Module):
    """The dense block: (B, d) → (B, d)."""

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear, act: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = fc1, fc2, act

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        y_BD: torch.Tensor = self.fc2(ACTS[self.act](self.fc1(x_BD)))
        return y_BD


@dataclass
class Block:
    """A case on this rank.

    Attributes:
        model, call: the module, and what it is called by: its compiled form, where that is meant.
        x_BD, grad_y_BD: what it is called with, and a gradient of its output.
        storages: of its layers, where their weights are multiplied 2:4.
        building_bytes: held at most while it was built.
    """

    model: nn.Module
    call: Callable[[torch.Tensor], torch.Tensor]
    x_BD: torch.Tensor
    grad_y_BD: torch.Tensor
    storages: list[RecipeStorage]
    building_bytes: int

    def weight_bytes(self) -> int:
        """Of parameters, and of what multiplies in their place."""
        packed = [
            tensor for one in self.model.modules() if isinstance(one, MethodLinear) for tensor in one.layer.tensors()
        ]
        return held_bytes([*self.model.parameters(), *self.model.buffers(), *packed])


def build(case: FFNCase, layers: str | None = None) -> Block:
    """Build the block on this rank. A seed draws the same weights and inputs for every row.

    Args:
        layers: a row of the table to put in the place of the two linear layers; None for that of the recipe.

    Raises:
        InputError: the recipe cannot train such a block.
    """
    device = this_device()
    with memory.peak_bytes(device) as peak:
        model = _model(case, device, layers)
    storages = [one for one in model.modules() if isinstance(one, RecipeStorage)]
    for storage in storages:
        storage.skip_to_sparse()
    x_BD, grad_y_BD = (_drawn((case.B, case.K), 1.0, case, device, number) for number in (3, 4))
    call = _call_compiled(case, model) if case.compiled else model
    return Block(model, call, x_BD.requires_grad_(), grad_y_BD, storages, peak[0])


def _model(case: FFNCase, device: torch.device, layers: str | None) -> nn.Module:
    sizes = ((case.K, case.N), (case.N, case.K))
    fc1, fc2 = (nn.Linear(*size, bias=False, device="meta") for size in sizes)
    for number, linear in enumerate((fc1, fc2), start=1):
        std = linear.in_features**-0.5
        linear.weight = nn.Parameter(_drawn(tuple(linear.weight.shape), std, case, device, number))
    if case.recipe is not None and is_of_blocks(case.recipe):
        return SparseFFN.of(fc1, fc2, case.recipe)
    model = FeedForward(fc1, fc2, case.act)
    row = f"recipe-{case.recipe}" if case.recipe is not None else layers
    if row is not None and len((found := replace_linears(model, row, tokens=case.B)).replaced) < 2:
        raise InputError(f"{row} takes not both layers of the block: {found}")
    return model


def _drawn(size: tuple[int, ...], std: float, case: FFNCase, device: torch.device, number: int) -> torch.Tensor:
    stream = generator(device, case.seed, 11, number)
    return (torch.randn(size, device=device, generator=stream) * std).to(case.torch_dtype)


def _call_compiled(case: FFNCase, model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    assert isinstance(model, FeedForward)
    compiled, act = _compiled(case.point), case.act
    w_HD, w_DH = model.fc1.weight, model.fc2.weight
    return lambda x_BD: compiled(x_BD, w_HD, w_DH, act)


@lru_cache(maxsize=1)
def _compiled(point: str) -> Callable[..., torch.Tensor]:
    """The dense block compiled for one point, whatever the weights: builds of it share that. torch goes back to eager
    calls where one function was compiled for too many sizes, so all is forgotten from point to point."""
    torch.compiler.reset()
    compiled: Callable[..., torch.Tensor] = torch.compile(_dense, dynamic=False, fullgraph=True)
    return compiled


def _dense(x_BD: torch.Tensor, w_HD: torch.Tensor, w_DH: torch.Tensor, act: str) -> torch.Tensor:
    return F.linear(ACTS[act](F.linear(x_BD, w_HD)), w_DH)


@lru_cache(maxsize=4)
def not_compiled(act: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """None if a small dense block compiles on a device, both ways; else one sentence that says why not."""
    x_BD, w_HD, w_DH = (torch.ones(64, 64, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    try:
        _compiled("small")(x_BD, w_HD, w_DH, act).sum().backward()
    except Exception as error:  # whatever a compiler raises
        return f"it does not compile: {why_not_compiled(error)}"
    return None


def obstacle(case: FFNCase, backward: bool = False, builds: int = 1) -> str | None:
    """None if this rank can run the case, else one sentence that says why not. Allocates nothing of size.

    Args:
        builds: how many are held at once.
    """
    device = this_device()
    try:
        reason = unavailable(case, device, True) or _unsuitable(case)
    except BlockShockError as error:
        reason = str(error)
    if not reason and case.compiled:
        reason = not_compiled(case.act, case.torch_dtype, device)
    if reason:
        return reason
    itemsize = case.torch_dtype.itemsize
    weights, hidden, tokens = (size * itemsize for size in (2 * case.N * case.K, case.B * case.N, case.B * case.K))
    needed, free = builds * (4 * weights + 8 * hidden + 6 * tokens), memory.free_bytes(device)
    told = f"needs about {memory.gib(needed)} on {device}, {memory.gib(free)} are free: lower --d or --B"
    return told if needed > free else None


def _unsuitable(case: FFNCase) -> str | None:
    if case.recipe is None:
        return None
    if is_of_blocks(case.recipe):
        act = act_of(case.recipe)
        return None if act == case.act else f"its activation function is {act}, that of the block {case.act}"
    recipe = recipe_of(case.recipe)
    return recipe.unsuitable(case.N, case.K) or recipe.unsuitable(case.K, case.N)
