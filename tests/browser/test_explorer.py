"""The explorer answers clicks, keys and addresses, with the numbers of lrc's tables."""

from itertools import product
from pathlib import Path

import pytest
from conftest import DESKTOP, HTML, Screen
from playwright.sync_api import expect

from lrc import architectures, curves

PAGE = "book/explorer.html"


@pytest.fixture
def screen(browser):
    context = browser.new_context(**DESKTOP)
    yield Screen(context.new_page())
    context.close()


def row(page, key):
    return page.locator(f"tr[data-model='{key}']")


def numbers(page, key):
    return row(page, key).locator("td").first.inner_text().split()


def test_the_first_view(screen):
    page = screen.open(PAGE)
    expect(page.locator("#explore img")).to_have_count(0)  # the still figure has made room
    expect(page.locator(".panel")).to_have_count(2)
    expect(page.locator("[data-kind=published] .model")).to_have_count(22)
    expect(page.locator("[data-kind=toy] .model")).to_have_count(10)
    assert screen.complaints == []


def test_kinds_of_evidence_stay_apart(screen):
    page = screen.open(PAGE + "#models=grin,toy:baseline")
    badges = page.locator(".panel .badge-kind").all_inner_texts()
    assert badges == ["Published figures", "Toy models"]
    assert page.locator("tbody").count() == 2
    colors = {
        badge.evaluate("node => getComputedStyle(node).backgroundColor")
        for badge in page.locator(".panel .badge-kind").all()
    }
    assert len(colors) == 2


@pytest.mark.parametrize("length", [16, 256])
def test_scores_are_those_of_the_table(screen, length):
    page = screen.open(f"{PAGE}#m={length}")
    models = architectures.published_models(length, parts=True)
    table = models.set_index("model")
    told = page.eval_on_selector_all(
        "[data-kind=published] .model",
        "all => all.map(label => [label.control.value, label.querySelector('.value').innerText])",
    )
    for key, shown in told:
        if key not in table.index:
            assert shown == "not published"
        else:
            values = [float(value) for value in shown.split("/")]
            assert values == pytest.approx(table.loc[key, ["srp", "chance"]].tolist(), abs=6e-4)
    page.get_by_label("share above chance").check()
    first = page.locator("[data-kind=published] .model").first
    best = table["excess"].idxmax()
    assert first.locator("input").get_attribute("value") == best
    assert first.locator(".value").inner_text() == f"{table.loc[best, 'excess']:.3f}"


def test_clicks_choose_models_and_rates_are_those_of_the_curves(screen):
    page = screen.open(PAGE + "#models=qwen3")
    page.locator("input[name=models][value=grin]").check()
    expect(page.locator(".panel")).to_have_count(2)
    table = curves.of_published_models(16)
    for ratio in ("0.1", "1.3", "2", "3.9", "4"):
        page.locator("input[name=ratio]").fill(ratio)
        rates = curves.at_ratios(table, float(ratio)).set_index(["model", "policy"])["hit_rate"]
        for key in ("qwen3", "grin"):
            wanted = [rates[key, policy] for policy in ("sch", "belady", "lru", "lfu")]
            assert [*map(float, numbers(page, key))] == pytest.approx(wanted, abs=6e-4)
    page.locator("input[name=models][value=qwen3]").uncheck()
    expect(page.locator(".panel")).to_have_count(1)
    assert screen.complaints == []


