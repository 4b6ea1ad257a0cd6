"""Encoders and decoders other than Whisper: their prompts, languages and windows, and the families that are refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from ssvd.errors import UserError
from ssvd.methods import apply_method
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.families import REFUSED
from ssvd.recognisers.loading import load_check, load_model, load_outline
from ssvd.training.step_memory import step_inputs, step_memory
from test_autoregressive import make_cut
from tiny_checkpoints import write_checkpoint

KINDS = ("moonshine", "moonshine_streaming", "canary", "cohere_asr")
SHORT = Decoding(max_new_tokens=8)


@pytest.fixture
def cuts(tmp_path):
    return [make_cut(tmp_path, "one", 0.7, "a ball", "Dutch"), make_cut(tmp_path, "two", 1.9, "She ran.", "nl-BE")]


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        ("canary", "<|startofcontext|> <|startoftranscript|> <|nl|> <|nl|> <|pnc|>"),
        (
            "cohere_asr",
            "\N{LOWER ONE EIGHTH BLOCK} <|startofcontext|> <|startoftranscript|> <|emo:undefined|> <|nl|> <|nl|> "
            "<|pnc|> <|noitn|> <|notimestamp|> <|nodiarize|>",
        ),
        ("moonshine", "<s>"),
        ("moonshine_streaming", "<s>"),
    ],
)
def test_the_prompt_is_the_processors_and_the_text_follows(fresh, cuts, family, prompt):
    speech = fresh(family)
    batch = speech.collate(cuts)
    names = speech._tokenizer.convert_ids_to_tokens
    for cut, tokens, text in zip(cuts, batch.prompts, batch.texts, strict=True):
        assert names(tokens.tolist()) == prompt.split()
        written = cut.supervisions[0].text.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
        assert names(text.tolist()) == [*written, "</s>"]
    assert batch.languages == (["nl", "nl"] if family in ("canary", "cohere_asr") else [None, None])


@pytest.mark.parametrize("family", ["canary", "cohere_asr"])
def test_a_language_is_needed_in_training_and_in_decoding(fresh, tiny_checkpoint, tmp_path, family):
    unstated, alien = make_cut(tmp_path, "x", 0.5, "a", None), make_cut(tmp_path, "y", 0.5, "a", "tlh")
    speech = fresh(family)
    for text in (True, False):
        with pytest.raises(UserError, match="Utterance x: The language is not stated"):
            speech.collate([unstated], text=text)
        with pytest.raises(UserError, match="Utterance y: This model does not know the language 'tlh'; it knows "):
            speech.collate([alien], text=text)
    with pytest.raises(UserError, match="The language is not stated"):
        speech.transcribe_audio(np.zeros(8000, np.float32))
    with pytest.raises(UserError, match="language 'Klingon'"):
        load_check(tiny_checkpoint(family), language="Klingon")
    assert load_model(tiny_checkpoint(family), language="English").collate([unstated]).languages == ["en"]


@pytest.mark.parametrize("family", ["canary", "cohere_asr"])
def test_the_prompt_stands_once_whatever_the_config_calls_the_start(fresh, tiny_checkpoint, cuts, tmp_path, family):
    """Transformers puts its start token before a prompt that begins with another."""
    folder = shutil.copytree(tiny_checkpoint(family), tmp_path / "model")
    for file in ("config.json", "generation_config.json"):
        fields = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(fields | {"decoder_start_token_id": 2}))
    first, second = fresh(family), load_model(folder)
    assert second.module.generation_config.decoder_start_token_id == 2
    texts = first.transcribe(first.collate(cuts, text=False), SHORT)
    assert second.transcribe(second.collate(cuts, text=False), SHORT) == texts and any(texts)


def test_coheres_window_ends_where_its_feature_extractor_cuts(fresh, tiny_checkpoint):
    assert fresh("cohere_asr").window == 30
    with pytest.raises(UserError, match=r"A window of 31 s is not possible: .* up to 30\."):
        load_model(tiny_checkpoint("cohere_asr"), window=31)
    assert load_model(tiny_checkpoint("canary"), window=60).window == 60


def test_the_encoder_alone_can_be_trained(fresh):
    for family in KINDS:
        speech = fresh(family)
        speech.module = apply_method(speech.module, "full encoder", speech.adaptable_layers())
        trained = {name for name, parameter in speech.module.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in speech.module.named_parameters() if name.startswith("model.encoder.")}


def test_a_row_alone_is_not_padded(fresh, cuts):
    speech = fresh("moonshine")
    batch = speech.collate(cuts, text=False)
    assert [len(row["input_values"][0]) for row in batch.audio] == [0.7 * 16_000, 1.9 * 16_000]
    stacked = speech._placed(batch.audio)
    assert stacked["input_values"].shape == stacked["attention_mask"].shape == (2, 1.9 * 16_000)
    assert stacked["attention_mask"].sum(1).tolist() == [0.7 * 16_000, 1.9 * 16_000]
    assert not stacked["input_values"][0, int(0.7 * 16_000) :].any()


@pytest.mark.parametrize("family", ["canary", "cohere_asr"])
def test_parts_that_do_not_belong_together_are_told(tiny_checkpoint, tmp_path, family):
    folder = shutil.copytree(tiny_checkpoint(family), tmp_path / "model")
    fields = json.loads((folder / "processor_config.json").read_text())
    fields["feature_extractor"]["feature_size"] = 80
    (folder / "processor_config.json").write_text(json.dumps(fields))
    with pytest.raises(
        UserError, match=r"disagree on the mel bands \(16 in config.json, 80 in the feature extractor\)"
    ):
        load_check(folder)
    fields = json.loads((folder / "config.json").read_text())
    name = "decoder_start_token_id"
    (folder / "processor_config.json").write_text((tiny_checkpoint(family) / "processor_config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": 5, name: 4}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 5, name: 4}))
    with pytest.raises(UserError, match="'</s>', is none of those at which decoding ends"):
        load_model(folder)


def test_models_that_translate_are_refused(tmp_path):
    pytest.importorskip("sentencepiece")
    folder = write_checkpoint(tmp_path / "model", "speech_to_text")
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(fields | {"lang_codes": "mustc", "tgt_lang": "nl"}))
    with pytest.raises(UserError, match="translates into the languages of its tokenizer"):
        load_check(folder)


@pytest.mark.parametrize("family", ["moonshine", "moonshine_streaming"])
def test_the_memory_of_training_is_planned_where_samples_are_read(family, tiny_checkpoint):
    network, _ = load_outline(tiny_checkpoint(family))
    inputs = step_inputs(network, 4, 1.234)
    assert step_memory(network, inputs) > 4 * 1.2 * 16_000


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_refused_is_refused_by_name_with_the_reason(family, tmp_path, refused):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    told = refused("plan", tmp_path)
    assert REFUSED[family].name in told and REFUSED[family].reason in told
    assert f"(the nearest supported family is {REFUSED[family].sibling})" in told


def test_an_unknown_family_is_refused_with_the_nearest(tmp_path, refused):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "moonshin"}))
    assert "of the family 'moonshin'" in (told := refused("plan", tmp_path)) and "nearest is moonshine" in told


def test_gradients_reach_all_that_is_trained(fresh, cuts):
    for family in KINDS:
        speech = fresh(family)
        speech.module = apply_method(speech.module, "ssvd", speech.adaptable_layers(["all"])).train()
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in speech.module.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        speech.loss(speech.collate(cuts)).backward()
        trained = [p for p in speech.module.parameters() if p.requires_grad]
        assert trained and all(p.grad is not None and p.grad.abs().max() > 0 for p in trained), family
