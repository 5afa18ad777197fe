"""Data checks: prompts that are there twice, held-out prompts that are trained on, labels that are too few.

Two prompts are the same if their turns are, apart from case, spacing and Unicode form; system messages do not count.
A held-out prompt is near one that is trained on if more than half of its words are in runs of eight words that the
other has too (Lambert et al. 2024, arXiv:2411.15124, section 3.2); a prompt of fewer words has no such run.

What is left out: answers, and likeness of meaning.
"""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.algorithms.base import AlgorithmConfig
from pipeline.demonstrations import Demonstration
from pipeline.findings import Finding, Level
from pipeline.records import Prompt

RUN = 8
"""Words of a run that two prompts share."""

NEAR = 0.5
"""Share of a held-out prompt's words in such runs above which it is near the other."""

FEW_UPDATES = 10
"""Fewer updates than this change an adapter so little that a comparison would find nothing."""


def folded(prompt: Prompt) -> str:
    """What two prompts that are the same have in common."""
    turns = [f"{each.role}: {each.content}" for each in prompt.messages if each.role != "system"]
    return _folded("\n".join(turns))


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_findings(trained: Sequence[Prompt], held_out: Sequence[Prompt], where: str) -> list[Finding]:
    """Duplicates in either set, and what they share.

    Args:
        where: the trained-on prompts' key path.
    """
    apart = "compare.prompts.files"
    found = [
        *_twice(trained, where, "each counts double in training; remove all but one"),
        *_twice(held_out, apart, "intervals take prompts for independent and come out too narrow; remove all but one"),
    ]
    same = _same(trained, held_out)
    if same:
        what = f"{len(same)} of {len(held_out)} held-out prompts are trained on, such as {_pair(same)}"
        remedy = f"remove them from {apart} or from {where}: a comparison on them shows memory"
        found.append(Finding(level="error", check="data", where=apart, what=what, remedy=remedy))
    near = _near(trained, [prompt for prompt in held_out if prompt.id not in {name for name, _ in same}])
    if near:
        what = f"{len(near)} of {len(held_out)} held-out prompts are near one that is trained on, such as {_pair(near)}"
        remedy = "look at them, and remove those that ask the same"
        found.append(Finding(level="warning", check="data", where=apart, what=what, remedy=remedy))
    if not found:
        what = f"{len(trained)} prompts to train on and {len(held_out)} held out, all different"
        found.append(Finding(level="info", check="data", where=f"{where}, {apart}", what=what))
    return found


def demonstration_findings(
    shown: Sequence[Demonstration], tested: Sequence[Demonstration], held_out: Sequence[Prompt], where: str
) -> list[Finding]:
    """Rows that are there twice, in training and test, or that ask what is held out.

    Args:
        tested: what the loss is measured on.
        held_out: prompts that checkpoints are compared on.
        where: the key path of the block that names the files.
    """
    found: list[Finding] = []
    known: dict[str, str] = {}
    repeated = [
        (each.where, known[key]) for each in shown if known.setdefault(key := _said(each), each.where) != each.where
    ]
    if repeated:
        what = f"{len(repeated)} of {len(shown)} demonstrations repeat another, such as {_pair(repeated)}"
        remedy = "each counts double in training; remove all but one"
        found.append(Finding(level="warning", check="data", where=f"{where}.train", what=what, remedy=remedy))
    leaked = [(each.where, known[key]) for each in tested if (key := _said(each)) in known]
    if leaked:
        what = f"{len(leaked)} of {len(tested)} test rows are learned, such as {_pair(leaked)}"
        remedy = f"remove them from {where}.train: a loss on them shows memory"
        found.append(Finding(level="error", check="data", where=f"{where}.test", what=what, remedy=remedy))
    asked = [prompt for each in shown if (prompt := each.prompt)]
    same = _same(asked, held_out)
    if same:
        what = f"{len(same)} of {len(held_out)} held-out prompts are learned, such as {_pair(same)}"
        remedy = f"remove them from compare.prompts.files or from {where}.train: a comparison on them shows memory"
        found.append(Finding(level="error", check="data", where="compare.prompts.files", what=what, remedy=remedy))
    if not found:
        texts = sum(each.text is not None for each in shown)
        what = f"{len(shown) - texts} conversations and {texts} texts to learn, {len(tested)} to test on, all different"
        found.append(Finding(level="info", check="data", where=where, what=what))
    return found


def text_findings(
    read: Sequence[Demonstration], learned: Mapping[str, Sequence[Demonstration]], trained: Sequence[Prompt]
) -> list[Finding]:
    """Text for perplexity that some checkpoint was trained on.

    Args:
        learned: demonstrations by the key path of their files.
        trained: prompts whose answers are trained on.
    """
    where = "compare.perplexity.files"
    found = []
    for path, shown in learned.items():
        known = {_said(each): each.where for each in shown}
        leaked = [(each.where, known[key]) for each in read if (key := _said(each)) in known]
        if leaked:
            what = f"{len(leaked)} of {len(read)} rows are learned, such as {_pair(leaked)}"
            remedy = f"remove them from {where} or from {path}: perplexity on them shows memory"
            found.append(Finding(level="error", check="data", where=where, what=what, remedy=remedy))
    asked = [prompt for each in read if (prompt := each.prompt)]
    same = _same(trained, asked)
    if same:
        what = f"{len(same)} of {len(read)} rows answer a prompt that is trained on, such as {_pair(same)}"
        remedy = "their answers are not trained on, but others to it are; remove them to be sure"
        found.append(Finding(level="warning", check="data", where=where, what=what, remedy=remedy))
    if not found:
        what = f"{len(read)} rows for perplexity, none of which is trained on"
        found.append(Finding(level="info", check="data", where=where, what=what))
    return found


