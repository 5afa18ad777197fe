"""`prefloop import FILE ... --to FOLDER` and `prefloop convert FILE ... --to-format NAME --to FILE`: people's votes in,
and in any other format out again.

What is left out: formats (`pipeline.importers`), what is written (`pipeline.votes`), and training from it, for which a
recipe names the files itself (`annotations`).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.importers.base import Aggregate, Options
from pipeline.terminal import RUNS, console

if TYPE_CHECKING:
    from pipeline.crowd import People
    from pipeline.importers.collect import Collected, Counts

MAX_BAD = 0.01
"""Share of bad rows that is let pass unless `--max-bad` says otherwise."""


def add_to(verbs: Any) -> None:
    """The verbs `import` and `convert`."""
    read = verbs.add_parser("import", help="people's votes from any of their tools, as records in a folder")
    _add_options(read)
    read.add_argument("--to", type=Path, metavar="FOLDER", help="where the records go (runs/imported/<first file>)")
    read.set_defaults(command=_import)

    convert = verbs.add_parser("convert", help="people's votes from one format into another")
    _add_options(convert)
    convert.add_argument("--to-format", required=True, metavar="NAME", help="the format that is wanted")
    convert.add_argument("--to", type=Path, required=True, metavar="FILE", help="a .jsonl, .json, .csv or .parquet")
    convert.set_defaults(command=_convert)


def _add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSONL, JSON, CSV, TSV or Parquet; .gz too")
    verb.add_argument("--format", default="auto", metavar="NAME", help="what the files are (default: seen from rows)")
    verb.add_argument("--choices", default="", metavar="1=a,2=b,0=tie", help="what the values of votes mean")
    verb.add_argument("--columns", default="", metavar="prompt=NAME,a=NAME", help="what columns are called")
    verb.add_argument("--prompt-split", metavar="REGEX", help="where the prompt ends in texts that hold it")
    verb.add_argument("--assume-submitted", action="store_true", help="an Argilla export has no drafts in it")
    verb.add_argument("--max-bad", type=float, default=MAX_BAD, metavar="SHARE", help="of bad rows (default: 0.01)")
    rules = get_args(Aggregate)
    verb.add_argument("--aggregate", choices=rules, default=rules[0], help="what several votes on a pair amount to")


def _import(options: argparse.Namespace) -> None:
    from pipeline import votes

    found = _collect(options)
    folder = options.to or RUNS / "imported" / options.files[0].name.partition(".")[0]
    people = votes.write(found, folder, options.aggregate)
    bad = [f"  {each.file}:{each.place}: {each.reason}" for each in found.quarantine[:5]]
    _say(*_told(found.counts()), *_people(people), *bad, f"written: {folder}")


def _convert(options: argparse.Namespace) -> None:
    convert(_collect(options), options.to_format, options.to, options.aggregate)


def convert(found: "Collected", to_format: str, path: Path, rule: Aggregate) -> None:
    """Write what was collected in another format, and say what that one does not hold.

    Raises:
        DataError: nothing of it can be written in that format.
    """
    from pipeline import votes

    written = votes.convert(found, to_format, path, rule)
    left_out = [f"left out, {times}: {reason}" for reason, times in written.left_out.items()]
    lost = [f"not in this format: {what}" for what in written.lost]
    _say(f"{path}: {written.rows} rows of {to_format}", *left_out, *lost)


def _say(*lines: str) -> None:
    out = console()
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _collect(options: argparse.Namespace) -> "Collected":
    from pipeline.importers.collect import collect

    if not 0 <= options.max_bad <= 1:
        raise DataError(f"--max-bad: {options.max_bad:g} found; needs a share from 0 to 1 (0.05 is 5 %)")
    return collect(options.files, options.format, _options(options), options.max_bad)


def _options(options: argparse.Namespace) -> Options:
    try:
        return Options.model_validate(
            {
                "choices": _mapping(options.choices, "--choices"),
                "columns": _mapping(options.columns, "--columns"),
                "prompt_split": options.prompt_split,
                "assume_submitted": options.assume_submitted,
            }
        )
    except ValidationError as error:
        found = error.errors()[0]
        where = "--" + ".".join(str(part) for part in found["loc"] if part != "[key]").replace("_", "-")
        told = found["msg"].removeprefix("Value error, ")
        what = "" if found["type"] == "value_error" else f"{found['input']!r} found; "  # ours say it themselves
        raise DataError(f"{where}: {what}{told}") from error


def _mapping(text: str, option: str) -> dict[str, str]:
    """`1=a,2=b` as a mapping."""
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.rpartition("=")
        if not equals or not name or not value:
            raise DataError(f"{option}: {part!r} found; needs NAME=VALUE, with commas between them")
        found[name.strip()] = value.strip()
    return found


def _told(counts: "Counts") -> list[str]:
    """What was understood, in sentences whose numbers add up."""
    lines = [f"{path}: read as {name}" for path, name in counts.formats.items()]
    rows = f"{counts.rows:,} rows = {counts.imported:,} imported + {sum(counts.skipped.values()):,} skipped"
    lines.append(f"{rows} + {counts.quarantined:,} in the quarantine")
    lines += _reasons("skipped", counts.skipped) + _reasons("quarantine", counts.quarantine_reasons)
    if counts.pairs:
        chosen = ", ".join(f"{name} {times:,}" for name, times in counts.choices.items())
        lines.append(f"{counts.prompts:,} prompts, {counts.pairs:,} pairs, {counts.votes:,} votes")
        lines.append(f"votes as the files have them: {chosen}; {counts.votes_replaced:,} replaced by a later one")
        lines += _reasons("votes that do not count", counts.votes_skipped)
        lines.append(f"{counts.annotators:,} annotators, and {counts.anonymous_votes:,} votes of nobody in particular")
    if counts.blank_answers:
        lines.append(f"{counts.blank_answers:,} answers are blank: a model said nothing, or nobody filled them in")
    if counts.thumbs:
        lines.append(f"{counts.thumbs:,} thumbs: {counts.thumbs_up:,} up, {counts.thumbs - counts.thumbs_up:,} down")
    return lines


def _reasons(what: str, reasons: Mapping[str, int]) -> list[str]:
    return [f"  {what}, {times:,}: {reason}" for reason, times in reasons.items()]


def _people(people: "People") -> list[str]:
    if people.alpha is None:
        return []
    alpha = people.alpha
    lines = [
        f"{people.shared:,} pairs with two votes or more, {people.unanimous:,} unanimous; Krippendorff's alpha "
        f"{alpha.value:.3f} [{alpha.low:.3f}, {alpha.high:.3f}]"
    ]
    for each in people.annotators[:20]:
        agreement = "" if each.agreement is None else f", agrees with others in {each.agreement:.1%}"
        left = "" if each.left is None else f", picks the left in {each.left:.1%} (p {each.left_p:.2g})"
        lines.append(f"  {each.name}: {each.votes:,} votes{agreement}{left}")
    return lines
