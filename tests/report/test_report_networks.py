"""Whole networks: time beside what their layers take of it, what they can gain at best, and what they are like."""

from __future__ import annotations

import pytest
from rows import Info, checked, gained, networked, run_of, tables, timed

from blockshock.report.again import commands
from blockshock.report.answer import answer, verdict_table
from blockshock.report.comparison import comparison
from blockshock.report.networks import beside, network_lines
from blockshock.saved.schema import unfit
from blockshock.saved.sections import section_of

DENSE: Info = {"role": "rival", "promise": "dense", "span": "one", "ranks": 1}
OURS: Info = {"role": "subject", "promise": "own weights", "span": "one", "ranks": 1}
PAIR: Info = {"first": [[1.0], [1.0]], "second": [[1.0], [1.0]], "pilot": 2}
WANDA, ALPS, RANDOM = (f"pruned auto {pruner}" for pruner in ("wanda", "alps", "random"))


def like(cosine: float) -> Info:
    return {"cosine": cosine, "least_cosine": cosine - 0.1, "spearman": cosine + 0.01}


def rows(**more: object) -> list[Info]:
    return [
        networked("dense_single", 10.0, 8.0, like(1.0), **DENSE, **more),
        networked(WANDA, 8.0, 5.6, like(0.75), **OURS, **more),
        networked(ALPS, 8.1, 5.6, like(0.91), **OURS, **more),
        networked(RANDOM, 9.0, 5.6, like(0.99), **OURS, **more),
    ]


def test_they_are_a_section_of_their_own_and_fit() -> None:
    assert {section_of(row) for row in rows()} == {"networks"}
    assert [unfit(row) for row in rows()] == [None] * 4
    assert unfit(networked(ALPS, 1.0, 0.5, {"cosine": 0.9}, **OURS)) == "likeness"


def test_the_table_has_time_and_likeness_side_by_side() -> None:
    table = tables(rows())["Time and likeness"]
    assert table.section == "networks"
    first, *_, last = table.texts()
    assert first == [
        *("minilm", "blocks", "8", "bf16", WANDA, "8.0000", "0.80", "5.6000", "0.70", "80%", "0.20"),
        *("–", "3.0", "5.0", "0.750", "0.650", "0.760", "–", "–"),
    ]
    assert last[4:7] == ["dense_single", "10.0000", "1.00"]
    assert "Time over the best dense" not in tables(rows()), "they are no layers"


def test_of_a_language_model_it_says_bits_per_byte() -> None:
    lost = lambda added: {"bits_per_byte": 1.5 + added, "added_bits_per_byte": added}  # noqa: E731
    found = [row | {"likeness": lost(1 - row["likeness"]["cosine"])} for row in rows(network="lm")]
    assert [unfit(row) for row in found] == [None] * 4
    for odd in ({"bits_per_byte": 1.5}, lost(0.1) | {"cosine": 1.0}, {"other": 1.0}, []):
        assert unfit(found[0] | {"likeness": odd}) == "likeness"
    first, *_ = tables(found)["Time and likeness"].texts()
    assert first[-5:] == ["–", "–", "–", "1.750", "+0.250"]
    (line,) = network_lines(run_of(found))
    assert ALPS in line, "of the fastest the one that loses least"
    assert line.endswith("; loses 0.090 bits per byte, 1.590 in place of 1.500")
    broken = [row | ({"likeness": lost(float("nan"))} if row["label"] == ALPS else {}) for row in found]
    assert WANDA in next(network_lines(run_of(broken)))


def test_the_answer_names_of_the_fastest_the_one_that_is_most_alike() -> None:
    (line,) = network_lines(run_of(rows()))
    assert line == (
        f"minilm, all linear layers of its blocks (B = 8, bf16): {ALPS}, time ÷ dense 0.81; these layers alone 0.70, "
        "80% of the dense pass: at best 0.20; the whole gains 55% of what they gain; cosine with the dense embeddings "
        "0.910, Spearman 0.920"
    )
    assert line in answer(run_of(rows()))
    assert not list(network_lines(run_of([timed("dense_single", 64, 4, 1.0)])))


def test_without_the_network_as_it_is_it_says_what_to_add() -> None:
    dense, *ours = rows()
    in_few_bits = dense | {"label": "dense_single int8", "promise": "own weights"}
    for infos in ours, [in_few_bits, *ours]:
        (line,) = network_lines(run_of(infos))
        assert line.startswith(
            "minilm, all linear layers of its blocks (B = 8, bf16): nothing that is asked about was "
        )
        assert line.endswith(": add a dense row in format plain (a dense one in --methods, plain in --formats)")
    assert not list(network_lines(run_of([dense]))), "nothing was asked"


@pytest.mark.parametrize(("whole", "layers"), [(10.0, 5.6), (8.0, 8.0), (12.0, 9.0)])
def test_what_gains_nothing_has_no_share_of_a_gain(whole: float, layers: float) -> None:
    dense, row = networked("dense_single", 10.0, 8.0, **DENSE), networked(ALPS, whole, layers, **OURS)
    assert beside(row, [dense, row]).kept is None


def test_each_network_part_batch_and_dtype_stands_by_itself() -> None:
    drawn = [row | {"likeness": {}} for row in rows(network="vit_b")]
    more = rows() + rows(where="mlp") + rows(B=64) + rows(dtype="fp16") + drawn
    told = [line.partition(": ")[0] for line in network_lines(run_of(more))]
    assert told == [
        "minilm, all linear layers of its blocks (B = 8, bf16)",
        "minilm, those of its feed-forward parts (B = 8, bf16)",
        "minilm, all linear layers of its blocks (B = 64, bf16)",
        "minilm, all linear layers of its blocks (B = 8, fp16)",
        "vit_b, all linear layers of its blocks (B = 8, bf16)",
    ]
    assert "cosine" not in list(network_lines(run_of(more)))[-1]


