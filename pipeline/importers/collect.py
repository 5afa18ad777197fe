"""Rows of any format -> pairs with all their votes, thumbs, and a quarantine. The same files give the same bytes.

A pair is its prompt and its two texts, so that it is one pair in whichever order and however often a file has it, and
whoever is said to have written them: the first row that has it says who did. Of several votes of one person on a pair
the latest counts, by their times or, where these cannot tell, by their order. A vote of nobody in particular is
`anonymous/1`, `anonymous/2` ... on its pair. Every row is imported, or skipped with a reason, or in the quarantine with
a reason: the counts add up.

Pairs are kept as the lines that they will be, about a quarter of what the records would take. What is left out: what
the votes say together (`pipeline.crowd`).
"""

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import Field, ValidationError

from pipeline import store
from pipeline.errors import DataError
from pipeline.importers import files
from pipeline.importers.base import (
    IMPORTED,
    NOBODY,
    BadRow,
    Ballot,
    Format,
    Judged,
    Options,
    Row,
    Skip,
    Thumbed,
    format_names,
    no_format,
)
from pipeline.importers.times import earlier
from pipeline.records import EXCHANGED, Pair, Prompt, Record, Response, Thumb, Vote, digest

FIRST = 50
"""Rows by which a format is recognised."""

ANONYMOUS = f"{NOBODY}/"
"""Before the number of a vote of nobody in particular."""

ONE_SIDED = 10
"""Votes from which one side that nobody chose means that the values were misread."""


class Quarantined(Record):
    """A row that could not be used."""

    file: str
    place: int
    """Its line, or in Parquet its number."""
    reason: str
    row: Any = None
    """What is there."""


class Counts(Record):
    """What became of the rows and votes. rows = imported + the sum of `skipped` + quarantined."""

    formats: dict[str, str]
    """File -> the format it was read as."""
    rows: int
    imported: int
    skipped: dict[str, int] = Field(default_factory=dict)
    """Reason -> rows that rightly say nothing."""
    quarantined: int
    quarantine_reasons: dict[str, int] = Field(default_factory=dict)
    prompts: int
    pairs: int
    votes: int
    choices: dict[str, int]
    """a, b, tie -> votes, where a and b are the answers in the order of the file."""
    votes_replaced: int
    """Votes in whose place a later one of the same person on the same pair counts."""
    votes_skipped: dict[str, int] = Field(default_factory=dict)
    """Reason -> votes in imported rows that do not count."""
    annotators: int
    """Named ones."""
    anonymous_votes: int
    blank_answers: int = 0
    """Answers of pairs and thumbs that show nothing: a model said nothing, or nobody filled them in."""
    thumbs: int = 0
    thumbs_up: int = 0


def format_of(name: str) -> Format:
    """The format of that name.

    Raises:
        DataError: there is none.
    """
    if name not in format_names():
        raise DataError(no_format(name))
    return cast(Format, importlib.import_module(f"pipeline.importers.{name}"))


def recognised(path: Path, options: Options) -> str:
    """The format of a file, by its first rows and by what its columns are said to be.

    Raises:
        DataError: no format knows them, or two are equally sure.
    """
    rows = [raw.value for raw in islice(files.rows(path), FIRST) if raw.value is not None]
    if not rows:
        raise DataError(f"{path}: no row can be read; check that it is what its name says")
    sure = sorted(((format_of(name).recognise(rows, options), name) for name in format_names()), reverse=True)
    if sure[0][0] <= 0:
        raise DataError(f"{path}: {_unknown(rows, options)}")
    if sure[0][0] == sure[1][0]:
        raise DataError(f"{path}: may be {sure[0][1]} or {sure[1][1]}; say which with the format")
    return sure[0][1]


def _unknown(rows: Sequence[Row], options: Options) -> str:
    there = ", ".join(map(str, rows[0]))
    absent = [f"{what}={name}" for what, name in options.columns.items() if not any(name in row for row in rows)]
    mend = f"; no column is called what columns says ({', '.join(absent)})" if absent else ""
    return f"no format knows the fields {there}; name one (there are: {', '.join(format_names())}){mend}"


