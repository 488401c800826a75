"""Every page in Chromium: it is whole, readable in both themes, and fits a phone."""

import re
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from conftest import HTML, Screen
from playwright.sync_api import expect

PAGES = sorted(str(path.relative_to(HTML)) for path in HTML.rglob("*.html"))
# The theme's listings of the package's source are many and all alike: they are only opened.
LISTINGS = [name for name in PAGES if name.startswith("_modules")]
CHAPTERS = [name for name in PAGES if not name.startswith(("_modules", "_static"))]
LOOKS = (Path(__file__).parent / "looks.js").read_text(encoding="utf-8")
SMALL_TEXT, LARGE_TEXT = 4.5, 3.0  # WCAG 2.2, level AA (1.4.3)


def look(page, question: str, *arguments):
    """Ask a page one of the questions of looks.js."""
    call = f"([question, rest]) => {{ {LOOKS}; return looks[question](...rest); }}"
    return page.evaluate(call, [question, [*arguments]])


@cache
def anchors(path: Path) -> set[str]:
    return set(re.findall(r'\b(?:id|name)="([^"]+)"', path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def chapter(request, desktop) -> Screen:
    """A page, opened once for all tests of it."""
    desktop.page.emulate_media(color_scheme="light")
    desktop.open(request.param)
    return desktop


every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, indirect=True, scope="module")


@every_chapter
def test_loads_without_errors_and_without_the_network(chapter):
    assert chapter.complaints == []
    assert chapter.outside == []
    assert chapter.page.title()


@every_chapter
def test_is_whole(chapter):
    assert look(chapter.page, "brokenImages") == []
    assert look(chapter.page, "picturesWithoutText") == []
    assert look(chapter.page, "formulasNotDrawn") == []


@every_chapter
def test_links_lead_somewhere(chapter):
    lost = []
    for link in chapter.page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)"):
        address, fragment = urldefrag(link)
        if address.startswith("file:"):
            target = Path(unquote(urlparse(address).path))
            if not target.is_file() or (fragment and unquote(fragment) not in anchors(target)):
                lost.append(link)
    assert lost == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@every_chapter
def test_can_be_read(chapter, theme):
    chapter.page.add_style_tag(content="* { transition: none !important; }")
    chapter.page.emulate_media(color_scheme=theme)
    expect(chapter.page.locator("html")).to_have_attribute("data-theme", theme)
    assert look(chapter.page, "faintTexts", SMALL_TEXT, LARGE_TEXT) == []
    assert look(chapter.page, "figuresWithoutGround") == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_fits_a_phone(phone, name):
    page = phone.open(name)
    assert look(page, "tooWide") == []
    assert phone.complaints == []


@pytest.mark.parametrize("name", LISTINGS)
def test_listing_opens(desktop, name):
    desktop.open(name)
    assert desktop.complaints == []
    assert desktop.outside == []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(params=["from disk", "from a server"])
def place(request) -> str:
    """Where the book is read from."""
    if request.param == "from disk":
        yield HTML.as_uri()
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_search_finds_the_measure(browser, place):
    screen = Screen(browser.new_page(), home=place)
    page = screen.open("search.html?q=SRP")
    page.wait_for_function("/found \\d+ page|Search finished/.test(document.body.innerText)")
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any("definitions.html" in link for link in found)
    assert screen.complaints == []
    assert screen.outside == []
    if place.startswith("http:"):
        page.wait_for_selector("#search-results li .context")  # the words around the finding
    page.locator("#search-results li a", has_text="Definitions").first.click()
    page.wait_for_selector("article h2 >> text=Segment routing best performance")


class TestTheTests:
    """What the questions of looks.js find, on a page made for them."""

    @pytest.fixture
    def page(self, browser):
        page = browser.new_page()
        yield page
        page.close()

    def test_contrast_is_that_of_the_standard(self, page):
        page.set_content(
            "<p style='color:#777'>faint</p><p style='color:#767676'>just enough</p>"
            "<p style='color:#949494; font-size:24px'>large</p>"
            "<div style='background:#000'><p style='background:#fff8; color:#777'>on grey</p></div>"
            "<p style='display:none; color:#fff'>hidden</p>"
        )
        faint = look(page, "faintTexts", SMALL_TEXT, LARGE_TEXT)
        assert [text.split()[0] for text in faint] == ["4.48", "1.26"]

    def test_missing_things_are_missed(self, page):
        page.set_content(
            "<article><img src='data:,' alt=''><svg width=9 height=9></svg>"
            "<div class=math>x</div>"
            "<img style='background:#000' src='data:,x' alt='dark'></article>"
        )
        assert len(look(page, "brokenImages")) == 2
        assert len(look(page, "picturesWithoutText")) == 2
        assert len(look(page, "formulasNotDrawn")) == 1
        assert look(page, "figuresWithoutGround") == ["data:,x"]

    def test_what_sticks_out_is_named(self, browser):
        page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        page.set_content("<p id=wide style='width:600px'>wide</p>")
        assert look(page, "tooWide") == ["p.: wide"]
        page.set_content("<div style='overflow:auto'><p style='width:600px'>in its frame</p></div>")
        assert look(page, "tooWide") == []
