"""The books: nothing over the budget, nothing paid twice, nothing forgotten."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from judges.ledger import Ledger, Result, bill
from pipeline.errors import DataError


def books(path: Path, budget: float | None = None, account: str = "run") -> Ledger:
    return Ledger(path / "journal.sqlite", account, "label", "llm", budget)


def test_a_reserve_is_the_charge_until_somebody_knows_better(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        one = await ledger.reserve("k1", 0, 1000)
        two = await ledger.reserve("k2", 0, 1000)
        three = await ledger.reserve("k3", 0, 1000)
        assert one and two and three
        await ledger.settle(one, "k1", 1000, Result("ok", 250, 100, 1, 0.2, {"text": "K"}))
        await ledger.settle(two, "k2", 1000, Result("transient", None))
        # the third is under way when the process dies

    ledger = books(tmp_path)
    asyncio.run(work(ledger))
    assert ledger.charged() == 250 + 1000 + 1000
    assert ledger.reply("k1") == {"text": "K"}
    assert ledger.reply("k2") is None
    ledger.close()
    (line,) = bill(tmp_path / "journal.sqlite", "run")
    assert line == ("label", "llm", 3, 2, 100, 1, pytest.approx(2250e-9))


def test_the_reserve_that_would_pass_the_budget_is_refused_and_a_smaller_one_is_not(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> list[int | None]:
        return [await ledger.reserve(f"k{n}", 0, amount) for n, amount in enumerate((600, 600, 400, 1))]

    ledger = books(tmp_path, budget=1000e-9)
    first, second, third, fourth = asyncio.run(work(ledger))
    assert first and third and second is None and fourth is None
    assert ledger.charged() == 1000


def test_many_at_once_in_two_books_of_one_account_never_pass_the_budget_together(tmp_path: Path) -> None:
    async def work(one: Ledger, other: Ledger) -> int:
        asked = [(one, other)[n % 2].reserve(f"k{n}", 0, 7) for n in range(400)]
        return sum(found is not None for found in await asyncio.gather(*asked))

    one, other = books(tmp_path, budget=1000e-9), books(tmp_path, budget=1000e-9)
    assert asyncio.run(work(one, other)) == 1000 // 7
    assert one.charged() == 7 * (1000 // 7)


def test_the_first_reply_to_a_question_stays_for_every_account(tmp_path: Path) -> None:
    async def answer(ledger: Ledger, text: str) -> None:
        call = await ledger.reserve("k", 0, 5)
        assert call
        await ledger.settle(call, "k", 5, Result("ok", 1, reply={"text": text}))

    asyncio.run(answer(books(tmp_path), "first"))
    asyncio.run(answer(books(tmp_path, account="other"), "second"))
    assert books(tmp_path, account="third").reply("k") == {"text": "first"}


def test_a_refusal_is_final_for_the_account_that_was_refused_and_for_no_other(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        call = await ledger.reserve("k", 0, 5)
        assert call
        await ledger.settle(call, "k", 5, Result("refused", 3, 10, 2))

    asyncio.run(work(books(tmp_path)))
    assert books(tmp_path).reply("k") == {"outcome": "refused", "tokens_in": 10, "tokens_out": 2, "cost": 3}
    assert books(tmp_path, account="other").reply("k") is None


def test_an_attempt_that_two_processes_waited_for_ends_once_and_gives_its_reserve_back_once(tmp_path: Path) -> None:
    async def work(one: Ledger, other: Ledger) -> None:
        call = await one.reserve("k", 0, 1000)
        assert call
        for ledger in (one, other):
            await ledger.settle(call, "k", 1000, Result("ok", 250, reply={"text": "K"}))

    one = books(tmp_path)
    asyncio.run(work(one, books(tmp_path)))
    assert one.charged() == 250


def test_accounts_do_not_pay_for_each_other(tmp_path: Path) -> None:
    asyncio.run(books(tmp_path, account="a").reserve("k", 0, 5))
    assert books(tmp_path, account="b").charged() == 0
    assert bill(tmp_path / "journal.sqlite", "b") == []
    assert bill(tmp_path / "nothing here.sqlite", "a") == []


def test_books_that_cannot_be_written_stop_the_asking(tmp_path: Path) -> None:
    ledger = books(tmp_path)
    asyncio.run(ledger.reserve("k", 0, 5))
    with sqlite3.connect(tmp_path / "journal.sqlite") as connection:
        connection.execute("DROP TABLE calls")
    with pytest.raises(DataError, match="nothing more is asked"):
        asyncio.run(ledger.reserve("k", 0, 5))


def test_what_cannot_be_written_is_an_error_for_whoever_hands_it_in_and_for_nobody_else(tmp_path: Path) -> None:
    async def settled(ledger: Ledger, key: str, text: str) -> None:
        call = await ledger.reserve(key, 0, 5)
        assert call
        await ledger.settle(call, key, 5, Result("ok", 1, reply={"text": text}))

    async def work(ledger: Ledger) -> list[BaseException | None]:
        texts = {"k1": "first", "k2": "half an emoji: \ud83d", "k3": "third"}
        asked = [settled(ledger, key, text) for key, text in texts.items()]
        async with asyncio.timeout(10):
            return await asyncio.gather(*asked, return_exceptions=True)

    ledger = books(tmp_path)
    first, second, third = asyncio.run(work(ledger))
    assert (first, third) == (None, None) and isinstance(second, UnicodeEncodeError)
    assert [ledger.reply(key) for key in ("k1", "k2", "k3")] == [{"text": "first"}, None, {"text": "third"}]
    assert ledger.charged() == 1 + 5 + 1  # nobody knows of the second: its reserve


def test_a_ledger_without_a_file_keeps_books_as_long_as_it_lives() -> None:
    ledger = Ledger(None, "run")
    assert asyncio.run(ledger.reserve("k", 0, 5))
    assert ledger.charged() == 5
