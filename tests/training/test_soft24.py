"""S-STE's weights where one pass makes them, their mask and what it changed: the same as in many passes."""

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
from blockshock.kernels import soft24
from blockshock.kernels.cusparselt_layout import packed_as
from blockshock.kernels.soft24 import Soft, soften24
from blockshock.training import RecipeStorage
from blockshock.training.recipes.tiles import bits_of, mask_of_bits
from blockshock.training.sparse import mask_24, soft_threshold_24

N, K = 64, 128


def words(mask_NK: torch.Tensor) -> torch.Tensor:
    return bits_of(mask_NK.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2))


def in_one_pass(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    """What our kernel does, in plain torch."""
    mask_NK = mask_24(w_NK)
    into.values.copy_(soft_threshold_24(w_NK) * scale.float())
    into.rows.copy_(compress(into.values).view_as(into.rows))
    into.flips.copy_((mask_of_bits(into.mask) ^ mask_NK).sum())
    into.mask.copy_(words(mask_NK))


def storage_of(layer: MethodLinear) -> RecipeStorage:
    (storage,) = layer.layer.storages()
    assert isinstance(storage, RecipeStorage)
    return storage


def trained(device: str = "cpu") -> tuple[MethodLinear, list[torch.Tensor], list[torch.Tensor]]:
    """A layer after three steps whose gradients are given; outputs, and masks and flip rates."""
    torch.manual_seed(0)
    layer = MethodLinear(nn.Linear(K, N), "recipe-s_ste", dtype=torch.bfloat16).to(device)
    storage, outputs, masks = storage_of(layer), [], []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for step in range(3):
        stream = torch.Generator().manual_seed(step)
        outputs.append(layer(torch.randn(16, K, generator=stream).to(device)).detach())
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=stream).to(device)
        optimizer.step()
        assert layer.check() is None
        assert storage.mask_NK is not None
        masks += [storage.mask_NK.float(), storage.flipped.clone()]
    return layer, outputs, masks


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft24, "takes", lambda w, dtype: True)
    monkeypatch.setattr(soft24, "soften24", in_one_pass)


def test_a_step_is_that_of_many_passes(request: pytest.FixtureRequest) -> None:
    with faked():
        _, right, right_masks = trained()
        request.getfixturevalue("one_pass")
        layer, found, masks = trained()
        assert storage_of(layer).packed.soft is not None
        torch.testing.assert_close(found, right, rtol=0.02, atol=0.02)
        torch.testing.assert_close(masks, right_masks)
        assert masks[-1] > 0
        storage, state = storage_of(layer), layer.state_dict()
        again, other = copy.deepcopy(layer), trained()[0]
        with torch.no_grad():
            storage_of(other).parameter.neg_()
        other.load_state_dict(state)
        for one in (again, other):
            assert torch.equal(storage_of(one).mask_NK, storage.mask_NK)  # type: ignore[arg-type]
            assert torch.equal(storage_of(one).packed.values, storage.packed.values)
            assert one.check() is None


def values_that_lag(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    in_one_pass(w_NK, scale, into._replace(values=into.values.clone()))


def packed_that_lag(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    in_one_pass(w_NK, scale, into._replace(rows=into.rows.clone()))


def masks_that_lag(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    in_one_pass(w_NK, scale, into._replace(mask=into.mask.clone()))


@pytest.mark.parametrize("fault", [values_that_lag, packed_that_lag, masks_that_lag])
@pytest.mark.usefixtures("one_pass")
def test_what_is_not_written_is_found(fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with faked():
        layer, *_ = trained()
        with monkeypatch.context() as patch:
            patch.setattr(soft24, "soften24", fault)
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
        into = Soft(
            torch.empty(rows, columns, dtype=dtype, device="cuda"),
            torch.empty(rows, columns * 9 // 16, dtype=dtype, device="cuda"),
            words(before_NK),
            torch.ones((), dtype=torch.int32, device="cuda"),
        )
        soften24(w_NK, scale, into)
        right_NK, mask_NK = (soft_threshold_24(w_NK).float() * scale.float()).to(dtype), mask_24(w_NK)
        assert torch.equal(into.values.view(torch.int16), right_NK.view(torch.int16))
        assert torch.equal(into.rows.view(torch.int16), packed_as(right_NK, mask_NK).view(torch.int16))
        assert torch.equal(into.mask, words(mask_NK))
        assert into.flips.item() == (before_NK ^ mask_NK).sum().item()
    with pytest.raises(InputError, match=r"a scale of torch.float32"):
        soften24(w_NK, scale.float(), into)
    with pytest.raises(InputError, match=r"got \(64, 1024\)"):
        soften24(w_NK[:64], scale, into)


@pytest.mark.gpu
@needs_a_gpu
def test_a_step_on_a_gpu_is_that_of_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, found, masks = trained("cuda")
    assert storage_of(layer).packed.soft is not None
    monkeypatch.setattr(soft24, "takes", lambda w, dtype: False)
    other, right, right_masks = trained("cuda")
    assert storage_of(other).packed.soft is None
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
    into = Soft(
        torch.empty(64, 64, dtype=torch.bfloat16, device="cuda"),
        torch.empty(64, 36, dtype=torch.bfloat16, device="cuda"),
        torch.zeros(16, 16, dtype=torch.int16, device="cuda"),
        torch.zeros((), dtype=torch.int32, device="cuda"),
    )
    soften24(w_NK, torch.ones((), dtype=torch.float64, device="cuda"), into)
    assert into.values[5, 8:12].isnan().all()
    assert into.values.isnan().sum() == 4


def test_a_weight_on_a_cpu_is_refused() -> None:
    w_NK = torch.zeros(64, 64)
    assert not soft24.takes(w_NK, torch.bfloat16)
    into = Soft(w_NK.bfloat16(), w_NK, w_NK, w_NK)
    with pytest.raises(KernelUnavailable, match="x is on cpu"):
        soften24(w_NK, torch.ones((), dtype=torch.float64), into)
