"""Text messages labelled ham or spam: found, downloaded and checked, read, cleaned and split.

The SMS Spam Collection (Almeida, Gómez Hidalgo, Yamakami 2011, "Contributions to the Study of SMS Spam
Filtering") has 5,574 messages, of which 747 are spam and 403 repeat the text of an earlier one.
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
import pooch
from sklearn.model_selection import StratifiedKFold

from common.cli import UserError
from common.datasets.sms_standin import made_up_sms
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


@dataclass
class Messages:
    """Messages in the order of their file."""

    name: str
    """For the screen and the results file."""
    texts: list[str]
    labels: np.ndarray
    """bool [N]: True is spam."""
    lines: np.ndarray
    """int [N]: the line, from 1, on which the message begins in its file."""
    builtin: bool
    note: str
    """What screen and results must say about these messages, a line each; the first one is for captions."""

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, index: np.ndarray) -> "Messages":
        """Only the messages at these places, in this order."""
        texts = [self.texts[i] for i in index]
        return replace(self, texts=texts, labels=self.labels[index], lines=self.lines[index])


# --------------------------------------------------------------------------------------- finding


def find(
    data: str, *, keep_duplicates: bool = False, download: bool = True, folder: Path = Path("data")
) -> Messages:
    """The messages that `--data` names.

    `auto` is the user's copy, `sms/SMSSpamCollection` or `SMSSpamCollection` in `folder`, else a download to
    the first of these places, else `builtin`, and then the note says why.

    Args:
        data: `auto`; `builtin`, made-up messages; a file or a .zip of the collection; or a folder that holds
            `SMSSpamCollection`, or `sms/SMSSpamCollection`.
        keep_duplicates: keep messages whose text is exactly that of an earlier one. Split at random, they
            stand in training and test at once.
        download: whether `auto` may fetch the collection.
        folder: where `auto` looks, and keeps what it has fetched.

    Raises:
        Refused: no such file, or one that holds no labelled messages of both classes; a download that is
            another than the one before; a damaged download that cannot be fetched again.
    """
    if data == "builtin":
        return _stand_in()
    if data == "auto":
        return _auto(folder, download, keep_duplicates)
    path = _place(Path(data).expanduser())
    return _finish(_parse(_content(path), path), path, keep_duplicates)


def _auto(folder: Path, download: bool, keep_duplicates: bool) -> Messages:
    fetched, other = folder / "sms" / MEMBER, folder / MEMBER
    record = fetched.with_name("archive.sha256")
    missing = f"There is no {fetched} and no {other}"
    damaged = ""
    if fetched.is_file() and record.is_file() and (why := _fault(_content(fetched))):
        damaged = f"{fetched} was downloaded and is damaged: {why}"
    elif path := next((place for place in (fetched, other) if place.is_file()), None):
        return _finish(_parse(_content(path), path), path, keep_duplicates)

    try:
        if not download:
            raise UserError(f"A trial downloads none; {_by_hand(fetched)}")
        archive, content = _fetch(fetched)
    except UserError as refusal:
        if damaged:  # who had the real messages must not go on with made-up ones unawares
            raise UserError(f"{damaged}; {refusal}") from None
        return _stand_in(f"{missing}. {refusal}.")
    kept = _keep(archive, content, fetched, record)
    messages = _finish(_parse(content, fetched), fetched, keep_duplicates)
    if damaged:
        messages.note = _joined(f"{damaged}. It was fetched again, the old one is {kept}.", messages.note)
    return messages


def _stand_in(why: str = "") -> Messages:
    texts, labels = zip(*made_up_sms(), strict=True)
    return Messages(
        "built-in stand-in",
        list(texts),
        np.array(labels),
        np.arange(1, len(texts) + 1),
        builtin=True,
        note=_joined("Built-in: made-up messages from a small grammar, no real ones.", why),
    )


def _place(path: Path) -> Path:
    """The file that `--data` means."""
    for file in (path, path / MEMBER, path / "sms" / MEMBER):
        if file.is_file():
            return file
    wrong = f"holds no {MEMBER}" if path.is_dir() else "is no file" if path.exists() else "does not exist"
    raise UserError(
        f"--data {path} {wrong}; name a file of messages, a folder with {MEMBER}, or `auto`, `builtin`"
    )


def _content(path: Path) -> bytes:
    """The file's bytes, or those of the collection in it if it is a zip."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name another file by --data") from None
    if not content.startswith(b"PK\x03\x04"):
        return content
    try:
        return _unpack(content)
    # zipfile raises RuntimeError for a password, its subclass NotImplementedError for a rare compression
    except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError) as error:
        raise UserError(
            f"{path} is a zip that cannot be used ({_in_one_line(error)}); name its {MEMBER}, unzipped"
        ) from None


