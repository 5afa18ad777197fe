"""The parts of a report, by pencil and paper: matrix, ratings, reward against KL, shared curves, evidence, what fits
into a page; and that its markup and its colours can be read by everybody.
"""

import functools
import itertools
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from test_report import HOSTILE, Shape, example, measured

from pipeline.ratings import Results, compare_checkpoints, describe
from pipeline.records import Message, Pair, Prompt, Response, Verdict
from pipeline.report import samples
from pipeline.report.curves import Log, kl_of_answer, look, own_of, points_each, shared_of
from pipeline.report.data import ReportData, Sample
from pipeline.report.evidence import evidence_of
from pipeline.report.frontier import LABEL, labelled, paths, rewards, scatters
from pipeline.report.markdown import MAX_LENGTH
from pipeline.report.plots import forest
from pipeline.report.render import render
from pipeline.report.samples import browser_of, spread
from pipeline.report.standings import ladders, matrices, numbers, standing
from pipeline.report.templates import visible
from pipeline.statistics.bradley_terry import Strength

MANY = 16


def many(data: ReportData, count: int = MANY) -> ReportData:
    """The same report with so many checkpoints, all of them compared by both judges."""
    results = data.results
    one, base = results.comparisons[0], results.checkpoints[0]
    names = [base.name, *(f"dpo-beta-{place}" for place in range(1, count))]
    checkpoints = [base, *(results.checkpoints[2].model_copy(update={"name": name}) for name in names[1:])]
    comparisons = [
        one.model_copy(update={"judge": judge.name, "one": names[high], "other": names[low]})
        for judge in results.judges for high in range(count) for low in range(high)
    ]  # fmt: skip
    known = results.strengths[0].strengths[0].model_dump()
    strengths = [
        each.model_copy(
            update={"strengths": tuple(Strength(**{**known, "name": name, "value": 0.1 * place}) for place, name in
                                       enumerate(names))}
        )
        for each in results.strengths
    ]  # fmt: skip
    told = {"checkpoints": tuple(checkpoints), "comparisons": tuple(comparisons), "strengths": tuple(strengths)}
    answers = [
        sample.model_copy(update={"answers": {name: f"the answer of {name}" for name in names}, "finished": {}})
        for sample in data.samples
    ]
    curves = dict.fromkeys(names[1:], data.curves["dpo"])
    return data.model_copy(
        update={"results": results.model_copy(update=told), "samples": tuple(answers), "curves": curves}
    )


# --- who beats whom


@functools.cache
def three() -> Results:
    """c beats b beats a, by a judge that labelled; by one that did not, b is the strongest."""
    made = {name: describe(name, "base" if name == "a" else "dpo", {f"p{n}": [Response(text="x", source=name)]
                                                                    for n in range(40)}) for name in "abc"}  # fmt: skip
    rows = {("b", "a"): 0.9, ("c", "a"): 0.95, ("c", "b"): 0.5}
    compared = [compare_checkpoints("rules", made[one], made[other], [(f"p{n}", p) for n in range(40)])
                for (one, other), p in rows.items()]  # fmt: skip
    data = example(12).results
    judge = data.judges[0].model_copy(update={"name": "rules", "labelled": False})
    strength = data.strengths[0].model_copy(
        update={
            "judge": "rules", "anchor": "a",
            "strengths": tuple(Strength(name=name, value=value, low=value - 0.5, high=value + 0.5)
                               for name, value in (("a", 0.0), ("b", 3.0), ("c", 2.0))),
        }
    )  # fmt: skip
    return Results.of(
        checkpoints=list(made.values()), judges=[judge], comparisons=compared, prompts=40, strengths=[strength]
    )


def test_a_row_of_the_matrix_says_how_often_it_beats_the_column_and_the_strongest_is_first() -> None:
    (matrix,) = matrices(three())
    assert matrix["names"] == ["b", "c", "a"]
    assert [[cell["rate"] for cell in row] for row in matrix["rows"]] == [
        ["", "50.0", "90.0"],
        ["50.0", "", "95.0"],
        ["10.0", "5.0", ""],
    ]
    assert [[cell["mark"] for cell in row] for row in matrix["rows"]] == [["", "", "▲"], ["", "", "▲"], ["▼", "▼", ""]]


