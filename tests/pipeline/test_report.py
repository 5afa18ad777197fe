"""The three files of a report: what they say, that no text in them becomes markup, that the same data gives the same
bytes. What a browser makes of the page is in `test_report_browser.py`.
"""

import base64
import functools
import hashlib
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from judges.grading import Check, ExamReport, GoldReport, Position
from judges.ledger import Spent
from pipeline import crowd
from pipeline.agreement import AgreementReport, Rater, agree
from pipeline.algorithms.held_out import HeldOut
from pipeline.findings import Finding
from pipeline.ratings import JudgeInfo, Results, RewardScore, TrainingCost, compare_checkpoints, describe
from pipeline.records import Message, Response, Vote
from pipeline.report.axes import axis
from pipeline.report.curves import MAX_POINTS
from pipeline.report.data import Labels, ReportData, Sample, StepTime
from pipeline.report.markdown import fenced, markdown_text
from pipeline.report.render import render
from pipeline.report.samples import embedded
from pipeline.report.sheet import duration, memory
from pipeline.report.terminal import table
from pipeline.statistics.bradley_terry import strengths
from pipeline.statistics.judge_error import prediction_powered, rogan_gladen
from pipeline.statistics.length_control import coefficient, controlled
from pipeline.statistics.win_rate import Estimate

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "{{7*7}}{% raw %}",
    "<!--<script>",
    '"><svg onload=alert(2)>',
    "'; alert(3)//",
    "a|b `c` **d** [e](javascript:alert(4))",
    "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627 zero\u200bwidth\ufeff",
    "&lt;b&gt; &amp;",
    "line\u2028separator\x00\x1b[31m",
    "</textarea></title></style></svg></details><a href=javascript:alert(5)>here</a>",
    "word" * 700,
]
ASKED = ["Why is the sky blue?", "Write a haiku about rain.", "Pourquoi le pain lève-t-il ?", "Name three rivers."]
SAID = (
    "the short answer is that light is scattered by the air and blue light is scattered most so the sky looks blue "
    "from the ground while at sunset the path is longer and mostly red is left"
)


def _exam(text: Any) -> ExamReport:
    """A judge that failed by its place, with people's answers behind its temperature."""
    share = Estimate(value=0.99, low=0.95, high=1.0, standard_error=0.01, n=144, n_clusters=24)
    nats = Estimate(value=1.41, low=1.1, high=1.7, standard_error=0.15, n=144, n_clusters=24)
    cause = text("position bias: it picks the answer shown first in 99.0 % of readings")
    return ExamReport(
        judge=text("likelihood"),
        fingerprint="0123456789abcdef",
        passed=False,
        causes=[cause],
        asked=360,
        checks=[
            Check(name=text("bias / signal"), unit="ratio", found=nats, floor=3.0, at_least=False, passed=False,
                  cause=cause),
            Check(name="shuffled loses", unit="share", found=share, floor=0.9, at_least=True, passed=True),
            Check(name="padded gains", unit="points", found=None, floor=0.05, at_least=False, passed=None),
        ],
        position=Position(bias=nats, signal=0.07, ratio=nats, first=share, flips=share),
        prefers_longer=share,
        gold=GoldReport(
            rows=80, answered=78, abstained={text("refused"): 2}, ties=4, accuracy=share,
            by_subset={text("source: a"): share}, kappa=nats, brier=0.25, ece=0.1, ece_calibrated=0.05, auroc=0.6,
            prefers_longer=None, longer_is_better=0.5, accuracy_longer_better=0.75, accuracy_longer_worse=None,
            temperature=2.5,
        ),
        temperature=2.5,
    )  # fmt: skip


