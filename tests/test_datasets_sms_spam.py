"""SMS spam: formats, malformed lines, duplicates, the download, splits, the stand-in."""

import functools
import gzip
import hashlib
import http.server
import io
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from common.cli import UserError
from common.datasets import sms_spam
from common.datasets.sms_standin import generate_messages

SHARED = Path(__file__).parents[2] / "shared"
REAL = SHARED / "data/sms/SMSSpamCollection"
COPY = Path("data/sms/SMSSpamCollection")
RECORD = Path("data/sms/archive.sha256")


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data or the network of the machine."""
    monkeypatch.setattr(sms_spam, "URL", "http://127.0.0.1:9/nobody.zip")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def found(content: bytes | str, name: str = "messages", **options: bool) -> sms_spam.Messages:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return sms_spam.find(name, **options)


def refused(content: bytes | str) -> str:
    with pytest.raises(UserError) as refusal:
        found(content)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith("messages")
    return str(refusal.value)


def collection(ham: int = sms_spam.HAM, spam: int = sms_spam.SPAM) -> bytes:
    lines = [f"ham\tsee you at {k}" for k in range(ham)] + [f"spam\tcall {k} now" for k in range(spam)]
    return "".join(line + "\n" for line in lines).encode()


def zipped(content: bytes, member: str = "SMSSpamCollection", comment: bytes = b"") -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("readme", "about")
        file.writestr(member, content)
        file.comment = comment
    return archive.getvalue()


# --------------------------------------------------------------------------------------- formats

MESSAGES = [(False, 'he said "hi, you'), (True, "WIN £100, café"), (False, '"Quoted" \u2028 line\x0b, ok ')]
TABBED = "".join(f"{'spam' if spam else 'ham'}\t{text}\n" for spam, text in MESSAGES)
QUOTED = [(spam, '"' + text.replace('"', '""') + '"') for spam, text in MESSAGES]


def comma_separated(header: str, names: tuple[str, str], tail: str = "") -> str:
    return header + "\n" + "".join(f"{names[spam]},{text}{tail}\n" for spam, text in QUOTED)


@pytest.mark.parametrize(
    ("content", "first"),
    {
        "tabs": (TABBED.encode(), 1),
        "no newline at the end": (TABBED.rstrip("\n").encode(), 1),
        "CRLF": (TABBED.replace("\n", "\r\n").encode(), 1),
        "BOM": (b"\xef\xbb\xbf" + TABBED.encode(), 1),
        "label in capitals, spaces": (TABBED.replace("spam", " Spam ").replace("ham\t", "HAM\t").encode(), 1),
        "label,text": (comma_separated("label,text", ("ham", "spam")).encode(), 2),
        "label,text, 0 and 1": (comma_separated("Label, Text", ("0", "1")).encode(), 2),
        "v1,v2, empty columns": (comma_separated("v1,v2,,,", ("ham", "spam"), ",,,").encode(), 2),
        "quoted header, BOM, CRLF": (
            b"\xef\xbb\xbf" + comma_separated('"v1","v2"', ("ham", "spam")).replace("\n", "\r\n").encode(),
            2,
        ),
    }.values(),
    ids=lambda value: "",
)
def test_every_format_gives_the_same_messages(content: bytes, first: int) -> None:
    messages = found(content)
    assert messages.texts == [text for _, text in MESSAGES]
    assert messages.labels.tolist() == [spam for spam, _ in MESSAGES] and messages.labels.dtype == bool
    assert messages.lines.tolist() == [first, first + 1, first + 2]
    assert (messages.name, messages.builtin, messages.note, len(messages)) == ("messages", False, "", 3)


@pytest.mark.parametrize("content", [TABBED, comma_separated("v1,v2,,,", ("ham", "spam"), ",,,")])
def test_latin_1_is_read_and_announced(content: str) -> None:
    messages = found(content.replace("\u2028", "’").encode("cp1252"))
    assert messages.texts[1] == "WIN £100, café"
    assert messages.texts[2] == '"Quoted" ’ line\x0b, ok '
    assert "Latin-1" in messages.note


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_other_encodings_are_recognised(encoding: str) -> None:
    messages = found(TABBED.encode(encoding))
    assert messages.texts == [text for _, text in MESSAGES]
    assert messages.note == ("" if "8" in encoding else f"messages was read as {encoding[:6].upper()}.")
    if encoding == "utf-16":  # its mark is of the machine's own order
        assert found(b"\xfe\xff" + TABBED.encode("utf-16-be")).texts == messages.texts


TABLES = {  # file, and what the note says of it; the first message is on line 2, or on that which is named
    "Category,Message": (
        "Category,Message\nham,{0}\nspam,{1}\nham,{2}\n",
        "label in column 1, the text in column 2",
    ),
    "sms,label": ("sms,label\n{0},0\n{1},1\n{2},0\n", "label in column 2, the text in column 1"),
    "text,label,": ("text,label,,\n{0},HAM,,\n{1},Spam,,\n{2},ham,,\n", "the label in column 2"),
    "index": (",label,text,label_num\n0,ham,{0},0\n1,spam,{1},1\n2,ham,{2},0\n", "the label in column 2"),
    "index without a name": ("0,ham,{0}\n1,spam,{1}\n2,ham,{2}\n", "label in column 2, the text in column 3"),
    "floats": ("label,text\n0.0,{0}\n1.0,{1}\n0.0,{2}\n", ""),
    "Unnamed": ("v1,v2,Unnamed: 2\nham,{0},\nspam,{1},\nham,{2},\n", ""),
    ";": ("label;text\nham;{0}\nspam;{1}\nham;{2}\n", "semicolons"),
    "sep=, usual names": ("sep=;\nlabel;text\nham;{0}\nspam;{1}\nham;{2}\n", "semicolons"),
    "blank lines": ("\n \r\nlabel,text\nham,{0}\nspam,{1}\nham,{2}\n", ""),
    "blank lines, tabs in quotes": ('\n\n"ham"\t{0}\n"spam"\t{1}\n"ham"\t{2}\n', ""),
    "tabs in quotes, header": ('"label"\t"text"\n"Ham"\t{0}\n"spam"\t{1}\n"ham"\t{2}\n', ""),
    "tabs in quotes, label last": ('{0}\t"ham"\n{1}\t"spam"\n{2}\t"ham"\n', "label in column 2"),
    "sep=": ("sep=;\r\nMessage;Category\n{0};ham\n{1};spam\n{2};ham\n", "semicolons"),
    "no header": ("ham,{0}\nspam,{1}\nham,{2}\n", "commas"),
    "no header, label last": ("{0},ham\n{1},spam\n{2},ham\n", "commas"),
    "no header, numbers": ("0;{0}\n1;{1}\n0;{2}\n", "semicolons"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_have_them(name: str) -> None:
    content, note = TABLES[name]
    messages = found(content.format(*(text for _, text in QUOTED)))
    assert messages.texts == [text for _, text in MESSAGES]
    assert messages.labels.tolist() == [spam for spam, _ in MESSAGES]
    lines = content.splitlines()
    first = next(number for number, line in enumerate(lines, 1) if "{0}" in line)
    assert messages.lines.tolist() == [first, first + 1, first + 2]
    assert note in messages.note and bool(note) == bool(messages.note)


def test_tabs_with_a_header_or_numbers() -> None:
    assert found("label\tmessage\nham\ta\nspam\tb\n").texts == ["a", "b"]
    messages = found("1\tcall, now\n0\tsee you\twith a tab\n")
    assert messages.texts == ["call, now", "see you\twith a tab"] and messages.labels.tolist() == [
        True,
        False,
    ]


def test_a_comma_in_a_text_without_quotes_moves_no_label() -> None:
    messages = found("message,label\ncall now, or reply,spam\nhi,ham\n")
    assert messages.texts == ["call now, or reply", "hi"] and messages.labels.tolist() == [True, False]
    messages = found('label,text\nham,see you\nspam,"' + "long " * 40_000 + '"\n')
    assert len(messages.texts[1]) == 200_000


@pytest.mark.parametrize(
    "content", ["text,label,message\na,ham,b\nc,spam,d\n", "label,class,text\nham,1,a\n"]
)
def test_two_columns_that_could_be_the_text_or_the_label_are_refused(content: str) -> None:
    assert "several columns" in refused(content)


BINARY = {
    "xz": b"\xfd7zXZ\0" + bytes(50),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "JPEG": b"\xff\xd8\xff\xe0" + bytes(50),
    "tar": b"a".ljust(257, b"\0") + b"ustar" + bytes(300),
    "binary": np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes(),
    "PDF": b"%PDF-1.7\n",
}


@pytest.mark.parametrize("kind", BINARY)
def test_what_is_no_text_is_refused_by_its_kind(kind: str) -> None:
    assert kind in refused(BINARY[kind]) and "malformed" not in refused(BINARY[kind])
    assert kind in refused(gzip.compress(BINARY[kind]))


def test_a_csv_record_may_span_lines_and_columns() -> None:
    messages = found('label,text\nham,"one\ntwo"\nspam,call now, or reply,, ok,\r\nham,three\n')
    assert messages.texts == ["one\ntwo", "call now, or reply,, ok", "three"]
    assert messages.lines.tolist() == [2, 4, 5]


@pytest.mark.parametrize("text", ['"never closed', '"closed" too early'])
def test_a_broken_quote_in_a_csv_is_refused_with_its_line(text: str) -> None:
    assert "line 3 " in refused(f"label,text\nspam,a\nham,{text}\nham,b\nham,c\nspam,d\n")


def test_malformed_lines_are_skipped_counted_and_named() -> None:
    bad = ["no tab", "eggs\tunknown label", "ham\t  ", "", "ham\tnul \0 byte", "\tno label", "0\tnumber"]
    good = [f"{'spam' if k % 2 else 'ham'}\t{k}\twith a tab" for k in range(8)]
    messages = found("\n".join([good[0], *bad, *good[1:]]) + "\n\n\n")
    assert messages.texts == [f"{k}\twith a tab" for k in range(8)]
    assert messages.lines.tolist() == [1, *range(9, 16)]
    assert "7 malformed lines (2, 3, 4, 5, 6 and 2 more)" in messages.note

    messages = found('v1,v2\nham,a\nham\n\n2,b\nspam,""\nspam,"b\nc"\nham,d\nspam,e\n')
    assert messages.texts == ["a", "b\nc", "d", "e"] and messages.lines.tolist() == [2, 7, 9, 10]
    assert "4 malformed lines (3, 4, 5, 6)" in messages.note


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf", b"label,text\n"])
def test_an_empty_file_is_refused(content: bytes) -> None:
    assert "is empty" in refused(content) and "label,text" in refused(content)


@pytest.mark.parametrize(
    "content",
    [
        "ham\ta\nspam\tb\nc\nd\ne\n",
        "first,second\na,ham\nb,spam\n",
        "0,1,which is which\n1,0,nobody knows\n",
        b"x" * 300_000,
        "ham a\rspam b\r",
    ],
)
def test_a_file_of_another_kind_is_refused(content: bytes | str) -> None:
    assert "malformed line" in refused(content) and "v1,v2" in refused(content)


@pytest.mark.parametrize(("there", "missing"), [("ham", "spam"), ("spam", "ham")])
def test_a_file_of_one_class_is_refused(there: str, missing: str) -> None:
    assert f"holds {there} but no {missing}" in refused(f"{there}\ta\n{there}\tb\n")


def test_duplicates_are_removed_unless_they_are_asked_for() -> None:
    content = "ham\ta\nspam\tb\nspam\ta\nham\ta\nspam\tb\nham\tA\nham\ta \n"
    messages = found(content)
    assert messages.texts == ["a", "b", "A", "a "]
    assert messages.labels.tolist() == [False, True, False, False]
    assert messages.lines.tolist() == [1, 2, 6, 7]
    assert "3 of 7 messages repeat" in messages.note and "removed" in messages.note
    assert "ham here and spam there: 1;" in messages.note
    messages = found(content, keep_duplicates=True)
    assert messages.lines.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert "3 of 7 messages repeat" in messages.note and "kept" in messages.note


def test_a_class_that_is_gone_with_its_duplicates_is_refused() -> None:
    assert "no spam" in refused("ham\ta\nspam\ta\nham\tb\n")


def test_a_part_keeps_labels_and_lines_together() -> None:
    part = found(TABBED).part(np.array([2, 1]))
    assert part.texts == [MESSAGES[2][1], MESSAGES[1][1]]
    assert part.labels.tolist() == [False, True] and part.lines.tolist() == [3, 2]


# --------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize("place", ["SMSSpamCollection", "sms/SMSSpamCollection"])
def test_a_folder_that_holds_the_collection_will_do(place: str) -> None:
    Path("mine", place).parent.mkdir(parents=True)
    Path("mine", place).write_text(TABBED)
    messages = sms_spam.find("mine")
    assert len(messages) == 3 and messages.name == "SMSSpamCollection"
    assert "3 messages, 1 of them spam; the original holds 5,574" in messages.note  # not refused


@pytest.mark.parametrize("place", ["data/SMSSpamCollection", "data/sms/SMSSpamCollection"])
def test_the_users_copy_goes_before_a_download(place: str) -> None:
    Path(place).parent.mkdir(parents=True)
    Path(place).write_bytes(collection())
    messages = sms_spam.find("auto")
    assert (messages.name, len(messages), messages.note) == ("SMS Spam Collection", 5574, "")


@pytest.mark.parametrize("member", ["SMSSpamCollection", "deeper/SMSSpamCollection"])
def test_a_zip_will_do_whatever_its_name(member: str) -> None:
    assert found(zipped(collection(), member)).name == "SMS Spam Collection"


def test_what_is_packed_is_unpacked() -> None:
    table = comma_separated("v1,v2,,,", ("ham", "spam"), ",,,").encode()
    for packed in (zipped(table, "spam.csv"), zipped(table, "deeper/Spam.CSV"), gzip.compress(table)):
        messages = found(packed)
        assert messages.texts == [text for _, text in MESSAGES]
        assert messages.name == ("messages" if packed[:2] == b"\x1f\x8b" else messages.name)
    assert found(zipped(table, "spam.csv"), "archive.zip").name == "spam.csv"
    Path("kaggle").mkdir()
    for name, content in (("spam.csv", table), ("archive.zip", zipped(table, "spam.csv"))):
        Path("kaggle", name).write_bytes(content)
        assert len(sms_spam.find("kaggle")) == 3
        Path("kaggle", name).unlink()


def test_a_zip_that_cannot_be_used_is_refused() -> None:
    whole = zipped(collection())
    assert "no SMSSpamCollection" in refused(zipped(b"", "other.txt"))
    assert "Excel" in refused(zipped(b"<x/>", "xl/worksheets/sheet1.xml"))
    assert "ended" in refused(gzip.compress(whole)[:2000])
    refused(whole[:2000])
    damaged = bytearray(whole)
    damaged[300] ^= 255
    refused(bytes(damaged))
    locked = bytearray(whole)
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    locked[locked.rindex(b"PK\x03\x04") + 6] |= 1
    assert "password" in refused(bytes(locked))


def test_what_is_no_file_is_refused() -> None:
    Path("empty").mkdir()
    for name, why in (("gone", "does not exist"), ("empty", "holds no SMSSpamCollection")):
        with pytest.raises(UserError, match=f"--data {name} {why}"):
            sms_spam.find(name)


def test_the_real_collection() -> None:
    if not REAL.exists():
        pytest.skip("no real collection here")
    messages = sms_spam.find(str(SHARED / "data"))
    assert (messages.name, len(messages), messages.labels.sum()) == ("SMS Spam Collection", 5171, 653)
    assert messages.note == "403 of 5,574 messages repeat the text of an earlier one: removed."
    messages = sms_spam.find(str(REAL), keep_duplicates=True)
    assert (len(messages), messages.labels.sum(), messages.lines[-1]) == (5574, 747, 5574)
    last = REAL.read_bytes().splitlines()[-1].decode()
    assert last == f"ham\t{messages.texts[-1]}"


# -------------------------------------------------------------------------------------- download


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        if Path(self.translate_path(self.path)).with_suffix(".rude").exists():
            self.wfile.write(b"220 mail ready\r\n")
        elif Path(self.translate_path(self.path)).with_suffix(".silent").exists():
            time.sleep(1)
        else:
            super().do_GET()

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        if Path(source.name).with_suffix(".cut").exists():  # the line goes dead half-way
            outputfile.write(source.read(1000))
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            super().copyfile(source, outputfile)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """What a local server serves as the collection's archive."""
    file = tmp_path / "served" / "sms.zip"
    file.parent.mkdir()
    file.write_bytes(zipped(collection()))
    handler = functools.partial(QuietHandler, directory=str(file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(sms_spam, "URL", f"http://127.0.0.1:{server.server_port}/sms.zip")
        yield file
        server.shutdown()


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}


def test_the_collection_is_downloaded_once_and_then_used_without_a_network(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = sms_spam.find("auto")
    assert (messages.name, messages.builtin, len(messages)) == ("SMS Spam Collection", False, 5574)
    assert "Fetching" in capsys.readouterr().err
    assert COPY.read_bytes() == collection()
    assert RECORD.read_text().strip() == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert set(tree()) == {"data", "data/sms", str(COPY), str(RECORD)}
    archive.unlink()
    assert sms_spam.find("auto").texts == messages.texts
    assert capsys.readouterr().err == ""


def test_a_trial_downloads_nothing(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = sms_spam.find("auto", download=False)
    assert messages.builtin and "downloads none" in messages.note
    assert not tree() and not capsys.readouterr().err


HARMS = [
    "no network",
    "no answer",
    "not found",
    "cut off",
    "no web server",
    "a page",
    "other member",
    "too few",
    "no spam",
]


def harm(archive: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes the download fail, and gives a word of the reason that must be named."""
    if how == "no network":
        monkeypatch.setattr(sms_spam, "URL", "http://127.0.0.1:9/sms.zip")
        return "refused"
    if how == "no answer":
        archive.with_suffix(".silent").touch()
        monkeypatch.setattr("common.datasets.download.TIMEOUT", 0.3)
        return "timed out"
    if how == "not found":
        archive.unlink()
        return "404"
    if how == "cut off":
        archive.with_suffix(".cut").touch()
        return "IncompleteRead"
    if how == "no web server":
        archive.with_suffix(".rude").touch()
        return "220 mail ready"
    contents = {
        "a page": (b"<html>log in</html>", "zip"),
        "other member": (zipped(collection(), "spam.csv"), "no SMSSpamCollection"),
        "too few": (zipped(collection(spam=746)), "5,573 messages, 746"),
        "no spam": (zipped(b"ham\ta\n" * 5574), "5,574 messages, 0"),
    }
    content, word = contents[how]
    archive.write_bytes(content)
    return word


@pytest.mark.parametrize("how", HARMS)
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(
    archive: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = harm(archive, how, monkeypatch)
    messages = sms_spam.find("auto")
    assert messages.builtin and not tree()
    first, why = messages.note.split("\n")
    assert "generated" in first
    for part in (word, sms_spam.URL, str(COPY)):
        assert part in why


@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_copy_that_cannot_be_fetched_again_is_refused(
    archive: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sms_spam.find("auto")
    COPY.write_bytes(collection()[:90_000])
    before = tree()
    word = harm(archive, how, monkeypatch)
    with pytest.raises(UserError) as refusal:
        sms_spam.find("auto")
    for part in ("is damaged", word, sms_spam.URL, str(COPY)):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value) and tree() == before


@pytest.mark.parametrize("left", [b"", collection()[:90_000], b"\0" * 400_000])
def test_a_damaged_copy_is_fetched_again_and_kept_aside(archive: Path, left: bytes) -> None:
    sms_spam.find("auto")
    COPY.write_bytes(left)
    messages = sms_spam.find("auto")
    assert len(messages) == 5574 and not messages.builtin and "is damaged" in messages.note
    assert COPY.read_bytes() == collection()
    assert COPY.with_name("SMSSpamCollection.damaged").read_bytes() == left
    assert sms_spam.find("auto").note == ""


def test_a_copy_put_there_by_hand_may_be_shortened(archive: Path) -> None:
    COPY.parent.mkdir(parents=True)
    COPY.write_bytes(collection(ham=30))
    messages = sms_spam.find("auto")
    assert len(messages) == 777 and "777 messages" in messages.note


def test_another_archive_than_the_one_before_is_refused_until_it_is_accepted(archive: Path) -> None:
    sms_spam.find("auto")
    old = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.write_bytes(zipped(collection(), comment=b"new"))
    new = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert old != new
    COPY.unlink()
    before = tree()
    with pytest.raises(UserError, match="has changed") as refusal:
        sms_spam.find("auto")
    for part in (old, new, f"remove {RECORD}"):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value) and tree() == before
    RECORD.unlink()
    assert len(sms_spam.find("auto")) == 5574
    assert RECORD.read_text().strip() == new


# ----------------------------------------------------------------------------------------- split


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(1003) < 130)


def test_folds_test_on_each_message_once_as_scikit_learn_does(labels: np.ndarray) -> None:
    folds = sms_spam.folds(labels, 5, seed=3)
    expected = StratifiedKFold(5, shuffle=True, random_state=3).split(labels, labels)
    for (known, test), (_, their_test) in zip(folds, expected, strict=True):
        assert np.array_equal(test, their_test)
        assert np.array_equal(np.sort(np.concatenate([known, test])), np.arange(1003))
        assert abs(labels[test].sum() - labels.mean() * len(test)) <= 1
    assert np.array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(1003))


@pytest.mark.parametrize(("ham", "spam", "count"), [(100, 4, 5), (4, 100, 5), (9, 9, 10)])
def test_folds_that_cannot_be_are_refused(ham: int, spam: int, count: int) -> None:
    with pytest.raises(UserError, match="--folds"):
        sms_spam.folds(np.arange(ham + spam) < spam, count, 0)


# -------------------------------------------------------------------------------------- stand-in


def test_the_stand_in_is_always_the_same_and_announced() -> None:
    messages = sms_spam.find("builtin")
    assert messages.builtin and "generated" in messages.note and messages.name == "built-in stand-in"
    assert len(messages) == len(set(messages.texts)) == 2000 and messages.labels.sum() == 260
    assert list(zip(messages.texts, messages.labels, strict=True)) == generate_messages()
    assert not any(mark in text for text in messages.texts for mark in "{}|#\t\n")
    words = [len(text.split()) for text in messages.texts]
    assert min(words) == 1 and 30 < max(words) <= 45


def test_the_stand_in_can_be_learned_but_not_from_words_alone() -> None:
    messages = sms_spam.find("builtin")
    texts = np.array(messages.texts, dtype=object)
    right = []
    for train, test in sms_spam.folds(messages.labels, 5, seed=0):
        model = make_pipeline(CountVectorizer(), MultinomialNB()).fit(texts[train], messages.labels[train])
        right.append(model.predict(texts[test]) == messages.labels[test])
        assert len(test) == 400
    assert 0.92 < np.mean(right) < 0.98  # the majority rate is 0.87


def test_torchvision_is_not_needed() -> None:
    code = "import sys, common.datasets.sms_spam; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
