"""Tables of who judged: the judges, their exam and their agreement with people, the people, and the labels.

What is left out: what the policies came to (`comparison_tables`).
"""

from collections.abc import Iterable

from judges.grading import ExamReport, GoldReport, Position, shown, wanted
from pipeline.agreement import AgreementReport
from pipeline.crowd import People
from pipeline.ratings import How, JudgeInfo, percent
from pipeline.report.data import Labels
from pipeline.report.sheet import NOTHING, Sheet, between, estimate, kappa, number, p_value, reasons, share

LABELLED: dict[How | None, str] = {
    "labelled": "yes",
    "labelled in part": "in part",
    "rewarded": "no, but rewarded policies",
    None: "no",
}
"""Whether a judge labelled the training data."""


def judge_sheet(judges: Iterable[JudgeInfo]) -> Sheet:
    columns = ("judge", "labelled the training data", "asked", "ties", "abstained", "prefers longer", "prefers side a")
    rows = tuple(
        (
            judge.name,
            LABELLED[judge.tag],
            str(judge.asked),
            str(judge.ties),
            reasons(judge.abstained),
            share(judge.prefers_longer),
            share(judge.position_a),
        )
        for judge in judges
    )
    return Sheet("Judges", columns, rows, names=2)


def label_sheet(labels: Labels | None) -> Sheet:
    if labels is None:
        return Sheet("Labels", (), ())
    names = ("judge", "prompts", "candidates", "pairs", "decided", "ties", "abstained")
    candidates = NOTHING if labels.candidates is None else labels.candidates
    counts = (labels.prompts, candidates, labels.pairs, labels.decided, labels.ties)
    told = told_by_the_judge(labels)
    columns = (*names, *(name for name, _ in told))
    row = (labels.judge, *map(str, counts), reasons(labels.abstained), *(value for _, value in told))
    return Sheet("Labels", columns, (row,))


def told_by_the_judge(labels: Labels) -> list[tuple[str, str]]:
    """What the judge tells of itself, in words: `flip_rate` 0.125 is "flip rate" and "12.5 %"."""
    found = []
    for name, value in labels.findings.items():
        words, _, unit = name.replace("_", " ").rpartition(" ")
        found.append((f"{words} rate", percent(value)) if unit == "rate" else (words, f"{value:.2f} {unit}"))
    return found


def exam_sheet(exam: ExamReport | None) -> Sheet:
    """What the judge had to show, and what it showed."""
    outcomes = {True: "passed", False: "failed", None: "not asked"}
    rows = tuple(
        (
            check.name,
            outcomes[check.passed],
            wanted(check),
            shown(check.unit, check.found) if check.found else NOTHING,
            str(check.found.n) if check.found else NOTHING,
        )
        for check in (exam.checks if exam else ())
    )
    if exam and exam.prefers_longer:
        longer = exam.prefers_longer
        rows += (("the longer answer wins", NOTHING, NOTHING, shown("share", longer), str(longer.n)),)
    return Sheet("The judge's exam", ("what", "outcome", "floor", "found", "questions"), rows, names=2)


def place_sheet(position: Position | None) -> Sheet:
    """How much the place counts, of a judge that is asked in both orders."""
    columns = ("bias, nats", "95 % interval", "between answers, nats", "picks the first", "flips with the order")
    if position is None:
        return Sheet("Position bias", columns, ())
    row = (
        number(position.bias.value, 2),
        between(position.bias.low, position.bias.high, 2),
        f"{position.signal:.2f}",
        shown("share", position.first),
        shown("share", position.flips),
    )
    return Sheet("Position bias", columns, (row,), names=0)


def gold_sheet(gold: GoldReport | None) -> Sheet:
    """The judge against people."""
    if gold is None:
        return Sheet("The judge against people", (), ())
    rows = (
        ("right", estimate(gold.accuracy)),
        *((f"right, {name}", estimate(found)) for name, found in gold.by_subset.items()),
        ("right where the longer answer is better", share(gold.accuracy_longer_better)),
        ("right where it is worse", share(gold.accuracy_longer_worse)),
        ("the longer answer is better", share(gold.longer_is_better)),
        ("prefers the longer answer", estimate(gold.prefers_longer)),
        ("Cohen's kappa", kappa(gold.kappa)),
        ("Brier score", number(gold.brier, 3)),
        ("calibration error", number(gold.ece, 3)),
        ("calibration error at the fitted temperature", number(gold.ece_calibrated, 3)),
        ("surer of what is right (AUROC)", number(gold.auroc, 3)),
        ("temperature", f"{gold.temperature:.3g}"),
        ("rows, ties among them", f"{gold.rows}, {gold.ties}"),
        ("abstained", reasons(gold.abstained)),
    )
    return Sheet("The judge against people", ("what", "found"), rows)


def people_sheet(people: People | None) -> Sheet:
    """Who voted, and how far they agree."""
    columns = ("annotator", "votes", "ties", "agrees with others", "right by Dawid-Skene", "picks the left", "p")
    rows = tuple(
        (
            each.name,
            str(each.votes),
            str(each.ties),
            share(each.agreement),
            share(each.accuracy),
            share(each.left),
            p_value(each.left_p) if each.left_p is not None else NOTHING,
        )
        for each in (people.annotators if people else ())
    )
    return Sheet("Annotators", columns, rows)


def between_judges_sheet(found: AgreementReport | None) -> Sheet:
    """The comparing judges on the same answers, two by two."""
    columns = ("judge", "judge", "say the same", "Cohen's kappa", "pairs")
    rows = tuple(
        (couple.one, couple.other, estimate(couple.agreement), kappa(couple.kappa), str(couple.agreement.n))
        for couple in (found.couples if found else ())
    )
    return Sheet("Agreement between the judges", columns, rows, names=2)


def against_people_sheet(found: AgreementReport | None) -> Sheet:
    """The comparing judges on the held-out votes."""
    columns = ("judge", "right where people decided", "pairs", "says the same of a, b and tie", "Cohen's kappa")
    couples = {couple.one: couple for couple in found.couples if couple.other == "people"} if found else {}
    rows = tuple(
        (
            name,
            estimate(found.accuracy.get(name)),
            str(found.accuracy[name].n) if name in found.accuracy else NOTHING,
            estimate(couple.agreement),
            kappa(couple.kappa),
        )
        for name, couple in couples.items()
        if found
    )
    return Sheet("Comparing judges against people", columns, rows)
