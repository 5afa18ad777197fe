"""`prefloop judge exam RECIPE`, `judge cost RECIPE` and `judge agree RUN ...`: is this judge any good, what would it
cost, and do two of them agree?

`exam` does a run up to its judge's exam and prints what was found; the exit code is 2 if the judge fails. `agree`
asks nobody anything: it reads what judges said in runs that are there.

What is left out: the questions and marks (`judges.exam`, `judges.grading`), and the statistics (`pipeline.agreement`).
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from judges.base import Cost
from judges.exam import GoldPair, Question
from judges.panel import members_of
from pipeline import recipe as recipes
from pipeline import store
from pipeline.errors import DataError, JudgeError, RecipeError
from pipeline.records import EXCHANGED, Pair, Verdict
from pipeline.rounds import place_of, step_of
from pipeline.terminal import RUNS, console, recipe_of

if TYPE_CHECKING:
    from judges.grading import Position
    from pipeline.agreement import AgreementReport, Rater
    from pipeline.statistics.win_rate import Estimate

Said = tuple[Pair, Verdict]


def add_to(verbs: Any) -> None:
    """The verb `judge` and its own verbs."""
    judge = verbs.add_parser("judge", help="examine a judge, estimate its cost, or see how far judges agree")
    inner = judge.add_subparsers(required=True, metavar="COMMAND")

    exam = inner.add_parser("exam", help="do a run up to its judge's exam and print what was found; 2 if it failed")
    exam.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    exam.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as exam.prompts=48")
    exam.add_argument("--gold", type=Path, metavar="FILE", help="JSONL of id, prompt, a, b, label: what people said")
    exam.add_argument("--judge", metavar="NAME", help="who is examined: a preset of recipes/judges, or a judge")
    exam.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    exam.set_defaults(command=_exam)

    cost = inner.add_parser("cost", help="about what the judges of a run would cost, before anybody is asked")
    cost.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    cost.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as generate.prompts.limit=500")
    cost.add_argument("--judge", metavar="NAME", help="who labels: a preset of recipes/judges, or a judge")
    cost.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    cost.set_defaults(command=_cost)

    agree = inner.add_parser("agree", help="how far the judges of these runs agree on the same pairs, and with people")
    agree.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, such as runs/rlaif")
    agree.add_argument("--gold", type=Path, metavar="FILE", help="JSONL of id, prompt, a, b, label: what people said")
    agree.set_defaults(command=_agree)


# ---- exam


def _exam(options: argparse.Namespace) -> None:
    overrides = [*options.overrides, *([f"exam.gold={json.dumps(str(options.gold))}"] if options.gold else [])]
    recipe = recipes.load(options.recipe, overrides, options.judge)
    recipes.check_files(recipe)
    recipes.check_judges(recipe)
    # Only here, because planning imports every stage, and an error in a recipe should be told before that.
    from judges.grading import ExamReport
    from pipeline import plan
    from pipeline.report.judge_tables import exam_sheet, gold_sheet, place_sheet
    from pipeline.report.sheet import sheet_table

    if recipe.judge is None:
        who = "annotations: people label, and sit no exam" if recipe.annotations else "judge: the recipe has none"
        raise RecipeError(f"{who}; name a recipe that has a judge, such as recipes/rlaif.yaml")
    if not plan.examines(recipe):
        raise RecipeError("exam: nothing to ask; set exam.prompts above 0, or name a gold file with --gold")
    states = plan.open_run(recipe, options.run or RUNS / options.recipe.stem).execute(until="exam")
    path = next(state.path for state in states if state.step.name == "exam") / "exam.json"
    report = ExamReport.model_validate_json(path.read_text(encoding="utf-8"))
    out = console()
    for sheet in (exam_sheet(report), place_sheet(report.position), gold_sheet(report.gold)):
        if sheet.rows:
            out.print(sheet_table(sheet))
    if not report.passed:
        raise JudgeError("\n  ".join([f"judge {report.judge} failed its exam:", *report.causes]))
    out.print(f"judge {report.judge} passed its exam: {path}", markup=False, highlight=False, soft_wrap=True)


# ---- cost


def _cost(options: argparse.Namespace) -> None:
    recipe = recipes.load(options.recipe, options.overrides, options.judge)
    recipes.check_files(recipe)
    from pipeline import costing, plan

    states = plan.open_run(recipe, options.run or RUNS / options.recipe.stem).states()
    generated = next((state.path for state in states if state.step.name == "generate" and state.done), None)
    found = list(costing.lines(recipe, generated))
    total = reduce(Cost.plus, (line.cost for line in found))
    table = Table(box=None, pad_edge=False)
    for name in ("step", "judge", "pairs", "calls", "tokens in", "tokens out", "about USD", "at most"):
        table.add_column(name, justify="left" if name in ("step", "judge") else "right")
    for line in found:
        asked = f"{line.pairs:,} answers" if line.answers else f"{line.pairs:,}"
        table.add_row(line.step, line.judge, asked, *_costs(line.cost))
    table.add_row("all", "", "", *_costs(total), style="bold")
    out = console()
    out.print(table)
    notes = [] if generated else ["The answers are not there yet: each is counted at its greatest length."]
    notes.append("What is in the journal already costs nothing again; attempts that fail and cost come on top.")
    if any(line.answers for line in found):
        notes.append("Of rewards as many answers are counted as there are if training makes all its updates.")
    if unknown := costing.uncounted(recipe):
        notes.append(f"Not counted: the rewards of {', '.join(unknown)}, whose algorithm does not tell how many.")
    if recipe.budget_usd is not None and total.usd > recipe.budget_usd:
        notes.append(f"That is more than budget_usd, {recipe.budget_usd:g}: the run would stop there.")
    out.print("\n".join(notes), markup=False, highlight=False)


def _costs(cost: Cost) -> list[str]:
    counts = [f"{number:,}" for number in (cost.calls, cost.tokens_in, cost.tokens_out)]
    return [*counts, f"{cost.usd:.4f}", f"{cost.most_usd:.4f}"]


# ---- agree


def _agree(options: argparse.Namespace) -> None:
    from pipeline.agreement import agree

    said = said_in(options.runs)
    pairs = {pair.id: pair for each in said.values() for pair, _ in each}
    people = labels_of(pairs.values(), options.gold) if options.gold else {}
    raters = [_rater(name, each) for name, each in said.items()]
    if len(raters) + bool(people) < 2:
        raise DataError(
            f"{', '.join(map(str, options.runs))}: {len(raters)} judges and {len(people)} pairs that people judged; "
            "two are needed. Label with another judge, name another run, or a gold file whose pairs are among these"
        )
    report = agree(raters, {name: pair.prompt.id for name, pair in pairs.items()}, people)
    _print_agreement(report, raters, {name: _position(each) for name, each in said.items()})


def said_in(runs: Sequence[Path]) -> dict[str, list[Said]]:
    """What every judge said in these runs, labelling, comparing and on gold, by its name; each pair once.

    Two judges of one name are told apart by the beginnings of their fingerprints.

    Raises:
        DataError: a run is none, or a verdict's pair is not there.
    """
    found: dict[tuple[str, str], dict[str, Said]] = {}
    for run in runs:
        recipe_of(run)
        for pair, verdict in _said_in(run / "steps"):
            # A panel's members are judges as well, and how their errors go together is what the panel is worth.
            for each in (verdict, *members_of(verdict)):
                found.setdefault((each.judge, each.fingerprint), {})[pair.id] = (pair, each)
    names = [name for name, _ in found]
    return {
        name if names.count(name) == 1 else f"{name} {mark[:6]}": list(each.values())
        for (name, mark), each in sorted(found.items())
    }


def _said_in(steps: Path) -> Iterator[Said]:
    for number, folder in _of_rounds(steps, "label"):
        manifest, generate = store.read_manifest(folder) or {}, step_of(number, "generate")
        generated = steps / generate / manifest["inputs"][generate]["fingerprint"][:12]
        yield from _matched(generated / "pairs.jsonl", folder / "verdicts.jsonl")
    for _, folder in _of_rounds(steps, "compare"):
        yield from _matched(folder / "pairs.jsonl", folder / "verdicts.jsonl")
    for _, folder in _of_rounds(steps, "exam"):
        from pipeline.examine import Answered

        for each in store.read_jsonl(folder / "answers.jsonl", Answered):
            if each.kind == "gold":
                yield each.pair, each.verdict


def _of_rounds(steps: Path, step: str) -> Iterator[tuple[int, Path]]:
    """The published directories of a step in every round, with the round's number."""
    for folder in sorted(steps.glob("*")):
        number, plain = place_of(folder.name)
        if plain == step:
            yield from ((number, path) for path in store.published(folder))


