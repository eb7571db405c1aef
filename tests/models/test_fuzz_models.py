"""Any model, row and calibration, any text and any embeddings: what comes out is right, or refused in a sentence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import matrix, seeds, specs
from torch import nn

from blockshock.models import NETWORKS, build_network, compress, likeness, text
from blockshock.models.byte_gpt import ByteGPT
from blockshock.models.likeness import spearman
from blockshock.models.wordpiece import WordPiece
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.nn.method_linear import MethodLinear
from blockshock.pruning import PRUNERS

pytestmark = pytest.mark.reliability
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(piece for letter in "abc .," for piece in (letter, f"##{letter}"))]
SPECIAL = st.sampled_from((float("nan"), float("inf"), -float("inf"), 0.0, 1e30))
ROWS = st.sampled_from(
    ("dense_single", "block_shock-gathered-1100", "block_shock", "dtensor_col", "pruned-gathered", "nothing-of-this")
) | st.sampled_from(PRUNERS.names()).map(lambda name: f"pruned-auto-{name}")


@examples(100)
@given(data=st.data(), widths=st.lists(st.sampled_from((2, 4, 6, 8, 12)), max_size=4), seed=seeds)
def test_any_model_is_compressed_or_left_as_it_was(data: Any, widths: list[int], seed: int) -> None:
    shapes = list(pairwise(widths))
    model = nn.Sequential(*(nn.Sequential(nn.Linear(K, N), nn.Tanh()) for K, N in shapes))
    before = dict(model.named_modules())
    calls = [matrix(data.draw(st.integers(0, 5)), widths[0], torch.float32, seed) for _ in range(2) if shapes]
    if data.draw(st.booleans()) and calls and calls[0].numel():
        calls[0].view(-1)[0] = data.draw(SPECIAL)
    keep, frozen = data.draw(st.integers(0, 3)), data.draw(st.booleans())
    row = data.draw(ROWS)
    where = lambda name, linear: not name.startswith(f"{keep}.")  # noqa: E731
    found = attempt(compress, model, row, calls, where, frozen=frozen)
    now = dict(model.named_modules())
    if found is None:
        assert all(now[name] is module for name, module in before.items())
        return
    assert {*found.replaced, *found.left} == {f"{index}.0" for index in range(len(shapes))}
    kind = FrozenLinear if frozen else MethodLinear
    assert all(isinstance(now[name], kind) for name in found.replaced)
    assert all(now[name] is before[name] for name in found.left)
    with torch.inference_mode():
        assert model(matrix(3, widths[0], torch.float32, seed)).shape == (3, widths[-1])


@examples(100)
@given(row=ROWS, N=st.sampled_from((1, 4, 6)), K=st.sampled_from((3, 4, 8)), seed=seeds)
def test_a_frozen_layer_is_one_that_trains(row: str, N: int, K: int, seed: int) -> None:
    linear, x = nn.Linear(K, N), matrix(5, K, torch.float32, seed)
    if row in ("block_shock", "pruned-gathered"):  # in training another mask is usual
        return
    layer, right = (attempt(kind, linear, row, inputs=x) for kind in (FrozenLinear, MethodLinear))
    assert (layer is None) == (right is None)
    if layer is not None and right is not None:
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), right(x))


@examples(200)
@given(text=st.text() | st.text("abc .,\t\0é中"), longest=st.integers(2, 30))
def test_any_text_has_tokens(text: str, longest: int) -> None:
    ids = WordPiece(PIECES)(text, longest)
    assert (ids[0], ids[-1]) == (2, 3)
    assert len(ids) <= longest
    assert set(ids[1:-1]) <= {*range(len(PIECES))} - {0, 2, 3}


@examples(100)
@given(data=st.data(), B=st.integers(1, 6), seed=seeds)
def test_likeness_lies_in_its_range_or_is_no_number(data: Any, B: int, seed: int) -> None:
    dense_BD, found_BD = matrix(B, 4, torch.float32, seed), matrix(B, 4, torch.float32, seed + 1)
    if data.draw(st.booleans()):
        found_BD[data.draw(st.integers(0, B - 1)), 0] = data.draw(SPECIAL)
    for value in likeness(found_BD, dense_BD).values():
        assert value != value or -1.000001 <= value <= 1.000001
    assert spearman(dense_BD.view(-1), dense_BD.view(-1)) == pytest.approx(1)


@examples(50)
@given(sizes=st.tuples(*3 * [st.integers(-1, 5)]), width=st.sampled_from((0, 32, 64, 96, 128)), seed=seeds)
def test_any_sizes_make_a_model_of_bytes_or_are_refused(sizes: tuple[int, int, int], width: int, seed: int) -> None:
    layers, heads, context = sizes
    model = attempt(ByteGPT, width, layers, heads, context)
    if model is not None:
        windows_WT = torch.randint(256, (3, context + 1), generator=torch.Generator().manual_seed(seed))
        found = text.bits(model.draw(seed), windows_WT, batch=2)
        assert found.shape == (3 * context,)
        assert found.mean() < 10


@examples(100)
@given(length=st.integers(0, 60), context=st.integers(1, 20), B=st.integers(1, 4), seed=seeds)
def test_any_text_is_cut_into_windows_or_is_too_short(length: int, context: int, B: int, seed: int) -> None:
    text_N, stream = torch.arange(length, dtype=torch.uint8), torch.Generator().manual_seed(seed)
    cut_WT = attempt(text.windows, text_N, context)
    drawn_BT = attempt(text.drawn_windows, text_N, B, context, stream)
    assert (cut_WT is None) == (drawn_BT is None) == (length <= context)
    if cut_WT is not None and drawn_BT is not None:
        assert cut_WT.shape == ((length - 1) // context, context + 1)
        assert drawn_BT.shape == (B, context + 1)
        assert (drawn_BT.diff() == 1).all()


@examples(50)
@given(read=st.binary(max_size=20))
def test_no_other_text_is_taken_for_the_corpus(read: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "other.txt"
    path.write_bytes(read)
    assert attempt(text.corpus, path) is None


@examples(200)
@given(spec=specs(NETWORKS.names()))
def test_a_network_is_made_or_refused(spec: str) -> None:
    attempt(build_network, spec)
