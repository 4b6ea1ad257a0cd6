"""Every family with a CTC head: losses and texts are Transformers', whatever the batch, and training changes little."""

import json
from itertools import groupby

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.demo.random_checkpoints import CTC_FAMILIES, write_random_checkpoint
from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, apply_method
from ssvd.recognisers.families import FAMILIES, REFUSED
from ssvd.recognisers.loading import load_model, load_outline
from ssvd.recognisers.spec_augment import SpecAugment

LINEAR = {"wav2vec2-bert": 8, "parakeet_ctc": 9, "lasr_ctc": 8, "wav2vec2-conformer": 9}  # of a layer
LOG_MEL = ("wav2vec2-bert", "parakeet_ctc", "lasr_ctc")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_random_checkpoint(family, root / family) for family in CTC_FAMILIES}


@pytest.fixture(params=CTC_FAMILIES)
def folder(request, checkpoints):
    return checkpoints[request.param]


@pytest.fixture(scope="module")
def cuts(corpora):
    return list(read_corpus(corpora["child"]).cuts)[:4]


def perturbed(speech, method="ssvd"):
    """Adapted, and away from the start, where every mistake is invisible."""
    speech.module = apply_method(speech.module, method, speech.adaptable_layers()).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in speech.module.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return speech


def read_by_transformers(folder, audio):
    """What the checkpoint's own feature extractor makes of a batch."""
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    mask = {"return_attention_mask": True} if folder.name in LOG_MEL else {}  # as their processors ask for
    return extractor(audio, sampling_rate=16_000, padding=True, return_tensors="pt", **mask)


@torch.no_grad()
def test_the_loss_is_that_of_transformers_on_the_same_batch(folder, cuts):
    speech = perturbed(load_model(folder))
    has_mask = speech._front_end.is_masked  # without it Transformers counts padding as speech
    cuts = cuts if has_mask else cuts[:1]
    batch = speech.collate(cuts)
    tokens = batch.labels.split(batch.label_lengths.tolist())
    labels = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-100)
    inputs = read_by_transformers(folder, [load_audio(cut, 16_000) for cut in cuts])
    blank = speech.module.config.pad_token_id
    if folder.name in ("parakeet_ctc", "lasr_ctc"):  # they take the blank for the padding of labels
        labels[labels == -100] = blank
    assert speech.loss(batch).item() == pytest.approx(speech.module(**inputs, labels=labels).loss.item(), rel=2e-4)


@pytest.mark.parametrize("folder", ["wavlm", "parakeet_ctc", "wav2vec2-bert"], indirect=True)
@torch.no_grad()
def test_the_logits_of_the_base_are_those_of_transformers(folder, cuts):
    """Those of WavLM are computed in another order."""
    speech, audio = load_model(folder), load_audio(cuts[0], 16_000)
    batch = speech.collate(cuts[:1], text=False)
    theirs = AutoModelForCTC.from_pretrained(folder).eval()(**read_by_transformers(folder, [audio])).logits
    ours = speech._logits(batch.inputs, batch.lengths)
    torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], atol=1e-4, rtol=1e-4)


