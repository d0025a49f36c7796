"""Text messages labelled ham or spam: found, downloaded and checked, read, cleaned and split.

The SMS Spam Collection (Almeida, Gómez Hidalgo, Yamakami 2011, "Contributions to the Study of SMS Spam
Filtering") has 5,574 messages, of which 747 are spam and 403 repeat the text of an earlier one.

scikit-learn is imported where it is used: `--predict`, which needs none, starts a second sooner.
"""

import csv
import hashlib
import io
import sys
import zipfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pooch

from common.cli import UserError
from common.datasets.sms_standin import generate_messages
from common.files import atomic_write

URL = "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip"
MEMBER = "SMSSpamCollection"
"""The file's name, in the archive as in a folder."""
HAM, SPAM = 4_827, 747
"""Messages of each class in the whole collection, by its own readme."""
TIMEOUT = 10
"""Seconds without an answer after which a server counts as out of reach."""
CSV_HEADERS = (["label", "text"], ["v1", "v2"])
EXPECTED = (
    "expected is label, tab, text on each line, or a CSV that begins with label,text or v1,v2; "
    "labels are ham and spam"
)
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError)
"""What an unusable zip raises: RuntimeError is for a password, its subclass for a rare compression."""


@dataclass
class Messages:
    """Messages in the order of their file."""

    name: str
    """What screen and results file call them."""
    texts: list[str]
    labels: np.ndarray
    """bool [N]: True is spam."""
    lines: np.ndarray
    """int [N]: the line, from 1, on which the message begins in its file."""
    builtin: bool = False
    note: str = ""
    """What screen and results must say about these messages, a line each; the first one is for captions."""

    def __len__(self) -> int:
        return len(self.texts)

    def __str__(self) -> str:
        return f"{len(self):,} messages, {int(self.labels.sum()):,} of them spam"

    def part(self, index: np.ndarray) -> "Messages":
        """Only the messages of these indices, in this order."""
        texts = [self.texts[i] for i in index]
        return replace(self, texts=texts, labels=self.labels[index], lines=self.lines[index])

    def sample(self, count: int, seed: int) -> "Messages":
        """`count` messages at random, with the same share of spam; all where there are no more."""
        from sklearn.model_selection import train_test_split

        if len(self) <= count:
            return self
        index = np.arange(len(self))
        index, _ = train_test_split(index, train_size=count, stratify=self.labels, random_state=seed)
        return self.part(np.sort(index))

    def digest(self) -> str:
        """Tells other texts from these: the first 16 digits of their sha256."""
        return hashlib.sha256("\n".join(self.texts).encode(errors="surrogateescape")).hexdigest()[:16]


def folds(labels: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified cross-validation: each message is in one of `count` parts, which is left out of its fold.

    Args:
        labels: bool [N].

    Returns:
        for each fold the indices of all other messages, and of those of its part.

    Raises:
        UserError: a class has fewer messages than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    fewest = int(min(labels.sum(), (~labels).sum()))
    if fewest < count:
        raise UserError(
            f"one class has only {fewest} messages, too few for {count} parts (--folds, --n-models); "
            "name a larger file"
        )
    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))


# --------------------------------------------------------------------------------------- finding


def find(
    data: str, *, keep_duplicates: bool = False, download: bool = True, folder: Path = Path("data")
) -> Messages:
    """The messages that `--data` names.

    `auto` is the user's copy, `sms/SMSSpamCollection` or `SMSSpamCollection` in `folder`, else a download to
    the first of these paths, else `builtin`, and then the note says why.

    Args:
        data: `auto`; `builtin`, generated messages; a file or a .zip of the collection; or a folder that
            holds `SMSSpamCollection`, or `sms/SMSSpamCollection`.
        keep_duplicates: keep messages whose text is exactly that of an earlier one. Split at random, they
            stand in training and test at once.
        download: whether `auto` may fetch the collection.
        folder: where `auto` looks, and writes what it has fetched.

    Raises:
        UserError: no such file, or one that holds no labelled messages of both classes; a download that is
            another than the one before; a damaged download that cannot be fetched again.
    """
    if data == "builtin":
        return _stand_in()
    if data == "auto":
        return _auto(folder, download, keep_duplicates)
    path = Path(data).expanduser()
    for file in (path, path / MEMBER, path / "sms" / MEMBER):
        if file.is_file():
            return _finish(_parse(_content(file), file), file, keep_duplicates)
    wrong = f"holds no {MEMBER}" if path.is_dir() else "is no file" if path.exists() else "does not exist"
    raise UserError(
        f"--data {path} {wrong}; name a file of messages, a folder with {MEMBER}, or `auto`, `builtin`"
    )


