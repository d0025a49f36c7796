"""The two spam scripts, by their own main: what they learn, refuse, keep and answer."""

import difflib
import gzip
import importlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.cli import UserError
from common.datasets import sms_spam, vocabulary
from common.datasets.sms_standin import generate_messages
from common.datasets.text import decode
from common.datasets.vocabulary import Vocabulary, collate, ensemble_batches, tokenize
from common.evaluation import spam as evaluation
from common.figures import spam as figures
from common.inference import spam
from common.models.spam import Ensemble, PaddedClassifier, TokenEmbedding, logits, read
from common.studies.spam import MODELS
from common.training import run as run_module

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "sms" / "SMSSpamCollection"
KINDS = {"multi_layer_rnn": "RNN", "lstm": "LSTM"}

both = pytest.mark.parametrize("script", KINDS)


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def run(name: str, folder: Path, **settings: Any) -> int:
    module = script(name)
    config = {"data": "builtin", "figs": folder / "figs", "runs": folder / "runs", **settings}
    return module.main(module.Config(**config))


def results(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "figs" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both scripts once, at their smallest; by script the folder that holds figs/ and runs/."""
    folders = {}
    for name in KINDS:
        folders[name] = tmp_path_factory.mktemp(name)
        assert run(name, folders[name], quick=True) == 0
    return folders


def weights(trained: dict[str, Path], name: str) -> Path:
    return trained[name] / "runs" / f"{name}-quick" / "weights.safetensors"


@pytest.fixture
def answering(trained: dict[str, Path]) -> spam.SpamFilter:
    return spam.load(weights(trained, "lstm"), "LSTM", MODELS["LSTM"])


# ------------------------------------------------------------------------------------------- learning


@both
def test_the_same_seed_gives_the_same_numbers(
    trained: dict[str, Path], script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Path, str, int]] = []
    monkeypatch.setattr(run_module, "DRAW_EVERY", 0.0)
    monkeypatch.setattr(figures, "save_training", lambda *of: drawn.append((*of[:2], of[2][-1]["step"])))
    assert run(script, tmp_path, quick=True) == 0
    assert {of[:2] for of in drawn} == {(tmp_path / "figs" / f"{script}.png", KINDS[script])}
    assert len(drawn) == 13 and drawn[0][2] == 0, "at the start and after each epoch"
    first, second = results(trained[script], script), results(tmp_path, script)
    for part in ("metrics", "baselines", "wrong"):
        assert first[part] == second[part]


@both
def test_it_learns_far_more_than_the_majority_class(trained: dict[str, Path], script: str) -> None:
    result = results(trained[script], script)
    kind = KINDS[script]
    net, majority = result["metrics"][kind], result["baselines"]["majority class"]
    assert majority["accuracy"] == pytest.approx(0.87) and majority["f1"] == 0
    assert net["accuracy"] > majority["accuracy"] + 0.06 and net["f1"] > 0.7
    assert set(result["baselines"]) == {
        "majority class",
        "naive Bayes",
        "SVM on words",
        "SVM on characters",
    }
    assert result["data"] == {**result["data"], "name": "built-in stand-in", "count": 1000, "builtin": True}


def elsewhere(folder: Path) -> list[str]:
    """Two files of one class each: 60 messages that were never seen, some twice, and 40."""
    seen = generate_messages()
    ham = [f"ham\t{text}, my dear" for text, is_spam in seen if not is_spam][:60]
    spam = [f"spam\tdear customer {text}" for text, is_spam in seen if is_spam][:40]
    for name, lines in {"ham.txt": ham + ham[:5], "spam.txt": spam}.items():
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return [str(folder / "ham.txt"), str(folder / "spam.txt")]


@both
def test_a_filter_is_scored_elsewhere_beside_baselines(
    trained: dict[str, Path], script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = elsewhere(tmp_path)
    folder = {"runs": trained[script] / "runs", "figs": tmp_path / "figs"}
    assert run(script, tmp_path, quick=True, test_on=tuple(files), **folder) == 0
    result = results(tmp_path, f"{script}_elsewhere")
    assert result["data"]["count"] == 100 and "5 of 105 messages repeat" in result["data"]["note"]
    assert result["data"]["builtin"] and result["data"]["name"] == "ham.txt and spam.txt"
    assert set(result["baselines"]) == {"majority class", "naive Bayes", "SVM on words", "SVM on characters"}
    assert result["baselines"]["majority class"]["AUC"] == 0.5
    for method in (KINDS[script], "SVM on characters"):
        (score,) = (rows[method] for rows in (result["metrics"], result["baselines"]) if method in rows)
        assert score["AUC"] > 0.8 and 0 <= score["false_alarms"] < score["recall"]
    assert (tmp_path / "figs" / f"{script}_elsewhere.png").stat().st_size > 20_000
    last = capsys.readouterr().out.splitlines()[-1]
    assert "at 1 %" in last and "SVM on characters" in last and last.endswith("not of real data")


def test_nobody_is_scored_on_what_was_trained_on(tmp_path: Path) -> None:
    data = sms_spam.find("builtin")
    train, test = (data.part(index) for index in sms_spam.folds(data.labels, 5, 0)[0])
    path = tmp_path / "all.tsv"
    rows = zip(data.labels, data.texts, strict=True)
    path.write_text(
        "".join(f"{'spam' if spam else 'ham'}\t{text}\n" for spam, text in rows), encoding="utf-8"
    )
    left = sms_spam.find_elsewhere([str(path)], train)
    assert sorted(left.texts) == sorted(test.texts) and "1,600 of 2,000 messages" in left.note


@pytest.mark.parametrize(
    ("files", "config", "said"),
    [
        (["nowhere.csv"], {}, ("--test-on nowhere.csv", "does not exist")),
        (["{}/spam.txt"], {}, ("--test-on", "40 messages, 40 of them spam", "add a file")),
        (["{}/ham.txt", "{}/spam.txt"], {"weights": "shipped"}, ("4,136 messages of SMS", "800", "--data")),
        (["{}/ham.txt"], {"folds": 5}, ("--folds means nothing with --test-on",)),
        (["{}/ham.txt"], {"predict": "-"}, ("--predict and --test-on are two things",)),
    ],
)
def test_what_cannot_be_scored_elsewhere_is_refused(
    trained: dict[str, Path], files: list[str], config: dict[str, Any], said: tuple[str, ...], tmp_path: Path
) -> None:
    elsewhere(tmp_path)
    folder = {"runs": trained["lstm"] / "runs", "quick": "predict" not in config, "figs": tmp_path / "figs"}
    with pytest.raises(UserError) as refused:
        run("lstm", tmp_path, test_on=tuple(file.format(tmp_path) for file in files), **folder | config)
    assert all(part in str(refused.value) for part in said) and "\n" not in str(refused.value)
    assert not (tmp_path / "figs").exists()


@both
def test_mistakes_are_named_by_line_and_never_by_text(trained: dict[str, Path], script: str) -> None:
    result = results(trained[script], script)
    kind = KINDS[script]
    texts = generate_messages()
    assert len(result["wrong"]) == round(200 * (1 - result["metrics"][kind]["accuracy"]))
    for wrong in result["wrong"]:
        assert wrong["is"] == ("spam" if texts[wrong["line"] - 1][1] else "ham")
        assert (wrong["probability"] >= 0.5) == (wrong["is"] == "ham")
    content = (trained[script] / "figs" / f"{script}.json").read_text()
    assert not any(text in content for text, _ in texts if len(text) > 20)


def test_the_scripts_differ_in_their_model_only() -> None:
    lines = [(ROOT / f"{name}.py").read_text().splitlines() for name in KINDS]
    code = [text[next(i for i, line in enumerate(text) if line == '"""') + 1 :] for text in lines]
    changed = [line for line in difflib.ndiff(*code) if line[0] in "+-"]
    allowed = (
        r"SCRIPT = |KIND = |Tell spam from ham with an? |_size: |_layers: |cell=nn\.(RNN|LSTM)|makes? a logit"
        r"|nn\.(Linear|ReLU|Dropout|Sequential)\(|^[+-]     \)$"
    )
    assert changed and not [line for line in changed if not re.search(allowed, line)]


@both
def test_the_earlier_set_up_collapses_and_the_repaired_one_does_not(script: str, tmp_path: Path) -> None:
    assert run(script, tmp_path, collapse=True, quick=True) == 0
    result = results(tmp_path, f"{script}_collapse")
    scores, majority = result["metrics"], result["baselines"]["majority class"]["accuracy"]
    assert scores["earlier set-up"]["accuracy"] == majority and scores["earlier set-up"]["f1"] == 0
    assert scores["repaired"]["accuracy"] > majority + 0.05
    assert (tmp_path / "figs" / f"{script}_collapse.png").stat().st_size > 20_000


def test_a_sweep_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("lstm")
    fitted: list[str] = []
    fit = module.fit

    def stops(*arguments: Any) -> spam.SpamFilter:
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append(arguments[1].keywords["cell"].__name__)
        return fit(*arguments)

    monkeypatch.setattr("common.studies.spam.SIZES", {"hidden_size": (4, 8), "num_layers": (1, 2)})
    monkeypatch.setattr(module, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        run("lstm", tmp_path, sweep=True, quick=True, epochs=1)
    assert fitted == ["RNN"] * 3

    fitted.clear()
    monkeypatch.setattr(
        module,
        "fit",
        lambda *arguments: (fitted.append(arguments[1].keywords["cell"].__name__), fit(*arguments))[1],
    )
    assert run("lstm", tmp_path, sweep=True, quick=True, epochs=1, resume=True) == 0
    assert fitted == ["RNN"] + ["LSTM"] * 4
    points = results(tmp_path, "rnn_scaling")["points"]
    assert [(p["kind"], p["vary"], p["value"]) for p in points] == [
        (kind, vary, value)
        for kind in ("RNN", "LSTM")
        for vary, value in [("hidden size", 4), ("hidden size", 8), ("depth", 1), ("depth", 2)]
    ]
    assert points[1]["parameters"] > points[0]["parameters"]
    with pytest.raises(UserError, match="epochs"):
        run("lstm", tmp_path, sweep=True, quick=True, epochs=2, resume=True)


def test_validation_parts_do_not_overlap_and_no_model_is_trained_on_its_own() -> None:
    labels = np.arange(103) % 8 == 0
    splits = sms_spam.folds(labels, 10, seed=0)
    validation = np.concatenate([part for _, part in splits])
    assert np.array_equal(np.sort(validation), np.arange(103)), "ten models are validated on all messages"
    for train, part in splits:
        assert np.array_equal(np.sort(np.concatenate([train, part])), np.arange(103))
    with pytest.raises(UserError, match="9 messages"):
        sms_spam.folds(np.arange(50) < 9, 10, seed=0)


def test_few_models_are_validated_on_their_own_parts_only() -> None:
    """Fewer models than parts: what calibrates is the validation messages of one of them, and no others."""
    labels = np.arange(100) % 4 == 0
    texts = [[f"word{i}"] for i in range(100)]
    words = Vocabulary.from_texts([" ".join(text) for text in texts], least=1)
    splits = sms_spam.folds(labels, 10, seed=0)[:3]
    ensemble = Ensemble([MODELS["LSTM"](len(words), 4, 4, 1) for _ in splits]).eval()
    answers, lengths, truth = evaluation.Validation(words, texts, labels, splits).out_of_fold(ensemble)
    own = [
        logits(model, words.batch, [texts[i] for i in index])
        for model, (_, index) in zip(ensemble.models, splits, strict=True)
    ]
    assert np.array_equal(answers, np.concatenate(own)) and len(answers) == len(truth) == 30
    assert set(lengths) == {5, 6}, "of word0 and of word10"


def test_the_same_step_has_the_same_batch_and_an_epoch_has_each_message_once() -> None:
    labels = np.arange(90) % 3 == 0
    texts = [(np.array([i + 1]), np.array([1])) for i in range(90)]
    parts = [np.arange(0, 80), np.arange(10, 90)]
    batches = ensemble_batches(texts, labels, parts, 16, seed=1, token_dropout=0.25, feature_dropout=0.0)

    def numbers(stream: Any, steps: int) -> list[list[list[int]]]:
        return [[batch[0].tolist() for batch, _ in pair] for pair in itertools.islice(stream, steps)]

    whole = numbers(batches(0), 12)
    assert numbers(batches(7), 5) == whole[7:]
    assert sorted(i for pair in whole[:5] for i in pair[1]) == list(range(11, 91))
    assert whole[:5] != whole[5:10]
    for batch, label in next(iter(batches(3))):
        assert label.tolist() == [float((i - 1) % 3 == 0) for i in batch[0].tolist()]


def test_features_that_are_not_in_the_training_texts_have_no_vector() -> None:
    model = MODELS["LSTM"](3, 4, 4, 1)
    model.zero_unseen(torch.tensor([1, 2, 2]))
    seen = model.embedding.vectors.weight.detach().abs().sum(1) > 0
    assert seen.tolist() == [False, True, True, False]


@pytest.mark.parametrize("script", KINDS)
def test_the_study_has_the_models_of_the_scripts(script: str) -> None:
    module, ours = importlib.import_module(script), MODELS[KINDS[script]]
    assert module.build.func is ours.func and module.build.keywords["cell"] is ours.keywords["cell"]
    assert str(module.head(8, 0.3)) == str(ours.keywords["head"](8, 0.3))


@both
def test_resuming_a_finished_run_trains_nothing_and_other_settings_are_refused(
    trained: dict[str, Path], script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(trained[script], script)
    assert run(script, trained[script], quick=True, resume=True) == 0
    assert "fold 1, step" not in capsys.readouterr().out
    after = results(trained[script], script)
    assert after["metrics"] == before["metrics"] and after["wrong"] == before["wrong"]
    with pytest.raises(UserError, match="hidden_size"):
        run(script, trained[script], quick=True, resume=True, hidden_size=8)


def test_more_epochs_go_on_from_the_checkpoint(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained["lstm"], tmp_path / "copy")
    assert run("lstm", folder, quick=True, resume=True, epochs=14) == 0
    assert "goes on to 630 steps, with a new schedule" in capsys.readouterr().out
    assert results(folder, "lstm")["trained"]["fold 1"]["steps"] == 630
    with pytest.raises(UserError, match="epochs = 14, now it is epochs = 12"):
        run("lstm", folder, quick=True, resume=True)


def test_weights_are_saved_before_anything_is_said_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(scores: Any) -> str:
        raise UnicodeEncodeError("charmap", "±", 0, 1, "no such character")

    monkeypatch.setattr(evaluation, "table", fails)
    with pytest.raises(UnicodeEncodeError):
        run("lstm", tmp_path, quick=True, epochs=1, n_models=1)
    assert (tmp_path / "runs" / "lstm-quick" / "weights.safetensors").exists()


def test_folds_keep_no_weights_and_report_deviations(tmp_path: Path) -> None:
    assert run("lstm", tmp_path, quick=True, folds=2, epochs=1, n_models=1) == 0
    result = results(tmp_path, "lstm")
    assert set(result["metrics"]) == {"LSTM"}, "a single model is no ensemble"
    assert set(result["trained"]) == {"fold 1", "fold 2"}
    assert result["baselines"]["naive Bayes"]["accuracy_sd"] > 0
    assert not (tmp_path / "runs" / "lstm-quick" / "weights.safetensors").exists()
    with pytest.raises(UserError, match="epochs of each fold = 1"):
        run("lstm", tmp_path, quick=True, folds=2, epochs=2, n_models=1, resume=True)


# ------------------------------------------------------------------------------------------ the models


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_neighbours_and_their_lengths_change_no_answer(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind](50, 8, 8, 2).eval().double()
    draw = random.Random(0)
    texts = [
        (np.array([draw.randint(1, 50) for _ in range(2 * length)]), np.full(length, 2))
        for length in (1, 2, 3, 5, 40, 300)
    ]
    with torch.inference_mode():
        alone = torch.cat([model(*collate([text])) for text in texts])
        together = model(*collate(texts))
    assert alone.std() > 0.001, "the texts differ, so an exchanged one would be seen"
    assert torch.allclose(alone, together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_the_state_is_read_from_real_tokens_only(kind: type[nn.RNN] | type[nn.LSTM]) -> None:
    ahead, back = kind(2, 3), kind(2, 3)
    tokens = torch.randn(6, 2)
    found = read(ahead, back, tokens, torch.tensor([2, 3, 1]))
    for row, own in zip(found, tokens.split([2, 3, 1]), strict=True):
        both = [ahead(own)[0].amax(0), back(own.flip(0))[0].amax(0)]
        assert torch.allclose(row, torch.cat(both), atol=1e-6)


def test_a_token_is_the_sum_of_its_features_by_the_root_of_their_number() -> None:
    embedding = TokenEmbedding(5, 4)
    features, starts = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 4, 4])
    found = embedding(features, starts, torch.tensor([0, 1, 2, 0]))
    vectors = embedding.vectors.weight
    assert torch.allclose(found[0], vectors[1:5].sum(0) / 2) and torch.equal(found[0], found[3])
    assert torch.equal(found[1], torch.zeros(4)), "of this token nothing is known"
    assert torch.allclose(found[2], vectors[5])


def test_the_earlier_net_reads_padding_as_text() -> None:
    torch.manual_seed(0)
    net = PaddedClassifier("RNN", 10, 8)
    short = torch.tensor([[3, 4]])
    longer = torch.tensor([[3, 4, 0, 0, 0]])
    assert not torch.allclose(net(short), net(longer))
    far = torch.cat([torch.randint(1, 10, (20, 10)), torch.zeros(20, 200, dtype=torch.int64)], 1)
    assert net(far).std() < 1e-3, "after so much padding all messages look alike"


# ------------------------------------------------------------------------------------------ vocabulary


def test_token_dropout_leaves_out_whole_tokens_and_single_features() -> None:
    text = (np.arange(1, 30_001), np.full(10_000, 3))
    numbers, counts = vocabulary.drop(text, np.random.default_rng(0), 0.2, 0.5)
    assert len(counts) == pytest.approx(8_000, rel=0.03)
    assert len(numbers) == counts.sum() == pytest.approx(1.5 * len(counts), rel=0.03)
    of = np.split((numbers - 1) // 3, np.cumsum(counts)[:-1])  # the token that each feature is of
    assert all(len(set(features)) <= 1 for features in of) and np.all(np.diff(np.concatenate(of)) >= 0)
    alone = (np.array([5]), np.array([1]))
    assert len(vocabulary.drop(alone, np.random.default_rng(0), 1.0, 0.0)[1]) == 1, "a text is never empty"


def test_features_of_a_token() -> None:
    assert vocabulary.features("Win") == [
        "word win", "<w", "wi", "in", "n>", "<wi", "win", "in>", "<win", "win>", "<win>", "shape Capital"
    ]  # fmt: skip
    assert vocabulary.features("80082")[0] == "word 00000"
    assert vocabulary.features("80082")[-1] == "shape 5 digits"
    assert [vocabulary.features(t)[-1] for t in ("FREE", "I", "150p", "!")] == [
        "shape CAPITALS", "shape Capital", "shape mixed", "shape lower"
    ]  # fmt: skip


def test_the_vocabulary_is_of_its_texts_and_forgets_what_is_rare() -> None:
    words = Vocabulary.from_texts(["free cash", "free lunch", "cash cash"], least=2)
    assert "word free" in words.names and "word lunch" not in words.names
    numbers, counts = words.encode(["free", "ζζζζ", "1"])
    assert [words.names[i - 1] for i in numbers[: counts[0]]] == vocabulary.features("free")
    assert counts.tolist() == [counts[0], 1, 0], "of ζζζζ its shape is known, of 1 nothing"


# ------------------------------------------------------------------------------------------- answering


def answers(
    path: Path, source: str, capfdbinary: Any, explain: bool = False, name: str = "lstm"
) -> list[str]:
    module = script(name)
    assert module.main(module.Config(predict=source, weights=str(path), explain=explain)) == 0
    return capfdbinary.readouterr().out.decode().split("\n")[:-1]


def test_each_line_has_an_answer(trained: dict[str, Path], tmp_path: Path, capfdbinary: Any) -> None:
    lines = [text for text, _ in generate_messages()[:300]]
    (tmp_path / "in.txt").write_text("\n".join(lines))  # without an end of line
    found = [
        line.split("\t") for line in answers(weights(trained, "lstm"), str(tmp_path / "in.txt"), capfdbinary)
    ]
    assert [line[2] for line in found] == lines
    assert all((float(p) >= 0.5) == (answer == "spam") for p, answer, _ in found)
    truth = [label for _, label in generate_messages()[:300]]
    assert (
        np.mean([(answer == "spam") == spam for (_, answer, _), spam in zip(found, truth, strict=True)])
        > 0.93
    )


def test_answers_depend_on_the_line_alone(trained: dict[str, Path], tmp_path: Path, capfdbinary: Any) -> None:
    lines = [text for text, _ in generate_messages()[:200]] + ["x", "win " * 900, "?"]
    path, file = weights(trained, "lstm"), tmp_path / "in.txt"
    file.write_text("\n".join(lines) + "\n")
    whole = answers(path, str(file), capfdbinary)
    order = random.Random(0).sample(range(len(lines)), len(lines))
    file.write_text("\r\n".join(lines[i] for i in order) + "\r\n")
    assert answers(path, str(file), capfdbinary) == [whole[i] for i in order]
    for i in (0, 7, 200, 201, 202):
        file.write_text(lines[i] + "\n")
        assert answers(path, str(file), capfdbinary) == [whole[i]]


def test_where_rounding_turns_the_neighbours_do_not_decide(
    answering: spam.SpamFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the last bits were not the last: an error of 1e-6 that differs with the batch."""
    texts = [text for text, _ in generate_messages()[:400]]

    def unsteady(model: nn.Module, to_batch: Any, texts: Any, threads: int = 1) -> np.ndarray:
        result = logits(model, to_batch, texts, threads=threads)
        if next(model.parameters()).dtype == torch.float32:
            result += 2e-6 * np.random.default_rng(len(texts)).uniform(-1, 1, len(texts))
        return result

    monkeypatch.setattr(spam, "logits", unsteady)
    whole = answering.probabilities(texts)
    parts = [answering.probabilities(texts[i : i + 37]) for i in range(0, 400, 37)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(whole, answering.probabilities(texts, threads=3))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", "-\tempty\t"),
        (b" \t ", "-\tempty\t \t "),
        (b"caf\xe9 \xff \xa3\x80", "\tcafé ÿ £€"),
        (b"nul\0byte \x1b[31m", "\tnul�byte �[31m"),
        ("😀😀".encode(), "😀😀"),
        (b"zzqx xqzz", "zzqx xqzz"),
        (b"a" * 100_000, "a" * 100_000),
        (b"win " * 25_000, "win " * 25_000),
        ("one\u2028line\x85still".encode(), "one\u2028line�still"),
    ],
    ids=["empty", "blank", "latin-1", "control", "emoji", "unknown", "long word", "long line", "separators"],
)
def test_odd_lines(
    trained: dict[str, Path], tmp_path: Path, capfdbinary: Any, line: bytes, expected: str
) -> None:
    (tmp_path / "in.txt").write_bytes(b"hello\n" + line + b"\nlast\n")
    found = answers(weights(trained, "lstm"), str(tmp_path / "in.txt"), capfdbinary)
    assert len(found) == 3 and found[1].endswith(expected)
    assert found[0].endswith("\thello") and found[2].endswith("\tlast")


@pytest.mark.parametrize("size", [400_000, 3_000_000])
def test_a_huge_line_is_cut_and_said(
    size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spam, "LONGEST_LINE", 300_000)
    (tmp_path / "in.txt").write_bytes(b"first\n" + b"b" * size + b"\r\nlast\n")
    assert list(itertools.chain(*spam._lines(str(tmp_path / "in.txt")))) == ["first", "b" * 300_000, "last"]
    assert "line 2 is longer" in capsys.readouterr().err
    (tmp_path / "in.txt").write_text("é" + "b" * 299_998 + "é" * 9)  # cut within a character
    assert list(itertools.chain(*spam._lines(str(tmp_path / "in.txt")))) == ["é" + "b" * 299_998]


def test_a_stream_is_read_as_training_reads_a_file(
    trained: dict[str, Path], answering: spam.SpamFilter, tmp_path: Path, capfdbinary: Any
) -> None:
    """Whatever wrote it, from whichever program: the same characters, so the same answers."""
    lines = ["Win £1000 cash, café voucher", "see you at 5", "free prize, call 0900 now"] * 500
    text, file = "\n".join(lines) + "\n", tmp_path / "in.txt"
    whole = None
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"):
        file.write_bytes(text.encode(encoding))
        said = answers(weights(trained, "lstm"), str(file), capfdbinary)
        assert [line.split("\t")[2] for line in said] == lines, encoding
        assert said == (whole := whole or said), encoding
    message = "that\x92s free, win a prize"  # the collection has such signs; they are only shown as another
    file.write_text(message + "\n")
    (shown,) = answers(weights(trained, "lstm"), str(file), capfdbinary)
    assert shown.startswith(f"{answering.probabilities([message])[0]:.4f}\t") and "that\ufffds" in shown
    mixed = b"caf\xc3\xa9\n" * 300_000 + b"caf\xe9\n"  # UTF-8 for a while, and then a line that is not
    file.write_bytes(mixed)
    assert set(itertools.chain(*spam._lines(str(file)))) == {"café"} == set(decode(mixed, "")[0].split())


@pytest.mark.parametrize("kind", ["gzip", "zip", "PNG", "binary"])
def test_what_is_no_text_is_refused(kind: str, tmp_path: Path) -> None:
    starts = {"gzip": gzip.compress(b"hello\n"), "zip": b"PK\x03\x04", "PNG": b"\x89PNG", "binary": bytes(99)}
    (tmp_path / "in.txt").write_bytes(starts[kind])
    with pytest.raises(UserError, match=f"--predict: .*in.txt is .*{kind}.*no text"):
        next(spam._lines(str(tmp_path / "in.txt")))


@pytest.mark.skipif(os.name == "nt", reason="of a shell")
@pytest.mark.parametrize(
    ("command", "words"),
    [("{} <&-", "input is closed"), ("echo hi | {} >/dev/full", "cannot write the answers: No space")],
)
def test_closed_and_full_streams_are_one_line(command: str, words: str) -> None:
    command = command.format(f"{sys.executable} lstm.py --predict - --weights shipped")
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_pipe_is_answered_as_it_comes(trained: dict[str, Path]) -> None:
    path = weights(trained, "lstm")
    command = [sys.executable, "lstm.py", "--predict", "-", "--weights", str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write("are you free tonight\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith("\tare you free tonight\n")  # before the input ends
        process.stdin.close()
        process.stdout.close()  # the reader goes
        assert process.wait(60) == 0


def test_explaining_shows_the_words_that_count(
    answering: spam.SpamFilter,
    trained: dict[str, Path],
    tmp_path: Path,
    capfdbinary: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = next(text for text, label in generate_messages() if label and len(text) > 40)
    moved = spam.explain(answering, message)
    assert [message[begin:end] for begin, end, _ in moved] == tokenize(message)
    # leaving the strongest one out indeed lowers the probability
    begin, end, change = max(moved, key=lambda span: span[2])
    before, after = answering.probabilities([message, message[:begin] + " " + message[end:]])
    assert change > 0.1 and after < before
    (tmp_path / "in.txt").write_text(message + "\n")
    line, reasons = answers(weights(trained, "lstm"), str(tmp_path / "in.txt"), capfdbinary, explain=True)
    assert line.endswith(message) and "\033" not in line + reasons
    assert f"+{change:.2f} {message[begin:end]}" in reasons
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for setting, value in (("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv(setting, value)
        shown = answers(weights(trained, "lstm"), str(tmp_path / "in.txt"), capfdbinary, explain=True)
        assert ("\033" in shown[0]) == (value == "xterm")
    coloured = spam._in_colours(message, moved)
    assert re.sub(r"\033\[[0-9;]*m", "", coloured) == message and coloured.count("\033[0m") >= 1


def test_the_length_of_a_message_counts_without_its_spaces(answering: spam.SpamFilter) -> None:
    messages = ["ok", "call  me, mum", " ok \t", ""]
    more = replace(answering, length_scale=answering.length_scale + 1)
    gained = more.log_odds(messages) - answering.log_odds(messages)
    assert gained == pytest.approx(np.log([2, 10, 2, 1]))


def test_weights_of_another_kind_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    module = script("lstm")
    (tmp_path / "in.txt").write_text("hello\n")
    for wrong in (weights(trained, "multi_layer_rnn"), tmp_path / "in.txt", tmp_path / "none.safetensors"):
        with pytest.raises(UserError, match=re.escape(str(wrong))):
            module.main(module.Config(predict=str(tmp_path / "in.txt"), weights=str(wrong)))


def test_files_that_cannot_be_read_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    module = script("lstm")
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="--predict"):
            module.main(module.Config(predict=str(wrong), weights=str(weights(trained, "lstm"))))


# -------------------------------------------------------------------------------------------- refusals


@both
@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"folds": 1}, "--folds"),
        ({"folds": -2}, "--folds"),
        ({"hidden_size": 0}, "--hidden-size"),
        ({"n_models": 0}, "--n-models"),
        ({"epochs": -1}, "--epochs"),
        ({"explain": True}, "--explain"),
        ({"weights": "shipped"}, "--weights"),
        ({"collapse": True, "sweep": True}, "--collapse"),
        ({"predict": "-", "data": "auto", "quick": True}, "--quick"),
        ({"sweep": True, "hidden_size": 8}, "--hidden-size"),
        ({"seed": -1}, "--seed"),
        ({"data": "nowhere"}, "--data"),
    ],
)
def test_bad_flags_are_refused_before_any_work(
    script: str, settings: dict[str, Any], flag: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=flag):
        run(script, tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_too_few_messages_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "few.tsv"
    file.write_text("".join(f"{'spam' if i < 3 else 'ham'}\tmessage {i}\n" for i in range(30)))
    with pytest.raises(UserError, match="3 messages"):
        run("lstm", tmp_path / "out", data=str(file))


def test_torchvision_is_not_needed_nor_what_only_training_needs_to_predict(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("hello\n")
    code = (
        "import sys, lstm, multi_layer_rnn; assert 'torchvision' not in sys.modules\n"
        "lstm.main(lstm.Config(predict=sys.argv[1], weights='shipped'))\n"
        "sys.exit(str({'torchvision', 'matplotlib', 'sklearn'} & sys.modules.keys() or ''))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in.txt")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.strip() == "" and result.stdout.endswith("ham\thello\n")
