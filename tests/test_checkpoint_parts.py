"""Checkpoints whose parts disagree, are damaged or are missing are refused in a sentence that says what to copy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.recognisers.loading import load_check, load_model, load_outline
from ssvd.recognisers.spec_augment import SpecAugment
from test_ctc import KINDS, checkpoint
from test_whisper import write_checkpoint


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return {
        "whisper": write_checkpoint(folder / "whisper", "multilingual"),
        "ctc": checkpoint(folder / "ctc", *KINDS["wav2vec2"]),
    }


@pytest.fixture
def whisper(originals, tmp_path):
    return Path(shutil.copytree(originals["whisper"], tmp_path / "whisper-copy"))


@pytest.fixture
def ctc(originals, tmp_path):
    return Path(shutil.copytree(originals["ctc"], tmp_path / "ctc-copy"))


def change(file, **fields):
    """Change the fields of a JSON file; those of `feature_extractor` in processor_config.json by their own names."""
    content = json.loads(file.read_text())
    content.get("feature_extractor", content).update(fields)
    file.write_text(json.dumps(content))


def change_weights(folder, changed):
    file = folder / "model.safetensors"
    save_file(changed(load_file(file)), file, {"format": "pt"})


def refusal(folder, load=load_model):
    """What loading says."""
    with pytest.raises(UserError) as error:
        load(folder)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and folder.name in sentence
    return sentence


def test_untouched_checkpoints_load(whisper, ctc):
    for folder in (whisper, ctc):
        assert load_model(folder) and load_check(folder)


# -- tokenizers


def test_a_whisper_without_a_tokenizer_is_refused(whisper):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (whisper / name).unlink()
    assert "tokenizer.json and tokenizer_config.json" in refusal(whisper)
    assert "has 1 of the 265 tokens" in refusal(whisper, load_check)


def test_a_token_beyond_the_network_is_refused(whisper, ctc):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whisper)
    tokenizer.add_tokens(["zork"])
    tokenizer.save_pretrained(whisper)
    assert "'zork'" in refusal(whisper) and "0 to 264" in refusal(whisper, load_check)
    vocabulary = json.loads((ctc / "vocab.json").read_text())
    (ctc / "vocab.json").write_text(json.dumps(vocabulary | {"é": 32}))
    assert "'é'" in refusal(ctc) and "0 to 31" in refusal(ctc)


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        ({"A": 4}, "one token, 4"),
        ({"A": 3}, "one token, 3"),  # that of <unk>
        ({"A": -1}, "is -1"),
        ({"A": "5"}, "is '5'"),
        ({"A": None}, "is None"),
        ({"A": 1.0}, "is 1.0"),
        ({"A": {"B": 5}}, "vocab.json"),
    ],
)
def test_a_vocabulary_that_lies_is_refused(ctc, vocabulary, said):
    change(ctc / "vocab.json", **vocabulary)
    assert said in refusal(ctc)


def test_a_vocabulary_with_gaps_or_of_few_letters_is_refused(ctc):
    vocabulary = json.loads((ctc / "vocab.json").read_text())
    (ctc / "vocab.json").write_text(json.dumps({s: n for s, n in vocabulary.items() if s != "H"}))
    assert "no symbol for the token 12" in refusal(ctc)
    (ctc / "vocab.json").write_text(json.dumps({s: n for s, n in vocabulary.items() if n < 10}))
    assert "has 10 of the 32 tokens" in refusal(ctc)
    (ctc / "vocab.json").write_text(json.dumps({s if s != "|" else "_": n for s, n in vocabulary.items()}))
    assert "one token, 4, for '_' and '|'" in refusal(ctc)
    change(ctc / "tokenizer_config.json", added_tokens_decoder={})
    assert "word delimiter '|'" in refusal(ctc)


def test_a_letter_without_a_symbol_is_told_when_the_network_writes_it(ctc, corpora, monkeypatch):
    vocabulary = json.loads((ctc / "vocab.json").read_text())
    (ctc / "vocab.json").write_text(json.dumps({s: n for s, n in vocabulary.items() if n < 31}))
    speech, cut = load_model(ctc), next(iter(read_corpus(corpora["child"]).cuts))
    batch = speech.collate([cut], text=False)
    spell(speech, monkeypatch, [5, 0, 6])
    assert speech.transcribe(batch) == ["AB"]
    spell(speech, monkeypatch, [5, 0, 31])
    with pytest.raises(UserError, match=r"writes the token 31.*vocab\.json"):
        speech.transcribe(batch)


def test_tokens_that_older_releases_added_after_the_network_was_made_are_no_obstacle(tmp_path):
    """The tokenizer of many fine-tuned models adds <s> and </s>, which the head lacks, and no text has them."""
    folder = checkpoint(tmp_path / "model", *KINDS["wav2vec2"])
    symbols = ["[PAD]", "[UNK]", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'ÄÖ"]
    (folder / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}))
    (folder / "tokenizer_config.json").unlink()
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    speech = load_model(folder)
    assert len(speech._alphabet._tokenizer) == 34 and speech.module.config.vocab_size == 32


# -- tokens that several files state


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"eos_token_id": 5}, "the end token (5 in config.json, 258 in generation_config.json"),
        ("generation_config.json", {"eos_token_id": 5}, "the end token (258 in config.json, 5 in generation"),
        ("generation_config.json", {"eos_token_id": [5, 258]}, "the end token"),
        ("generation_config.json", {"eos_token_id": 400}, "is 400"),
        ("generation_config.json", {"eos_token_id": []}, "is []"),
        ("generation_config.json", {"decoder_start_token_id": 258}, "the start token"),
        ("config.json", {"decoder_start_token_id": 258}, "the start token"),
        ("generation_config.json", {"no_timestamps_token_id": 263}, "the token <|notimestamps|>"),
        ("generation_config.json", {"lang_to_id": {"<|nl|>": 260}}, "the token <|nl|> (260 in generation"),
        ("generation_config.json", {"lang_to_id": {"<|fr|>": 260}}, "the token <|fr|> (260 in generation"),
        ("generation_config.json", {"lang_to_id": [260]}, "lang_to_id"),
        ("generation_config.json", {"task_to_id": {"transcribe": 262}}, "the token <|transcribe|>"),
        ("generation_config.json", {"is_multilingual": False}, "several languages"),
        ("generation_config.json", {"is_multilingual": "no"}, "neither true nor false"),
        ("generation_config.json", {"suppress_tokens": [258]}, "suppresses the end token"),
        ("generation_config.json", {"suppress_tokens": [7, 300]}, "is 300"),
        ("generation_config.json", {"begin_suppress_tokens": [-5]}, "is -5"),
        ("config.json", {"vocab_size": 300}, "config.json"),
        ("config.json", {"num_mel_bins": 24}, "config.json"),
        ("config.json", {"max_source_positions": 120}, "config.json"),
        ("config.json", {"vocab_size": 10**12}, "config.json"),
        ("config.json", {"encoder_layers": 10**9}, "encoder_layers"),
        ("config.json", {"dropout": 7}, "dropout"),
        ("config.json", {"is_encoder_decoder": False}, "no decoder"),
        ("processor_config.json", {"feature_size": 24}, "the mel bands (16 in config.json, 24 in preprocessor_config"),
        ("processor_config.json", {"sampling_rate": 8000}, "preprocessor_config.json"),
        ("processor_config.json", {"chunk_length": 30}, "the frames of a window (200 in config.json, 3000 in"),
        ("processor_config.json", {"n_fft": 512}, "n_fft"),
        ("processor_config.json", {"hop_length": 0}, "preprocessor_config.json"),
        ("processor_config.json", {"dither": 1.0}, "silence"),
        (
            "processor_config.json",
            {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
            "is a Wav2Vec2FeatureExtractor",
        ),
        ("tokenizer_config.json", {"model_max_length": "many"}, "tokenizer"),
        ("tokenizer_config.json", {"eos_token": "<|nl|>"}, "the end token"),
    ],
)
def test_parts_of_a_whisper_that_disagree_are_refused(whisper, file, fields, said):
    change(whisper / file, **fields)
    assert said in refusal(whisper)


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"pad_token_id": 4}, "the blank (4 in config.json, 0 in the tokenizer (pad_token))"),
        ("config.json", {"pad_token_id": None}, "pad_token_id"),
        ("config.json", {"vocab_size": 40}, "lm_head"),
        ("config.json", {"mask_time_length": 0}, "mask_time_length"),
        ("tokenizer_config.json", {"pad_token": "|"}, "the blank"),
        ("tokenizer_config.json", {"pad_token": "[PAD]"}, "the blank"),
        ("tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"}, "tokenizer"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "states 8000 Hz"),
        ("preprocessor_config.json", {"feature_size": 2}, "2 features"),
        ("preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor"}, "WhisperFeatureExtractor"),
    ],
)
def test_parts_of_a_ctc_model_that_disagree_are_refused(ctc, file, fields, said):
    change(ctc / file, **fields)
    assert said in refusal(ctc)


def test_two_descriptions_of_the_features_must_agree(ctc):
    extractor = json.loads((ctc / "preprocessor_config.json").read_text()) | {"do_normalize": False}
    (ctc / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    assert "do_normalize (False in processor_config.json, True in preprocessor_config.json)" in refusal(ctc)
    (ctc / "processor_config.json").unlink()
    (ctc / "preprocessor_config.json").write_text("{}")
    assert "sampling_rate" in refusal(ctc)


def test_what_only_one_part_states_is_taken_from_it(whisper, originals):
    """Old checkpoints state tokens in one of the two configs, or null."""
    change(whisper / "generation_config.json", no_timestamps_token_id=None, decoder_start_token_id=None)
    expected, found = load_model(originals["whisper"], language="nl"), load_model(whisper, language="nl")
    assert found._prompt("nl") == expected._prompt("nl")
    (whisper / "generation_config.json").unlink()
    assert load_model(whisper, language="nl")._prompt("nl") == expected._prompt("nl")
    assert load_check(whisper, language="nl")


def test_openai_whisper_large_v3_states_another_padding_in_one_of_its_configs_and_loads(whisper):
    change(whisper / "config.json", pad_token_id=257)
    assert load_model(whisper)


# -- weights


def test_every_tensor_of_whisper_is_accounted_for(whisper):
    change(whisper / "config.json", encoder_layers=1)
    assert "holds weights that the network of its config.json lacks" in refusal(whisper)
    change(whisper / "config.json", encoder_layers=3)
    assert "lacks weights, among them model.encoder.layers.2" in refusal(whisper)
    change(whisper / "config.json", encoder_layers=2, encoder_ffn_dim=32)
    assert "has the shape (" in refusal(whisper)


def test_only_what_training_by_masking_needs_may_be_missing_or_left_over(ctc):
    change_weights(ctc, lambda w: {key: tensor for key, tensor in w.items() if "masked_spec_embed" not in key})
    first, second = (load_model(ctc).module.wav2vec2.masked_spec_embed for _ in range(2))
    assert torch.equal(first, second) and not first.any()
    change_weights(ctc, lambda w: w | {"quantizer.codevectors": torch.ones(2, 2), "project_q.bias": torch.ones(2)})
    assert load_model(ctc)
    change_weights(ctc, lambda w: w | {"wav2vec2.adapter.proj.weight": torch.ones(2, 2)})
    assert "wav2vec2.adapter.proj.weight" in refusal(ctc)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_and_named(whisper, ctc, value):
    for folder, name in ((whisper, "model.decoder.layers.1.fc2.bias"), (ctc, "lm_head.weight")):

        def damaged(weights, name=name):
            weights[name].view(-1)[-1] = value
            return weights

        change_weights(folder, damaged)
        assert name in refusal(folder)


def test_weights_are_large_or_of_any_floating_type_and_load(whisper):
    change_weights(whisper, lambda w: w | {"model.decoder.layers.1.fc2.bias": torch.full((32,), 2e38)})
    assert load_model(whisper)  # their sum is infinite
    change_weights(whisper, lambda w: {name: torch.ones_like(tensor).bfloat16() for name, tensor in w.items()})
    assert load_model(whisper)._dtype == torch.bfloat16  # whatever its config says
    change_weights(whisper, lambda w: {name: tensor.to(torch.int8) for name, tensor in w.items()})
    assert "type I8" in refusal(whisper)


def sharded(folder, **index):
    """Put the weights in two files with an index, fields of which are replaced."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-{1 + (n % 2)}.safetensors" for n, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, folder / file, {"format": "pt"})
    content = {"metadata": {}, "weight_map": where} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return where


