"""`prefloop judge exam` says what a judge is worth and fails with it; `prefloop judge agree` reads what was said."""

import os
from pathlib import Path

import pytest
from tiny import prompt_of, response_of, said

from judges.base import Session
from judges.exam import GoldPair
from judges.panel import Config as Panel
from pipeline import cli, cli_judge, store
from pipeline.agreement import Rater, agree
from pipeline.errors import DataError
from pipeline.records import Pair, Verdict
from pipeline.rounds import step_of

ROOT = Path(__file__).parents[2]

RECIPE = """\
model: smollm2-135m-instruct
generate: {prompts: {files: data/prompts/train.jsonl, limit: 8}, sampler: {name: scripted.sampler}}
judge: {name: scripted.planted}
train: {dpo: }
compare: {prompts: {files: data/prompts/heldout.jsonl}, judges: [rules]}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def gold_file(top: Path, rows: int = 30) -> Path:
    words = "w1 w2 w3"
    store.write_jsonl(
        top / "gold: people's.jsonl",
        [
            GoldPair(
                id=str(n), prompt=f"q{n}", a=f"good {words} {n}", b=f"plain {words} {n}", label="b" if n < 6 else "a"
            )
            for n in range(rows)
        ],
    )
    return top / "gold: people's.jsonl"


def test_a_judge_that_fails_is_told_so_with_exit_code_2_and_nothing_after_the_exam_runs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.main(["judge", "exam", str(recipe), "--run", str(run), "judge=length"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("judge length failed its exam:\n  ")
    assert "length bias: the answer to another prompt, appended, gains +50.0 points" in told.err
    assert "padded gains" in told.out
    assert sorted(path.name for path in (run / "steps").iterdir()) == ["exam", "generate"]


def test_a_gold_file_alone_examines_and_two_examined_judges_can_be_compared(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold, run = gold_file(tmp_path), tmp_path / "run"
    command = ["judge", "exam", str(recipe), "--run", str(run), "--gold", str(gold), "exam.prompts=0"]
    assert cli.main(command) == 0
    # In 24 of 30 people preferred what the judge prefers.
    assert "80.0 %" in capsys.readouterr().out
    assert [path.name for path in (run / "steps").iterdir()] == ["exam"]
    assert cli.main([*command, "judge.accuracy=0.6"]) in (0, 2)
    capsys.readouterr()
    assert cli.main(["judge", "agree", str(run), "--gold", str(gold)]) == 0
    told = capsys.readouterr().out
    assert told.count("scripted.planted") >= 4
    assert "people" in told and "Krippendorff's alpha of all: " in told


def test_an_exam_that_asks_nothing_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["judge", "exam", str(recipe), "exam.prompts=0"]) == 2
    assert capsys.readouterr().err.startswith("exam: nothing to ask; set exam.prompts above 0, or name a gold file")


def test_where_nobody_can_be_examined_it_is_said_who_labels_or_that_nobody_does(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["judge", "exam", "recipes/sft.yaml"]) == 2
    assert capsys.readouterr().err.startswith("judge: the recipe has none; name a recipe that has a judge")
    assert cli.main(["judge", "exam", "recipes/rlhf.yaml"]) == 2
    assert capsys.readouterr().err.startswith("annotations: people label, and sit no exam; name a recipe")


# ---- agree


def label_folder(run: Path, mark: str, pairs: list[Pair], verdicts: list[Verdict], number: int = 1) -> None:
    """A run in which these pairs were generated and labelled in this round."""
    generate, label = (step_of(number, step) for step in ("generate", "label"))
    generated = run / "steps" / generate / "0123456789ab"
    if not generated.exists():
        publish(generated, {"pairs.jsonl": pairs}, {})
    inputs = {generate: {"fingerprint": "0123456789abcdef"}}
    publish(run / "steps" / label / mark, {"verdicts.jsonl": verdicts}, {"inputs": inputs})
    store.write_text(run / "recipe.yaml", "seed: 1\n")


def publish(folder: Path, files: dict[str, list[Pair] | list[Verdict]], manifest: dict[str, object]) -> None:
    store.make_dirs(folder)
    for name, records in files.items():
        store.write_jsonl(folder / name, records)
    store.seal(folder, manifest)


def some_pairs(count: int = 8) -> list[Pair]:
    return [Pair.of(prompt_of(f"q{n}"), response_of("yes"), response_of("no", index=1)) for n in range(count)]


def by(name: str, pair: Pair, p_a: float | None) -> Verdict:
    found = said(pair, p_a, None if p_a is not None else "refused")
    return found.model_copy(update={"judge": name, "fingerprint": f"{name}123456789"})


def test_every_judge_that_labelled_is_a_rater_with_what_it_said_before_calibration(tmp_path: Path) -> None:
    pairs, run = some_pairs(), tmp_path / "run"
    calibrated = [v.model_copy(update={"evidence": {"p_raw": 0.9}}) for v in (by("one", p, 0.52) for p in pairs)]
    label_folder(run, "a", pairs, calibrated)
    label_folder(run, "b", pairs, [by("two", pair, None if n == 0 else 0.9) for n, pair in enumerate(pairs)])
    found = cli_judge.said_in([run])
    assert list(found) == ["one", "two"]
    one, two = (cli_judge._rater(name, each) for name, each in found.items())
    assert set(one.p.values()) == {0.9}
    assert (two.asked, len(two.p)) == (8, 7)


def test_what_a_judge_said_in_later_rounds_is_counted_as_well(tmp_path: Path) -> None:
    pairs, run = some_pairs(5), tmp_path / "run"
    for number, some in ((1, pairs[:2]), (2, pairs[2:])):
        label_folder(run, "a", some, [by("one", pair, 0.9) for pair in some], number)
    assert {pair.id for pair, _ in cli_judge.said_in([run])["one"]} == {pair.id for pair in pairs}


def test_the_members_of_a_panel_are_raters_and_one_that_was_asked_elsewhere_is_the_same(tmp_path: Path) -> None:
    pairs, run = some_pairs(), tmp_path / "run"
    panel = Panel.model_validate({"of": [{"judge": "rules", "weight": 1}, {"judge": "length", "weight": 1}]})
    label_folder(run, "a", pairs, panel.build(Session()).judge(pairs))
    label_folder(run, "b", pairs, panel.of[1].judge.build(Session()).judge(pairs))
    found = cli_judge.said_in([run])
    assert sorted(found) == ["length", "panel", "rules"]
    assert [verdict.p_a for _, verdict in found["length"]] == [float(len(p.a.text) > len(p.b.text)) for p in pairs]


def test_what_people_said_is_turned_to_the_side_of_the_pair(tmp_path: Path) -> None:
    rows = [
        GoldPair(id="1", prompt="q0", a="yes", b="no", label="a"),
        GoldPair(id="2", prompt="q1", a="no", b="yes", label="b"),
        GoldPair(id="3", prompt="q2", a="no", b="yes", label="tie"),
        GoldPair(id="4", prompt="elsewhere", a="no", b="yes", label="a"),
    ]
    store.write_jsonl(tmp_path / "gold.jsonl", rows)
    pairs = some_pairs(4)
    found = cli_judge.labels_of(pairs, tmp_path / "gold.jsonl")
    preferred = {pair.prompt.id: (pair.a if found[pair.id] == "a" else pair.b).text for pair in pairs[:2]}
    assert preferred == {"q0": "yes", "q1": "yes"}
    assert found[pairs[2].id] == "tie"
    assert pairs[3].id not in found


def test_one_judge_alone_agrees_with_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = some_pairs()
    label_folder(tmp_path / "run", "a", pairs, [by("one", pair, 0.9) for pair in pairs])
    assert cli.main(["judge", "agree", str(tmp_path / "run")]) == 2
    assert "1 judges and 0 pairs that people judged; two are needed" in capsys.readouterr().err
    with pytest.raises(DataError, match="not a run directory"):
        cli_judge.said_in([tmp_path])


def test_agreement_of_two_judges_and_people_by_hand() -> None:
    names = [f"p{n}" for n in range(8)]
    one = dict(zip(names, (0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.5), strict=True))
    two = dict(zip(names, (0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.5), strict=True))
    people = dict(zip(names, ("a", "a", "a", "b", "b", "b", "b", "tie"), strict=True))
    raters = [Rater(name="one", p=one, asked=8), Rater(name="two", p=two, asked=8)]
    found = agree(raters, {name: name for name in names}, people)
    couple, with_people, _ = found.couples
    assert (couple.one, couple.other, with_people.other) == ("one", "two", "people")
    assert couple.agreement.value == 5 / 8
    # one: 4 a, 3 b, 1 tie; two: 3 a, 4 b, 1 tie. By chance (12 + 12 + 1) / 64.
    assert couple.kappa is not None
    assert couple.kappa.value == pytest.approx((5 / 8 - 25 / 64) / (1 - 25 / 64))
    # Wrong of seven: one in p3 alone, two in p2 and p6. Pearson's from the fourfold table: -2 / sqrt(1 * 6 * 2 * 5).
    assert couple.error_correlation is not None
    assert couple.error_correlation.value == pytest.approx(-2 / 60**0.5)
    assert (found.accuracy["one"].value, found.accuracy["two"].value) == (pytest.approx(6 / 7), pytest.approx(5 / 7))
    assert with_people.error_correlation is None


def test_judges_that_saw_no_pair_in_common_are_not_compared() -> None:
    raters = [Rater(name="one", p={"x": 0.9}, asked=1), Rater(name="two", p={"y": 0.9}, asked=1)]
    found = agree(raters, {"x": "x", "y": "y"})
    assert (found.couples, found.alpha) == ((), None)


# ---- the real judges


@pytest.mark.slow
@pytest.mark.wide
def test_on_the_policys_own_samples_likelihood_passes_and_the_small_model_asked_a_or_b_fails_by_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = ["judge", "exam", "recipes/rlaif.yaml", "--run", str(tmp_path / "run")]
    # Which answers are sampled depends on the processor; of four prompts' a judge may fail on one machine alone.
    enough = ["generate.prompts.limit=16", "exam.prompts=16"]
    assert cli.main([*command, *enough]) == 0
    assert "judge likelihood passed its exam" in capsys.readouterr().out
    asked = "judge={name: both_orders, of: {name: local_llm}}"
    few = ["generate.prompts.limit=4", "exam.prompts=4"]
    assert cli.main([*command, *few, asked]) == 2
    told = capsys.readouterr().err
    # It was about to say something else than a label, and of the labels it prefers the one that stands first.
    assert "\n  unreadable: it left " in told
    assert "\n  position bias: it picks the answer shown first in " in told