def _matched(pairs: Path, verdicts: Path) -> Iterator[Said]:
    known = {pair.id: pair for pair in store.read_jsonl(pairs, Pair)}
    for verdict in store.read_jsonl(verdicts, Verdict):
        if verdict.pair_id not in known:
            raise DataError(f"{verdicts}: pair {verdict.pair_id} is not in {pairs}; run the recipe again")
        yield known[verdict.pair_id], verdict


def labels_of(pairs: Any, gold: Path) -> dict[str, str]:
    """What people said, of those pairs that a gold file has: by the text of the prompt and of the answers."""
    rows = {(row.prompt, frozenset((row.a, row.b))): row for row in store.read_jsonl(gold, GoldPair)}
    found = {}
    for pair in pairs:
        row = rows.get((pair.prompt.text, frozenset((pair.a.text, pair.b.text))))
        if row is not None:
            found[pair.id] = row.label if pair.a.text == row.a else EXCHANGED[row.label]
    return found


def _rater(name: str, said: Sequence[Said]) -> "Rater":
    from pipeline.agreement import Rater

    # As the judge said it: calibration brings verdicts nearer to a tie, and no judge nearer to another.
    p = {pair.id: verdict.evidence.get("p_raw", verdict.p_a) for pair, verdict in said if verdict.p_a is not None}
    return Rater(name=name, p=p, asked=len(said))


