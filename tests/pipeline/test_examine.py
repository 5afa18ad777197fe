"""The exam step asks in any number of processes what labelling will not ask again, and labelling obeys its result."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scripted.planted import Config as Planted
from tiny import job_of, prompt_of, response_of

from judges.base import JudgeConfig, Session, logit, sigmoid
from judges.both_orders import Config as BothOrders
from judges.exam import Floors, GoldPair
from judges.grading import ExamReport
from judges.length import Config as Length
from pipeline import cli, examine, label, store
from pipeline.compare import _alarms, _unexamined, _warnings
from pipeline.errors import DataError, JudgeError, RecipeError
from pipeline.examine import Examining
from pipeline.label import Labelling
from pipeline.ratings import Results
from pipeline.recipe import LabelConfig, check_files, load
from pipeline.records import Pair, Verdict

WORDS = "w1 w2 w3 w4 w5 w6"


def pairs() -> list[Pair]:
    return [
        Pair.of(prompt_of(f"q{n}"), response_of(f"good {WORDS} {n}"), response_of(f"plain {WORDS} {n} so", index=1))
        for n in range(12)
    ]


def gold_file(top: Path) -> Path:
    """Forty rows; in every fifth people said the opposite of what is planted."""
    rows = [
        GoldPair(id=str(n), prompt=f"g{n}", a=f"good {WORDS}", b=f"plain {WORDS}", label="b" if n % 5 == 0 else "a")
        for n in range(40)
    ]
    store.write_jsonl(top / "gold.jsonl", rows)
    return top / "gold.jsonl"


def sit(
    top: Path, judge: JudgeConfig, *, prompts: int = 6, gold: Path | None = None, world: int = 1
) -> dict[str, bytes]:
    """The bytes of every file that the step leaves, done by `world` processes; they are published in top/exam."""
    store.make_dirs(top / "generate")
    store.write_jsonl(top / "generate" / "pairs.jsonl", pairs())
    config = Examining(seed=1, judge=judge, prompts=prompts, gold=gold, floors=Floors())
    inputs = {"generate": top / "generate"}
    for rank in range(world):
        examine.work(job_of(top, config, step="exam", inputs=inputs, rank=rank, world=world))
    job = job_of(top, config, step="exam", inputs=inputs)
    examine.finish(job)
    job.out.rename(top / "exam")
    return {path.name: path.read_bytes() for path in (top / "exam").iterdir()}


def labelled(top: Path, judge: JudgeConfig, *, enforce: bool = True) -> list[Verdict]:
    config = Labelling(judge=judge, label=LabelConfig(), pairing="all", enforce=enforce)
    job = job_of(top, config, step="label", inputs={name: top / name for name in ("generate", "exam")})
    label.work(job)
    label.finish(job)
    return list(store.read_jsonl(job.out / "verdicts.jsonl", Verdict))


def test_any_number_of_processes_leaves_the_same_bytes(tmp_path: Path) -> None:
    judge = BothOrders(of=Planted(bias=1.0, accuracy=0.8))
    gold = gold_file(tmp_path)
    alone = sit(tmp_path / "alone", judge, gold=gold)
    assert sit(tmp_path / "shared", judge, gold=gold, world=3) == alone
    assert set(alone) == {"exam.json", "answers.jsonl", "summary.json"}
    assert json.loads(alone["summary.json"])["questions"] == len(alone["answers.jsonl"].splitlines())


def test_labelling_does_not_ask_again_what_the_exam_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripted.planted import PlantedJudge

    asked: list[str] = []
    plain = PlantedJudge.judge

    def counting(self: PlantedJudge, questions: Any) -> list[Verdict]:
        asked.extend(pair.id for pair in questions)
        return plain(self, questions)

    monkeypatch.setattr(PlantedJudge, "judge", counting)
    sit(tmp_path, Planted(), prompts=6)
    before = len(asked)
    labelled(tmp_path, Planted())
    assert len(asked) - before == 6, "of 12 pairs"


def test_a_judge_that_failed_cannot_label_and_is_told_why_and_what_to_do(tmp_path: Path) -> None:
    sit(tmp_path, Length())
    with pytest.raises(JudgeError) as caught:
        labelled(tmp_path, Length())
    told = str(caught.value)
    assert told.startswith("judge length failed its exam, so it may not label:\n  blind to word order: ")
    assert "\n  length bias: the answer to another prompt, appended, gains +50.0 points" in told
    assert "exam.enforce=false lets it label all the same, and the report says so" in told
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()


def test_where_the_recipe_says_so_it_labels_and_the_report_says_so_first(tmp_path: Path) -> None:
    files = sit(tmp_path, Length())
    assert len(labelled(tmp_path, Length(), enforce=False)) == 12
    alarms = list(_alarms(ExamReport.model_validate_json(files["exam.json"])))
    assert alarms[0].startswith("length failed its exam and labelled the training data all the same")
    assert any(alarm.startswith("length bias") for alarm in alarms)


def test_a_judge_that_passed_raises_no_alarm_and_one_that_was_not_examined_a_warning(tmp_path: Path) -> None:
    exam = ExamReport.model_validate_json(sit(tmp_path, Planted())["exam.json"])
    none = Results.of(checkpoints=(), judges=(), comparisons=(), prompts=0, labelling_judge="length")
    assert list(_alarms(exam)) == []
    labelled = tmp_path / "label"
    store.make_dirs(labelled)
    store.write_json(labelled / "summary.json", {"judge": "length"})
    every: tuple[dict[str, Path], ...] = ({"label": labelled, "exam": tmp_path}, {"label": labelled}, {})
    jobs = [job_of(tmp_path, LabelConfig(), inputs=inputs) for inputs in every]
    assert list(_unexamined(jobs)) == ["length"]
    assert "length was not examined before it labelled." in list(_warnings(none, ["length"]))
    assert not any("not examined" in warning for warning in _warnings(none, []))


def test_labels_are_calibrated_by_the_gold_file_and_keep_what_the_judge_said(tmp_path: Path) -> None:
    files = sit(tmp_path, Planted(surety=4.0), gold=gold_file(tmp_path))
    exam = ExamReport.model_validate_json(files["exam.json"])
    assert exam.temperature > 2, "sure of all, right in four of five"
    raw = Planted(surety=4.0).build(Session()).judge(pairs())
    for before, after in zip(raw, labelled(tmp_path, Planted(surety=4.0)), strict=True):
        assert before.p_a is not None
        assert after.p_a == pytest.approx(sigmoid(logit(before.p_a) / exam.temperature))
        assert after.evidence == {"p_raw": before.p_a}


def test_without_gold_the_labels_are_the_bytes_of_a_run_without_an_exam(tmp_path: Path) -> None:
    sit(tmp_path, Planted())
    labelled(tmp_path, Planted())
    with_exam = (tmp_path / "out" / "verdicts.jsonl").read_bytes()
    (tmp_path / "exam").rename(tmp_path / "elsewhere")
    config = Labelling(judge=Planted(), label=LabelConfig(), pairing="all")
    job = job_of(tmp_path, config, inputs={"generate": tmp_path / "generate"})
    label.finish(job)
    assert (job.out / "verdicts.jsonl").read_bytes() == with_exam


def test_gold_is_read_packed_too(tmp_path: Path) -> None:
    import gzip

    plain = gold_file(tmp_path)
    packed = tmp_path / "gold.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = (sit(tmp_path / name, Planted(), prompts=0, gold=gold) for name, gold in (("a", plain), ("b", packed)))
    assert one == other
    assert json.loads(one["summary.json"])["questions"] == 40


RECIPE = """\
model: smollm2-135m-instruct
generate: {prompts: {files: data/prompts/train.jsonl}, sampler: local}
judge: length
train: {dpo: }
compare: {prompts: {files: data/prompts/heldout.jsonl}, judges: [rules]}
"""


def test_a_bad_gold_file_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"exam\.gold: there is no file .*nowhere\.jsonl"):
        check_files(load(tmp_path / "recipe.yaml", ["exam.gold=nowhere.jsonl"]))
    (tmp_path / "gold.jsonl").write_text('{"id": "1", "prompt": "p", "a": "x", "b": "y", "label": "left"}\n')
    with pytest.raises(DataError, match=r"gold\.jsonl:1: label: Input should be 'a', 'b' or 'tie'"):
        check_files(load(tmp_path / "recipe.yaml", [f"exam.gold={tmp_path / 'gold.jsonl'}"]))


# ---- a whole run

RUN = """\
model: smollm2-135m-instruct
generate:
  prompts: {files: data/prompts/train.jsonl, limit: 6}
  sampler: {name: scripted.sampler, word: "w1 w2 w3 w4 w5 w6"}
  candidates: 11  # so that the last is the longest
judge: length
train: {late: {name: scripted.pupil}}
compare: {prompts: {files: data/prompts/heldout.jsonl, limit: 6}, judges: [rules]}
"""


@pytest.mark.slow
def test_a_run_stops_at_a_judge_that_failed_and_with_enforce_false_ends_in_red(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))
    (tmp_path / "recipe.yaml").write_text(RUN)
    command = ["run", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]
    assert cli.main(command) == 2
    assert "judge length failed its exam, so it may not label:\n  " in capfd.readouterr().err
    assert cli.main([*command, "exam.enforce=false"]) == 0
    assert "length failed its exam and labelled all the same: see the report" in capfd.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.index('role="alert"') < page.index("length failed its exam and labelled the training data all the same")
    results = Results.model_validate_json((tmp_path / "run" / "results.json").read_text())
    assert results.exam is not None and results.exam["passed"] is False
    # The failed judge's labels are not taken over when the recipe is strict again.
    assert cli.main(command) == 2
