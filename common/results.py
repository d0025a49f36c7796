"""The results of all runs: one .json per script, and what is made of them.

    python -m common.results      # README's table, figs/RESULTS.md and the gallery figs/index.html

These three follow from `figs/*.json` and from the texts in the PNGs beside them, and from nothing else.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Container
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import (
    UserError,
    anywhere,
    check_empty,
    command,
    commit,
    device_name,
    one_line,
    prepare_output,
    versions,
)
from common.files import atomic_write, cause_of, parse_json, save_json

if TYPE_CHECKING:
    import pandas
    import torch

Scores = dict[str, dict[str, Any]]
"""Numbers by method and metric; None for what could not be measured."""

Result = dict[str, Any]
"""A results file as it is shown, see `read`."""

HEADINGS = {
    "psnr": "PSNR, dB",
    "lpips": "LPIPS",
    "ssim": "SSIM",
    "detail_db": "detail, dB",
    "repeated": "repeated, %",
    "lr_psnr": "LR PSNR, dB",
    "ms": "ms an image",
    "f1": "F1",
}
DIGITS = (  # after the point: none, one, two, ...; other metrics have four digits in all
    ("parameters",),
    ("detail_db", "lr_psnr", "training, minutes"),
    ("psnr", "checkerboard", "repeated", "ms", "FID-MNIST", "writing, ms a character", "million parameters"),
    ("lpips", "ssim", "f1", "precision", "recall", "min_class_share"),
    ("accuracy", "class_accuracy"),
)
HEADLINES = {  # by script in the order of README: a metric, our method, and what it has to beat
    "single_layer_rnn": [("noisy: one-step MSE", "RNN", "AR(2)"), ("clean: forecast RMSE", "RNN", "AR(2)")],
    "multi_layer_rnn": [("f1", "RNN", "SVM on characters"), ("accuracy", "RNN", "majority class")],
    "lstm": [("f1", "LSTM", "SVM on characters"), ("accuracy", "LSTM", "majority class")],
    "gan_mnist": [("FID-MNIST", "GAN", "real, blurred"), ("recall", "GAN", "real")],
    "gan_upscale": [("lpips", "GAN", "linear filter"), ("psnr", "fidelity", "linear filter")],
}
HEAD = """\
Written by `python -m common.results` from the `.json` files beside it. The figures: [index.html](index.html).