def test_without_the_dense_network_beside_it_a_row_is_shown_and_compared_with_nothing() -> None:
    alone = [networked(ALPS, 8.0, 5.6, **OURS)]
    assert not any("time ÷ dense" in line for line in network_lines(run_of(alone)))
    assert tables(alone)["Time and likeness"].texts()[0][6] == "–"
    untimed = networked(ALPS, 8.0, 5.6, like(0.9), **OURS, timing="none")
    for name in ("p50_ms", "p95_ms", "alone"):
        del untimed[name]
    assert unfit(untimed) is None
    assert tables([untimed])["Time and likeness"].texts()[0][-5:-2] == ["0.900", "0.800", "0.910"]


def test_a_row_that_a_check_found_wrong_is_not_the_fastest() -> None:
    picks = {"kernel": "auto", "pruner": "alps"}
    wrong = checked(ALPS, error_ratio=1e3, status="wrong", **OURS, picks=picks, method="pruned")
    found = [row | ({"picks": picks} if row["label"] == ALPS else {}) for row in rows()]
    (line,) = network_lines(run_of([wrong, *found]))
    assert WANDA in line


def test_a_verdict_on_a_network_names_both_ratios_and_the_loss() -> None:
    found = [gained(ALPS, 0.8, 0.5, like(0.91), **OURS), gained(ALPS, 0.6, 0.5, like(0.91), where="mlp", **OURS)]
    assert [unfit(row) for row in found] == [None, None]
    (table,) = comparison(run_of(found).records)
    assert [column.name for column in table.columns] == [
        *("network", "where", "B", "dtype", "rival", "÷ half gained", "95 % interval", "answer"),
        *("whole", "layers", "1 − cosine"),
    ]
    assert table.texts()[0][:6] == ["minilm", "blocks", "8", "bf16", "dense_single", "1.200"]
    first, second = (row[7:] for row in table.texts())
    assert (first, second) == (["no §", "0.800", "0.500", "0.090"], ["yes", "0.600", "0.500", "0.090"])
    assert any(note.startswith("÷ half gained: time of a pass over that of one") for note in table.notes)
    summary = verdict_table(run_of(found))
    assert summary is not None
    assert summary.texts() == [
        [
            *("it gains half", ALPS, "no at 1, yes at 1", "2"),
            "÷ half gained: 1.05, 0.90–1.20; whole 0.70, 0.60–0.80; layers 0.50",
            *("0.09 by 1 − cosine", "dense_single"),
        ]
    ]


def test_the_summary_names_of_several_rows_the_one_that_is_the_fastest_everywhere() -> None:
    found = [gained(label, whole, 0.5, **OURS) for label, whole in ((WANDA, 0.9), (ALPS, 0.8))]
    there = [gained(label, whole, 0.5, **OURS, where="mlp") for label, whole in ((WANDA, 0.8), (ALPS, 0.9))]
    for infos, named, points in ((found, ALPS, "1"), ([*found, *there], "pruned", "2")):
        summary = verdict_table(run_of(infos))
        assert summary is not None
        ((_, of, _, told, *_),) = summary.texts()
        assert (of, told) == (named, f"{points}, the fastest of 2 rows")


def test_of_a_language_model_a_verdict_names_the_bits_that_it_adds() -> None:
    bits = {"bits_per_byte": 2.2, "added_bits_per_byte": 0.21}
    of_lm = gained(ALPS, 0.8, 0.5, bits, network="lm", workload="lm", **OURS)
    (table,) = comparison(run_of([gained(ALPS, 0.8, 0.5, like(0.91), **OURS), of_lm]).records)
    assert [column.name for column in table.columns][-2:] == ["1 − cosine", "added bits/byte"]
    assert [row[-2:] for row in table.texts()] == [["0.090", "–"], ["–", "0.210"]]


def test_drawn_weights_lose_nothing_that_could_be_told() -> None:
    (table,) = comparison(run_of([gained(ALPS, 0.8, 0.5, **OURS)]).records)
    assert [column.name for column in table.columns][-2:] == ["whole", "layers"]
    assert unfit(gained(ALPS, 0.8, 0.5, {"cosine": "near"}, **OURS)) == "likeness"
    assert unfit(gained(ALPS, 0.8, 0.5, **OURS) | {"blocks": {"network": PAIR, "forward": PAIR}}) == "blocks"


def test_what_is_measured_again_of_networks_is_measured_in_networks() -> None:
    picked = {"picks": {"kernel": "auto", "pruner": "wanda"}, "kernel": "auto", "pruner": "wanda"}
    (command,) = commands(run_of([rows()[1] | picked, gained(WANDA, 0.8, 0.5, **OURS) | picked]))
    told = "--batches 8 --dtype bf16 --networks minilm --where blocks --kernels auto --pruners wanda --seed 0 --ranks 1"
    assert command == f"pytest tests/test_models.py -m bench {told}"


def test_what_could_not_be_compiled_is_said_once() -> None:
    found = rows(not_compiled="Unsupported: no") + rows(where="mlp", not_compiled="Unsupported: no")
    notes = tables(found)["Time and likeness"].notes
    told = f"not compiled: dense_single, {WANDA}, {ALPS}, {RANDOM}: Unsupported: no"
    assert notes.count(told) == 1
