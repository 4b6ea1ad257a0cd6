"""All families that write token by token: losses and texts are those of Transformers, whatever the batch."""

import copy
import functools

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor

from ssvd.corpora.audio import load_audio
from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, apply_method
from ssvd.recognisers.autoregressive import IGNORED
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.layers import FRONT_END
from ssvd.recognisers.loading import load_check, load_model, load_outline
from ssvd.recognisers.spec_augment import SpecAugment
from tiny_checkpoints import FAMILIES, write_checkpoint

LANGUAGE_MODELS = ("qwen3_asr", "glmasr", "qwen2_audio")
READS_SAMPLES = ("moonshine", "moonshine_streaming")
PADDING_SHOWS = (
    "moonshine",
    "moonshine_streaming",
    "speech_to_text",
)  # in the encoder of Transformers, so that rows are decoded alone
RATE = 16_000
SHORT = Decoding(max_new_tokens=8)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    if request.param == "speech_to_text":
        pytest.importorskip("sentencepiece")
    return request.param


def make_cut(folder, name, seconds, text="see the dog", language="en"):
    noise = np.random.default_rng(round(1000 * seconds)).normal(size=round(seconds * RATE)) / 20
    tone = np.sin(np.arange(len(noise)) * seconds / 4) / 5
    soundfile.write(folder / f"{name}.wav", noise + tone, RATE)
    cut = Recording.from_file(folder / f"{name}.wav", recording_id=name).to_cut()
    assert isinstance(cut, MonoCut)
    cut.id = name
    cut.supervisions = [SupervisionSegment(name, name, 0.0, cut.duration, text=text, language=language)]
    return cut


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    spoken = [("one", 0.7, "a ball"), ("two", 1.9, "she ran to the red home"), ("three", 1.2, "we saw")]
    return [make_cut(folder, name, seconds, text) for name, seconds, text in spoken]


def moved(module, by=0.3):
    """Away from the start, where every mistake is invisible."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn_like(parameter)
    return module


def perturbed(speech, method="ssvd"):
    speech.module = apply_method(speech.module, method, speech.adaptable_layers()).eval()
    moved(speech.module)
    return speech


@pytest.fixture(scope="module")
def adapted(fresh):
    """Makes an adapted recogniser that is away from the start, once; nothing may change it."""
    return functools.cache(lambda family: perturbed(fresh(family)))


def own_inputs(family, speech, cut):
    """What Transformers' own processor makes of an utterance with its text, and the number of tokens of its prompt."""
    processor, text, audio = speech._processor, cut.supervisions[0].text, load_audio(cut, RATE)
    tokenizer = processor.tokenizer
    if family in LANGUAGE_MODELS:
        if family == "qwen2_audio":
            words = "Detect the language and recognize the speech:"
            content = [{"type": "audio", "audio": audio}, {"type": "text", "text": words}]
            chat = [{"role": "user", "content": content}]
            prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        else:
            options = {"language": "English"} if family == "qwen3_asr" else {}
            prompt = processor.apply_transcription_request([audio], tokenize=False, **options)[0]
        end = {"qwen3_asr": "<|im_end|>", "qwen2_audio": "<|im_end|>", "glmasr": "<|user|>"}[family]
        inputs = dict(processor(text=[prompt + text + end], audio=[audio], return_tensors="pt"))
        length = processor(text=[prompt], audio=[audio], return_tensors="pt")["input_ids"].shape[1]
        inputs["labels"] = inputs["input_ids"].clone()
        inputs["labels"][:, :length] = IGNORED
        return {name: value for name, value in inputs.items() if not name.startswith("num_")}
    spelt = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    if family == "canary":
        prompt = processor.apply_transcription_request([audio], source_language="English", tokenize=False)[0]
        inputs = dict(processor(audio=[audio], text=[prompt + text + "</s>"], output_labels=True, sampling_rate=RATE))
        inputs["labels"][:, : -len(spelt)] = IGNORED
        return inputs
    if family == "cohere_asr":
        inputs = dict(processor(audio=[audio], language="en", sampling_rate=RATE))
        prompt = inputs["decoder_input_ids"][0].tolist()
        inputs["decoder_input_ids"] = torch.tensor([[*prompt, *spelt[:-1]]])
        labels = torch.tensor([[*[IGNORED] * (len(prompt) - 1), *spelt]])
        return {**inputs, "labels": labels, "audio_chunk_index": None}
    inputs = processor(audio, sampling_rate=RATE, return_tensors="pt", padding=True, return_attention_mask=True)
    return {**inputs, "labels": torch.tensor([spelt])}


