"""The same verdicts through the Batch API, for half the money, whatever is killed in between."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench.label_step import pair_of, write_pairs
from servers import Server, judge_server

from judges.base import Session
from judges.both_orders import Config as BothOrders
from judges.ledger import Ledger, bill
from pipeline.errors import BudgetError
from pipeline.records import Verdict

PAIRS = [pair_of(number, 40) for number in range(40)]
ROOT = Path(__file__).parents[2]
STEP = Path(__file__).parents[1] / "bench" / "label_step.py"


def block(server: Server, **options: Any) -> dict[str, Any]:
    price = {"input": 0.4, "output": 1.6}
    return {"name": "llm", "model": "m", "base_url": server.url, "price": price, "limits": {"timeout_s": 2}, **options}


def judged(server: Server, top: Path, budget: float | None = None, **options: Any) -> list[Verdict]:
    judge = BothOrders.model_validate({"of": block(server, **options)})
    session = Session(journal=top / "journal.sqlite", run=top.name, budget_usd=budget)
    return judge.build(session).judge(PAIRS)


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
