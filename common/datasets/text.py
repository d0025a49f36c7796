"""One reader of text, for training and for use: which characters bytes mean, and what is no text at all.

A mark at the beginning (BOM) decides; else UTF-16 shows by a NUL in every second byte; else each line decides
for itself: it is UTF-8, or else Latin-1 in Windows' variant. So a line reads the same in whatever file or
stream it stands, and a stream is read as it comes.
"""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain

from common.cli import UserError

MARKS = {  # in this order: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BINARY = {
    b"\x1f\x8b": "packed by gzip",
    b"PK\x03\x04": "a zip archive or an Office document",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!\x1a": "a RAR archive",
    b"%PDF-": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF89a": "a GIF image",
    b"\x7fELF": "a program",
    b"SQLite format 3": "an SQLite database",
}
CONTROL = bytes({*range(32), 127} - {*b"\t\n\v\f\r\x1b"})
"""Bytes that are hardly ever in a text."""
SAMPLE = 1 << 16
"""Bytes at the beginning by which it is decided: a stream has no more at first."""


def encoding_of(start: bytes) -> str:
    """The encoding that the beginning of a text shows; `utf-8` where lines decide for themselves."""
    if marked := next((name for mark, name in MARKS.items() if start.startswith(mark)), ""):
        return marked
    start = start[:SAMPLE]
    even, odd = (start[i::2].count(0) / max(1, len(start) // 2) for i in (0, 1))
    if len(start) >= 4 and min(even, odd) < 0.05 and max(even, odd) > 0.7:
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8"


def kind_of(start: bytes) -> str:
    """What a file is that is no text, by its beginning; "" for a text."""
    if known := next((kind for magic, kind in BINARY.items() if start.startswith(magic)), ""):
        return known
    if start[257:262] == b"ustar":
        return "a tar archive"
    sample = start[:SAMPLE]
    strange = len(sample) - len(sample.translate(None, CONTROL))
    try:
        codecs.utf_8_decode(sample, "strict", False)
        most = 0.3
    except UnicodeDecodeError:
        most = 0.05  # random bytes have a tenth
    is_text = encoding_of(start) != "utf-8" or strange <= 8 or strange <= most * len(sample)
    return "" if is_text else "binary"


def to_utf8(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The same text in UTF-8, block by block; only lines that show no encoding are as they were.

    Raises:
        UserError: it is no text; the line names what it is, and `name`.
    """
    blocks, start = iter(blocks), b""
    while len(start) < 4 and b"\n" not in start and (block := next(blocks, b"")):
        start += block
    if kind := kind_of(start):
        raise UserError(f"{name} is {kind}, no text; name a text file")
    encoding = encoding_of(start)
    if encoding == "utf-8":
        yield from chain([start.removeprefix(codecs.BOM_UTF8)], blocks)
    else:
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        yield from (decoder.decode(block).encode() for block in chain([start], blocks))
        yield decoder.decode(b"", final=True).encode()


def decode_line(line: bytes, whole: bool = True) -> str:
    """The characters of a line of what `to_utf8` gave; one that is not `whole` may end within a character."""
    try:
        return codecs.utf_8_decode(line, "strict", whole)[0]
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def decode(content: bytes, name: str) -> tuple[str, str]:
    """A whole text, and what must be said of its encoding."""
    encoding = encoding_of(content).upper()
    content = b"".join(to_utf8([content], name))
    note = "" if encoding == "UTF-8" else f"{name} was read as {encoding[:6]}."
    try:
        return content.decode(), note
    except UnicodeDecodeError:
        note = f"{name}: lines that are not UTF-8 were read as Latin-1."
        return "\n".join(map(decode_line, content.split(b"\n"))), note
