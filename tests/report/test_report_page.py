"""The report as a folder, and its page in a real browser: whole, offline, readable in both themes and on a phone."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import ROOT

from blockshock.__main__ import main
from blockshock.report.plots.style import COLOURS, INK, MUTED, PAPER

OFFICIAL = ROOT / "benchmark_results" / "official"
FORWARD, TRAINING, VERDICTS = sorted(OFFICIAL.glob("*.json"))[:3]
MARKUP = "<b>bold</b><script>document.title='run'</script> & \"quoted\""
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FORWARD_PLOTS = (
    *("time", "throughput", "stages", "ratio-dense-group", "ratio-dense-one"),
    *("heat-dense-group", "heat-dense-one", "peak-memory", "weight-bytes", "time-per-byte"),
    *("of-limit", "roofline", "quality", "without-layout"),
)
"""The last four need limits, checks or a forward pass alone, which the training run has not."""
Open = Callable[..., Any]

TEXT_CONTRASTS = """() => {
    const parse = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const page = parse(getComputedStyle(document.body).backgroundColor);
    const found = [];
    for (const svg of document.querySelectorAll("figure svg")) {
        const cells = [...svg.querySelectorAll("path")].filter(path => {
            const fill = getComputedStyle(path).fill;
            return fill.startsWith("rgb(") && path.getBoundingClientRect().width > 20;
        }).map(path => [path.getBoundingClientRect(), parse(getComputedStyle(path).fill)]);
        for (const text of svg.querySelectorAll("text")) {
            const box = text.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            const below = cells.filter(([c]) => c.x <= x && x <= c.right && c.y <= y && y <= c.bottom).at(-1);
            const lights = [light(parse(getComputedStyle(text).fill)), light(below ? below[1] : page)];
            const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
            found.push([ratio, text.textContent, svg.closest("figure").id]);
        }
    }
    return found;
}"""
SHORT = """() => {
    for (const row of document.querySelectorAll("tbody tr:nth-child(n+3)")) row.remove();
    for (const plot of document.querySelectorAll("figure svg")) plot.replaceChildren();
    for (const one of [...document.querySelectorAll("details")].slice(0, 4)) one.open = true;
}"""
"""A thousand rows alike are as readable as two, and take axe-core a thousand times as long."""
PLOTS = """() => [...document.querySelectorAll("figure")].map(figure => {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    return [figure.id, box.width > 100 && box.height > 100, svg.querySelectorAll("path").length];
})"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on parts of official runs, one of which has a label and a group with markup, and one with limits."""
    parts = tmp_path_factory.mktemp("parts <i>")
    for path in (TRAINING, VERDICTS, FORWARD):
        saved = json.loads(path.read_text())
        saved["benchmarks"] = [
            bench
            for bench in saved["benchmarks"]
            if bench["extra_info"].get("optimizer") != "adamw" and bench["extra_info"]["B"] in (64, 1024)
        ]
        (parts / path.name).write_text(json.dumps(saved))
    saved = json.loads((parts / FORWARD.name).read_text())
    for bench in saved["benchmarks"]:
        info = bench["extra_info"]
        info["label"] = info["label"].replace("dtensor_row", MARKUP)
        bench["group"] = bench["group"].replace("recorded", f"recorded {MARKUP}")
        if "p50_ms" in info:
            work = {
                "flops": 2 * info["N"] * info["K"] * info["B"],
                "unit": "dense",
                "memory_bytes": info["weight_bytes"],
            }
            info |= {"of_limit": 0.5, "limit_ms": info["p50_ms"] / 2, "bound_by": "memory", "work": work}
    ceilings = {"memory_bytes_per_s": 4.2e12, "dense_flops_per_s": {"bf16": 8e14}, "sparse_flops_per_s": {"bf16": 6e14}}
    saved["machine_info"]["blockshock"] |= {"ceilings": ceilings}
    (parts / FORWARD.name).write_text(json.dumps(saved))
    folder = tmp_path_factory.mktemp("report")
    assert main(["report", str(parts), "--to", str(folder)]) == 0
    return folder