@dataclass(slots=True)
class _Entry:
    """A pair and what was said of it, in the pair's own sides."""

    line: bytes
    votes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Annotator -> the fields of a Vote after `annotator`."""


class _Checked(NamedTuple):
    """An item that can be kept: a pair with votes, or a thumb."""

    item: Judged | Thumbed
    mark: bytes = b""
    """What tells the pair, whichever text comes first, from every other."""
    pair: Pair | None = None
    """None: it is known already."""
    thumb: Thumb | None = None


class Judgement(NamedTuple):
    """A pair with its votes, as records."""

    pair: Pair
    votes: tuple[Vote, ...]


class Collected:
    """Everything that the files said."""

    def __init__(self) -> None:
        self.by_prompt: dict[str, dict[str, _Entry]] = {}
        """Prompt id -> pair id -> pair, each in the order in which it was first seen."""
        self.prompts: dict[str, bytes] = {}
        """Prompt id -> its line of prompts.jsonl."""
        self.quarantine: list[Quarantined] = []
        self._thumbs: dict[tuple[str, str, bool], Thumb] = {}
        self._known_pairs: dict[bytes, tuple[_Entry, bool]] = {}
        """Mark -> pair, and whether its `a` is the first text of the two in alphabetical order."""
        self._tally: Counter[str] = Counter()
        self._choices: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._votes_skipped: Counter[str] = Counter()
        self._formats: dict[str, str] = {}

    # ---- taking rows in

    def read(self, path: Path, name: str, options: Options) -> None:
        """All rows of a file, as the format `name`; `auto` recognises it.

        Raises:
            DataError: the file cannot be read, or one side was never chosen by a map of numbers.
        """
        name = recognised(path, options) if name == "auto" else name
        reader = format_of(name)
        self._formats[str(path)] = name
        before = Counter(self._choices)
        for raw in files.rows(path):
            self._take(path, raw, reader, options)
        _check_sides(path, self._choices - before, options)

    def _take(self, path: Path, raw: files.Raw, reader: Format, options: Options) -> None:
        self._tally["rows"] += 1
        try:
            if raw.value is None:
                raise BadRow(raw.problem)
            # All of the row before any of it is kept: a row is imported whole or not at all.
            items = [self._checked(item) for item in reader.read(raw.value, options)]
            if not items:
                raise Skip("no two answers that differ")
        except Skip as reason:
            self._skipped[str(reason)] += 1
        except (BadRow, ValidationError, UnicodeError) as error:
            told = _reason(error)
            row = raw.value if raw.value is not None else raw.source
            self.quarantine.append(Quarantined(file=str(path), place=raw.place, reason=told, row=_kept(row)))
            self._reasons[_kind(told)] += 1
        else:
            self._tally["imported"] += 1
            for each in items:
                self._keep(each)

    def _checked(self, item: Judged | Thumbed) -> "_Checked":
        """What the item is about, as records that can be written down.

        Raises:
            BadRow, ValidationError, UnicodeError: it cannot.
            Skip: nothing could be preferred.
        """
        told = [[turn.role, turn.content] for turn in item.prompt]
        if isinstance(item, Thumbed):
            thumb = _thumb(Prompt(id=digest(told), messages=item.prompt), item)
            store.line(thumb).encode()
            return _Checked(item, thumb=thumb)
        for vote in item.votes:
            said = (vote.annotator or ANONYMOUS, *vote[2:])
            digest(said)  # which needs texts that can be encoded, and finite numbers
            if vote.strength is not None and vote.strength < 0:
                raise BadRow(f"a strength of {vote.strength:g}; needs to be 0 or more, and the vote says for whom")
        mark = bytes.fromhex(digest([told, sorted((item.a, item.b))], 32))
        if mark in self._known_pairs:
            return _Checked(item, mark)
        if item.a == item.b:
            # No fault of the row: a page or a tool that asks about what models wrote asks about such pairs too.
            raise Skip("the two answers are the same text")
        prompt = Prompt(id=digest(told), messages=item.prompt)
        one, other = (Response(text=text, source=who) for text, who in zip(item[1:3], item.sources, strict=True))
        return _Checked(item, mark, Pair.of(prompt, one, other))

    def _keep(self, checked: "_Checked") -> None:
        item, mark, pair, thumb = checked
        if isinstance(item, Thumbed):
            assert thumb is not None
            self._keep_prompt(thumb.prompt)
            key = (thumb.prompt.id, item.answer, item.good)
            before = self._thumbs[key].votes if key in self._thumbs else 0
            self._tally["blank"] += not before and not item.answer.strip()
            self._thumbs[key] = thumb.model_copy(update={"votes": before + thumb.votes})
            return
        if mark not in self._known_pairs:
            assert pair is not None
            self._keep_prompt(pair.prompt)
            self._tally["blank"] += sum(not side.text.strip() for side in (pair.a, pair.b))
            entry = _Entry(store.line(pair).encode())
            self.by_prompt.setdefault(pair.prompt.id, {})[pair.id] = entry
            self._known_pairs[mark] = entry, pair.a.text < pair.b.text
        entry, a_first = self._known_pairs[mark]
        self._vote(item, entry, same_sides=a_first == (item.a < item.b))

    def _keep_prompt(self, prompt: Prompt) -> None:
        if prompt.id not in self.prompts:
            self.prompts[prompt.id] = store.line(prompt).encode()

    def _vote(self, item: Judged, entry: _Entry, *, same_sides: bool) -> None:
        for vote in item.votes:
            self._choices[vote.choice] += 1
            who = vote.annotator
            if who is not None and "@" in who:
                who = f"annotator-{digest(who, 8)}"  # an address is nobody's name
            if who is None:
                self._tally["anonymous"] += 1
                number = 1 + sum(name.startswith(ANONYMOUS) for name in entry.votes)
                who = f"{ANONYMOUS}{number}"
            said = _in_sides_of_pair(vote, same_sides)
            if who in entry.votes:
                self._tally["replaced"] += 1
                if earlier(said[-1], entry.votes[who][-1]):
                    continue  # what is there was said later
            entry.votes[who] = said
        self._votes_skipped.update(item.skipped)

    # ---- giving records out

    @property
    def thumbs(self) -> list[Thumb]:
        """One for each answer and opinion, with the number of people."""
        return list(self._thumbs.values())

    def judgements(self) -> Iterator[Judgement]:
        """Pairs with their votes, those of a prompt one after the other."""
        for pair_id, entry in self._entries():
            yield Judgement(Pair.model_validate_json(entry.line), tuple(_votes(pair_id, entry)))

    def lines(self, prompts: Iterable[str] | None = None) -> Iterator[bytes]:
        """Pairs as lines of pairs.jsonl.

        Args:
            prompts: ids of the prompts whose pairs are wanted; None: all.
        """
        return (entry.line + b"\n" for _, entry in self._entries(prompts))

    def prompt_of(self) -> dict[str, str]:
        """Pair id -> prompt id."""
        return {pair: prompt for prompt, entries in self.by_prompt.items() for pair in entries}

    def votes(self, prompts: Iterable[str] | None = None) -> Iterator[Vote]:
        """The votes, in the order of `lines`."""
        for pair_id, entry in self._entries(prompts):
            yield from _votes(pair_id, entry)

    def _entries(self, prompts: Iterable[str] | None = None) -> Iterator[tuple[str, _Entry]]:
        for name in self.by_prompt if prompts is None else prompts:
            yield from self.by_prompt.get(name, {}).items()

    def counts(self) -> Counts:
        """What became of the rows."""
        entries = [entry for _, entry in self._entries()]
        names = {name for entry in entries for name in entry.votes if not name.startswith(ANONYMOUS)}
        return Counts(
            formats=self._formats,
            rows=self._tally["rows"],
            imported=self._tally["imported"],
            skipped=dict(self._skipped.most_common()),
            quarantined=len(self.quarantine),
            quarantine_reasons=dict(self._reasons.most_common()),
            prompts=len(self.prompts),
            pairs=len(entries),
            votes=sum(len(entry.votes) for entry in entries),
            choices={choice: self._choices[choice] for choice in ("a", "b", "tie")},
            votes_replaced=self._tally["replaced"],
            votes_skipped=dict(self._votes_skipped.most_common()),
            annotators=len(names),
            anonymous_votes=self._tally["anonymous"],
            blank_answers=self._tally["blank"],
            thumbs=len(self._thumbs),
            thumbs_up=sum(thumb.good for thumb in self._thumbs.values()),
        )


def collect(paths: Sequence[Path], name: str, options: Options, max_bad: float) -> Collected:
    """Everything in these files.

    Raises:
        DataError: a file cannot be read, more than the share `max_bad` of the rows is bad, or nothing is left.
    """
    found = Collected()
    for path in paths:
        found.read(path, name, options)
    counts = found.counts()
    if counts.quarantined > max_bad * counts.rows:
        raise DataError("\n  ".join([_too_many(counts, max_bad), *_examples(found.quarantine)]))
    if not counts.pairs and not counts.thumbs:
        reasons = ", ".join(f"{reason}: {times}" for reason, times in counts.skipped.items()) or "there is none"
        raise DataError(f"{', '.join(map(str, paths))}: no row says anything ({reasons})")
    return found


# ---- details


def _in_sides_of_pair(vote: Ballot, same: bool) -> tuple[Any, ...]:
    choice: str = vote.choice if same else EXCHANGED[vote.choice]
    order = vote.shown if same or vote.shown is None else EXCHANGED[vote.shown]
    return (choice, order, vote.strength, vote.note, vote.sample, vote.at)


def _votes(pair_id: str, entry: _Entry) -> Iterator[Vote]:
    for who, (choice, order, strength, note, sample, at) in entry.votes.items():
        yield Vote(
            pair_id=pair_id,
            annotator=who,
            choice=choice,
            shown=order,
            strength=strength,
            sample=sample,
            note=note,
            at=at,
        )


def _thumb(prompt: Prompt, item: Thumbed) -> Thumb:
    return Thumb(prompt=prompt, response=Response(text=item.answer, source=IMPORTED), good=item.good, votes=item.votes)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors()[:3])
    if isinstance(error, UnicodeError):
        return "a text holds a byte that is not UTF-8, or half of a character; write the file again as UTF-8"
    return str(error).encode(errors="replace").decode()


def _kind(reason: str) -> str:
    """A reason without the value that was found, so that the same mistake is counted together."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "...", reason)[:120]


