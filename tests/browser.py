"""A browser for tests, and what can be asked of any page: does it load anything, do texts overlap, does anything stick out?

Import `chromium` and `open_page` as fixtures. Where no Chromium is found the tests are skipped, and the end of the run says
so. On GitHub's runners, which bring one, they fail: nobody reads what a green run there left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

DESKTOP, PHONE = (1280, 900), (390, 844)


class Opened(NamedTuple):
    """A page in the browser, and what it has asked for and complained of so far."""

    page: Any
    requests: list[str]
    complaints: list[str]


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, for a module's tests."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome")]
    path = next((path for path in found if path), None)
    if path is None:
        _do_without("the pages were not looked at: no Chromium on this machine")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _do_without("the pages were not looked at: playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def _do_without(reason: str) -> NoReturn:
    if os.environ.get("GITHUB_ACTIONS") == "true":
        pytest.fail(f"{reason}, and this is GitHub's runner")
    pytest.skip(reason)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """Open a file: `open_page(path, size=PHONE, **options of the browser's context)`."""
    contexts = []

    def open_it(path: Path, size: tuple[int, int] = DESKTOP, **options: Any) -> Opened:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        contexts.append(context)
        opened = Opened(context.new_page(), [], [])
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.goto(path.as_uri())
        return opened

    yield open_it
    for context in contexts:
        context.close()


_TEXTS = """() => {
  // Every line of visible text: its words and its box, cut to what its scrolling ancestors show of it.
  const frames = new Map();
  const frameOf = (element) => {  // what is shown of what stands in it: [left, top, right, bottom]
    if (!element || element === document.body) return [-Infinity, -Infinity, Infinity, Infinity];
    if (!frames.has(element)) {
      const outer = frameOf(element.parentElement), cuts = getComputedStyle(element).overflowX !== "visible";
      const box = cuts && !element.closest("svg") ? element.getBoundingClientRect() : null;
      frames.set(element, box ? meet(outer, [box.left, box.top, box.right, box.bottom]) : outer);
    }
    return frames.get(element);
  };
  const meet = (a, b) => [Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])];
  const found = [], numbers = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement, words = node.data.trim();
    if (!words || parent.closest("script, style, option") || !parent.checkVisibility({ visibilityProperty: true })) continue;
    const svg = parent.closest("text"), element = svg || parent, range = document.createRange();
    range.selectNodeContents(node);
    const upright = !svg || !(svg.getAttribute("transform") || "").includes("rotate(-90");
    if (!numbers.has(element)) numbers.set(element, numbers.size);
    for (const box of svg ? [svg.getBoundingClientRect()] : range.getClientRects()) {
      const [left, top, right, bottom] = meet(frameOf(parent), [box.left, box.top, box.right, box.bottom]);
      if (right - left > 1 && bottom - top > 1) found.push({ words, left, top, right, bottom, upright, element: numbers.get(element) });
    }
  }
  return found;
}"""


class Line(NamedTuple):
    """A line of visible text, in pixels of the window."""

    words: str
    left: float
    top: float
    right: float
    bottom: float
    element: int


def lines_of(page: Any) -> list[Line]:
    """All visible text of a page, line by line. A font's box is taller than its letters: 15 % go at top and bottom."""
    lines = []
    for text in page.evaluate(_TEXTS):
        across, down = text["right"] - text["left"], text["bottom"] - text["top"]
        dx, dy = (0.0, 0.15 * down) if text["upright"] else (0.15 * across, 0.0)
        box = text["left"] + dx, text["top"] + dy, text["right"] - dx, text["bottom"] - dy
        lines.append(Line(text["words"], *box, text["element"]))
    return lines


def overlaps(page: Any, tolerance: float = 1.5) -> list[tuple[str, str]]:
    """Pairs of visible texts that lie over each other by more than `tolerance` pixels both ways."""
    found, open_lines = [], []
    for line in sorted(lines_of(page), key=lambda line: line.top):
        open_lines = [other for other in open_lines if other.bottom > line.top + tolerance]
        for other in open_lines:
            across = min(line.right, other.right) - max(line.left, other.left)
            down = min(line.bottom, other.bottom) - max(line.top, other.top)
            if across > tolerance and down > tolerance and line.element != other.element:
                found.append((other.words, line.words))
        open_lines.append(line)
    return found


def sticking_out(page: Any) -> list[str]:
    """Visible texts that leave the window sideways, and the page itself if it can be scrolled sideways."""
    width = page.evaluate("innerWidth")
    found = [line.words for line in lines_of(page) if line.left < -1 or line.right > width + 1]
    scroll = page.evaluate("document.documentElement.scrollWidth")
    return found + ([f"the page is {scroll} pixels wide in a window of {width}"] if scroll > width else [])
