"""Feed-forward blocks in a report: beside the best dense block, each recipe by itself, with what was wrong of it."""

from __future__ import annotations

from rows import Info, run_of, tables, timed, verdict

from blockshock.report.again import commands
from blockshock.report.answer import answer, verdict_table
from blockshock.report.comparison import comparison
from blockshock.saved.schema import unfit
from blockshock.saved.sections import section_of

PLACE: Info = {"phase": 6, "workload": "ffn:act=relu2", "N": 16384, "K": 4096, "ranks": 1, "span": "one", "kind": "ffn"}
DENSE: Info = PLACE | {"role": "rival", "promise": "dense", "method": "dense_single", "picks": {}}


def dense(ms: float) -> list[Info]:
    labels = {"dense_single": ms, "dense_single compiled": ms * 0.9}
    return [timed(label, 64, 4096, part) | DENSE | {"label": label} for label, part in labels.items()]


def of(recipe: str, **more: object) -> Info:
    about = {"role": "subject", "promise": "learns", "method": "recipe", "picks": {"recipe": recipe}, "recipe": recipe}
    return PLACE | about | {"label": f"recipe {recipe}"} | more


def block(recipe: str, ms: float, **more: object) -> Info:
    return timed(f"recipe {recipe}", 64, 4096, ms) | of(recipe, **more)


def paired(recipe: str, ratio: float, **more: object) -> Info:
    """With 10 blocks of one round each."""
    pair = {"ffn": {"first": [[ratio * 1e-3]] * 10, "second": [[1e-3]] * 10, "pilot": 10}}
    rivals = {"dense_single": 2.0, "dense_single compiled": 1.8}
    numbers = {"ratio_low": ratio, "ratio_high": ratio, "blocks": pair, "rivals": rivals, "rival_role": "rival"}
    asked = {"hypothesis": "H10", "statement": "a block is faster", "rival": "dense_single compiled", "kind": "verdict"}
    return verdict(f"recipe {recipe}", 64, 4096, ratio, **numbers, **asked) | of(recipe, **more) | {"kind": "verdict"}


def rows() -> list[Info]:
    return [*dense(2.0), block("activation", 1.5), block("fst", 2.5), paired("activation", 0.8)]


def test_they_are_a_section_of_their_own_and_fit() -> None:
    assert [section_of(row) for row in rows()] == ["ffn"] * 4 + ["verdicts"]
    assert [unfit(row) for row in rows()] == [None] * 5
    assert (
        unfit(PLACE | {"label": "recipe x", "method": "recipe", "dtype": "bf16", "device": "cpu", "B": 4})
        == "worst_weight_share"
    )


def test_each_recipe_has_a_line_beside_the_best_dense_block() -> None:
    _, activation, fst, *_ = answer(run_of(rows()))
    assert activation.startswith(
        "recipe activation, both passes of a feed-forward block: pays at the one point. Time ÷ best dense "
        "(dense_single compiled): 0.80."
    )
    assert "faster at 1" in activation
    assert "does not pay. Time ÷ best dense (dense_single compiled): 1.39." in fst


def test_what_one_recipe_answers_is_not_another_s() -> None:
    table = verdict_table(run_of([*rows(), paired("fst", 1.3)]))
    assert table is not None
    assert [(row[1], row[2]) for row in table.rows] == [("recipe activation", "yes"), ("recipe fst", "no")]


def test_tables_have_times_stages_and_memory() -> None:
    found = tables(rows())
    over = found["Time over the best dense"].texts()
    assert [(row[5], row[8], row[9]) for row in over] == [
        ("recipe activation", "0.80", "dense_single compiled"),
        ("dense_single compiled", "1.00", "dense_single compiled"),
        ("dense_single", "1.11", "dense_single compiled"),
        ("recipe fst", "1.39", "dense_single compiled"),
    ]
    assert {"Time by stage, ms", "Memory of the fullest rank, MiB"} <= found.keys()
    titles = [table.section for table in comparison(run_of(rows()).records)]
    assert "ffn" in titles


def test_a_block_that_was_found_wrong_says_so_and_is_not_counted() -> None:
    wrong = of("activation") | {"status": "wrong", "worst_weight_share": 3.0, "steps": 12, "B": 500, "dtype": "bf16"}
    wrong |= {"device": "cuda", "kind": "trajectory", "mask_faults": ["step 0: ∇x is 0.1 from what the recipe says"]}
    assert unfit(wrong) is None
    lines = answer(run_of([wrong, *rows()]))
    assert lines[0].startswith("WRONG: recipe activation in 1 of 1 check, at ffn:act=relu2 16384×4096 B=500 bf16: ")
    assert not any(line.startswith("recipe activation") for line in lines)


def test_what_is_measured_again_is_named_by_its_width() -> None:
    odd = [block("activation", 1.5, N=14336), *dense(2.0)]
    (command,) = commands(run_of(odd))
    assert command == (
        "pytest tests/test_blocks.py --d 4096x14336,4096 --B 4096 --dtype bf16 --recipes activation --seed 0 --ranks 1"
    )