@functools.cache
def example(prompts: int = 40, *, hostile: bool = False) -> ReportData:
    """A run with four checkpoints and two judges. Hostile: the same, with every text replaced."""
    chance = random.Random(7)
    seen = iter(range(10**9))

    def text(harmless: str) -> str:
        # Every call gives another name, so that names stay different from one another.
        place = next(seen)
        return f"{HOSTILE[place % len(HOSTILE)]}{place}" if hostile else harmless

    names = {name: text(name) for name in ("base", "sft", "dpo", "kto")}
    judges = {name: text(name) for name in ("likelihood", "rules")}
    ids = [f"p{place}" for place in range(prompts)]
    strength = {"base": 0.0, "sft": 0.15, "dpo": 0.9, "kto": 0.35}
    answers = {key: {prompt: [_answer(chance, key, text)] for prompt in ids} for key in names}
    checkpoints = {
        key: describe(names[key], key if not hostile or key == "base" else text(key), answers[key]) for key in names
    }
    pairs = [("sft", "base"), ("dpo", "base"), ("kto", "base"), ("dpo", "kto")]
    scores: dict[str, dict[str, dict[str, float | None]]] = {
        prompt: {name: {} for name in judges.values()} for prompt in ids
    }
    comparisons = []
    for judge, name in judges.items():
        for one, other in pairs:
            gain = (strength[one] - strength[other]) * (1.0 if judge == "likelihood" else 0.6)
            rows = [(prompt, _score(chance, gain)) for prompt in ids]
            comparisons.append(compare_checkpoints(name, checkpoints[one], checkpoints[other], rows))
            for prompt, p in rows:
                scores[prompt][name][f"{names[one]} vs {names[other]}"] = p
    results = Results.of(
        checkpoints=list(checkpoints.values()),
        judges=[
            JudgeInfo(
                name=name,
                fingerprint="0123456789abcdef",
                labelled=judge == "likelihood",
                asked=4 * prompts,
                ties=3,
                abstained={text("truncated"): 2},
                prefers_longer=0.58,
                position_a=0.497,
            )
            for judge, name in judges.items()
        ],
        comparisons=comparisons,
        prompts=prompts,
        labelling_judge=judges["likelihood"],
    )
    results = results.model_copy(update=_adjusted(results, scores))
    return ReportData(
        title=text("SmolLM2-135M on the built-in prompts"),
        recipe_yaml=text("seed: 0\ntrain:\n  - {name: dpo, beta: 0.1}\n  - {name: kto}\n"),
        results=results,
        labels=Labels(
            judge=judges["likelihood"], prompts=300, candidates=1200, pairs=900, decided=861, ties=12,
            abstained={text("truncated"): 21, text("no_vote"): 6},
            confidence=(60, 75, 92, 101, 110, 98, 97, 90, 78, 60),
            findings={text("position_bias_nats"): 0.337, text("flip_rate"): 0.125},
        ),
        curves={text("dpo"): _log(chance, ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen",
                                           "rewards/rejected", text("own/metric"))),
                text("kto"): _log(chance, ("loss", "kl", "rewards/chosen", "rewards/rejected", "grad_norm")),
                text("ppo"): _log(chance, ("score", "kl", "entropy", "length"))},
        reward_models={text("reward_model"): held_out(low=0.61), text("weak"): held_out(low=0.48)},
        steps=[
            StepTime(name=text("generate"), state=text("done"), seconds=412.4, peak_memory_bytes=1_620_000_000),
            StepTime(name=text("label"), state=text("done"), seconds=95.1, peak_memory_bytes=1_310_000_000),
            StepTime(name=text("train dpo"), state=text("done"), seconds=1270.0, peak_memory_bytes=2_480_000_000),
            StepTime(name=text("train kto"), state=text("reused"), seconds=None, peak_memory_bytes=None),
        ],
        spending=[
            Spent(step=text("label"), judge=text("llm"), calls=960, failed=31, tokens_in=441612, tokens_out=960,
                     usd=0.178181),
        ],
        versions={text("torch"): text("2.13.0"), text("trl"): text("1.16.0")},
        hardware={text("processor"): text("2 cores"), text("memory"): text("8 GB")},
        exam=_exam(text),
        alarms=[text("likelihood failed its exam and labelled all the same.")],
        findings=[
            Finding(level="warning", check=text("memory"), where=text("train.dpo"), what=text("4.4 GB of 5.0"),
                    remedy=text("smaller batches")),
            Finding(level="info", check=text("data"), where=text("train.jsonl"), what=text("no prompt is twice in it")),
        ],
        between_judges=_agreement(scores, tuple(judges.values())),
        kept_at=[text("steps/answers/0a1b/answers.jsonl"), text("steps/compare/77aa/verdicts.jsonl")],
        warnings=[text("The judge that labelled the training data also compares; read the other judge first.")],
        samples=[
            Sample(
                prompt=[
                    *([Message(role="system", content=text("Be brief."))] if place % 5 == 0 else []),
                    Message(role="user", content=text(ASKED[place % 4])),
                ],
                kind=text(("explain", "write", "explain", "list")[place % 4]),
                lang=text("fr" if place % 4 == 2 else "en"),
                answers={names[key]: answers[key][prompt][0].text for key in names},
                finished={names[key]: answers[key][prompt][0].finished for key in names},
                scores=scores[prompt],
                evidence={
                    judge: {key: text(f"P({key}): 0.61\nbias: 0.21") for key in told}
                    for judge, told in scores[prompt].items()
                },
            )
            for place, prompt in enumerate(ids)
        ],
    )  # fmt: skip