def _unpack(archive: bytes) -> bytes:
    """The collection out of its zip, checked by the zip's own checksum."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for name in opened.namelist():
            if name.rpartition("/")[2] == MEMBER:
                return opened.read(name)
    raise LookupError(f"there is no {MEMBER} in this zip")


# --------------------------------------------------------------------------------------- reading


def _parse(content: bytes, path: Path) -> Messages:
    """All messages of a file, duplicates too; the note counts the lines that are none."""
    notes = []
    content = content.removeprefix(BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # every byte is a character in it, so it always succeeds
        notes.append(f"{path} is not UTF-8, it was read as Latin-1.")
    header = [word.strip(' "\r').lower() for word in text.partition("\n")[0].split(",")]
    is_csv = header[:2] in CSV_HEADERS
    meaning = {"ham": False, "spam": True} | ({"0": False, "1": True} if is_csv else {})
    texts, labels, lines, malformed = [], [], [], []
    for line, label, message in _csv_rows(text, path) if is_csv else _tab_rows(text):
        spam = meaning.get(label.strip().lower())
        if spam is None or not message.strip() or "\0" in message:
            malformed.append(line)
            continue
        texts.append(message)
        labels.append(spam)
        lines.append(line)

    if not texts and not malformed:
        raise UserError(f"{path} is empty; {EXPECTED}")
    if malformed:
        first, more = ", ".join(map(str, malformed[:5])), len(malformed) - 5
        counted = f"{len(malformed):,} malformed line{'s' if malformed[1:] else ''}"
        named = f"{counted} ({first}{f' and {more:,} more' if more > 0 else ''})"
        if len(malformed) > len(texts):
            raise UserError(f"{path} has {named} and only {len(texts):,} messages; {EXPECTED}")
        notes.append(f"{path} has {named}, skipped.")
    return Messages(path.name, texts, np.array(labels), np.array(lines), False, "\n".join(notes))


def _tab_rows(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, label and message. Quotes mean nothing; no character but \\n ends a line."""
    if not (text := text.rstrip("\r\n")):
        return
    for number, line in enumerate(text.split("\n"), start=1):
        label, _, message = line.removesuffix("\r").partition("\t")
        yield number, label, message


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, str, str]]:
    """Number of the first line, label and message of each record after the header."""
    # strict: a quote that is never closed must not swallow the rest of the file
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline="\n"), strict=True)
    line = 1
    try:
        for number, record in enumerate(reader):
            if number > 0:
                label, *message = record if len(record) > 1 else ["", ""]
                # a comma outside of quotes has pushed the rest of a message into the next column
                yield line, label, ",".join(message).rstrip(",") if message[1:] else message[0]
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
        notes.append(f"{path} holds {_counts(messages)}; the original holds {HAM + SPAM:,}.")

    first: dict[str, int] = {}
    for i, text in enumerate(messages.texts):
        first.setdefault(text, i)
    if repeats := count - len(first):
        kept = "kept, they can stand in training and test at once" if keep_duplicates else "removed"
        notes.append(f"{repeats:,} of {count:,} messages repeat the text of an earlier one: {kept}.")
        leader = np.array([first[text] for text in messages.texts])  # [N], where each text stands first
        disagreeing = len(np.unique(leader[messages.labels != messages.labels[leader]]))
        if disagreeing:
            taken = "" if keep_duplicates else "; the first label was taken"
            notes.append(f"Texts that are labelled ham here and spam there: {disagreeing:,}{taken}.")
        if not keep_duplicates:
            messages = messages.part(np.array(list(first.values())))
    if messages.labels.all() or not messages.labels.any():
        there, missing = ("spam", "ham") if messages.labels[0] else ("ham", "spam")
        raise UserError(f"{path} holds {there} but no {missing}; both are needed, name another file")
    messages.note = _joined(*notes)
    return messages


