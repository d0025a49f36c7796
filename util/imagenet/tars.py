"""Tar archives read forward, once, and believed in nothing.

Python's tarfile repairs and guesses, and takes 2.6 times as long for a header. ImageNet's archives need
regular files; names and sizes in PAX and GNU headers are read. All else is refused by a UserError that names
the byte.
"""

import gzip
import hashlib
import io
import queue
import re
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import UserError
from common.files import cause_of

BLOCK = 512
CHUNK = 1 << 18
"""Bytes read at once: what is hashed and written is still in the cache (of 1 << 20 it was not)."""
GZIP = b"\x1f\x8b"
LONG = "names or sizes in headers of their own"
MAGICS = (b"ustar\x0000", b"ustar  \x00", bytes(8))  # POSIX, GNU, before both


class Parts(io.RawIOBase):
    """Files of gzip that are read as one."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._raws = [path.open("rb") for path in paths]
        self._files = [gzip.GzipFile(fileobj=raw) for raw in self._raws]
        self.current = self._raws[0].name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for raw, file in zip(self._raws, self._files, strict=True):
            self.current = raw.name
            if count := file.readinto(buffer):
                return count
        return 0

    def tell(self) -> int:
        return sum(raw.tell() for raw in self._raws)


class Hashed(io.RawIOBase):
    """A file whose bytes are hashed by a second thread as they are read: MD5 gives the GIL away."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=8)
        self._thread = threading.Thread(target=self._update, daemon=True)
        self._thread.start()

    def _update(self) -> None:
        for chunk in iter(self._chunks.get, b""):
            self._md5.update(chunk)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if count := self._file.readinto(buffer) or 0:
            self._chunks.put(bytes(buffer[:count]))
        return count

    def hexdigest(self) -> str:
        """Reads what was not read yet; gives the MD5 of the whole file."""
        while self.read(CHUNK):
            pass
        self._chunks.put(b"")
        self._thread.join()
        return self._md5.hexdigest()


class Archive:
    """The bytes of a tar in order, perhaps compressed by gzip.

    Args:
        path: None is standard input.
        md5: whether to hash all that is read; then nothing is jumped over.
        chunk: bytes to read at once; `BLOCK` where only headers matter.
        file: what is read in place of `path`: parts of which it is the first, or an archive inside another.
    """

    def __init__(
        self, path: Path | None, *, md5: bool = False, chunk: int = CHUNK, file: io.IOBase | None = None
    ) -> None:
        self.path, self.name = path, "standard input" if path is None else str(path)
        self.in_parts = file if isinstance(file, Parts) else None
        if path is None and (sys.stdin is None or sys.stdin.isatty()):
            raise UserError("nothing comes from standard input; pipe an archive into it, or name one")
        if path and path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; name an archive, or pipe one into `unzip_imagenet -`")
        try:
            raw: Any = file or io.FileIO(path or sys.stdin.fileno(), closefd=path is not None)
            self._hashed = Hashed(raw) if md5 else None
            self._file: Any = io.BufferedReader(self._hashed or raw, chunk)
            compressed = not self.in_parts and self._file.peek(2)[:2] == GZIP
        except OSError as error:
            raise UserError(f"{self.name}: {cause_of(error)}; name another archive") from None
        # bytes of the tar, None where only reading to the end will tell; the place of the next byte
        self.size = None if path is None or compressed or file else path.stat().st_size
        self.position = 0
        self._ahead = b""  # read already by `peek`
        self._noted: bytes | None = None  # what is read within `looking_ahead`
        self._bytes_read = raw.tell if path and self.size is None else lambda: self.position
        self._seekable = self.size is not None and not md5
        self.close = raw.close
        if compressed:
            self._file = gzip.GzipFile(fileobj=self._file)

    def bytes_read(self) -> int:
        """Bytes of the file, compressed or not, that have been read."""
        return self._bytes_read()

    def md5(self) -> str | None:
        """Reads to the end of the file and gives its checksum; None where it was not asked for."""
        return self._hashed.hexdigest() if self._hashed else None

    def error(self, where: int, what: str) -> UserError:
        """The error that names the archive and the byte."""
        name = self.in_parts.current if self.in_parts else self.name
        return UserError(f"{name}, byte {where:,}: {what}")

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the end of the file."""
        try:
            data = self._ahead[:count]
            data += self._file.read(count - len(data))
        except EOFError:
            raise self.error(self.position, "the compressed data is cut short; fetch it again") from None
        except (zlib.error, OSError) as error:
            raise self.error(self.position, f"cannot be read: {cause_of(error)}; fetch it again") from None
        if self._noted is not None:
            self._noted += data
        self._ahead = self._ahead[count:]
        self.position += len(data)
        return data

    def peek(self, count: int) -> bytes:
        """The next bytes, which stay; fewer at the end of the file."""
        data = self.read(count)
        self._ahead = data + self._ahead
        self.position -= len(data)
        return data

    @contextmanager
    def looking_ahead(self) -> Iterator[None]:
        """What is read within is read again behind it, from standard input too."""
        start, self._noted = self.position, b""
        yield
        self._ahead, self.position, self._noted = self._noted + self._ahead, start, None

    def take(self, count: int) -> bytes:
        """The next bytes; a UserError where the file ends before."""
        data = self.read(count)
        if len(data) < count:
            raise self.error(self.position, "cut short here; fetch the archive again")
        return data

    def skip(self, count: int) -> None:
        """Leaves out the next bytes: jumps where the file can and nothing hashes it."""
        if self._seekable:
            self.seek(self.position + count)
            return
        while count:
            count -= len(self.take(min(count, CHUNK)))

    def seek(self, position: int) -> None:
        """Goes to another place of a file."""
        self._file.seek(position)
        self._ahead, self.position = b"", position


class Member(NamedTuple):
    """A file in an archive: where its header and its bytes start, and how many these are."""

    name: str
    start: int
    offset: int
    size: int
    long: bool = False  # whether headers in front say its name or size

    @property
    def end(self) -> int:
        """Where the next header starts."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


