"""Recognisers before a language model: their prompts, ends and placeholders, what does not fit, the published sizes."""

import json
import re
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ssvd.benchmark.grid import checked_grid
from ssvd.benchmark.records import read_results
from ssvd.benchmark.scheduler import run_benchmark
from ssvd.errors import UserError
from ssvd.methods import apply_method
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import load_check, load_model, load_outline
from ssvd.training.progress import Log
from test_autoregressive import make_cut, moved

KINDS = ("qwen3_asr", "glmasr", "qwen2_audio")
SHORT = Decoding(max_new_tokens=8)
WINNERS = ["encoder", r"\.(q|k|v|o|gate|up|down)_proj$"]


@pytest.fixture
def cuts(tmp_path):
    return [make_cut(tmp_path, "one", 0.7, "a ball", "Dutch"), make_cut(tmp_path, "two", 1.9, "she ran", "nl-BE")]


@pytest.fixture
def changed(tiny_checkpoint, tmp_path):
    """A copy of a checkpoint with other fields in one of its JSON files."""

    def change(family, file, edit):
        folder = shutil.copytree(tiny_checkpoint(family), tmp_path / "changed")
        fields = json.loads((folder / file).read_text())
        fields.update(edit) if isinstance(edit, dict) else edit(fields)
        (folder / file).write_text(json.dumps(fields))
        return folder

    return change


def spelt(speech, tokens):
    return speech._tokenizer.decode(tokens, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("family", "prompt", "end"),
    [
        ("qwen3_asr", r"<\|audio_end\|><\|im_end\|>\n<\|im_start\|>assistant\nlanguage Dutch<asr_text>", "<|im_end|>"),
        ("glmasr", r"<\|end_of_audio\|>Please transcribe this audio into text<\|assistant\|>\n", "<|user|>"),
        (
            "qwen2_audio",
            r"<\|audio_end\|>Detect the language and recognize the speech:<\|im_end\|>\n<\|im_start\|>assistant\n",
            "<|im_end|>",
        ),
    ],
)
def test_the_prompt_is_the_processors_and_the_text_ends_as_a_turn_does(fresh, cuts, family, prompt, end):
    speech = fresh(family)
    batch = speech.collate(cuts)
    for cut, tokens, text in zip(cuts, batch.prompts, batch.texts, strict=True):
        assert re.search(f"{prompt}$", spelt(speech, tokens))
        assert spelt(speech, text) == cut.supervisions[0].text + end
    assert batch.languages == (["nl", "nl"] if family == "qwen3_asr" else [None, None])


def test_a_template_of_one_turn_leaves_the_end_to_the_tokenizer(fresh, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("glmasr"), tmp_path / "model")
    template = folder / "chat_template.jinja"
    refusing = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
    template.write_text(refusing + template.read_text())
    speech = load_model(folder)
    assert spelt(speech, [speech._end]) == "<|endoftext|>"
    assert spelt(fresh("glmasr"), [fresh("glmasr")._end]) == "<|user|>"


@pytest.mark.parametrize("family", KINDS)
def test_there_are_as_many_placeholders_as_the_encoder_makes_of_a_row(fresh, cuts, family):
    speech = fresh(family)
    batch, heard = speech.collate(cuts), []
    speech.module.model.multi_modal_projector.register_forward_hook(lambda *call: heard.append(call[2]))
    placeholder = speech.module.config.audio_token_id
    for row, prompt in enumerate(batch.prompts):
        stands = prompt == placeholder
        assert stands.nonzero().diff(dim=0).eq(1).all()  # in one piece
        with torch.no_grad():
            speech.loss(speech._selected(batch, [row])._replace(texts=[batch.texts[row]]))
        assert 1 < stands.sum() <= heard[-1].numel() // heard[-1].shape[-1]


