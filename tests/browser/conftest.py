"""A real browser on the built book, opened from disk as a reader would; see `make test-browser`."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chromium import NEEDED, find
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
# Root needs --no-sandbox; the others keep Chromium from talking to its maker while it is watched.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Pages of hundreds of formulas take a while on a busy machine.
PATIENCE = 30_000  # milliseconds
expect.set_options(timeout=PATIENCE)
DESKTOP = {"viewport": {"width": 1300, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


def pytest_sessionstart() -> None:
    if not (HTML / "index.html").is_file():
        pytest.exit("There is no built book to look at: run `make book` first.", returncode=2)
    if not find():
        pytest.exit(NEEDED, returncode=2)


@dataclass
class Screen:
    """A page of a browser, what it complained about, and what it asked others for."""

    page: Page
    home: str = HTML.as_uri()
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.emulate_media(reduced_motion="reduce")
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", self._asked)
        self.page.on("requestfailed", lambda asked: self.complaints.append(f"lost: {asked.url}"))

    def open(self, name: str) -> Page:
        """Go to a page of the book by its path below the folder of pages, and let it finish."""
        self.page.goto("about:blank")  # a change of the fragment alone would load nothing
        self.complaints.clear()
        self.page.goto(f"{self.home}/{name}")
        if self.page.locator(".math").count():
            self.page.wait_for_function("window.MathJax?.startup?.promise")
        return self.page

    def _said(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _asked(self, request) -> None:
        if not request.url.startswith((self.home, "data:", "blob:", "about:")):
            self.outside.append(request.url)


@pytest.fixture(scope="session")
def browser() -> Browser:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find(), args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="session")
def desktop(browser) -> Screen:
    return Screen(browser.new_context(**DESKTOP).new_page())


@pytest.fixture(scope="session")
def phone(browser) -> Screen:
    return Screen(browser.new_context(**PHONE).new_page())
