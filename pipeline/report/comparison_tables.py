"""Tables of what a comparison found: win rates, raw and adjusted, strengths and rounds.

What is left out: the statistics (`pipeline.ratings`, `pipeline.statistics`), and the checkpoints themselves.
"""

import itertools
from collections.abc import Sequence

from pipeline.ratings import Comparison, Results, interval, percent
from pipeline.report.sheet import NOTHING, Sheet, between, interval_name, number, p_value, share, verdict
from pipeline.statistics.bradley_terry import Strengths
from pipeline.statistics.judge_error import Corrected
from pipeline.statistics.length_control import LengthControlled


def summary_sheet(results: Results) -> Sheet:
    """A line a checkpoint: what every judge makes of it against the base, and how it answers."""
    judges = [f"{judge.name} ({judge.tag})" if judge.tag else judge.name for judge in results.judges]
    rows = []
    for one in results.checkpoints:
        found = {each.judge: each for each in results.between(one.name, results.base)}
        rates = [_told(found.get(judge.name)) for judge in results.judges]
        kl = number(one.kl.value, 1) if one.kl else NOTHING
        rows.append((one.name, *rates, kl, number(one.tokens_mean, 0), share(one.finished_share)))
    columns = ("checkpoint", *judges, "KL, nats", "tokens", "ended itself")
    return Sheet("Checkpoints against the base", columns, tuple(rows) if results.comparisons else ())


def _told(found: Comparison | None) -> str:
    if found is None:
        return NOTHING
    said = f" {verdict(found)}" if found.decisive else ""
    return f"{percent(found.win_rate)} {interval(found.low, found.high)}{said}"


def comparison_sheet(results: Results) -> Sheet:
    columns = (
        "comparison", "judge", "verdict", "win rate", interval_name(results), "bootstrap", "prompts", "verdicts",
        "ties", "abstained", "worst to best", "p (Holm)", "detectable", "length ratio",
    )  # fmt: skip
    rows = tuple(
        (
            f"{found.one} vs {found.other}",
            found.judge,
            verdict(found),
            percent(found.win_rate),
            interval(found.low, found.high),
            interval(found.bootstrap_low, found.bootstrap_high),
            str(found.n_clusters),
            str(found.n),
            str(found.ties),
            str(found.abstained),
            interval(found.bounds_low, found.bounds_high) if found.abstained else NOTHING,
            p_value(found.p_holm),
            f"± {100 * found.smallest_detectable:.1f}",
            number(found.tokens_ratio, 2),
        )
        for found in results.comparisons
    )
    return Sheet("Comparisons", columns, rows, names=3)


def controlled_sheet(results: Results) -> Sheet:
    """The win rates between answers of one length, beside the raw ones."""
    raw = {(found.judge, found.one, found.other): found.win_rate for found in results.comparisons}
    unknown = {phi.judge: phi.not_identified for phi in results.length_coefficients if phi.not_identified}
    columns = ("comparison", "judge", "note", "win rate", "at equal length", interval_name(results))
    rows = tuple(
        (
            f"{found.one} vs {found.other}",
            found.judge,
            f"not identified: {found.not_identified}" if found.not_identified else "",
            share(raw.get((found.judge, found.one, found.other))),
            share(found.win_rate),
            _bounds(found),
        )
        for found in results.length_controlled
        if found.judge not in unknown
    )
    rows += tuple(("all", judge, f"not identified: {why}", *(NOTHING,) * 3) for judge, why in unknown.items())
    return Sheet("At equal length", columns, rows, names=3)


def corrected_sheet(results: Results) -> Sheet:
    """The win rates as people would have them."""
    raw = {(found.judge, found.one, found.other): found.win_rate for found in results.comparisons}
    columns = (
        "comparison", "judge", "method", "note", "the judge says", "people would", interval_name(results),
        "people's labels", "reliance",
    )  # fmt: skip
    rows = tuple(
        (
            f"{found.one} vs {found.other}",
            found.judge,
            found.method,
            f"not identified: {found.not_identified}" if found.not_identified else "",
            share(raw.get((found.judge, found.one, found.other))),
            share(found.win_rate),
            _bounds(found),
            str(found.labels),
            number(found.reliance, 2),
        )
        for found in results.corrected
    )
    return Sheet("Corrected by people", columns, rows, names=4)


def _bounds(found: LengthControlled | Corrected) -> str:
    return NOTHING if found.low is None or found.high is None else interval(found.low, found.high)


def strength_sheet(results: Results) -> Sheet:
    """All checkpoints on one scale."""
    columns = ("checkpoint", "judge", "strength, log-odds", interval_name(results), "Elo")
    rows = tuple(
        (one.name, found.judge, number(one.value, 2), between(one.low, one.high, 2), number(one.elo, 0))
        for found in results.strengths
        for one in found.strengths
    )
    return Sheet("Strengths (Bradley-Terry)", columns, rows, names=2)


def habit_sheet(results: Results) -> Sheet:
    """What a judge gives to the side of an answer and to its length, and how well one order fits its verdicts."""
    fits = {found.judge: found for found in results.strengths}
    columns = (
        "judge",
        "side a, log-odds",
        interval_name(results),
        "ties, nu",
        "largest misfit",
        "length, phi",
        "error",
    )
    rows = tuple(
        (
            phi.judge,
            *(_habits(fits[phi.judge]) if phi.judge in fits else (NOTHING,) * 4),
            number(phi.value, 2),
            number(phi.standard_error, 2),
        )
        for phi in results.length_coefficients
    )
    return Sheet("What sways the judges", columns, rows)


def _habits(found: Strengths) -> tuple[str, ...]:
    side = found.side
    bounds = between(side.low, side.high, 2)
    return (number(side.value, 2), bounds, number(found.tie, 2), percent(found.largest_misfit))


def round_sheet(rounds: Sequence[Results]) -> Sheet:
    """What each round's policies gained on the base, and on the policy that the round began with."""
    columns = ("round", "comparison", "judge", "verdict", "win rate", "interval", "KL, nats", "prompts")
    known = {rounds[0].base} if rounds else set()
    rows = []
    for turn, results in enumerate(rounds, start=1):
        kl = {each.name: each.kl for each in results.checkpoints}
        for new, start in itertools.product((n for n in kl if n not in known), [n for n in kl if n in known]):
            moved = number(found.value, 1) if (found := kl[new]) else NOTHING
            rows += [
                (
                    str(turn),
                    f"{new} vs {start}",
                    seen.judge,
                    verdict(seen),
                    percent(seen.win_rate),
                    interval(seen.low, seen.high),
                    moved,
                    str(seen.n_clusters),
                )
                for seen in results.between(new, start)
            ]
        known |= kl.keys()
    return Sheet("Rounds", columns, tuple(rows), names=4)
