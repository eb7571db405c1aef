"""STEP: dense AdamW until its second moments settle, then frozen ones and masks by magnitude."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from blockshock.registry import check_range
from blockshock.training.recipes.base import MOST_STEPS, RECIPES
from blockshock.training.recipes.ste import Ste
from blockshock.training.sparse import StepAdamW


@RECIPES.register("step")
@dataclass
class Step(Ste):
    """W multiplies until the optimizer says that its variances have settled, and then what ``ste`` multiplies.

    ``StepAdamW`` says so. By any other optimizer, and at the latest, it is sparse from ``latest`` on; the paper has it
    between 10 and 50 % of all steps, so give half of yours. Evaluated before that, the layer is dense.

    Args:
        every: steps from one mask to the next.
        latest: steps after which it is sparse in any case.
    """

    own_forward = False
    source = "STEP, Lu et al., arXiv 2302.01172"
    latest: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, MOST_STEPS, latest=self.latest)

    def is_sparse(self, steps: int, switched: bool) -> bool:
        return switched or steps >= self.latest

    @classmethod
    def scaled(cls, steps: int) -> dict[str, int]:
        return {"latest": steps // 2}

    def optimizer(self, groups: Iterable[dict[str, Any]], steps: int, **rates: Any) -> torch.optim.Optimizer:
        return StepAdamW(groups, **rates, least=min(steps // 10, self.latest), most=self.latest)

    def first_sparse(self) -> int:
        return self.latest
