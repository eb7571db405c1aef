"""Text as bytes: what is committed is what its hashes say, and what it is cut into, and judged by, is right."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.models import text


def test_the_committed_texts_are_those_whose_hashes_are_committed() -> None:
    about = text.about_texts()["files"]
    for name in (text.HELD_OUT, text.CALIBRATION):
        read = (text.DATA / name).read_bytes()
        assert about[name] == {"sha256": hashlib.sha256(read).hexdigest(), "bytes": len(read)}
        assert bytes(text.committed_text(name).tolist()) == read
    assert about[text.CORPUS]["bytes"] > 5e6


def test_no_paragraph_is_both_calibrated_with_and_held_out() -> None:
    one, other = (
        {" ".join(paragraph.split()) for paragraph in (text.DATA / name).read_text().split("\n\n")}
        for name in (text.HELD_OUT, text.CALIBRATION)
    )
    assert len(one) > 500
    assert not one & other


def test_windows_are_the_text_cut_up() -> None:
    windows_WT = text.windows(torch.arange(100, dtype=torch.uint8), 9)
    assert windows_WT.shape == (11, 10)
    assert (windows_WT[1:, 0] == windows_WT[:-1, -1]).all(), "what is the last of one is the first of the next"
    with pytest.raises(InputError, match="a text of 9 bytes has no window of 9 bytes and the one that follows"):
        text.windows(torch.zeros(9, dtype=torch.uint8), 9)
    stream = torch.Generator().manual_seed(0)
    drawn_BT = text.drawn_windows(torch.arange(100, dtype=torch.uint8), 500, 9, stream)
    assert drawn_BT.shape == (500, 10)
    assert (drawn_BT.diff() == 1).all()
    assert (drawn_BT.min(), drawn_BT.max()) == (0, 99), "both ends are drawn"


def test_bits_are_those_of_the_bytes_that_follow() -> None:
    """A model that is sure of one byte: it needs none for it, and for another what it said of that."""

    class Sure(nn.Module):
        def forward(self, bytes_BT: torch.Tensor) -> torch.Tensor:
            logits_BTV = torch.full((*bytes_BT.shape, 256), -math.inf)
            logits_BTV[..., 65], logits_BTV[..., 66] = math.log(0.75), math.log(0.25)
            return logits_BTV

    bits = text.bits(Sure(), torch.tensor([[66, 65, 65], [65, 66, 65], [0, 66, 66]]), batch=2)
    assert bits.tolist() == pytest.approx([*2 * [-math.log2(0.75)], 2, -math.log2(0.75), 2, 2])


def test_a_corpus_that_is_another_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("something else")
    with pytest.raises(InputError, match=r"other\.txt is not the corpus: its SHA-256 is .*collect_text\.py"):
        text.corpus(tmp_path / "other.txt")
    with pytest.raises(InputError, match=r"none\.txt: No such file.*python tests/data/collect_text\.py lm_corpus\.txt"):
        text.corpus(tmp_path / "none.txt")
