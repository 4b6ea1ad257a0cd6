"""Parakeet-TDT: loss and texts are those of Transformers, in bounded memory, whatever the batch."""

import copy
import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForTDT, AutoProcessor

from ssvd.corpora.audio import load_audio
from ssvd.demo.random_checkpoints import write_random_checkpoint
from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, apply_method
from ssvd.recognisers import transducer
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import load_check, load_model, load_outline
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.recognisers.vocabulary import Vocabulary
from ssvd.training.step_memory import _Held
from test_autoregressive import make_cut, moved, perturbed


@pytest.fixture
def folder(tiny_checkpoint):
    return tiny_checkpoint("parakeet_tdt")


@pytest.fixture
def speech(fresh):
    return fresh("parakeet_tdt")


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    root = tmp_path_factory.mktemp("cuts")
    spoken = [("one", 0.7, "a ball"), ("two", 1.9, "the monkey chased an elephant"), ("three", 1.2, "we saw a dog")]
    return [make_cut(root, name, seconds, text) for name, seconds, text in spoken]


def loss_of_transformers(speech, batch):
    """The loss of the network on the whole batch, with labels as its processor makes them."""
    config = speech._base_model.config
    texts = batch.labels.split(batch.label_lengths.tolist())
    labels = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=config.pad_token_id)
    begun = torch.nn.functional.pad(labels, (1, 0), value=config.blank_token_id)
    return speech.module(**speech._read(batch.inputs, batch.lengths), labels=labels, decoder_input_ids=begun).loss


def gradients(speech, loss):
    speech.module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in speech.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("at_once", [30_000, 2**24])