def test_the_cache_is_the_smallest_of_the_table(screen):
    page = screen.open(PAGE)
    published = curves.of_published_models(64)
    for policy, percent in product(("sch", "belady", "lru", "lfu"), (60, 80, 93)):
        chosen = f"models=qwen3,mixtral,openmoe&m=64&policy={policy}&target={percent}"
        page.evaluate("chosen => { location.hash = chosen; }", chosen)
        expect(page.locator("thead")).to_contain_text(f"for {percent} %")
        expect(page.locator("input[name=policy]:checked")).to_have_value(policy)
        table = published[published["policy"] == policy]
        sizes = curves.smallest(table, percent / 100).set_index("model")["cache_ratio"]
        bends = {kind: curves.bends(table, kind).set_index("model") for kind in ("chord", "gain")}
        for key, experts, top_k in (("qwen3", 128, 8), ("mixtral", 8, 2), ("openmoe", 32, 2)):
            cells = row(page, key).locator("td").all_inner_texts()
            needed = sizes[key] * top_k
            if sizes[key] > 4:
                assert cells[1:4] == ["more than 4×", "–", "–"]
            else:
                assert cells[1] == f"{round(sizes[key], 2):g}×"
                assert cells[2] == f"{round(needed, 1):g} of {experts}"
                assert float(cells[3].removesuffix(" %")) == pytest.approx(
                    100 * needed / experts, abs=0.06
                )
            for cell, table_of_bends in zip(cells[4:], bends.values(), strict=True):
                bend = table_of_bends.loc[key, "cache_ratio"]
                assert cell == ("–" if bend != bend else f"{round(bend, 2):g}×")


def test_keys_move_what_has_the_focus(screen):
    page = screen.open(PAGE)
    page.locator("input[name=target]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("output[for=explore-target]")).to_have_text("81 %")
    page.locator("input[name=m]:checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("input[name=m]:checked")).to_have_value("64")
    page.locator("input[name=models][value=olmoe]").focus()
    page.keyboard.press("Space")
    expect(page.locator(".panel[data-model=olmoe]")).to_be_visible()
    assert page.evaluate("document.activeElement.value") == "olmoe"
    page.keyboard.press("Space")
    expect(page.locator(".panel[data-model=olmoe]")).to_have_count(0)


def test_the_address_keeps_what_is_chosen(screen):
    page = screen.open(PAGE)
    page.locator("input[name=models][value='switch encoder']").check()
    page.locator("input[name=policy][value=lfu]").check()
    page.locator("input[name=ratio]").fill("3.1")
    address = page.evaluate("location.hash")
    page = screen.open(PAGE + address)
    expect(page.locator("input[name=policy]:checked")).to_have_value("lfu")
    expect(page.locator("input[name=ratio]")).to_have_value("3.1")
    assert page.locator(".panel").all_inner_texts()[2].startswith("Switch-Base-128 encoder")
    page.evaluate("location.hash = '#m=256&models=jamba'")
    expect(page.locator(".panel")).to_have_count(1)
    expect(page.locator("input[name=m]:checked")).to_have_value("256")


def test_an_address_that_cannot_be_is_left(screen):
    page = screen.open(PAGE + "#m=17&models=nobody,grin&ratio=99&target=x&show=%3Cb%3E&policy=fifo")
    expect(page.locator("input[name=m]:checked")).to_have_value("16")
    expect(page.locator("input[name=ratio]")).to_have_value("2")
    expect(page.locator("input[name=target]")).to_have_value("80")
    expect(page.locator(".panel")).to_have_count(1)
    assert screen.complaints == []


def test_a_still_figure_stands_in_where_no_script_runs(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((HTML / PAGE).as_uri())
    expect(page.locator("#explore img")).to_be_visible()
    assert "Qwen3" in page.locator("#explore img").get_attribute("alt")
    context.close()


def test_a_finger_on_a_phone(phone):
    page = phone.open(PAGE)
    page.locator("input[name=models][value=phi]").tap()
    expect(page.locator(".panel[data-model=phi]")).to_be_visible()
    page.get_by_text("64", exact=True).tap()
    expect(page.locator("input[name=m]:checked")).to_have_value("64")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


def test_nothing_is_typed_into_the_script():
    """Every number that is shown comes from the data that lrc wrote."""
    script = (Path(__file__).parents[2] / "book/_static/explorer.js").read_text(encoding="utf-8")
    assert not [model for model in architectures.published_models()["model"] if model in script]
