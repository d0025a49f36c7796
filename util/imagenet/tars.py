"""Tar archives read forward, once, and believed in nothing.

Python's tarfile reads whatever is a tar, repairs and guesses, and takes longer for a header than a disk for
the image behind it. ImageNet's archives need the plainest kind: regular files with short names. This reads
that kind and refuses all else with the byte where it stands.
"""

import gzip
import hashlib
import queue
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from common.cli import UserError

BLOCK = 512
CHUNK = 1 << 18
"""Bytes read at once: what is hashed and written is still in the cache (of 1 << 20 it was not)."""
MAGICS = (b"ustar\x0000", b"ustar  \x00", bytes(8))  # POSIX, GNU, before both


class Hashed:
    """A file whose bytes are hashed by a second thread as they are read: MD5 gives the GIL away."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=8)
        self._thread = threading.Thread(target=self._update, daemon=True)
        self._thread.start()

    def _update(self) -> None:
        while chunk := self._chunks.get():
            self._md5.update(chunk)

    def read(self, count: int) -> bytes:
        if chunk := self._file.read(count):
            self._chunks.put(chunk)
        return chunk

    def hexdigest(self) -> str:
        """Reads what was not read yet; gives the MD5 of the whole file."""
        while self.read(CHUNK):
            pass
        self._chunks.put(b"")
        self._thread.join()
        return self._md5.hexdigest()


class Archive:
    """The bytes of a tar in order, perhaps compressed by gzip, from a file or from standard input.

    Attributes:
        size: bytes of the tar; None where only reading to the end will tell.
        position: the place of the next byte.
    """

    def __init__(self, path: Path | None, *, md5: bool = False, chunk: int = CHUNK) -> None:
        """Opens `path`, or standard input for None.

        Args:
            md5: whether to hash all that is read; then nothing is jumped over.
            chunk: bytes to read at once; `BLOCK` where only headers matter.

        Raises:
            UserError: no such file, or it cannot be read.
        """
        self.path, self.name = path, "standard input" if path is None else str(path)
        if path is None and (sys.stdin is None or sys.stdin.isatty()):
            raise UserError("nothing comes from standard input; pipe an archive into it, or name one")
        if path and path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; name an archive, or pipe one into `unzip_imagenet -`")
        try:
            file: Any = sys.stdin.buffer if path is None else path.open("rb", buffering=4096)
            compressed = file.peek(2)[:2] == b"\x1f\x8b"
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror}; name another archive") from None
        self.size = None if path is None or compressed else path.stat().st_size
        self.position = 0
        self._bytes_read = file.tell if path and compressed else lambda: self.position
        self._hashed = Hashed(file) if md5 else None
        source: Any = self._hashed or file
        self._file = gzip.GzipFile(fileobj=source) if compressed else source
        self.close = file.close
        self._seekable = self.size is not None and not md5
        self._chunk = chunk
        self._buffer, self._next = b"", 0  # and the place in it

    def bytes_read(self) -> int:
        """Bytes of the file, compressed or not, that have been read."""
        return self._bytes_read()

    def md5(self) -> str | None:
        """Reads to the end of the file and gives its checksum; None where it was not asked for."""
        return self._hashed.hexdigest() if self._hashed else None

    def error(self, where: int, what: str) -> UserError:
        """The error that names the archive and the byte."""
        return UserError(f"{self.name}, byte {where:,}: {what}")

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(max(count, self._chunk))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            damage = f"the compressed data is damaged or cut short ({error})"
            raise self.error(self.position, damage) from None
        except OSError as error:
            raise self.error(self.position, f"cannot be read ({error.strerror})") from None

    def peek(self, count: int) -> bytes:
        """The next bytes, which stay; fewer at the end of the file."""
        while (missing := count - (len(self._buffer) - self._next)) > 0:
            chunk = self._read(missing)
            self._buffer, self._next = self._buffer[self._next :] + chunk, 0
            if not chunk:
                break
        return self._buffer[self._next : self._next + count]

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            UserError: the file ends before.
        """
        data = self._buffer[self._next : self._next + count]
        self._next += count
        if len(data) < count:  # the rest of it begins the next chunk, which is not copied
            self._next = count - len(data)
            self._buffer = self._read(self._next)
            data += self._buffer[: self._next]
        if len(data) < count:
            raise self.error(self.position + len(data), "cut short here; fetch the archive again")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        """Leaves out the next bytes: jumps where the file can and nothing hashes it.

        Raises:
            UserError: the file ends before, if it has to be read to get there.
        """
        if count <= len(self._buffer) - self._next:
            self._next += count
            self.position += count
        elif self._seekable:
            self.seek(self.position + count)
        else:
            while count:
                count -= len(self.take(min(count, self._chunk)))

    def seek(self, position: int) -> None:
        """Goes to another place of a file."""
        self._file.seek(position)
        self._buffer, self._next, self.position = b"", 0, position


class Member(NamedTuple):
    """A file, or a folder, in an archive."""

    name: str
    start: int
    """Where its header begins."""
    offset: int
    """Where its bytes begin."""
    size: int
    folder: bool

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


def members(archive: Archive, end: int | None, *, closed: bool = True) -> Iterator[Member]:
    """The members from here on, in order. What the caller does not read of one is skipped.

    An inner archive is walked in place: its bytes end where its member ends.

    Args:
        end: where the archive ends, if that is known.
        closed: whether the end block must be there; a part of an archive has none.

    Raises:
        UserError: anything but regular files, folders and the end block; a member that reaches beyond `end`;
            no end block, or something behind it.
    """
    while closed or archive.position != end:
        start = archive.position
        header = archive.peek(BLOCK) if end is None or start + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise archive.error(start, "ends without an end block: cut short; fetch the archive again")
        archive.skip(BLOCK)
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
    if len(archive.peek(BLOCK)) < BLOCK or (end is not None and start + BLOCK > end):
        raise archive.error(start, "the second end block is missing: cut short; fetch the archive again")
    while rest := archive.peek(BLOCK if end is None else min(BLOCK, end - archive.position)):
        if rest.count(0) != len(rest):
            raise archive.error(archive.position, "something stands behind the end block; this is refused")
        archive.skip(len(rest))


def parse(archive: Archive, start: int, header: bytes) -> Member:
    """The member that the header at `start` announces.

    Raises:
        UserError: no header of a regular file or folder.
    """
    checksum = _octal(header[148:156])
    # it counts its own eight bytes as spaces; most others are zeros, which need not be added
    if checksum is None or checksum != sum(header.translate(None, b"\0")) - sum(header[148:156]) + 8 * 32:
        raise archive.error(start, "no tar header, or a damaged one; fetch the archive again")
    name = ascii(header[:100].split(b"\0", 1)[0].decode("latin-1"))[1:-1]
    kind = header[156:157]
    if kind not in (b"0", b"\0", b"5"):
        what = f"no regular file but a link, a device, sparse or with a long name (type {kind!r})"
        raise archive.error(start, f"{name} is {what}; ImageNet's archives have none, this is refused")
    size, magic = _octal(header[124:136]), header[257:265]
    if size is None or magic not in MAGICS or (magic == MAGICS[0] and header[345] != 0):
        raise archive.error(start, f"{name} has a header that ImageNet's archives do not have; refused")
    return Member(name, start, start + BLOCK, size, kind == b"5")


def _octal(field: bytes) -> int | None:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