def _adjusted(results: Results, scores: dict[str, dict[str, dict[str, float | None]]]) -> dict[str, Any]:
    """Strengths, length control and corrections by the scores: of the first judge all are known, of the second none."""
    names = [checkpoint.name for checkpoint in results.checkpoints]
    first, second = (judge.name for judge in results.judges)
    rows: dict[str, list[tuple[str, str, str, float]]] = {first: [], second: []}
    for prompt, by_judge in scores.items():
        for judge, told in by_judge.items():
            met = [(*both.split(" vs "), p) for both, p in told.items()]
            rows[judge] += [(prompt, one, other, p) for one, other, p in met if p is not None]
    chance = random.Random(8)
    d = [chance.gauss(0, 0.2) for _ in range(200)]
    own = [f"q{place // 4}" for place in range(200)]
    phi = {
        first: coefficient(first, [float(x + chance.gauss(0, 0.5) > 0) for x in d], d, own),
        second: coefficient(second, [], [], []),
    }
    one = results.comparisons[0]
    trust = Estimate(value=0.8, low=0.7, high=0.9, standard_error=0.03, n=90, n_clusters=60)
    p = [p for _, a, b, p in rows[first] if (a, b) == (one.one, one.other)]
    prompts = [f"p{place}" for place in range(len(p))]
    labels = dict.fromkeys(range(0, len(p), 2), 1.0)
    return {
        "strengths": (strengths(first, names, names[0], rows[first], resamples=100),),
        "length_coefficients": tuple(phi.values()),
        "length_controlled": tuple(
            controlled(found.one, found.other, phi[found.judge], p, [0.1 * x for x in d[: len(p)]], prompts)
            for found in results.comparisons
        ),
        "corrected": (
            prediction_powered(first, one.one, one.other, p, labels, prompts),
            rogan_gladen(second, one.one, one.other, one, trust),
        ),
    }


def _agreement(scores: dict[str, dict[str, dict[str, float | None]]], judges: tuple[str, ...]) -> AgreementReport:
    prompts = {f"{prompt} {key}": prompt for prompt, told in scores.items() for key in told[judges[0]]}
    raters = []
    for judge in judges:
        said = {f"{prompt} {key}": p for prompt, told in scores.items() for key, p in told[judge].items()}
        raters.append(Rater(name=judge, p={key: p for key, p in said.items() if p is not None}, asked=len(said)))
    return agree(raters, prompts)


def held_out(low: float) -> HeldOut:
    return HeldOut(
        prompts=16, pairs=96, confidence=0.95, accuracy=0.7, low=low, high=0.79, longer_wins=0.42, longer_wins_low=0.33,
        longer_wins_high=0.52, pearson=-0.34, spearman=None, brier=0.189, ece=0.205,
        temperature=1.7, temperature_low=1.2, temperature_high=2.9, ece_calibrated=0.101,
    )  # fmt: skip


def _answer(chance: random.Random, key: str, text: Any) -> Response:
    length = chance.randint(12, 60 if key in ("base", "sft") else 90)
    said = text(" ".join((SAID.split() * 3)[:length]).capitalize() + ".")
    moved = {"base": 0.0, "sft": 4.0, "dpo": 11.0, "kto": 6.5}[key] * chance.uniform(0.5, 1.5)
    return Response(
        text=said, source=key, n_tokens=int(length * 1.3), finished=chance.random() < 0.8,
        logprob=-90 + moved, ref_logprob=-90,
    )  # fmt: skip


