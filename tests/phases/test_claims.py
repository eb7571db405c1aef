"""A hypothesis is a class: what it must say, what it is about, and which rivals it finds."""

from __future__ import annotations

import pytest

from blockshock import HYPOTHESES, METHODS, Hypothesis, best_of
from blockshock.errors import InputError, UnknownName
from blockshock.methods import Layer, Method, Promise, Role, Span
from blockshock.phases import Case, alternatives, claims, network_case, network_claims
from blockshock.plugin.records import describe_case

CASE = Case("block_shock", {"kernel": "gathered", "mask": "1100"}, "gaussian", 64, 64, 4, "bf16")
DENSE = ["dense_single", "dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col"]


def case_of(method: str) -> Case:
    return Case(method, {}, "gaussian", 64, 64, 4, "bf16")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods and a hypothesis of a user's."""
    for registry in (METHODS, HYPOTHESES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr("blockshock.registry._extensions", [])

    @METHODS.register("slim")
    class Slim(Method):
        span, promise = Span.ONE, Promise.OWN_WEIGHTS

        def __init__(self, layer: Layer, group: object, rank: int = 1) -> None: ...

    @METHODS.register("theirs")
    class Theirs(Slim):
        role = Role.RIVAL

    @METHODS.register("compiled")
    class Compiled(Method):
        span, role = Span.ONE, Role.RIVAL

    @HYPOTHESES.register("mine")
    class Mine(Hypothesis):
        """A method with weights of its own
        beats those of others.

        This is not part of what it says.
        """

        @staticmethod
        def subject(kind: type[Method]) -> bool:
            return kind.promise is Promise.OWN_WEIGHTS and kind.role is Role.SUBJECT

        rivals = best_of(promise=Promise.OWN_WEIGHTS)


def test_the_statements_are_what_saved_runs_say() -> None:
    said = [HYPOTHESES.get(name).statement for name in HYPOTHESES.names()[:6]]
    assert said == [
        "forward, it is faster than the best dense alternative on these GPUs",
        "it stands worse against tensor parallelism in training than forward",
        "forward, it is faster than the ablation that multiplies the zeros",
        "forward, it is faster than one dense GPU",
        "a training step is faster than the best dense alternative's",
        "a pruned layer is faster than the dense one on one GPU",
    ]


def test_a_block_sparse_row_is_set_beside_the_dense_one_on_one_device() -> None:
    row = case_of("block_sparse").picking(block_kernel="reference", block_mask="blocks:size=64:level=0.9")
    (claim,) = claims([row], [], ranks=2)
    assert (claim.name, [rival.label for rival in claim.rivals]) == ("H8", ["dense_single"])
    assert claim.group == "H8 block_sparse reference blocks:size=64:level=0.9 against the best dense one on one device"
    assert claim.hypothesis.statement == "a block-sparse layer is faster than the dense one on one GPU"


def test_a_row_in_a_format_is_set_beside_the_dense_one_in_that_format() -> None:
    row = case_of("pruned").picking(kernel="reference", pruner="magnitude", format="int8")
    pays, in_few_bits = claims([row], [], ranks=1)
    assert (pays.name, [rival.label for rival in pays.rivals]) == ("H6", ["dense_single int8", "dense_single"])
    assert (in_few_bits.name, [rival.label for rival in in_few_bits.rivals]) == ("H7", ["dense_single int8"])
    assert in_few_bits.group == "H7 pruned reference magnitude int8 against the best dense one on one device"
    assert [claim.name for claim in claims([row.picking(format=None)], [], ranks=1)] == ["H6"]


def test_a_pruned_row_in_a_format_must_beat_the_dense_one_in_any() -> None:
    """int8 that is dense may be slow: who can do with what pruning loses can do with fp8."""
    rows = [case_of("pruned").picking(kernel="reference", pruner="magnitude", format=name) for name in ("int8", "fp8")]
    by_row = {(claim.name, claim.case.pick("format")): claim.rivals for claim in claims(rows, [], ranks=1)}
    labels = {claim: {rival.label for rival in rivals} for claim, rivals in by_row.items()}
    every = {"dense_single", "dense_single int8", "dense_single fp8"}
    assert labels["H6", "int8"] == labels["H6", "fp8"] == every
    assert labels["H7", "int8"] == {"dense_single int8"}
    dense = claims([CASE.picking(format=name) for name in ("int8", "fp8")], [], ranks=2)
    of_int8 = {rival.label for claim in dense if claim.case.pick("format") == "int8" for rival in claim.rivals}
    assert "dense_single int8" in of_int8
    assert "dense_single fp8" not in of_int8, "two halves lose nothing but what their format does"


def test_an_ablation_without_a_format_is_no_rival_of_a_row_in_one() -> None:
    names = {claim.name for claim in claims([CASE.picking(format="int8")], [], ranks=2)}
    assert names == {"H1", "H4"} == {claim.name for claim in claims([CASE], [], ranks=2)} - {"H3"}
    (first, *_) = claims([CASE.picking(format="int8")], [], ranks=2)
    assert {"dense_tp_row int8", "dense_tp_row", "dtensor_row"} <= {rival.label for rival in first.rivals}


def test_of_a_network_each_row_that_is_asked_about_is_set_beside_the_network_as_it_is() -> None:
    int8 = {"format": "int8"}
    rows = {"pruned": {"kernel": "auto"} | int8, "dense_single": int8, "pruned_dense": {}}
    cases = [network_case(*row, "vit_b:blocks=2:width=64", "mlp", 2, "fp32", 0) for row in rows.items()]
    (claim,) = network_claims(cases)
    assert claim.id == "H9-pruned-auto-int8-vit_b:blocks=2:width=64-mlp-B2-fp32"
    assert [rival.id for rival in claim.rivals] == ["dense_single-vit_b:blocks=2:width=64-mlp-B2-fp32"]
    assert claim.hypothesis.statement == "a whole network gains at least half of what its layers gain"
    assert "H9" not in {claim.name for claim in claims(cases, cases, ranks=2)}, "of layers there is none"


def test_a_hypothesis_about_what_is_not_there_makes_no_claim() -> None:
    assert {claim.name for claim in claims([CASE], [], ranks=2)} == {"H1", "H3", "H4"}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_rivals_of_one_device_are_those_of_one_device(ranks: int) -> None:
    pruned = CASE.of("pruned").picking(kernel="auto", pruner="magnitude")
    (pays, *others) = claims([pruned, case_of("theirs")], [], ranks)
    assert [rival.id for rival in pays.rivals] == [
        f"{name}-gaussian-N64-K64-B4-bf16" for name in ("dense_single", "compiled")
    ]
    assert pays.id == "H6-pruned-auto-magnitude-gaussian-N64-K64-B4-bf16"
    assert pays.group == "H6 pruned auto magnitude against the best dense one on one device"
    (mine,) = claims([case_of("slim:rank=2"), case_of("theirs")], [], ranks)
    assert {claim.name for claim in others} == {mine.name} == {"mine"}
    assert {rival.method for rival in mine.rivals} == {"theirs", "torch_semi_structured"}
    assert mine.id == "mine-slim:rank=2-gaussian-N64-K64-B4-bf16"
    assert mine.hypothesis.statement == "a method with weights of its own beats those of others"
    assert mine.group == "mine slim:rank=2 against the best rival (own weights)"


@pytest.mark.usefixtures("registered")
def test_a_rival_that_is_added_is_one_of_the_best_there_is() -> None:
    (first, *_) = claims([CASE], [], ranks=2)
    assert [rival.method for rival in first.rivals] == [*DENSE, "compiled"]


def test_rivals_that_are_asked_for_with_parameters_are_tried_too() -> None:
    asked = ["dense_single:transposed=yes", "dense_tp_row:transposed=yes", "pruned", "dense_tp_col"]
    (first, *_) = claims([CASE, *map(case_of, asked)], [], ranks=2)
    assert [rival.method for rival in first.rivals] == [*DENSE, *asked[:2]]
    (pays, *_) = claims([case_of(asked[0]), CASE.of("pruned").picking(kernel="auto", pruner="magnitude")], [], ranks=1)
    assert [rival.method for rival in pays.rivals] == ["dense_single", asked[0]]


@pytest.mark.usefixtures("registered")
def test_rows_say_what_their_method_is() -> None:
    wanted = {"role": "subject", "promise": "dense", "span": "group", "picks": {"kernel": "gathered", "mask": "1100"}}
    assert describe_case(0, CASE, "cpu", 2).items() >= wanted.items()
    said = describe_case(0, case_of("theirs"), "cpu", 1)
    assert said.items() >= {"role": "rival", "promise": "own weights", "span": "one", "picks": {}}.items()
    plain = {str, int, bool, type(None), dict}
    assert {type(value) for value in said.values()} <= plain, "workers of pytest-xdist send plain types alone"


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"subject": "mine", "rivals": "theirs"}, "no docstring"),
        ({"__doc__": " ", "subject": "mine", "rivals": "theirs"}, "no docstring"),
        ({"__doc__": "It pays.", "subject": "mine"}, "no rivals"),
        ({"__doc__": "It pays.", "rivals": "theirs"}, "no subject"),
        ({"__doc__": "It pays.", "subject": "a", "rivals": ("b",)}, r"rivals are a method's name or best_of.*\('b',\)"),
        ({"__doc__": "It pays.", "subject": "a", "rivals": "b", "passes": ("backward",)}, r"got \('backward',\)"),
        ({"__doc__": "It pays.", "subject": "a", "rivals": "b", "passes": "forward"}, "got 'forward'"),
        ({"__doc__": "It pays.", "subject": "a", "rivals": "b", "passes": ("network",)}, "'dense_single', .*got 'b'"),
    ],
)
def test_what_says_too_little_is_refused(parts: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=f"Wanting.*{says}"):
        type("Wanting", (Hypothesis,), parts)


@pytest.mark.usefixtures("registered")
def test_a_rival_that_nobody_registered_is_named_with_the_choices() -> None:
    @HYPOTHESES.register("misspelt")
    class Misspelt(Hypothesis):
        """It pays."""

        subject, rivals = "block_shock", "dense_singel"

    with pytest.raises(UnknownName, match="Did you mean 'dense_single'"):
        list(claims([CASE], [], ranks=2))


@pytest.mark.usefixtures("registered")
def test_a_subject_that_nobody_registered_is_named_with_the_choices() -> None:
    @HYPOTHESES.register("vanished")
    class Vanished(Hypothesis):
        """It pays."""

        subject, rivals = "prund", best_of()

    with pytest.raises(UnknownName, match="Did you mean 'pruned'"):
        list(claims([CASE], [], ranks=2))


def test_a_row_stands_beside_the_dense_ones_of_what_it_runs_on() -> None:
    assert set(alternatives("block_shock")) == set(DENSE)
    assert alternatives("pruned") == alternatives("torch_semi_structured:compiled=yes") == ("dense_single",)
    assert set(alternatives("dense_single")) == set(DENSE) - {"dense_single"}
