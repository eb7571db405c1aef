"""docs/report is what its command makes of the runs that it names, and no more."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from inner_pytest import ROOT

sys.path.append(str(ROOT / "docs"))
from report_page import PICTURES, REPORT, RUNS, written

MOST_BYTES = 1.5e6


def test_it_is_what_its_runs_say(tmp_path: Path) -> None:
    written(tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.html", *(f"{name}.svg" for name in PICTURES)}
    assert {path.name for path in REPORT.iterdir()} == names
    for name in names:
        same = (REPORT / name).read_bytes() == (tmp_path / "report" / name).read_bytes()
        assert same, f"{name} is of another version: python docs/report_page.py"


def test_it_is_small_and_names_no_place_of_this_machine() -> None:
    assert sum(path.stat().st_size for path in REPORT.iterdir()) <= MOST_BYTES
    page = (REPORT / "report.html").read_text(encoding="utf-8")
    assert page.count('<ul class="answer">') == len(RUNS)
    assert not re.search(r"[ (>\"]/(?:home|root|tmp|work)/", page)


def test_what_pays_comes_first_on_the_page_and_in_the_results() -> None:
    """A page has its runs in the order of the command, which names what pays first."""
    page = (REPORT / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="run\d">(\S+) ', page) == list(RUNS)
    answers = re.findall(r'<ul class="answer">(.*?)</ul>', page, re.DOTALL)
    pays = [": pays " in answer for answer in answers]
    assert pays == sorted(pays, reverse=True)
    assert pays[0]
    results = (REPORT.parent / "results.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \S+/(\S+) ", results, re.MULTILINE)[: len(RUNS)] == list(RUNS)
