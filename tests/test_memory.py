"""Less memory in training: rounded frozen weights, activations computed again, and what is planned of it."""

import json
import subprocess
import sys
from dataclasses import astuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2Config

from ssvd.adapt import adapt
from ssvd.corpora.corpus import read_corpus
from ssvd.demo.random_checkpoints import CTC_FAMILIES, write_random_checkpoint
from ssvd.errors import UserError
from ssvd.methods import Budget, apply_method
from ssvd.plan import Load, plan_methods, planned_memory
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import load_model
from ssvd.spectral import Basis
from ssvd.training.memory import checkpoint_activations, round_frozen
from ssvd.training.run_folder import load_adapted
from tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def utterances(corpora):
    return list(read_corpus(corpora["child"]).cuts)[:3]


def ready(model, method, budget="p=0.4", language=None):
    """A recogniser with an adapter whose parameters are not at their start."""
    speech = load_model(model, language=language)
    torch.manual_seed(0)
    speech.module = apply_method(speech.module, method, speech.adaptable_layers(), Budget.parse(budget)).train()
    with torch.no_grad():
        for parameter in speech.module.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    return speech


def gradients(speech, batch):
    speech.module.zero_grad()
    speech.loss(batch).backward()
    return {name: p.grad.clone() for name, p in speech.module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["ssvd", "ssvd strict", "svft", "lora"])
def test_activations_computed_again_give_the_same_gradients(embedded, utterances, method):
    speech = ready(embedded, method)
    batch = speech.collate(utterances)
    expected = gradients(speech, batch)
    checkpoint_activations(speech.module)
    for name, gradient in gradients(speech, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["ssvd", "svft", "lora"])
def test_frozen_weights_are_rounded_and_what_is_trained_is_not(embedded, utterances, method):
    speech = ready(embedded, method)
    batch = speech.collate(utterances)
    expected = gradients(speech, batch)
    round_frozen(speech.module, torch.bfloat16)
    for parameter in speech.module.parameters():
        stays = parameter.requires_grad or parameter.ndim == 1
        assert parameter.dtype == (torch.float32 if stays else torch.bfloat16)
    bases = [module for module in speech.module.modules() if isinstance(module, Basis)]
    assert all(basis.U.dtype == basis.V.dtype == torch.bfloat16 for basis in bases)
    assert all(basis.S.dtype == basis.fingerprint.dtype == torch.float32 for basis in bases)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(speech, batch)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    whole, other = (torch.cat([part.flatten() for part in parts.values()]) for parts in (expected, found))
    assert torch.nn.functional.cosine_similarity(whole, other, dim=0) > 0.98


@pytest.mark.parametrize(
    "family", ["qwen3_asr", "canary", "cohere_asr", "moonshine", "wavlm", "parakeet_ctc", "parakeet_tdt"]
)
def test_every_kind_of_network_trains_with_rounded_weights(family, utterances, tmp_path):
    if family in CTC_FAMILIES:
        write_random_checkpoint(family, tmp_path / "model")
    else:
        write_checkpoint(tmp_path / "model", family)
    speech = ready(tmp_path / "model", "ssvd", "portion=0.4", language="en")
    speech.module.eval()  # no dropout
    batch = speech.collate(utterances)
    expected = gradients(speech, batch)
    round_frozen(speech.module, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(speech, batch)
    whole, other = (torch.cat([part.flatten() for part in parts.values()]) for parts in (expected, found))
    assert torch.nn.functional.cosine_similarity(whole, other, dim=0) > 0.95


def test_adapter_of_a_rounded_base_loads_onto_the_model_as_it_is(options, embedded, tmp_path):
    chosen = options(base_dtype="bfloat16", checkpointing=True, epochs=1, learning_rate=5e-3)
    result = adapt(chosen, tmp_path / "run")
    assert result.series[1].loss < 5
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    speech = load_adapted(str(embedded), tmp_path / "run")
    assert {parameter.dtype for parameter in speech.module.parameters()} == {torch.float32}


def test_mixed_precision_changes_the_arithmetic_and_not_the_weights(options, tmp_path):
    chosen = options(epochs=1, updates_per_epoch=1, learning_rate=5e-3)
    losses = {}
    for precision in ("auto", "float32", "bfloat16"):
        run = tmp_path / precision
        losses[precision] = adapt(chosen.model_copy(update={"precision": precision}), run).series[1].loss
        weights = load_file(run / "adapter" / "adapter_model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert losses["auto"] == losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "full", "base_dtype": "bfloat16"}, "The method 'full' trains the base weights themselves"),
        ({"base_dtype": "float16"}, "A base_dtype of float16 needs a CUDA GPU: use bfloat16"),
        ({"base_dtype": "bfloat16", "precision": "float32"}, "A base_dtype of bfloat16 needs mixed precision"),
    ],
)
def test_savings_that_are_not_possible_are_refused(options, tmp_path, monkeypatch, change, told):
    monkeypatch.setattr("ssvd.adapt.read_data", lambda *args: pytest.fail("the corpus was read"))
    with pytest.raises(UserError, match=told):
        adapt(options(**change), tmp_path / "run")


