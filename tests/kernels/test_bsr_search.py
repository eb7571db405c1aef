"""The search for the fastest setting of torch's block-sparse kernel: what it finds, tries and leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from blockshock.kernels.bsr_search import (
    LIMITS,
    MOST_TRIED,
    STARTS,
    Found,
    Setting,
    default_for,
    search,
    spills,
    tile_for,
)


def _search(cost: Callable[[Setting], float], tokens: int = 4096, size: int = 16) -> Found:
    tried: list[Setting] = []

    def multiply(setting: Setting) -> torch.Tensor:
        assert all(value <= most for value, most in zip(setting, LIMITS, strict=True))
        tried.append(setting)
        return torch.tensor(float(setting.stages))

    found = search(size, tokens, multiply, lambda y: y.item() != 5, lambda call: call() is None or cost(tried[-1]))
    assert len(set(tried)) <= MOST_TRIED
    assert {setting.group for setting in tried} == {STARTS[size].group}
    return found


def test_the_search_finds_what_is_fastest() -> None:
    best = Setting(tile=128, group=1, stages=4, warps=8)

    def cost(setting: Setting) -> float:
        return 1 + sum(abs(one - other) / other for one, other in zip(setting, best, strict=True))

    assert _search(cost).setting == best
    few = _search(cost, tokens=20).setting
    assert few is not None
    assert few.tile == 32
    faster_if_wrong = _search(lambda setting: 10.0 - setting.stages)
    assert faster_if_wrong.setting is not None
    assert faster_if_wrong.setting.stages == 4
    assert {setting.stages for setting in faster_if_wrong.turned_away} == {5}


@pytest.mark.parametrize("size", STARTS)
def test_a_search_ends_early_with_the_fastest_that_it_tried(size: int) -> None:
    """Of a cost with its best far away from where it begins; and where it begins with what fails."""
    found = _search(lambda setting: float(cost_of(setting)), size=size)
    assert found.setting is not None
    assert cost_of(found.setting) <= cost_of(default_for(4096)) < cost_of(STARTS[size])

    def fails(setting: Setting) -> float:
        if setting.stages > 1:
            raise RuntimeError("out of resource")
        return 1.0

    assert _search(fails, size=size).setting == default_for(4096)._replace(group=STARTS[size].group)


def test_no_setting_is_compiled_or_tried_whose_sums_do_not_fit_into_registers() -> None:
    """They lead to the fastest here, where fewer warps and larger tiles are each faster."""
    compiled: list[Setting] = []
    tried: list[Setting] = []

    def multiply(setting: Setting) -> torch.Tensor:
        tried.append(setting)
        return torch.empty(0)

    found = search(
        64,
        4096,
        multiply,
        lambda y: True,
        lambda call: call() is None or tried[-1].warps + 256.0 / tried[-1].tile + tried[-1].stages,
        compiled.extend,
    )
    assert found.setting in (
        Setting(tile=256, group=1, stages=1, warps=4),
        Setting(tile=128, group=1, stages=1, warps=2),
    )
    assert set(tried) <= set(compiled)
    assert all(64 * one.tile / (32 * one.warps) < 256 for one in compiled)
    assert {(one.tile, one.warps) for one in tried} >= {(128, 4), (128, 2)}
    for size, start in STARTS.items():
        assert not spills(start, size)
        assert not any(spills(default_for(tokens), size) for tokens in (1, 16, 64, 4096))
    # As ptxas said of torch's kernel for compute capability 8.0 and 9.0: those kept thousands of bytes in memory.
    assert spills(Setting(256, 1, 3, 2), 64)
    assert spills(Setting(128, 1, 3, 1), 64)
    assert spills(Setting(256, 1, 3, 4), 128)
    assert not spills(Setting(256, 1, 3, 4), 64)
    assert not spills(Setting(128, 1, 3, 2), 64)


def cost_of(setting: Setting) -> int:
    return setting.tile * setting.stages * setting.warps


def test_tiles_hold_the_tokens() -> None:
    assert [tile_for(tokens) for tokens in (1, 16, 17, 33, 64, 65, 5000)] == [16, 16, 32, 64, 64, 64, 64]
    assert default_for(3).stages == 1
