"""The window by window measures what lrc measures, and follows clicks, keys and fingers."""

import numpy as np
import pytest
from conftest import DESKTOP, HTML, Screen
from playwright.sync_api import expect

import lrc
from lrc import published

PAGE = "book/definitions.html"
CASES = {
    "GRIN-MoE, layer 21": "case_grin_layer21_github",
    "Jamba-Mini, layer 25": "case_jamba_layer25_github",
}


@pytest.fixture
def screen(browser):
    context = browser.new_context(**DESKTOP)
    yield Screen(context.new_page())
    context.close()


def published_trace(name: str) -> lrc.Trace:
    active = published.table(CASES[name]).filter(regex=r"^e\d").to_numpy()
    return lrc.Trace(np.nonzero(active)[1].reshape(1, len(active), 1, 2), 16)


def number(page, name: str) -> str:
    return page.locator(f"#windows [data-number='{name}']").inner_text()


def move(page, **values) -> None:
    for name, value in values.items():
        page.locator(f"#windows input[name={name}]").fill(str(value))


def test_measures_are_those_of_the_package(screen):
    """Every length, threshold, size and policy, on all three maps; counts as whole numbers."""
    page = screen.open(PAGE)
    lengths = [1, 2, 5, 16, 32]
    cases = page.evaluate("lrcWindowData.cases")
    for case in cases:
        trace = lrc.Trace(np.array(case["routing"])[None, :, None], 16)
        ask = """([routing, m]) => ["lru", "sch", "static"].map(policy =>
            [...Array(16).keys()].map(size => lrcWindows.measure(
              {routing, start: 7, m, threshold: 2, size: size + 1, policy})))"""
        for m in lengths:
            lru, ahead, static = page.evaluate(ask, [case["routing"], m])
            wanted = {
                "lru": lrc.hit_rates(trace, "lru"),
                "sch": lrc.sch(trace, m),
                "static": lrc.sch(trace, m, definition="static"),
            }
            for policy, shown in zip(wanted, (lru, ahead, static), strict=True):
                rates = [found["cache"]["rate"] for found in shown]
                assert rates == pytest.approx(wanted[policy]["hit_rate"].tolist(), abs=1e-12)
            srp = lrc.srp(trace, m)["srp"].item()
            assert lru[0]["all"]["srp"] == pytest.approx(srp, abs=1e-12)
            window = lrc.Trace(trace.experts[:, 7 : 7 + m], 16)
            assert lru[0]["best"]["srp"] == pytest.approx(
                lrc.srp(window, m)["srp"].item(), abs=1e-12
            )
            uses = np.bincount(window.experts.ravel(), minlength=16)
            on = uses >= 2
            assert lru[0]["here"] == uses.tolist()
            assert lru[0]["on"] == np.flatnonzero(on).tolist()
            parts = [lru[0][name] for name in ("right", "spare", "missed")]
            assert parts == [uses[on].sum(), m * on.sum() - uses[on].sum(), uses[~on].sum()]
    assert screen.complaints == []


@pytest.mark.parametrize("name", CASES)
def test_shows_the_numbers_of_the_published_map(screen, name):
    page = screen.open(PAGE)
    page.get_by_label(name, exact=True).check()
    trace = published_trace(name)
    move(page, m=8, size=3)
    assert number(page, "srp") == f"{lrc.srp(trace, 8)['srp'].item():.3f}"
    assert number(page, "chance") == f"{lrc.chance((16, 2), 8)['srp'].item():.3f}"
    rates = {"LRU": lrc.hit_rates(trace, "lru"), "SCH, look-ahead": lrc.sch(trace, 8)}
    rates["SCH, static"] = lrc.sch(trace, 8, definition="static")
    for policy, table in rates.items():
        page.locator("#windows").get_by_label(policy).check()
        rate = table.set_index("cache_size")["hit_rate"][3]
        assert number(page, "rate") == f"{rate:.3f}"


def test_window_and_threshold_change_the_score(screen):
    page = screen.open(PAGE)
    uses = published_trace("GRIN-MoE, layer 21").experts[0, :, 0]
    for start, m, threshold in ((0, 16, 3), (20, 8, 1), (48, 16, 9)):
        move(page, m=m, start=start, threshold=threshold)
        here = np.bincount(uses[start : start + m].ravel(), minlength=16)
        on = here[here >= threshold]
        assert number(page, "on") == str(len(on))
        assert number(page, "right") == str(on.sum())
        assert number(page, "f1") == f"{2 * on.sum() / (m * len(on) + here.sum()):.3f}"
    page.get_by_role("button", name="Best threshold").click()
    assert number(page, "f1") == number(page, "best-f1")


def test_keys_and_dragging_move_the_window(screen):
    page = screen.open(PAGE)
    start = page.locator("#windows input[name=start]")
    before = int(start.input_value())
    start.focus()
    page.keyboard.press("ArrowRight")
    expect(start).to_have_value(str(before + 1))
    page.keyboard.press("Home")
    expect(start).to_have_value("0")
    drawing = page.locator("#windows svg")
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 40)
    page.mouse.up()
    moved = int(start.input_value())
    assert 20 < moved < 48
    assert f"window of tokens {moved} to {moved + 15}" in drawing.get_attribute("aria-label")
    move(page, start=60, m=32)
    expect(start).to_have_value("32")  # no window passes the end of the text


def test_controls_have_names(screen):
    page = screen.open(PAGE)
    unnamed = page.eval_on_selector_all(
        "#windows input, #windows button",
        "all => all.filter(n => !(n.labels?.length || n.innerText))",
    )
    assert unnamed == []


def test_a_still_figure_stands_in_where_no_script_runs(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((HTML / PAGE).as_uri())
    expect(page.locator("#windows img")).to_be_visible()
    context.close()


def test_a_finger_on_a_phone(phone):
    page = phone.open(PAGE)
    page.locator("#windows").get_by_text("Jamba-Mini, layer 25").tap()
    assert (
        number(page, "srp")
        == f"{lrc.srp(published_trace('Jamba-Mini, layer 25'), 16)['srp'].item():.3f}"
    )
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
