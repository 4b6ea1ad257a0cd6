"""A new head for other symbols, such as phones: trained beside the adapter, kept with it, scored by phones."""

import json

import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file, save_file

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import field_value
from ssvd.demo.random_checkpoints import write_random_checkpoint
from ssvd.errors import UserError
from ssvd.methods import apply_method
from ssvd.recognisers.loading import load_check, load_model
from ssvd.recognisers.vocabulary import Vocabulary
from ssvd.scoring import score, score_by
from ssvd.training.run_folder import load_adapted

PHONES = ["t", "ʃ", "tʃ", "ɪ", "p", "aʊ", "ˈa", "X"]  # some that are parts of others; letters of both cases
PATTERN = ["tʃ ɪ p", "t ʃ ɪ", "p aʊ ˈa t", "X t X"]
FAMILIES = ("wav2vec2", "parakeet_ctc")


@pytest.fixture
def vocabulary(tmp_path):
    """Writes a file of symbols."""

    def write(*symbols, name="phones.txt"):
        path = tmp_path / name
        path.write_text("".join(f"{symbol}\n" for symbol in symbols), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_random_checkpoint(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def table(corpora, tmp_path_factory):
    """The corpus of synthetic speech with phones in the place of its texts."""
    cuts = list(read_corpus(corpora["child"]).cuts)[:8]
    path = tmp_path_factory.mktemp("corpus") / "phones.csv"
    rows = [
        f"{cut.recording.sources[0].source},{PATTERN[number % len(PATTERN)]},{field_value(cut, 'speaker')}"
        for number, cut in enumerate(cuts)
    ]
    path.write_text("\n".join(["path,text,speaker", *rows]), encoding="utf-8")
    return path


def with_text(cut, text):
    kind = type(cut.supervisions[0])
    changed = CutSet.from_cuts([cut]).map_supervisions(lambda s: kind.from_dict({**s.to_dict(), "text": text}))
    return next(iter(changed))


@pytest.mark.parametrize("family", FAMILIES)
def test_symbols_between_blanks_are_learnt_whole(family, checkpoints, table, vocabulary):
    speech = load_model(checkpoints[family], vocabulary=Vocabulary.read(vocabulary(*PHONES)))
    (cut,) = list(read_corpus(table).cuts)[:1]
    labels = speech.collate([with_text(cut, "tʃ ɪ  t ʃ X")]).labels.tolist()
    assert [PHONES[label - 4] for label in labels] == ["tʃ", "ɪ", "t", "ʃ", "X"]
    assert speech._alphabet.text([labels[0], labels[0], 0, labels[0], labels[1]]) == "tʃ tʃ ɪ"
    check = load_check(checkpoints[family], vocabulary=Vocabulary.read(vocabulary(*PHONES)))
    assert check(with_text(cut, "tʃ ɪ")) is None
    assert "'tʃɪ', which is no symbol of the vocabulary" in check(with_text(cut, "tʃɪ"))
    assert "'x', which is no symbol" in check(with_text(cut, "x"))


def test_with_a_boundary_of_words_the_longest_symbols_are_matched(checkpoints, table, vocabulary):
    symbols = Vocabulary.read(vocabulary("t", "ʃ", "tʃ", "ɪ", "|", "p"))
    speech = load_model(checkpoints["wav2vec2"], vocabulary=symbols)
    (cut,) = list(read_corpus(table).cuts)[:1]
    labels = speech.collate([with_text(cut, "tʃɪp ʃt")]).labels.tolist()
    assert [symbols.symbols[label - 4] for label in labels] == ["tʃ", "ɪ", "p", "|", "ʃ", "t"]
    assert speech._alphabet.text(labels) == "tʃɪp ʃt" and speech.phones("tʃɪp ʃt") == ["tʃ", "ɪ", "p", "ʃ", "t"]


def test_a_vocab_json_serves_too(checkpoints, vocabulary, tmp_path):
    own = Vocabulary.read(checkpoints["wav2vec2"] / "vocab.json").symbols
    assert own[0] == "|" and {*own[1:]} == {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"}
    Vocabulary.read(vocabulary(*PHONES)).write(tmp_path / "copy.txt")
    assert Vocabulary.read(tmp_path / "copy.txt").symbols == tuple(PHONES)


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([], "holds no symbols: write one on each line"),
        (["|"], "holds no symbols"),
        (["a", "b", "a"], "holds 'a' twice: leave one out"),
        (["a", "t ʃ"], "holds 't ʃ', with a blank in it: write one symbol a line"),
        (["a", "<unk>"], "holds <unk>, a mark for models"),
        (['{"a": [1]}'], "is not a vocab.json of symbols and numbers"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(symbols, message, vocabulary):
    with pytest.raises(UserError, match=message):
        Vocabulary.read(vocabulary(*symbols))


def test_a_missing_file_and_a_model_without_a_head_are_told(tmp_path, embedded, vocabulary, refused, corpora):
    with pytest.raises(UserError, match=r"cannot be read .*name a text file"):
        Vocabulary.read(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.read(tmp_path / "binary.txt")
    given = ["--train", corpora["child"], "--out", tmp_path / "run", "--vocabulary", vocabulary("a", "b")]
    assert "which has no CTC head: choose one" in refused("adapt", embedded, *given)


def test_before_training_nothing_is_written_and_nothing_but_the_head_differs(checkpoints, table, vocabulary):
    plain = load_model(checkpoints["wav2vec2"]).module.state_dict()
    speech = load_model(checkpoints["wav2vec2"], vocabulary=Vocabulary.read(vocabulary(*PHONES)))
    differing = {name for name, value in speech.module.state_dict().items() if not torch.equal(value, plain[name])}
    assert differing == {"lm_head.weight", "lm_head.bias"}
    assert speech.transcribe(speech.collate(list(read_corpus(table).cuts)[:2], text=False)) == ["", ""]


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2-bert"])
def test_a_model_that_was_only_pretrained_learns_symbols_too(family, table, vocabulary, tmp_path):
    folder = write_random_checkpoint(family, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "lm_head" not in name}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": None if family == "wav2vec2-bert" else 40}))
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / name).unlink()
    symbols = Vocabulary.read(vocabulary(*PHONES))
    speech, (cut,) = load_model(folder, vocabulary=symbols), list(read_corpus(table).cuts)[:1]
    assert load_check(folder, vocabulary=symbols)(cut) is None
    assert speech.loss(speech.collate([cut])).isfinite()
    speech.save(tmp_path / "saved")
    assert load_model(tmp_path / "saved").transcribe(speech.collate([cut], text=False)) == [""]
    with pytest.raises(UserError, match=r"The tokenizer of|states no vocab_size, .*give a vocabulary for a new head"):
        load_model(folder)
    state.pop("lm_head.weight"), state.pop("lm_head.bias")
    missing = next(name for name in state if "encoder.layers.0" in name)
    save_file({name: value for name, value in state.items() if name != missing}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks weights, among them {missing}"):
        load_model(folder, vocabulary=symbols)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_the_adapter_and_the_head_and_nothing_else(family, checkpoints, table, vocabulary):
    speech = load_model(checkpoints[family], vocabulary=Vocabulary.read(vocabulary(*PHONES)))
    (head,) = speech.untrained
    speech.module = apply_method(speech.module, "lora", speech.adaptable_layers(), also_train=speech.untrained)
    before = {name: value.clone() for name, value in speech.module.state_dict().items()}
    trained = {name for name, parameter in speech.module.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if head in name and "lora" not in name}
    optimiser = torch.optim.AdamW([p for p in speech.module.parameters() if p.requires_grad], lr=0.01)
    batch = speech.collate(list(read_corpus(table).cuts)[:4])
    speech.module.train()
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = speech.loss(batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    changed = {name for name, value in speech.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained and losses[-1] < 0.6 * losses[0]


def test_patience_waits_for_a_new_head(checkpoints, table, vocabulary, ssvd, tmp_path):
    options = ["--epochs", 3, "--patience", 1, "--batch-size", 8, "--learning-rate", 1e-9, "--device", "cpu"]
    given = ["--train", table, "--dev", table, "--vocabulary", vocabulary(*PHONES), "--out", tmp_path / "run"]
    code, _, err = ssvd("adapt", checkpoints["wav2vec2"], "--method", "lora", *given, *options)
    assert code == 0, err
    assert len(json.loads((tmp_path / "run/result.json").read_text())["series"]) == 4


@pytest.mark.parametrize(("family", "method"), [("wav2vec2", "full"), ("parakeet_ctc", "ssvd"), ("wav2vec2", "lora")])
def test_the_head_is_trained_and_kept_with_the_adapter(
    family, method, checkpoints, table, vocabulary, ssvd, tmp_path, monkeypatch
):
    model, run, file = checkpoints[family], tmp_path / "run", vocabulary(*PHONES)
    options = ["--epochs", 1, "--batch-size", 4, "--learning-rate", 0.01, "--device", "cpu", "--method", method]
    assert ssvd("data", "check", table, "--model", model, "--vocabulary", file, "--no-audio", "--workers", 1)[0] == 0
    code, _, err = ssvd(
        "adapt", model, "--train", table, "--dev", table, "--out", run, "--vocabulary", file, "--choose-scale", *options
    )
    assert code == 0, err
    file.unlink()  # the run has a copy
    weights = run / ("model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors")
    state = load_file(weights)
    (head,) = [name for name in state if name.endswith("head.weight")]
    assert state[head].shape[0] == 4 + len(PHONES)
    generator = torch.Generator().manual_seed(0)
    state[head] = torch.randn(state[head].shape, generator=generator)  # so that something is written
    with_metadata(weights, state)
    (run / "scale.json").unlink()
    code, out, err = ssvd("evaluate", table, "--run", run, "--json", "--out", tmp_path / "scores")
    assert code == 0, err
    base, adapted = json.loads(out)
    assert base["per"] == base["wer"] == 1 and adapted["per"] == adapted["wer"] and adapted["normaliser"] == "none"
    lines = (tmp_path / "scores/hypotheses/run-phones.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row["id"]: row["hypothesis"] for row in map(json.loads, lines)}
    assert any(texts.values()) and {phone for text in texts.values() for phone in text.split()} <= {*PHONES}
    _, out, _ = ssvd("evaluate", table, "--run", run)
    assert "PER" in out
    assert ssvd("merge", run, tmp_path / "merged")[0] == 0
    merged, cuts = load_model(tmp_path / "merged"), list(read_corpus(table).cuts)
    assert (
        dict(zip([cut.id for cut in cuts], merged.transcribe(merged.collate(cuts, text=False)), strict=True)) == texts
    )
    code, out, _ = ssvd("transcribe", "--run", run, cuts[0].recording.sources[0].source)
    assert code == 0 and out.strip() == texts[cuts[0].id]
    halfway = load_adapted(model, run, scale=0.5)
    assert halfway.module.state_dict()[head.removeprefix("base_model.model.")].abs().max() > 0
    if method == "full":
        return
    card = (run / "adapter/README.md").read_text().split("```python")[1].split("```")[0]
    monkeypatch.chdir(model.parent)
    exec(card.replace('"adapter', f'"{run}/adapter'), loaded := {})
    assert loaded["model"].peft_config["default"].peft_type.lower() == method
    symbols = [*PHONES[1:], PHONES[0]]
    (run / "vocabulary.txt").write_text("\n".join(symbols), encoding="utf-8")
    (run / "adapter/vocabulary.txt").write_text("\n".join(symbols), encoding="utf-8")
    with pytest.raises(UserError, match=r"its vocabulary.txt is not the one that it was trained with"):
        load_adapted(model, run)


def with_metadata(file, state):
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
    save_file(state, file, metadata)


def test_phone_error_rate_by_hand():
    references, hypotheses = ["tʃ ɪ p", "aʊ t"], ["t ɪ", "aʊ t t"]  # one changed and one left out, one put in
    found = score(references, hypotheses, phones=str.split)
    assert found.per == pytest.approx(3 / 5) == found.wer
    assert score(references, hypotheses).per is None and "per" not in score(references, hypotheses).as_dict()
    assert found.as_dict()["per"] == found.per
    # Words without blanks between their phones: the boundaries are no phones.
    cut = {"tʃɪp aʊt": ["tʃ", "ɪ", "p", "aʊ", "t"], "tʃɪpaʊ": ["tʃ", "ɪ", "p", "aʊ"]}
    assert score(["tʃɪp aʊt"], ["tʃɪpaʊ"], phones=cut.__getitem__).per == pytest.approx(1 / 5)
    rows = [{"reference": "a b", "hypothesis": "a", "age": 5}, {"reference": "a b", "hypothesis": "a b", "age": 9}]
    assert [group.per for group in score_by(rows, "age", phones=str.split).values()] == [0.5, 0]