def test_an_index_that_is_damaged_or_lies_is_refused(whisper):
    where = sharded(whisper)
    assert load_model(whisper)
    file = whisper / "model.safetensors.index.json"
    first = min(where)
    other = next(file for file in where.values() if file != where[first])
    lies = [
        {"metadata": {}, "weight_map": {"a": "../../etc/passwd"}},
        {"metadata": {}, "weight_map": {"a": "model.pt"}},
        {"metadata": {}, "weight_map": {"a": 3}},
        {"metadata": {}, "weight_map": {}},
        {"metadata": {}, "weight_map": [1]},
        {"metadata": [], "weight_map": where},
        {"weight_map": where},
        {},
        {"metadata": {}, "weight_map": where | {first: other}},
        {"metadata": {}, "weight_map": where | {"spare": other}},
        {"metadata": {}, "weight_map": {name: part for name, part in where.items() if name != first}},
        {"metadata": {}, "weight_map": where | {first: "model-3.safetensors"}},
    ]
    for text in [*map(json.dumps, lies), "[]", "{", "null", ""]:
        file.write_text(text)
        assert "model.safetensors.index.json" in refusal(whisper), text


def test_an_adapter_beside_the_weights_is_not_loaded_in_silence(whisper):
    (whisper / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "holds an adapter" in refusal(whisper)


# -- damaged files


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'"a"', b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}'])
def test_damaged_files_are_named(whisper, ctc, content):
    files = {
        whisper: ("config", "generation_config", "processor_config", "tokenizer_config", "tokenizer"),
        ctc: ("config", "preprocessor_config", "tokenizer_config", "vocab"),
    }
    for folder, names in files.items():
        for name in names:
            file = folder / f"{name}.json"
            intact = file.read_bytes()
            file.write_bytes(content)
            assert f"{name}.json" in refusal(folder)
            assert f"{name}.json" in refusal(folder, load_check)
            if name == "config":
                assert f"{name}.json" in refusal(folder, load_outline)
            file.write_bytes(intact)