def _part(run: Path, path: Path, **values: object) -> Path:
    """A run with those benchmarks alone that have these values."""
    saved = json.loads(run.read_text())
    saved["benchmarks"] = [
        bench
        for bench in saved["benchmarks"]
        if all(bench["extra_info"][name] == value for name, value in values.items())
    ]
    path.write_text(json.dumps(saved))
    return path


def _names(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in (folder / "plots").glob(f"*{suffix}")}


def test_every_plot_of_every_phase_is_written(written: Path) -> None:
    names = _names(written, ".png")
    assert names == _names(written, ".svg")
    assert {f"forward-gaussian-bf16-{name}" for name in FORWARD_PLOTS} <= names
    assert {f"training-gaussian-bf16-sgd-{name}" for name in FORWARD_PLOTS[:-4]} <= names
    assert {f"accuracy-gaussian-bf16-error-{name}" for name in ("relative", "max", "mean")} <= names
    assert "verdicts-gaussian-bf16-verdicts" in names
    assert all((written / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in names)


def test_every_table_is_written_with_its_numbers_in_full(written: Path) -> None:
    with (written / "tables" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"faster", "slower"} < {row["verdict"] for row in rows}
    assert {"stages.matmul.p50_ms", "alone.pack.p50_ms", "work.flops"} <= set(rows[0])
    with (written / "tables" / "speed-up-forward-phase-1.csv").open(encoding="utf-8") as file:
        speeds = list(csv.DictReader(file))
    timed = [row for row in rows if row["phase"] == "1" and row["p50_ms"]]
    assert len(speeds) == len(timed)
    assert {row["p50 ms"] for row in speeds} == {row["p50_ms"] for row in timed}


def test_the_page_fetches_nothing_and_is_the_same_again(written: Path, tmp_path: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"'<)]*", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert set(used) <= set(ids)
    few = _part(VERDICTS, tmp_path / "few.json", hypothesis="H1")
    assert main(["report", str(few), "--to", str(tmp_path / "a")]) == 0
    assert main(["report", str(few), "--to", str(tmp_path / "b")]) == 0
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_a_new_report_leaves_nothing_of_the_old_one_and_all_that_is_not_ours(tmp_path: Path) -> None:
    few = _part(VERDICTS, tmp_path / "few.json", hypothesis="H2")
    folder = tmp_path / "new" / "folder"
    main(["report", str(VERDICTS), "--to", str(folder)])
    assert "forward-gaussian-bf16-ratio-dense-group" in _names(folder, ".svg")
    (folder / "plots" / "mine.png").write_bytes(b"")
    main(["report", str(few), "--to", str(folder)])
    assert _names(folder, ".svg") == {"verdicts-gaussian-bf16-adamw-verdicts"}
    assert _names(folder, ".png") == {"verdicts-gaussian-bf16-adamw-verdicts", "mine"}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", str(VERDICTS), "--to", str(tmp_path / "file" / "folder")]) == 1
    assert f"cannot write the report to {tmp_path / 'file' / 'folder'}" in capsys.readouterr().err


def test_runs_are_compared_in_a_table_and_a_plot(tmp_path: Path) -> None:
    first = _part(FORWARD, tmp_path / "first.json", phase=1, workload="gaussian", B=16, kernel=None)
    saved = json.loads(first.read_text())
    for bench in saved["benchmarks"]:
        bench["extra_info"]["p50_ms"] *= 2
        bench["stats"]["data"] = [2 * seconds for seconds in bench["stats"]["data"]]
    (tmp_path / "second.json").write_text(json.dumps(saved))
    main(["report", str(first), str(tmp_path / "second.json"), "--to", str(tmp_path / "to")])
    assert (tmp_path / "to" / "plots" / "runs-compared.svg").is_file()
    with (tmp_path / "to" / "tables" / "runs-compared.csv").open(encoding="utf-8") as file:
        assert [row["÷"] for row in csv.DictReader(file)] == ["2.0"] * len(saved["benchmarks"])
    page = (tmp_path / "to" / "report.html").read_text(encoding="utf-8")
    assert "2 runs beside each other" in page
    assert {"first-json-forward-gaussian-bf16-time", "second-json-forward-gaussian-bf16-time"} <= set(
        re.findall(r'<figure id="([^"]+)"', page)
    )


def test_what_is_missing_is_named_with_what_measures_it(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    missing = page[page.index("<h3") :].rpartition("What is missing</h3>")[2]
    assert "Forward and backward (phase 2): <code>pytest tests/test_phase2_backward.py -m bench</code>" in missing
    assert "Drift: <code>pytest tests/test_drift.py</code>" in missing
    assert "Share of the limit: Training step (phase 3)" in missing
    assert "Roofline: Forward" not in missing


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("paper", [PAPER, "#14171c"])
def test_colours_of_data_stand_out_from_both_pages(paper: str) -> None:
    for colour in COLOURS:
        high, low = sorted((_luminance(colour), _luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, f"{colour} on {paper}"
    assert not {INK, MUTED, PAPER} & set(COLOURS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the system has it; nothing is downloaded."""
    if CHROMIUM is None:
        pytest.skip("install chromium (Debian: apt-get install chromium) to test the report in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="`pip install -e '.[dev]'` brings playwright")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens a file offline; when the test is over nothing but the file was asked for, and nothing complained."""
    contexts, complaints, asked = [], [], []

    def open_file(path: Path, scheme: str = "light", width: int = 1280) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append((request.url, path.as_uri())))
        page.route("**/*", lambda route: route.continue_() if route.request.url == path.as_uri() else route.abort())
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url, allowed in asked if url != allowed] == []


def test_a_browser_shows_every_plot(written: Path, opened: Open) -> None:
    page = opened(written / "report.html")
    plots = page.evaluate(PLOTS)
    assert {name for name, *_ in plots} == _names(written, ".svg")
    assert all(large and paths for _, large, paths in plots)
    assert page.title().startswith("Block-Shock: ")


def test_markup_in_a_run_is_shown_as_text(written: Path, opened: Open) -> None:
    page = opened(written / "report.html")
    assert page.locator("b, i, main script").count() == 0
    assert "parts <i>" in page.locator("h2").inner_text()
    assert page.evaluate("document.body.textContent").count(MARKUP) > 20
    assert page.evaluate("t => [...document.querySelectorAll('svg text')].some(e => e.textContent === t)", MARKUP)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_themes(written: Path, opened: Open, scheme: str) -> None:
    page = opened(written / "report.html", scheme)
    in_plots = page.evaluate(TEXT_CONTRASTS)
    assert len(in_plots) > 500
    assert [text for text in in_plots if text[0] < 4.5] == []
    assert _violations(page) == []


def _violations(page: Any) -> list[str]:
    """What axe-core finds wrong with the page, contrasts and all else of WCAG AA. Plots have a check of their own."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="`pip install -e '.[dev]'` brings axe")
    page.evaluate(SHORT)
    found = axe.Axe().run(
        page,
        {"exclude": [["svg *"]]},
        options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"], "resultTypes": ["violations"]},
    )
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found.response["violations"]]


def test_text_that_is_too_pale_is_caught(written: Path, opened: Open, tmp_path: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    assert "--muted: #565e6b" in page
    (tmp_path / "pale.html").write_text(page.replace("--muted: #565e6b", "--muted: #b0b4bb"), encoding="utf-8")
    pale = opened(tmp_path / "pale.html")
    assert any(ratio < 4.5 for ratio, *_ in pale.evaluate(TEXT_CONTRASTS))
    assert any(found.startswith("color-contrast") for found in _violations(pale))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_plots_and_tables_but_not_the_page(written: Path, opened: Open, scheme: str) -> None:
    page = opened(written / "report.html", scheme, 390)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    boxes = page.evaluate("[...document.querySelectorAll('.scroll')].map(b => b.getBoundingClientRect().right)")
    assert max(boxes) <= 390
    assert page.evaluate("document.querySelector('.plot').scrollWidth > document.querySelector('.plot').clientWidth")
