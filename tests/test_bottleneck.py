"""Bottleneck adapters: what they compute, behind which layers, and what they refuse."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import gelu

from ssvd.adapt import adapt
from ssvd.average import average
from ssvd.errors import UserError
from ssvd.merge import merge, write_lora
from ssvd.methods import METHODS, Budget, apply_method, linear_shapes
from ssvd.recognisers.loading import load_model
from ssvd.training.run_folder import load_adapted
from ssvd.tuners import BottleneckConfig, BottleneckLinear


@pytest.fixture
def adapted():
    """A layer with two bottlenecks behind it, of random values."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)),
        BottleneckConfig(width=3, target_modules=["0"], init_weights=False),
    )
    model.add_adapter("other", BottleneckConfig(width=2, target_modules=["0"], init_weights=False))
    return model


def bottleneck(layer, name, y):
    return y + layer.bottleneck_up[name](gelu(layer.bottleneck_down[name](y)))


def test_the_output_of_a_layer_goes_through_the_bottlenecks_of_its_active_adapters(adapted):
    layer, x = adapted.base_model.model[0], torch.randn(5, 6)
    y = layer.base_layer(x)
    assert torch.equal(layer(x), bottleneck(layer, "default", y))
    adapted.base_model.set_adapter(["default", "other"])
    assert torch.equal(layer(x), bottleneck(layer, "other", bottleneck(layer, "default", y)))
    with adapted.disable_adapter():
        assert torch.equal(layer(x), y)
    assert torch.equal(adapted.unload()[0](x), y)


def test_only_the_active_adapter_is_trained(adapted):
    adapted.set_adapter("other")
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".other")[0].rsplit(".", 1)[1] for name in trained} == {"bottleneck_down", "bottleneck_up"}
    assert len(trained) == 4 and all(".other." in name for name in trained)


def test_it_computes_in_its_own_precision_behind_a_rounded_layer(adapted):
    layer, x = adapted.base_model.model[0], torch.randn(5, 6).bfloat16()
    layer.base_layer.bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    whole = bottleneck(layer, "default", layer.base_layer(x).float())
    torch.testing.assert_close(y.float(), whole, atol=0.02, rtol=0.02)


def test_what_it_cannot_do_is_refused(adapted):
    for refused in (adapted.merge_adapter, adapted.merge_and_unload, adapted.base_model.model[0].merge):
        with pytest.raises(ValueError, match="not linear, so it is no change of a weight that could be merged"):
            refused()
    with pytest.raises(ValueError, match="no batches that mix adapters"):
        adapted(torch.randn(1, 6), adapter_names=["default"])
    with pytest.raises(ValueError, match=r"follows torch\.nn\.Linear, but 1 is"):
        get_peft_model(nn.Sequential(nn.Linear(6, 8), nn.GELU()), BottleneckConfig(target_modules=["1"]))
    with pytest.raises(ValueError, match="`width` must be a positive integer, not 0"):
        BottleneckConfig(width=0)


def test_it_follows_every_attention_and_every_feed_forward_block_of_whisper(embedded):
    speech = load_model(embedded)
    network = apply_method(speech.module, "bottleneck", speech.adaptable_layers(), Budget("width", 8))
    wrapped = {name.removeprefix("base_model.model.model."): layer for name, layer in network.named_modules()
               if isinstance(layer, BottleneckLinear)}  # fmt: skip
    config = network.config
    blocks = [f"encoder.layers.{n}" for n in range(config.encoder_layers)]
    blocks += [f"decoder.layers.{n}" for n in range(config.decoder_layers)]
    expected = {f"{block}.{layer}" for block in blocks for layer in ("self_attn.out_proj", "fc2")}
    assert wrapped.keys() == expected | {f"{b}.encoder_attn.out_proj" for b in blocks if b.startswith("decoder")}


@pytest.mark.parametrize("family", ["moonshine", "parakeet_tdt", "speech_to_text"])
@torch.no_grad()
def test_every_bottleneck_is_heard(family, fresh, cuts):
    speech = fresh(family)
    layers = speech.adaptable_layers()
    chosen = METHODS["bottleneck"].adapted(linear_shapes(speech.module, layers))
    speech.module = apply_method(speech.module, "bottleneck", layers, Budget("width", 4)).eval()
    batch = speech.collate(cuts)
    before = speech.loss(batch)
    for name in chosen:
        up = speech.module.get_submodule(f"base_model.model.{name}").bottleneck_up["default"].weight
        up += torch.randn(up.shape, generator=torch.Generator().manual_seed(0))
        assert abs(speech.loss(batch) - before) > 1e-6, name
        up.zero_()
    assert speech.loss(batch) == before


@pytest.fixture(scope="module")
def cuts(corpora):
    from ssvd.corpora.corpus import read_corpus

    return list(read_corpus(corpora["child"]).cuts)[:1]


def test_layers_that_are_not_recognised_are_refused():
    model = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 8)})
    with pytest.raises(UserError, match="none of these layers has the name of one, as fc2 has, but such as first"):
        apply_method(model, "bottleneck", ["first", "second"])


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bottleneck") / "run"
    result = adapt(options(method="bottleneck", budget="2%", epochs=1, updates_per_epoch=6), folder)
    return folder, result


def test_a_run_trains_what_was_planned_and_loads_as_it_was(run, embedded, options):
    folder, result = run
    speech = load_model(embedded)
    shapes = linear_shapes(speech.module, speech.adaptable_layers())
    method = METHODS["bottleneck"]
    setting = method.setting(shapes, Budget.parse("2%"), 3_229_248)
    assert result.trainable_parameters == method.count(shapes, setting)
    assert 0.019 < result.trainable_share < 0.021
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(load_adapted(embedded, folder).module)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert last.keys() == stored.keys()
    assert all(value.abs().max() > 0 for value in last.values())
    assert "import ssvd  # registers the method" in (folder / "adapter" / "README.md").read_text()


def test_a_run_cannot_become_a_checkpoint(run, embedded, options, tmp_path):
    folder, _ = run
    merged = tmp_path / "merged"
    for refused in (
        lambda: merge(embedded, folder, merged),
        lambda: average(embedded, [folder, folder], merged),
        lambda: load_adapted(embedded, folder, scale=0.5),
    ):
        with pytest.raises(UserError, match="The adapter cannot be merged: A bottleneck adapter is not linear"):
            refused()
    with pytest.raises(UserError, match="not linear, so there is no LoRA that it equals"):
        write_lora(embedded, folder, merged)
    assert not merged.exists()
    with pytest.raises(UserError, match="'bottleneck' cannot be merged, so it has no scale: leave choose_scale"):
        adapt(options(method="bottleneck", choose_scale=True), tmp_path / "run")


def test_a_saved_adapter_loads_with_peft(adapted, tmp_path):
    model = copy.deepcopy(adapted.unload())
    network = get_peft_model(copy.deepcopy(model), BottleneckConfig(width=3, target_modules=["0"], init_weights=False))
    network.save_pretrained(tmp_path)
    x = torch.randn(2, 6)
    assert torch.equal(PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)(x), network(x))
