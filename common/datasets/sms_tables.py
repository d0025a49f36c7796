"""Labelled messages in the tables that people have: where label and text stand, and what is no message."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator

import pandas as pd

from common.cli import UserError

LABELS = {"label", "labels", "v1", "category", "class", "type", "target", "spam", "is_spam"}
TEXTS = {"text", "texts", "v2", "message", "messages", "sms", "content", "body"}
"""Names that tables elsewhere give the two columns."""
WORDS = {"ham": False, "spam": True}
NUMBERS = {"0": False, "1": True, "0.0": False, "1.0": True}
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
EXPECTED = (
    "expected is label, tab, text on each line, or a CSV with such columns as label,text or v1,v2; "
    "labels are ham and spam, or 0 and 1"
)
csv.field_size_limit(2**31 - 1)  # a text may be long


def read(text: str, name: str) -> tuple[pd.DataFrame, list[str]]:
    """All messages of a table, duplicates too, and what must be said of it: of an unusual layout, and of the
    lines that hold no message.

    Returns:
        columns: line, from 1, on which the message begins; text; spam, bool.

    Raises:
        UserError: there are none, or fewer than lines without one; a CSV is broken.
    """
    # blank lines, and the separator as Excel writes it
    begin = re.match(r'(?:\s*\n)?(?:"?sep=([,;\t])"?\r?\n)?(?:\s*\n)?', text, re.IGNORECASE)
    assert begin  # all of it may be missing
    body, start = text[begin.end() :], 1 + begin[0].count("\n")
    quoted = bool(re.match(r'(?:.*\n)?"(?:.*"\t")?(?:ham|spam)"[\t\r\n]', body, re.IGNORECASE))
    (separator, label, message, width, header), note = _layout(body, begin[1] or SEPARATORS, name, quoted)
    plain = separator == "\t" and not quoted
    lines = _tab_lines(body, start) if plain else _csv_lines(body, separator, start, name)
    rows = []
    for line, cells in itertools.islice(lines, header, None):
        while not plain and len(cells) > width and not cells[-1]:
            cells.pop()
        more = max(0, len(cells) - width)  # a separator outside of quotes has cut the text
        cells += [""] * (width - len(cells))
        whole = separator.join(cells[message : message + more + 1])
        rows.append((line, cells[label + more * (label > message)].strip().lower(), whole))
    table = pd.DataFrame(rows, columns=["line", "label", "text"], dtype=object)
    return _checked(table, [note] if note else [], name)


def _checked(table: pd.DataFrame, notes: list[str], name: str) -> tuple[pd.DataFrame, list[str]]:
    """Without malformed lines, which a note counts."""
    if table.empty:
        raise UserError(f"{name} is empty; {EXPECTED}")
    table["spam"] = table.label.map(WORDS if table.label.isin(WORDS).any() else NUMBERS)
    bad = table.spam.isna() | (table.text.str.strip() == "") | table.text.str.contains("\0", regex=False)
    if count := int(bad.sum()):
        lines = ", ".join(map(str, table.line[bad][:5])) + (f" and {count - 5:,} more" if count > 5 else "")
        malformed = f"{count:,} malformed line{'s' if count > 1 else ''} ({lines})"
        if count > len(table) - count:
            raise UserError(f"{name} has {malformed} and only {len(table) - count:,} messages; {EXPECTED}")
        notes.append(f"{name} has {malformed}, skipped.")
    return table[~bad].astype({"line": int, "spam": bool}), notes


def _layout(
    body: str, separators: Iterable[str], name: str, quoted: bool
) -> tuple[tuple[str, int, int, int, bool], str]:
    """By a table's first line, what separates columns, and what `_columns` says; and a note on it. Between
    tabs quotes mean something only where labels are `quoted`."""
    first = body.partition("\n")[0].replace("\r", "")
    for separator in separators:
        plain = separator == "\t" and not quoted
        cells = first.split("\t") if plain else next(csv.reader([first], delimiter=separator))
        words = [cell.strip().lower() for cell in cells]
        if found := _columns(words, name):
            named = separator in "\t," and words[:2] in (["label", "text"], ["v1", "v2"])
            usual = named or (separator == "\t" and words[0] in WORDS)
            where = f"the label in column {found[0] + 1}, the text in column {found[1] + 1}"
            note = "" if usual else f"{name} was read with {SEPARATORS[separator]} between columns, {where}."
            return (separator, *found), note
    return ("\t", 0, 1, 2, False), ""


def _columns(words: list[str], name: str) -> tuple[int, int, int, bool] | None:
    """Of a first record: the columns of label and text, how many there are, and whether they are named; None
    where it does not tell.
    """
    labels, texts = ([i for i, word in enumerate(words) if word in names] for names in (LABELS, TEXTS))
    if labels and texts:
        if len(labels + texts) > 2:
            raise UserError(f"{name}: several columns could be label or text; leave one of each")
        while not words[-1] or words[-1].startswith("unnamed"):  # empty columns, as spreadsheets leave them
            words = words[:-1]
        return labels[0], texts[0], len(words), True
    if len(words) < 2:
        return None
    index = int(len(words) > 2 and words[0].isdigit() and (words[1] in WORDS or words[-1] in WORDS))
    first, second, last = words[index], words[index + 1], words[-1]  # behind a column of numbers, if any
    if first in WORDS or (last not in WORDS and first in NUMBERS and second not in NUMBERS):
        return index, index + 1, index + 2, False
    if last in WORDS or (last in NUMBERS and not first.isdigit()):
        return index + 1, index, index + 2, False
    return None


def _tab_lines(body: str, start: int) -> Iterator[tuple[int, list[str]]]:
    r"""Quotes mean nothing; no character but \n ends a line.

    Not pandas' `read_csv`: it would take tabs in a text for more columns, and end a text at a NUL.
    """
    if body := body.rstrip("\r\n"):
        for number, line in enumerate(body.split("\n"), start):
            yield number, line.removesuffix("\r").split("\t")


def _csv_lines(body: str, separator: str, start: int, name: str) -> Iterator[tuple[int, list[str]]]:
    """Not pandas' `read_csv`: it tells no lines, and does not refuse a quote that closes too early."""
    # strict: a quote that is never closed must not swallow the rest of the file
    reader = csv.reader(io.StringIO(body.rstrip("\r\n"), newline="\n"), delimiter=separator, strict=True)
    line = start
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + start
    except csv.Error as error:
        what = f"the record that begins on line {line} is no CSV ({error})"
        raise UserError(f"{name}: {what}; correct its quotes") from None