@pytest.mark.parametrize("family", KINDS)
def test_prompts_are_filled_at_their_beginnings_and_what_fills_is_masked(fresh, cuts, family):
    speech = fresh(family)
    batch = speech.collate(cuts)
    lengths = [len(prompt) for prompt in batch.prompts]
    assert lengths[0] < lengths[1]
    tokens, mask = speech._prompt_batch(batch.prompts, torch.device("cpu"))
    assert tokens.shape == mask.shape == (2, lengths[1]) and mask.sum(1).tolist() == lengths
    assert mask[0].diff().abs().sum() == 1 and mask[:, -1].all()
    assert torch.equal(tokens[0, -lengths[0] :], batch.prompts[0])
    # What fills is not seen: another token there changes nothing.
    seen = []
    speech.module.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    before = speech.loss(batch)
    (inputs,) = seen
    places = inputs["position_ids"]
    assert places[0, lengths[1] - lengths[0]] == 0 and places[0, -1] < places[1, -1]
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5)
    logits = speech.module(**inputs).logits[:, -max(map(len, batch.texts)) :]
    labels = nn.utils.rnn.pad_sequence(batch.texts, batch_first=True, padding_value=-100)
    assert nn.functional.cross_entropy(logits.transpose(1, 2), labels).item() == pytest.approx(before.item(), rel=1e-6)


@pytest.mark.parametrize(("language", "code"), [("Dutch", "nl"), ("nl_BE", "nl"), ("EN", "en"), ("Cantonese", "yue")])
def test_languages_by_name_and_code(fresh, tiny_checkpoint, tmp_path, language, code):
    unstated = make_cut(tmp_path, "x", 0.5, "a", None)
    assert load_model(tiny_checkpoint("qwen3_asr"), language=language).collate([unstated]).languages == [code]
    stated = make_cut(tmp_path, "y", 0.5, "a", language)
    assert fresh("qwen3_asr").collate([stated], text=False).languages == [code]


def test_a_language_that_the_model_lacks_or_that_nobody_states(fresh, tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"does not know the language 'Klingon'; it knows Arabic, .*Vietnamese"):
        load_check(tiny_checkpoint("qwen3_asr"), language="Klingon")
    speech = fresh("qwen3_asr")
    unstated, alien = make_cut(tmp_path, "x", 0.5, "a", None), make_cut(tmp_path, "y", 0.5, "a", "tlh")
    with pytest.raises(UserError, match="Utterance x: The language is not stated"):
        speech.collate([unstated])
    with pytest.raises(UserError, match=r"Utterance y: .*language 'tlh'"):
        speech.collate([alien], text=False)
    for family in ("glmasr", "qwen2_audio"):  # whose prompts state none
        assert fresh(family).check(alien) is None


def test_where_no_language_is_stated_the_model_names_one_which_is_no_text(fresh, tmp_path):
    speech = fresh("qwen3_asr")
    batch = speech.collate([make_cut(tmp_path, "x", 0.5, None, None)], text=False)
    assert spelt(speech, batch.prompts[0]).endswith("<|im_start|>assistant\n")
    assert len(speech.transcribe(batch, SHORT)) == 1
    tokens = speech._tokenizer.encode("language English<asr_text> So it is.<|im_end|><|im_end|>")
    assert speech._written(tokens) == "So it is."
    assert speech._written(speech._tokenizer.encode("So it is.<|im_end|> more")) == "So it is."


def test_the_winners_layers_are_the_encoder_and_the_language_model(fresh):
    speech = fresh("qwen3_asr")
    layers = speech.adaptable_layers(WINNERS)
    groups = speech.layer_groups()
    assert {groups[name] for name in layers} == {"encoder", "decoder"}
    assert sum(groups[name] == "decoder" for name in layers) == 2 * 7
    assert [*groups.values()].count("projector") == 2 and [*groups.values()].count("front-end") == 3
    assert speech.adaptable_layers(["projector"]) == [name for name, group in groups.items() if group == "projector"]


def test_the_encoder_alone_can_be_trained(fresh):
    speech = fresh("qwen3_asr")
    speech.module = apply_method(speech.module, "full encoder", speech.adaptable_layers())
    trained = {name for name, parameter in speech.module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in speech.module.named_parameters() if ".audio_tower." in name}