def test_loss_and_gradients_are_those_of_transformers_in_whatever_slices(speech, cuts, monkeypatch, at_once):
    monkeypatch.setattr(transducer, "_AT_ONCE", at_once)
    perturbed(speech)
    batch = speech.collate(cuts)
    expected, found = loss_of_transformers(speech, batch), speech.loss(batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found, expected = gradients(speech, found), gradients(speech, expected)
    assert found.keys() == expected.keys() and len(found) > 18
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_labels_are_those_of_the_processor(folder, speech, cuts):
    processor = AutoProcessor.from_pretrained(folder)
    texts = [cut.supervisions[0].text.upper() for cut in cuts]
    expected = processor([load_audio(cut, 16_000) for cut in cuts], text=texts, sampling_rate=16_000)
    batch = speech.collate(cuts)
    for tokens, labels in zip(batch.labels.split(batch.label_lengths.tolist()), expected["labels"], strict=True):
        assert tokens.tolist() == labels[: len(tokens)].tolist()
        assert (labels[len(tokens) :] == processor.tokenizer.pad_token_id).all()


def test_the_memory_of_the_joint_network_does_not_grow_with_the_batch(speech, cuts, monkeypatch):
    def held(loss, batch):
        with _Held([*speech.module.parameters(), *batch[2:]]) as memory:
            loss(batch).backward()
        return memory.peak

    monkeypatch.setattr(transducer, "_AT_ONCE", 2**14)
    speech.module.requires_grad_(False)
    speech.module.decoder.decoder_projector.requires_grad_(True)  # nothing is kept of the encoder
    one, two = (speech.collate([cuts[1]] * count) for count in (1, 2))
    whole = held(lambda batch: loss_of_transformers(speech, batch), two)
    ours = [held(speech.loss, batch) for batch in (one, two)]
    assert ours[1] < 0.2 * whole and ours[1] - ours[0] < 0.1 * whole


def text_of_transformers(folder, network, cut):
    """What Transformers' own search writes, which takes the logits of durations for those of tokens if it may."""
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor([load_audio(cut, 16_000)], sampling_rate=16_000)
    config = network.config
    durations = range(config.vocab_size, config.vocab_size + len(config.durations))
    written = network.generate(
        **inputs, decoder_start_token_id=config.blank_token_id, suppress_tokens=[*durations], max_new_tokens=400
    )
    return processor.decode(written.sequences, durations=written.durations, skip_special_tokens=True)


def test_texts_are_those_of_transformers_whatever_the_batch_and_stay_when_reloaded_and_merged(
    folder, speech, cuts, tmp_path
):
    batch = speech.collate(cuts, text=False)
    again, before = copy.deepcopy(speech), speech.transcribe(batch)
    perturbed(speech)
    texts = speech.transcribe(batch)
    assert texts == [speech.transcribe(speech.collate([cut], text=False))[0] for cut in cuts]
    assert len({*texts, *before}) == 6 and all(texts)
    speech.module.save_pretrained(str(tmp_path / "adapter"))
    again.module = PeftModel.from_pretrained(again.module, str(tmp_path / "adapter")).eval()
    assert again.transcribe(batch) == texts
    speech.module = speech.module.merge_and_unload()
    speech.save(tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    assert merged.transcribe(batch) == texts
    network = AutoModelForTDT.from_pretrained(tmp_path / "merged").eval()
    for cut, text in zip(cuts, texts, strict=True):
        (written,), _ = text_of_transformers(tmp_path / "merged", network, cut)
        assert text.split() == written.split()
    assert AutoProcessor.from_pretrained(tmp_path / "merged").decoder_type == "tdt"


def test_words_are_those_of_the_text_at_the_times_of_transformers(folder, speech, cuts):
    speech.module = perturbed(speech).module.merge_and_unload()  # else Transformers' search stays at a frame
    batch, frame = speech.collate(cuts, text=False), 0.08
    timed, rows = speech.decode_timed(batch), list(speech._search(batch, Decoding()))
    for found, row, text, cut in zip(timed, rows, speech.transcribe(batch), cuts, strict=True):
        assert found.text == text and [word.text for word in found.words] == text.split()
        times = [time for word in found.words for time in (word.start, word.end)]
        assert times == sorted(times) and times[-1] <= cut.duration + frame
        assert 0 < found.confidence < 1 and all(0 < word.confidence < 1 for word in found.words)
        _, (tokens,) = text_of_transformers(folder, speech.module, cut)
        assert [token["start"] for token in tokens] == pytest.approx([said.start * frame for said in row])
        assert [token["end"] for token in tokens][:-1] == pytest.approx([said.end * frame for said in row][:-1])
        assert times[0] == pytest.approx(row[0].start * frame) and times[-1] == pytest.approx(row[-1].end * frame)


def test_a_search_that_stays_at_a_frame_goes_on_after_the_most_symbols(speech, cuts):
    config = speech.module.config
    config.max_symbols_per_step = 3
    with torch.no_grad():
        speech.module.joint.head.bias[config.blank_token_id] = -1e4
        speech.module.joint.head.bias[config.vocab_size] = 1e4  # no time passes
    batch = speech.collate(cuts, text=False)
    rows = list(speech._search(batch, Decoding()))
    for row, frames in zip(rows, speech._frames(batch.lengths).tolist(), strict=True):
        assert [said.start for said in row] == [frame for frame in range(frames) for _ in range(3)]
    alone = [next(speech._search(speech.collate([cut], text=False), Decoding())) for cut in cuts]
    assert [[said.token for said in row] for row in alone] == [[said.token for said in row] for row in rows]
    assert [len(row) for row in speech._search(batch, Decoding(max_new_tokens=4))] == [4, 4, 4]


@torch.no_grad()
def test_every_layer_that_is_adapted_counts_and_the_lstm_is_none_of_them(folder, speech, cuts):
    assert len(speech.adaptable_layers()) == 2 * 9 + 2 and len(speech.adaptable_layers(["all"])) == 2 * 9 + 2 + 3
    assert speech.adaptable_layers(["projector"]) == ["encoder_projector"]
    assert speech.adaptable_layers(["decoder"]) == ["decoder.decoder_projector"]
    layers = load_outline(folder, ["all"])[1]
    assert layers == speech.adaptable_layers(["all"])
    with pytest.raises(UserError, match="No layer of the model matches 'lstm'"):
        speech.adaptable_layers(["lstm"])
    batch = speech.collate(cuts[:1])
    before = speech.loss(batch)
    speech.module = apply_method(speech.module, "lora", layers, Budget.parse("rank=1")).eval()
    assert torch.equal(speech.loss(batch), before)
    torch.manual_seed(1)
    for name in layers:
        adapter = speech.module.get_submodule(f"base_model.model.{name}").lora_B["default"].weight
        adapter += torch.randn_like(adapter)
        assert abs(speech.loss(batch) - before) > 1e-5, name
        adapter.zero_()
    assert torch.equal(speech.loss(batch), before)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.config is not None])
@torch.no_grad()
def test_every_method_starts_at_the_base(name, speech, cuts):
    batch = speech.collate(cuts[:1])
    before = speech.loss(batch)
    budget = {"rank": "rank=4", "block": "block=8", "band": "band=0"}.get(METHODS[name].unit, "p=0.4")
    speech.module = apply_method(speech.module, name, speech.adaptable_layers(), Budget.parse(budget)).eval()
    after = speech.loss(batch)
    if name in ("pissa", "psoft", "osf"):  # they put the weights together again from what they took off
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(after, before)