def members(archive: Archive, end: int | None, *, closed: bool = True) -> Iterator[Member]:
    """The members from here on, in order. What the caller does not read of one is skipped.

    An inner archive is walked in place: its bytes end where its member ends.

    Args:
        end: where the archive ends, if that is known; no member may reach beyond it.
        closed: whether there must be an end block, and nothing behind it; a part of an archive has none.
    """
    more: dict[str, Any] = {}  # what headers in front say of the next member
    header = b"\0"
    while closed or archive.position != end:
        start, before = archive.position, header
        header = archive.read(BLOCK) if end is None or start + BLOCK <= end else b""
        if archive.in_parts and not any(header) and (header or not any(before)):  # a part ends, or all do
            if header:
                continue
            return
        if len(header) < BLOCK:
            raise archive.error(start, "ends without an end block: cut short; fetch the archive again")
        if header.count(0) == BLOCK and closed:
            _check_end(archive, end)
            return
        member, kind = parse(archive, start, header), header[156:157]
        if kind in b"xgL5":  # folders mean nothing: names have them too
            if kind != b"5":
                more |= _extended(archive, member, kind)
            archive.skip(member.end - archive.position)
            continue
        if more:
            member, more = member._replace(**more, long=True), {}
        member_end = member.end
        if end is not None and member_end > end:
            why = "cut short" if end == archive.size else "damaged"
            beyond = f"{member.name} of {member.size:,} bytes reaches beyond the end at {end:,}"
            raise archive.error(start, f"{beyond}: {why}; fetch the archive again")
        yield member
        archive.skip(member_end - archive.position)


def _extended(archive: Archive, member: Member, kind: bytes) -> dict[str, Any]:
    """The name and size that a header of PAX or GNU tar says for the next member."""
    rest, fields = archive.take(min(member.size, 1 << 20)), {}
    if kind == b"L":
        return {"name": _printable(rest)}
    while rest.strip(b"\0"):  # such as `30 path=n01440764_10.JPEG\n`; the number counts all of it
        match = re.match(rb"([1-9][0-9]{0,6}) ([^=]+)=", rest)
        record = rest[: int(match[1])] if match else b""
        if not match or not record.endswith(b"\n") or len(record) <= match.end():
            raise archive.error(member.start, "a damaged PAX header; fetch the archive again")
        fields[match[2]], rest = record[match.end() : -1], rest[len(record) :]
    more = {"name": _printable(fields[b"path"])} if b"path" in fields else {}
    size = fields.get(b"size")
    is_odd = size is not None and not re.fullmatch(rb"[0-9]{1,15}", size)
    if is_odd or any(key.startswith(b"GNU.sparse") for key in fields) or (kind == b"g" and (more or size)):
        raise archive.error(member.start, "a PAX header that no archive of images needs; this is refused")
    return more | ({"size": int(size)} if size else {})


def _printable(name: bytes) -> str:
    return ascii(name.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"))[1:-1]


def _check_end(archive: Archive, end: int | None) -> None:
    """Behind the first block of zeros there is another, and then nothing but zeros."""
    start = archive.position
    rest = archive.read(BLOCK) if end is None or start + BLOCK <= end else b""
    if len(rest) < BLOCK:
        raise archive.error(start, "the second end block is missing: cut short; fetch the archive again")
    while rest:
        if rest.count(0) != len(rest):
            start = archive.position - len(rest)
            raise archive.error(start, "something stands behind the end block; this is refused")
        rest = archive.read(CHUNK if end is None else min(CHUNK, end - archive.position))


def parse(archive: Archive, start: int, header: bytes) -> Member:
    """The member that the header at `start` announces: a file, a folder, or what another header adds."""
    checksum = _octal(header[148:156])
    # it counts its own eight bytes as spaces; most others are zeros, which need not be added
    if checksum is None or checksum != sum(header.translate(None, b"\0")) - sum(header[148:156]) + 8 * 32:
        raise archive.error(start, "no tar header, or a damaged one; fetch the archive again")
    name = ascii(header[:100].split(b"\0", 1)[0].decode("utf-8", "backslashreplace"))[1:-1]
    kind, size, magic = header[156:157], _octal(header[124:136]), header[257:265]
    if kind not in b"0\0005xgL" or (kind == b"5" and re.search(r"\.(tar|JPEG)/?$", name)):
        what = f"no regular file but a link, a device, a folder or sparse (type {kind!r})"
        raise archive.error(start, f"{name} is {what}; ImageNet's archives have none, this is refused")
    if magic == MAGICS[0] and header[345] != 0:
        name = f"{_printable(header[345:500])}/{name}"
    if size is None or magic not in MAGICS:
        raise archive.error(start, f"{name} has a header that ImageNet's archives do not have; refused")
    return Member(name, start, start + BLOCK, size)


def _octal(field: bytes) -> int | None:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
