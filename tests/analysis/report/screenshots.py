"""Take screenshots of a report: `python -m tests.analysis.report.screenshots report.html FOLDER`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

SHOWN = 2100  # pixels from the top
SIZES = {"desktop": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (375, 812, "light")}


def chromium() -> str | None:
    """Return the path of the installed chromium; playwright would download one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


def offline_context(opened: Browser, size: str = "desktop", **more: object) -> BrowserContext:
    """Return a browser context without network, in one of `SIZES`."""
    width, height, scheme = SIZES[size]
    viewport = {"width": width, "height": height}
    context = opened.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **more)
    context.set_offline(True)
    return context


def open_report(page: Page, path: Path) -> None:
    """Open a report and wait until the charts are drawn."""
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)


def take(opened: Browser, path: Path, folder: Path) -> list[Path]:
    """Take pictures of the page down to its first charts: desktop, dark desktop, and phone."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = []
    for size in SIZES:
        context = offline_context(opened, size)
        page = context.new_page()
        open_report(page, path)
        taken.append(folder / f"{path.stem}-{size}.png")
        width, _, _ = SIZES[size]
        page.screenshot(path=taken[-1], full_page=True, clip={"x": 0, "y": 0, "width": width, "height": SHOWN})
        context.close()
    return taken


if __name__ == "__main__":
    with browser() as opened:
        for picture in take(opened, Path(sys.argv[1]), Path(sys.argv[2])):
            print(picture)