def test_texts_are_those_of_transformers_whatever_the_batch_and_stay_when_merged(folder, cuts, tmp_path):
    speech = perturbed(load_model(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = speech.transcribe(speech.collate(cuts, text=False))
    assert texts == [speech.transcribe(speech.collate([cut], text=False))[0] for cut in cuts]
    for cut, text in zip(cuts, texts, strict=True):
        with torch.no_grad():
            best = speech.module(**read_by_transformers(folder, [load_audio(cut, 16_000)])).logits[0].argmax(-1)
        best = best[: int(speech._frames(speech.collate([cut], text=False).lengths))].tolist()
        spelt = tokenizer.decode([token for token, _ in groupby(best)], group_tokens=False, skip_special_tokens=True)
        assert text.split() == spelt.replace("|", " ").split()
    assert len(set(texts)) > 1 and all(texts)
    speech.module = speech.module.merge_and_unload()
    speech.save(tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    assert merged.transcribe(merged.collate(cuts, text=False)) == texts
    stored = load_file(tmp_path / "merged/model.safetensors")
    for name, value in load_file(folder / "model.safetensors").items():
        assert stored[name].dtype == value.dtype, name


@pytest.mark.parametrize("folder", ["wavlm", "parakeet_ctc", "lasr_ctc"], indirect=True)
def test_words_are_those_of_the_text_and_follow_each_other(folder, cuts):
    speech = perturbed(load_model(folder))
    batch = speech.collate(cuts[:2], text=False)
    for timed, text, cut in zip(speech.decode_timed(batch), speech.transcribe(batch), cuts, strict=False):
        assert timed.text == text and [word.text for word in timed.words] == text.split()
        times = [time for word in timed.words for time in (word.start, word.end)]
        assert times == sorted(times) and times[-1] <= cut.duration + 0.08


def test_lengths_are_known_without_the_audio(folder, cuts):
    speech = load_model(folder)
    for samples in (speech._front_end.shortest, 16_000, 16_001, 16_159, 16_161, 23_456):
        read = speech._front_end(0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32))
        assert len(read) == speech._front_end.length(samples)
        with torch.no_grad():
            logits = speech._logits(read[None], torch.tensor([len(read)]))
        assert logits.shape[1] == int(speech._frames(torch.tensor(len(read)))) > 0 and logits.isfinite().all()


@pytest.mark.parametrize("folder", ["sew", "parakeet_ctc", "wav2vec2-bert", "lasr_ctc"], indirect=True)
def test_an_utterance_of_milliseconds_is_read(folder, cuts):
    speech = load_model(folder)
    short = cuts[0].truncate(duration=0.01)
    assert len(speech.transcribe(speech.collate([short, cuts[1]], text=False))) == 2


@torch.no_grad()
def test_every_layer_of_the_encoder_is_adapted_and_changes_what_is_heard(folder, cuts):
    speech = load_model(folder)
    layers = speech.adaptable_layers()
    assert len(layers) == 2 * LINEAR.get(folder.name, 6) and load_outline(folder)[1] == layers
    batch = speech.collate(cuts[:1], text=False)
    before = speech._logits(batch.inputs, batch.lengths)
    speech.module = apply_method(speech.module, "lora", layers, Budget.parse("rank=1")).eval()
    assert torch.equal(speech._logits(batch.inputs, batch.lengths), before)
    torch.manual_seed(1)
    for name in layers:
        adapter = speech.module.get_submodule(f"base_model.model.{name}").lora_B["default"].weight
        adapter += 10 * torch.randn_like(adapter)
        assert (speech._logits(batch.inputs, batch.lengths) - before).abs().max() > 1e-5, name
        adapter.zero_()
    assert torch.equal(speech._logits(batch.inputs, batch.lengths), before)


@pytest.mark.parametrize("family", ["wavlm", pytest.param("parakeet_ctc", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.config is not None])
@torch.no_grad()
def test_every_method_starts_at_the_base(family, name, checkpoints, cuts):
    speech = load_model(checkpoints[family])
    batch = speech.collate(cuts[:1], text=False)
    before = speech._logits(batch.inputs, batch.lengths)
    method = METHODS[name]
    budget = {"rank": "rank=4", "block": "block=8", "band": "band=0"}.get(method.unit, "p=0.4")
    speech.module = apply_method(speech.module, name, speech.adaptable_layers(), Budget.parse(budget)).eval()
    after = speech._logits(batch.inputs, batch.lengths)
    if name in ("pissa", "psoft", "osf"):  # they put the weights together again from what they took off
        torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    else:
        assert torch.equal(after, before)


def test_training_changes_only_what_is_trained(folder, cuts):
    speech = load_model(folder)
    speech.module = apply_method(speech.module, "ssvd", speech.adaptable_layers())
    before = {name: value.clone() for name, value in speech.module.state_dict().items()}
    trained = {name for name, parameter in speech.module.named_parameters() if parameter.requires_grad}
    speech.spec_augment = SpecAugment()
    optimiser = torch.optim.AdamW([p for p in speech.module.parameters() if p.requires_grad], lr=0.01)
    speech.module.train()
    for _ in range(3):
        optimiser.zero_grad()
        speech.loss(speech.collate(cuts[:2])).backward()
        optimiser.step()
    changed = {name for name, value in speech.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained


@pytest.mark.parametrize("family", ["wavlm", "parakeet_ctc"])
def test_masking_is_only_done_when_asked_for(family, checkpoints, cuts):
    speech = load_model(checkpoints[family])
    speech.module.train()
    for layer in speech.module.modules():
        layer.p = 0.0 if isinstance(layer, torch.nn.Dropout) else getattr(layer, "p", None)
        for name in ("dropout", "dropout_positions", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    batch = speech.collate(cuts[:2])
    assert speech.loss(batch).item() == speech.loss(batch).item()
    speech.spec_augment = SpecAugment()
    assert len({speech.loss(batch).item() for _ in range(3)}) > 1
    speech.module.eval()
    assert speech.loss(batch).item() == speech.loss(batch).item()


@pytest.mark.parametrize("family", ["wavlm", "parakeet_ctc", pytest.param("wav2vec2-bert", marks=pytest.mark.slow)])
def test_the_commands_run_from_end_to_end(family, checkpoints, corpora, ssvd, tmp_path, monkeypatch):
    model, table, run = checkpoints[family], corpora["child"], tmp_path / "run"
    code, out, err = ssvd("plan", model, "--budget", "p=0.4", "--json")
    assert code == 0, err
    planned = {row["method"]: row["trainable_parameters"] for row in json.loads(out)["methods"]}
    assert ssvd("data", "check", table, "--model", model, "--no-audio", "--workers", 1)[0] == 0
    options = ["--epochs", 1, "--batch-size", 8, "--learning-rate", 0.01, "--device", "cpu", "--spec-augment"]
    code, _, err = ssvd("adapt", model, "--train", table, "--dev", table, "--out", run, *options)
    assert code == 0, err
    assert json.loads((run / "result.json").read_text())["trainable_parameters"] == planned["ssvd"]
    weights = run / "adapter/adapter_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            name: value
            if "fingerprint" in name or "variant" in name
            else value + 0.1 * torch.randn(value.shape, generator=generator)
            for name, value in load_file(weights).items()
        },
        weights,
        {"format": "pt"},
    )
    code, _, err = ssvd("evaluate", table, "--run", run, "--json", "--out", tmp_path / "scores")
    assert code == 0, err
    rows = [
        {row["id"]: row["hypothesis"] for row in map(json.loads, path.read_text().splitlines())}
        for path in sorted((tmp_path / "scores/hypotheses").glob("*.jsonl"))
    ]
    base, adapted = rows
    assert base != adapted
    assert ssvd("merge", run, tmp_path / "merged")[0] == 0
    merged, all_cuts = load_model(tmp_path / "merged"), list(read_corpus(table).cuts)
    texts = merged.transcribe(merged.collate(all_cuts, text=False))
    assert {cut.id: text for cut, text in zip(all_cuts, texts, strict=True)} == adapted
    code, out, _ = ssvd("transcribe", "--run", run, all_cuts[0].recording.sources[0].source)
    assert code == 0 and " ".join(out.split()) == " ".join(adapted[all_cuts[0].id].split())
    # The card says how a PEFT user loads it, which for WavLM takes a line more.
    card = (run / "adapter/README.md").read_text().split("```python")[1].split("```")[0]
    monkeypatch.chdir(model.parent)
    exec(card.replace('"adapter"', repr(str(run / "adapter"))), loaded := {})
    speech = load_model(model)
    speech.module = loaded["model"].eval()
    assert speech.transcribe(speech.collate(all_cuts[:2], text=False)) == [adapted[cut.id] for cut in all_cuts[:2]]


# What shapes the networks, as the config.json of these repositories on huggingface.co state it (the last two are only
# pretrained: with a head of 32 letters); parameters in all, and layers that are adapted. The counts of all but the last
# were also made by hand.
PUBLISHED = {
    "nvidia/parakeet-ctc-0.6b": (
        {"model_type": "parakeet_ctc", "vocab_size": 1025, "pad_token_id": 1024}
        | {"encoder_config": {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}},
        608_799_745,
        216,
    ),
    "nvidia/parakeet-ctc-1.1b": (
        {"model_type": "parakeet_ctc", "vocab_size": 1025, "pad_token_id": 1024}
        | {"encoder_config": {"hidden_size": 1024, "num_hidden_layers": 42, "intermediate_size": 4096}},
        1_062_540_289,
        378,
    ),
    "microsoft/wavlm-large": (
        {"model_type": "wavlm", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"intermediate_size": 4096, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": False}
        | {"vocab_size": 32, "num_buckets": 320, "max_bucket_distance": 800},
        315_485_920,
        144,
    ),
    "facebook/w2v-bert-2.0": (
        {"model_type": "wav2vec2-bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"intermediate_size": 4096, "feature_projection_input_dim": 160, "vocab_size": None, "add_adapter": False},
        580_525_920,
        192,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_planned_within_seconds(name, tmp_path, ssvd):
    config, parameters, layers = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, out, err = ssvd("plan", tmp_path, "--budget", "p=0.4", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["layers"] == layers and planned["parameters"] == parameters
    assert {row["method"] for row in planned["methods"] if row["reason"] is None} >= {"ssvd", "lora", "pissa", "full"}


def test_what_a_family_is_not_is_told_with_its_sibling(tmp_path, refused):
    assert not FAMILIES.keys() & REFUSED.keys()
    for model_type, row in REFUSED.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(UserError) as told:
            load_outline(tmp_path)
        assert row.reason in str(told.value) and row.sibling in FAMILIES and row.sibling in str(told.value)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "parakeet_rnnt"}))
    assert "a TDT transducer or has a CTC head" in refused("plan", tmp_path)


@pytest.mark.parametrize("family", LOG_MEL)
def test_features_of_another_number_of_bands_are_refused(family, tmp_path):
    folder = write_random_checkpoint(family, tmp_path / "model")
    changed = "num_mel_bins" if family == "wav2vec2-bert" else "feature_size"
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {changed: 64}))
    with pytest.raises(UserError, match="disagree on the bands of a feature"):
        load_model(folder)
