"""The report in Chromium: hostile text does nothing, nothing is requested, the filters filter, keys are enough.

Skipped where Chromium or playwright is absent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, example

from pipeline.report.data import ReportData
from pipeline.report.render import render

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a report; fails the test if the page asked for anything, said anything or raised anything."""
    contexts, happened = [], []

    def show(data: ReportData, width: int = 1280, scheme: str = "light") -> Any:
        place = tmp_path / "report.html"
        place.write_text(render(data)["report.html"], "utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("dialog", lambda dialog: (happened.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: happened.append(request.url))
        page.on("console", lambda message: happened.append(message.text))
        page.on("pageerror", lambda error: happened.append(str(error)))
        page.goto(place.as_uri())
        happened.remove(place.as_uri())  # the report itself is the one request
        return page

    yield show
    for context in contexts:
        context.close()
    assert happened == []


def cards(page: Any) -> Any:
    return page.locator("#samples article")


def total(page: Any) -> str:
    return str(page.locator("#count").inner_text())


def test_hostile_text_is_shown_as_text_and_does_nothing(opened: Any) -> None:
    page = opened(example(30, hostile=True))
    while True:
        page.wait_for_timeout(50)
        assert page.locator("img, iframe, svg[onload], #samples script").count() == 0
        if page.get_by_role("button", name="Next").is_disabled():
            break
        page.get_by_role("button", name="Next").click()
    assert page.locator("#samples", has_text=HOSTILE[0]).count() == 1


def test_an_answer_of_100_kilobytes_is_shown_in_part_and_then_whole(opened: Any) -> None:
    data = example(12)
    long = "word " * 20_000
    sample = data.samples[0].model_copy(update={"answers": {"base": long}})
    page = opened(data.model_copy(update={"samples": (sample,)}))
    body = page.locator(".answer .text")
    assert len(body.text_content()) < 10_000
    page.get_by_role("button", name="Show all 100,000 characters").click()
    assert body.text_content() == long


def test_search_finds_words_of_prompts_and_answers_and_marks_them(opened: Any) -> None:
    data = example(40)
    page = opened(data)
    assert total(page) == "1 to 5 of 40 prompts"
    page.get_by_label("Search").fill("HAIKU")
    assert total(page) == "1 to 5 of 10 found, 40 in all"
    assert cards(page).count() == 5
    assert set(page.locator("mark").all_inner_texts()) == {"haiku"}
    page.get_by_label("Search").fill("no such words")
    assert total(page) == "No prompt fits these filters."
    assert cards(page).count() == 0


def test_kind_and_language_filter_together(opened: Any) -> None:
    page = opened(example(40))
    page.get_by_label("Kind").select_option("explain")
    assert total(page).endswith("20 found, 40 in all")
    page.get_by_label("Language").select_option("fr")
    assert total(page).endswith("10 found, 40 in all")


@pytest.mark.parametrize("judge", ["likelihood", "rules"])
@pytest.mark.parametrize("key", ["dpo vs base", "dpo vs kto"])
def test_outcomes_are_those_of_the_chosen_judge_and_comparison(opened: Any, judge: str, key: str) -> None:
    data = example(40)
    given = [sample.scores[judge][key] for sample in data.samples]
    expected = {
        "won": sum(p is not None and p > 0.5 for p in given),
        "lost": sum(p is not None and p < 0.5 for p in given),
        "tie": given.count(0.5),
        "none": given.count(None),
    }
    page = opened(data)
    page.locator("select[name=comparison]").select_option(label=key)
    page.locator("select[name=judge]").select_option(label=judge)
    for outcome, count in expected.items():
        page.get_by_label("Outcome").select_option(outcome)
        shown = total(page)
        assert shown.endswith(f"{count} found, 40 in all") if count else shown == "No prompt fits these filters."


def test_the_outcomes_name_the_checkpoint_of_the_chosen_comparison(opened: Any) -> None:
    page = opened(example(12))
    page.locator("select[name=comparison]").select_option(label="kto vs base")
    assert page.get_by_label("Outcome").locator("option").all_inner_texts() == [
        "any", "kto won", "kto lost", "tie", "no verdict",
    ]  # fmt: skip


def test_pages_are_turned_by_keyboard_alone(opened: Any) -> None:
    page = opened(example(12))
    first = cards(page).first.inner_text()
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    assert total(page) == "6 to 10 of 12 prompts"
    page.keyboard.press("Enter")
    assert total(page) == "11 to 12 of 12 prompts"
    page.get_by_role("button", name="Previous").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert cards(page).first.inner_text() == first


def test_150_prompts_with_four_answers_are_filtered_at_once(opened: Any) -> None:
    page = opened(example(150))
    took = page.evaluate(
        """() => { const box = document.querySelector("input[type=search]"), began = performance.now();
        for (const word of ["b", "bl", "blu", "blue"]) { box.value = word; box.dispatchEvent(new Event("input")); }
        document.body.offsetHeight; return (performance.now() - began) / 4; }"""
    )
    assert took < 250  # milliseconds a keystroke


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    for data in (example(12), example(12, hostile=True)):
        page = opened(data, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_is_dark_where_the_reader_wants_it_dark(opened: Any) -> None:
    shades = []
    for scheme in ("light", "dark"):
        page = opened(example(12), scheme=scheme)
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(map(int, shade.removeprefix("rgb(").removesuffix(")").split(","))))
    assert shades[0] > 3 * 230 and shades[1] < 3 * 40


def test_printing_opens_what_is_folded(opened: Any) -> None:
    page = opened(example(12))
    assert page.locator("details[open]").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
