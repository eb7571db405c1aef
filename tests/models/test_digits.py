"""The handwritten digits: what is committed of them, how they are moved, and a network that reads them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from inner_pytest import ROOT

from blockshock.models.digits import TRAINED_ON, Digits, digits, moved
from blockshock.models.text import DATA

sys.path.append(str(Path(__file__).parents[1] / "data"))
import collect_digits

COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
"""Of each digit, as its authors count them."""


def test_the_committed_images_are_those_of_its_authors() -> None:
    images_IHW, digits_I = digits()
    assert images_IHW.shape == (1797, 8, 8)
    assert digits_I.bincount().tolist() == COUNTS
    assert (images_IHW.min().item(), images_IHW.max().item()) == (0.0, 1.0)
    found = hashlib.sha256((DATA / "digits.txt").read_bytes()).hexdigest()
    assert found == "129eef24fe845dfb9ee752501689a6be3cb8afde16fdb4118c6ad9635b5545be"
    page = (ROOT / "docs" / "sparse-training.md").read_text(encoding="utf-8")
    for told in (DATA / "LICENSE-digits.txt").read_text(), page:
        assert all(one in told for one in ("CC BY 4.0", "Alpaydin, E. and Kaynak, C.", "10.24432/C50P49"))


def test_a_row_of_the_source_becomes_a_line() -> None:
    row = ",".join(["0.0", "9.0", "10.0", "16.0"] * 16 + ["7.0"])
    assert collect_digits.line(row) == "7 " + "09ag" * 16


def test_images_are_moved_by_a_pixel_and_none_is_lost() -> None:
    images_IHW = digits()[0][:3]
    found = moved(images_IHW).view(3, 3, 3, 8, 8)
    assert torch.equal(found[:, 1, 1], images_IHW), "in the middle as it was"
    assert torch.equal(found[:, 0, 1, 1:], images_IHW[:, :-1]), "down"
    assert not found[:, 0, 1, 0].any()
    assert torch.equal(found[:, 1, 2, :, :-1], images_IHW[:, :, 1:]), "to the left"


def test_nothing_that_it_is_judged_by_is_trained_on() -> None:
    task = Digits()
    assert "1347 images" in task.load(torch.device("cpu"), None)
    stream = torch.Generator().manual_seed(0)
    x_BD, of_B = task.batch(stream)
    trained_ID, held_ID = moved(digits()[0][:TRAINED_ON]), digits()[0][TRAINED_ON:].flatten(1)
    assert (torch.cdist(x_BD, trained_ID, compute_mode="donot_use_mm_for_euclid_dist").amin(1) == 0).all()
    assert (torch.cdist(x_BD, held_ID, compute_mode="donot_use_mm_for_euclid_dist").amin(1) > 0).all()
    at = torch.cdist(x_BD, trained_ID, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(of_B, digits()[1][:TRAINED_ON].repeat_interleave(9)[at])
