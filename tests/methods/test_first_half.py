"""Halves by a pruner's mask: together W, and the first alone what the pruner makes of it. Its loss is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrated import some_inputs
from torch import nn

from blockshock import replace_linears
from blockshock.errors import InputError, UnknownName
from blockshock.matrices import MASKS, GeneratedWeights, Mask, Piece, TensorWeights, build_mask
from blockshock.measure import Accuracy, ErrorSums, QualitySums
from blockshock.methods import METHODS, Layer, Shape, parse_row
from blockshock.phases import correctness
from blockshock.phases.case import Case, obstacle
from blockshock.phases.correctness import CorrectnessResult
from blockshock.pruning import PRUNERS, check_mask, is_pruners, mask_names, mask_of, prune, typical_mask
from blockshock.ranks import Ranks

CASE = Case("block_shock", {"kernel": "reference", "mask": "wanda"}, "recorded", 384, 1536, 64, "fp32")
SOURCE = TensorWeights(torch.randn(24, 36, generator=torch.Generator().manual_seed(0)))


def _sums(found: list[QualitySums | None]) -> dict[str, float]:
    return sum((one for one in found if one is not None), QualitySums()).quality()


def _run(case: Case) -> CorrectnessResult:
    return correctness.run(case)


def test_the_first_half_is_the_pruned_layer_and_both_are_the_dense_one(cpu_ranks: Ranks) -> None:
    halves = cpu_ranks.run(_run, CASE)
    pruned = cpu_ranks.run(_run, CASE.of("pruned").picking(pruner="wanda", kernel="reference"))
    assert Accuracy.of(sum((one.errors for one in halves), ErrorSums()), halves[0].roundings).failure() is None
    assert all(one.lost is None for one in halves), "W is what it is right for"
    assert all(one.lost_by_half is None for one in pruned)
    half, whole = _sums([one.lost_by_half for one in halves]), _sums([one.lost for one in pruned])
    assert half == pytest.approx(whole, rel=1e-9)
    fixed = _sums([one.lost_by_half for one in cpu_ranks.run(_run, CASE.picking(mask="1100"))])
    assert half["output_error"] < 0.5 * fixed["output_error"]


def test_what_prunes_is_a_mask_by_its_name() -> None:
    x_TK = some_inputs(40).float()
    for spec in ("wanda", "ria:a=1.0", "tile_wanda", "sparsegpt"):
        assert is_pruners(spec)
        found = mask_of(spec, SOURCE, lambda: x_TK)
        assert torch.equal(found.dense(), prune(spec, Piece(SOURCE), lambda: x_TK).mask.dense())
    for name in MASKS.names():
        assert not is_pruners(name)
        assert torch.equal(mask_of(name, SOURCE, None).dense(), build_mask(name, SOURCE).dense())
    assert set(mask_names()) == {*MASKS.names(), *PRUNERS.names()}


def test_whether_it_fits_is_known_without_pruning() -> None:
    """Whether a kernel takes it, and what memory it needs, is asked before there is a layer."""
    layer = Layer(SOURCE, {"kernel": "reference", "mask": "tile_wanda"}, inputs=lambda: pytest.fail("not to be drawn"))
    assert isinstance(layer.kept, Mask)
    assert layer.kept.tile is None
    assert METHODS.get("block_shock").unsuitable(layer) is None
    assert torch.equal(typical_mask("1100", SOURCE).dense(), build_mask("1100", SOURCE).dense())
    estimates = [
        METHODS.get("block_shock").estimate(Shape(4096, 8192, 2, 2, picks={"kernel": "reference", "mask": mask}))
        for mask in ("random", "sparsegpt")
    ]
    assert estimates[0].steady == estimates[1].steady
    assert estimates[1].building > 32 * 8192**2 > estimates[0].building


def test_what_it_does_not_fit_is_said(cpu_ranks: Ranks) -> None:
    gathered, cut = CASE.picking(kernel="gathered"), replace(CASE, workload="gaussian", N=130).picking(mask="tile_ria")
    found = cpu_ranks.run(_obstacles, [CASE, gathered, cut])[0]
    assert found[0] is None
    assert "kernel gathered: needs a row-periodic mask" in (found[1] or "")
    assert "N to be a multiple of 4" in (found[2] or "")


def _obstacles(cases: list[Case]) -> list[str | None]:
    return [obstacle(case) for case in cases]


def test_another_name_is_told_both() -> None:
    with pytest.raises(
        UnknownName, match=r"no mask is named 'wandaa'.*1100.*; or a pruner, for what it keeps: .*wanda"
    ):
        check_mask("wandaa")


def test_a_parameter_of_neither_is_refused() -> None:
    for spec in ("wanda:b=1", "1100:b=1"):
        with pytest.raises(InputError, match=r"takes (no parameter|permute), not 'b'"):
            check_mask(spec)


def test_it_is_part_of_a_rows_name() -> None:
    assert parse_row("block_shock-auto-tile_wanda-masked").picks["mask"] == "tile_wanda"
    assert parse_row("block_shock-auto-sparsegpt:damping=1e-2").picks["mask"] == "sparsegpt:damping=1e-2"


def test_a_users_layer_is_cut_by_what_met_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(36, 24)), some_inputs(40).float()
    y, weight = model(x), model[0].weight.detach().clone()
    row = "block_shock-reference-wanda-masked"
    with pytest.raises(InputError, match=f"the pruner of {row} looks at inputs, and 0 has none"):
        replace_linears(model, row)
    replace_linears(model, row, inputs={"0": x})
    torch.testing.assert_close(model(x), y)
    kept = prune("wanda", Piece(TensorWeights(weight)), lambda: x).mask.dense()
    assert torch.equal(model[0].mask.dense(), kept)  # type: ignore[union-attr, operator]


def test_nothing_of_the_second_half_is_in_the_first() -> None:
    source = GeneratedWeights(16, 32, torch.float32, "cpu")
    layer = Layer(source, {"mask": "random"})
    half = METHODS.get("block_shock").first_half(layer)
    assert half is not None
    kept = build_mask("random", source).dense()
    assert torch.equal(half.rows(4, 12), (source.rows(0, 16) * kept)[4:12])
    assert METHODS.get("dense_single").first_half(layer) is None