def _auto(folder: Path, download: bool, keep_duplicates: bool) -> Messages:
    fetched, other = folder / "sms" / MEMBER, folder / MEMBER
    record = fetched.with_name("archive.sha256")  # beside a copy that was downloaded
    damaged = ""
    if fetched.is_file() and record.is_file() and (why := _fault(_content(fetched))):
        damaged = f"{fetched} was downloaded and is damaged: {why}"
    elif path := next((path for path in (fetched, other) if path.is_file()), None):
        return _finish(_parse(_content(path), path), path, keep_duplicates)

    by_hand = f"fetch {URL} by hand, unzip it and put its {MEMBER} at {fetched}"
    try:
        if not download:
            raise UserError(f"A trial downloads none; {by_hand}")
        archive, content = _fetch(by_hand)
    except UserError as error:
        if damaged:  # who had the real messages must not go on with generated ones unawares
            raise UserError(f"{damaged}; {error}") from None
        return _stand_in(f"There is no {fetched} and no {other}. {error}.")
    moved = _store(archive, content, fetched, record)
    messages = _finish(_parse(content, fetched), fetched, keep_duplicates)
    if damaged:
        messages.note = _joined(f"{damaged}. It was fetched again, the old one is {moved}.", messages.note)
    return messages


def _stand_in(why: str = "") -> Messages:
    texts, labels = zip(*generate_messages(), strict=True)
    note = _joined("Built-in: generated messages from a small grammar, no real ones.", why)
    lines = np.arange(1, len(texts) + 1)
    return Messages("built-in stand-in", list(texts), np.array(labels), lines, builtin=True, note=note)


def _content(path: Path) -> bytes:
    """The file's bytes, or those of the collection in it if it is a zip."""
    try:
        content = path.read_bytes()
        return _unpack(content) if content.startswith(b"PK\x03\x04") else content
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name another file by --data") from None
    except ZIP_ERRORS as error:
        raise UserError(
            f"{path} is a zip that cannot be used ({_in_one_line(error)}); name its {MEMBER}, unzipped"
        ) from None


def _unpack(archive: bytes) -> bytes:
    """The collection out of its zip, checked by the zip's own checksum."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for name in file.namelist():
            if name.rpartition("/")[2] == MEMBER:
                return file.read(name)
    raise LookupError(f"there is no {MEMBER} in this zip")


# --------------------------------------------------------------------------------------- reading


def _parse(content: bytes, path: Path) -> Messages:
    """All messages of a file, duplicates too; the note counts the lines that are none."""
    content, notes = content.removeprefix(BOM_UTF8), []
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # every byte is a character in it, so it always succeeds
        notes.append(f"{path} is not UTF-8, it was read as Latin-1.")
    header = [word.strip(' "\r').lower() for word in text.partition("\n")[0].split(",")]
    is_csv = header[:2] in CSV_HEADERS
    numbered = _csv_rows(text, path) if is_csv else _tab_rows(text)
    rows = pd.DataFrame(numbered, columns=["line", "label", "text"], dtype=object)

    meaning = {"ham": False, "spam": True} | ({"0": False, "1": True} if is_csv else {})
    rows["spam"] = rows.label.str.strip().str.lower().map(meaning)
    bad = rows.spam.isna() | (rows.text.str.strip() == "") | rows.text.str.contains("\0", regex=False)
    malformed, rows = list(rows.line[bad]), rows[~bad]
    if rows.empty and not malformed:
        raise UserError(f"{path} is empty; {EXPECTED}")
    if malformed:
        first, more = ", ".join(map(str, malformed[:5])), len(malformed) - 5
        counted = f"{len(malformed):,} malformed line{'s' if malformed[1:] else ''}"
        named = f"{counted} ({first}{f' and {more:,} more' if more > 0 else ''})"
        if len(malformed) > len(rows):
            raise UserError(f"{path} has {named} and only {len(rows):,} messages; {EXPECTED}")
        notes.append(f"{path} has {named}, skipped.")
    labels = rows.spam.to_numpy(bool)
    return Messages(path.name, list(rows.text), labels, rows.line.to_numpy(int), note=_joined(*notes))


def _tab_rows(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, label and text. Quotes mean nothing; no character but \\n ends a line.

    Not pandas' `read_csv`: it would take tabs in a text for more columns, and end a text at a NUL.
    """
    lines = text.rstrip("\r\n").split("\n") if text.strip("\r\n") else []
    for number, line in enumerate(lines, start=1):
        yield number, *line.removesuffix("\r").partition("\t")[::2]


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, str, str]]:
    """Number of the first line, label and text of each record after the header.

    Not pandas' `read_csv`: it tells no lines, and does not refuse a quote that closes too early.
    """
    # strict: a quote that is never closed must not swallow the rest of the file
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline="\n"), strict=True)
    line = 1
    try:
        for number, record in enumerate(reader):
            if number > 0:
                label, *rest = record if len(record) > 1 else ["", ""]
                # a comma outside of quotes has pushed the rest of a text into the next column
                yield line, label, ",".join(rest).rstrip(",") if rest[1:] else rest[0]
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}: the record that begins on line {line} is no CSV ({error}); correct its quotes"
        ) from None


