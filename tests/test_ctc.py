"""Encoders with a CTC head: losses and texts are those of Transformers, and the commands take them as Whisper."""

import json
from itertools import groupby

import numpy as np
import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.exports.ctranslate2 import save_ctranslate2
from ssvd.methods import apply_method
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import load_check, load_model, load_outline
from ssvd.recognisers.spec_augment import SpecAugment

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
KINDS = {  # model, config, whether it was trained with a mask of the padding
    "wav2vec2": (Wav2Vec2ForCTC, Wav2Vec2Config, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, True),
    "hubert": (HubertForCTC, HubertConfig, {"feat_extract_norm": "group"}, False),
}


def checkpoint(folder, model, config, options, mask, letters=LETTERS):
    folder.mkdir(parents=True)
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    (folder / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}))
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    size |= {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    network = model(config(vocab_size=len(symbols), pad_token_id=0, layerdrop=0.0, **size, **options))
    network.lm_head.weight.data *= 20  # so that frames differ in what they say
    network.save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("ctc") / request.param, *KINDS[request.param])


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("ctc") / "model", *KINDS["wav2vec2"])


@pytest.fixture(scope="module")
def cuts(corpora):
    return list(read_corpus(corpora["child"]).cuts)


def with_text(cut, text):
    supervision = cut.supervisions[0]
    changed = CutSet.from_cuts([cut]).map_supervisions(
        lambda s: type(supervision).from_dict({**s.to_dict(), "text": text})
    )
    return next(iter(changed))


def perturbed(speech, method="ssvd"):
    speech.module = apply_method(speech.module, method, speech.adaptable_layers()).eval()
    moved(speech.module)
    return speech


