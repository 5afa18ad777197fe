"""The same verdicts through the Batch API, for half the money, whatever is killed in between."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bench.label_step import pair_of, write_pairs
from servers import Server, judge_server

from judges.base import Session
from judges.both_orders import Config as BothOrders
from judges.ledger import Ledger, bill
from pipeline.errors import BudgetError, JudgeError
from pipeline.records import Pair, Verdict

PAIRS = [pair_of(number, 40) for number in range(40)]
ROOT = Path(__file__).parents[2]
STEP = Path(__file__).parents[1] / "bench" / "label_step.py"


def block(server: Server, **options: Any) -> dict[str, Any]:
    price = {"input": 0.4, "output": 1.6}
    return {"name": "llm", "model": "m", "base_url": server.url, "price": price, "limits": {"timeout_s": 2}, **options}


def judged(
    server: Server, top: Path, budget: float | None = None, pairs: Sequence[Pair] = PAIRS, **options: Any
) -> list[Verdict]:
    judge = BothOrders.model_validate({"of": block(server, **options)})
    session = Session(journal=top / "journal.sqlite", run=top.name, budget_usd=budget)
    return judge.build(session).judge(pairs)


def batch(**options: Any) -> dict[str, Any]:
    return {"poll_s": 0.05, **options}


def test_a_batch_gives_the_verdicts_that_asking_one_by_one_gives_for_half_the_money(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with judge_server(accuracy=0.8, bias=1.5, unreadable=0.05) as server:
        online = judged(server, tmp_path / "a")
        batched = judged(server, tmp_path / "b", batch=batch())
        assert [verdict.p_a for verdict in batched] == [verdict.p_a for verdict in online]
        costs = [sum(verdict.cost_usd for verdict in verdicts) for verdicts in (batched, online)]
        assert costs[0] == pytest.approx(costs[1] / 2, rel=1e-4)


def test_what_failed_in_a_batch_goes_into_the_next_one(tmp_path: Path) -> None:
    with judge_server(only="500", first=1) as server:
        verdicts = judged(server, tmp_path, batch=batch())
        assert all(verdict.p_a is not None for verdict in verdicts)
        (line,) = bill(tmp_path / "journal.sqlite", tmp_path.name)
        assert line.calls - line.failed == 2 * len(PAIRS) + 1


def test_many_questions_go_into_several_batches(tmp_path: Path) -> None:
    with judge_server() as server:
        verdicts = judged(server, tmp_path, batch=batch(requests=30))
        assert all(verdict.p_a is not None for verdict in verdicts)
        assert server.tell("batches")["data"][0]["id"] == "batch-2"  # 80 questions by 30


def test_a_batch_stops_at_the_budget_with_its_paid_answers_kept(tmp_path: Path) -> None:
    with judge_server() as server:
        with pytest.raises(BudgetError, match="raise it and run the same command again"):
            judged(server, tmp_path, 0.003, batch=batch())
        ledger = Ledger(tmp_path / "journal.sqlite", tmp_path.name)
        calls = server.tell("stats")["calls"]
        assert 1 < calls < 80 and ledger.charged() <= 0.003e9
        assert len(judged(server, tmp_path, 1.0, batch=batch())) == len(PAIRS)
        assert server.tell("stats")["calls"] == 81  # one to find out what it can, and each question once


def test_a_batch_whose_making_was_not_heard_of_is_found_and_not_bought_again(tmp_path: Path) -> None:
    with judge_server(lost_batches=1) as server:
        assert all(verdict.p_a is not None for verdict in judged(server, tmp_path, batch=batch()))
        assert len(server.tell("batches")["data"]) == 1
        assert server.tell("stats")["calls"] == 81


def test_a_batch_whose_questions_all_failed_is_not_read_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judges.pacing.BACKOFF_S", 0.01)
    with judge_server(only="500", first=4) as server:  # as often as a question is put into a batch
        assert {verdict.abstained for verdict in judged(server, tmp_path, batch=batch())} == {"failed"}
        assert all(verdict.p_a is not None for verdict in judged(server, tmp_path, batch=batch()))
        assert len(server.tell("batches")["data"]) == 5


def test_what_the_killed_process_had_put_into_a_batch_is_found_whatever_else_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_batch = Ledger.put_in_batch

    async def dies_before_its_number_is_written(ledger: Ledger, calls: Any, batch: str) -> None:
        if batch.startswith("batch-"):
            raise JudgeError("killed")
        await put_in_batch(ledger, calls, batch)

    with judge_server() as server:
        with monkeypatch.context() as patch, pytest.raises(JudgeError, match="killed"):
            patch.setattr(Ledger, "put_in_batch", dies_before_its_number_is_written)
            judged(server, tmp_path, batch=batch(), pairs=PAIRS[:10])
        assert len(server.tell("batches")["data"]) == 1
        assert all(verdict.p_a is not None for verdict in judged(server, tmp_path, batch=batch()))
        assert server.tell("stats")["calls"] == 81


def test_a_batch_that_the_provider_does_not_begin_stops_with_its_reason_and_costs_nothing(tmp_path: Path) -> None:
    with judge_server(failed_batches=True) as server:
        for made in (1, 2):
            with pytest.raises(JudgeError, match=r"Enqueued token limit reached for m.*batch\.requests"):
                judged(server, tmp_path, batch=batch())
            assert len(server.tell("batches")["data"]) == made
        assert Ledger(tmp_path / "journal.sqlite", tmp_path.name).charged() == server.tell("stats")["bill"]


ONCE = 0.015
"""US dollars for which all pairs can be judged one by one, and not beside a batch of them that may have been made."""


@pytest.mark.parametrize(
    "refusal",
    [
        {"files_status": 404},
        {"batches_status": 404},  # where it looks for a batch of this name
        {"batches_status": 400, "batches_after": 1},  # where it makes one, of a file that is there by then
    ],
)
def test_where_the_batch_api_is_refused_for_good_nothing_is_charged_and_the_advice_can_be_followed(
    refusal: dict[str, Any], tmp_path: Path
) -> None:
    with judge_server(**refusal) as server:
        with pytest.raises(JudgeError, match="without `batch` the same questions are asked one by one"):
            judged(server, tmp_path, ONCE, batch=batch())
        assert Ledger(tmp_path / "journal.sqlite", tmp_path.name).charged() == server.tell("stats")["bill"]
        assert all(verdict.p_a is not None for verdict in judged(server, tmp_path, ONCE))


def test_a_refusal_after_a_request_for_a_batch_that_was_not_answered_leaves_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judges.pacing.BACKOFF_S", 0.01)
    # It looks for a batch of this name, makes one without hearing of it, and may not look any more.
    with judge_server(lost_batches=1, batches_status=403, batches_after=2, batch_s=0) as server:
        with pytest.raises(JudgeError, match="refuses"):
            judged(server, tmp_path, batch=batch())
        ledger = Ledger(tmp_path / "journal.sqlite", tmp_path.name)
        assert ledger.charged() > 2 * server.tell("stats")["bill"]  # of the one call to find out what it can
        assert ledger.at_work(60)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.6, 1.2, 2.5])
def test_a_process_that_is_killed_finds_its_batch_again(seconds: float, tmp_path: Path) -> None:
    write_pairs(tmp_path, 40)
    with judge_server(batch_s=2.0) as server:
        options = json.dumps({"judge": block(server, batch=batch()), "run": "r"})
        command = [sys.executable, str(STEP), str(tmp_path), options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not server.tell("stats")["calls"]:  # the first call says that it has begun
            time.sleep(0.05)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
        assert len(server.tell("batches")["data"]) == 1
        assert server.tell("stats")["calls"] == 81