def _position(said: Sequence[Said]) -> "Position | None":
    from judges.grading import Answer, position_of

    return position_of([Answer(Question("pair", pair, pair.prompt.id), verdict) for pair, verdict in said], seed=0)


def _print_agreement(
    report: "AgreementReport", raters: Sequence["Rater"], places: Mapping[str, "Position | None"]
) -> None:
    from judges.grading import shown
    from pipeline.report.sheet import NOTHING, Sheet, sheet_table

    def share(found: "Estimate | None") -> str:
        return shown("share", found) if found else NOTHING

    def number(found: "Estimate | None") -> str:
        return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else NOTHING

    def flips(name: str) -> "Estimate | None":
        place = places[name]
        return place.flips if place else None

    alone = tuple(
        (each.name, str(each.asked), str(each.asked - len(each.p)), share(report.accuracy.get(each.name)),
         share(flips(each.name)))
        for each in raters
    )  # fmt: skip
    together = tuple(
        (f"{each.one} / {each.other}", str(each.agreement.n), share(each.agreement), number(each.kappa),
         number(each.error_correlation))
        for each in report.couples
    )  # fmt: skip
    out = console()
    columns = ("judge", "pairs", "left open", "right by people", "flips with the order")
    out.print(sheet_table(Sheet("Judges", columns, alone)))
    columns = ("both", "pairs", "agree", "Cohen's kappa", "errors correlate")
    out.print(sheet_table(Sheet("Agreement, 95 % intervals over prompts", columns, together)))
    out.print(f"Krippendorff's alpha of all: {number(report.alpha)}", markup=False, highlight=False)