def _finish(messages: Messages, path: Path, keep_duplicates: bool) -> Messages:
    """Names the collection, and removes the messages that repeat the text of an earlier one."""
    notes = [messages.note]
    count, spam = len(messages), int(messages.labels.sum())
    if (count - spam, spam) == (HAM, SPAM):
        messages.name = "SMS Spam Collection"
    elif path.name == MEMBER:
        notes.append(f"{path} holds {messages}; the original holds {HAM + SPAM:,}.")

    rows = pd.DataFrame({"text": pd.Series(messages.texts, dtype=object), "spam": messages.labels})
    repeats = rows.duplicated("text")
    if repeats.any():
        what = "kept, they can stand in training and test at once" if keep_duplicates else "removed"
        notes.append(f"{repeats.sum():,} of {count:,} messages repeat the text of an earlier one: {what}.")
        if both := (rows.groupby("text").spam.nunique() > 1).sum():
            choice = "" if keep_duplicates else "; the first label was taken"
            notes.append(f"Texts that are labelled ham here and spam there: {both:,}{choice}.")
        if not keep_duplicates:
            messages = messages.part(np.flatnonzero(~repeats))
    if messages.labels.all() or not messages.labels.any():
        there, missing = ("spam", "ham") if messages.labels[0] else ("ham", "spam")
        raise UserError(f"{path} holds {there} but no {missing}; both are needed, name another file")
    messages.note = _joined(*notes)
    return messages


def _joined(*notes: str) -> str:
    return "\n".join(note for note in notes if note)


# ----------------------------------------------------------------------------------- downloading


def _fetch(by_hand: str) -> tuple[bytes, bytes]:
    """The archive and the collection in it, in memory and complete.

    Raises:
        UserError: it cannot be had; the message names the address and where to put it by hand.
    """
    print(f"Fetching the SMS Spam Collection from {URL}", file=sys.stderr)
    received = io.BytesIO()
    try:
        get = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
        get(URL, received, None)
        content = _unpack(received.getvalue())
    except (OSError, *ZIP_ERRORS) as error:  # what requests raises is an OSError
        cause: BaseException = error
        while cause.__context__:  # the first one says it shortest
            cause = cause.__context__
        raise UserError(
            f"The SMS Spam Collection could not be had ({_in_one_line(cause)}); {by_hand}"
        ) from None
    if why := _fault(content):
        raise UserError(f"{URL} has another content than expected: {why}; {by_hand}")
    return received.getvalue(), content


def _store(archive: bytes, content: bytes, fetched: Path, record: Path) -> Path | None:
    """Writes the collection, and the archive's sha256 beside it at the first time; checks it at later ones.

    Nobody publishes a checksum, so the first download, whose content is right, is the one to trust.

    Returns:
        where an older file went that was in the way.

    Raises:
        UserError: another archive than the first time.
    """
    new = hashlib.sha256(archive).hexdigest()
    old = record.read_text(errors="replace").strip() if record.is_file() else new
    if new != old:
        both = f"{record} and {fetched}" if fetched.exists() else record
        raise UserError(
            f"{URL} has changed: its sha256 is {new}, {record} says {old}; "
            f"remove {both} to accept the new one"
        )
    with atomic_write(record) as temporary:
        temporary.write_text(new + "\n")
    moved = fetched.replace(fetched.with_name(f"{MEMBER}.damaged")) if fetched.exists() else None
    with atomic_write(fetched) as temporary:
        temporary.write_bytes(content)
    return moved


def _fault(content: bytes) -> str:
    """What shows that this is not the whole collection; "" if it is."""
    try:
        messages = _parse(content, Path(MEMBER))
    except UserError as error:
        return str(error)
    right = (int((~messages.labels).sum()), int(messages.labels.sum())) == (HAM, SPAM)
    return "" if right else f"it holds {messages}, instead of {HAM + SPAM:,} and {SPAM:,}"


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