def _joined(*notes: str) -> str:
    return "\n".join(note for note in notes if note)


def _counts(messages: Messages) -> str:
    return f"{len(messages):,} messages, {int(messages.labels.sum()):,} of them spam"


# ----------------------------------------------------------------------------------- downloading


def _by_hand(fetched: Path) -> str:
    return f"fetch {URL} by hand, unzip it and put its {MEMBER} at {fetched}"


def _fetch(fetched: Path) -> tuple[bytes, bytes]:
    """The archive and the collection in it, in memory and complete.

    Raises:
        Refused: it cannot be had; the message names the address and where to put it by hand.
    """
    print(f"Fetching the SMS Spam Collection from {URL}", file=sys.stderr)
    received = io.BytesIO()
    try:
        get = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
        get(URL, received, None)
        content = _unpack(received.getvalue())
    # what requests raises is an OSError; the rest is for an answer that is no whole zip
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError) as error:
        cause: BaseException = error
        while cause.__context__:  # the first one says it shortest
            cause = cause.__context__
        raise UserError(
            f"The SMS Spam Collection could not be had ({_in_one_line(cause)}); {_by_hand(fetched)}"
        ) from None
    if why := _fault(content):
        raise UserError(f"{URL} has another content than expected: {why}; {_by_hand(fetched)}")
    return received.getvalue(), content


def _keep(archive: bytes, content: bytes, fetched: Path, record: Path) -> Path | None:
    """Writes the collection, and the archive's sha256 beside it at the first time; checks it at later ones.

    Nobody publishes a checksum, so the first download, whose content is right, is the one to trust.

    Returns:
        where an older file went that was in the way.

    Raises:
        Refused: another archive than the first time.
    """
    new = hashlib.sha256(archive).hexdigest()
    if record.is_file():
        old = record.read_text(errors="replace").strip()
        if new != old:
            both = f"{record} and {fetched}" if fetched.exists() else record
            raise UserError(
                f"{URL} has changed: its sha256 is {new}, {record} says {old}; "
                f"remove {both} to accept the new one"
            )
    with atomic_write(record) as beside:
        beside.write_text(new + "\n")
    kept = fetched.replace(fetched.with_name(f"{MEMBER}.damaged")) if fetched.exists() else None
    with atomic_write(fetched) as beside:
        beside.write_bytes(content)
    return kept


def _fault(content: bytes) -> str:
    """What shows that this is not the whole collection; "" if it is."""
    try:
        messages = _parse(content, Path(MEMBER))
    except UserError as refusal:
        return str(refusal)
    spam = int(messages.labels.sum())
    right = (len(messages) - spam, spam) == (HAM, SPAM)
    return "" if right else f"it holds {_counts(messages)}, instead of {HAM + SPAM:,} and {SPAM:,}"


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------------- splitting


def folds(labels: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified cross-validation: each message is tested on in one fold, and learned from in the others.

    Args:
        labels: bool [N].
        count: of folds, 2 or more.

    Returns:
        for each fold the indices of the messages that may be known, for training and validation, and of
        those to test on.

    Raises:
        Refused: fewer than 2 folds, or a class has fewer messages than there are folds.
    """
    if count < 2:
        raise UserError(f"--folds {count}: cross-validation takes 2 or more")
    fewest = int(min(labels.sum(), (~labels).sum()))
    if fewest < count:
        raise UserError(
            f"one class has only {fewest} messages, too few for {count} folds (--folds); name a larger file"
        )
    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))
