"""The report in Chromium: hostile text does nothing, nothing is requested, filters filter, keys are enough, it prints.

Skipped where Chromium or playwright is absent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, example, measured
from test_report_parts import many

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


def choose(page: Any, **values: str) -> None:
    for name, label in values.items():
        page.locator(f"select[name={name}]").select_option(label=label)


def test_hostile_text_is_shown_as_text_and_does_nothing(opened: Any) -> None:
    page = opened(measured(example(30, hostile=True), HOSTILE[0].__add__))
    shown = ""
    while True:
        page.keyboard.press("Escape")
        page.locator("#answers").focus()
        page.keyboard.press("e")
        # Nothing of a text became an element, in the samples, in their evidence or anywhere else.
        assert page.locator("img, iframe, a[href^='javascript'], svg[onload], #samples script, textarea").count() == 0
        assert page.locator("body > *").count() == 1
        shown += page.locator("#samples").text_content()
        if page.get_by_role("button", name="Next").is_disabled():
            break
        page.get_by_role("button", name="Next").click()
    page.wait_for_timeout(50)
    assert all(text.split("\x00")[0] in shown for text in HOSTILE)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    for data in (many(example(12)), measured(example(12, hostile=True), HOSTILE[-1].__add__)):
        page = opened(data, width)
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_an_answer_of_20_kilobytes_is_shown_in_part_and_then_whole_and_a_longer_one_says_that_it_is_cut(
    opened: Any,
) -> None:
    data, long = example(12), "word " * 4000
    first = data.samples[0].model_copy(update={"answers": {"dpo": long, "base": long + "and more"}})
    page = opened(data.model_copy(update={"samples": (first,)}))
    bodies = page.locator(".answer .text")
    assert len(bodies.first.text_content()) < 10_000
    page.get_by_role("button", name="Show all 20,000 characters").first.click()
    assert bodies.first.text_content() == long
    assert page.get_by_text("Cut here: the whole text has 20,008 characters.").count() == 1


def test_search_category_and_language_filter_together_and_marks_what_was_searched(opened: Any) -> None:
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
    page.get_by_label("Search").fill("")
    page.get_by_label("Category").select_option("explain")
    assert total(page).endswith("20 found, 40 in all")
    page.get_by_label("Language").select_option("fr")
    assert total(page).endswith("10 found, 40 in all")


def test_who_won_is_counted_by_the_chosen_judge_for_the_chosen_two_whichever_is_on_the_left(opened: Any) -> None:
    data = example(40)
    page = opened(data)
    for judge, key in (("likelihood", "dpo vs base"), ("rules", "dpo vs kto")):
        given = [sample.scores[judge][key] for sample in data.samples]
        won, lost = (sum(p is not None and (p > 0.5 if up else p < 0.5) for p in given) for up in (True, False))
        one, other = key.split(" vs ")
        for left, right in ((one, other), (other, one)):
            choose(page, left=left, right=right, judge=judge)
            counts = {one: won, other: lost, "tie": given.count(0.5), "no verdict": given.count(None)}
            for outcome, count in counts.items():
                choose(page, outcome=outcome)
                shown = total(page)
                assert shown.endswith(f"{count} found, 40 in all") if count else shown.startswith("No prompt"), outcome
        choose(page, outcome="any")


def test_disagreement_of_the_judges_and_the_order_by_how_clear_it_is(opened: Any) -> None:
    data = example(40)
    page = opened(data)
    pairs = [[sample.scores[judge]["dpo vs base"] for judge in ("likelihood", "rules")] for sample in data.samples]
    split = sum(p is not None and q is not None and (p - 0.5) * (q - 0.5) < 0 for p, q in pairs)
    choose(page, left="dpo", right="base", judge="likelihood", outcome="judges disagree")
    assert total(page).endswith(f"{split} found, 40 in all")
    choose(page, outcome="any", order="clearest first")
    best = max(range(40), key=lambda place: abs((pairs[place][0] or 0.5) - 0.5))
    assert page.locator(".about").first.inner_text().startswith(f"Prompt {best + 1} ")
    choose(page, order="closest first")
    assert page.locator(".about").first.inner_text().startswith("Prompt ")
    shown = page.locator(".answer .scores dd").first.inner_text()
    assert shown.startswith("50")


def test_choosing_one_checkpoint_twice_exchanges_the_two_and_all_of_them_can_be_shown(opened: Any) -> None:
    page = opened(example(12))
    assert page.locator("select[name=left] option:checked").inner_text() == "dpo"  # the strongest
    choose(page, left="base")
    assert page.locator("select[name=right] option:checked").inner_text() == "dpo"
    assert page.locator("article").first.locator(".answer").count() == 2
    choose(page, show="all 4 checkpoints")
    assert page.locator("article").first.locator(".answer").count() == 4
    # Of the three others it was compared with base and kto.
    assert "of 2 beaten" in page.locator("article").first.locator(".answer").nth(2).inner_text()


def test_keys_are_enough_inside_of_the_answers_and_do_nothing_outside(opened: Any) -> None:
    page = opened(example(12))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    assert total(page) == "1 to 5 of 12 prompts" and page.evaluate("document.activeElement.tagName") == "BODY"
    page.locator("#answers").focus()
    page.keyboard.press("ArrowRight")
    assert total(page) == "6 to 10 of 12 prompts"
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.firstChild.textContent").startswith("Prompt 7 ")
    page.keyboard.press("e")
    assert page.locator(".evidence[open]").count() == 1
    page.keyboard.press("k")
    page.keyboard.press("k")  # back over the edge of the page
    assert total(page) == "1 to 5 of 12 prompts"
    assert page.evaluate("document.activeElement.firstChild.textContent").startswith("Prompt 5 ")
    page.keyboard.press("/")
    page.keyboard.type("jk/e")  # in the box these are letters
    assert page.get_by_label("Search").input_value() == "jk/e"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "answers"


def test_the_tab_key_goes_through_links_controls_and_pages_in_their_order_with_a_visible_focus(opened: Any) -> None:
    page = opened(example(12))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#win-rate"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.get_by_label("Search").focus()
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "2px"
    assert order == ["kind", "lang", "left", "right", "judge", "outcome", "order"]
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    assert total(page) == "6 to 10 of 12 prompts"


def test_150_prompts_with_four_answers_are_filtered_at_once(opened: Any) -> None:
    page = opened(example(150))
    took = page.evaluate(
        """() => { const box = document.querySelector("input[type=search]"), began = performance.now();
        for (const word of ["b", "bl", "blu", "blue"]) { box.value = word; box.dispatchEvent(new Event("input")); }
        document.body.offsetHeight; return (performance.now() - began) / 4; }"""
    )
    assert took < 250  # milliseconds a keystroke


def test_the_page_is_dark_where_the_reader_wants_it_dark(opened: Any) -> None:
    shades = []
    for scheme in ("light", "dark"):
        page = opened(example(12), scheme=scheme)
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(map(int, shade.removeprefix("rgb(").removesuffix(")").split(","))))
    assert shades[0] > 3 * 230 and shades[1] < 3 * 40


def test_on_paper_nothing_is_folded_or_cut_and_no_control_is_left(opened: Any) -> None:
    data = example(12)
    long = data.samples[0].model_copy(update={"answers": {"dpo": "word " * 1000, "base": "yes"}})
    page = opened(data.model_copy(update={"samples": (long,)}))
    assert page.locator("details[open]").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert not any(page.locator(which).first.is_visible() for which in ("nav", "#filters", ".keys", "#pager"))
    cut = """() => [...document.querySelectorAll('.body, .turn, .code')]
        .filter((box) => box.scrollHeight > box.clientHeight + 1).length"""
    assert page.evaluate(cut) == 0
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
