"""The page in a real browser: the answer first, whole, offline, by keyboard, on paper, in both themes, on a phone."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import ROOT
from report_pages import CHROMIUM, FLAGS, MARKUP, written_to

from blockshock.__main__ import main

OFFICIAL = ROOT / "benchmark_results" / "official"
RUNS = ("0006_2xH200-full", "0009_2xH100", "0011_1xH100-pruned")
THEMES = ["light", "dark"]
Open = Callable[..., Any]

CONTRASTS = """() => {
    const parse = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const page = parse(getComputedStyle(document.body).backgroundColor);
    const found = [];
    for (const svg of document.querySelectorAll("figure svg")) {
        const cells = [...svg.querySelectorAll("rect")]
            .map(cell => [cell.getBoundingClientRect(), parse(getComputedStyle(cell).fill)]);
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
OPEN = "for (const part of document.querySelectorAll('details')) part.open = true"
SHORT = "for (const row of document.querySelectorAll('tbody tr:nth-child(n+3)')) row.remove()"
"""A thousand rows alike are as readable as two, and take axe-core a thousand times as long."""
BOTTOM = "selector => Math.max(...[...document.querySelectorAll(selector)].map(e => e.getBoundingClientRect().bottom))"
SIDE_BY_SIDE = """() => [...document.querySelectorAll("details.table table")].map(table => {
    const heads = [...table.tHead.rows[0].cells], place = heads.findIndex(head => head.textContent === "method");
    const number = heads.findIndex((head, at) => at > place && head.classList.contains("n"));
    if (place < 0 || number < 0) return null;
    const [name, value] = [place, number].map(at => table.tBodies[0].rows[0].cells[at].getBoundingClientRect());
    return [name.left, name.width, value.right];
}).filter(found => found)"""
PIXELS = """async png => {
    const image = Object.assign(new Image(), { src: `data:image/png;base64,${png}` });
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height), drawn = canvas.getContext("2d");
    drawn.drawImage(image, 0, 0);
    const data = new Uint32Array(drawn.getImageData(0, 0, image.width, image.height).data.buffer);
    return [image.width, new Set(data).size, [data[0] & 255, data[0] >> 8 & 255, data[0] >> 16 & 255]];
}"""
"""Width, how many colours, and that of a corner."""
COLUMN = """place => [...document.querySelector("details.table[open] tbody").rows]
    .filter(row => !row.hidden).map(row => row.cells[place].textContent)"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on parts of official runs, with markup in some labels."""
    return written_to(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the report on an official run, once."""
    folder = tmp_path_factory.mktemp("official")

    def report(name: str) -> Path:
        page = folder / name / "report.html"
        assert page.is_file() or main(["report", str(OFFICIAL / name), "--to", str(folder / name)]) == 0
        return page

    return report


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

    def open_file(path: Path, scheme: str = "light", width: int = 1280, height: int = 844) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append((request.url, path.as_uri())))
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url, allowed in asked if url != allowed and not url.startswith(("data:", "blob:"))] == []


@pytest.mark.parametrize("run", RUNS)
def test_answer_verdicts_and_map_are_on_the_first_screen_and_a_half(
    run: str, official: Callable[[str], Path], opened: Open
) -> None:
    page = opened(official(run), width=1440, height=900)
    assert page.locator(".answer li").count() > 1
    for part in (".answer", ".first table", ".first figure svg"):
        assert 0 < page.evaluate(BOTTOM, part) <= 1.5 * 900, part
    assert page.evaluate("document.scrollingElement.scrollHeight") <= 3 * 900, "the rest is folded"
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("scheme", THEMES)
def test_a_phone_scrolls_tables_but_not_the_page(scheme: str, official: Callable[[str], Path], opened: Open) -> None:
    page = opened(official(RUNS[2]), scheme, 390)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    page.evaluate(OPEN)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    boxes = page.evaluate("[...document.querySelectorAll('.scroll, .panel')].map(b => b.getBoundingClientRect().right)")
    assert max(boxes) <= 390
    beside = page.evaluate(SIDE_BY_SIDE)
    assert len(beside) > 5
    assert [one for one in beside if not (one[0] >= 0 and one[1] >= 100 and one[2] <= 390)] == [], "method, number"


def test_markup_in_a_run_is_shown_as_text(written: Path, opened: Open) -> None:
    page = opened(written / "report.html")
    assert page.locator("b, i, main script").count() == 0
    assert "parts <i>" in page.locator("h2").inner_text()
    assert page.evaluate("document.body.textContent").count(MARKUP) > 20
    assert page.title().startswith("Block-Shock: ")


def test_a_browser_shows_every_panel(written: Path, opened: Open) -> None:
    page = opened(written / "report.html")
    page.evaluate(OPEN)
    sizes = page.evaluate("[...document.querySelectorAll('.panel svg')].map(s => s.getBoundingClientRect().width)")
    assert len(sizes) > 30
    assert min(sizes) > 100


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1440)])
def test_everybody_can_read_it_folded_and_open(written: Path, opened: Open, scheme: str, width: int) -> None:
    page = opened(written / "report.html", scheme, width)
    assert _violations(page) == []
    page.evaluate(OPEN)
    in_plots = page.evaluate(CONTRASTS)
    assert len(in_plots) > 500
    assert [text for text in in_plots if text[0] < 4.5] == []
    assert _violations(page) == []


def _violations(page: Any) -> list[str]:
    """What axe-core finds wrong with the page, contrasts and all else. Texts in plots have a check of their own."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="`pip install -e '.[dev]'` brings axe")
    page.evaluate(SHORT)
    page.wait_for_timeout(50)  # the parts that were opened have said so, and their tables have their buttons
    found = axe.Axe().run(page, {"exclude": [["svg *"]]}, options={"resultTypes": ["violations"]})
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found.response["violations"]]


def test_text_that_is_too_pale_is_caught(written: Path, opened: Open, tmp_path: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    assert "--muted:#565e6b" in page
    (tmp_path / "pale.html").write_text(page.replace("--muted:#565e6b", "--muted:#b0b4bb"), encoding="utf-8")
    pale = opened(tmp_path / "pale.html")
    assert any(ratio < 4.5 for ratio, *_ in pale.evaluate(CONTRASTS))
    assert any(found.startswith("color-contrast") for found in _violations(pale))


def test_tables_fold_sort_and_filter_by_keyboard_and_are_saved(written: Path, opened: Open) -> None:
    page = opened(written / "report.html")
    page.locator("#run0-forward > summary").focus()
    page.keyboard.press("Enter")
    table = page.locator("#run0-forward details[data-file^=time-by-stage]")
    table.locator("summary").focus()
    page.keyboard.press("Enter")
    assert table.evaluate("part => part.open")
    table.locator("input").wait_for()  # which comes when the browser has told the page that it is open
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "search"
    place = table.locator("th").all_inner_texts().index("p50")
    table.locator("th button").nth(place).focus()
    for pressed, order in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(pressed)
        times = list(map(float, page.evaluate(COLUMN, place)))
        assert times == sorted(times, reverse=order == "descending")
        assert table.locator("th").nth(place).get_attribute("aria-sort") == order
    table.locator("input").focus()
    page.keyboard.type("gathered 8192")
    shown = page.evaluate(COLUMN, table.locator("th").all_inner_texts().index("method"))
    assert 0 < len(shown) < len(times)
    assert all("gathered" in name for name in shown)
    assert table.locator("[role=status]").inner_text() == f"{len(shown)} of {len(times)} rows"
    with page.expect_download() as saved:
        table.get_by_role("button", name="CSV").press("Enter")
    assert saved.value.suggested_filename == "time-by-stage-ms-forward-phase-1.csv"
    rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text(encoding="utf-8"))))
    assert [row["method"] for row in rows] == shown


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_plot_is_saved_as_png(written: Path, opened: Open, scheme: str, width: int) -> None:
    """Each of them, offline: whole, though it is scrolled on a phone, and in the colours that the reader has."""
    page = opened(written / "report.html", scheme, width)
    page.evaluate(OPEN)
    figures = page.locator("figure")
    assert figures.count() > 8
    figures.first.locator("svg").first.evaluate(
        "s => { s.style.minWidth = '1400px'; s.parentElement.scrollLeft = 300; }"
    )
    for place in range(figures.count()):
        figure = figures.nth(place)
        with page.expect_download() as saved:
            figure.locator(".save").press("Enter")
        assert saved.value.suggested_filename == f"{figure.get_attribute('id')}.png"
        raw = Path(saved.value.path()).read_bytes()
        assert raw[:4] == b"\x89PNG"
        wide, colours, corner = page.evaluate(PIXELS, base64.b64encode(raw).decode())
        assert wide >= 2 * max(figure.locator("svg").evaluate_all("all => all.map(s => s.clientWidth)"))
        assert colours > 20, "lines, cells and letters"
        assert corner == ([253, 253, 254] if scheme == "light" else [20, 23, 28])


def test_contents_stay_in_sight_and_open_what_they_lead_to(written: Path, opened: Open) -> None:
    page = opened(written / "report.html")
    page.locator("nav a", has_text="Forward (phase 1)").press("Enter")
    page.wait_for_function("document.querySelector('#run0-forward').open")
    assert page.evaluate("document.querySelector('nav').getBoundingClientRect().top") >= 0


def test_paper_has_the_plots_of_all_sections_and_no_tables_that_were_folded(written: Path, opened: Open) -> None:
    page = opened(written / "report.html", "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 254)", "paper is white"
    assert page.evaluate("getComputedStyle(document.querySelector('.answer')).backgroundColor") == "rgb(243, 245, 248)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    hidden = page.evaluate(
        "[...document.querySelectorAll('.panel')].filter(p => p.getBoundingClientRect().height < 50).length"
    )
    assert hidden == 0
    assert page.locator("nav").is_hidden()
    assert page.evaluate("[...document.querySelectorAll('details.table table')].every(t => !t.checkVisibility())")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.section[open]").count() == 0
    assert page.pdf()[:4] == b"%PDF"
