"""Convolutions adapted by SSVD and SVFT: their kernels are matrices on patches of the input."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.functional import conv1d, unfold

from ssvd import SSVDConfig, SVFTConfig
from ssvd.recognisers.loading import load_model

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
