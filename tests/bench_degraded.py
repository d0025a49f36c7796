"""Weights of `--degradation classic` beside those of `wild`, on test images with and without noise and JPEG.

python tests/bench_degraded.py WEIGHTS [WEIGHTS ...] [--data PHOTOS]
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from common import results
from common.datasets import photos
from common.datasets.degradation import downscale
from common.evaluation import lpips
from common.evaluation import upscale as evaluation
from common.inference import upscale as inference


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--data", default="auto")
    flags = parser.parse_args()
    hr, distance = photos.find(flags.data).test.standard_images(), lpips.load(download=True)
    methods: dict[str, evaluation.Method] = {"bicubic": partial(evaluation.upscale_classical, "bicubic")}
    for path in flags.weights:
        nets = inference.load(path, torch.device("cpu"))[0]
        for name in ("fidelity", "gan"):
            methods[f"{path.with_suffix('')}, {name}"] = partial(evaluation.upscale, nets[name])
    scores: results.Scores = {}
    for name, method in methods.items():
        clean = evaluation.score(method(downscale(hr)), hr, lpips=distance)
        spoiled = evaluation.score_spoiled(method, hr, distance)
        both = {"clean": clean, "spoiled": spoiled}
        scores[name] = {f"{m}, {k}": of.get(m) for m in ("psnr", "lpips") for k, of in both.items()}
    print(results.table(scores))


if __name__ == "__main__":
    main()
