"""The page in a browser without network: it draws, filters, changes its theme, and runs only its own scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright (the extra `dev`)")
pytest.importorskip("plotly", reason="needs plotly (the extra `report`)")

from playwright.sync_api import Browser, Page

from litpeft.analysis.comparison import compare
from litpeft.analysis.report.page import write_page
from tests.analysis.report.made_runs import write_runs
from tests.analysis.report.screenshots import browser, chromium, offline_context, open_report, take

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no chromium on this machine: apt-get install chromium"),
]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = write_runs(folder / "runs", {"qlora-nf4": HOSTILE})
    write_page(compare([runs], baseline="none"), folder / "report.html", "litpeft report runs")
    return folder / "report.html"


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def page(opened: Browser, report: Path) -> Iterator[Page]:
    """The report on a desktop; checks at the end that there were no errors and no requests except for the file."""
    context = offline_context(opened)
    page = context.new_page()
    wrong: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: requested.append(request.url))
    open_report(page, report)
    yield page
    context.close()
    assert wrong == []
    assert [url for url in requested if not url.startswith("blob:")] == [report.as_uri()]


def traces(page: Page, chart: str) -> set[str]:
    return set(page.evaluate(f"document.getElementById('{chart}').data.map(trace => trace.name)"))


def test_every_chart_is_drawn_and_a_hostile_name_stays_text(page: Page) -> None:
    plots = page.locator(".plot")
    assert plots.count() >= 12
    assert page.locator(".plot .main-svg").count() >= plots.count()
    assert page.locator("table.main tbody th", has_text=HOSTILE).count() == 1
    assert page.locator("main script, main img").count() == 0
    assert page.locator("#memory-train").get_by_text("<script>ale").count() == 1  # shortened, and still text


def test_hovering_over_a_point_shows_its_figures(page: Page) -> None:
    page.locator("#quality-memory").scroll_into_view_if_needed()
    box = page.locator("#quality-memory .scatterlayer .trace .point").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = page.locator("#quality-memory .hoverlayer .hovertext")
    hover.wait_for()
    text = hover.text_content()
    assert "validation accuracy: " in text
    assert "MiB" in text
    assert "3 seeds" in text


def test_groups_are_filtered_with_the_keyboard(page: Page) -> None:
    assert "lora" in traces(page, "curve-train_loss")
    page.locator("#filter input").first.focus()
    names = page.locator("#filter .chip").all_text_contents()
    number = next(i for i, name in enumerate(names) if name.strip() == "lora")
    for _ in range(number):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    for chart in ("quality-memory", "curve-train_loss", "figure-train_tokens_per_second", "memory-peaks"):
        assert "lora" not in traces(page, chart)
        assert "full" in traces(page, chart)
    assert "lora" not in page.evaluate("document.getElementById('memory-train').data[0].y")
    assert page.locator("table.main tbody tr:visible").count() == 2
    assert page.locator("details.run:visible").count() == 6
    assert page.locator("#found").text_content() == "6 of 10 runs"
    page.locator("#all").press("Enter")
    assert "lora" in traces(page, "quality-memory")
    assert page.locator("details.run:visible").count() == 10


def test_runs_are_found_by_text(page: Page) -> None:
    page.get_by_label("Show runs that contain").fill("out of memory")
    assert page.locator("details.run:visible").count() == 1
    assert "oom" in page.locator("details.run:visible summary").text_content()


def test_the_keyboard_skips_to_the_result_and_opens_a_run(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("details.run summary").first.press("Enter")
    assert page.get_by_text("Environment").first.is_visible()


def test_the_theme_follows_the_system_and_the_button(page: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    colour = "document.getElementById('quality-memory').data.at(-1).marker.color"
    light = page.evaluate(f"[{paper}, {colour}]")
    page.get_by_role("button", name="Dark theme").press("Enter")
    dark = page.evaluate(f"[{paper}, {colour}]")
    assert light[0] == "rgb(255, 255, 255)"
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(f"[{paper}, {colour}]") == light
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-theme=dark]")
    assert page.evaluate(f"[{paper}, {colour}]") == dark


def test_foreign_scripts_do_not_run(opened: Browser, report: Path) -> None:
    context = offline_context(opened)
    page = context.new_page()
    open_report(page, report)
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'ran = 1'}))")
    assert page.evaluate("[typeof Plotly, typeof ran]") == ["object", "undefined"]
    context.close()


def test_nothing_is_wider_than_a_phone(opened: Browser, report: Path) -> None:
    context = offline_context(opened, "phone")
    page = context.new_page()
    open_report(page, report)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [375, 375]
    assert (
        page.evaluate("Math.max(...[...document.querySelectorAll('.plot')].map(p => p.getBoundingClientRect().right))")
        <= 375
    )
    context.close()


def test_pictures_are_taken(opened: Browser, report: Path, tmp_path: Path) -> None:
    assert [path.name for path in take(opened, report, tmp_path)] == [
        f"report-{size}.png" for size in ("desktop", "dark", "phone")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