def test_tied_weights_are_stored_once_and_stay_tied(fresh, tiny_checkpoint, tmp_path):
    speech = fresh("qwen3_asr")
    assert speech.module.lm_head.weight is speech.module.model.language_model.embed_tokens.weight
    speech.save(tmp_path / "saved")
    first, second = (
        load_file(folder / "model.safetensors") for folder in (tiny_checkpoint("qwen3_asr"), tmp_path / "saved")
    )
    assert first.keys() == second.keys() and "lm_head.weight" not in first
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_windows_are_those_of_the_feature_extractor_where_it_has_one(fresh, tiny_checkpoint):
    assert load_model(tiny_checkpoint("qwen3_asr"), window=90).window == 90
    for family in ("glmasr", "qwen2_audio"):
        speech = fresh(family)
        assert speech.window == 4 and speech.input_seconds(1.0) == 4 and speech.input_seconds(5.0) == 8
        with pytest.raises(
            UserError, match=r"A window of 5 s is not possible: this model takes more than 0, up to 4\."
        ):
            load_model(tiny_checkpoint(family), window=5)
    assert [fresh("qwen3_asr").input_seconds(seconds) for seconds in (0.2, 3.3)] == [0.5, 3.3]


@pytest.mark.parametrize(
    ("family", "file", "edit", "sentence"),
    [
        ("qwen3_asr", "processor_config.json", lambda f: f["feature_extractor"].update(feature_size=80), "mel bands"),
        ("qwen3_asr", "processor_config.json", lambda f: f["feature_extractor"].update(n_window=40), "n_window"),
        (
            "qwen2_audio",
            "processor_config.json",
            lambda f: f["feature_extractor"].update(chunk_length=30),
            "of a window",
        ),
        ("qwen3_asr", "config.json", {"audio_token_id": 7}, "stands for audio"),
        ("qwen3_asr", "config.json", {"thinker_config": {}}, "name ends in -hf"),
        (
            "qwen3_asr",
            "generation_config.json",
            {"eos_token_id": [3]},
            r"'<\|im_end\|>', is none of those",
        ),
        (
            "qwen3_asr",
            "generation_config.json",
            {"eos_token_id": 9999},
            "none of those at which decoding ends .9999.",
        ),
        ("glmasr", "config.json", {"model_type": "glmasrr"}, "nearest is glmasr"),
        ("glmasr", "tokenizer.json", lambda f: f["model"].update(vocab={"a": 0}), "[Tt]okenizer|processor"),
    ],
)
def test_parts_that_do_not_belong_together_are_told(changed, family, file, edit, sentence):
    folder = changed(family, file, edit)
    with pytest.raises(
        UserError, match=sentence.replace("|im_end|", r"\|im_end\|") if "im_end" in sentence else sentence
    ):
        load_check(folder)
    with pytest.raises(UserError):
        load_model(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json", "chat_template.jinja"])
def test_a_missing_file_is_told_by_what_to_copy(tiny_checkpoint, tmp_path, file):
    folder = shutil.copytree(tiny_checkpoint("qwen3_asr"), tmp_path / "model")
    (folder / file).unlink()
    with pytest.raises(UserError, match=r"processor|tokenizer") as told:
        load_check(folder)
    assert "copy" in str(told.value) and "\n" not in str(told.value)


def published(encoder, decoder):
    """The config of a published Qwen3-ASR.

    The sizes are those of the model description in antirez/qwen-asr, which states them for both checkpoints; what is
    not named has the same value in both, and is the default of Transformers' own config.
    """
    width, layers, heads, feed_forward = encoder
    hidden, intermediate = decoder
    audio = {"model_type": "qwen3_asr_encoder", "num_mel_bins": 128, "d_model": width, "encoder_layers": layers}
    audio |= {"encoder_attention_heads": heads, "encoder_ffn_dim": feed_forward, "output_dim": hidden}
    text = {"model_type": "qwen3", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 28}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
    text |= {"max_position_embeddings": 65_536, "tie_word_embeddings": True}
    return {"model_type": "qwen3_asr", "audio_config": audio, "text_config": text, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [
        # 938 M is stated for the 0.6B with its output layer counted apart from the embedding, which it is tied to.
        ("0.6B", published((896, 18, 14, 3584), (1024, 3072)), 938_008_576 - 151_936 * 1024),
        ("1.7B", published((1024, 24, 16, 4096), (2048, 6144)), 2_038_052_480),
    ],
)
def test_published_sizes_are_planned_in_seconds(name, config, parameters, tmp_path, ssvd):
    (tmp_path / "config.json").write_text(json.dumps(config))
    started = time.process_time()
    code, out, err = ssvd(
        "plan", tmp_path, "--budget", "rank=16", "--json", *(f"--layers={layer}" for layer in WINNERS)
    )
    assert code == 0, err
    assert time.process_time() - started < 10
    planned = json.loads(out)
    assert planned["parameters"] == parameters
    audio, text = config["audio_config"], config["text_config"]
    shapes = [(1024 * 2, text["hidden_size"]), (1024, text["hidden_size"]), (1024, text["hidden_size"])]
    shapes += [(text["hidden_size"], 2048), *[(text["intermediate_size"], text["hidden_size"])] * 3]
    width, inner = audio["d_model"], audio["encoder_ffn_dim"]
    encoder = [*[(width, width)] * 4, *[(inner, width)] * 2]
    expected = 16 * (28 * sum(map(sum, shapes)) + audio["encoder_layers"] * sum(map(sum, encoder)) + width + 480 * 16)
    lora = next(row for row in planned["methods"] if row["method"] == "lora")
    assert lora["trainable_parameters"] == expected
    assert planned["layers"] == 28 * 7 + 6 * audio["encoder_layers"] + 1 == len(load_outline(tmp_path, WINNERS)[1])


def test_the_benchmark_runs_over_one(tiny_checkpoint, cuts, tmp_path):
    rows = [
        {"path": f"{cut.id}.wav", "text": cut.supervisions[0].text, "language": "en", "speaker": cut.id} for cut in cuts
    ]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    corpus = {part: str(table) for part in ("train", "dev", "test")}
    values = {
        "models": {"qwen": str(tiny_checkpoint("qwen3_asr"))},
        "corpora": {"tiny": corpus},
        "methods": ["frozen", {"lora": "rank=2"}],
        "learning_rates": {"lora": [1e-3]},
        "extensions": 0,
        "seeds": [3],
        "training": {"epochs": 1, "updates_per_epoch": 1, "batch_size": 2},
    }
    with (tmp_path / "log").open("w") as log:
        run_benchmark(checked_grid(values, "grid"), tmp_path / "results", device="cpu", progress=Log(log))
    results, skipped = read_results(tmp_path / "results")
    assert not skipped and {result.cell.method for result in results} == {"frozen", "lora"}


def test_what_chats_are_sampled_with_does_not_count(changed, fresh, cuts):
    chat = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1}
    first, second = fresh("qwen3_asr"), load_model(changed("qwen3_asr", "generation_config.json", chat))
    assert second.module.generation_config.repetition_penalty == 3
    texts = first.transcribe(first.collate(cuts, text=False))
    assert second.transcribe(second.collate(cuts, text=False)) == texts and any(texts)


def test_moving_what_is_trained_changes_texts(fresh, cuts):
    speech = fresh("qwen3_asr")
    before = speech.transcribe(speech.collate(cuts), SHORT)
    speech.module = apply_method(speech.module, "ssvd", speech.adaptable_layers(WINNERS)).eval()
    assert speech.transcribe(speech.collate(cuts), SHORT) == before
    moved(speech.module)
    assert speech.transcribe(speech.collate(cuts), SHORT) != before
