"""The page of votes in Chromium: votes by key, undo, two people, a server that is killed, and answers that attack.

Skipped where Chromium or playwright is absent.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from annotating import Served, folder_of, pair_of

from pipeline.annotate import material
from pipeline.annotate.ballots import Ballots

pytestmark = pytest.mark.slow

HOSTILE = [
    "<script>alert(1)</script>",
    "</textarea></script><img src=x onerror=alert(2)>",
    "[click](javascript:alert(3)) <a href='javascript:alert(4)'>here</a>",
    "\u202eright to left\u202c and مرحبا",
    "{{7*7}} {% raw %} ${alert(5)}",
    "w" * 3000,
    "<style>body{display:none}</style><base href='http://evil.example/'>",
    '"><svg onload=alert(6)>\u2028\u0000end',
]


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page as somebody; fails the test if it asked another server, said anything or raised anything."""
    contexts, happened = [], []

    def show(address: str, who: str, width: int = 1280, language: str = "en", scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, locale=language, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("dialog", lambda dialog: (happened.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(address) or happened.append(request.url))
        page.on("console", lambda message: "ERR_CONNECTION" in message.text or happened.append(message.text))
        page.on("pageerror", lambda error: happened.append(str(error)))
        enter(page, address, who)
        return page

    yield show
    for context in contexts:
        context.close()
    assert happened == []


def enter(page: Any, address: str, who: str) -> None:
    page.goto(address)
    page.locator("#annotator").fill(who)
    page.locator("#annotator").press("Enter")
    page.locator("#work").wait_for()


def press(page: Any, key: str) -> None:
    """A key, and the server's answer to it."""
    with page.expect_response(lambda reply: reply.request.method == "POST" and reply.ok):
        page.keyboard.press(key)
    page.locator("#question:not([aria-busy])").wait_for(state="attached")


def choices(folder: Path) -> dict[str, tuple[str, str]]:
    """Annotator and the beginning of the answer they chose, by the prompt."""
    found = {}
    for pair, vote, _ in Ballots(folder / material.DATABASE).votes():
        text = "tie" if vote.choice == "tie" else getattr(pair, vote.choice).text.split()[0]
        found[pair.prompt.text] = (vote.annotator, text)
    return found


def test_thirty_votes_by_keyboard_are_what_was_seen_and_undo_takes_back(tmp_path: Path, opened: Any) -> None:
    folder = folder_of(tmp_path, [pair_of(n) for n in range(30)])
    expected = {}
    with Served(folder, "--double", "0") as server:
        page = opened(server.address, "Ann")
        for number in range(30):
            asked, left = page.locator("#messages").inner_text(), page.locator("#left").inner_text()
            if number == 10:
                press(page, "ArrowLeft")
                press(page, "u")
                assert page.locator("#messages").inner_text() == asked
                assert page.locator("#status").inner_text() == "Taken back. You had chosen: Answer 1."
            key = "=" if number % 10 == 0 else "ArrowLeft" if left.startswith("good") else "ArrowRight"
            expected[asked] = ("Ann", "tie" if key == "=" else "good")
            press(page, key)
        assert page.get_by_role("heading", name="Nothing is left for you").is_visible()
        assert page.locator("#count").inner_text() == "30 of 30 votes · 30 by you"
    assert choices(folder) == expected and len(expected) == 30


def test_keys_in_a_note_are_letters_and_the_note_is_kept_with_the_vote(tmp_path: Path, opened: Any) -> None:
    folder = folder_of(tmp_path, [pair_of(0), pair_of(1)])
    with Served(folder, "--double", "0") as server:
        page = opened(server.address, "Ann")
        page.keyboard.press("n")
        page.keyboard.type("sunny = unusual")
        page.keyboard.press("Escape")
        press(page, "ArrowRight")
        assert page.locator("#note").input_value() == ""
        press(page, "s")
        press(page, "u")
        press(page, "u")
        assert page.locator("#note").input_value() == "sunny = unusual"
        assert page.locator("[data-choice=right]").evaluate("node => node.classList.contains('chosen')")
        press(page, "=")
    assert [vote.note for _, vote, _ in Ballots(folder / material.DATABASE).votes()] == ["sunny = unusual"]


def test_two_people_at_once_share_the_work_and_two_tabs_of_one_do_not_repeat_it(tmp_path: Path, opened: Any) -> None:
    folder = folder_of(tmp_path, [pair_of(n) for n in range(12)])
    with Served(folder, "--double", "0") as server:
        ann, ben = opened(server.address, "Ann"), opened(server.address, "Ben", width=390)
        tab = ann.context.new_page()
        tab.goto(server.address)
        tab.locator("#work").wait_for()
        seen = [page.locator("#messages").inner_text() for page in (ann, ben, tab)]
        assert len(set(seen)) == 3
        for _ in range(4):
            for page in (ann, tab):
                press(page, "ArrowLeft")
            with ben.expect_response("**/vote"):
                ben.get_by_role("button", name="Answer 2").click()
            ben.locator("#question:not([aria-busy])").wait_for(state="attached")
        ann.reload()
        ann.get_by_role("heading", name="Nothing is left for you").wait_for()
    assert sorted(who for who, _ in choices(folder).values()) == ["Ann"] * 8 + ["Ben"] * 4


def test_a_vote_cast_while_the_server_is_dead_is_not_called_saved_and_none_is_lost(tmp_path: Path, opened: Any) -> None:
    folder = folder_of(tmp_path, [pair_of(n) for n in range(6)])
    with Served(folder, "--double", "0") as server:
        page = opened(server.address, "Ann")
        for _ in range(3):
            press(page, "ArrowLeft")
        server.kill()
        asked = page.locator("#messages").inner_text()
        page.keyboard.press("ArrowLeft")
        page.get_by_role("alert").get_by_text("Not saved: the server does not answer").wait_for()
        assert page.locator("#status").inner_text() != "Saved."
    with Served(folder, "--double", "0") as server:
        page = opened(server.address, "Ann")
        assert page.locator("#count").inner_text() == "3 of 6 votes · 3 by you"
        assert page.locator("#messages").inner_text() == asked
        for _ in range(3):
            press(page, "ArrowRight")
    assert len(choices(folder)) == 6


def test_hostile_answers_are_shown_as_text_and_do_nothing(tmp_path: Path, opened: Any) -> None:
    pairs = [pair_of(n, text, f"{text} again") for n, text in enumerate(HOSTILE)]
    pairs = [pair.model_copy(update={"prompt": pair.prompt.model_copy(update={"lang": '"><i>'})}) for pair in pairs]
    with Served(folder_of(tmp_path, pairs), "--double", "0") as server:
        page = opened(server.address, "<b>Ann</b>", width=390)
        shown = set()
        for _ in pairs:
            shown.add(min((page.locator(f"#{side}").text_content() for side in ("left", "right")), key=len))
            assert page.locator("#work :is(img, a, script, svg, style, base, i, b)").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            note = page.locator("#note")
            note.fill("</textarea><script>alert(7)</script>")
            note.blur()
            press(page, "ArrowLeft")
        assert shown == set(HOSTILE)
        assert page.locator("#name").inner_text() == "<b>Ann</b>"


def test_the_page_speaks_french_to_who_asks_for_it_and_can_be_switched(tmp_path: Path, opened: Any) -> None:
    with Served(folder_of(tmp_path, [pair_of(0)])) as server:
        page = opened(server.address, "Zoé", language="fr-FR")
        assert page.get_by_role("button", name="Égalité").is_visible()
        assert page.locator("html").get_attribute("lang") == "fr"
        page.get_by_role("link", name="English").click()
        page.get_by_role("button", name="Equal").wait_for()
        assert page.locator("#name").inner_text() == "Zoé"
