"""The results of all runs: one .json per script, and what is made of them.

    python -m common.results      # README's table, figs/RESULTS.md and the gallery figs/index.html

These three follow from `figs/*.json` and from the texts in the PNGs beside them, and from nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import UserError, command, commit, device_name, versions
from common.files import atomic_write, save_json

if TYPE_CHECKING:
    import pandas
    import torch

Scores = dict[str, dict[str, float]]
"""Numbers by method and metric."""

COLUMNS = {  # heading and digits of the metrics that have a usual form
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "detail_db": ("detail, dB", 1),
    "checkerboard": ("checkerboard", 1),
    "lr_psnr": ("LR PSNR, dB", 1),
    "ms": ("ms an image", 2),
    "accuracy": ("accuracy", 4),
    "f1": ("F1", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "parameters": ("parameters", 0),
    "FID-MNIST": ("FID-MNIST", 2),
    "min_class_share": ("min class share", 3),
    "class_accuracy": ("class accuracy", 4),
    "training, minutes": ("training, minutes", 1),
    "writing, ms a character": ("writing, ms a character", 2),
    "million parameters": ("million parameters", 2),
}
DEVIATION = "_sd"
"""Ends the name of a metric's standard deviation, which is shown beside it."""


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
        config: the script's dataclass.
        data: anything with `name`, what people call it, `builtin`, whether it is the stand-in for data that
            were not found, and `note`, what screen and captions must say about it.
        count: how many items the scores were taken on.
        metrics, baselines: numbers, or numbers by method.
        more: whatever else a script has to say.

    Raises:
        UserError: the file cannot be written.
    """
    result = {
        "script": script,
        "command": command(),
        "config": asdict(config),
        "data": {"name": data.name, "count": count, "builtin": data.builtin, "note": data.note},
        "metrics": metrics,
        "baselines": baselines,
        "seconds": round(seconds),
        "device": device_name(device),
        "versions": versions(),
        "commit": commit(),
    }
    save_json(figs / f"{script}.json", result | more)


def table(scores: Scores, digits: int = 3) -> str:
    """For the screen: methods by rows, metrics by columns; what is infinite is a dash."""
    import pandas

    columns = list(next(iter(scores.values())))
    names = [f"{name:14}" for name in scores]
    numbers = pandas.DataFrame(list(scores.values()), names, columns, dtype=float)
    number = f"{{:.{digits}f}}".format
    return numbers.where(numbers < 1e4).to_string(float_format=number, na_rep="-", col_space=11)


def format_number(metric: str, value: float | None) -> str:
    """As the metric is usually written; a dash for what is missing or has no meaning."""
    # nearest's `checkerboard` is a division by (nearly) zero
    if value is None or not math.isfinite(value) or abs(value) > 1e6:
        return "–"
    text = f"{value:.{COLUMNS[metric][1]}f}" if metric in COLUMNS else f"{value:.4g}"
    return text.replace("-", "−")


# ------------------------------------------------------------------------- README, RESULTS.md and gallery

RESULTS = """# Results
Written by `python -m common.results` from the `.json` files beside it. The figures: [index.html](index.html).

"""

GALLERY = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Figures and results</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; }
figure { margin: 2.5em 0; }
table { border-collapse: collapse; }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
</style>
<h1>Figures and results</h1>
{% for run in runs %}
<h2>{{ run.script }}</h2>
<p>{{ run.facts }}<br>{{ run.data.note or "" }}</p>
<p><code>{{ run.command }}</code></p>
{{ run.table.to_html(index=False, border=0) | safe }}
{% endfor %}
{% for figure in figures %}
<figure id="{{ figure.name }}">
<a href="{{ figure.name }}"><img src="{{ figure.name }}" alt="{{ figure.Title }}"></a>
<figcaption>{{ figure.Description }}<br><code>{{ figure.Source }}</code></figcaption>
</figure>
{% endfor %}
</html>
"""