def _kept(row: Any) -> Any:
    """The row as JSON can hold it: what cannot be encoded must be in the quarantine all the same."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    return json.loads(text.encode(errors="replace").decode(), parse_constant=str)


def _check_sides(path: Path, seen: Counter[str], options: Options) -> None:
    """A map of numbers that misreads 0 and 1 as 1 and 2 is right for half of the rows, and no row shows it."""
    total = sum(seen.values())
    for side in ("a", "b"):
        mapped = any(meant == side and value.strip().isdigit() for value, meant in options.choices.items())
        if mapped and total >= ONE_SIDED and not seen[side]:
            raise DataError(
                f"{path}: of {total} votes not one is for {side}, so the numbers may mean something else than "
                f"choices says ({', '.join(f'{value}={meant}' for value, meant in options.choices.items())})"
            )


def _too_many(counts: Counts, max_bad: float) -> str:
    files_ = ", ".join(counts.formats)
    return (
        f"{files_}: {counts.quarantined} of {counts.rows} rows are bad, and max_bad allows {max_bad:.1%}. "
        f"Read as {', '.join(sorted(set(counts.formats.values())))}; if that is wrong, name the format"
    )


def _examples(quarantine: Sequence[Quarantined]) -> list[str]:
    shown: dict[str, str] = {}
    for each in quarantine:
        shown.setdefault(_kind(each.reason), f"{each.file}:{each.place}: {each.reason}")
    more = [f"and {len(shown) - store.SHOWN} other reasons"] if len(shown) > store.SHOWN else []
    return [*list(shown.values())[: store.SHOWN], *more]
