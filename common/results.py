"""The results of all runs: one .json per script, and from these README's table and the gallery.

    python -m common.results

Every PNG carries its title, its caption and the command that made it, and the gallery reads them from there.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from common.cli import UserError, command, commit, device_name, versions
from common.files import atomic_write, save_json

if TYPE_CHECKING:
    import torch

Scores = dict[str, dict[str, float]]
"""Numbers by method and metric."""

COLUMNS = {  # heading and digits of the metrics that have a usual form
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "detail_db": ("detail, dB", 1),
    "grid": ("grid", 1),
    "low_db": ("low, dB", 1),
    "ms": ("ms a picture", 2),
    "accuracy": ("accuracy", 4),
    "f1": ("F1", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "parameters": ("parameters", 0),
    "FID-MNIST": ("FID-MNIST", 2),
    "rarest": ("rarest class", 3),
    "asked": ("read as asked", 4),
    "training, minutes": ("training, minutes", 1),
    "writing, ms a character": ("writing, ms a character", 2),
    "million parameters": ("million parameters", 2),
}
DEVIATION = "_sd"
"""Ends the name of a metric's standard deviation, which is shown beside it."""


class Described(Protocol):
    """A data set as a results file describes it."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def builtin(self) -> bool:
        """Whether it is the stand-in for data that were not found."""

    @property
    def note(self) -> str:
        """What screen and captions must say about it; the first line alone is for captions."""


@dataclass(frozen=True)
class DataDescription:
    """A data set that has no class of its own."""

    name: str
    builtin: bool = False
    note: str = ""


def save(
    figs: Path,
    script: str,
    config: Any,
    *,
    data: Described,
    count: int,
    metrics: dict[str, Any],
    baselines: dict[str, Any],
    seconds: float,
    device: torch.device,
    **more: Any,
) -> None:
    """Writes `figs/SCRIPT.json`, from which README's table and the gallery are made.

    Args:
        config: the script's dataclass.
        count: how many items the scores were taken on.
        metrics, baselines: numbers, or numbers by method.
        more: whatever else a script has to say.
    """
    results = {
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
    save_json(figs / f"{script}.json", results | more)


def table(scores: dict[str, dict[str, float]], digits: int = 3) -> str:
    """For the screen: methods by rows, metrics by columns; what is infinite is a dash."""
    metrics = {metric: max(11, len(metric) + 2) for metric in next(iter(scores.values()))}
    first = max(15, *(len(name) + 1 for name in scores))
    rows = [" " * first + "".join(f"{metric:>{width}}" for metric, width in metrics.items())]
    for name, row in scores.items():
        numbers = (
            f"{row[metric]:{width}.{digits}f}" if row[metric] < 1e4 else f"{'-':>{width}}"
            for metric, width in metrics.items()
        )
        rows.append(f"{name:{first}}" + "".join(numbers))
    return "\n".join(rows)


# ------------------------------------------------------------------------------ gallery and results table


def publish(figs: Path) -> None:
    """Writes the gallery `figs/index.html`, and the results into the README.md beside `figs`.

    The README keeps all but what stands between its lines `<!-- results -->` and `<!-- /results -->`; one
    without them, or none, is left alone. Both texts follow from `figs/*.json` and the PNGs alone.

    Raises:
        Refused: a .json in `figs` is not a results file; a file cannot be written.
    """
    results = _results(figs)
    with atomic_write(figs / "index.html") as temporary:
        temporary.write_text(_gallery(figs, results), encoding="utf-8")
    readme = figs.resolve().parent / "README.md"
    if not readme.is_file():
        return
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- /results -->")
    if begin and end:
        with atomic_write(readme) as temporary:
            temporary.write_text(before + begin + results_table(figs) + end + after, encoding="utf-8")


def results_table(figs: Path) -> str:
    """What `figs/*.json` say, as Markdown: for each script its run, and its metrics beside the baselines."""
    parts = []
    for result in _results(figs):
        head, *rows = _table(result)
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        facts = " · ".join(_facts(result))
        table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
        parts.append(f"**{result['script']}** · {facts} · `{result['command']}`\n\n{table}\n")
    return "\n".join(parts) or "No script has been run yet.\n"


def _results(figs: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(figs.glob("[!.]*.json")):  # a name with a dot is left over from a killed run
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            _table(result), _facts(result), result["command"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no results file ({error}); remove it") from None
        found.append(result)
    return found


def _facts(result: dict[str, Any]) -> list[str]:
    data = result["data"]
    stand_in = ", built-in stand-in" if data["builtin"] else ""
    return [
        f"{data['name']} ({data['count']:,}{stand_in})",
        f"{result['seconds'] / 60:.1f} minutes",
        str(result["device"]),
        f"commit {result['commit']}",
    ]


def _table(result: dict[str, Any]) -> list[list[str]]:
    """Heading, metrics, baselines. A script with one result may leave its name out: {"accuracy": 0.99}."""
    scores = result["metrics"]
    if not all(isinstance(values, dict) for values in scores.values()):
        scores = {"this run": scores}
    rows: Scores = {**scores, **result["baselines"]}
    found = dict.fromkeys(metric for values in rows.values() for metric in values)
    metrics = [metric for metric in found if not metric.endswith(DEVIATION)]
    table = [["method", *(COLUMNS.get(metric, (metric, 0))[0] for metric in metrics)]]
    for name, values in rows.items():
        cells = []
        for metric in metrics:
            deviation = values.get(metric + DEVIATION)
            beside = f" ± {format_number(metric, deviation)}" if deviation else ""
            cells.append(format_number(metric, values.get(metric)) + beside)
        table.append([name, *cells])
    return table


def format_number(metric: str, value: float | None) -> str:
    """As the metric is usually written; a dash for what is missing or has no meaning."""
    # nearest's `grid` is a division by (nearly) zero
    if value is None or not math.isfinite(value) or abs(value) > 1e6:
        return "–"
    text = f"{value:.{COLUMNS[metric][1]}f}" if metric in COLUMNS else f"{value:.4g}"
    return text.replace("-", "−")


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Figures and results</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; }}
img {{ max-width: 100%; }}
figure {{ margin: 2.5em 0; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child {{ text-align: left; }}
</style>
<h1>Figures and results</h1>
{results}
{figures}
</html>
"""


def _gallery(figs: Path, results: list[dict[str, Any]]) -> str:
    sections = []
    for result in results:
        head, *rows = _table(result)
        cells = [
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, row in [("th", head), *(("td", row) for row in rows)]
        ]
        note = result["data"].get("note") or ""
        sections.append(
            f"<h2>{html.escape(str(result['script']))}</h2>\n"
            f"<p>{html.escape(' · '.join(_facts(result)))}<br>{html.escape(note)}</p>\n"
            f"<p><code>{html.escape(result['command'])}</code></p>\n"
            "<table>\n" + "\n".join(cells) + "\n</table>"
        )
    figures = []
    for path in sorted(figs.glob("[!.]*.png")):
        with Image.open(path) as image:
            texts = {
                key: html.escape(str(image.info.get(key, ""))) for key in ("Title", "Description", "Source")
            }
        name = html.escape(path.name)
        figures.append(
            f'<figure id="{name}">\n<a href="{name}"><img src="{name}" alt="{texts["Title"]}"></a>\n'
            f"<figcaption>{texts['Description']}<br><code>{texts['Source']}</code></figcaption>\n</figure>"
        )
    return PAGE.format(results="\n".join(sections), figures="\n".join(figures))


if __name__ == "__main__":
    publish(Path("figs"))