def publish(figs: Path) -> None:
    """Writes README's table, `figs/RESULTS.md` and the gallery.

    Raises:
        UserError: there is no such folder, a .json in it is no results file, or a file cannot be written.
    """
    for path, text in pages(figs).items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def pages(figs: Path) -> dict[Path, str]:
    """What `publish` writes, by path.

    The README.md beside `figs` keeps all but what stands between its lines `<!-- results -->` and
    `<!-- /results -->`; one without them, or none, is left alone.
    """
    tables = results_table(figs)
    texts = {figs / "RESULTS.md": RESULTS + tables, figs / "index.html": _gallery(figs)}
    readme = figs.resolve().parent / "README.md"
    if readme.is_file():
        between = re.compile("(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)
        texts[readme] = between.sub(lambda _: tables, readme.read_text(encoding="utf-8"), count=1)
    return texts


def results_table(figs: Path) -> str:
    """What `figs/*.json` say, as Markdown: for each script its run, and its metrics beside the baselines."""
    parts = []
    for run in _runs(figs):
        cells = run["table"].replace(r"\|", "&#124;", regex=True)
        align = ["left"] + ["right"] * (len(cells.columns) - 1)
        rows = cells.to_markdown(index=False, disable_numparse=True, colalign=align)
        parts.append(f"**{run['script']}** · {run['facts']} · `{run['command']}`\n\n{rows}\n")
    return "\n".join(parts) or "No script has been run yet.\n"


def _gallery(figs: Path) -> str:
    import jinja2
    import pandas
    from PIL import Image

    figures = []
    for path in sorted(figs.glob("[!.]*.png")):
        with Image.open(path) as image:
            figures.append({"name": path.name, **image.info})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    with pandas.option_context("display.max_colwidth", None):
        return environment.from_string(GALLERY).render(runs=_runs(figs), figures=figures)


def _runs(figs: Path) -> list[dict[str, Any]]:
    """What is shown of each results file."""
    if not figs.is_dir():
        raise UserError(f"there is no folder {figs}; run a script first, or name another with --figs")
    runs = []
    for path in sorted(figs.glob("[!.]*.json")):  # a name with a dot is left over from a killed run
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            shown = {key: result[key] for key in ("script", "command", "data")}
            table = _table(result["metrics"], result["baselines"])
            runs.append(shown | {"facts": _facts(**result), "table": table})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no results file ({error}); remove it") from None
    return runs


def _facts(data: dict[str, Any], seconds: float, device: str, commit: str, **_: Any) -> str:
    stand_in = ", built-in stand-in" if data["builtin"] else ""
    items = f"{data['name']} ({data['count']:,}{stand_in})"
    return f"{items} · {seconds / 60:.1f} minutes · {device} · commit {commit}"


def _table(metrics: dict[str, Any], baselines: Scores) -> pandas.DataFrame:
    """A row of texts for each method; a script with one result may leave its name out: {"accuracy": 0.99}."""
    import pandas

    if not all(isinstance(values, dict) for values in metrics.values()):
        metrics = {"this run": metrics}
    rows: Scores = {**metrics, **baselines}
    names = dict.fromkeys(metric for values in rows.values() for metric in values)
    table = {"method": list(rows)}
    for metric in names:
        if not metric.endswith(DEVIATION):
            heading = COLUMNS.get(metric, (metric,))[0]
            table[heading] = [_cell(metric, values) for values in rows.values()]
    return pandas.DataFrame(table)


def _cell(metric: str, values: dict[str, float]) -> str:
    """A number, with its standard deviation if there is one."""
    deviation = values.get(metric + DEVIATION)
    spread = f" ± {format_number(metric, deviation)}" if deviation else ""
    return format_number(metric, values.get(metric)) + spread


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m common.results", description="Write README's table, RESULTS.md and the gallery."
    )
    parser.add_argument("--figs", type=Path, default=Path("figs"), help="Folder of the results files.")
    try:
        publish(parser.parse_args().figs)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
