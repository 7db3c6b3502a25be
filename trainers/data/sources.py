"""Where a table lies: a file, a folder, a glob, or a URI that pyarrow.fs reads. Finds its files and their formats."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
"""Ending of a file's name -> its format."""
PACKED = {".gz", ".bz2", ".zst"}
"""Endings of compressed files. JSON lines, CSV and TSV may be compressed."""


class TableError(ValueError):
    """A table, or what was prepared from it, cannot be used. The message is one line."""


class TableFile(NamedTuple):
    """One file of a table."""

    label: str
    """Its path as the user may read it."""
    path: str
    """Its path in its file system."""
    format: str
    size: int
    mtime_ns: int


class Source:
    """The files of a table, in order of their names. Raises TableError if there are none or one cannot be a table."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.system, self.files = _find(self.path)

    def stamps(self) -> list[tuple[str, int, int]]:
        """(path, bytes, modification time in ns) of each file now. Raises TableError if a file is gone."""
        from pyarrow import fs

        infos = self.system.get_file_info([file.path for file in self.files])
        for file, info in zip(self.files, infos, strict=True):
            if info.type != fs.FileType.File:
                raise TableError(f"{file.label}: this file of the table is gone; put it back or change the path")
        return [(info.path, int(info.size), info.mtime_ns or 0) for info in infos]

    def changed(self) -> str | None:
        """The label of a file that has changed since it was found; None if there is none."""
        for file, stamp in zip(self.files, self.stamps(), strict=True):
            if stamp[1:] != (file.size, file.mtime_ns):
                return file.label
        return None


def _find(path: str) -> tuple[Any, list[TableFile]]:
    """The file system of a path, folder, glob or URI, and the table's files in it."""
    from pyarrow import fs

    if "://" in path:
        bare, mark, query = path.partition("?")
        query, base = mark + query, bare
    else:
        query, base = "", Path(path).expanduser().absolute().as_posix()
        bare = base if not Path(path).is_absolute() else path
    magic = re.search(r"[*?\[]", base)
    if magic and not query and "://" not in path and Path(base).exists():
        magic = None  # a file whose name holds such a character
    fixed = base[: base.rindex("/", 0, magic.start()) + 1] if magic else base
    try:
        if "://" in path:
            system, root = fs.FileSystem.from_uri(fixed.rstrip("/") + query)
        else:
            system, root = fs.LocalFileSystem(), fixed.rstrip("/") or "/"
        info = system.get_file_info(root)
        if info.type == fs.FileType.File and not magic:
            return system, [_file(info, path if "://" not in path else bare)]
        selector = fs.FileSelector(
            root, allow_not_found=True, recursive=not magic or "/" in base[len(fixed) :] or "**" in base[len(fixed) :]
        )
        infos = [i for i in system.get_file_info(selector) if i.type == fs.FileType.File]
    except (OSError, ValueError) as problem:  # ArrowInvalid is a ValueError
        raise TableError(
            f"{bare}: this table cannot be reached: {first_line(problem)}; check path and rights"
        ) from None
    label = "" if magic or "://" in path else path.rstrip("/") + "/"
    of_root = [(i.path[len(root.rstrip("/")) + 1 :], i) for i in infos]
    if magic:
        pattern = re.compile(_regex(base[len(fixed) :]))
        chosen = [(n, i) for n, i in of_root if pattern.fullmatch(n)]
        label = fixed
    else:
        hidden = re.compile(r"(^|/)[._]")
        chosen = [(n, i) for n, i in of_root if not hidden.search(n) and _format(n)]
        label = label or bare.rstrip("/") + "/"
    if not chosen:
        there = ", ".join(sorted(n for n, _ in of_root)[:5])
        allowed = f"a file that ends in {', '.join(FORMATS)}, a folder with such files, or a glob"
        raise TableError(f"{bare}: no table is there{f' ({there})' if there else ''}; give {allowed}")
    return system, [_file(i, label + n) for n, i in sorted(chosen, key=lambda pair: pair[0])]


def _regex(glob: str) -> str:
    """A glob as a regular expression. `**` crosses folders, `*` and `?` do not."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", glob)
    sets = (p.replace("[!", "[^", 1) if len(p) > 2 and p[0] == "[" and p[-1] == "]" else re.escape(p) for p in pieces)
    return "".join(parts.get(piece, text) for piece, text in zip(pieces, sets, strict=True))


def _format(name: str) -> str | None:
    """The format of a file by the ending of its name; None if it is none of ours."""
    path = PurePosixPath(name.lower())
    packed = path.suffix in PACKED
    found = FORMATS.get(path.with_suffix("").suffix if packed else path.suffix)
    return None if packed and found in ("parquet", "arrow") else found


def _file(info: Any, label: str) -> TableFile:
    found = _format(info.path)
    if found is None:
        more = " (.json: one object a line is .jsonl)" if info.path.lower().endswith(".json") else ""
        raise TableError(
            f"{label}: its ending names no format{more}; allowed are {', '.join(FORMATS)}; rename or convert it"
        )
    return TableFile(label, info.path, found, int(info.size), info.mtime_ns or 0)


def first_line(problem: BaseException) -> str:
    return (str(problem) or type(problem).__name__).splitlines()[0][:300]