def test_a_pair_that_was_not_compared_is_a_dash_in_the_matrix_and_two_checkpoints_need_none() -> None:
    results = three()
    less = results.model_copy(update={"comparisons": results.comparisons[:2]})
    assert matrices(less)[0]["rows"][0][1]["rate"] == "–"
    assert matrices(results.model_copy(update={"checkpoints": results.checkpoints[:2], "strengths": ()})) == []


def test_ratings_are_in_elo_with_the_base_at_1000_and_the_strongest_first() -> None:
    drawn = ladders(three())
    assert drawn is not None
    rows = drawn["groups"][0]["rows"]
    # 400 / ln 10 = 173.7 points a unit of log-odds.
    assert [(row["name"], row["elo"]) for row in rows] == [("b", "1521"), ("c", "1347"), ("a", "1000")]
    assert rows[0]["bounds"] == "[1434, 1608]"


def test_comparisons_with_the_base_are_seen_from_the_other_and_the_rest_are_apart() -> None:
    results = three()
    turned = results.model_copy(update={"comparisons": tuple(found.swap() for found in results.comparisons)})
    drawn = forest(turned)
    assert [(group["one"], group["other"], group["rows"][0]["rate"]) for group in drawn["based"]] == [
        ("b", "a", "90.0 %"), ("c", "a", "95.0 %"),
    ]  # fmt: skip
    assert [(group["one"], group["other"]) for group in drawn["rest"]] == [("b", "c")]


def test_more_than_eight_checkpoints_are_numbered_by_their_standing() -> None:
    results = many(example(12)).results
    assert standing(results)[0] == "dpo-beta-15"
    assert numbers(results)["dpo-beta-15"] == "1" and numbers(results)["base"] == "16"
    assert numbers(three()) == {}
    page = render(many(example(12)))["report.html"]
    assert '<th scope="col" dir="auto">16<span class="unseen"> base</span></th>' in page


# --- reward and KL


def test_kl_is_counted_by_answer_whoever_logged_it_by_token_and_ktos_is_another_quantity() -> None:
    assert kl_of_answer({"kl": 4.3, "kl_token": 0.1, "length": 43.0}) == 4.3  # PPO
    assert kl_of_answer({"kl": 0.1, "completions/mean_length": 40.0}) == pytest.approx(4.0)  # RLOO, GRPO
    assert kl_of_answer({"kl": 1.5, "rewards/chosen": 0.1}) is None  # KTO
    assert kl_of_answer({"loss": 0.5}) is None


def test_the_reward_is_drawn_against_what_it_cost() -> None:
    log: Log = [
        {"step": 1, "kl": 0.0, "kl_token": 0.0, "score": 1.0}, {"step": 2, "kl": 4.0, "kl_token": 0.1, "score": 3.0},
        {"step": 3, "kl": 2.0, "kl_token": 0.1, "score": 2.0}, {"step": 5, "score": 9.0},
        {"step": 4, "kl": float("nan"), "kl_token": 0.1, "score": 9.0},
    ]  # fmt: skip
    grpo: Log = [{"step": 1, "kl": 0.1, "completions/mean_length": 10.0, "reward": 2.0}]
    drawn = paths({"ppo": log, "grpo": grpo, "kto": [{"step": 1, "kl": 1.0, "loss": 2.0}]}, {"ppo": "1"})
    assert drawn is not None
    assert [(path["name"], path["points"]) for path in drawn["paths"]] == [
        ("1", "0,100 100,0 50,50"),
        ("grpo", "25,50"),
    ]
    assert drawn["told"].startswith("ppo from 1 at 0.0 nats to 2 at 2.0 nats")
    assert paths({"kto": [{"step": 1, "reward": 1.0}]}, {}) is None


