"""What recipes learn: loss beside dense training of the same seeds, steps beside its steps, and what follows."""

from __future__ import annotations

import math
import re

import pytest
from rows import Info, learned, run_of, tables, timed

from blockshock.report.across import across
from blockshock.report.again import commands
from blockshock.report.answer import answer
from blockshock.report.learning import beside, learning_lines
from blockshock.report.plots import drawings
from blockshock.saved.schema import unfit
from blockshock.saved.sections import section_of

DENSE = learned("dense", [2.0, 2.1, 1.9], 10.0, replaced=0)


def recipe(name: str = "fst", lost: float = 0.005, step: float = 0.8, scatter: float = 0.001, **more: object) -> Info:
    bits = [2.0 + lost, 2.1 + lost + scatter, 1.9 + lost - scatter]
    return learned(name, bits, 10.0 * step, **more)


def line(*rows: Info) -> str:
    (found,) = learning_lines(run_of([DENSE, *rows]))
    return found.partition(": ")[2]


def test_they_are_a_section_of_their_own_and_fit() -> None:
    assert section_of(DENSE) == "learning"
    assert unfit(DENSE) is None
    for name, odd in (("curve_bits", []), ("curve_seconds", [[]]), ("step_ms", [0.0]), ("unit", 1), ("steps", 0)):
        assert unfit(DENSE | {name: odd}) == name
    assert unfit({name: value for name, value in DENSE.items() if name != "last_bits"}) == "last_bits"


def test_differences_are_seed_by_seed() -> None:
    found = beside(recipe(), DENSE)
    assert found.lost == pytest.approx(0.005)
    assert found.high is not None
    assert found.high - found.lost == pytest.approx(4.303 * 0.001 / math.sqrt(3), rel=1e-3), "t of two degrees"
    assert found.step == pytest.approx(0.8)
    assert (found.faster, found.as_good) == ("yes", "yes")


@pytest.mark.parametrize(
    ("lost", "step", "scatter", "faster", "as_good"),
    [
        (0.005, 1.2, 0.001, "no", "yes"),
        (0.05, 0.8, 0.001, "yes", "no"),
        (0.02, 0.8, 0.05, "yes", "undecided"),
        (0.02, 1.0, 0.0, "no", "yes"),
        (float("nan"), 0.8, 0.0, "yes", "no"),
        (float("inf"), 0.8, 0.0, "yes", "no"),
    ],
)
def test_each_claim_has_its_answer(lost: float, step: float, scatter: float, faster: str, as_good: str) -> None:
    found = beside(recipe(lost=lost - 1e-9, step=step, scatter=scatter), DENSE)
    assert (found.faster, found.as_good) == (faster, as_good)


def test_at_equal_time_the_quicker_one_is_done_and_the_other_is_not() -> None:
    """A recipe of half the time is compared with what dense training has reached half way: 5 of 8 to 2 bits."""
    found = beside(learned("fst", [2.1], 5.0), learned("dense", [2.0], 10.0))
    assert found.at_equal_time == pytest.approx(2.1 - 5.0)
    slower = beside(learned("fst", [2.0], 20.0), learned("dense", [2.0], 10.0))
    assert slower.at_equal_time == pytest.approx(5.0 - 2.0)


def test_one_seed_has_no_interval() -> None:
    found = beside(learned("fst", [2.1], 5.0), learned("dense", [2.0], 10.0))
    assert (found.ratio, found.low, found.faster, found.as_good) == (None, None, "one seed", "one seed")
    (said,) = learning_lines(run_of([learned("dense", [2.0], 10.0), learned("fst", [2.1], 5.0)]))
    assert "whether sparse training pays, one seed does not say. fst: step ÷ dense 0.500, +0.100 bits per byte," in said


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([recipe()], "sparse training pays: fst makes faster steps and loses at most 0.02 bits per byte"),
        ([recipe(step=1.2)], "sparse training does not pay: no recipe's step is faster than the dense one"),
        ([recipe(lost=0.1)], "sparse training pays only by the clock: fst loses more than 0.02 bits per byte, and is"),
        ([recipe(lost=3.0), recipe("ste", step=1.2)], "sparse training does not pay: no recipe makes faster steps and"),
        ([recipe(lost=3.0, scatter=9.0)], "undecided whether a recipe makes faster steps and loses at most 0.02 bits"),
    ],
)
def test_the_answer_says_in_words_whether_it_pays(rows: list[Info], says: str) -> None:
    assert line(*rows).startswith(says)


def test_of_a_task_it_names_the_quickest_and_the_nearest() -> None:
    rows = [recipe(lost=0.1), recipe("ste", step=1.2), recipe("s_ste", lost=0.3, step=1.3)]
    said = answer(run_of([DENSE, *rows]))
    (told,) = (one for one in said if one.startswith("Learning"))
    assert told.startswith("Learning text, 100 steps of 32768 bytes, bf16: ")
    assert "fst: step ÷ dense 0.800 (0.800 – 0.800), +0.100 bits per byte (+0.098 – +0.102), at equal time" in told
    assert "ste: step ÷ dense 1.200" in told
    assert "s_ste" not in told
    assert not list(learning_lines(run_of([timed("dense_single", 64, 4, 1.0)])))
    assert not list(learning_lines(run_of(rows))), "beside nothing, nothing is said"