# what is planned


CASES = [
    ("ssvd", "float32", False),
    ("ssvd", "bfloat16", True),
    ("ssvd", "float32", False, None, "bfloat16"),
    ("lora", "float32", False),
    ("full", "float32", True),
]
MEASURES = """
import json, sys
sys.path.append(sys.argv[1])
from memory import measured
from ssvd.plan import Load
cases = [(method, Load(2, 4.0, *saved)) for method, *saved in json.loads(sys.argv[3])]
print(json.dumps([measured(sys.argv[2], method, load)[1] for method, load in cases]))
"""


@pytest.mark.parametrize("cases", [CASES[2:4], pytest.param(CASES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_planned_memory_of_a_step_is_what_is_measured(embedded, cases):
    speed = embedded.parents[3] / "speed"
    if not speed.is_dir():
        pytest.skip("the package is not in its repository")
    # Of its own, as tensors without content disturb the profiler.
    command = [sys.executable, "-c", MEASURES, str(speed), str(embedded), json.dumps(cases)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    for case, found in zip(cases, json.loads(process.stdout.splitlines()[-1]), strict=True):
        method, *saved = case
        memory = planned_memory(embedded, method, Budget("p", 0.4), USUAL_GROUPS, Load(2, 4.0, *saved))
        assert memory.step == pytest.approx(found, rel=0.1), case


def test_planned_memory_is_that_of_the_tensors(embedded):
    network = ready(embedded, "ssvd").module
    memory = planned_memory(embedded, "ssvd", Budget("p", 0.4), USUAL_GROUPS, Load(1, 4.0))
    assert memory.weights == sum(part.nbytes for part in network.parameters())
    assert memory.bases == sum(part.nbytes for part in network.buffers())
    assert memory.moments == 2 * sum(part.nbytes for part in network.parameters() if part.requires_grad)
    assert memory.total == sum(astuple(memory)[:4])
    half = planned_memory(embedded, "ssvd", Budget("p", 0.4), USUAL_GROUPS, Load(1, 4.0, "bfloat16"))
    assert half.weights < 0.53 * memory.weights and half.bases < 0.55 * memory.bases


def test_memory_of_models_that_read_samples_is_planned_without_their_masks_and_dropped_layers(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    convolutions = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Config(**sizes, **convolutions, vocab_size=32, layerdrop=0.5).save_pretrained(tmp_path)
    kept, again = (
        planned_memory(tmp_path, "ssvd", Budget("p", 0.4), USUAL_GROUPS, Load(2, 3.0, checkpointing=checkpointing))
        for checkpointing in (False, True)
    )
    assert 0 < again.step < 0.7 * kept.step and kept.weights == again.weights


def test_plan_shows_memory_only_for_a_load(embedded, monkeypatch):
    assert all(row.memory is None for row in plan_methods(embedded, "4%").methods)
    told = iter(range(1000))
    monkeypatch.setattr("ssvd.plan.planned_memory", lambda *args: next(told))
    rows = plan_methods(embedded, "4%", load=Load(2)).methods
    assert all((row.memory is None) == (row.reason is not None) for row in rows)
