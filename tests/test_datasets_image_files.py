"""Which files below a folder are taken for images, what is left out, and how that is said."""

import errno
import os
import socket
from pathlib import Path

import pytest

from common.cli import UserError
from common.datasets import image_files
from common.datasets.image_files import ImageFiles


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(images: ImageFiles) -> list[str]:
    return [os.fsdecode(path) for path in images.paths]


def test_all_kinds_of_images_are_found_in_order_and_hidden_ones_are_not(tmp_path: Path) -> None:
    every = [f"k{suffix}" for suffix in sorted(image_files.SUFFIXES)]
    assert {".avif", ".jfif", ".jpe", ".gif", ".webp"} <= set(image_files.SUFFIXES)
    root = fill(tmp_path, *every, "a/2.JPEG", "a/10.Jpg", "a-b/1.png", "a/b/1.AVIF", ".git/1.png", "._1.jpg")
    images = ImageFiles(root)
    assert names(images) == [*every, "a/10.Jpg", "a/2.JPEG", "a/b/1.AVIF", "a-b/1.png"]
    assert images.left_out_line() == ""


def test_what_is_no_file_is_left_out_and_named_by_reason(tmp_path: Path) -> None:
    root = fill(tmp_path, "1.jpg", "folder.png/2.jpg", "3.heic", "4.HEIF", "notes.txt", "b.txt", "Makefile")
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "socket.webp"))
    (root / "device.tif").symlink_to("/dev/null")
    (root / "broken.jpg").symlink_to("nowhere")
    (root / "self.jpg").symlink_to("self.jpg")
    images = ImageFiles(root)
    assert names(images) == ["1.jpg", "folder.png/2.jpg"]
    line = images.left_out_line()
    assert line.startswith("left out: ") and "\n" not in line
    for part in (
        "3 special files (a pipe, socket or device)",
        "2 broken links",
        "1 folder named like an image",
        "2 HEIC files (pip install pillow-heif, or convert to JPEG)",
        "2 .txt files",
        "1 file without a suffix",
    ):
        assert part in line
    fill(root, *(f"1.x{k}" for k in range(12)))
    assert ImageFiles(root).left_out_line().endswith(", 10 others")


def test_links_are_followed_and_nothing_comes_twice(tmp_path: Path) -> None:
    away = fill(tmp_path / "away", "deep/1.jpg", "2.jpg", "data")
    root = fill(tmp_path / "root", "a/1.jpg", "z/2.jpg", ".store/3.jpg")
    for link, target in {
        "away": away,
        "b-to-z": root / "z",
        "up": root,
        "z/up": tmp_path,
        "copy.jpg": "a/1.jpg",
        "hidden.jpg": ".store/3.jpg",
        "other.jpg": away / "2.jpg",
        "named.jpg": away / "data",
        "named-again.jpg": away / "data",
    }.items():
        (root / link).symlink_to(target)
    images = ImageFiles(root)
    listed = ["hidden.jpg", "named-again.jpg", "a/1.jpg", "away/2.jpg", "away/deep/1.jpg", "z/2.jpg"]
    assert names(images) == listed
    assert "5 links to what is there already" in images.left_out_line()
    assert names(ImageFiles(root, without=away)) == [n for n in listed if not n.startswith("away")]
    (root / "everything").symlink_to("/")
    assert "links to what is there" in ImageFiles(root, without=Path("/")).left_out_line()


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path, "1.jpg", "lost+found/2.jpg", "z/3.jpg")
    scandir, locked = os.scandir, {root / "lost+found"}

    def scan(path: Path):  # type: ignore[no-untyped-def]  # root may list everything: chmod would not do
        if path in locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    images = ImageFiles(root)
    assert names(images) == ["1.jpg", "z/3.jpg"]
    assert "1 folder that cannot be listed: lost+found (Permission denied)" in images.left_out_line()
    locked.add(root)
    with pytest.raises(UserError, match="cannot be listed: Permission denied; name another"):
        ImageFiles(root)


def test_avif_is_left_out_where_pillow_reads_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "SUFFIXES", (".jpg",))
    assert "pip install -U pillow" in ImageFiles(fill(tmp_path, "1.avif")).left_out_line()
