"""Which of two votes was cast first, where their times can tell.

Files write times as they like, and most of what they write does not sort as text: `9:05` and `10:05`, two zones,
`2/1/2024` and `10/1/2024`. What is understood: ISO 8601, and seconds, milliseconds, microseconds or nanoseconds since
1970. What is left out: the times of which one file cannot know what another meant by them (2/1 is in January or in
February); there the order of the rows decides.
"""

import math
import re
from datetime import datetime
from typing import Any

UNITS = (1e11, 1e14, 1e17)
"""Seconds since 1970 are less than the first, milliseconds less than the second, microseconds less than the third: of
any time from the spring of 1973 to the year 5000."""


def earlier(one: str, other: str) -> bool:
    """Whether the first time is before the second. False: it is not, or nobody can say, because one is missing, or they
    are of two kinds, or of none that is understood."""
    for kind in (_number, _iso):
        first, second = kind(one), kind(other)
        if first is not None and second is not None:
            return first[0] == second[0] and first[1] < second[1]
    return False


def _number(text: str) -> tuple[int, Any] | None:
    """The unit and the number."""
    try:
        found = float(text)
    except ValueError:
        return None
    return (sum(found >= limit for limit in UNITS), found) if 0 <= found < math.inf else None


def _iso(text: str) -> tuple[tuple[bool, bool], Any] | None:
    """Whether there is a zone, and a time of day; and the time."""
    # An hour of one digit, and the zone as BigQuery writes it, are no ISO 8601 and leave no doubt.
    text = re.sub(r"^(\d{4}-\d\d-\d\d[T ])(?=\d:)", r"\g<1>0", text.strip())
    text = re.sub(r" UTC$", "Z", text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found.tzinfo is not None, ":" in text), found
