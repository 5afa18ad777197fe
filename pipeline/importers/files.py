"""Rows out of JSONL, JSON, CSV, TSV and Parquet files, `.gz` or not, one at a time, each with its place; and back.

A row that cannot be read is yielded as what it is, so that whoever imports can count it and go on with the next.
Texts come out as they went in, but an empty cell of a CSV or TSV file is None: it cannot tell an empty text from none.
What is left out: what the fields of a row mean (the formats beside this file).
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline import store
from pipeline.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""What files may be called; with `.gz` after it all but Parquet."""

CHUNK = 1 << 20
"""Characters of a JSON list that are read at once."""

BLANK = " \t\r\n"
"""What JSON lets stand between values."""

csv.field_size_limit(1 << 30)  # an answer may be longer than the 128 kB that are the default


class Raw(NamedTuple):
    """One row as the file has it."""

    place: int
    """The line where it begins, or the number of the row in Parquet; from 1."""
    value: dict[str, Any] | None
    """None: it cannot be read."""
    problem: str = ""
    source: Any = None
    """What is there, where `value` is None."""


def rows(path: Path) -> Iterator[Raw]:
    """The rows of a file, in order.

    Raises:
        DataError: the file is missing or of no known kind, or cannot be read to its end.
    """
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        with _opened(path) as file:
            if kind in (".csv", ".tsv"):
                yield from _table(path, file, "\t" if kind == ".tsv" else ",")
            elif kind == ".json":
                yield from _list(path, file)
            else:
                yield from _lines(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error.reason} at byte {error.start}: save it as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); make the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check what it is and who may") from error


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read.

    Raises:
        DataError: it says nothing.
    """
    name = path.with_suffix("") if path.suffix == ".gz" else path
    if name.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: the name needs to end in one of {', '.join(SUFFIXES)} (and .gz)")
    return name.suffix.lower()


def write(path: Path, found: Iterable[Mapping[str, Any]]) -> int:
    """Replace the file by one with these rows, and say how many they are.

    Raises:
        DataError: a table was asked for and a row holds lists or mappings.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        return _write_parquet(path, found)
    counted = itertools.count()
    found = (row for row in found if next(counted) >= 0)
    if kind in (".csv", ".tsv"):
        chunks = _as_table(path, found, "\t" if kind == ".tsv" else ",")
    elif kind == ".json":
        chunks = _as_list(found)
    else:
        chunks = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    encoded = (chunk.encode() for chunk in chunks)
    store.write_bytes(path, _packed(encoded) if path.suffix == ".gz" else encoded)
    return next(counted)


# ---- reading


def _opened(path: Path) -> IO[str]:
    opened: Callable[..., IO[Any]] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        start = file.read(2)
    # Spreadsheets save "Unicode text" as UTF-16, and CSV with a byte order mark.
    encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    # A byte that is not UTF-8 becomes what cannot be written again, so that its row alone is bad.
    return opened(path, "rt", encoding=encoding, errors="surrogateescape", newline="")


def _lines(file: IO[str]) -> Iterator[Raw]:
    # With newline="" a text file also ends lines at a lone CR, which inside a JSON text cannot stand: JSON escapes it.
    for place, line in enumerate(file, start=1):
        if line.strip():
            yield _object(place, line)


def _object(place: int, line: str) -> Raw:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Raw(place, None, f"not JSON ({error})", line[:1000])
    if not isinstance(value, dict):
        return Raw(place, None, "needs to be an object", value)
    return Raw(place, value)


def _list(path: Path, file: IO[str]) -> Iterator[Raw]:
    """The objects of a JSON list, each decoded when it is reached; a file of JSON lines called `.json` as well."""
    decoder, text, line, ended = json.JSONDecoder(), "", 1, False
    listed: bool | None = None  # nothing has been seen yet
    while True:
        stripped = text.lstrip(BLANK + ",")
        line += text[: len(text) - len(stripped)].count("\n")
        text = stripped
        if text and listed is None:
            listed = text[0] == "["
            if listed:
                text = text[1:]
                continue
        if listed and text.startswith("]"):
            _check_end(path, file, text[1:], line)
            return
        if text and (text[0] == "]" or (text[0] != "{" and ended)):
            raise _no_list(path, line, text)
        try:
            value, end = decoder.raw_decode(text) if text else (None, 0)
        except (ValueError, RecursionError) as error:
            if ended:
                # Where the next object begins nobody knows: whatever follows would be lost in silence.
                raise DataError(f"{path}:{line}: not JSON ({error}); mend it there") from error
            end = 0
        if end:
            yield Raw(line, value) if isinstance(value, dict) else Raw(line, None, "needs to be an object", value)
            line += text[:end].count("\n")
            text = text[end:]
        elif not ended:
            more = file.read(max(CHUNK, len(text)))  # twice as much each time, so that one huge object is not quadratic
            ended = not more
            text += more
        elif listed:
            raise DataError(f"{path}:{line}: the list has no ] at its end, so that rows may be missing; make it again")
        else:
            return


def _check_end(path: Path, file: IO[str], text: str, line: int) -> None:
    """What follows a list would be lost in silence.

    Raises:
        DataError: something does.
    """
    while not (stripped := text.lstrip(BLANK)):
        line += text.count("\n")
        text = file.read(CHUNK)
        if not text:
            return
    raise _no_list(path, line + text[: len(text) - len(stripped)].count("\n"), stripped)


def _no_list(path: Path, line: int, text: str) -> DataError:
    return DataError(
        f"{path}:{line}: {text[:20]!r} found; needs to be one list of objects; call a file of JSON lines .jsonl"
    )


def _table(path: Path, file: IO[str], separator: str) -> Iterator[Raw]:
    reader, place = csv.reader(file, delimiter=separator, strict=True), 1
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: two columns have one name; give each its own")
        place = reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) == len(header):
                    yield Raw(place, {name: cell or None for name, cell in zip(header, cells, strict=True)})
                else:
                    yield Raw(place, None, f"{len(cells)} cells, and the header has {len(header)}", cells)
            place = reader.line_num + 1
    except csv.Error as error:
        # A quote that is not closed holds the rest of the file.
        raise DataError(f"{path}:{place}: not CSV ({error}); mend the quotes in this row") from error


def _parquet(path: Path) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield Raw(number, value)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error}); make it again") from error


# ---- writing


def _as_table(path: Path, found: Iterable[Mapping[str, Any]], separator: str) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    header: list[str] | None = None
    for row in found:
        nested = [name for name, value in row.items() if isinstance(value, list | dict)]
        if nested:
            raise DataError(f"{path}: {nested[0]} holds a list, and a table cannot; write .jsonl, .json or .parquet")
        if header is None:
            header = list(row)
            writer.writerow(header)
        writer.writerow(["" if row[name] is None else row[name] for name in header])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _as_list(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    before = "[\n"
    for row in found:
        yield before + json.dumps(row, ensure_ascii=False)
        before = ",\n"
    yield "\n]\n" if before == ",\n" else "[]\n"


def _write_parquet(path: Path, found: Iterable[Mapping[str, Any]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    table = pa.Table.from_pylist([dict(row) for row in found])
    pq.write_table(table, buffer)
    store.write_bytes(path, [buffer.getvalue().to_pybytes()])
    return int(table.num_rows)


def _packed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # No name and no time in the header, so that equal rows are equal bytes.
    packer = zlib.compressobj(wbits=31)
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()
