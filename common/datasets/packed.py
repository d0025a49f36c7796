"""Bytes out of gzip and zip, as many as a file of data may have: a few kilobytes can unpack to terabytes."""

import gzip
import io
import zipfile

LARGEST = 1 << 29
"""Bytes: the largest table of EMNIST's pixels as text has 4.3e8."""


def gunzip(content: bytes) -> bytes:
    """What is packed in `content`; an OSError where it is more than `LARGEST`, or damaged."""
    with gzip.open(io.BytesIO(content)) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(f"it unpacks to more than {LARGEST:,} bytes")
    return data


def unzip(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member, checked by the zip's own checksum; an OSError where it is more than `LARGEST`."""
    if (size := archive.getinfo(name).file_size) > LARGEST:
        raise OSError(f"{name} unpacks to {size:,} bytes, more than {LARGEST:,}")
    return archive.read(name)
