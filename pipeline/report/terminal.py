"""The comparison as a terminal shows it, at the end of the command."""

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.ratings import Checkpoint, Comparison, Results, interval, percent
from pipeline.report.sheet import NOTHING, interval_name, number, share, verdict


def table(results: Results) -> Table:
    """The comparison as a terminal shows it: a line a checkpoint, at most 100 columns for up to three judges."""
    shown = Table(box=box.SIMPLE_HEAD, caption=Text(_caption(results)), caption_justify="left", pad_edge=False)
    shown.add_column("checkpoint", overflow="fold")
    for judge in results.judges:
        shown.add_column(Text(f"win rate\n{judge.name}"), overflow="fold")
    for name in ("KL\nnats", "tokens", "ended\nitself", "distinct\n-2"):
        shown.add_column(name, justify="right")
    narrow = len(results.judges) > 2
    for checkpoint in results.checkpoints:
        found = {comparison.judge: comparison for comparison in results.between(checkpoint.name, results.base)}
        rates = [_rate(found.get(judge.name), narrow) for judge in results.judges]
        shown.add_row(Text(checkpoint.name), *rates, *map(Text, _facts(checkpoint)))
    return shown


def _rate(found: Comparison | None, narrow: bool) -> Text:
    if found is None:
        return Text(NOTHING)
    bounds, star = interval(found.low, found.high), " *" if found.decisive else ""
    style = {"better": "bold green", "worse": "bold red"}.get(verdict(found), "")
    return Text(f"{percent(found.win_rate)}{star}{chr(10) if narrow else ' '}{bounds}", style=style)


def _facts(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (
        number(checkpoint.kl.value, 1) if checkpoint.kl else NOTHING,
        number(checkpoint.tokens_mean, 0),
        share(checkpoint.finished_share),
        number(checkpoint.distinct_2, 2),
    )


def _caption(results: Results) -> str:
    return (
        f"Win rate against {results.base or 'the base'} on {results.prompts} held-out prompts, "
        f"{interval_name(results)}. * decisive: not 50 %, all comparisons of the judge together."
    )