def test_a_long_path_is_drawn_by_some_of_its_updates_and_its_last() -> None:
    log: Log = [{"kl": float(n), "kl_token": 0.1, "score": float(n)} for n in range(1000)]
    drawn = paths({"ppo": log}, {})
    assert drawn is not None
    points = drawn["paths"][0]["points"].split()
    assert len(points) <= 121 and points[-1] == "99.9,0.1"


def test_a_reward_models_score_is_drawn_with_its_intervals_and_claims_no_win() -> None:
    results = measured(example(12), str).results
    drawn = rewards(results)
    assert drawn and {point["tone"] for chart in drawn for point in chart["points"]} == {"accent"}
    assert len(scatters(results)) == 2


def test_names_in_a_drawing_never_cover_each_other_and_stay_inside() -> None:
    points = [{"name": "dpo-beta-0.3", "x": 50 + place % 3, "y": 90 + place % 5} for place in range(13)]
    placed = labelled(points)
    heights = sorted(point["text_y"] for point in placed)
    assert heights[0] >= 0 and heights[-1] <= 100
    assert all(low + LABEL <= high + 0.02 for low, high in itertools.pairwise(heights))
    assert {point["led_to"] == point["y"] for point in placed} == {True, False}


# --- curves on shared axes


def test_one_quantity_under_several_names_is_on_shared_axes_and_what_one_method_has_alone_is_not() -> None:
    ppo: Log = [{"step": s, "length": 30.0 - s, "ended": 0.5, "kl": 1.0, "kl_token": 0.1} for s in (0, 5, 10)]
    grpo: Log = [{"step": s, "completions/mean_length": 20.0, "completions/clipped_ratio": 0.25, "loss": 1.0}
                 for s in (0, 5, 10)]  # fmt: skip
    kto: Log = [{"step": 0, "kl": 9.0}]
    drawn = shared_of({"ppo": ppo, "grpo": grpo, "kto": kto})
    assert drawn is not None
    charts = {chart["name"]: chart for chart in drawn["charts"]}
    assert list(charts) == ["length, tokens", "answers that ended by themselves"]
    # From 30 down to 20 on the way from step 0 to 10, beside 20 throughout.
    assert [line["points"] for line in charts["length, tokens"]["series"]] == [
        "0,0 50,50 100,100",
        "0,100 50,100 100,100",
    ]
    assert charts["answers that ended by themselves"]["told"].endswith(
        "ppo from 0.5 to 0.5, lowest 0.5, highest 0.5; grpo from 0.75 to 0.75, lowest 0.75, highest 0.75"
    )
    assert [line["name"] for line in drawn["legend"]] == ["ppo", "grpo"]
    assert shared_of({"ppo": ppo}) is None


def test_forty_lines_look_different_and_the_first_five_by_their_stroke_alone() -> None:
    assert len({look(place) for place in range(40)}) == 40
    assert len({look(place).split()[1] for place in range(5)}) == 5


def test_very_many_curves_have_fewer_points_each() -> None:
    assert points_each(10) == 400 and points_each(600) == 100 and points_each(10**6) == 40
    log: Log = [{"step": s, **{f"m{n}": float(s % 7) for n in range(30)}} for s in range(400)]
    drawn = own_of({f"run{n}": log for n in range(10)})
    lines = [line for charts in drawn.values() for chart in charts for line in chart["series"]]
    assert len(lines) == 300 and sum(len(line["points"].split()) for line in lines) <= 61_000


# --- what a judge said


def test_evidence_speaks_of_checkpoints_and_exchanges_them_where_the_judge_read_them_exchanged() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    pair = Pair(id="x", prompt=prompt, a=Response(text="1", source="dpo"), b=Response(text="2", source="base"))
    reading = {"p_a": 0.75, "abstained": None, "evidence": {"labels": ["A", "B"], "logits": [2.0, 1.0]}}
    verdict = Verdict(
        pair_id="x", judge="j", fingerprint="f", p_a=0.7,
        evidence={"forward": reading, "reverse": reading, "bias": 0.25, "score_a": 3,
                  "said": ["Answer 1 is better.\nYes"]},
    )  # fmt: skip
    assert evidence_of(pair, verdict).split("\n") == [
        "forward, P(dpo is better): 0.75",
        "forward, labels: dpo A, base B",
        "forward, logits: dpo 2, base 1",
        "reverse, P(base is better): 0.75",
        "reverse, labels: base A, dpo B",
        "reverse, logits: base 2, dpo 1",
        "bias: 0.25",
        "score of dpo: 3",
        "said: Answer 1 is better.",
        "Yes",
    ]


