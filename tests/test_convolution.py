"""Convolutions adapted by SSVD and SVFT: their kernels are matrices on patches of the input."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.functional import conv1d, unfold

from ssvd import SSVDConfig, SVFTConfig
from ssvd.errors import UserError
from ssvd.methods import (
    METHODS,
    Budget,
    apply_method,
    linear_shapes,
    parameters,
    show_geometry,
    trainable_parameters,
)
from ssvd.recognisers.layers import chosen_layers
from ssvd.recognisers.loading import load_model
from ssvd.training.options import checked_options

STEM = ["conv1", "conv2"]
CONFIGS = {
    "ssvd": SSVDConfig(portion=0.5, target_modules=STEM, init_weights=False),
    "strict": SSVDConfig(portion=0.5, rotation="strict", rotate="both", target_modules=STEM, init_weights=False),
    "none": SSVDConfig(portion=0.5, rotation="none", target_modules=STEM, init_weights=False),
    "svft": SVFTConfig(off_diagonals=2, target_modules=STEM, init_weights=False),
}


class Stem(nn.Module):
    """Whisper's: two convolutions in time, of which the second takes every other frame."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(8, 12, 3, padding=1)
        self.conv2 = nn.Conv1d(12, 12, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        return self.conv2(torch.tanh(self.conv1(x)))


class Subsampling(nn.Module):
    """OWSM's: two convolutions over time and frequency; padded in ways of their own."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, stride=2)
        self.conv2 = nn.Conv2d(6, 6, (3, 2), stride=2, padding=(2, 1), dilation=(2, 1), padding_mode="circular")

    def forward(self, x):
        return self.conv2(torch.tanh(self.conv1(x)))


@pytest.fixture
def stem():
    torch.manual_seed(0)
    return Stem(), torch.randn(3, 8, 20)


@pytest.fixture(params=["1d", "2d"])
def convolutions(request, stem):
    if request.param == "1d":
        return stem
    torch.manual_seed(0)
    return Subsampling(), torch.randn(2, 1, 13, 11)


@pytest.mark.parametrize("rotation", ["approx", "strict", "none"])
def test_a_convolution_starts_at_the_pretrained_model_bit_for_bit(rotation, convolutions):
    module, x = convolutions
    adapted = get_peft_model(copy.deepcopy(module), SSVDConfig(rotation=rotation, target_modules=STEM))
    assert torch.equal(adapted(x), module(x))
    assert torch.equal(adapted.eval()(x), module(x))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_adapted_kernel_is_u_c_v_on_patches(name, stem):
    module, x = stem
    adapted = get_peft_model(copy.deepcopy(module), CONFIGS[name])
    layer = adapted.base_model.model.conv1
    W, basis, k = module.conv1.weight.flatten(1), layer.bases["default"], layer.bases["default"].k
    U, V = basis.U[:, :k], basis.V[:, :k]
    torch.testing.assert_close(W @ V, U * basis.S[:k], atol=1e-5, rtol=1e-5)
    kernel = W + U @ layer.change("default") @ V.T
    patches = unfold(x[:, :, None], (1, 3), padding=(0, 1))
    expected = kernel @ patches + module.conv1.bias[:, None]
    assert not torch.allclose(expected, module.conv1(x), atol=0.05)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for _ in range(2):  # the second time by the weight that was formed before
            torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_a_convolution_are_those_of_the_formed_kernel(name, convolutions):
    module, x = convolutions
    adapted = get_peft_model(copy.deepcopy(module).double(), CONFIGS[name]).train()
    x = x.double().requires_grad_()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    assert parameters
    loss = adapted(x).square().sum()
    gradients = torch.autograd.grad(loss, [x, *parameters])
    step = 1e-4
    for tensor, gradient in zip([x, *parameters], gradients, strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            tensor += step * direction
            above = adapted(x).square().sum()
            tensor -= 2 * step * direction
            below = adapted(x).square().sum()
            tensor += step * direction
        torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_convolution_is_merged_unmerged_and_reloaded(name, convolutions, tmp_path):
    module, x = convolutions
    adapted = get_peft_model(copy.deepcopy(module), CONFIGS[name]).eval()
    before = adapted(x)
    weight = adapted.base_model.model.conv2.get_base_layer().weight.clone()
    adapted.merge_adapter()
    torch.testing.assert_close(adapted(x), before, atol=1e-4, rtol=1e-4)
    assert adapted.base_model.model.conv2.get_base_layer().weight.shape == weight.shape
    adapted.unmerge_adapter()
    assert torch.equal(adapted.base_model.model.conv2.get_base_layer().weight, weight)
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(module), tmp_path).eval()
    torch.testing.assert_close(reloaded(x), before, atol=1e-6, rtol=1e-6)
    merged = reloaded.merge_and_unload()
    assert type(merged.conv1) is type(module.conv1)
    torch.testing.assert_close(merged(x), before, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_kernel_is_refused(stem, tmp_path):
    module, _ = stem
    get_peft_model(copy.deepcopy(module), CONFIGS["ssvd"]).save_pretrained(tmp_path)
    with torch.no_grad():
        module.conv1.weight += 0.1 * torch.randn_like(module.conv1.weight)
    with pytest.raises(ValueError, match="another base model"):
        PeftModel.from_pretrained(module, tmp_path)


def test_rows_of_a_batch_may_have_different_adapters(stem):
    module, x = stem
    adapted = get_peft_model(copy.deepcopy(module), CONFIGS["ssvd"]).eval()
    adapted.add_adapter("other", CONFIGS["strict"])
    mixed = adapted(x, adapter_names=["default", "other", "__base__"])
    torch.testing.assert_close(mixed[2], module(x)[2])
    for row, name in enumerate(["default", "other"]):
        adapted.set_adapter(name)
        torch.testing.assert_close(mixed[row], adapted(x)[row], atol=1e-5, rtol=1e-5)


def test_a_convolution_with_groups_is_refused_by_name():
    module = nn.ModuleDict({"conv1": nn.Conv1d(8, 8, 3, groups=2)})
    with pytest.raises(ValueError, match="SSVD adapts convolutions without groups, but conv1 has 2: leave it out"):
        get_peft_model(module, SSVDConfig(target_modules=["conv1"]))


def test_what_models_read_of_their_convolutions_is_still_there(stem):
    adapted = get_peft_model(stem[0], CONFIGS["ssvd"]).base_model.model.conv2
    assert (adapted.stride, adapted.kernel_size, adapted.groups) == ((2,), (3,), 1)
    with pytest.raises(AttributeError, match="strides"):
        adapted.strides  # noqa: B018


def test_the_stem_of_whisper_learns_within_the_recogniser(embedded):
    """What the recogniser hears changes with the stem alone, and the gradient reaches both of its convolutions."""
    speech = load_model(embedded)
    features = torch.randn(1, speech.module.config.num_mel_bins, 2 * speech.module.config.max_source_positions)
    encoder = speech.module.get_encoder()
    before = encoder(features).last_hidden_state
    get_peft_model(speech.module, SSVDConfig(portion=0.4, target_modules=STEM))
    assert torch.equal(encoder(features).last_hidden_state, before)
    stem = encoder.conv1, encoder.conv2
    encoder(features).last_hidden_state.square().sum().backward()
    for layer in stem:
        assert layer.ssvd_theta["default"].grad.abs().max() > 0
        with torch.no_grad():
            layer.ssvd_theta["default"] += 0.3 * torch.randn_like(layer.ssvd_theta["default"])
    assert not torch.allclose(encoder(features).last_hidden_state, before, atol=0.05)
    kernel = stem[0].as_stored(stem[0].as_matrix(stem[0].weight))
    torch.testing.assert_close(
        stem[0](features), conv1d(features, kernel, stem[0].get_base_layer().bias, padding=1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_method_adapts_the_stem_of_whisper_or_says_that_it_cannot(name, embedded, tmp_path):
    speech = load_model(embedded)
    layers = speech.adaptable_layers(["front-end", "encoder"])
    shapes = linear_shapes(speech.module, layers)
    kernel = speech.module.get_encoder().conv2.weight
    assert shapes["model.encoder.conv2"] == (kernel.shape[0], kernel.shape[1] * kernel.shape[2])
    budget, total = Budget.parse("rank=16" if name == "vera" else "p=0.3"), parameters(speech.module)
    method = METHODS[name]
    if method.config is None:
        return
    if not method.adapts_convolutions:
        with pytest.raises(UserError, match=r"cannot adapt convolutions, such as model.encoder.conv1: leave them out"):
            apply_method(speech.module, name, layers, Budget.parse("50%"), tolerance=10)
        return
    try:
        count = method.count(shapes, method.setting(shapes, budget, total))
    except UserError:
        assert name == "svft plain"
        return
    torch.manual_seed(0)
    features = torch.randn(1, speech.module.config.num_mel_bins, 2 * speech.module.config.max_source_positions)
    with torch.no_grad():
        before = speech.module.get_encoder()(features).last_hidden_state
    adapted = apply_method(speech.module, name, layers, budget)
    assert trainable_parameters(adapted) == count
    encoder = adapted.get_base_model().get_encoder()
    torch.testing.assert_close(encoder(features).last_hidden_state, before, atol=1e-3, rtol=1e-3)
    stem = [p for n, p in adapted.named_parameters() if ".conv" in n and p.requires_grad]
    assert stem
    with torch.no_grad():
        for parameter in stem:
            parameter += 0.1 * torch.randn_like(parameter)
        after = encoder.eval()(features).last_hidden_state
    assert not torch.allclose(after, before, atol=0.05)
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(load_model(embedded).module, tmp_path)
    show_geometry(reloaded)
    with torch.no_grad():
        again = reloaded.get_base_model().get_encoder()(features).last_hidden_state
    torch.testing.assert_close(again, after, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        merged = adapted.merge_and_unload().get_encoder()(features).last_hidden_state
    torch.testing.assert_close(merged, after, atol=1e-3, rtol=1e-3)


GROUPS = {"e.conv": "front-end", "e.0.q": "encoder", "e.1.q": "encoder", "p.0": "projector", "d.0.q": "decoder"}


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["encoder", "decoder"], ["e.0.q", "e.1.q", "d.0.q"]),
        (["decoder", "encoder"], ["e.0.q", "e.1.q", "d.0.q"]),
        (["front-end"], ["e.conv"]),
        ([r"\.0\."], ["e.0.q", "d.0.q"]),
        (["decoder", "^e.1"], ["e.1.q", "d.0.q"]),
        (["projector"], ["p.0"]),
        (["all"], list(GROUPS)),
    ],
)
def test_layers_are_chosen_by_group_or_expression_in_the_order_of_the_network(wanted, chosen):
    assert chosen_layers(GROUPS, wanted) == chosen


def test_a_model_without_a_decoder_has_its_other_layers():
    assert chosen_layers({"e.0.q": "encoder"}, ["encoder", "decoder"]) == ["e.0.q"]


@pytest.mark.parametrize(
    ("groups", "wanted", "message"),
    [
        (GROUPS, ["encoder", "attn"], "No layer of the model matches 'attn'; .* such as e.conv, .* front-end, encoder"),
        ({"e.0.q": "encoder"}, ["front-end", "decoder"], "has no front-end and no decoder; .* are encoder"),
    ],
)
def test_layers_that_the_model_lacks_are_named(groups, wanted, message):
    with pytest.raises(UserError, match=message):
        chosen_layers(groups, wanted)


def test_an_expression_that_is_none_is_told_with_the_other_options():
    with pytest.raises(UserError, match=r"layers '\(' is neither a group .* nor a regular expression"):
        checked_options({"model": "m", "train": ["t"], "layers": ["encoder", "("]})
    with pytest.raises(UserError, match="layers names nothing to adapt"):
        checked_options({"model": "m", "train": ["t"], "layers": []})