@pytest.mark.parametrize("count", [0, 3, 40, 5000])
def test_truncated_weights_are_told(whisper, count):
    file = whisper / "model.safetensors"
    file.write_bytes(file.read_bytes()[:count])
    assert "fetch damaged files anew" in refusal(whisper)


# -- texts


def spell(speech, monkeypatch, tokens):
    """The network hears these tokens, one in each frame, and then nothing."""

    def logits(samples, lengths):
        frames = int(speech._frames(lengths).max())
        path = [*tokens, *[0] * (frames - len(tokens))]
        return nn.functional.one_hot(torch.tensor([path]), speech.module.config.vocab_size).float()

    monkeypatch.setattr(speech, "_logits", logits)


@pytest.fixture
def said(corpora):
    """Makes an utterance of a text."""

    def make(text):
        cut = next(iter(read_corpus(corpora["child"]).cuts)).truncate(duration=1.9)
        cut.supervisions[0].text = text
        return cut

    return make


@pytest.mark.parametrize("text", ["hij komt 's avonds", "ik zie 'm niet", "dat is 't huis", "i do n't , we 've"])
def test_ctc_spells_what_the_network_spells(ctc, said, monkeypatch, text):
    change(ctc / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    speech = load_model(ctc)
    batch = speech.collate([said("a")], text=False)
    symbols = [symbol for letter in text.upper() for symbol in (letter, "<pad>") if letter != ","]
    ids = speech._alphabet._tokenizer.convert_tokens_to_ids(["|" if symbol == " " else symbol for symbol in symbols])
    spell(speech, monkeypatch, ids)
    assert speech.transcribe(batch)[0].split() == text.upper().replace(",", "").split()


def test_whisper_spells_what_the_network_spells(whisper):
    change(whisper / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    speech = load_model(whisper)
    tokens = speech._tokenizer.encode(" hij komt 's avonds", add_special_tokens=False)
    assert speech._text(tokens) == "hij komt 's avonds"


def test_letters_of_several_characters_are_learnt_with_the_spaces_around_them(ctc, said):
    vocabulary = json.loads((ctc / "vocab.json").read_text())
    vocabulary["IJ"] = vocabulary.pop("Q")
    (ctc / "vocab.json").write_text(json.dumps(vocabulary))
    speech = load_model(ctc)
    labels = speech.collate([said("ik zie ij")]).labels.tolist()
    assert speech._alphabet._tokenizer.convert_ids_to_tokens(labels) == [*"IK|ZIE|", "IJ"]


MARKS = ["<|0.00|>", "<|nl|>", "<|startoftranscript|>", "<|NoTimestamps|>", "<eng>", "<asr>", "<1.20>", "<s>", "<unk>"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("family", ["whisper", "ctc"])
def test_marks_for_models_are_not_learnt_as_if_they_were_spoken(originals, said, family, mark):
    check = load_check(originals[family], language="en")
    assert check(said("the fish")) is None
    for text in (f"{mark} the fish", f"the{mark}fish", f"the fish {mark}"):
        assert f"holds {mark}, a mark for models" in check(said(text))


def test_marks_of_the_own_vocabulary_and_its_blank_are_not_learnt(tmp_path, said):
    folder = checkpoint(tmp_path / "model", *KINDS["wav2vec2"], letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ-")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["-"], vocabulary["[UNK]"] = vocabulary.pop("<pad>"), vocabulary.pop("<unk>")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    change(folder / "tokenizer_config.json", pad_token="-", unk_token="[UNK]")
    speech = load_model(folder)
    assert "holds [UNK]" in speech.check(said("a [unk] fish"))
    assert "vocabulary lacks" in speech.check(said("a | fish"))
    labels = speech.collate([said("well-known")]).labels.tolist()
    assert 0 not in labels and "".join(speech._alphabet.spell(labels)) == "WELL KNOWN"


# -- masks


def test_a_batch_shorter_than_a_mask_is_trained_on(ctc, said):
    """Three utterances of 0.1 to 0.2 s have 5 to 9 frames, and a mask has 10."""
    speech = load_model(ctc)
    speech.spec_augment = SpecAugment()
    speech.module.train()
    torch.manual_seed(0)
    np.random.seed(0)
    short = [said("a").truncate(duration=seconds) for seconds in (0.12, 0.15, 0.19)]
    losses = [speech.loss(speech.collate(batch)) for batch in (short, short[:1], [said("a")])]
    assert all(loss.isfinite() for loss in losses)
    losses[0].backward()
    assert speech.module.lm_head.weight.grad.abs().max() > 0
