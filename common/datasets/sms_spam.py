"""Text messages labelled ham or spam: found, downloaded and checked, read, cleaned and split.

The SMS Spam Collection (Almeida, Gómez Hidalgo, Yamakami 2011, "Contributions to the Study of SMS Spam
Filtering") has 5,574 messages, of which 747 are spam and 403 repeat the text of an earlier one.

scikit-learn is imported where it is used: `--predict`, which needs none, starts a second sooner.
"""

import hashlib
import io
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from common import cli
from common.cli import UserError, user_path
from common.datasets import download as downloads
from common.datasets import packed, sms_tables
from common.datasets.sms_standin import generate_messages
from common.datasets.text import decode
from common.files import atomic_write, cause_of

URL = "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip"
NAME = "SMS Spam Collection"
"""What the whole collection is called."""
MEMBER = "SMSSpamCollection"
"""The file's name, in the archive as in a folder."""
USUAL = Path("data", "sms", MEMBER), Path("data", MEMBER)
"""Where `auto` looks; what it downloads goes to the first."""
HAM, SPAM = 4_827, 747
"""Messages of each class in the whole collection, by its own readme."""


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

    def counts(self) -> tuple[int, int]:
        """Of ham and of spam."""
        return int((~self.labels).sum()), int(self.labels.sum())

    def __str__(self) -> str:
        return f"{len(self):,} messages, {self.counts()[1]:,} of them spam"

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
    """Stratified cross-validation: each of the messages with these labels, bool [N], is in one of `count`
    parts. For each fold the indices of all other messages, and of those of its part.

    Raises:
        UserError: a class has fewer messages than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    fewest = int(min(labels.sum(), (~labels).sum()))
    if fewest < count:
        few = f"one class has only {fewest} messages, too few for {count} parts (--folds, --n-models)"
        raise UserError(f"{few}; name a larger file")
    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))


# --------------------------------------------------------------------------------------- finding


def find(data: str, *, keep_duplicates: bool = False, download: bool = True) -> Messages:
    """The messages that `--data` names.

    `auto` is the user's copy, `data/sms/SMSSpamCollection` or `data/SMSSpamCollection`, else a download to
    the first of these paths, else `builtin`, and then the note says why.

    Args:
        data: `auto`; `builtin`, generated messages; a file, also packed by gzip or zip; or a folder with
            `SMSSpamCollection`, `sms/SMSSpamCollection`, or Kaggle's `spam.csv` or `archive.zip`.
        keep_duplicates: keep messages whose text is exactly that of an earlier one. Split at random, they
            stand in training and test at once.
        download: whether `auto` may fetch the collection.

    Raises:
        UserError: no such file, or one that holds no labelled messages of both classes; a download that is
            another than the one before; a damaged download that cannot be fetched again.
    """
    if data == "builtin":
        return _stand_in()
    if data == "auto":
        return _auto(download, keep_duplicates)
    messages = _cleaned(*_content(_named("data", data, ", or `auto`, `builtin`")), keep_duplicates)
    if messages.name == NAME:
        cli.anywhere[data] = "auto"
    return messages


def find_elsewhere(files: Sequence[str], train: Messages) -> Messages:
    """The messages of all these files that `--test-on` names, as `--data` reads them, without those that
    repeat an earlier one and without those of `train`.

    Raises:
        UserError: as `find`; or no ham or no spam is left of all of them.
    """
    parts, notes = [], []
    for name in files:
        messages, said = _parse(*_content(_named("test_on", name)))
        parts.append(messages)
        notes += said
    texts = pd.Series([text for part in parts for text in part.texts], dtype=object)
    labels, lines = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "lines"))
    known = texts.isin(train.texts) | texts.duplicated()
    if known.any():
        notes.append(
            f"{known.sum():,} of {len(texts):,} messages repeat another or were trained on: removed."
        )
    name = " and ".join(part.name for part in parts)
    joined = Messages(
        name, list(texts), labels, lines, builtin=train.builtin, note="\n".join(filter(None, notes))
    )
    left = joined.part(np.flatnonzero(~known))
    if not all(left.counts()):
        raise UserError(f"--test-on: of {name} {left} are left; ham and spam are needed, add a file")
    return left


def _named(flag: str, text: str, other: str = "") -> Path:
    """The file that a flag names, or that is in the folder that it names."""
    path = user_path(flag, text)
    try:
        for name in ("", MEMBER, f"sms/{MEMBER}", "spam.csv", "archive.zip"):
            if (file := path / name).is_file():
                return file
        wrong = f"holds no {MEMBER}" if path.is_dir() else "is no file" if path.exists() else "does not exist"
    except OSError as error:
        wrong = f"cannot be read: {cause_of(error)}"
    where = f"{cli.flag(flag)} {path} {wrong}"
    raise UserError(f"{where}; name a file of messages, a folder with {MEMBER}{other}")


def usual_copy() -> Path | None:
    """The collection that `auto` reads, where there is one."""
    return next((path for path in USUAL if path.is_file()), None)


def _auto(download: bool, keep_duplicates: bool) -> Messages:
    fetched, other = USUAL
    record = fetched.with_name("archive.sha256")  # beside a copy that was downloaded
    damaged = ""
    if fetched.is_file() and record.is_file() and (why := _fault(_content(fetched)[0])):
        damaged = f"{fetched} was downloaded and is damaged: {why}"
    elif path := usual_copy():
        return _cleaned(*_content(path), keep_duplicates)

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
    again = f"{damaged}. It was fetched again, the old one is {moved}." if damaged else ""
    return _cleaned(content, fetched, keep_duplicates, again)


def _stand_in(*why: str) -> Messages:
    texts, labels = zip(*generate_messages(), strict=True)
    note = "\n".join(("Built-in: generated messages from a small grammar, no real ones.", *why))
    lines = np.arange(1, len(texts) + 1)
    return Messages("built-in stand-in", list(texts), np.array(labels), lines, builtin=True, note=note)


# --------------------------------------------------------------------------------------- reading


def _content(path: Path) -> tuple[bytes, Path]:
    """The file's bytes, or those of the table that is packed in it; and its path, within an archive too."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {cause_of(error)}; name another file by --data") from None
    try:
        if content.startswith(b"\x1f\x8b"):
            return packed.gunzip(content), path
        if content.startswith(b"PK\x03\x04"):
            content, name = _unpack(content, tables=True)
            return content, path / name
        return content, path
    except downloads.FAILURES as error:
        why = downloads.in_one_line(error)
        raise UserError(f"{path} cannot be unpacked ({why}); name the table in it, as text") from None


