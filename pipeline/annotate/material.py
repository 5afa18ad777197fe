"""The pairs that people are asked about, and their order: the pairs the judge is least sure of first.

A share of the pairs, drawn by a hash that knows nothing of the judge, is the control: it is mixed evenly among the
others, in an order that is random as well, so that whenever the voting stops, the control pairs that were voted on are
a random sample of all pairs. How far people agree with the judge is estimated on them alone. Another share is shown to
two annotators, who agree with each other less on pairs that the judge is unsure of than on others.

Of a run with rounds one round is asked about, the newest if none is named: a vote that labels in an earlier one makes
other answers in those after it, so that whoever votes on both at once votes on pairs that are about to go.

What is left out: who has seen what (`pipeline.annotate.desk`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline import account, store
from pipeline.errors import DataError
from pipeline.records import Pair, Sample, Verdict, seed_of
from pipeline.rounds import place_of, step_of

DATABASE = store.VOTES
"""Where votes are kept, beside the pairs or in the run directory: reruns of steps do not touch it."""


class Item(NamedTuple):
    """A pair as people are asked about it."""

    pair: Pair
    sample: Sample
    """Without a judge the `unsure` are in random order too, and are called so all the same."""
    needed: int
    """How many people shall vote on it: one or two."""


def database_of(run: Path) -> Path:
    """Where the votes on a run, a folder or a file of pairs are kept.

    Those on a step's folder (`RUN/steps/compare/FINGERPRINT`) are beside those on the run, one file for each folder:
    the folder goes when the step is made again.
    """
    folder = (run.parent if run.is_file() else run).resolve()
    if folder.parent.parent.name == "steps":
        stem, suffix = DATABASE.split(".")
        return folder.parents[2] / f"{stem}.{folder.parent.name}.{folder.name}.{suffix}"
    return beside(run)


def beside(run: Path) -> Path:
    """Where they are if that is no step's folder; an earlier version had them there in any case."""
    return run.with_name(DATABASE) if run.is_file() else run / DATABASE


class Found(NamedTuple):
    """Where the pairs are, and what a judge said of them."""

    pairs: Path
    verdicts: Path | None
    """None: no judge has labelled them."""
    number: int = 1
    """The round of the run."""


def find(run: Path, number: int | None = None) -> Found:
    """The pairs of a run, a folder or a file of pairs, and the verdicts on them if there are any.

    Args:
        number: the round of the run. None: the newest.

    Raises:
        DataError: there are no pairs, or there is no such round.
    """
    if number is not None and not (run / "steps").is_dir() and run.exists():
        raise DataError(f"--round: {number} found, and {run} is no run directory, which has rounds; leave it out")
    if run.is_file():
        return Found(run, None)
    if not run.is_dir():
        raise DataError(f"{run}: no such run; name a run directory, a folder with pairs.jsonl, or a file of pairs")
    if not (run / "steps").is_dir():
        pairs, verdicts = run / "pairs.jsonl", run / "verdicts.jsonl"
        if not pairs.is_file():
            raise DataError(f"{run}: neither a run directory nor a folder with pairs.jsonl; generate or import pairs")
        return Found(pairs, verdicts if verdicts.is_file() else None)
    return _of_round(run, _newest(run) if number is None else number)


def _of_round(run: Path, number: int) -> Found:
    generate, label = (step_of(number, step) for step in ("generate", "label"))
    generated = _current(run, generate, store.published(run / "steps" / generate))
    if generated is None:
        if there := ", ".join(map(str, _rounds(run))):
            remedy = f"name one of {there}; a later one has some when its generate step is done (prefloop run)"
            raise DataError(f"--round: {number} found, of which {run} has no pairs; {remedy}")
        raise DataError(f"{run}: no pairs yet; let its generate step finish (prefloop run), then annotate")
    labels = (path for path in store.published(run / "steps" / label) if _of(path, generate, generated))
    labelled = _current(run, label, labels)
    return Found(generated / "pairs.jsonl", labelled / "verdicts.jsonl" if labelled else None, number)


