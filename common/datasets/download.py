"""Downloads: with a limit on waiting, checked, from mirrors; and the cause of a failure in one line."""

import hashlib
import struct
import sys
import tarfile
import zipfile
import zlib
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

import pooch

from common.files import cause_of

TIMEOUT = 10  # seconds without an answer after which a server counts as out of reach
FAILURES = (
    *(OSError, EOFError, LookupError, RuntimeError, ValueError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error),
)
"""What is raised where nothing can be fetched, or where what came is not the archive that was expected."""


def fetch(url: str, file: IO[bytes], md5: str = "", sha256: str = "") -> None:
    """Writes what is at `url` into `file`, which is open for writing and reading, and goes back to its start.

    Raises:
        OSError: it cannot be had as a whole by https, or its sums do not begin with `md5` and `sha256`.
    """

    def check(response: Any, **_: Any) -> None:
        _check_https(response.url)  # it may lead elsewhere
        # some servers call the file's own gzip an encoding of the transfer, which requests would undo
        response.raw.headers.discard("Content-Encoding")

    _check_https(url)
    get = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=2**16,
        timeout=TIMEOUT,
        hooks={"response": check},
    )
    get(url, file, None)
    for name, expected in {"md5": md5, "sha256": sha256}.items():
        file.seek(0)
        has = hashlib.file_digest(file, partial(hashlib.new, name, usedforsecurity=False)).hexdigest()  # type: ignore[arg-type]
        if not has.startswith(expected):
            wrong = f"its {name} is {has} instead of {expected}"
            raise OSError(f"{url} has another content than expected, {wrong}")
    file.seek(0)


def _check_https(url: str) -> None:
    """Refuses, by an OSError, to ask in the clear, unless it is this machine."""
    server = urlsplit(url)
    if server.scheme != "https" and server.hostname not in ("127.0.0.1", "localhost"):
        raise OSError(f"{url} is not fetched: only https is asked")


def fetch_from_mirrors(mirrors: list[str], name: str, file: IO[bytes], md5: str = "") -> None:
    """`fetch`, from the first of `mirrors` that gives the file; those that do not go to the list's end.

    Raises:
        OSError: none gives it; the message has the cause of each.
    """
    causes = []
    for mirror in tuple(mirrors):
        try:
            file.truncate(file.seek(0))
            return fetch(mirror + name, file, md5)
        except OSError as error:
            causes.append(f"{urlsplit(mirror).netloc}: {in_one_line(error)}")
            mirrors.append(mirrors.pop(0))  # it is asked last for the next file
    raise OSError("; ".join(causes))


def in_one_line(error: BaseException) -> str:
    """The first cause of an error, which says it shortest."""
    while error.__context__:
        error = error.__context__
    return cause_of(error)
