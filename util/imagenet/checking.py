"""Whether all is there that was extracted or indexed, and whether it can be decoded."""

from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from common.cli import UserError
from common.datasets.imagenet_archive import check_complete, image_name, open_index
from util.imagenet.jobs import describe
from util.imagenet.shrinking import ROWS, start_worker, undecodable
from util.imagenet.sources import parse_name
from util.imagenet.tars import BLOCK, Archive, parse
from util.imagenet.unpacking import measure, read_manifest


def check(target: Path, decode: bool, workers: int) -> bool:
    """Whether all is there and right; prints what is not.

    Args:
        target: a folder that was filled, or an archive with its index.
        decode: whether to decode every image too.
    """
    if not target.exists():
        raise UserError(f"{target} does not exist; name a filled folder, or an archive with its index")
    if not target.is_dir():
        name, problems = _check_index(target, decode, workers)
        reports = {name: problems}
    else:
        folders = [folder for split in ("train", "val") if (folder := target / split).is_dir()] or [target]
        reports = dict(_check_folder(folder, decode, workers) for folder in folders)
    for name, problems in reports.items():
        print(*problems, f"{name}: {f'{len(problems)} wrong' if problems else 'right'}", sep="\n")
    return not any(reports.values())


def _check_folder(folder: Path, decode: bool, workers: int) -> tuple[str, list[str]]:
    """What is in it, and what is wrong: compares counts and bytes of every class with the manifest."""
    about = check_complete(folder)
    if about is None:
        raise UserError(f"{folder} was not made by unzip_imagenet; there is nothing to compare it with")
    by_class = read_manifest(folder)["by class"]
    right = {wnid: (entry["pictures"], entry["bytes"]) for wnid, entry in by_class.items()}
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    problems = []
    for wnid in sorted(set(right) | there):
        now, then = measure(folder / wnid), right.get(wnid, (0, 0))
        if now != then:
            instead = f"instead of {then[0]:,}, {then[1]:,}"
            problems.append(f"{folder / wnid}: {now[0]:,} images, {now[1]:,} bytes {instead}")
    if decode:
        problems += _decode(workers, [(folder / wnid, 0) for wnid in sorted(there)])
    return f"{folder}: {describe(about)}", problems


def _check_index(path: Path, decode: bool, workers: int) -> tuple[str, list[str]]:
    """What is in it, and what is wrong: compares every row with the header in the archive."""
    rows, about = open_index(path)
    with closing(Archive(path, chunk=BLOCK)) as archive:
        for row in rows:
            offset, size, label, number = row.item()
            archive.seek(offset - BLOCK)
            member = parse(archive, archive.position, archive.peek(BLOCK))
            wnid = about["wnids"][label]
            name = image_name(about["split"], wnid, number)
            parsed = parse_name(member.name, {number: wnid})
            if parsed != (about["split"], wnid, name, number) or member.size != size:
                return str(path), [f"the index has {name} at byte {offset:,}, where {member.name} is"]
    parts = [(path, first) for first in range(0, len(rows), ROWS)]
    problems = _decode(workers, parts) if decode else []
    return f"{path}: {len(rows):,} images of {len(about['wnids']):,} classes", problems


def _decode(workers: int, parts: list[tuple[Path, int]]) -> list[str]:
    """What cannot be decoded, by worker processes."""
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker) as pool:
        results = pool.map(undecodable, *zip(*parts, strict=True))
        return list(chain.from_iterable(tqdm(results, "decoding", len(parts), unit="part", disable=None)))
