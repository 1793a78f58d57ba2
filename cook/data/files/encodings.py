"""Decodes data files: UTF-8, UTF-16 or UTF-32 by their byte order mark, or a given encoding."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 1 << 20
"""The number of bytes used to determine a likely encoding."""


class Unreadable(ValueError):
    """A file does not have the expected content; `hint` suggests a remedy."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file, without a byte order mark.

    Args:
        encoding: a Python codec, such as `cp1252`; None uses the byte order mark, else UTF-8. Other
            encodings are never guessed: most bytes are valid in several, as different letters.

    Raises:
        Unreadable: the bytes are not text in this encoding; the hint names a likely one.
        OSError: the file cannot be opened.
    """
    data = path.read_bytes()
    marked = _marked(data)
    used = encoding or marked or "utf-8"
    try:
        text = data.decode(used)
    except LookupError as problem:
        hint = "write utf-8, utf-16, cp1252, latin-1 or another codec of Python, or leave the key out"
        raise Unreadable(f"there is no encoding {encoding!r}", hint) from problem
    except UnicodeError as problem:
        start = getattr(problem, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        what = f"{used.removesuffix('-sig').upper()} (line {line}: {problem})"
        message = f"the file is not UTF-8, and not {what}" if marked else f"the file is not {what}"
        raise Unreadable(message, f"name its encoding, perhaps data.encoding: {_likely(data)}") from problem
    if encoding is None and marked is None and text.count("\0", 0, _HEAD) * 4 > min(len(text), _HEAD):
        message = "the file is not UTF-8: every second byte is zero"
        raise Unreadable(message, f"name its encoding, perhaps data.encoding: {_likely(data)}")
    return text.removeprefix("\ufeff")


def read_lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """The lines of a file without line ends, read lazily; as `read_text`."""
    with path.open("rb") as file:
        used = encoding or _marked(file.read(4)) or "utf-8"
    try:
        with path.open(encoding=used) as lines:
            for line in lines:
                yield line.rstrip("\n").removeprefix("\ufeff")
    except (UnicodeError, LookupError):
        read_text(path, encoding)  # raises the error
        raise


def _marked(data: bytes) -> str | None:
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def _likely(data: bytes) -> str:
    """An encoding to suggest for bytes that are not UTF-8."""
    head = data[:_HEAD]
    if head.count(0) * 4 > len(head):
        return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
    chinese = codecs.getincrementaldecoder("gb18030")("ignore").decode(head)
    ideographs = sum("\u4e00" <= letter <= "\u9fff" for letter in chinese)
    if ideographs * 2 > sum(letter > "\x7f" for letter in chinese) and ideographs * 10 > len(chinese):
        return "gb18030"
    try:
        head.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"