def test_the_table_has_loss_and_time_side_by_side() -> None:
    table = tables([recipe(), DENSE, recipe(workload="digits", unit="image")])["Loss and time"]
    assert table.section == "learning"
    first, second, third = table.texts()
    assert first[:6] == ["text", "bf16", "dense", "100", "3", "2.000"]
    assert second[2:] == [
        *("fst", "100", "3", "2.005", "+0.005", "0.002", "8.08", "0.800", "-1.175", "15.00%", "yes", "yes"),
    ]
    assert third[0] == "digits"
    assert third[6:8] == ["–", "–"], "there is no dense one of that task"
    assert any("text: of some text; as good (H11): not more than 0.02 bits per byte" in note for note in table.notes)


def test_a_recipe_that_is_wrong_does_not_speak_for_sparse_training() -> None:
    wrong = recipe("ste", step=0.1, status="wrong", same_again=False)
    assert "fst" in line(wrong, recipe())
    assert "ste:" not in line(wrong, recipe())


def test_curves_are_drawn_over_steps_and_over_seconds() -> None:
    slow = recipe("ste", step=2.0)
    drawn = {one.plot.name: one.figure for one in drawings(run_of([DENSE, slow]))}
    by_step, by_second = drawn["curves"].panels
    assert (by_step.says, by_second.says) == (
        "text, 100 steps: bits per byte over steps",
        "text, 100 steps: bits per byte over seconds of training",
    )
    ends = [[float(x) for x in re.findall(r'<circle[^>]*cx="([\d.]+)"', panel.body)] for panel in (by_step, by_second)]
    assert ends[0][0] == ends[0][1]
    assert max(ends[1]) - 44 == pytest.approx(2 * (min(ends[1]) - 44), rel=0.02), "one takes twice as long"
    quick = run_of([learned("dense", [2.0], 1.0), learned("fst", [2.0], 0.5)])
    (short,) = (one.figure for one in drawings(quick) if one.plot.name == "curves")
    assert ">0.05<" in short.panels[1].body, "of seconds, however few"
    broken = DENSE | {"curve_bits": [[float("nan"), 2.0]], "label": "recipe s_ste"}
    assert "s_ste" not in str([one.figure for one in drawings(run_of([DENSE, broken]))])


def test_a_recipe_that_beats_eager_training_alone_does_not_pay() -> None:
    compiled = DENSE | {"compiled_step_ms": 7.07}
    assert unfit(compiled) is None
    (said,) = learning_lines(run_of([compiled, recipe(step=0.8)]))
    assert "sparse training does not pay: fst beats eager dense training, and not compiled. fst: step ÷ dense" in said
    assert said.endswith("Compiled, a dense step takes 0.700 of the eager one's time")
    (said,) = learning_lines(run_of([compiled, recipe(step=0.6)]))
    assert "sparse training pays: fst makes faster steps" in said


def test_steps_of_graphs_are_said_to_be_that_with_eager_ones_beside_them() -> None:
    graphs: Info = {"timing": "cuda_graph", "eager_step_ms": 15.0}
    dense = DENSE | graphs | {"compiled_step_ms": 7.07}
    assert unfit(dense) is None
    assert unfit(dense | {"eager_step_ms": -1.0}) == "eager_step_ms"
    (said,) = learning_lines(run_of([dense, recipe(step=0.8, **graphs | {"eager_step_ms": 24.0})]))
    assert "fst beats dense training as it is, and not compiled. fst: step ÷ dense" in said
    assert said.endswith("Compiled, a dense step takes 0.700 of its time as it is, both as CUDA graphs")
    notes = tables([dense, recipe(**graphs)])["Loss and time"].notes
    assert any(
        "less time than the dense one's, as CUDA graphs, by the device's clock, the whole" in one for one in notes
    )
    assert "ms of an eager step, by a short schedule of its own: text dense 15.00, text fst 15.00" in notes
    assert any("dense one's, eager as it is, the" in one for one in tables([DENSE, recipe()])["Loss and time"].notes)


def test_of_several_tasks_it_says_whether_they_rank_recipes_alike() -> None:
    rows = [DENSE, recipe("fst", lost=0.1), recipe("ste", lost=0.2)]
    images = [row | {"workload": "digits", "unit": "image"} for row in rows]
    *_, last = learning_lines(run_of([*rows, *images]))
    assert last == "What loses least, first (the same order in all tasks): text: fst, ste; digits: fst, ste"
    *_, last = learning_lines(run_of([*rows, images[0], images[1], recipe("ste", 0.05, workload="digits")]))
    assert last == "What loses least, first (not the same order in all tasks): text: fst, ste; digits: ste, fst"
    assert len(list(learning_lines(run_of(rows)))) == 1


def test_runs_beside_each_other_say_that_what_was_learned_is_not() -> None:
    said = "what was learned is not set beside each other: --tables learning has it, of each run"
    learning, timing = run_of([DENSE, recipe()]), run_of([timed("dense_single", 64, 4, 1.0)])
    assert said in across([learning, learning]).notes
    assert said not in across([learning, timing]).notes


def test_commands_that_measure_it_again_ask_for_tasks_and_steps() -> None:
    rows = [DENSE, recipe(), recipe(workload="digits", steps=80), recipe("ste", corpus="lm_corpus.txt")]
    first = "pytest tests/test_learning.py -m bench"
    assert list(commands(run_of(rows))) == [
        f"{first} --tasks text --steps 100 --recipes dense,fst --seed 0 --ranks 1",
        f"{first} --tasks digits --steps 80 --recipes fst --seed 0 --ranks 1",
        f"{first} --tasks text --steps 100 --recipes ste --seed 0 --corpus=lm_corpus.txt --ranks 1",
    ]
