"""The toolkit with matrices of every layout and dtype, and with what is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockshock.sparse import (
    Sparse24,
    StepAdamW,
    bits_of_mask,
    fixed_scale,
    mask_24,
    mask_of_bits,
    masked_decay_,
    mvue_24,
    soft_threshold_24,
    transposable_mask,
)
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ANY,
    FLOATS,
    counts,
    equal,
    fours,
    is_2to4,
    mask_rows,
    matrices,
    matrix,
    numbers,
    rows,
    seeds,
    with_special,
)
from torch import nn

pytestmark = pytest.mark.reliability

any_matrix = matrices(rows, fours | rows, ANY, special=True)
dims = st.integers(-3, 2)


@examples(100)
@given(x=any_matrix, dim=dims, signed=st.booleans())
def test_two_of_four_are_kept_or_it_is_refused(x: torch.Tensor, dim: int, signed: bool) -> None:
    mask = attempt(mask_24, x, dim, signed)
    fits = x.is_floating_point() and -2 <= dim < 2 and x.shape[dim] % 4 == 0
    assert (mask is not None) == fits
    if mask is not None:
        assert is_2to4(mask.movedim(dim, -1))


@examples(100)
@given(w_RC=any_matrix)
def test_tiles_are_transposable_or_it_is_refused(w_RC: torch.Tensor) -> None:
    mask = attempt(transposable_mask, w_RC)
    assert (mask is not None) == (w_RC.is_floating_point() and not any(size % 4 for size in w_RC.shape))
    if mask is not None:
        assert is_2to4(mask)
        assert is_2to4(mask.T)


@examples(100)
@given(x=any_matrix)
def test_bits_are_a_mask_again_or_it_is_refused(x: torch.Tensor) -> None:
    bits = attempt(bits_of_mask, x != 0)
    assert (bits is not None) == (not any(size % 4 for size in x.shape))
    assert bits is None or torch.equal(mask_of_bits(bits), x != 0)
    assert (attempt(mask_of_bits, x) is None) == (x.dtype != torch.int16)


@examples(100)
@given(x=any_matrix, dim=dims, exact=st.booleans(), seed=seeds)
def test_an_estimate_is_2to4_and_what_its_seed_says(x: torch.Tensor, dim: int, exact: bool, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    drawn = attempt(mvue_24, x, dim, stream, exact)
    if drawn is None:
        assert attempt(mask_24, x, dim) is None
        return
    assert drawn.shape == x.shape
    assert drawn.dtype == x.dtype
    assert equal(mvue_24(x, dim, stream.manual_seed(seed), exact), drawn)
    of_four = [tensor.movedim(dim, -1).reshape(-1, 4) for tensor in (x, drawn)]
    assert ((of_four[1] != 0).sum(1) <= 2).all()
    assert ((of_four[1] == 0) | (of_four[1].sign() == of_four[0].sign()) | ~of_four[1].isfinite()).all()
    assert torch.equal(of_four[0].isfinite().all(1) | ~of_four[1].isfinite().all(1), torch.ones(len(of_four[0])).bool())


@examples(100)
@given(w=any_matrix, dim=dims)
def test_a_threshold_and_its_scale(w: torch.Tensor, dim: int) -> None:
    found, scale = attempt(soft_threshold_24, w, dim), attempt(fixed_scale, w, dim)
    assert (found is None) == (attempt(mask_24, w, dim) is None)
    assert scale is None or (found is not None and float(scale) >= 1)
    if found is not None and w.isfinite().all():
        assert ((found == 0) | (found.sign() == w.sign())).all()
        assert ((found != 0).movedim(dim, -1).reshape(-1, 4).sum(1) <= 2).all()


@examples(100)
@given(grad=matrices(rows, fours), w=any_matrix, seed=seeds, decay=numbers)
def test_decay_touches_only_what_is_dropped(grad: torch.Tensor, w: torch.Tensor, seed: int, decay: Any) -> None:
    grad, mask = grad.clone(), mask_rows(*grad.shape, seed)
    before = grad.clone()
    bits = attempt(bits_of_mask, mask)
    by_bits = None if bits is None else attempt(masked_decay_, grad.clone(), w, bits, decay)
    done = attempt(masked_decay_, grad, w, mask, decay)
    assert (by_bits is None) == (done is None or bits is None)
    assert by_bits is None or equal(by_bits, grad)
    assert (done is None) == (w.shape != grad.shape or not w.is_floating_point() or not 0 <= decay <= 3.4e38)
    if done is None or w.isfinite().all():
        untouched = mask if done is not None else torch.ones_like(mask)
        assert torch.equal(grad[untouched], before[untouched])


@examples(100)
@given(least=counts, most=counts, masked=st.booleans(), seed=seeds, special=st.booleans())
def test_step_switches_between_its_steps_or_refuses_them(
    least: Any, most: Any, masked: bool, seed: int, special: bool
) -> None:
    parameter = nn.Parameter(matrix(3, 4, torch.float32, seed))
    optimizer = attempt(StepAdamW, [{"params": parameter, "masked": masked}], least=least, most=most)
    assert (optimizer is not None) == (0 <= least <= most)
    for step in range(1, 5) if optimizer is not None else ():
        parameter.grad = matrix(3, 4, torch.float32, seed + step)
        if special:
            parameter.grad = with_special(parameter.grad, seed)
        optimizer.step()
        assert step > least or not optimizer.switched
        assert step <= most or optimizer.switched


@examples(100)
@given(
    x_NK=any_matrix, other=st.none() | any_matrix, seed=seeds, turned=st.booleans(), exact=st.none() | st.booleans(),
    dtype=st.none() | st.sampled_from((*ANY, torch.float8_e5m2, torch.float8_e4m3fn)), both=st.booleans(),
    kernel=st.none() | st.sampled_from(("reference", "dense", "auto", "streamed", "none")),
)  # fmt: skip
def test_a_2to4_matrix_multiplies_or_says_why_not(
    x_NK: torch.Tensor, other: torch.Tensor | None, seed: int, turned: bool, exact: bool | None,
    dtype: torch.dtype | None, both: bool, kernel: str | None,
) -> None:  # fmt: skip
    options: Any = {"dtype": dtype, "both_ways": both, "kernel": kernel}
    stream = torch.Generator().manual_seed(seed)
    if exact is not None:
        made = attempt(Sparse24.by_mvue, x_NK, stream, exact, **options)
    else:
        masked = seed % 2 and x_NK.shape[1] % 4 == 0
        made = attempt(Sparse24, x_NK, mask_rows(*x_NK.shape, seed) if masked else None, **options)
    if made is None:
        return
    made = made.t() if turned else made
    if other is None:  # one that fits
        other = matrix(3, made.shape[1], made.dtype if made.dtype in FLOATS else torch.float32, seed)
    y = attempt(nn.functional.linear, other, made)
    fits = other.shape[1] == made.shape[1] and (both or not turned)
    if y is not None:
        assert fits
        assert (y.shape, y.dtype) == ((len(other), made.shape[0]), other.dtype)
    else:
        assert not fits or other.dtype != made.dtype
