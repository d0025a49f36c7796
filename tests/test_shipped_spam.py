"""The spam filters that come with the repository: small, described by their card, and as good as it says."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import lstm
import multi_layer_rnn
from common import weights
from common.datasets import sms_spam
from common.evaluation import spam as evaluation
from common.inference import spam

REAL = Path(__file__).parents[2] / "shared" / "data" / "sms" / "SMSSpamCollection"
SCRIPTS = [lstm, multi_layer_rnn]

each = pytest.mark.parametrize("script", SCRIPTS, ids=["LSTM", "RNN"])


@each
def test_it_is_small_and_the_card_says_what_it_holds(script: ModuleType) -> None:
    path = script.SHIPPED
    assert path.stat().st_size <= 8e6
    _, about = weights.load(path)
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    for fact in (about["command"], about["commit"], f"{about['test messages']:,} messages"):
        assert fact in card
    assert f"| {script.KIND} | {about['scores']['accuracy']:.4f} | {about['scores']['f1']:.3f} |" in card


@each
def test_it_knows_spam_when_it_sees_it(script: ModuleType) -> None:
    ask = spam.load(script.SHIPPED, script.KIND, script.build).probabilities
    assert ask(["URGENT! You have won a 1 week FREE membership. Txt CLAIM to 81010 now, £1.50/msg"])[0] > 0.9
    assert ask(["ok see you at the station at 7, i'll bring the book", "sorry, can't talk now"]).max() < 0.1


@each
def test_odd_bytes_are_no_spam(
    script: ModuleType, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "in.txt").write_bytes(b"caf\xe9 \xff\nnul\0byte \x1b[31m\n")
    assert (
        spam.predict(spam.load(script.SHIPPED, script.KIND, script.build), str(tmp_path / "in.txt"), False)
        == 0
    )
    latin, control = capfdbinary.readouterr().out.decode().splitlines()
    assert latin.endswith("ham\tcafé ÿ") and control.endswith("ham\tnul\ufffdbyte \ufffd[31m")


@pytest.mark.skipif(not REAL.exists(), reason="the collection is not at hand")
@each
def test_its_score_on_messages_that_it_has_not_seen(script: ModuleType) -> None:
    data = sms_spam.find(str(REAL))
    test = data.part(sms_spam.folds(data.labels, 5, seed=0)[0][1])
    shipped = spam.load(script.SHIPPED, script.KIND, script.build)
    score = evaluation.score_answers(test.labels, shipped.probabilities(test.texts) >= 0.5)
    said = shipped.about["scores"]
    # the weights are kept in half precision: one message may fall on the other side
    assert score["accuracy"] == pytest.approx(said["accuracy"], abs=1.5 / len(test))
    assert score["accuracy"] > 0.985 and score["f1"] > 0.94
    order = np.random.default_rng(0).permutation(100)
    texts = [test.texts[i] for i in order]
    assert np.allclose(
        shipped.probabilities(texts), shipped.probabilities(test.texts[:100])[order], atol=1e-9
    )
