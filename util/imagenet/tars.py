"""Tar archives read forward, once, and believed in nothing.

Python's tarfile repairs and guesses, and takes 2.6 times as long for a header. ImageNet's archives need the
plainest kind: regular files with short names. All else is refused by a UserError that names the byte.
"""

import gzip
import hashlib
import io
import queue
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import UserError

BLOCK = 512
CHUNK = 1 << 18
"""Bytes read at once: what is hashed and written is still in the cache (of 1 << 20 it was not)."""
MAGICS = (b"ustar\x0000", b"ustar  \x00", bytes(8))  # POSIX, GNU, before both


class Hashed(io.RawIOBase):
    """A file whose bytes are hashed by a second thread as they are read: MD5 gives the GIL away."""

    def __init__(self, file: io.FileIO) -> None:
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
    """

    def __init__(self, path: Path | None, *, md5: bool = False, chunk: int = CHUNK) -> None:
        self.path, self.name = path, "standard input" if path is None else str(path)
        if path is None and (sys.stdin is None or sys.stdin.isatty()):
            raise UserError("nothing comes from standard input; pipe an archive into it, or name one")
        if path and path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; name an archive, or pipe one into `unzip_imagenet -`")
        try:
            raw = io.FileIO(path or sys.stdin.fileno(), closefd=path is not None)
            self._hashed = Hashed(raw) if md5 else None
            self._file: Any = io.BufferedReader(self._hashed or raw, chunk)
            compressed = self._file.peek(2)[:2] == b"\x1f\x8b"
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror}; name another archive") from None
        # bytes of the tar, None where only reading to the end will tell; the place of the next byte
        self.size = None if path is None or compressed else path.stat().st_size
        self.position = 0
        self._ahead = b""  # read already by `peek`
        self._bytes_read = raw.tell if path and compressed else lambda: self.position
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
        return UserError(f"{self.name}, byte {where:,}: {what}")

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the end of the file."""
        try:
            data = self._ahead[:count]
            data += self._file.read(count - len(data))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            damage = f"the compressed data is damaged or cut short ({error})"
            raise self.error(self.position, damage) from None
        except OSError as error:
            raise self.error(self.position, f"cannot be read ({error.strerror})") from None
        self._ahead = self._ahead[count:]
        self.position += len(data)
        return data

    def peek(self, count: int) -> bytes:
        """The next bytes, which stay; fewer at the end of the file."""
        data = self.read(count)
        self._ahead = data + self._ahead
        self.position -= len(data)
        return data

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
    """A file, or a folder, in an archive: where its header and its bytes start, and how many these are."""

    name: str
    start: int
    offset: int
    size: int
    folder: bool

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
    while closed or archive.position != end:
        start = archive.position
        header = archive.read(BLOCK) if end is None or start + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise archive.error(start, "ends without an end block: cut short; fetch the archive again")
        if header.count(0) == BLOCK and closed:
            _check_end(archive, end)
            return
        member = parse(archive, start, header)
        member_end = member.end
        if end is not None and member_end > end:
            beyond = f"{member.name} of {member.size:,} bytes reaches beyond the end at {end:,}"
            raise archive.error(start, f"{beyond}; cut short or damaged, fetch the archive again")
        yield member
        archive.skip(member_end - archive.position)


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
    """The member that the header at `start` announces, a regular file or a folder."""
    checksum = _octal(header[148:156])
    # it counts its own eight bytes as spaces; most others are zeros, which need not be added
    if checksum is None or checksum != sum(header.translate(None, b"\0")) - sum(header[148:156]) + 8 * 32:
        raise archive.error(start, "no tar header, or a damaged one; fetch the archive again")
    name = ascii(header[:100].split(b"\0", 1)[0].decode("latin-1"))[1:-1]
    kind, size, magic = header[156:157], _octal(header[124:136]), header[257:265]
    if kind not in (b"0", b"\0", b"5"):
        what = f"no regular file but a link, a device, sparse or with a long name (type {kind!r})"
        raise archive.error(start, f"{name} is {what}; ImageNet's archives have none, this is refused")
    if size is None or magic not in MAGICS or (magic == MAGICS[0] and header[345] != 0):
        raise archive.error(start, f"{name} has a header that ImageNet's archives do not have; refused")
    return Member(name, start, start + BLOCK, size, kind == b"5")


def _octal(field: bytes) -> int | None:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