def read(pairs: Path, verdicts: Path | None, *, double: float, control: float, seed: int) -> list[Item]:
    """All pairs of two texts in the order in which they are asked.

    Args:
        double: share of the pairs that two people shall vote on.
        control: share of the pairs that is a random sample.

    Raises:
        DataError: there is no such pair, or a line cannot be read.
    """
    every = {pair.id: pair for pair in store.read_jsonl(pairs, Pair)}
    if not every:
        raise DataError(f"{pairs}: holds no pair; generate or import some")
    # Two checkpoints often write the same, and nobody needs to look at it: nothing could be preferred.
    found = {name: pair for name, pair in every.items() if pair.a.text != pair.b.text}
    if not found:
        raise DataError(f"{pairs}: in each of {len(every)} pairs both answers are the same text; compare other answers")
    said = store.read_jsonl(verdicts, Verdict) if verdicts else ()
    sureness = {verdict.pair_id: _sureness(verdict) for verdict in said}
    return [
        Item(found[name], sample, 2 if _chance(seed, "double", name) < double else 1)
        for name, sample in order(found, sureness, control=control, seed=seed)
    ]


def order(
    pairs: Iterable[str], sureness: Mapping[str, float], *, control: float, seed: int
) -> Iterator[tuple[str, Sample]]:
    """The pairs' ids, the unsure first, the control pairs evenly among them.

    Args:
        sureness: how far the judge's probability is from a tie; a pair that it did not decide has 0.
        control: share of control pairs, of all pairs and of what is asked first.
    """
    drawn: list[str] = []
    others: list[str] = []
    for name in sorted(pairs, key=lambda name: seed_of(seed, "order", name)):
        (drawn if _chance(seed, "control", name) < control else others).append(name)
    others.sort(key=lambda name: sureness.get(name, 0.0))  # stable: equals stay in their random order
    asked = 0
    for number in range(1, len(drawn) + len(others) + 1):
        due = asked < len(drawn) and (asked < control * number or number - 1 - asked >= len(others))
        asked += due
        yield (drawn[asked - 1], "control") if due else (others[number - 1 - asked], "unsure")


def _chance(seed: int, what: str, name: str) -> float:
    """A number in [0, 1) of this pair alone."""
    return float(seed_of(seed, what, name) / 2**63)


def _sureness(verdict: Verdict) -> float:
    return 0.0 if verdict.p_a is None else abs(verdict.p_a - 0.5)


# ---- the published steps of a run


def _rounds(run: Path) -> list[int]:
    """The rounds that have pairs, of whichever command."""
    places = [place_of(step.name) for step in (run / "steps").iterdir() if store.published(step)]
    return sorted(number for number, step in places if step == "generate")


def _newest(run: Path) -> int:
    """The newest round that the run's last command has pairs of; the newest of all while it has none."""
    there = _rounds(run)
    return max([number for number in there if _is_used(run, step_of(number, "generate"))] or there, default=1)


def _is_used(run: Path, step: str) -> bool:
    return any(_used(run, step).startswith(path.name) for path in store.published(run / "steps" / step))


def _of(labelled: Path, generate: str, generated: Path) -> bool:
    """Whether these verdicts are on those pairs."""
    manifest = store.read_manifest(labelled) or {}
    return str(manifest["inputs"][generate]["fingerprint"]).startswith(generated.name)


def _current(run: Path, step: str, published: Iterable[Path]) -> Path | None:
    """That which the run's last command used; the newest while that is not known."""
    name = _used(run, step)
    paths = sorted(published, key=lambda path: (path / store.MANIFEST).stat().st_mtime)
    return next((path for path in paths if name.startswith(path.name)), paths[-1] if paths else None)


def _used(run: Path, step: str) -> str:
    """The fingerprint of a step in the run's last command; nothing while that is not known."""
    try:
        return str(json.loads((run / account.FILE).read_bytes())["steps"][step]["fingerprint"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""
