"""Adapters on a base model whose linear layers have 8 or 4 bits."""

from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from ssvd import SSVDConfig, SVFTConfig
from ssvd.adapt import adapt
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.merge import merge
from ssvd.methods import Budget, apply_method, linear_shapes, parameters
from ssvd.plan import Load, planned_memory
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.quantisation import _follow
from ssvd.training.adapter_file import quantisation_of
from ssvd.training.base_fingerprint import base_fingerprint, differing_weight
from ssvd.training.memory import check_quantisable, check_savings
from ssvd.training.run_folder import load_adapted, load_base, quantise_of
from ssvd.tuners.quantised import dequantised_weight, is_quantised
from tiny_checkpoints import write_checkpoint

bnb = pytest.importorskip("bitsandbytes")

BITS = ("8bit", "4bit")
LAYERS = ["model.encoder.layers.0.fc1", "model.decoder.layers.1.encoder_attn.q_proj"]  # tall and square
CONFIGS = {
    "ssvd": SSVDConfig(target_modules=LAYERS, portion=0.4, basis="stored"),
    "strict": SSVDConfig(target_modules=LAYERS, portion=0.4, basis="stored", rotation="strict", rotate="both"),
    "svft": SVFTConfig(target_modules=LAYERS, off_diagonals=4, basis="stored"),
}
CASES = [("8bit", "ssvd"), ("4bit", "ssvd"), ("4bit", "strict"), ("8bit", "svft")]


def loaded(model, bits=None, **options):
    return load_model(model, quantise=bits, **options).module


def adapted(module, config, seed=0):
    """A network with an adapter whose parameters are not at their start."""
    network = get_peft_model(module, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture(scope="module")
def inputs(embedded):
    config = loaded(embedded).config
    generator = torch.Generator().manual_seed(1)
    shape = 2, config.num_mel_bins, 2 * config.max_source_positions
    return {
        "input_features": torch.randn(shape, generator=generator),
        "decoder_input_ids": torch.randint(0, 200, (2, 5), generator=generator),
    }


@torch.no_grad()
def logits(network, inputs):
    return network(**inputs, use_cache=False).logits


def difference(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("bits", BITS)
def test_linear_layers_are_quantised_and_nothing_else(embedded, bits):
    plain, network = loaded(embedded), loaded(embedded, bits)
    layers = load_model(embedded).adaptable_layers()
    assert [name for name, layer in network.named_modules() if is_quantised(layer)] == layers
    assert parameters(network) == parameters(plain)
    assert linear_shapes(network, layers) == linear_shapes(plain, layers)
    for name, weight in plain.state_dict().items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(network.state_dict()[name], weight)
    for name in LAYERS:
        error = difference(dequantised_weight(network.get_submodule(name)), plain.get_submodule(name).weight)
        assert error < {"8bit": 0.01, "4bit": 0.11}[bits]


@pytest.mark.parametrize(("bits", "name"), CASES)
def test_an_adapter_at_its_start_changes_no_bit(embedded, inputs, bits, name):
    network = loaded(embedded, bits)
    before = logits(network, inputs)
    network = get_peft_model(network, CONFIGS[name]).eval()
    assert torch.equal(logits(network, inputs), before)
    assert torch.equal(logits(adapted(loaded(embedded, bits), CONFIGS[name]), inputs), before) is False


@pytest.mark.parametrize(("bits", "name"), CASES)
def test_a_trained_adapter_reloads_to_the_same_outputs(embedded, inputs, bits, name, tmp_path):
    network = adapted(loaded(embedded, bits), CONFIGS[name])
    expected = logits(network, inputs)
    network.save_pretrained(tmp_path)
    found = logits(PeftModel.from_pretrained(loaded(embedded, bits), tmp_path).eval(), inputs)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("bits", "name"), CASES)
def test_gradients_and_merged_weights_are_those_of_the_dequantised_model(embedded, inputs, bits, name, tmp_path):
    network = adapted(loaded(embedded, bits), CONFIGS[name])
    network.save_pretrained(tmp_path)
    plain = loaded(embedded, bits, dequantise=True)
    assert not any(map(is_quantised, plain.modules()))
    plain = PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)
    gradients = []
    for model in (network.train(), plain.train()):
        output = model(**inputs, use_cache=False).logits
        output.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert difference(*gradients) < 1e-4 and gradients[1].norm() > 0
    expected = output.detach()
    with pytest.raises(ValueError, match=r"not merged into quantised weights: load the adapter onto the dequantised"):
        network.merge_adapter()
    merged = plain.eval().merge_and_unload()
    assert difference(logits(merged, inputs), expected) < 1e-5
    # 8-bit products round their inputs too, except in training on a CPU.
    rounding = {"8bit": 0.05, "4bit": 1e-5}[bits]
    assert difference(logits(network.eval(), inputs), expected) < rounding