README explains [most numbers](../README.md#results-and-what-the-numbers-mean-detail_db-lpips-f1). The others:

- **bilinear / bicubic**: of two numbers the first is of small images (LR) that bilinear made, the second of
  those that bicubic made.
- **SSIM**: how alike local structure is, up to 1. **LR PSNR**: the result, made small again, against the
  input.
- **checkerboard**: whether detail stands in a pattern of dots, which passes for sharpness: photos have 1.1,
  what one can see 10. **repeated**: share of the finest detail that is the same in all blocks of 7x7 pixels,
  rings on a grid for example: photos have 0.1 %.
- **class accuracy**: share of the generated characters that the evaluator takes for what they should be; in
  tables of methods they are 1,000, each in turn, else each comes as often as in the data; merged, those of
  one shape, as `0Oo`, count as one. **min class share**: of the class that is generated least often.
- **precision** of characters: share of the generated ones that look real.
- **amplitude drift**: how far the amplitudes of forecasts are off at their end.
- A dash: not measured, or without meaning. LPIPS has one where its 5 MB cannot be fetched.
"""
DEVIATION = "_sd"  # ends the name of a metric's standard deviation, which is shown beside it
NONE_YET = "No script has been run yet.\n"
BICUBIC = "_bicubic"  # ends that of a metric on images that bicubic made small; beside it, bilinear's
BOTH = "LR: bilinear / bicubic"
COMPARED = {"psnr": "PSNR", "lpips": "LPIPS", "ms": "ms"}
"""The metrics that stand beside the gallery's slider, and their headings there."""


def printable(text: str, characters: Container[int] | None = None) -> str:
    """`text` with escapes for control characters, bytes that are no UTF-8, and all but the `characters`."""

    def is_shown(letter: str) -> bool:
        return letter == "\n" or (letter.isprintable() and (not characters or ord(letter) in characters))

    return "".join(c if is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def save(
    figs: Path,
    script: str,
    config: Any,
    *,
    data: Any,
    count: int,
    metrics: dict[str, Any],
    baselines: dict[str, Any],
    seconds: float,
    device: torch.device,
    **more: Any,
) -> None:
    """Writes `figs/SCRIPT.json`.

    Args:
        data: anything with `name`, what people call it, `builtin`, whether it is the stand-in for data that
            were not found, and `note`, what screen and captions must say about it; `count` of its items were
            scored.
        metrics, baselines: numbers, or numbers by method.

    Raises:
        UserError: the file cannot be written.
    """
    result = {
        "script": script,
        "command": command(),
        "config": asdict(config) | {"data": _anywhere(config.data)},
        "data": {"name": data.name, "count": count, "builtin": data.builtin, "note": data.note},
        "metrics": metrics,
        "baselines": baselines,
        "seconds": round(seconds),
        "device": device_name(device),
        "versions": versions(),
        "commit": commit(),
    }
    save_json(figs / f"{script}.json", result | more)


def _anywhere(data: Any) -> Any:
    """--data, of one place or of several, as it is said on any machine."""
    return anywhere.get(data, data) if isinstance(data, str) else [anywhere.get(of, of) for of in data]


def where(path: Path, data: Any) -> str:
    """Where a figure is, for the closing line, which says so where `data.builtin` tells of the stand-in."""
    return f"{path}, of the built-in stand-in and not of real data" if data.builtin else str(path)


def table(scores: Scores, digits: int = 3) -> str:
    """For the screen: methods by rows, metrics by columns; what is infinite or missing is a dash."""
    import pandas

    def text(_: str, value: float | None) -> str:
        return "-" if value is None or not value < 1e4 else f"{value:.{digits}f}"

    frame = pandas.DataFrame(columns(scores, text), [f"{name:14}" for name in scores])
    return frame.rename_axis(columns=BOTH if _has_both(scores) else None).to_string(col_space=11)


def columns(scores: Scores, text: Callable[[str, float | None], str]) -> dict[str, list[str]]:
    """By metric, a cell for each method: its number, or that for bilinear / that for bicubic."""
    metrics = dict.fromkeys(metric for values in scores.values() for metric in values)
    cells = {}
    for metric in metrics:
        if not metric.endswith(BICUBIC):
            names = [name for name in (metric, metric + BICUBIC) if name in metrics]
            numbers = ([text(metric, values.get(name)) for name in names] for values in scores.values())
            cells[metric] = [" / ".join(both) for both in numbers]
    return cells


def _has_both(scores: Scores) -> bool:
    return any(metric.endswith(BICUBIC) for values in scores.values() for metric in values)


def format_number(metric: str, value: float | None) -> str:
    """As the metric is usually written; a dash for what is missing or has no meaning."""
    # nearest's `checkerboard` is a division by (nearly) zero
    if value is None or not math.isfinite(value) or abs(value) > 1e6:
        return "–"
    usual = (f".{digits}f" for digits, metrics in enumerate(DIGITS) if metric in metrics)
    return format(value, next(usual, ".4g")).replace("-", "−")


# ------------------------------------------------------------------------- README, RESULTS.md and gallery


def publish(figs: Path = Path("figs")) -> None:
    """Write README's table, RESULTS.md and the gallery.

    Args:
        figs: Folder of the results files.

    Raises:
        UserError: there is no such folder, a .json in it is no results file, or a file cannot be written.
    """
    for path, text in pages(figs).items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of figures


def pages(figs: Path) -> dict[Path, str]:
    """What `publish` writes, by path.

    The README.md beside `figs` keeps all but what stands between `<!-- results -->` and `<!-- /results -->`,
    and between `<!-- SCRIPT -->` and `<!-- /SCRIPT -->`; one without them, or none, is left alone.
    """
    folders = _parts(figs)
    runs = {heading: read(folder) for heading, folder in folders.items()}
    (real, tables), *apart = [(heading, results_table(of)) for heading, of in runs.items()]
    results = f"# {real}\n{HEAD}\n{tables}"
    results += "".join(f"\n# {heading}\n\n{table}" for heading, table in apart)
    texts = {figs / "RESULTS.md": results, figs / "index.html": _gallery(figs, folders, runs)}
    readme = figs.resolve().parent / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        for name, now in _headlines(runs[real]).items():
            between = re.compile(f"(?<=<!-- {name} -->).*?(?=<!-- /{name} -->)", re.DOTALL)
            text = between.sub(now.replace("\\", r"\\"), text)
        texts[readme] = text
    return texts


def results_table(runs: list[Result]) -> str:
    """What the results files say, as Markdown: each run, and its metrics beside the baselines."""
    parts = []
    for run in runs:
        head = f"**{run['script']}** · {run['facts']} · `{run['command']}`"
        parts.append(f"{head}\n\n{_markdown(run['table'])}\n")
    return "\n".join(parts) or NONE_YET


def _headlines(runs: list[Result]) -> dict[str, str]:
    """What README says: of each script the first of its `HEADLINES`, and as `results` a table of them all."""
    import pandas

    of_script, rows, texts = {run["script"]: run for run in runs}, [], {}
    for script in (script for script in HEADLINES if script in of_script):
        run = of_script[script]
        lines = [
            (HEADINGS.get(metric, metric), *(_number(run["scores"], name, metric) for name in pair))
            for metric, *pair in HEADLINES[script]
        ]
        metrics, ours, theirs = map("<br>".join, zip(*lines, strict=True))
        texts[script] = "{}: **{}**, {}".format(*lines[0])
        row = {"script": script, "score": metrics, "here": ours, "beside it": theirs}
        rows.append(row | {"scored on": run["data"], "command": f"`{run['command']}`"})
    table = f"{_markdown(pandas.DataFrame(rows), 'left')}\n" if rows else NONE_YET
    return texts | {"results": f"\n{table}"}


def _number(scores: Scores, name: str, metric: str) -> str:
    values = scores.get(name, {})
    return f"{name} {format_number(metric, values.get(metric))}{_spread(values, metric)}"


def _spread(values: dict[str, Any], metric: str) -> str:
    """Its standard deviation, where there is one."""
    deviation = values.get(metric + DEVIATION)
    return f" ± {format_number(metric, deviation)}" if deviation else ""


def _markdown(cells: pandas.DataFrame, numbers: str = "right") -> str:
    align = ["left"] + [numbers] * (len(cells.columns) - 1)
    cells = cells.replace(r"\|", "&#124;", regex=True)
    return cells.to_markdown(index=False, disable_numparse=True, colalign=align)


def _parts(figs: Path) -> dict[str, Path]:
    """By heading the folders of figures and results: of real data, and of runs on a stand-in for it."""
    apart = figs / "builtin"
    return {"Results": figs} | ({"Results on the built-in stand-in": apart} if apart.is_dir() else {})


def _gallery(figs: Path, folders: dict[str, Path], runs: dict[str, list[Result]]) -> str:
    import jinja2

    parts = {heading: _experiments(figs, folder, runs[heading]) for heading, folder in folders.items()}
    template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template).render(parts=parts, compared=COMPARED.values())


def _experiments(figs: Path, folder: Path, runs: list[Result]) -> dict[str, list[dict[str, Any]]]:
    """By script, the figures and the results of each of its commands; last, figures without results."""
    commands: dict[str, dict[str, Any]] = {}
    for run in runs:
        block = commands.setdefault(run["command"], {"runs": [], "figures": []})
        block["runs"].append(run | {"sheets": _sheets(figs, folder, run)})
    for figure in _figures(figs, folder):
        commands.setdefault(figure["Source"], {"runs": [], "figures": []})["figures"].append(figure)

    # what can be looked at comes first, and in README last
    scripts: dict[str, list[dict[str, Any]]] = {script: [] for script in reversed(HEADLINES)}
    for words, block in commands.items():
        name = re.search(r"(\w+)\.py", words)
        scripts.setdefault(name[1] if name else "others", []).append(block)
    for script, blocks in scripts.items():  # first what is called like the script, and not after a mode of it
        blocks.sort(key=lambda block: [run["script"] for run in block["runs"]] != [script])
    return {script: blocks for script, blocks in scripts.items() if blocks}


def _figures(figs: Path, folder: Path) -> list[dict[str, Any]]:
    """The figures in `folder` with the texts that they carry; the film of a training is the first of them."""
    from PIL import Image

    def facts(path: Path) -> dict[str, Any]:
        with Image.open(path) as image:
            texts = {name: image.info.get(name, "") for name in ("Title", "Description", "Source")}
            size = {"width": image.width, "height": image.height}
            return {"name": path.relative_to(figs).as_posix()} | texts | size

    figures: list[dict[str, Any]] = []
    for path in sorted(folder.glob("[!.]*.png")):
        figures.append(facts(path))
        if (film := path.with_suffix(".gif")).is_file():  # beside the training's curves, without texts
            texts = {"Title": "While it trains", "Description": "The same noise at ever later steps."}
            figures.insert(0, facts(film) | texts | {"Source": figures[-1]["Source"]})
    return figures


def _sheets(figs: Path, folder: Path, run: Result) -> list[dict[str, Any]]:
    """For the slider: the images `folder`/SCRIPT/METHOD.webp with the method's numbers, the original last."""
    from PIL import Image

    paths, sheets = {path.stem: path for path in (folder / run["script"]).glob("[!.]*.webp")}, []
    for method in (*run["before and after"], "original"):
        if method in paths:
            with Image.open(paths[method]) as image:
                photos, src = image.height // image.width, paths[method].relative_to(figs).as_posix()
            scores = run["scores"].get(method, {})
            numbers = [format_number(metric, scores.get(metric)) for metric in COMPARED]
            sheets.append({"method": method, "src": src, "photos": photos, "numbers": numbers})
    return sheets


def read(figs: Path) -> list[Result]:
    """The results files in a folder, each with its `facts` in a line, its `scores` and their `table`.

    Raises:
        UserError: there is no such folder, or a .json in it is no results file.
    """
    if not figs.is_dir():
        raise UserError(f"there is no folder {figs}; run a script first, or name another with --figs")
    runs = []
    for path in sorted(figs.glob("[!.]*.json")):  # a name with a dot is left over from a killed run
        try:
            run = parse_json(path.read_text(encoding="utf-8"))
            data, stand_in = run["data"], ", built-in stand-in" if run["data"]["builtin"] else ""
            facts = f"{data['name']} ({data['count']:,}{stand_in}) · {run['seconds'] / 60:.1f} minutes"
            facts += f" · {run['device']} · commit {run['commit']}"
            texts = {"script": run["script"], "command": run["command"], "facts": facts}
            texts |= {"data": f"{data['name']} ({data['count']:,})"}
            shown = {key: printable(text).replace("\n", r"\n") for key, text in texts.items()}
            note, scores = printable(data.get("note") or ""), _by_method(run["metrics"]) | run["baselines"]
            more = {"count": data["count"], "before and after": [*run["baselines"], *run["metrics"]]}
            runs.append(shown | more | {"note": note, "scores": scores, "table": _table(scores)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no results file ({cause_of(error)}); remove it") from None
    return runs


def _by_method(metrics: dict[str, Any]) -> Scores:
    """A script with one result may leave its name out: {"accuracy": 0.99}."""
    named = all(isinstance(values, dict) for values in metrics.values())
    return metrics if named else {"this run": metrics}


def _table(scores: Scores) -> pandas.DataFrame:
    """A row of texts for each method."""
    import pandas

    table = {f"method ({BOTH})" if _has_both(scores) else "method": list(scores)}
    for metric, cells in columns(scores, format_number).items():
        if not metric.endswith(DEVIATION):
            spreads = [_spread(values, metric) for values in scores.values()]
            heading = HEADINGS.get(metric, metric.replace("_", " "))
            table[heading] = list(map(str.__add__, cells, spreads))
    return pandas.DataFrame(table)


if __name__ == "__main__":
    import tyro

    prepare_output()
    with one_line():
        check_empty(sys.argv[1:])
        tyro.cli(publish, prog="python -m common.results")
