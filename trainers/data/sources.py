"""Finds the files of a table and their formats. A table is a file, a folder, a glob, or a URI that pyarrow.fs reads."""

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

GIVE_UP_SECONDS = 30
"""Time limit for retries on Google's storage. The client's own limit is 15 minutes. `?retry_limit_seconds=` in a URI wins."""


class TableError(ValueError):
    """A table or its prepared folder cannot be used. The message is one line."""


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
        self.label = shown(self.path)
        """The path for messages."""
        self.left_out: list[str] = []
        """Files of the folder that are no tables, by their endings."""
        self.files: list[TableFile] = []
        try:
            self._find()
        except (OSError, ValueError) as problem:  # Arrow's errors are ValueErrors or OSErrors
            if isinstance(problem, TableError):
                raise
            raise TableError(f"{self.label}: cannot be reached: {first_line(problem)}; check path and rights") from None

    def _find(self) -> None:
        from pyarrow import fs

        base = self.path.partition("?")[0] if "://" in self.path else _absolute(self.path)
        query = self.path[len(base) :] if "://" in self.path else ""
        magic = re.search(r"[*?\[]", base)
        if magic and "://" not in self.path and Path(base).exists():
            magic = None  # a file whose name holds such a character
        fixed, glob = (base, "") if magic is None else _cut(base, base.rindex("/", 0, magic.start()) + 1)
        self.system, root = system_of(fixed.rstrip("/") + query if fixed.strip("/") else fixed)
        info = self.system.get_file_info(root)
        if info.type == fs.FileType.File and not glob:
            self.files = [_file(info, self.label)]
            return
        deep = not glob or "/" in glob or "**" in glob
        infos = self.system.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=deep))
        found = {i.path[len(root.rstrip("/")) + 1 :]: i for i in infos if i.type == fs.FileType.File}
        if glob:
            names = [name for name in found if re.fullmatch(_regex(glob), name)]
        else:
            names = [name for name in found if not re.search(r"(^|/)[._]", name) and _format(name)]
            self.left_out = sorted(found.keys() - set(names))
        if not names:
            there = f", only {', '.join(sorted(found)[:5])}" if found else ""
            raise TableError(
                f"{self.label}: no table is there{there}; give a file that ends in {', '.join(FORMATS)}, a folder with such "
                "files, or a glob"
            )
        above = shown(fixed) if glob else self.label.rstrip("/") + "/"
        self.files = [_file(found[name], above + name) for name in sorted(names)]

    def stamps(self) -> list[tuple[str, int, int]]:
        """(path, bytes, modification time in ns) of each file now. Raises TableError if a file is gone."""
        infos = self.system.get_file_info([file.path for file in self.files])
        for file, info in zip(self.files, infos, strict=True):
            if not info.is_file:
                raise TableError(f"{file.label}: this file of the table is gone; put it back or change the path")
        return [(info.path, int(info.size), info.mtime_ns or 0) for info in infos]

    def changed(self) -> str | None:
        """The label of a file that has changed since it was found; None if there is none."""
        for file, stamp in zip(self.files, self.stamps(), strict=True):
            if stamp[1:] != (file.size, file.mtime_ns):
                return file.label
        return None


def shown(place: str) -> str:
    """A path or URI for messages: a URI without its query and its user, which may hold keys."""
    return re.sub("//[^/@]*@", "//", place.partition("?")[0]) if "://" in place else place


def system_of(place: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path in it. Raises ValueError or OSError for a URI that is none."""
    from pyarrow import fs

    if "://" not in place:
        return fs.LocalFileSystem(), _absolute(place)
    if place.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in place:
        place += f"{'&' if '?' in place else '?'}retry_limit_seconds={GIVE_UP_SECONDS}"
    system, path = fs.FileSystem.from_uri(place)
    return system, path.rstrip("/")


def _absolute(path: str) -> str:
    return Path(path).expanduser().absolute().as_posix()


def _cut(text: str, at: int) -> tuple[str, str]:
    return text[:at], text[at:]


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