@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "vera", "oft", "bottleneck"])
def test_methods_of_peft_train_on_quantised_weights(embedded, inputs, name):
    budget = {"oft": Budget("p", 0.1), "bottleneck": Budget("width", 4)}.get(name, Budget("rank", 4))
    layers = ["model.encoder.layers.0.fc2"] if name == "bottleneck" else LAYERS
    network = apply_method(loaded(embedded, "8bit"), name, layers, budget, tolerance=10).train()
    for _ in range(2):
        network(**inputs, use_cache=False).logits.square().mean().backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert trained and all(p.is_floating_point() and torch.isfinite(p.grad).all() for p in trained)


@pytest.mark.parametrize("bits", BITS)
def test_a_stored_basis_of_the_unrounded_weights_loads_onto_rounded_ones(embedded, inputs, bits, tmp_path):
    network = adapted(loaded(embedded), CONFIGS["ssvd"])
    network.save_pretrained(tmp_path)
    found = PeftModel.from_pretrained(loaded(embedded, bits), tmp_path).eval()
    assert difference(logits(found, inputs), logits(network, inputs)) < 0.3
    other = loaded(embedded, bits)
    for name in LAYERS:
        layer = other.get_submodule(name)
        layer.weight.data = layer.weight.data.flip(0)  # another model
    with pytest.raises(ValueError, match="trained on another base model"):
        PeftModel.from_pretrained(other, tmp_path)


def test_without_a_stored_basis_the_weights_are_decomposed_again(embedded, inputs, tmp_path):
    network = adapted(loaded(embedded, "4bit"), SSVDConfig(target_modules=LAYERS))
    network.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(loaded(embedded, "4bit"), tmp_path).eval()
    torch.testing.assert_close(logits(again, inputs), logits(network, inputs), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="another singular basis"):
        PeftModel.from_pretrained(loaded(embedded), tmp_path)


def test_token_stride_is_refused(embedded):
    config = SSVDConfig(target_modules=LAYERS, token_stride=2)
    with pytest.raises(ValueError, match="SSVD has no `token_stride` on quantised weights"):
        get_peft_model(loaded(embedded, "8bit"), config)


@pytest.mark.parametrize("bits", BITS)
def test_decoding_leaves_the_weights_ready_for_training(embedded, inputs, bits):
    network = adapted(loaded(embedded, bits), CONFIGS["ssvd"])
    with torch.no_grad():
        network(**inputs)
        network.generate(inputs["input_features"], max_new_tokens=3)
    network.train()(**inputs).logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("bits", BITS)
def test_mixed_precision_computes_as_other_layers_do(embedded, bits):
    network = adapted(loaded(embedded, bits), CONFIGS["ssvd"]).train()
    layer = network.base_model.model.get_submodule(LAYERS[0])
    x = torch.randn(2, 3, layer.in_features)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert difference(found.float(), expected) < 0.02
    assert layer(x).dtype == torch.float32


def test_scales_follow_a_weight_that_is_moved():
    entries, scales = torch.zeros(3, 2, dtype=torch.int8), torch.ones(3)
    moved = SimpleNamespace(data=entries.to("meta"), dtype=torch.int8, device=torch.device("meta"))
    x = torch.empty(1, 2)
    for weight, state in [((entries, scales), (None, None)), ((None, None), (entries, scales))]:
        layer = SimpleNamespace(weight=moved, state=SimpleNamespace())
        (moved.CB, moved.SCB), (layer.state.CB, layer.state.SCB) = weight, state
        _follow(layer, (x,))
        holder = layer.state if weight[0] is None else moved
        assert holder.CB.is_meta and holder.SCB.is_meta


@pytest.mark.parametrize("bits", BITS)
def test_fingerprint_knows_a_quantised_base(embedded, bits):
    stored = base_fingerprint(loaded(embedded, bits))
    assert stored["weights"].keys() == base_fingerprint(loaded(embedded))["weights"].keys()
    assert differing_weight(loaded(embedded, bits), stored) is None
    assert differing_weight(loaded(embedded, bits, dequantise=True), stored) is None
    other = loaded(embedded, bits)
    layer = other.get_submodule(LAYERS[0])
    layer.weight.data = layer.weight.data.flip(0)
    assert differing_weight(other, stored) == f"{LAYERS[0]}.weight"
    if bits == "4bit":
        assert differing_weight(loaded(embedded), stored) is not None


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", ["ssvd", "lora"])
def test_planned_weights_are_those_of_the_tensors(embedded, bits, method, monkeypatch):
    monkeypatch.setattr("ssvd.plan.step_memory", lambda *args, **options: 0)
    memory = planned_memory(embedded, method, Budget("p", 0.4), LAYERS, Load(1, 4.0, quantise=bits))
    network = apply_method(loaded(embedded, bits), method, LAYERS, Budget("p", 0.4))
    scales = 0
    for layer in filter(is_quantised, network.modules()):
        state = layer.weight.quant_state if bits == "4bit" else None
        scales += state.absmax.nbytes + state.code.nbytes if state else layer.weight.SCB.nbytes
    assert memory.weights == sum(part.nbytes for part in network.parameters()) + scales
    plain = planned_memory(embedded, method, Budget("p", 0.4), LAYERS, Load(1, 4.0))
    assert memory.weights < {"8bit": 0.37, "4bit": 0.27}[bits] * plain.weights and memory.bases == plain.bases
    assert planned_memory(embedded, "psoft", Budget("p", 0.4), USUAL_GROUPS, Load(1, 4.0, quantise=bits)) is None