def _said(shown: Demonstration) -> str:
    turns = [f"{each.role}: {each.content}" for each in shown.messages] or [shown.text or ""]
    return _folded("\n".join(turns))


def length_findings(lengths: Sequence[int], total: int, train: Mapping[str, AlgorithmConfig]) -> Iterator[Finding]:
    """Prompts that alone fill the `max_length` of a step that learns from them: it learns nothing of these.

    Args:
        lengths: tokens of the longest of the trained-on prompts.
        total: how many prompts there are.
    """
    for name, algorithm in train.items():
        full = sum(length >= algorithm.max_length for length in lengths)
        if full and algorithm.reads():
            many = f"at least {full}" if full == len(lengths) < total else str(full)
            what = f"{many} of {total} prompts alone have {algorithm.max_length} tokens or more"
            remedy = f"raise it; the longest prompt has {max(lengths)} tokens"
            level: Level = "error" if full == total else "warning"
            yield Finding(level=level, check="data", where=f"train.{name}.max_length", what=what, remedy=remedy)


def label_findings(
    summary: Mapping[str, Any], thumbs: tuple[int, int], train: Mapping[str, AlgorithmConfig]
) -> list[Finding]:
    """How many preferences there are, and whether that is enough for each step that learns from them.

    Args:
        summary: the label step's summary.json.
        thumbs: single answers that people found good, and bad.
    """
    pairs, decided, ties = summary["pairs"], summary["decided"], summary["ties"]
    open_ = sum(summary["abstained"].values())
    what = f"{decided} of {pairs} pairs are decided, {ties} ties, {open_} left open"
    many = pairs and ties > pairs / 2
    found = [
        Finding(
            level="warning" if many else "info",
            check="labels",
            where="label",
            what=what,
            remedy="more than half are ties: the answers are too alike, or the judge is too coarse" if many else "",
        )
    ]
    learned = summary.get("preferences", decided)
    for name, algorithm in train.items():
        if "label" in algorithm.reads():
            found += _enough(name, algorithm, learned, thumbs)
    return found


def _enough(name: str, algorithm: AlgorithmConfig, preferences: int, thumbs: tuple[int, int]) -> Iterator[Finding]:
    kto = algorithm.name == "kto"
    good, bad = (preferences + thumbs[0], preferences + thumbs[1]) if kto else (preferences, preferences)
    examples = good + bad if kto else preferences
    where = f"train.{name}"
    if not examples or (kto and not min(good, bad)):
        what = f"{good} good and {bad} bad answers" if kto else "no preferences to learn from"
        remedy = "label more pairs, or lower label.min_confidence; label/summary.json has the counts"
        yield Finding(level="error", check="labels", where=where, what=what, remedy=remedy)
        return
    if kto and max(good, bad) > 4 * min(good, bad):
        what = f"{good} good answers and {bad} bad ones"
        remedy = "the weights balance them, but the rarer kind is seen rarely: collect more of it"
        yield Finding(level="warning", check="labels", where=where, what=what, remedy=remedy)
    batch = algorithm.per_device_train_batch_size * algorithm.gradient_accumulation_steps
    updates = math.ceil(examples * algorithm.num_train_epochs / batch)
    if algorithm.max_steps > 0:
        updates = min(updates, algorithm.max_steps)
    few = updates < FEW_UPDATES
    yield Finding(
        level="warning" if few else "info",
        check="labels",
        where=where,
        what=f"{examples} examples, about {updates} updates",
        remedy="label more pairs, or take smaller batches: so few updates rarely show" if few else "",
    )


# ---- the same, and near


def _twice(prompts: Sequence[Prompt], where: str, remedy: str) -> Iterator[Finding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        groups[folded(prompt)].append(prompt.id)
    more = [names for names in groups.values() if len(names) > 1]
    if more:
        count = sum(len(names) - 1 for names in more)
        what = f"{count} of {len(prompts)} prompts repeat another, such as {_pair([(more[0][1], more[0][0])])}"
        yield Finding(level="warning", check="data", where=where, what=what, remedy=remedy)


def _same(trained: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[tuple[str, str]]:
    known = {folded(prompt): prompt.id for prompt in trained}
    return [(prompt.id, known[key]) for prompt in held_out if (key := folded(prompt)) in known]


def _near(trained: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[tuple[str, str]]:
    owners: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, prompt in enumerate(trained):
        for run in _runs(folded(prompt).split()):
            owners[run].add(number)
    found = []
    for prompt in held_out:
        words = folded(prompt).split()
        shared: dict[int, set[int]] = defaultdict(set)
        for place, run in enumerate(_runs(words)):
            for number in owners.get(run, ()):
                shared[number].update(range(place, place + RUN))
        if shared:
            number = max(shared, key=lambda each: (len(shared[each]), -each))
            if len(shared[number]) > NEAR * len(words):
                found.append((prompt.id, trained[number].id))
    return found


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)]


def _pair(pairs: Sequence[tuple[str, str]]) -> str:
    return f"{pairs[0][0]!r} (as {pairs[0][1]!r})"