@pytest.mark.parametrize("method", ["ssvd", "full encoder"])
def test_training_changes_only_what_is_trained(speech, cuts, method):
    batch, layers = speech.collate(cuts[:2]), speech.adaptable_layers(["all"])
    speech.module = apply_method(speech.module, method, layers).train()
    speech.spec_augment = SpecAugment()
    before = {name: value.clone() for name, value in speech.module.state_dict().items()}
    trained = {name for name, parameter in speech.module.named_parameters() if parameter.requires_grad}
    assert method == "ssvd" or all(name.startswith("encoder.") for name in trained)
    if method == "ssvd":
        moved(speech.module, 0.1)
    optimiser = torch.optim.AdamW([p for p in speech.module.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        speech.loss(batch).backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in speech.module.parameters() if p.requires_grad)
        optimiser.step()
    changed = {name for name, value in speech.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained


@pytest.mark.parametrize("family", ["parakeet_tdt", "parakeet_ctc", "canary", "cohere_asr"])
@torch.no_grad()
def test_padding_stays_hidden_behind_adapted_convolutions(family, cuts, fresh, tmp_path):
    """Transformers masks it behind what is a convolution itself, which one with an adapter is not."""
    speech = load_model(write_random_checkpoint(family, tmp_path)) if family == "parakeet_ctc" else fresh(family)
    layers = speech.adaptable_layers(["front-end"])
    speech.module = moved(apply_method(speech.module, "lora", layers, Budget.parse("rank=2")).eval())
    batch = speech.collate([cut for cut in cuts if cut.id != "two"])
    adapted = speech.loss(batch)
    speech.module = speech.module.merge_and_unload()
    torch.testing.assert_close(speech.loss(batch), adapted, rtol=1e-4, atol=1e-4)


def test_what_it_does_not_have_is_refused(folder, speech, cuts, tmp_path):
    batch = speech.collate(cuts[:1])
    with pytest.raises(UserError, match="no label smoothing"):
        speech.loss(batch, label_smoothing=0.1)
    with pytest.raises(UserError, match="greedily: use one beam"):
        speech.transcribe(batch, Decoding(beams=2))
    with pytest.raises(ValueError, match="collate it with text=True"):
        speech.loss(speech.collate(cuts[:1], text=False))
    with pytest.raises(UserError, match="has no CTC head: choose one of a family that has"):
        load_model(folder, vocabulary=Vocabulary(("a", "b"), "symbols.txt"))
    told = load_check(folder)(make_cut(tmp_path, "long", 0.1, "a dog " * 20))
    assert told == "Its text takes 80 tokens and at most 20 are written in its time: correct it."


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"durations": [0, 1, 2, 4]},
            r"durations in the config.json of .* are \[0, 1, 2, 4\], and Transformers decodes",
        ),
        ({"blank_token_id": 300}, r"the blank \(blank_token_id\)"),
        ({"blank_token_id": 40}, "The blank in the config.json of .* is the token 40, which is "),
        ({"pad_token_id": 0}, r"disagree on the filling \(0 in config.json, 256 in the tokenizer"),
        ({"vocab_size": 200}, "token"),
        ({"num_mel_bins": 64}, "disagree on the bands of a feature"),
    ],
)
def test_parts_that_do_not_belong_together_are_told(folder, tmp_path, fields, told):
    changed = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((changed / "config.json").read_text())
    (config["encoder_config"] if "num_mel_bins" in fields else config).update(fields)
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        load_check(changed)


def test_the_published_size_is_planned_within_seconds(tmp_path, ssvd):
    """As huggingface.co/nvidia/parakeet-tdt-0.6b-v3 states it; its parameters were also counted by hand."""
    encoder = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 4096}
    encoder |= {"num_mel_bins": 128, "attention_bias": False, "convolution_bias": False, "scale_input": False}
    config = {"model_type": "parakeet_tdt", "vocab_size": 8193, "blank_token_id": 8192, "pad_token_id": 2}
    config |= {"decoder_hidden_size": 640, "num_decoder_layers": 2, "durations": [0, 1, 2, 3, 4]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_config": encoder}))
    code, out, err = ssvd("plan", tmp_path, "--budget", "p=0.4", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["layers"] == 24 * 9 + 2 and planned["parameters"] == 627_008_134
    assert {row["method"] for row in planned["methods"] if row["reason"] is None} >= {"ssvd", "lora", "pissa", "full"}