def test_an_abstention_begins_with_its_reason_and_a_long_reply_is_shortened() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    pair = Pair(id="x", prompt=prompt, a=Response(text="1", source="dpo"), b=Response(text="2", source="base"))
    verdict = Verdict(pair_id="x", judge="j", fingerprint="f", abstained="refused", evidence={"said": ["w" * 5000]})
    told = evidence_of(pair, verdict)
    assert told.startswith("abstained: refused\nsaid: www") and "(5,000 characters)" in told and len(told) < 700


# --- what fits


def test_prompts_that_fit_are_spread_evenly() -> None:
    assert spread([10] * 10, 50) == [0, 2, 4, 6, 8]
    assert spread([10] * 10, 100) == list(range(10))
    assert spread([10] * 10, 1) == [0]
    assert (
        spread([100, *[1] * 9], 50) == [0] or sum([100, *[1] * 9][place] for place in spread([100, *[1] * 9], 50)) <= 50
    )


def test_a_probability_is_kept_in_three_digits_and_never_becomes_a_tie() -> None:
    kept = [samples._kept(p) for p in (0.123456, 0.5, 0.50004, 0.49996, None, samples.NOT_ASKED)]
    assert kept == [0.123, 0.5, 0.5001, 0.4999, None, samples.NOT_ASKED]


