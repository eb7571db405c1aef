"""Two of each four numbers that are, on average over draws, all four: the unbiased estimator of the least variance.

Chmiel et al., "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients", arXiv 2203.10991.
"""

from __future__ import annotations

import torch

from blockshock.errors import InputError
from blockshock.training.sparse.groups import in_fours

_LARGEST_POWER = 126
"""Of two, so that it and its inverse are normal float32."""


def mvue_24(
    x: torch.Tensor, dim: int = -1, generator: torch.Generator | None = None, exact: bool = False
) -> torch.Tensor:
    """A random tensor with at most two nonzero of each four along ``dim``, whose mean over draws is ``x``.

    With a = \\|x\\| of a group and S its sum, the exact estimator keeps

    - where no a is larger than the sum of the others: two, each with the probability 2a / S, as sign(x)·S/2;
    - otherwise the largest as it is, and one of the others with the probability a / R, as sign(x)·R, R being their sum.

    No unbiased estimator with two of four has less variance. The approximate one draws i with the probability a / S,
    then j ≠ i with a_j / (S − a_i), and keeps x / p, where p = a/S · (1 + Σ_{j≠i} a_j / (S − a_j)) is the probability
    that a number is drawn at all: unbiased too, of slightly more variance. Groups with at most two nonzero numbers stay
    as they are, up to rounding; those of zeros give zeros.

    Both are those of FST (Hu et al., arXiv 2404.01847; huyz2023/2by4-pretrain), but for faults of that code:
    its ``legacy.MVUE24`` is biased where 2a₁ + a₃ ≤ a₄ (a₁ ≤ … ≤ a₄: a₂ and a₄ are drawn half as often as they must be,
    and S/2 stands for an a₄ that is larger than the others together), its Triton kernel takes the same random numbers
    for different groups of a transposed matrix, and adds 1.2e-7 to each size, so that small gradients are drawn nearly
    at random. Here each group has numbers of its own, whatever ``dim`` and the strides, and sizes have any scale.

    Args:
        x: (…), fp16, bf16, fp32 or fp64; sums are of float32, or of float64 for fp64.
        generator: on the device of ``x``; of one state the result has the same bits. None for torch's own.
        exact: the exact estimator, which draws one random number a group; otherwise the approximate one, which draws
            two.

    Returns:
        (…), of the dtype of ``x``. What was not finite stays so: a group with NaN or inf holds one. What is finite
        becomes inf where S/2 is beyond the dtype, so that a GradScaler skips that step, for no smaller number would be
        unbiased.

    Raises:
        InputError: ``x`` has no dimension ``dim``, its size is not a multiple of four, or the dtype is another; or
            ``generator`` is none.
    """
    fours, axis = in_fours(x, dim)
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise InputError(f"generator= takes a torch.Generator on the device of x, or None, got {generator!r}")
    fours = fours.detach()
    draw = _exact if exact else _approximate
    return torch.stack(draw(fours.unbind(axis), generator), axis).flatten(axis - 1, axis)


Planes = tuple[torch.Tensor, ...]
"""The first numbers of all groups, the second, the third and the fourth."""


def _exact(x_4: Planes, generator: torch.Generator | None) -> Planes:
    sizes_4, largest, scale = _scaled(x_4)
    total, rest = _sum(sizes_4), _sum_but_largest(sizes_4)
    dominated = largest > rest
    is_sure_4 = tuple(dominated & (size == largest) for size in sizes_4)
    drawn_4 = tuple(size.masked_fill(is_sure, 0) for size, is_sure in zip(sizes_4, is_sure_4, strict=True))
    # One of all where a random number falls, and one half of all further on, so never the same.
    half = torch.where(dominated, rest, total / 2)
    at = _uniform(half, generator) * half
    one_4, other_4 = _where(at, drawn_4), _where((at + half).masked_fill(dominated, -1), drawn_4)
    value = half / scale
    return tuple(
        torch.where(is_sure, x, (x.sign() * value).to(x.dtype)).masked_fill(~(one | other | is_sure), 0)
        for x, is_sure, one, other in zip(x_4, is_sure_4, one_4, other_4, strict=True)
    )


def _approximate(x_4: Planes, generator: torch.Generator | None) -> Planes:
    sizes_4, _, scale = _scaled(x_4)
    total = _sum(sizes_4)
    one_4 = _where(_uniform(total, generator) * total, sizes_4)
    left_4 = tuple(size.masked_fill(one, 0) for size, one in zip(sizes_4, one_4, strict=True))
    other_4 = _where(_uniform(total, generator) * _sum(left_4), left_4)
    # By sums of the others, not by S − a, which rounds to nothing of a small one.
    odds_4 = tuple(size / rest for size, rest in zip(sizes_4, _sums_of_others(sizes_4), strict=True))
    values = (total / (1 + odds) / scale for odds in _sums_of_others(odds_4))
    return tuple(
        torch.where(size == total, x, (x.sign() * value).to(x.dtype)).masked_fill(~(one | other), 0)
        for x, size, value, one, other in zip(x_4, sizes_4, values, one_4, other_4, strict=True)
    )


def _scaled(x_4: Planes) -> tuple[Planes, torch.Tensor, torch.Tensor]:
    """The sizes, scaled by a power of two so that nothing that matters over- or underflows; the largest; the power."""
    dtype = torch.float64 if x_4[0].dtype == torch.float64 else torch.float32
    one, two, three, four = (x.abs().to(dtype) for x in x_4)
    largest = torch.maximum(torch.maximum(one, two), torch.maximum(three, four))
    exponent = torch.frexp(largest).exponent.clamp(-_LARGEST_POWER, _LARGEST_POWER)
    scale = torch.exp2(-exponent.to(dtype))
    return (one * scale, two * scale, three * scale, four * scale), largest * scale, scale


def _uniform(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _where(at: torch.Tensor, sizes_4: Planes) -> Planes:
    """Of each group the one in whose part of the sum ``at`` falls, as masks; none where that is below zero."""
    first = sizes_4[0]
    second = first + sizes_4[1]
    third = second + sizes_4[2]
    in_one, in_two, in_three = at < first, at < second, at < third
    return in_one & (at >= 0), in_two & ~in_one, in_three & ~in_two, ~in_three


def _sum(sizes_4: Planes) -> torch.Tensor:
    one, two, three, four = sizes_4
    return (one + two) + (three + four)


def _sum_but_largest(sizes_4: Planes) -> torch.Tensor:
    one, two, three, four = sizes_4
    second = torch.minimum(torch.maximum(one, two), torch.maximum(three, four))
    return torch.minimum(one, two) + torch.minimum(three, four) + second


def _sums_of_others(sizes_4: Planes) -> Planes:
    one, two, three, four = sizes_4
    first, last = one + two, three + four
    return two + last, one + last, first + four, first + three
