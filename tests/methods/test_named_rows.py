"""Rows by their names: what they read as, what is left out, and which part of a wrong one is said to be wrong."""

from __future__ import annotations

import pytest

from blockshock.errors import BlockShockError, InputError, UnknownName
from blockshock.matrices.named_masks import MASKS
from blockshock.methods import METHODS, Row, parse_row


@pytest.mark.parametrize(
    ("text", "method", "picks"),
    [
        ("dense_single", "dense_single", {}),
        ("block_shock", "block_shock", {}),
        ("block_shock-auto", "block_shock", {"kernel": "auto"}),
        ("block_shock-cusparselt:search=no-tile", "block_shock", {"kernel": "cusparselt:search=no", "mask": "tile"}),
        (
            "pruned-cusparselt:search=no-magnitude",
            "pruned",
            {"kernel": "cusparselt:search=no", "pruner": "magnitude"},
        ),
        (
            "pruned_tp_row-auto-tile_magnitude-masked",
            "pruned_tp_row",
            {"kernel": "auto", "pruner": "tile_magnitude", "storage": "masked"},
        ),
        ("masked_split_dense-1100", "masked_split_dense", {"mask": "1100"}),
        (
            "block_shock-gathered-1100-masked:every=10",
            "block_shock",
            {"kernel": "gathered", "mask": "1100", "storage": "masked:every=10"},
        ),
    ],
)
def test_what_a_name_reads_as(text: str, method: str, picks: dict[str, str]) -> None:
    row = parse_row(text)
    assert (row.method, dict(row.picks), row.name) == (method, picks, text)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("pruned reference magnitude", "pruned-reference-magnitude"),
        ("block_shock gathered 1100 masked:every=10", "block_shock-gathered-1100-masked:every=10"),
        (" block_shock  cusparselt:search=no-tile ", "block_shock-cusparselt:search=no-tile"),
        ("dense_single", "dense_single"),
    ],
)
def test_a_row_is_found_by_its_name_as_the_tables_print_it(label: str, name: str) -> None:
    assert parse_row(label) == parse_row(name)
    assert parse_row(label).name == name


def test_what_a_table_prints_of_each_row_is_its_name() -> None:
    for text in ("block_shock-auto-tile-compressed", "pruned-cusparselt-tile_magnitude", "masked_split_dense-1100"):
        row = parse_row(text)
        assert parse_row(" ".join([row.method, *map(str, row.picks.values())])) == row


def test_the_mark_that_a_table_sets_behind_a_name_is_no_part_of_it() -> None:
    with pytest.raises(InputError, match=r"row 'dtensor_row-‡': '‡' is left over: dtensor_row has no axes"):
        parse_row("dtensor_row ‡")


def test_what_is_left_out_is_what_is_usual_both_ways() -> None:
    assert parse_row("block_shock").completed("cpu").name == "block_shock-auto-1100-compressed"
    assert parse_row("block_shock-reference").completed("cuda").name == "block_shock-reference-tile-compressed"
    assert parse_row("masked_split_dense").completed("cpu").name == "masked_split_dense-1100"
    assert parse_row("pruned-cusparselt").completed("cuda").name == "pruned-cusparselt-tile_magnitude-compressed"
    assert parse_row("dense_tp_col").completed("cpu") == Row("dense_tp_col")


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (
            "block_shok-auto",
            UnknownName,
            "row 'block_shok-auto': its method 'block_shok': .* mean 'block_shock'",
        ),
        ("block_shock fast tile", UnknownName, "row 'block_shock-fast-tile': its kernel 'fast': no kernel is named"),
        ("", UnknownName, "row '': no method is named ''"),
        (
            "block_shock:gain=8",
            InputError,
            "row 'block_shock:gain=8': the method 'block_shock' takes no parameter, not 'gain'",
        ),
        ("block_shock-fast-tile", UnknownName, "its kernel 'fast': no kernel is named 'fast'.* Choices: auto, dense"),
        ("block_shock--tile", UnknownName, "its kernel '': no kernel"),
        (
            "block_shock-cusparselt:serach=no",
            InputError,
            "its kernel 'cusparselt:serach=no': .* takes search, fused, not",
        ),
        ("block_shock-cusparselt:search-tile", InputError, "'cusparselt:search': .* not of the form name=value"),
        ("block_shock-auto-1000", UnknownName, "its mask '1000': no mask is named '1000'"),
        (
            "block_shock-auto-tile-packed",
            UnknownName,
            "'packed' is no storage and no combine and no format.* Choices: of storage compressed, masked; of combine",
        ),
        (
            "pruned-auto-magnitude-fp9",
            UnknownName,
            "row 'pruned-auto-magnitude-fp9': 'fp9' is no storage and no format. Did you mean the format 'fp8'?",
        ),
        ("pruned-auto-magnitude-maskd:every=2", UnknownName, "'maskd' is no .* mean the storage 'masked'?"),
        ("pruned-auto-magnitude-wgmma", UnknownName, "'wgmma' is no storage and no format, but a kernel. Choices: of"),
        ("pruned-auto-magnitude-masked-fp9", UnknownName, "its format 'fp9': no format is named 'fp9'. Did you mean"),
        ("dense_tp_row-fq8", UnknownName, "'fq8' is no combine and no format. Did you mean the format 'fp8'?"),
        ("block_shock-auto-tile-masked:every=x", InputError, "its storage 'masked:every=x': every takes a whole"),
        (
            "block_shock-auto-tile-masked-nccl-int8-adamw",
            InputError,
            "'adamw' is left over: .* takes kernel, mask, storage, combine, format",
        ),
        (
            "pruned-auto-largest",
            UnknownName,
            "its pruner 'largest': no pruner is named 'largest'.* Choices: .*magnitude",
        ),
        (
            "pruned-auto-magnitude:keep=2",
            InputError,
            "its pruner 'magnitude:keep=2': .* takes permute, not 'keep'",
        ),
        ("dtensor_row-auto", InputError, "'auto' is left over: dtensor_row has no axes to pick of"),
        ("dense_single-int4", UnknownName, "its format 'int4': no format is named 'int4'"),
        ("block_shock-", UnknownName, "its kernel ''"),
        (24, InputError, "given by its name, such as 'block_shock-auto', got 24"),
    ],
)
def test_the_wrong_part_of_a_name_is_said(text: str, kind: type[BlockShockError], says: str) -> None:
    with pytest.raises(kind, match=says):
        parse_row(text)


@pytest.fixture
def hyphened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own names may hold hyphens, and begin as others do."""
    monkeypatch.setattr(METHODS, "_entries", {**METHODS._entries, "block_shock-two": METHODS.get("block_shock")})
    monkeypatch.setattr(MASKS, "_entries", {**MASKS._entries, "tile-1": MASKS.get("tile")})


@pytest.mark.usefixtures("hyphened")
def test_names_may_hold_hyphens_and_numbers_a_minus_sign() -> None:
    assert parse_row("block_shock-two-auto-tile-1-masked").picks == {
        "kernel": "auto",
        "mask": "tile-1",
        "storage": "masked",
    }
    with pytest.raises(InputError, match=r"its storage 'masked:every=-1': .* got every=-1"):
        parse_row("block_shock-two-auto-tile-1-masked:every=-1")
    assert parse_row("block_shock-two").method == "block_shock-two"
    assert parse_row("block_shock-auto-tile-compressed").picks["storage"] == "compressed"
