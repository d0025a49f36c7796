"""Tar archives read forward, once, and believed in nothing.

Python's tarfile reads whatever is a tar, repairs and guesses, and takes longer for a header than a disk for
the picture behind it. ImageNet's archives need the plainest kind: regular files with short names. This reads
that kind and refuses all else with the byte where it stands.
"""

import gzip
import hashlib
import queue
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common.cli import UserError

BLOCK = 512
CHUNK = 1 << 18
"""Bytes read at once: what is hashed and written is still in the cache (of 1 << 20 it was not)."""
LARGEST = 1 << 28
"""Bytes: a larger member of a class cannot be a photo, and would fill the memory."""
MAGICS = (b"ustar\x0000", b"ustar  \x00", bytes(8))  # POSIX, GNU, before both
REFUSED_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a GNU long-name header",
    b"L": "a GNU long-name header",
    b"S": "a sparse file",
    b"g": "a PAX header",
    b"x": "a PAX header",
}


class Hashed:
    """A file whose bytes are hashed by a second thread as they are read: MD5 gives the GIL away."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=8)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while chunk := self._chunks.get():
            self._md5.update(chunk)

    def read(self, count: int) -> bytes:
        chunk = self._file.read(count)
        if chunk:
            self._chunks.put(chunk)
        return chunk

    def hexdigest(self) -> str:
        """Of the whole file: what was not read yet is read now."""
        while self.read(CHUNK):
            pass
        self._chunks.put(b"")
        self._thread.join()
        return self._md5.hexdigest()


class Stream:
    """Bytes in order, with the place where one is; jumps where the file can and nothing hashes it."""

    def __init__(self, name: str, file: Any, *, seekable: bool, chunk: int = CHUNK) -> None:
        self.name = name
        self.position = 0
        self._file = file
        self._seekable = seekable
        self._chunk = chunk
        self._buffer = b""
        self._next = 0  # place in the buffer

    def broken(self, where: int, what: str) -> UserError:
        return UserError(f"{self.name}, byte {where:,}: {what}")

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.broken(
                self.position, f"the compressed data is damaged or cut short ({error})"
            ) from None
        except OSError as error:
            raise self.broken(self.position, f"cannot be read ({error.strerror})") from None

    def _fill(self, count: int) -> None:
        """Has `count` bytes in the buffer, fewer only at the end of the file."""
        have = len(self._buffer) - self._next
        if not have:
            self._buffer, self._next = self._read(max(count, self._chunk)), 0
            have = len(self._buffer)
            if have >= count:
                return
        parts = [self._buffer[self._next :]]
        while have < count:
            part = self._read(max(count - have, self._chunk))
            if not part:
                break
            parts.append(part)
            have += len(part)
        self._buffer, self._next = b"".join(parts), 0

    def peek(self, count: int) -> bytes:
        """The next bytes, which stay; fewer at the end of the file."""
        if len(self._buffer) - self._next < count:
            self._fill(count)
        return self._buffer[self._next : self._next + count]

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            UserError: the file ends before.
        """
        have = self._buffer[self._next : self._next + count]
        self._next += count
        if len(have) < count:  # the rest of it begins the next chunk, which is not copied
            self._next = count - len(have)
            self._buffer = self._read(max(self._next, self._chunk))
            have += self._buffer[: self._next]
        if len(have) < count:
            raise self.broken(self.position + len(have), "cut short here; fetch the archive again")
        self.position += count
        return have

    def skip(self, count: int) -> None:
        """Leaves out the next bytes.

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
                part = min(count, self._chunk)
                self.take(part)
                count -= part

    def seek(self, position: int) -> None:
        self._file.seek(position)
        self._buffer, self._next, self.position = b"", 0, position


@dataclass
class Archive:
    """An open archive: a tar, or a compressed one, from a file or from standard input."""

    stream: Stream
    size: int | None
    """Bytes of the tar itself; None where only reading to the end will tell."""
    raw: Callable[[], int]
    """Bytes of the file that have been read, for the progress."""
    md5: Callable[[], str] | None
    """Reads to the end of the file and gives its checksum; None where it was not asked for."""
    close: Callable[[], None]


def open_archive(path: Path | None, *, md5: bool, chunk: int = CHUNK) -> Archive:
    """Opens `path`, or standard input for None.

    Args:
        md5: whether to hash all that is read; then nothing is jumped over.
        chunk: bytes to read at once; `BLOCK` where only headers matter.

    Raises:
        UserError: no such file, or it cannot be read.
    """
    name = "standard input" if path is None else str(path)
    if path is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UserError("nothing comes from standard input; pipe an archive into it, or name one")
    try:
        if path and path.exists() and not path.is_file():
            raise UserError(f"{name} is no file; name an archive, or pipe one into `unzip_imagenet -`")
        file: Any = sys.stdin.buffer if path is None else path.open("rb", buffering=4096)
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; name another archive") from None
    size = None if path is None or compressed else path.stat().st_size
    hashed = Hashed(file) if md5 else None
    source: Any = hashed or file
    if compressed:
        source = gzip.GzipFile(fileobj=source)
    stream = Stream(name, source, seekable=size is not None and not md5, chunk=chunk)
    raw = (lambda: stream.position) if size is not None or path is None else file.tell
    return Archive(stream, size, raw, hashed.hexdigest if hashed else None, file.close)


@dataclass(frozen=True)
class Member:
    """A file, or a folder, in an archive."""

    name: str
    start: int
    """Where its header begins."""
    offset: int
    """Where its bytes begin."""
    size: int
    folder: bool = False

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


def members(stream: Stream, end: int | None, *, closed: bool = True) -> Iterator[Member]:
    """The members from here on, in order. What the caller does not read of one is skipped.

    An inner archive is walked in place: its bytes end where its member ends.

    Args:
        end: where the archive ends, if that is known.
        closed: whether the end block must be there; a part of an archive has none.

    Raises:
        UserError: anything but regular files, folders and the end block; a member that reaches beyond `end`;
            no end block, or something behind it.
    """
    while closed or stream.position != end:
        where = stream.position
        header = stream.peek(BLOCK) if end is None or where + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise stream.broken(where, "ends without an end block: cut short; fetch the archive again")
        stream.skip(BLOCK)
        if header.count(0) == BLOCK and closed:
            _check_end(stream, end)
            return
        member = parse(stream, where, header)
        if end is not None and member.end > end:
            raise stream.broken(
                where,
                f"{member.name} of {member.size:,} bytes reaches beyond the end at {end:,}; "
                "cut short or damaged, fetch the archive again",
            )
        yield member
        stream.skip(member.end - stream.position)


def _check_end(stream: Stream, end: int | None) -> None:
    """Behind the first block of zeros there is another, and then nothing but zeros."""
    where = stream.position
    if len(stream.peek(BLOCK)) < BLOCK or (end is not None and where + BLOCK > end):
        raise stream.broken(where, "the second end block is missing: cut short; fetch the archive again")
    while end is None or stream.position < end:
        rest = stream.peek(BLOCK if end is None else min(BLOCK, end - stream.position))
        if not rest:
            return
        if rest.count(0) != len(rest):
            raise stream.broken(stream.position, "something stands behind the end block; this is refused")
        stream.skip(len(rest))


def parse(stream: Stream, where: int, header: bytes) -> Member:
    """The member that a header announces.

    Raises:
        UserError: no header of a regular file or folder.
    """
    checksum = _octal(header[148:156])
    # the checksum counts its own eight bytes as spaces
    if checksum is None or checksum != sum(header) - sum(header[148:156]) + 8 * 32:
        raise stream.broken(where, "no tar header, or a damaged one; fetch the archive again")
    name = ascii(header[:100].split(b"\0", 1)[0].decode("latin-1"))[1:-1]
    kind = header[156:157]
    if kind not in (b"0", b"\0", b"5"):
        what = REFUSED_KINDS.get(kind, f"a member of type {kind!r}")
        raise stream.broken(where, f"{name} is {what}; ImageNet's archives have none, this is refused")
    size = _octal(header[124:136])
    magic = header[257:265]
    if size is None or magic not in MAGICS or (magic == MAGICS[0] and header[345] != 0):
        raise stream.broken(
            where, f"{name} has a header that ImageNet's archives do not have; this is refused"
        )
    return Member(name, where, where + BLOCK, size, folder=kind == b"5")


def _octal(field: bytes) -> int | None:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
