"""A model that a recipe trains: AdamW, gradients clipped to a norm of 1, warm-up, half a cosine down to a tenth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.measure import Stopwatch
from blockshock.models import Batch, Task
from blockshock.nn.ffn import SparseFFN
from blockshock.nn.method_linear import MethodLinear
from blockshock.nn.replacing import replace_linears
from blockshock.registry import parse_spec
from blockshock.training import RECIPES, RecipeStorage, StepGraphs, any_recipe_of, is_of_blocks
from blockshock.training.recipes.packing import sparse_cores

DENSE = "dense"
PRODUCTS = {"cpu": torch.float32, "cuda": torch.bfloat16}
"""What layers multiply in, by device type; parameters are float32."""
MAX_NORM, BETAS, DECAY = 1.0, (0.9, 0.95), 0.1
AHEAD = 32
"""Batches that are made before the steps that take them, so that no step waits for its batch."""


@dataclass
class Curve:
    """How a model learned.

    Attributes:
        bits: a prediction of what is held out, at each look.
        seconds: of training so far, by the device's clock on a GPU; batches, captures and looks are left out.
        flip_rate: share of the recipe's weights whose place in the mask the last new masks changed, at each look; 0
            where all weights multiply.
    """

    bits: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    flip_rate: list[float] = field(default_factory=list)


def linears_meant(model: nn.Module, task: Task) -> dict[str, nn.Linear]:
    """The layers that a recipe is to train, by name."""
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Linear) and task.is_meant(name)}


class Pupil:
    """The model of a task with a recipe in it; a seed fixes weights, batches and draws.

    In bf16 under autocast on a GPU, its parameters in float32; in float32 on a CPU. Its steps are eager until
    ``capture()``.

    Attributes:
        storages: of the layers whose weights the recipe multiplies 2:4; none of ``dense``, which leaves the model as it
            is, and of recipes of blocks.
        replaced: how many layers are the recipe's.

    Raises:
        InputError: the recipe takes not all of the layers.
    """

    def __init__(self, task: Task, device: torch.device, recipe: str, steps: int, seed: int) -> None:
        self.task, self.device, self.steps = task, device, steps
        with torch.device(device):
            self.model = task.skeleton(device.type)
        task.draw(self.model, seed)
        self.storages: list[RecipeStorage] = []
        self.replaced = 0
        self.algorithm = "dense"
        self._called: nn.Module = self.model
        if is_of_blocks(recipe):
            self._replace_blocks(recipe)
        elif parse_spec(recipe)[0] != DENSE:
            self._replace(f"recipe-{_of_seed(recipe, seed)}")
        torch.manual_seed(seed)  # of torch's own generator, which recipes of blocks draw from, and graphs
        self._stream = torch.Generator().manual_seed(seed)
        masked = {storage.parameter for storage in self.storages}
        matrices = [held for held in self.model.parameters() if held.ndim > 1 and held not in masked]
        others = [held for held in self.model.parameters() if held.ndim == 1]
        rates = ((list(masked), DECAY, True), (matrices, DECAY, False), (others, 0.0, False))
        groups = [
            {"params": held, "weight_decay": decay, "masked": is_masked} for held, decay, is_masked in rates if held
        ]
        self._lr = torch.zeros((), device=device)  # of all groups
        self._optimizer = any_recipe_of(recipe).optimizer(groups, steps, lr=self._lr, betas=BETAS)
        self._batch: Batch = ()
        self._graphs: StepGraphs | None = None
        self._done = 0

    def _replace(self, row: str) -> None:
        meant = linears_meant(self.model, self.task)
        tokens = self.task.tokens(self.device.type)
        found = replace_linears(
            self.model, row, lambda name, linear: name in meant, tokens=tokens, dtype=PRODUCTS[self.device.type]
        )
        if len(found.replaced) < len(meant):
            raise InputError(f"{row} takes not all layers that it is to train: {found}")
        layers = [layer.layer for layer in self.model.modules() if isinstance(layer, MethodLinear)]
        self.storages = [one for layer in layers for one in layer.storages() if isinstance(one, RecipeStorage)]
        self.algorithm = " | ".join(dict.fromkeys(layer.algorithm for layer in layers))
        self.replaced = len(layers)

    def _replace_blocks(self, recipe: str) -> None:
        """A SparseFFN in the place of each pair of layers and of what is between them."""
        first, second = self.task.mlp
        for block in [module for module in self.model.modules() if hasattr(module, first) and hasattr(module, second)]:
            fc1, fc2 = getattr(block, first), getattr(block, second)
            setattr(block, first, SparseFFN.of(fc1, fc2, recipe))
            setattr(block, second, nn.Identity())
            block.act = nn.Identity()
            self.replaced += 2
            sparse = sparse_cores(fc1.out_features, fc1.in_features, PRODUCTS[self.device.type], self.device)
            self.algorithm = "cusparselt" if sparse else "dense, with zeros"
        if not self.replaced:
            raise InputError(f"{recipe} finds no feed-forward part to train: no module has a {first} and a {second}")

    def compile(self) -> None:
        """Train its compiled form from now on."""
        compiled: Any = torch.compile(self.model, dynamic=False)
        self._called = compiled

    def capture(self) -> None:
        """Replay CUDA graphs of its steps from now on; on a CPU they stay eager.

        Once kernels are compiled and searched for, which cannot be done while anything is captured.
        """
        if self.device.type == "cuda":
            self._graphs = StepGraphs(self.storages, self._optimizer, self.device)

    def _rate(self, step: int) -> float:
        """Factor of the learning rate."""
        warm = max(self.steps // 20, 1)
        far = (step - warm) / max(self.steps - warm, 1)
        return (step + 1) / warm if step < warm else 0.55 + 0.45 * math.cos(math.pi * min(far, 1.0))

    def bits(self) -> float:
        """A prediction of what is held out takes."""
        self.model.eval()
        with self._autocast():
            found = self.task.bits(self.model)
        self.model.train()
        return found

    def learn(self, at: list[int]) -> Curve:
        """Train on to the last of these steps, and look at each."""
        curve, watch = Curve(), Stopwatch(self.device)
        for stop in at:
            while self._done < stop:
                count = min(AHEAD, stop - self._done)
                for batch in [self.task.batch(self._stream) for _ in range(count)]:
                    self._prepare(batch)
                    watch(self._step if self._graphs is None else self._graphs.ready(self._passes, self._step))
                    self._done += 1
            curve.seconds.append(watch.seconds())
            curve.bits.append(self.bits())
            curve.flip_rate.append(self._flip_rate())
        return curve

    def _prepare(self, batch: Batch) -> None:
        """Put the batch and the rate of the step that comes where graphs read them."""
        self._lr.fill_(self.task.lr[self.device.type] * self._rate(self._done))
        self._batch = self._batch or tuple(map(torch.empty_like, batch))
        for held, new in zip(self._batch, batch, strict=True):
            held.copy_(new)

    def _passes(self) -> None:
        with self._autocast():
            loss = self.task.loss(self._called, self._batch)
        held = list(self.model.parameters())
        for parameter, grad in zip(held, torch.autograd.grad(loss, held, allow_unused=True), strict=True):
            parameter.grad = grad

    def _step(self) -> None:
        self._passes()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _flip_rate(self) -> float:
        found = [(one.flipped.item() * one.is_sparse, one.parameter.numel()) for one in self.storages]
        return sum(flipped * count for flipped, count in found) / max(sum(count for _, count in found), 1)

    def _autocast(self) -> torch.autocast:
        dtype = PRODUCTS[self.device.type]
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _of_seed(spec: str, seed: int) -> str:
    """A recipe's spec with the seed of its draws, if it has any and says none."""
    name, said = parse_spec(spec)
    kind: Any = RECIPES.get(name)
    draws = any(one.name == "seed" for one in fields(kind)) and "seed" not in said
    return f"{spec}:seed={seed}" if draws else spec