def moved(module):
    """Away from the start, where every mistake is invisible."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)


def test_loss_of_one_utterance_is_that_of_transformers(folder, cuts):
    speech, cut = perturbed(load_model(folder)), cuts[0]
    batch = speech.collate([cut])
    processor = Wav2Vec2Processor.from_pretrained(folder)
    labels = processor(text=cut.supervisions[0].text.upper().strip("."), return_tensors="pt").input_ids
    inputs = processor(load_audio(cut, 16_000), sampling_rate=16_000, return_tensors="pt").input_values
    network = speech.module.get_base_model()
    network.config.ctc_loss_reduction = "mean"
    assert torch.equal(batch.labels, labels[0])
    assert speech.loss(batch).item() == pytest.approx(
        speech.module(input_values=inputs, labels=labels).loss.item(), rel=1e-5
    )


def test_loss_of_a_batch_is_the_mean_where_padding_is_masked(wav2vec2, cuts):
    speech = perturbed(load_model(wav2vec2))
    alone = [speech.loss(speech.collate([cut])).item() for cut in cuts[:4]]
    assert speech.loss(speech.collate(cuts[:4])).item() == pytest.approx(np.mean(alone), rel=1e-4)


def test_texts_are_those_of_transformers_whatever_the_batch(folder, cuts):
    speech = perturbed(load_model(folder))
    texts = speech.transcribe(speech.collate(cuts, text=False))
    processor = Wav2Vec2Processor.from_pretrained(folder)
    for cut, text in zip(cuts, texts, strict=True):
        inputs = processor(load_audio(cut, 16_000), sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            best = speech.module(input_values=inputs).logits.argmax(-1)
        assert text == greedy(best[0].tolist(), processor.tokenizer)
    assert len(set(texts)) == len(texts) and all(texts)


def greedy(best, tokenizer):
    """The text of frames: equal ones in a row are one, blanks and other special tokens are none."""
    symbols = [symbol for symbol, _ in groupby(tokenizer.convert_ids_to_tokens(best))]
    return "".join(" " if symbol == "|" else symbol for symbol in symbols if len(symbol) == 1).strip()


def test_words_are_those_of_the_text_and_follow_each_other(folder, cuts):
    speech = load_model(folder)
    batch = speech.collate(cuts[:3], text=False)
    for timed, text, length in zip(
        speech.decode_timed(batch), speech.transcribe(batch), batch.lengths.tolist(), strict=True
    ):
        assert timed.text == text and [word.text for word in timed.words] == text.split()
        times = [time for word in timed.words for time in (word.start, word.end)]
        assert times == sorted(times) and len(set(times)) > 1 and times[-1] <= length / 16_000
        assert all(0 < word.confidence <= 1 for word in timed.words) and 0 < timed.confidence <= 1


def test_hubert_is_not_known_to_ctranslate2(tmp_path):
    pytest.importorskip("ctranslate2")
    speech = load_model(checkpoint(tmp_path / "model", *KINDS["hubert"]))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"CTranslate2 does not convert checkpoints of this kind .*HubertConfig"):
        save_ctranslate2(speech, tmp_path / "out")


def test_double_letters_are_heard(wav2vec2, cuts, monkeypatch):
    speech = load_model(wav2vec2)
    symbols = ["A", "A", "<pad>", "L", "L", "<pad>", "L", "|", "B", "E", "<pad>", "E", "<pad>"]
    ids = speech._alphabet._tokenizer.convert_tokens_to_ids(symbols)
    logits = nn.functional.one_hot(torch.tensor([ids]), speech.module.config.vocab_size).float()
    monkeypatch.setattr(speech, "_logits", lambda inputs, lengths: logits)
    assert speech.transcribe(speech.collate(cuts[:1], text=False)) == ["ALL BEE"]


def test_an_utterance_of_milliseconds_is_read(folder, cuts):
    speech = load_model(folder)
    short = cuts[0].truncate(duration=0.01)
    assert speech.transcribe(speech.collate([short], text=False)) == [
        speech.transcribe_audio(load_audio(short, 16_000))
    ]
    assert len(speech.transcribe(speech.collate([short, cuts[1]], text=False))) == 2


@torch.no_grad()
def test_every_layer_of_the_encoder_is_adapted_and_changes_what_is_heard(folder, cuts):
    speech = load_model(folder)
    layers = speech.adaptable_layers()
    assert len(layers) == 2 * 6 and load_outline(folder)[1] == layers and not any("lm_head" in name for name in layers)
    batch = speech.collate(cuts[:2])
    before = speech._logits(batch.inputs, batch.lengths)
    for name in layers:
        one = load_model(folder)
        one.module = apply_method(one.module, "ssvd", [name]).eval()
        assert torch.equal(one._logits(batch.inputs, batch.lengths), before)
        moved(one.module)
        after = one._logits(batch.inputs, batch.lengths)
        assert (after - before).abs().max() > 1e-4, name


def test_gradients_reach_all_that_is_trained(folder, cuts):
    speech = perturbed(load_model(folder))
    speech.module.train()
    speech.loss(speech.collate(cuts[:2])).backward()
    trained = [p for p in speech.module.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


def test_masking_is_that_of_the_config_and_only_when_asked_for(wav2vec2, cuts):
    speech = load_model(wav2vec2)
    batch = speech.collate(cuts[:2])
    for layer in speech.module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    for name in ("feat_proj_dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "final_dropout"):
        setattr(speech.module.config, name, 0.0)
    for layer in speech.module.wav2vec2.encoder.layers:
        layer.attention.dropout = 0.0
    speech.module.train()
    assert speech.loss(batch).item() == speech.loss(batch).item()
    speech.spec_augment = SpecAugment()
    np.random.seed(0)
    assert len({speech.loss(batch).item() for _ in range(3)}) == 3
    speech.module.eval()
    assert speech.loss(batch).item() == speech.loss(batch).item()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Don\N{RIGHT SINGLE QUOTATION MARK}t stop, well-known friend!", "DON'T STOP WELL KNOWN FRIEND"),
        ("quiet", "QUIET"),
    ],
)
def test_texts_are_written_in_the_characters_of_the_vocabulary(wav2vec2, cuts, text, written):
    speech = load_model(wav2vec2)
    batch = speech.collate([with_text(cuts[0], text)])
    assert (
        "".join(speech._alphabet._tokenizer.convert_ids_to_tokens(batch.labels.tolist())).replace("|", " ") == written
    )


def test_lower_case_vocabulary_without_an_apostrophe(tmp_path, cuts):
    speech = load_model(checkpoint(tmp_path / "lower", *KINDS["wav2vec2"], letters="abcdefghijklmnopqrstuvwxyz"))
    batch = speech.collate([with_text(cuts[0], "Don't!")])
    assert "".join(speech._alphabet._tokenizer.convert_ids_to_tokens(batch.labels.tolist())) == "dont"


def test_what_cannot_be_trained_on_is_told(wav2vec2, cuts):
    check = load_check(wav2vec2, window=2.5)
    short = min(cuts, key=lambda cut: cut.duration)
    long = cuts[0].pad(duration=3.0, preserve_id=True)
    long.supervisions = cuts[0].supervisions
    assert check(short) is None
    assert "lasts 3.00 s and the window is 2.5 s" in check(long)
    assert "no text" in check(with_text(short, "..."))
    assert "marks that the model's vocabulary lacks: '4 cats'" in check(with_text(short, "4 cats"))
    frames = int(load_model(wav2vec2)._frames(torch.tensor(round(short.duration * 16_000))))
    assert check(with_text(short, "ab" * (frames // 2))) is None
    assert f"takes {2 * frames - 1} frames and its audio has {frames}" in check(with_text(short, "a" * frames))
    speech = load_model(wav2vec2)
    with pytest.raises(UserError, match=f"Utterance {short.id}: Its text has marks"):
        speech.collate([with_text(short, "4 cats")])
    batch = speech.collate([short])
    with pytest.raises(UserError, match="use one beam"):
        speech.transcribe(batch, Decoding(beams=2))
    with pytest.raises(UserError, match="no label smoothing"):
        speech.loss(batch, label_smoothing=0.1)
    with pytest.raises(UserError, match="use 'transcribe'"):
        load_model(wav2vec2, task="translate")


def test_long_recordings_are_cut_at_pauses(wav2vec2, cuts):
    speech = load_model(wav2vec2, window=2.0)
    pause = np.zeros(8_000, np.float32)
    spoken = [load_audio(cut, 16_000)[:24_000] for cut in cuts[:3]]
    whole = np.concatenate([part for one in spoken for part in (one, pause)])
    batch = speech._batch([""], [speech._split(whole)], [None])
    assert batch.pieces[0] >= 3 and batch.lengths.max() <= 2.0 * 16_000 + 160
    assert speech.transcribe_audio(whole, batch_size=2) == speech.transcribe(batch)[0]


@pytest.mark.parametrize("method", ["ssvd", "lora", "full"])
def test_the_commands_take_it_as_they_take_whisper(method, wav2vec2, corpora, ssvd, tmp_path, monkeypatch):
    run, table = tmp_path / "run", corpora["child"]
    options = [
        "--epochs",
        1,
        "--batch-seconds",
        12,
        "--learning-rate",
        0.01,
        "--device",
        "cpu",
        "--augment",
        "speed=0.9:1.1",
    ]
    code, _, err = ssvd("adapt", wav2vec2, "--train", table, "--dev", table, "--method", method, "--out", run, *options)
    assert code == 0, err
    result = json.loads((run / "result.json").read_text())
    assert result["series"][1]["loss"] > 0
    if method == "full":
        weights = run / "model/model.safetensors"
    else:
        weights = run / "adapter/adapter_model.safetensors"
        code = (run / "adapter/README.md").read_text().split("```python")[1].split("```")[0]
        monkeypatch.chdir(wav2vec2.parent)  # the card names the base without the path on this machine
        exec(code.replace('"adapter"', repr(str(run / "adapter"))), card := {})
        assert card["model"].peft_config["default"].peft_type.lower() == method
    # Nothing is gained in so few updates: perturb what is kept, or every bug stays invisible.
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value
        if "fingerprint" in name or "variant" in name
        else value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(weights).items()
    }
    save_file(state, weights, {"format": "pt"})
    code, out, err = ssvd("evaluate", wav2vec2, table, "--adapter", run, "--json", "--out", tmp_path / "scores")
    assert code == 0, err
    lines = (tmp_path / "scores/hypotheses/run-metadata.jsonl").read_text().splitlines()
    adapted = {row["id"]: row["hypothesis"] for row in map(json.loads, lines)}
    lines = (tmp_path / "scores/hypotheses/base-metadata.jsonl").read_text().splitlines()
    assert adapted != {row["id"]: row["hypothesis"] for row in map(json.loads, lines)}
    assert ssvd("merge", wav2vec2, run, tmp_path / "merged")[0] == 0
    merged, processor = (
        Wav2Vec2ForCTC.from_pretrained(tmp_path / "merged"),
        Wav2Vec2Processor.from_pretrained(tmp_path / "merged"),
    )
    assert merged.config.apply_spec_augment
    for cut in read_corpus(table).cuts:
        inputs = processor(load_audio(cut, 16_000), sampling_rate=16_000, return_tensors="pt").input_values
        best = merged.eval()(inputs).logits.argmax(-1)
        assert greedy(best[0].tolist(), processor.tokenizer) == adapted[cut.id]
    audio = next(iter(read_corpus(table).cuts)).recording.sources[0].source
    code, out, _ = ssvd("transcribe", wav2vec2, audio, "--adapter", run)
    assert out.strip() in adapted.values()


def test_bad_checkpoints_are_told(tmp_path, refused, wav2vec2):
    headless = tmp_path / "headless"
    checkpoint(headless, *KINDS["wav2vec2"])
    state = load_file(headless / "model.safetensors")
    save_file({k: v for k, v in state.items() if "lm_head" not in k}, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head.*trained to transcribe"):
        load_model(headless)
    (headless / "vocab.json").unlink()
    for name in headless.glob("tokenizer*"):
        name.unlink()
    with pytest.raises(UserError, match="The tokenizer of"):
        load_check(headless)
    adapters = checkpoint(tmp_path / "mms", Wav2Vec2ForCTC, Wav2Vec2Config, {"adapter_attn_dim": 4}, True)
    with pytest.raises(UserError, match="MMS"):
        load_outline(adapters)
    (headless / "config.json").write_text('{"model_type": "wav2vec3"}')
    with pytest.raises(UserError, match=r"'wav2vec3'; supported: whisper, wav2vec2, .* \(the nearest is wav2vec2\)"):
        load_model(headless)
