"""What is in a folder, as one hash: another model under the same path is another model.

Weights are gigabytes and every process of a run asks, so a file's hash is remembered under its path, size and time of
change. What is left out: folders that prefloop made itself, whose manifest has their hashes (`pipeline.store`).
"""

from pathlib import Path

from pipeline import store
from pipeline.records import digest

LARGE = 1 << 24
"""Bytes from which on a file's hash is remembered."""


def content_of(folder: Path, remembered: Path) -> str:
    """Hash of the names and bytes of the files in a folder, hidden ones and those in folders within it left out.

    Args:
        remembered: the folder where hashes of large files are kept.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return digest({file.name: _sha256(file, remembered) for file in files})


def _sha256(file: Path, remembered: Path) -> str:
    told = file.stat()
    if told.st_size < LARGE:
        return store.sha256_file(file)
    # The time of change (ctime) cannot be set back, as that of a copied or unpacked file can.
    kept = remembered / digest([str(file.resolve()), told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino])
    if not kept.exists():
        store.make_dirs(remembered)
        store.write_text(kept, store.sha256_file(file))
    return kept.read_text(encoding="utf-8")
