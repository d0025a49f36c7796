"""How many messages a second `--predict` answers, beside the linear SVM on characters; and its memory.

    python -m tests.bench_spam                    # 100,000 lines for each of the two scripts, minutes

The lines are those of the built-in stand-in, or of `--data`, again and again with a number added, so that no
two are the same. The SVM answers the same lines in one call, the nets as `python lstm.py --predict` does.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from common.datasets import sms_spam

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--lines", type=int, default=100_000)
    arguments = parser.parse_args()
    messages = sms_spam.find(arguments.data)
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
