"""How many messages a second `--predict` answers, beside the linear SVM on characters; and its memory. And
what nets and baselines are worth on spam that is unlike all that they were trained on.

    python -m tests.bench_spam                    # 100,000 lines for each of the two scripts, minutes
    python -m tests.bench_spam --families --data auto     # families of spam left out; some minutes

The lines are those of the built-in stand-in, or of `--data`, again and again with a number added, so that no
two are the same. The SVM answers the same lines in one call, the nets as `python lstm.py --predict` does.

Families of spam are clusters by their words: prizes, ringtones, dating. Each fifth of the families is left
out of training once and found among ham of a fifth that was left out too; then without its numbers, which
today's spam does not name. A row "logit alone" has the same net, calibrated without the length.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC

import lstm
import multi_layer_rnn
from common import cli
from common.datasets import sms_spam
from common.evaluation import spam as evaluation
from common.training.run import Run

ROOT = Path(__file__).parents[1]


def predict(script: str, path: Path) -> tuple[float, float]:
    """Seconds, and the largest memory of the process in MB."""
    start = time.perf_counter()
    code = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, f"{script}.py", "--predict", str(path), "--weights", "shipped"]
    result = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return time.perf_counter() - start, float(result.stderr.split()[-1])


def family_of(texts: list[str]) -> np.ndarray:
    """The number, 0 to 13, of the cluster of each text by its words and pairs of words; a digit is a 0."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=3, stop_words="english")
    topics = TruncatedSVD(30, random_state=0)
    clusters = KMeans(14, n_init=10, random_state=0)
    return make_pipeline(words, topics, Normalizer(), clusters).fit_predict(
        [re.sub(r"\d", "0", text.lower()) for text in texts]
    )


def left_out(messages: sms_spam.Messages, n_models: int, seed: int) -> pd.DataFrame:
    """Mean scores, a row for each method, on families of spam that it was not trained on."""
    ham, spam = np.flatnonzero(~messages.labels), np.flatnonzero(messages.labels)
    families = GroupKFold(5).split(spam, groups=family_of(messages.part(spam).texts))
    rows = []
    torch.set_num_threads(1)
    for (ham_in, ham_out), (spam_in, spam_out) in zip(
        KFold(5, shuffle=True, random_state=seed).split(ham), families, strict=True
    ):
        train = messages.part(np.sort(np.concatenate([ham[ham_in], spam[spam_in]])))
        test = messages.part(np.concatenate([ham[ham_out], spam[spam_out]]))
        pairs = zip(test.texts, test.labels, strict=True)
        bare = [re.sub(r"\S*[\d£]\S*", "", text) if is_spam else text for text, is_spam in pairs]
        everything = test.texts + bare
        odds = evaluation.simple_log_odds(train.texts, train.labels, everything, seed)
        for script in (multi_layer_rnn, lstm):
            cli.seed_everything(seed)
            config = script.Config(n_models=n_models, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                run = Run(Path(folder), settings={}, device=torch.device("cpu"), precision="float32")
                spam_filter = script.fit(config, script.build, train, run, "families")
                run.finish()
            odds[script.KIND] = spam_filter.log_odds(everything)
            odds[f"{script.KIND}, logit alone"] = replace(spam_filter, length_scale=0).log_odds(everything)
        for method, values in odds.items():
            for kind, part in (("left out", values[: len(test)]), ("without numbers", values[len(test) :])):
                score = evaluation.score_ranking(test.labels, part)
                rows.append({"method": method, "spam": kind} | score)
    return pd.DataFrame(rows).groupby(["spam", "method"], sort=False).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--families", action="store_true", help="leave families of spam out of training")
    parser.add_argument("--n-models", type=int, default=1, help="with --families: models of each ensemble")
    parser.add_argument("--seed", type=int, default=0, help="with --families: of ham's parts and of training")
    arguments = parser.parse_args()
    messages = sms_spam.find(arguments.data)
    if arguments.families:
        scores = left_out(messages, arguments.n_models, arguments.seed)
        for kind, table in scores.groupby(level="spam", sort=False):
            print(f"\nSpam {kind}\n\n{table.droplevel('spam').to_markdown(floatfmt='.3f')}")
        return
    lines = [f"{messages.texts[i % len(messages)]} {i}" for i in range(arguments.lines)]

    svm = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)), LinearSVC())
    svm.fit(messages.texts, messages.labels)
    start = time.perf_counter()
    svm.predict(lines)
    simple = len(lines) / (time.perf_counter() - start)
    print(f"SVM on characters: {simple:,.0f} messages/s")
    with tempfile.TemporaryDirectory() as folder:
        whole, tenth = Path(folder) / "lines.txt", Path(folder) / "tenth.txt"
        whole.write_text("\n".join(lines) + "\n", encoding="utf-8")
        tenth.write_text("\n".join(lines[: len(lines) // 10]) + "\n", encoding="utf-8")
        for script in ("multi_layer_rnn", "lstm"):
            few, little = predict(script, tenth)
            seconds, memory = predict(script, whole)
            rate = 0.9 * len(lines) / (seconds - few)  # without the start
            print(
                f"{script}: {rate:,.0f} messages/s, {rate / simple:.2f} times the SVM; "
                f"{memory:,.0f} MB at most, {little:,.0f} MB for a tenth of the lines"
            )


if __name__ == "__main__":
    main()
