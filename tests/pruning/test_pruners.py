"""Pruners: W′ is W where a 2:4 mask keeps it, whichever part is pruned by itself; and what is no W′ is refused."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from blockshock.errors import InputError, MaskError, UnknownName
from blockshock.matrices.blocks_of_rows import row_blocks
from blockshock.matrices.mask_checks import check_2to4, check_transposable
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights, TensorWeights
from blockshock.pruning import PRUNERS, JoinedWeights, PrunedWeights, Pruner, prune, pruned

N, K = 48, 72


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned, "row_blocks", lambda rows, row_bytes, **_: row_blocks(rows, row_bytes, 8 * row_bytes))


def piece(dtype: torch.dtype = torch.bfloat16) -> Piece:
    return Piece(GeneratedWeights(N, K, dtype, "cpu", seed=3, with_bias=True))


every_pruner = pytest.mark.parametrize("name", [name for name in PRUNERS.names() if not PRUNERS.get(name).needs_inputs])
"""Of those that look at W alone: the others have tests/pruning/test_calibrated.py."""


@every_pruner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.usefixtures("small_blocks")
def test_w_stays_as_it_is_where_a_2to4_mask_keeps_it(name: str, dtype: torch.dtype) -> None:
    whole = piece(dtype)
    found = prune(name, whole)
    check_2to4(found.mask)
    assert torch.equal(found.rows(0, N), whole.block(0, N) * found.mask.dense())
    assert torch.equal(found.rows(5, 9), found.rows(0, N)[5:9])
    assert found.bias is whole.source.bias or torch.equal(found.bias, whole.source.bias)  # type: ignore[arg-type]
    assert (found.dtype, found.N, found.K, found.seed) == (dtype, N, K, 3)
    if PRUNERS.get(name).transposable:
        check_transposable(found.mask)


@every_pruner
@pytest.mark.usefixtures("small_blocks")
def test_parts_pruned_by_themselves_are_parts_of_the_whole(name: str) -> None:
    source = piece().source
    whole = prune(name, piece())
    part = prune(name, Piece(source, slice(24, 52), rows=slice(8, 44)))
    assert torch.equal(part.rows(0, 36), whole.rows(8, 44)[:, 24:52])
    assert torch.equal(part.mask.dense(), whole.mask.rows(8, 44)[:, 24:52])
    assert torch.equal(part.bias, source.bias[8:44])  # type: ignore[index,arg-type]
    beside = [prune(name, Piece(source, columns)) for columns in (slice(0, 28), slice(28, K))]
    below = [prune(name, Piece(source, rows=rows)) for rows in (slice(0, 12), slice(12, 40), slice(40, N))]
    for parts, dim in ((beside, 1), (below, 0)):
        joined = JoinedWeights(parts, dim, source.bias)
        assert torch.equal(joined.gather(slice(None)), whole.gather(slice(None)))
        assert torch.equal(joined.rows(10, 41), whole.rows(10, 41))
        assert torch.equal(joined.mask.rows(10, 41), whole.mask.rows(10, 41))


def test_the_largest_stay_and_of_equals_the_first() -> None:
    w_NK = torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, -5.0, 5.0]])
    found = prune("magnitude", Piece(TensorWeights(w_NK)))
    assert found.rows(0, 1).tolist() == [[0.0, -4.0, 3.0, 0.0, 5.0, 5.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("random", 0.5), ("1100", 0.5), ("magnitude", 0.745), ("tile_magnitude", 0.702), ("weight_norm", 0.745)],
)
def test_what_they_keep_of_normal_weights(name: str, kept: float) -> None:
    """The last two: two of four, and the best of 90 tiles."""
    whole = Piece(GeneratedWeights(512, 512, torch.float32, "cpu"))
    share = prune(name, whole).rows(0, 512).abs().sum() / whole.block(0, 512).abs().sum()
    assert share.item() == pytest.approx(kept, abs=0.005)


@pytest.mark.parametrize(("std", "different"), [(0.02, False), (5e-4, True)])
def test_torchs_weight_norm_is_magnitude_until_its_squares_underflow(std: float, different: bool) -> None:
    """In fp16 a square below 2⁻²⁵, of a weight below 1.7e-4, is zero, and zeros are all alike."""
    w_NK = (torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) * std).half()
    theirs, ours = (prune(name, Piece(TensorWeights(w_NK))).mask.dense() for name in ("weight_norm", "magnitude"))
    groups = (theirs != ours).unflatten(1, (-1, 4)).any(-1).float().mean().item()
    assert groups > 0.05 if different else groups < 0.01
    wide, magnitude = (
        prune(name, Piece(TensorWeights(w_NK.float()))).mask.dense() for name in ("weight_norm", "magnitude")
    )
    assert (wide != magnitude).unflatten(1, (-1, 4)).any(-1).float().mean() < 0.01, "before the cast they agree"


def test_zeros_stay_zeros_and_are_kept_in_another_dtype_too() -> None:
    class Zeroed(Pruner):
        def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
            mask_RK = torch.tensor([1, 0, 1, 0]).bool().expand(len(w_RK), K // 4, 4).flatten(1)
            return w_RK.double().index_fill(1, torch.tensor([0, 4]), -0.0), mask_RK

    whole = piece(torch.float32)
    found = PrunedWeights(whole, Zeroed(whole, None), "zeroed")
    assert found.rows(0, N).dtype == torch.float32
    assert (found.rows(0, N) == 0).sum() == N * (K // 2 + 2)
    assert found.mask.dense()[:, 0].all()
    tiny = found.cast(torch.float16)
    assert torch.equal(tiny.rows(0, N), found.rows(0, N).half())
    assert tiny.mask is found.mask
    assert tiny.bias is not None
    assert (tiny.dtype, tiny.bias.dtype, found.dtype) == (torch.float16, torch.float16, torch.float32)


# Bad input ------------------------------------------------------------------------------------------------------------


class Told(Pruner):
    """Gives what it is told to, and takes inputs if it is told to."""

    gives: ClassVar[object] = None

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.gives  # type: ignore[return-value]


def _mask(pattern: str = "1100") -> torch.Tensor:
    return torch.tensor([bit == "1" for bit in pattern]).repeat(N, K // 4)


def _nan() -> torch.Tensor:
    w_NK = torch.ones(N, K)
    w_NK[7, 5] = torch.nan
    return w_NK


def _three() -> torch.Tensor:
    mask_NK = _mask()
    mask_NK[9, 6] = True
    return mask_NK


@pytest.mark.parametrize(
    ("gives", "kind", "message"),
    [
        ((torch.ones(N, K), _mask("1110")), MaskError, "pruner told: not 2:4: row 0, group 0 keeps 3 of 4"),
        ((torch.ones(N, K), _three()), MaskError, "pruner told: not 2:4: row 9, group 1 keeps 3 of 4"),
        ((torch.ones(N, K - 4), _mask()), InputError, r"W′ of rows 0 to 47 must be torch.float32 \(48, 72\), got .*68"),
        ((torch.ones(N, K).long(), _mask()), InputError, r"W′ of rows 0 to 47 must be .*, got torch.int64 \(48, 72\)"),
        ((torch.ones(N, K), _mask()[1:]), MaskError, r"the mask of rows 0 to 47 must be boolean \(48, 72\), got .*47"),
        ((torch.ones(N, K), _mask().float()), MaskError, r"must be boolean \(48, 72\), got torch.float32"),
        ((_nan(), _mask()), InputError, "pruner told: W′ holds nan at row 7, column 5"),
        ((torch.full((N, K), torch.inf), _mask()), InputError, "W′ holds inf at row 0, column 0"),
        (_mask(), InputError, "prune gives two tensors, W′ and its mask; got Tensor"),
        (None, InputError, "prune gives two tensors, W′ and its mask; got NoneType"),
    ],
)
def test_what_is_no_pruned_w_is_refused(gives: object, kind: type[Exception], message: str) -> None:
    class Wrong(Told):
        pass

    Wrong.gives = gives
    with pytest.raises(kind, match=message):
        PrunedWeights(piece(torch.float32), Wrong(piece(torch.float32), None), "told")


def test_nan_that_is_dropped_is_no_fault() -> None:
    class Dropping(Told):
        gives = (_nan(), _mask("1010"))

    assert torch.isfinite(PrunedWeights(piece(torch.float32), Dropping(piece(), None), "told").rows(0, N)).all()


def test_a_mask_that_is_not_what_its_pruner_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "gives", (torch.ones(N, K), _mask("1010")))
    monkeypatch.setattr(Told, "transposable", True)
    with pytest.raises(MaskError, match="pruner told says that its masks are transposable: not transposable: column 0"):
        PrunedWeights(piece(torch.float32), Told(piece(), None), "told")
    monkeypatch.setattr(Told, "like", PRUNERS.get("1100").like)
    with pytest.raises(MaskError, match="the mask of rows 0 to 47 is not the one that it is said to be"):
        PrunedWeights(piece(torch.float32), Told(piece(), None), "told")


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A pruner ``looking`` that needs inputs; returns those that it was given."""
    given = []

    class Looking(PRUNERS.get("magnitude")):  # type: ignore[misc]
        needs_inputs = True

        def __init__(self, piece: Piece, x_TK: torch.Tensor | None) -> None:
            super().__init__(piece, x_TK)
            given.append(x_TK)

    monkeypatch.setitem(PRUNERS._entries, "looking", Looking)
    return given