def long(prompts: int, characters: int, checkpoints: int = 5) -> ReportData:
    """So many prompts with long answers and evidence for every verdict."""
    data = many(example(12), checkpoints)
    names = [each.name for each in data.results.checkpoints]
    keys = [f"{found.one} vs {found.other}" for found in data.results.comparisons]
    text = ("é<" + "word " * (characters // 5))[:characters]
    said = {judge.name: dict.fromkeys(keys, "bias: 0.2\n" * 15) for judge in data.results.judges}
    sample = Sample(
        prompt=(Message(role="user", content="Why?"),),
        answers=dict.fromkeys(names, text),
        scores={judge.name: dict.fromkeys(keys, 0.61234) for judge in data.results.judges},
        evidence=said,
    )
    kept_at = ("steps/answers/0a1b/answers.jsonl", "steps/compare/77aa/verdicts.jsonl")
    return data.model_copy(update={"samples": (sample,) * prompts, "kept_at": kept_at})


def test_a_thousand_prompts_with_five_long_answers_fit_into_five_megabytes_and_the_page_says_what_does_not() -> None:
    page = render(long(1000, 2000))["report.html"]
    assert len(page.encode()) < 5_000_000
    found = re.search(r"(\d+) of 1,000 prompts are here, evenly spread over the file: more would not fit\.", page)
    carried = json.loads(Shape(page).scripts[0])["samples"]
    assert found and len(carried) == int(found[1])
    assert sum(len(json.dumps(each)) for each in carried) > 3_000_000  # and as much as does fit is there
    assert carried[-1]["number"] > 980
    assert "The whole is in steps/answers/0a1b/answers.jsonl and steps/compare/77aa/verdicts.jsonl." in page


def test_what_judges_said_gives_way_before_any_prompt_does_and_is_kept_for_the_comparisons_with_the_base() -> None:
    browser = browser_of(long(168, 200, MANY))
    assert len(browser.data["samples"]) == 168
    pairs = browser.data["pairs"]
    assert {0 in pairs[int(place)] for each in browser.data["samples"] for place in each["why"][0]} == {True}
    assert browser.left_out[0] == "What the judges said is here for the comparisons with base."


def test_a_text_beyond_the_limit_is_cut_and_says_how_long_it_is() -> None:
    data = long(1, samples.MAX_TEXT + 5)
    browser = browser_of(data)
    assert browser.data["samples"][0]["answers"][0][1] == samples.MAX_TEXT + 5
    assert "Texts are cut at 20,000 characters; 5 were longer." in browser.left_out
    assert browser_of(example(12)).left_out == ()


def test_the_markdown_of_many_checkpoints_fits_a_comment_begins_with_its_table_and_names_what_is_left_out() -> None:
    text = render(many(example(12), 24))["report.md"]
    assert len(text) < MAX_LENGTH + 500
    assert "Not here, as a comment would be too long: Comparisons" in text
    top = text[: text.index("<details>")]
    assert "| checkpoint | likelihood (labelled) | rules | KL, nats |" in top
    assert "**ALARM:**" in top and "**Warning:**" in top and len(top.splitlines()) < 50


# --- for everybody


class Outline(HTMLParser):
    """Headings in order, and the elements that need words of their own."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.wordless: list[str] = []
        self.svg_depth = 0
        self.heads: list[dict[str, str | None]] = []
        self.lang: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "html":
            self.lang = told.get("lang")
        if tag == "th":
            self.heads.append(told)
        if tag == "svg":
            self.svg_depth += 1
            if self.svg_depth == 1 and told.get("aria-hidden") != "true" and not told.get("aria-label"):
                self.wordless.append(str(told))
        if tag == "section" and not told.get("aria-labelledby"):
            self.wordless.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.svg_depth -= tag == "svg"


def test_headings_are_in_order_tables_have_scopes_and_drawings_have_words() -> None:
    found = Outline(render(measured(many(example(12)), str))["report.html"])
    assert found.lang == "en"
    assert found.levels[0] == 1 and found.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(found.levels))
    assert found.wordless == []
    assert {head.get("scope") for head in found.heads} <= {"col", "row", "rowgroup"} and found.heads


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2 of a #rrggbb."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _mixed(tone: str, paper: str, share: float) -> str:
    parts = [round(share * int(tone[place : place + 2], 16) + (1 - share) * int(paper[place : place + 2], 16))
             for place in (1, 3, 5)]  # fmt: skip
    return "#" + "".join(f"{part:02x}" for part in parts)


def themes() -> list[dict[str, str]]:
    style = (files("pipeline") / "templates" / "report.css").read_text("utf-8")
    found = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    return [found[0], {**found[0], **found[1]}]


def test_contrast_is_as_paper_and_ink_would_have_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's example of what just fails


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_and_every_line_stands_out_from_its_ground(theme: int) -> None:
    found = themes()[theme]
    grounds = ["paper", "raised", "wash"]
    texts = [(text, ground) for text in ("ink", "soft", "accent", "gain", "loss") for ground in grounds]
    texts += [("loss", "alarm"), ("paper", "loss"), ("ink", "mark")]
    assert {pair: contrast(found[pair[0]], found[pair[1]]) for pair in texts if
            contrast(found[pair[0]], found[pair[1]]) < 4.5} == {}  # fmt: skip
    for tone, share in ((tone, share) for tone in ("gain", "loss") for share in (0.10, 0.17, 0.24, 0.31)):
        ground = _mixed(found[tone], found["paper"], share)
        assert contrast(found["ink"], ground) >= 4.5 and contrast(found[tone], ground) >= 3
    lines = ["none", *(f"hue{place}" for place in range(8))]
    assert {line: contrast(found[line], found["paper"]) for line in lines if
            contrast(found[line], found["paper"]) < 3} == {}  # fmt: skip


def test_what_turns_the_direction_of_text_is_shown_as_a_sign_outside_of_the_answers() -> None:
    assert visible("a\u202eb\x00c\u2066d\te\n") == "a\ufffdb\ufffdc\ufffdd\te\n"
    for name, text in render(measured(example(12, hostile=True), HOSTILE[6].__add__)).items():
        shown: Any = text
        if name == "report.html":
            shown = text[: text.index('<script type="application/json"')]
        if name != "results.json":
            assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", shown), name
