"""AdamW that learns its second moments from dense weights, and then, when they have settled, holds them.

STEP: Lu et al., "STEP: Learning N:M Structured Sparsity Masks from Scratch with Precondition", arXiv 2302.01172.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.machine import is_capturing


class StepAdamW(torch.optim.AdamW):
    """STEP's AdamW: dense until ``switched``, which is when the forward pass begins to be 2:4.

    Until then each step is that of ``torch.optim.AdamW``, fused. After step t > ``least`` it looks at how much the
    second moments v of all masked parameters still change, Z_t = mean |v_t − v_{t−1}|, and switches once the mean of
    the last ⌊1 / (1 − β₂)⌋ of these is below ``eps``, or t > ``most``. From then on v of masked parameters stays, and

        w ← (1 − lr·decay)·w − lr·m̂ / (√v̂ + eps^¾),

    with v̂ = v / (1 − β₂ᵗ) of the step of the switch. What is masked is a group's own: ``{"params": …, "masked":
    False}`` goes on as AdamW and does not count.

    Differs from the code that is published with FST (huyz2023/2by4-pretrain):

    - The switch, the changes seen and the steps are part of ``state_dict()``: a run that is resumed goes on as it would
      have, bit for bit. There they are lost, and a resumed run is dense again.
    - v̂ is corrected for its bias: there an early switch makes steps larger by 1 / √(1 − β₂ᵗ).
    - An element that does not change counts for nothing in the geometric mean; there one such makes it zero.
    - A β₂ of 0.95 looks back 20 steps, not 19 for a rounding; and no copy of v is held.

    A step after ``least`` waits for the device. One that is captured in a CUDA graph does not, and decides nothing:
    call ``advance()`` after each replay, which does. Steps of one ``kind()`` are the same graph.
    With a GradScaler, a step that is skipped counts for nothing here. Ranks that hold equal gradients switch at once;
    for a part of a matrix it is refused, as what it decides by is the whole.

    Args:
        params: as of AdamW; of a group ``masked``, True unless said.
        least, most: steps between which it may switch: STEP takes 10 % and 50 % of all.
        geometric: Z is the geometric mean (STEP's second option).

    Raises:
        InputError: ``least`` and ``most`` are no whole numbers with 0 ≤ least ≤ most.
        ValueError: of AdamW, for its own arguments.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        least: int,
        most: int,
        geometric: bool = False,
    ) -> None:
        if type(least) is not int or type(most) is not int or not 0 <= least <= most:
            raise InputError(f"least and most are whole numbers of steps, 0 ≤ least ≤ most; got {least!r} and {most!r}")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # a scaler is to unscale gradients first, for v is looked at
        self.defaults |= {"masked": True, "least": least, "most": most, "geometric": geometric}
        self._complete()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete()

    def _complete(self) -> None:
        """Groups as they are made, or read from a state of AdamW's."""
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group["capturable"] = all(parameter.is_cuda for parameter in group["params"])
        first = self.param_groups[0]
        window = max(min(int(1 / (1 - first["betas"][1]) + 1e-6), first["most"]), 1)
        first.setdefault("switched", False)
        first.setdefault("steps", 0)
        first.setdefault("changes", torch.zeros(window, dtype=torch.float64))
        self._change_seen = torch.zeros((), dtype=torch.float64, device=first["params"][0].device)

    @property
    def switched(self) -> bool:
        """Whether v is held, so that the forward pass is to be 2:4."""
        return bool(self.param_groups[0]["switched"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As of AdamW."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [group for group in self.param_groups if group["masked"]] if self.switched else []
        looks = self._looks()
        if looks:
            self._change_seen.copy_(self._change())
        self._as_adamw([group for group in self.param_groups if not (self.switched and group["masked"])])
        for group in held:
            self._by_held(group)
        if not is_capturing(self._change_seen.device):
            self._count(looks)
        return loss

    def kind(self) -> tuple[bool, bool]:
        """Of the step that comes: whether v is held, and whether its change is looked at."""
        return self.switched, self._looks()

    @torch.no_grad()
    def advance(self) -> None:
        """Count a step that a CUDA graph has replayed, and switch where what it saw says so."""
        self._count(self._looks())

    def _looks(self) -> bool:
        """Whether the change of this step may decide something."""
        first = self.param_groups[0]
        return bool(first["steps"] + 1 > first["least"] - len(first["changes"])) and not self.switched

    def _change(self) -> torch.Tensor:
        """Z of the step that comes: of v_t − v_{t−1} = (1 − β₂)·(g² − v_{t−1}), which is not held twice for it.

        0 where nothing changes. Float64 (), and nothing waits for it here.
        """
        geometric = self.param_groups[0]["geometric"]
        total, count = torch.zeros_like(self._change_seen), torch.zeros_like(self._change_seen)
        for group in self.param_groups:
            for parameter in group["params"] if group["masked"] else ():
                if parameter.grad is None:
                    continue
                before = self.state[parameter].get("exp_avg_sq", 0)
                change = (parameter.grad.square() - before).abs_().double() * (1 - group["betas"][1])
                counted = change.log().where(change > 0, 0) if geometric else change
                total += counted.sum().to(total.device)
                count += (change > 0).sum().to(count.device) if geometric else change.numel()
        mean = total / count
        return (mean.exp() if geometric else mean).where(count > 0, 0)

    def _as_adamw(self, groups: list[dict[str, Any]]) -> None:
        every = self.param_groups
        self.param_groups = groups
        try:
            unwrap(torch.optim.AdamW.step)(self)  # itself, without hooks: those are called around ours
        finally:
            self.param_groups = every

    def _by_held(self, group: dict[str, Any]) -> None:
        beta, floor = group["betas"][0], group["eps"] ** 0.75
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:  # its first gradient is all that is known of it
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), gradient.square()
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - beta)
            divisor = state["exp_avg_sq"].sqrt().add_(floor).mul_(1 - beta ** state["step"].double())
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(divisor.reciprocal_().mul_(state["exp_avg"]).mul_(group["lr"]))

    def _count(self, looked: bool) -> None:
        """One step more, before the switch; waits for its change, if that was looked at."""
        first = self.param_groups[0]
        if self.switched:
            return
        changes = first["changes"]
        if looked:
            changes[first["steps"] % len(changes)] = self._change_seen.item()
        first["steps"] += 1
        seen = first["steps"] - max(first["least"] - len(changes), 0)
        if first["steps"] > first["most"] or (first["steps"] > first["least"] and self._has_settled(seen)):
            self._switch()

    def _has_settled(self, seen: int) -> bool:
        first = self.param_groups[0]
        return float(first["changes"].sum()) / min(seen, len(first["changes"])) < first["eps"]

    def _switch(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["masked"] else ():
                if state := self.state[parameter]:
                    state["exp_avg_sq"] /= 1 - group["betas"][1] ** state["step"].double()
        self.param_groups[0]["switched"] = True