def _unpack(archive: bytes, tables: bool = False) -> tuple[bytes, str]:
    """The collection out of its zip, checked by the zip's own checksum; or, of `tables`, the only one."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        names = [name for name in file.namelist() if not name.startswith("__MACOSX/") and name[-1] != "/"]
        if any(name.startswith("xl/") for name in names):
            raise LookupError("it is an Excel workbook")
        chosen = [name for name in names if name.rpartition("/")[2] == MEMBER][:1]
        if tables and not chosen:
            chosen = [name for name in names if name.lower().endswith((".csv", ".tsv"))] or names
        if len(chosen) != 1:
            raise LookupError(f"there is no {MEMBER} in this zip{', and no single table' if tables else ''}")
        return packed.unzip(file, chosen[0]), chosen[0]


def _parse(content: bytes, path: Path) -> tuple[Messages, list[str]]:
    """All messages of a file, duplicates too, and what must be said of how they were read."""
    text, encoding = decode(content, str(path))
    rows, notes = sms_tables.read(text, str(path))
    return Messages(path.name, list(rows.text), rows.spam.to_numpy(), rows.line.to_numpy()), [
        encoding,
        *notes,
    ]


def _cleaned(content: bytes, path: Path, keep_duplicates: bool, note: str = "") -> Messages:
    """The messages of a file without those that repeat an earlier text; the whole collection is named so."""
    messages, notes = _parse(content, path)
    if messages.counts() == (HAM, SPAM):
        messages.name = NAME
    elif path.name == MEMBER:
        notes.append(f"{path} holds {messages}; the original holds {HAM + SPAM:,}.")

    rows = pd.DataFrame({"text": pd.Series(messages.texts, dtype=object), "spam": messages.labels})
    repeats = rows.duplicated("text")
    if repeats.any():
        what = "kept, they can stand in training and test at once" if keep_duplicates else "removed"
        notes.append(
            f"{repeats.sum():,} of {len(rows):,} messages repeat the text of an earlier one: {what}."
        )
        if both := (rows.groupby("text").spam.nunique() > 1).sum():
            choice = "" if keep_duplicates else "; the first label was taken"
            notes.append(f"Texts that are labelled ham here and spam there: {both:,}{choice}.")
        if not keep_duplicates:
            messages = messages.part(np.flatnonzero(~repeats))
    if not all(messages.counts()):
        there, missing = ("spam", "ham") if messages.labels[0] else ("ham", "spam")
        raise UserError(f"{path} holds {there} but no {missing}; both are needed, name another file")
    messages.note = "\n".join(filter(None, [note, *notes]))
    return messages


# ----------------------------------------------------------------------------------- downloading


def _fetch(by_hand: str) -> tuple[bytes, bytes]:
    """The archive and the collection in it, complete; a UserError where it cannot be had."""
    print(f"Fetching the SMS Spam Collection from {URL}", file=sys.stderr)
    received = io.BytesIO()
    try:
        downloads.fetch(URL, received)
        content, _ = _unpack(received.getvalue())
    except downloads.FAILURES as error:
        why = downloads.in_one_line(error)
        raise UserError(f"The SMS Spam Collection could not be had ({why}); {by_hand}") from None
    if why := _fault(content):
        raise UserError(f"{URL} has another content than expected: {why}; {by_hand}")
    return received.getvalue(), content


def _store(archive: bytes, content: bytes, fetched: Path, record: Path) -> Path | None:
    """Writes the collection, and the archive's sha256 beside it at the first time; checks it at later ones.

    Nobody publishes a checksum, so the first download, whose content is right, is the one to trust. Returns
    where an older file went that was in the way.
    """
    new = hashlib.sha256(archive).hexdigest()
    old = record.read_text(errors="replace").strip() if record.is_file() else new
    if new != old:
        both = f"{record} and {fetched}" if fetched.exists() else record
        has = f"{URL} has changed: its sha256 is {new}, {record} says {old}"
        raise UserError(f"{has}; remove {both} to accept the new one")
    with atomic_write(record) as temporary:
        temporary.write_text(new + "\n")
    moved = fetched.replace(fetched.with_name(f"{MEMBER}.damaged")) if fetched.exists() else None
    with atomic_write(fetched) as temporary:
        temporary.write_bytes(content)
    return moved


def _fault(content: bytes) -> str:
    """What shows that this is not the whole collection; "" if it is."""
    try:
        messages, _ = _parse(content, Path(MEMBER))
    except UserError as error:
        return str(error)
    right = messages.counts() == (HAM, SPAM)
    return "" if right else f"it holds {messages}, instead of {HAM + SPAM:,} and {SPAM:,}"