def test_loss_and_text_of_an_utterance_are_those_of_transformers(family, adapted, cuts):
    speech = adapted(family)
    network = speech.module.get_base_model()
    for cut in cuts:
        inputs, batch = own_inputs(family, speech, cut), speech.collate([cut])
        inputs.pop("audio_chunk_index", None)
        assert speech.loss(batch).item() == pytest.approx(network(**inputs).loss.item(), rel=1e-5)
        labels = inputs.pop("labels")
        first = int((labels[0] != IGNORED).nonzero()[0])
        name = "input_ids" if family in LANGUAGE_MODELS else "decoder_input_ids"
        if name in inputs:
            length = first if family in LANGUAGE_MODELS else first + 1
            inputs[name] = inputs[name][:, :length]
        if family in LANGUAGE_MODELS:
            inputs["attention_mask"] = inputs["attention_mask"][:, :first]
        told = network.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)[0].tolist()
        told = told[inputs[name].shape[1] if name in inputs else 1 :]
        ends = [place for place, token in enumerate(told) if token in speech._ends]
        told = told[: ends[0]] if ends else told
        text = speech._processor.tokenizer.decode(told, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert speech.transcribe(batch, SHORT) == [text.replace("<asr_text>", "").strip()]


def test_the_loss_of_a_batch_is_the_mean_over_its_tokens(family, adapted, cuts):
    speech = adapted(family)
    alone = [speech.collate([cut]) for cut in cuts]
    weights = [speech.loss_weight(batch) for batch in alone]
    expected = sum(w * speech.loss(batch).item() for w, batch in zip(weights, alone, strict=True)) / sum(weights)
    batch = speech.collate(cuts)
    assert speech.loss_weight(batch) == sum(weights) == sum(len(text) for text in batch.texts)
    rel = 0.1 if family in PADDING_SHOWS else 1e-5
    assert speech.loss(batch).item() == pytest.approx(expected, rel=rel)


def test_label_smoothing_spreads_the_target_over_the_vocabulary(family, fresh, cuts):
    speech = fresh(family)
    batch = speech.collate(cuts[:1])
    logits = speech._logits(speech._placed(batch.audio), batch.prompts, batch.texts)[0].log_softmax(-1)
    picked = logits[range(len(batch.texts[0])), batch.texts[0]]
    expected = -(0.9 * picked + 0.1 * logits.mean(-1)).mean()
    assert speech.loss(batch, label_smoothing=0.1).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_text_of_an_utterance_does_not_depend_on_its_batch(family, adapted, cuts):
    speech = adapted(family)
    batch, alone = speech.collate(cuts, text=False), [speech.collate([cut], text=False) for cut in cuts]
    together = speech.transcribe(batch, SHORT)
    assert [speech.transcribe(row, SHORT)[0] for row in alone] == together
    assert len(set(together)) > 1 and all(together)
    beams = Decoding(beams=2, max_new_tokens=6)
    searched = speech.transcribe(batch, beams)
    assert [speech.transcribe(row, beams)[0] for row in alone] == searched != together


def test_texts_and_words_have_the_probability_of_the_tokens_that_write_them(family, adapted, cuts):
    speech = adapted(family)
    batch = speech.collate(cuts, text=False)
    timed = speech.decode_timed(batch, SHORT)
    assert [one.text for one in timed] == speech.transcribe(batch, SHORT)
    with torch.no_grad():
        for row, one in enumerate(timed):
            alone = speech._selected(batch, [row])
            tokens = torch.tensor(speech._search(alone, SHORT)[0])
            likelihood = float(speech.loss(alone._replace(texts=[tokens])).neg().exp())
            assert (one.text == "") == (one.confidence is None)
            assert one.confidence is None or one.confidence == pytest.approx(likelihood, rel=1e-3)
            assert [word.text for word in one.words] == one.text.split()
            assert all(word.start is word.end is None and 0 < word.confidence <= 1 for word in one.words)


def test_the_layers_of_all_groups_change_what_is_heard(family, fresh, tiny_checkpoint, cuts):
    speech = fresh(family)
    groups, layers = speech.layer_groups(), speech.adaptable_layers(["all"])
    assert layers == list(groups) == load_outline(tiny_checkpoint(family), ["all"])[1]
    wanted = {"encoder", "decoder"} | ({"projector"} if family in LANGUAGE_MODELS else set())
    wanted |= {"front-end"} if family != "moonshine_streaming" else set()
    assert {*groups.values()} == wanted
    assert not any(name in ("lm_head", "proj_out") or "embed_tokens" in name for name in groups)
    linear = {name for name, layer in speech.module.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert linear - {*groups} <= {"lm_head", "proj_out"} and {n for n, g in groups.items() if g != FRONT_END} <= linear
    batch = speech.collate(cuts)
    with torch.no_grad():
        before = speech.loss(batch)
        for name in layers:
            weight = speech.module.get_submodule(name).weight
            kept = weight.clone()
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
            assert abs(speech.loss(batch) - before) > 1e-6, name
            weight.copy_(kept)
        assert speech.loss(batch) == before


@pytest.mark.parametrize("family", ["qwen3_asr", pytest.param("canary", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.config])
def test_every_method_starts_at_the_pretrained_model(family, method, fresh, cuts):
    setting = {"portion": "p=0.3", "rank": "rank=4", "band": "band=2", "block": "block=8", "width": "width=4"}[
        METHODS[method].unit
    ]
    setting = "band=0" if method == "svft plain" else setting
    speech = fresh(family)
    batch = speech.collate(cuts[:1])
    before = speech.loss(batch)
    speech.module = apply_method(speech.module, method, speech.adaptable_layers(), Budget.parse(setting)).eval()
    after = speech.loss(batch)
    if method in ("dora", "pissa", "mica", "vera", "psoft", "oft", "osf"):  # PEFT's start up to rounding
        assert after.item() == pytest.approx(before.item(), abs=1e-3)
    else:
        assert after == before
    moved(speech.module)
    assert abs(speech.loss(batch) - before) > 1e-3


def test_training_changes_what_is_trained_and_nothing_else(family, fresh, cuts):
    speech = fresh(family)
    batch = speech.collate(cuts)
    before = copy.deepcopy(speech.module.state_dict())
    speech.module = apply_method(speech.module, "lora", speech.adaptable_layers(), Budget("rank", 4)).train()
    trained = {name: p.detach().clone() for name, p in speech.module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in speech.module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = speech.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    now = dict(speech.module.named_parameters())
    assert all(not torch.equal(now[name], value) for name, value in trained.items())
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation
    for name, value in speech.module.get_base_model().state_dict().items():
        if "lora_" not in name and not name.endswith(statistics):
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name


def test_a_reloaded_and_a_merged_adapter_give_the_same_texts(family, adapted, fresh, cuts, tmp_path):
    speech, again = adapted(family), fresh(family)
    batch = speech.collate(cuts, text=False)
    texts = speech.transcribe(batch, SHORT)
    assert texts != again.transcribe(batch, SHORT)
    speech.module.save_pretrained(tmp_path / "adapter")
    with pytest.raises(TypeError, match="merge the adapter"):
        speech.save(tmp_path / "early")
    again.module = PeftModel.from_pretrained(again.module, tmp_path / "adapter").eval()
    assert again.transcribe(batch, SHORT) == texts
    again.module = again.module.merge_and_unload()
    again.save(tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    assert merged.transcribe(batch, SHORT) == texts
    kind = AutoModelForMultimodalLM if family in LANGUAGE_MODELS else AutoModelForSpeechSeq2Seq
    network, report = kind.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(AutoProcessor.from_pretrained(tmp_path / "merged")) is type(speech._processor)
    merged.module = network.eval()
    assert merged.transcribe(batch, SHORT) == texts


def test_a_half_precision_checkpoint_is_saved_as_one(tmp_path, cuts):
    for family in ("qwen3_asr", "canary"):
        source = write_checkpoint(tmp_path / family, family, torch.bfloat16)
        speech = load_model(source)
        assert next(speech.module.parameters()).dtype == torch.float32
        speech.save(tmp_path / f"saved-{family}")
        first, second = (load_file(path / "model.safetensors") for path in (source, tmp_path / f"saved-{family}"))
        assert first.keys() == second.keys()
        assert all(
            torch.equal(value, second[name]) and value.dtype == second[name].dtype for name, value in first.items()
        )


def test_it_runs_in_bfloat16(family, fresh, cuts):
    speech = fresh(family)
    batch = speech.collate(cuts)
    expected = speech.loss(batch).item()
    speech.module.to(torch.bfloat16)
    loss = speech.loss(batch)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=0.1)
    assert len(speech.transcribe(batch, SHORT)) == 3


def test_masking_is_in_training_only_and_only_where_there_are_features(family, fresh, cuts):
    speech = fresh(family)
    batch = speech.collate(cuts)
    plain = speech.loss(batch)
    speech.spec_augment = SpecAugment(frequency_width=8)
    assert speech.loss(batch) == plain
    speech.module.train()
    if family in READS_SAMPLES:
        with pytest.raises(UserError, match="reads samples, not features"):
            speech.loss(batch)
        return
    assert len({speech.loss(batch).item() for _ in range(3)}) == 3
    name, axis, frames = speech._frames(speech._placed(batch.audio))
    assert name == "input_features" and frames.tolist() == [pytest.approx(s * 100, abs=2) for s in (0.7, 1.9, 1.2)]
    assert speech._placed(batch.audio)[name].shape[3 - axis] == 16


def test_long_recordings_are_cut_at_pauses(family, tiny_checkpoint, cuts):
    speech = load_model(tiny_checkpoint(family), window=2.0, language="en")
    pause = np.zeros(RATE // 2, np.float32)
    whole = np.concatenate([part for cut in cuts for part in (load_audio(cut, RATE), pause)])
    pieces = speech._split(whole)
    assert len(pieces) >= 3 and all(len(piece) <= 2.0 * RATE + 160 for piece in pieces)
    batch = speech._batch([""], [pieces], ["en" if speech._languages else None])
    told = speech.transcribe_audio(whole, SHORT, batch_size=2)
    assert told == speech.transcribe(batch, SHORT)[0]
    segments = list(speech.transcribe_segments(whole, SHORT, batch_size=2))
    assert segments[-1].end == pytest.approx(len(whole) / RATE)
    assert all(word.start is None for segment in segments for word in segment.timed.words)


def test_silence_and_milliseconds_are_read(family, tiny_checkpoint, cuts, tmp_path):
    speech = load_model(tiny_checkpoint(family), language="en")
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE, np.float32), RATE)
    silence = Recording.from_file(tmp_path / "silence.wav").to_cut()
    short = cuts[0].truncate(duration=0.01)
    short.supervisions = cuts[0].supervisions
    silence.supervisions = cuts[0].supervisions
    assert speech.loss(speech.collate([short, silence])).isfinite()
    assert len(speech.transcribe(speech.collate([short, silence, cuts[1]], text=False), SHORT)) == 3


def test_what_cannot_be_learnt_is_told(family, tiny_checkpoint, cuts, tmp_path):
    check = load_check(tiny_checkpoint(family), window=1.0, language="en")
    room = 300 if family in LANGUAGE_MODELS else 120
    good = make_cut(tmp_path, "good", 1.0)
    assert check(good) is None
    speech = load_model(tiny_checkpoint(family), window=1.0, language="en")
    faults = {
        "long": (make_cut(tmp_path, "long", 1.1), "It lasts 1.10 s and the window is 1 s"),
        "wordy": (make_cut(tmp_path, "wordy", 0.5, "abcde " * room), r"tokens and the decoder has \d+: cut it"),
        "mute": (make_cut(tmp_path, "mute", 0.5, " "), "no text"),
        "marked": (make_cut(tmp_path, "marked", 0.5, "a <|endoftext|>"), "a mark for models"),
    }
    if family not in LANGUAGE_MODELS:
        faults["foreign"] = (make_cut(tmp_path, "foreign", 0.5, "\N{CYRILLIC SMALL LETTER DE}"), "vocabulary lacks")
    for name, (cut, reason) in faults.items():
        with pytest.raises(UserError, match=reason):
            raise UserError(check(cut))
        with pytest.raises(UserError, match=f"Utterance {name}: .*{reason}"):
            speech.collate([good, cut])
    with pytest.raises(ValueError, match="text=True"):
        speech.loss(speech.collate([good], text=False))
    with pytest.raises(UserError, match="use 'transcribe'"):
        load_model(tiny_checkpoint(family), task="translate")
    with pytest.raises(UserError, match="A window of 0 s is not possible"):
        load_model(tiny_checkpoint(family), window=0)