def test_inputs_are_drawn_for_pruners_that_look_at_them_alone(looking: list[torch.Tensor]) -> None:
    x_TK = torch.randn(5, K)
    prune("looking", Piece(piece().source, slice(8, 16)), lambda: x_TK)
    assert torch.equal(looking[0], x_TK[:, 8:16])
    prune("magnitude", piece(), lambda: pytest.fail("nobody looks at them"))


def test_one_that_looks_at_them_unsaid_is_told_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peeking(Pruner):
        def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
            return w_RK * self.x_TK.norm(dim=0), w_RK > 0

    monkeypatch.setitem(PRUNERS._entries, "peeking", Peeking)
    with pytest.raises(InputError, match="peeking: Peeking reads x_TK: let it say needs_inputs = True"):
        prune("peeking", piece())


@pytest.mark.parametrize(
    ("x_TK", "message"),
    [
        (None, r"pruner looking needs calibration inputs \(T, 72\), and was given none"),
        (torch.ones(5, K + 1), r"needs floating-point calibration inputs \(T, 72\), T at least 1; got .*\(5, 73\)"),
        (torch.ones(0, K), r"T at least 1; got torch.float32 \(0, 72\)"),
        (torch.ones(K), r"got torch.float32 \(72,\)"),
        (torch.ones(5, K).long(), r"needs floating-point calibration inputs .* got torch.int64 \(5, 72\)"),
        (torch.full((5, K), torch.nan), "calibration inputs holds nan at row 0, column 0: pruner looking needs finite"),
        (torch.ones(5, K, device="meta"), "needs calibration inputs on cpu, where W is; got some on meta"),
    ],
)
def test_other_inputs_are_refused(looking: list[torch.Tensor], x_TK: torch.Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune("looking", piece(), None if x_TK is None else lambda: x_TK)
    assert not looking


def test_an_unknown_pruner_is_named_with_the_choices() -> None:
    with pytest.raises(UnknownName, match=r"no pruner is named 'magnitud'. Did you mean 'magnitude'\?"):
        prune("magnitud", piece())
    with pytest.raises(InputError, match="the pruner 'magnitude' takes permute, not 'alpha'"):
        prune("magnitude:alpha=2", piece())