def _score(chance: random.Random, gain: float) -> float | None:
    draw = chance.random()
    if draw < 0.02:
        return None
    return 0.5 if draw < 0.06 else 1 / (1 + math.exp(-(gain + chance.gauss(0, 1.3))))


def _log(chance: random.Random, metrics: tuple[str, ...]) -> list[dict[str, float | None]]:
    def value(metric: str, step: int) -> float:
        risen = 1 - math.exp(-step / 60)
        trend = {"loss": 0.69 - 0.2 * risen, "rewards/accuracies": 0.5 + 0.25 * risen, "rewards/margins": 0.9 * risen,
                 "rewards/chosen": 0.3 * risen, "rewards/rejected": -0.6 * risen, "kl": 6 * risen}  # fmt: skip
        return trend.get(metric, 1.4 + 0.5 * risen) + chance.gauss(0, 0.03)

    return [{"step": step, "epoch": step / 100, **{metric: value(metric, step) for metric in metrics}}
            for step in range(0, 200, 5)]  # fmt: skip


class Shape(HTMLParser):
    """The elements of a page with the names of their attributes, in order; and the text inside its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *sorted(name for name, _ in attrs)))
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"] or ""
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts and not self.scripts[-1]:
            self.scripts[-1] = data


def measured(data: ReportData, text: Any = str) -> ReportData:
    """The run with what is known of its checkpoints besides their answers."""
    score = Estimate(value=1.25, low=1.0, high=1.5, standard_error=0.1, n=40, n_clusters=40)
    cost = TrainingCost(
        training_seconds=90, peak_memory_bytes=3_000_000_000, upstream=("generate", text("label")),
        upstream_seconds=30, labelling_seconds=20, judge_usd=0.5,
    )  # fmt: skip
    told = {"perplexity": score, "rewards": (RewardScore(model=text("reward_model"), score=score),)}
    checkpoints = [
        each.model_copy(update=told if each.algorithm == "base" else {**told, "cost": cost})
        for each in data.results.checkpoints
    ]
    return data.model_copy(update={"results": data.results.model_copy(update={"checkpoints": tuple(checkpoints)})})


def test_a_checkpoint_is_told_with_its_perplexity_its_reward_and_what_it_took() -> None:
    files = render(measured(example()))
    text = files["report.md"]
    heading = "perplexity | 95 % interval | reward_model, the score it was trained on | 95 % interval | refuses |"
    assert heading in text
    assert "| dpo | 1.25 | [1.00, 1.50] | +1.25 | [+1.00, +1.50] | 0.0 | [0.0," in text
    rate = re.search(r"\| dpo vs base \| likelihood \| \w+ \| ([\d.]+ %)", text)
    assert rate is not None
    assert f"| dpo | generate, label | 1 min 30 s | 3.00 GB | 30 s | 20 s | 2 min 0 s | 0.500000 | {rate[1]} |" in text
    assert "pipeline/words/refusals.en.txt" in text
    assert "What each checkpoint took" in files["report.html"]
    kept = Results.model_validate_json(files["results.json"]).checkpoints
    assert [each.cost.training_seconds if each.cost else None for each in kept] == [None, 90, 90, 90]
    assert "What each checkpoint took" not in render(example())["report.html"]


def test_hostile_text_in_every_field_gives_the_same_elements_as_harmless_text() -> None:
    harmless, hostile = (Shape(render(example(12, hostile=flag))["report.html"]) for flag in (False, True))
    assert hostile.elements == harmless.elements
    assert {element[0] for element in hostile.elements}.isdisjoint({"img", "iframe", "object", "link", "base"})
    assert not any(name.startswith("on") or name == "style" for element in hostile.elements for name in element[1:])


def test_templates_in_text_are_not_rendered() -> None:
    files = render(measured(example(12, hostile=True), HOSTILE[0].__add__))
    assert "{{7*7}}" in files["report.html"] and r"{{7\*7}}" in files["report.md"]


def test_embedded_json_reads_back_and_holds_no_less_than_sign() -> None:
    value = {text: [text, 0.5, None] for text in HOSTILE}
    assert "<" not in embedded(value)
    assert json.loads(embedded(value)) == value


def test_the_page_carries_the_samples_as_they_are() -> None:
    data = example(12, hostile=True)
    carried = json.loads(Shape(render(data)["report.html"]).scripts[0])
    names = carried["checkpoints"]
    told = [dict(zip(names, (text for (text,) in sample["answers"]), strict=True)) for sample in carried["samples"]]
    assert told == [sample.answers for sample in data.samples]
    for sample, given in zip(carried["samples"], data.samples, strict=True):
        for judge, row in zip(carried["judges"], sample["p"], strict=True):
            keys = [f"{names[one]} vs {names[other]}" for one, other in carried["pairs"]]
            assert row == [p if p is None else pytest.approx(p, abs=6e-4) for p in map(given.scores[judge].get, keys)]


def test_the_policy_allows_only_the_one_style_and_the_one_script() -> None:
    page = render(example(12))["report.html"]
    shape = Shape(page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    rules = dict(rule.strip().split(" ", 1) for rule in shape.policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name, text in (("style-src", style[1]), ("script-src", shape.scripts[1])):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_names_no_address() -> None:
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", render(example(12))["report.html"]) == []


def test_the_same_data_gives_the_same_bytes() -> None:
    assert render(example(12)) == render(example(12))


def test_results_json_reads_back_as_the_same_results() -> None:
    data = example(12)
    assert Results.model_validate_json(render(data)["results.json"]) == data.results


def test_every_rate_is_in_the_page_and_in_the_markdown_and_in_the_terminal() -> None:
    data = example()
    files, shown = render(data), _terminal(data.results)
    for found in data.results.comparisons:
        rate, bounds = f"{100 * found.win_rate:.1f}", f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
        assert f"{rate}\u202f%" in files["report.html"] and bounds in files["report.html"]
        assert f"| {rate} % | {bounds} |" in files["report.md"]
        if found.other == "base":
            assert re.search(rf"{re.escape(rate)} %( \*)? {re.escape(bounds)}", shown)


def test_strengths_rates_at_equal_length_and_corrections_are_in_the_page_and_in_the_markdown() -> None:
    data = example()
    files, results = render(data), data.results
    assert results.strengths and results.corrected
    one = results.strengths[0].strengths[1]
    told = f"| {one.value:.2f} | [{one.low:.2f}, {one.high:.2f}] | {one.elo:.0f} |"
    assert told.replace("-", "−") in files["report.md"]
    known = [found for found in results.length_controlled if found.win_rate is not None]
    assert known and len(known) < len(results.length_controlled)
    shown = [found for found in (*known, *results.corrected) if found.win_rate is not None]
    assert len(shown) > len(known)
    for found in shown:
        assert found.win_rate is not None and found.low is not None and found.high is not None
        rate, bounds = f"{100 * found.win_rate:.1f}", f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
        assert f"| {rate} % | {bounds} |" in files["report.md"]
        assert f"{rate}\u202f%" in files["report.html"] and bounds in files["report.html"]
    for found in (*results.length_controlled, *results.corrected):
        if found.not_identified:
            told = f"not identified: {found.not_identified}"
            assert told in files["report.md"] and told.replace(" %", "\u202f%") in files["report.html"]


def test_what_the_judge_tells_of_itself_is_said_in_words() -> None:
    written = render(example())
    assert "position bias 0.34 nats, flip rate 12.5 %." in written["report.html"]
    assert "0.34 nats" in written["report.md"] and "12.5 %" in written["report.md"]


@pytest.mark.parametrize("judges", [1, 2, 3])
def test_the_terminal_table_fits_100_columns_with_all_its_numbers(judges: int) -> None:
    results = example().results
    third = [found.model_copy(update={"judge": "length"}) for found in results.comparisons if found.judge == "rules"]
    infos = (*results.judges, results.judges[1].model_copy(update={"name": "length"}))[:judges]
    kept = {info.name for info in infos}
    comparisons = tuple(found for found in (*results.comparisons, *third) if found.judge in kept)
    shown = _terminal(results.model_copy(update={"judges": infos, "comparisons": comparisons}))
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    assert shown.count("[") == 3 * judges


def test_names_in_the_terminal_table_are_not_read_as_markup() -> None:
    results = example(12).results
    renamed = results.checkpoints[0].model_copy(update={"name": "[red]base[/]"})
    assert "[red]base[/]" in _terminal(results.model_copy(update={"checkpoints": (renamed,)}))


def test_a_reward_model_is_told_with_its_interval_and_whether_it_beats_chance() -> None:
    page, markdown = render(example())["report.html"], render(example())["report.md"]
    assert "Reward models on held-out pairs" in page
    rows = [line for line in markdown.splitlines() if line.startswith(("| reward_model |", "| weak |"))]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][1:6] == ["yes", "70.0 %", "[61.0, 79.0]", "96", "16"]
    assert cells[1][1:4] == ["no", "70.0 %", "[48.0, 79.0]"]
    assert cells[0][8:] == ["−0.34", "–", "0.205", "0.189", "1.7", "[1.2, 2.9]", "0.101"]


def test_a_report_with_nothing_but_a_title_and_a_base_is_whole() -> None:
    base = describe("base", "base", {"p": [Response(text="yes", source="base")]})
    results = Results.of(checkpoints=[base], judges=[], comparisons=[], prompts=1)
    files = render(ReportData(title="empty", recipe_yaml="", results=results))
    assert "Nothing was compared" in files["report.html"]
    assert "No checkpoint was compared" in files["report.md"]
    assert _terminal(results)


def test_what_paid_judges_took_is_in_both_reports_and_nothing_is_said_where_none_was_asked() -> None:
    files = render(example(12))
    assert "| 960 | 31 | 441612 | 960 | 0.178181 |" in files["report.md"]
    assert "0.178181" in files["report.html"]
    free = render(example(12).model_copy(update={"spending": ()}))
    assert all("Spending" not in text and "US dollars" not in text for text in free.values())


def test_curves_of_a_diverged_run_and_unknown_metrics_are_drawn_from_what_is_finite() -> None:
    log: list[dict[str, float | None]] = [
        {"step": 1, "loss": 0.5, "odd/metric": 1e12},
        {"step": 2, "loss": math.nan, "odd/metric": None},
        {"step": 3, "loss": math.inf},
        {"step": None, "loss": 1.0},
        {"loss": 2.0},
    ]
    data = example(12).model_copy(update={"curves": {"dpo": log, "kto": [], "sft": [{"step": 1.0}]}})
    page = render(data)["report.html"]
    assert "odd/metric" in page
    assert not re.search(r'(?:points|[xy]\d?|c[xy])="[^"]*(?:nan|inf)', page)


def test_the_loss_on_held_out_examples_is_drawn_beside_that_of_training_as_a_broken_line() -> None:
    log: list[dict[str, float | None]] = [
        {"step": 1, "loss": 4.0},
        {"step": 1, "eval_loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 0.0},
        {"step": 3, "eval_loss": 1.0},
    ]
    files = render(example(12).model_copy(update={"curves": {"sft": log}}))
    (figure,) = re.findall(r'<figure class="chart">.*?</figure>', files["report.html"], re.DOTALL)
    assert "held out 1" in figure
    # Over steps 1 to 3, and downwards from 4 to 0.
    lines = dict(re.findall(r'<g class="([a-z ]+)"><svg[^>]*><polyline class="curve" points="([^"]*)"', figure))
    assert lines == {"accent": "0,0 50,50 100,100", "accent held": "0,25 100,75"}
    assert "| sft | eval_loss | 3 | 1 | 1 | 3 |" in files["report.md"]


def test_a_long_curve_is_thinned_and_keeps_its_spike() -> None:
    log: list[dict[str, float | None]] = [{"step": step, "loss": 0.5 + 0.001 * (step % 7)} for step in range(20_000)]
    log[12_345]["loss"] = 40.0
    page = render(example(12).model_copy(update={"curves": {"dpo": log}}))["report.html"]
    drawn = re.search(r'<polyline class="curve" points="([^"]*)"', page)
    assert drawn is not None
    points = [tuple(map(float, point.split(","))) for point in drawn[1].split()]
    assert len(points) <= MAX_POINTS + 1
    spike = min(points, key=lambda point: point[1])  # SVG counts downward
    assert spike[0] == pytest.approx(100 * 12_345 / 19_999, abs=0.01) and spike[1] < 5


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 10.0], (0.0, 5.0, 10.0)),
        ([0.13, 0.69], (0.0, 0.2, 0.4, 0.6, 0.8)),
        ([-0.6, 0.3], (-1.0, -0.5, 0.0, 0.5)),
        ([3.0], (2.5, 3.0, 3.5)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values: list[float], ticks: tuple[float, ...]) -> None:
    assert axis(values).ticks == ticks


def test_markdown_text_cannot_leave_its_cell_or_become_markup() -> None:
    assert markdown_text("a|b") == r"a\|b"
    assert markdown_text("`x`\n# y") == r"\`x\` # y"
    assert markdown_text("# y") == r"\# y"
    assert markdown_text("<img>") == "&lt;img>"
    assert markdown_text("[a](b)") == r"[a\](b)"
    assert markdown_text("[58.4, 67.6] reward_model *x*") == r"[58.4, 67.6] reward_model \*x\*"


def test_every_row_of_a_hostile_markdown_table_has_as_many_cells_as_its_head() -> None:
    text = render(measured(example(12, hostile=True), HOSTILE[5].__add__))["report.md"].split(
        "<summary>Recipe</summary>"
    )[0]
    head = 0
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        head = head or cells
        assert cells in (0, head), line
        head = head if cells else 0


def test_a_fence_is_longer_than_any_run_of_backticks_within() -> None:
    assert fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"


def test_times_and_sizes_are_written_for_people() -> None:
    times = [duration(seconds) for seconds in (None, 3.21, 59.4, 75.2, 4000)]
    assert times == ["–", "3.2 s", "59 s", "1 min 15 s", "1 h 6 min"]
    assert [memory(size) for size in (None, 5_300_000, 1_620_000_000)] == ["–", "5 MB", "1.62 GB"]


def _terminal(results: Results) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(table(results))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the judge


def test_a_judge_that_failed_is_an_alarm_at_the_top_and_its_causes_and_marks_are_in_a_section() -> None:
    page, text = render(example())["report.html"], render(example())["report.md"]
    top, section = page.index("likelihood failed its exam and labelled"), page.index('<section id="judge"')
    assert top < page.index("<nav") < section
    assert '<ul class="warnings alarms" role="alert"' in page
    told = page[section : page.index("</section>", section)]
    for shown in ("failed:", "position bias: it picks", "at least 90\u202f%", "99.0\u202f% [95.0, 100.0]", "not asked",
                  "1.41", "[1.10, 1.70]", "Against people", "source: a", "divided by 2.5"):  # fmt: skip
        assert shown in told, shown
    assert told.count('<tr class="failed">') == 1
    assert "> **ALARM:** likelihood failed its exam" in text
    assert "<summary>The judge's exam</summary>" in text and "<summary>The judge against people</summary>" in text


def test_a_judge_that_sat_no_exam_is_said_to_be_unexamined() -> None:
    data = example().model_copy(update={"exam": None, "alarms": ()})
    page = render(data)["report.html"]
    assert "<b>likelihood</b> was not examined, and its confidence is its own." in page
    assert 'role="alert"' not in page


def test_a_judge_that_passed_without_gold_keeps_its_own_confidence() -> None:
    exam = example().exam
    assert exam is not None
    passed = exam.model_copy(update={"passed": True, "causes": (), "gold": None, "position": None, "temperature": 1.0})
    page = render(example().model_copy(update={"exam": passed}))["report.html"]
    assert "passed." in page and "no gold file calibrated it" in page
    assert "Position bias" not in page


def test_who_voted_and_how_far_the_judges_agree_with_them_is_told_in_the_place_of_an_exam() -> None:
    votes = [
        Vote(pair_id=f"p{n}", annotator=who, choice="a" if n % 3 else "b", shown="ab")
        for n in range(6)
        for who in ("ana", HOSTILE[0])
    ]
    people = crowd.people(votes, {f"p{n}": f"p{n}" for n in range(6)})
    length = Rater(name="length", p={f"p{n}": 1.0 for n in range(6)}, asked=6)
    found = agree([length], {f"p{n}": f"p{n}" for n in range(6)}, {f"p{n}": "a" if n % 3 else "b" for n in range(6)})
    files = render(example().model_copy(update={"exam": None, "people": people, "against_people": found}))
    for text in (files["report.html"], files["report.md"]):
        assert "ana" in text and HOSTILE[0] not in text
        assert re.search(r"length\D.*?66\.7[\s\u202f\xa0]*%", text, flags=re.DOTALL)
    assert "Krippendorff’s alpha is 1.000" in files["report.html"]
