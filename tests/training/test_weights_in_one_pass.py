"""Weights where one pass makes them, S-STE's with their mask and what it changed: the same as in many passes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from fake_cusparselt import compress, faked
from gpus import needs_a_gpu
from torch import nn

from blockshock import MethodLinear
from blockshock.errors import InputError, KernelUnavailable, StalePacking
from blockshock.kernels import blocks24, masked24, soft24
from blockshock.kernels.cusparselt_layout import dense_of, packed_as
from blockshock.kernels.masked24 import Masked
from blockshock.kernels.soft24 import Soft, soften24
from blockshock.training import RecipeStorage
from blockshock.training.sparse import bits_of_mask, mask_24, mask_of_bits, soft_threshold_24, transposable_mask

N, K = 64, 128
BY_MASK = ("ste", "sr_ste:every=2", "fst:every=2", "pruned")


def in_one_pass(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    """What our kernel does, in plain torch."""
    mask_NK = mask_24(w_NK)
    into.values.copy_(soft_threshold_24(w_NK) * scale.float())
    into.rows.copy_(compress(into.values).view_as(into.rows))
    changed = (mask_of_bits(into.mask) ^ mask_NK).unflatten(1, (-1, 64)).unflatten(0, (-1, 64))
    into.flips.copy_(changed.sum((1, 3))[..., None] * torch.eye(8, dtype=torch.int64, device=w_NK.device)[0])
    into.mask.copy_(bits_of_mask(mask_NK))


def by_mask(w_NK: torch.Tensor, mask: torch.Tensor, into: Masked) -> None:
    """Likewise."""
    into.values.copy_(w_NK.where(mask_of_bits(mask), 0))
    into.rows.copy_(compress(into.values).view_as(into.rows))
    if into.columns is not None:
        into.columns.copy_(compress(into.values.T.contiguous()).view_as(into.columns))


def storage_of(layer: MethodLinear) -> RecipeStorage:
    (storage,) = layer.layer.storages()
    assert isinstance(storage, RecipeStorage)
    return storage


def trained(spec: str = "s_ste", device: str = "cpu") -> tuple[MethodLinear, list[torch.Tensor], list[torch.Tensor]]:
    """A layer after three steps whose gradients are given; outputs, and masks and flip rates."""
    torch.manual_seed(0)
    layer = MethodLinear(nn.Linear(K, N, device=device), f"recipe-{spec}", dtype=torch.bfloat16)
    storage, outputs, masks = storage_of(layer), [], []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for step in range(3):
        stream = torch.Generator().manual_seed(step)
        outputs.append(layer(torch.randn(16, K, generator=stream).to(device)).detach())
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=stream).to(device)
        assert storage.mask_NK is not None
        if not storage.recipe.keeps_dropped:
            storage.parameter.grad *= storage.mask_NK  # type: ignore[operator]
        optimizer.step()
        assert layer.check() is None
        masks += [storage.mask_NK.float(), storage.flipped.clone()]
    return layer, outputs, masks


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks24, "takes", lambda w, dtype: True)
    monkeypatch.setattr(soft24, "soften24", in_one_pass)
    monkeypatch.setattr(masked24, "masked24", by_mask)


@pytest.mark.parametrize("spec", ["s_ste", *BY_MASK])
def test_a_step_is_that_of_many_passes(spec: str, request: pytest.FixtureRequest) -> None:
    with faked():
        many, right, right_masks = trained(spec)
        request.getfixturevalue("one_pass")
        layer, found, masks = trained(spec)
        held = storage_of(layer).packed.soft, storage_of(layer).packed.by_bits
        assert (held[0] is None, held[1]) == (spec != "s_ste", spec != "s_ste")
        torch.testing.assert_close(found, right, rtol=0.02, atol=0.02)
        torch.testing.assert_close(masks, right_masks)
        assert (max(masks[1::2]) > 0) == (spec != "pruned")
        storage, state = storage_of(layer), layer.state_dict()
        again, *others = copy.deepcopy(layer), trained(spec)[0], trained(spec)[0], many
        for one, from_state in zip(others, (state, many.state_dict(), state), strict=True):
            with torch.no_grad():
                storage_of(one).parameter.neg_()
            one.load_state_dict(from_state)
        for one in (again, *others):
            assert torch.equal(storage_of(one).mask_NK, storage.mask_NK)  # type: ignore[arg-type]
            assert torch.equal(storage_of(one).packed.values, storage.packed.values)
            assert one.check() is None


def values_that_lag(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    in_one_pass(w_NK, scale, into._replace(values=into.values.clone()))


def packed_that_lag(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    in_one_pass(w_NK, scale, into._replace(rows=into.rows.clone()))


def masks_that_lag(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    in_one_pass(w_NK, scale, into._replace(mask=into.mask.clone()))


def columns_that_lag(w_NK: torch.Tensor, mask: torch.Tensor, into: Masked) -> None:
    by_mask(w_NK, mask, into._replace(columns=None))


@pytest.mark.parametrize("fault", [values_that_lag, packed_that_lag, masks_that_lag, columns_that_lag])
@pytest.mark.usefixtures("one_pass")
def test_what_is_not_written_is_found(fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with faked():
        layer, *_ = trained("fst" if fault is columns_that_lag else "s_ste")
        with monkeypatch.context() as patch:
            patch.setattr(soft24, "soften24", fault)
            patch.setattr(masked24, "masked24", fault)
            torch.optim.SGD(layer.parameters(), lr=0.05).step()
        with pytest.raises(StalePacking, match="its packing's"):
            layer.check()


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [False, True])
def test_one_pass_on_a_gpu_gives_the_bits_of_the_formula(dtype: torch.dtype, wide: bool) -> None:
    for rows, columns in ((64, 64), (128, 192), (512, 1024)):
        w_NK = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).cuda()
        w_NK[0], w_NK[1, :8] = 0, 1
        w_NK[8:16, :32] = torch.randint(-2, 3, (8, 32), generator=torch.Generator().manual_seed(0)).cuda()
        w_NK = w_NK if wide else w_NK.to(dtype)
        before_NK, scale = mask_24(w_NK.roll(1, 1)), torch.tensor(1.2345, dtype=torch.float64, device="cuda")
        values = torch.empty(rows, columns, dtype=dtype, device="cuda")
        into = Soft.of(values, torch.empty(rows, columns * 9 // 16, dtype=dtype, device="cuda"))
        into.mask.copy_(bits_of_mask(before_NK))
        into.flips.fill_(-1)
        soften24(w_NK, scale, into)
        right_NK, mask_NK = (soft_threshold_24(w_NK).float() * scale.float()).to(dtype), mask_24(w_NK)
        assert torch.equal(into.values.view(torch.int16), right_NK.view(torch.int16))
        assert torch.equal(into.rows.view(torch.int16), packed_as(right_NK, mask_NK).view(torch.int16))
        assert torch.equal(into.mask, bits_of_mask(mask_NK))
        changed = (before_NK ^ mask_NK).unflatten(1, (-1, 64)).unflatten(0, (-1, 64)).sum((1, 3))
        assert torch.equal(into.flips.sum(2), changed)
        assert into.flipped.item() == pytest.approx(changed.sum().item() / w_NK.numel())
    with pytest.raises(InputError, match=r"a scale of torch.float32"):
        soften24(w_NK, scale.float(), into)
    with pytest.raises(InputError, match=r"got \(64, 1024\)"):
        soften24(w_NK[:64], scale, into)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [False, True])
def test_what_a_mask_keeps_is_packed_on_a_gpu(dtype: torch.dtype, wide: bool) -> None:
    for rows, columns in ((64, 64), (128, 192), (512, 1024)):
        w_NK = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).cuda()
        w_NK[0], w_NK[1, :8] = 0, 1
        w_NK = w_NK if wide else w_NK.to(dtype)
        along, both = mask_24(w_NK), transposable_mask(w_NK)
        for mask_NK, turns in ((along, False), (both, True), (both & (w_NK > 0), True)):
            values = torch.empty(rows, columns, dtype=dtype, device="cuda")
            packings = [values.new_zeros(sizes) for sizes in ((rows, columns * 9 // 16), (columns, rows * 9 // 16))]
            into = Masked(values, packings[0], packings[1] if turns else None)
            masked24.masked24(w_NK, bits_of_mask(mask_NK), into)
            right_NK = w_NK.where(mask_NK, 0).to(dtype)
            assert torch.equal(values, right_NK)
            assert torch.equal(dense_of(packings[0], columns), right_NK)
            assert torch.equal(dense_of(packings[1], rows), right_NK.T if turns else torch.zeros_like(right_NK.T))
    for wrong in (mask_NK, mask_NK.short()):
        with pytest.raises(InputError, match=rf"and a mask \(512, 1024\) {wrong.dtype}"):
            masked24.masked24(w_NK, wrong, into)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("spec", ["s_ste", *BY_MASK])
def test_a_step_on_a_gpu_is_that_of_many_passes(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, found, masks = trained(spec, "cuda")
    assert (storage_of(layer).packed.soft is None) == storage_of(layer).packed.by_bits == (spec != "s_ste")
    monkeypatch.setattr(blocks24, "takes", lambda w, dtype: False)
    other, right, right_masks = trained(spec, "cuda")
    assert storage_of(other).packed.soft is None
    assert not storage_of(other).packed.by_bits
    torch.testing.assert_close(found, right, rtol=0.02, atol=0.02)
    torch.testing.assert_close(masks, right_masks)
    state = layer.state_dict()
    other.load_state_dict(state)
    assert torch.equal(storage_of(other).mask_NK, storage_of(layer).mask_NK)  # type: ignore[arg-type]


@pytest.mark.gpu
@needs_a_gpu
def test_no_group_with_nan_is_finite() -> None:
    w_NK = torch.randn(64, 64, device="cuda")
    w_NK[5, 9] = torch.nan
    values = torch.empty(64, 64, dtype=torch.bfloat16, device="cuda")
    into = Soft.of(values, torch.empty(64, 36, dtype=torch.bfloat16, device="cuda"))
    soften24(w_NK, torch.ones((), dtype=torch.float64, device="cuda"), into)
    assert into.values[5, 8:12].isnan().all()
    assert into.values.isnan().sum() == 4


def test_a_weight_on_a_cpu_is_refused() -> None:
    w_NK = torch.zeros(64, 64)
    assert not blocks24.takes(w_NK, torch.bfloat16)
    into = Soft(w_NK.bfloat16(), w_NK, w_NK, w_NK)
    with pytest.raises(KernelUnavailable, match="x is on cpu"):
        soften24(w_NK, torch.ones((), dtype=torch.float64), into)
    with pytest.raises(KernelUnavailable, match="x is on cpu"):
        masked24.masked24(w_NK, bits_of_mask(w_NK.bool()), Masked(w_NK.bfloat16(), w_NK))