# runs

RUN = {"layers": LAYERS, "budget": "portion=0.4", "epochs": 1, "updates_per_epoch": 1, "dev_limit": 2}


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    """The folder of a run on a base of 4 bits."""
    folder = tmp_path_factory.mktemp("quantised") / "run"
    adapt(options(**RUN, quantise="4bit"), folder)
    return folder


def test_a_run_states_how_its_base_is_quantised(run, embedded):
    assert "quantise: 4bit" in (run / "config.yaml").read_text()
    assert quantise_of(run) == quantisation_of(run / "adapter") == quantise_of(run / "adapter") == "4bit"
    assert any(map(is_quantised, load_base(embedded, run).module.modules()))
    for adapter in (run, run / "adapter"):
        assert any(map(is_quantised, load_adapted(embedded, adapter).module.modules()))


def test_a_run_is_resumed_with_the_same_bits(run, options):
    with pytest.raises(UserError, match=r"other options .quantise was '4bit'"):
        adapt(options(**RUN), run, resume=True)
    assert adapt(None, run, resume=True).series[0].epoch == 0


def test_a_merged_run_is_a_plain_checkpoint_with_the_same_outputs(run, embedded, inputs, tmp_path):
    merge(embedded, run, tmp_path / "merged")
    assert "quantization" not in (tmp_path / "merged" / "config.json").read_text()
    found = logits(load_model(tmp_path / "merged").module, inputs)
    assert difference(found, logits(load_adapted(str(embedded), run).module, inputs)) < 1e-3  # stored in 16 bits


def test_at_another_scale_the_weights_lie_between_the_dequantised_ones(run, embedded, inputs):
    half = load_adapted(str(embedded), run, scale=0.0).module
    assert difference(logits(half, inputs), logits(load_base(embedded, run).module, inputs)) < 1e-5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "full"}, "The method 'full' trains the weights themselves, not quantised ones: use an adapter"),
        ({"method": "pissa"}, "The method 'pissa' cannot adapt quantised weights, which it would change: choose one"),
        ({"token_stride": 2}, "A token_stride is not possible with quantised weights: leave it at 1"),
    ],
)
def test_what_is_not_possible_is_refused_before_the_model_is_read(options, change, told):
    with pytest.raises(UserError, match=told):
        check_quantisable(options(quantise="8bit", **change))


def test_quantised_layers_are_not_trained_in_full(options, embedded):
    with pytest.raises(UserError, match=r"model.encoder.layers.0.fc1 has quantised weights, which cannot be trained"):
        check_savings(options(quantise="8bit", also_train=["fc1"]), loaded(embedded, "8bit"))
    check_savings(options(quantise="8bit", also_train=["layer_norm"]), loaded(embedded, "8bit"))


def test_without_the_package_a_sentence_says_what_to_install(options, monkeypatch):
    monkeypatch.setattr("ssvd.recognisers.quantisation.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need the package bitsandbytes: pip install 'ssvd\[quantise\]'"):
        check_quantisable(options(quantise="4bit"))


@pytest.mark.parametrize(
    "family",
    ["wavlm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_asr", "parakeet_ctc", "moonshine"))],
)
def test_other_kinds_of_networks_train_with_quantised_weights(family, corpora, tmp_path):
    from ssvd.demo.random_checkpoints import write_random_checkpoint
    from test_memory import CTC_FAMILIES

    if family in CTC_FAMILIES:
        write_random_checkpoint(family, tmp_path / "model")
    else:
        write_checkpoint(tmp_path / "model", family)
    speech = load_model(tmp_path / "model", language="en", quantise="4bit")
    names = speech.adaptable_layers()
    quantised = [name for name, layer in speech.module.named_modules() if is_quantised(layer)]
    assert set(quantised) == {name for name in names if isinstance(speech.module.get_submodule(name), nn.Linear)}
    speech.module = apply_method(speech.module, "ssvd", names, Budget.parse("portion=0.4")).train()
    batch = speech.collate(list(read_corpus(corpora["child"]).cuts)[:2])
    speech.loss(batch).backward()
    trained = [p for p in speech.module.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.norm() > 0 for p in trained)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", BITS)
def test_a_gpu_gives_the_outputs_of_a_cpu(embedded, inputs, bits, tmp_path):
    network = adapted(loaded(embedded, bits), CONFIGS["ssvd"])
    network.save_pretrained(tmp_path)
    expected = logits(network, inputs)
    there = {name: value.cuda() for name, value in inputs.items()}
    assert difference(logits(network.cuda(), there).cpu(), expected) < 0.05
    fresh = PeftModel.from_pretrained(loaded(embedded, bits).cuda(), tmp_path).eval()
    assert difference(logits(fresh, there).cpu(), expected) < 0.05
    fresh.train()(**there).logits.sum().backward()
