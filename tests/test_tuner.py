"""SSVD as a PEFT method, on tiny models: Whisper, wav2vec 2.0, WavLM and a few plain layers.

Adapters are moved away from their start before anything is compared: at the start every mistake is invisible.
"""

import copy
import io
import json
import pickle
import re
import subprocess
import sys
import warnings

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PsoftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from ssvd import SSVDConfig, SVFTConfig
from ssvd.spectral import Basis
from ssvd.tuners import SSVDLinear, registration

ROTATIONS = ["approx", "strict", "none"]


def whisper(seed=0):
    torch.manual_seed(seed)
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=60,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.2,
    )
    return WhisperForConditionalGeneration(config).eval()


def ctc(config_class, model_class):
    torch.manual_seed(0)
    config = config_class(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        apply_spec_augment=False,
        initializer_range=0.2,
    )
    return model_class(config).eval()


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(24, 12)
        self.tall = nn.Linear(12, 40, bias=False)
        self.head = nn.Linear(40, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.tall(torch.tanh(self.wide(x)))))


def layers():
    torch.manual_seed(0)
    return Layers().eval()


def perturb(model, std=0.5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ssvd_" in name or "svft_" in name:
                p.add_(std * torch.randn(p.shape, generator=generator).to(p))
    return model


def adapted(rotation="approx", **fields):
    """Two adapted layers of different shape, away from the start."""
    return perturb(get_peft_model(layers(), SSVDConfig(target_modules=["wide", "tall"], rotation=rotation, **fields)))


X = torch.randn(7, 24, generator=torch.Generator().manual_seed(3))
FEATURES = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(3))
AUDIO = torch.randn(2, 400, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model):
    return model(input_features=FEATURES, decoder_input_ids=TOKENS).logits


def train(model, rate):
    """Losses of a few updates on one batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0)
    losses = []
    for _ in range(8):
        loss = model(input_features=FEATURES, labels=TOKENS).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


# --- the start, training


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_the_start_is_the_pretrained_whisper_bit_for_bit(rotation):
    before = logits(whisper())
    model = get_peft_model(whisper(), SSVDConfig(rotation=rotation))
    assert torch.equal(logits(model), before)
    with_gradients = model(input_features=FEATURES, decoder_input_ids=TOKENS).logits
    assert torch.equal(with_gradients.detach(), before)
    assert not torch.equal(logits(get_peft_model(whisper(), SSVDConfig(init_weights=False))), before)


def test_whisper_adapts_every_linear_layer_but_the_output_projection():
    model = get_peft_model(whisper(), SSVDConfig())
    linears = [name for name, module in whisper().named_modules() if isinstance(module, nn.Linear)]
    assert sorted(model.base_model.targeted_module_names) == sorted(set(linears) - {"proj_out"})


@pytest.mark.parametrize(
    ("config_class", "model_class"), [(Wav2Vec2Config, Wav2Vec2ForCTC), (WavLMConfig, WavLMForCTC)]
)
def test_ctc_models_train_every_adapted_layer(config_class, model_class):
    # The attention of WavLM reads the weights of its layers instead of calling them.
    base = ctc(config_class, model_class).requires_grad_(False)  # WavLM computes otherwise while parameters train
    with torch.no_grad():
        before = base(AUDIO).logits
    model = get_peft_model(base, SSVDConfig())
    with torch.no_grad():
        assert torch.equal(model(AUDIO).logits, before)
    names = model.base_model.targeted_module_names
    assert len(names) == 1 + 2 * 6
    perturb(model)(AUDIO).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        unmerged = model(AUDIO).logits
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.allclose(model(AUDIO).logits, before, atol=1e-6)
        assert torch.allclose(model.merge_and_unload()(AUDIO).logits, unmerged, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
def test_training_moves_only_the_adapter_and_lowers_the_loss(checkpointing):
    base = whisper()
    frozen = {name: p.clone() for name, p in base.named_parameters()}
    model = get_peft_model(base, SSVDConfig(rotation="strict")).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads() if checkpointing else None
    losses = train(model, rate=0.02)
    assert losses[-1] < losses[0] - 0.1
    for name, p in model.unload().named_parameters():
        assert torch.equal(p, frozen[name])


def test_gradient_checkpointing_leaves_gradients_alone():
    def gradients(checkpointing):
        model = perturb(get_peft_model(whisper(), SSVDConfig())).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_features=FEATURES, labels=TOKENS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("approx", [False, True])
def test_the_algebra_is_that_of_psoft(approx):
    """PEFT's PSOFT with a scale on one side: R = diag(b) Q, with Q the Cayley rotation or its first-order form."""
    k = 9
    ours = get_peft_model(
        layers(), SSVDConfig(target_modules=["wide", "tall"], rank=k, rotation="approx" if approx else "strict")
    )
    psoft = PsoftConfig(
        r=k,
        psoft_alpha=k,
        psoft_mag_a=False,
        target_modules=["wide", "tall"],
        use_cayley_neumann=approx,
        **({"num_cayley_neumann_terms": 2} if approx else {}),
    )
    theirs = get_peft_model(layers(), psoft)
    perturb(ours, std=0.2)
    for name, layer in ours.base_model.model.named_modules():
        if isinstance(layer, SSVDLinear):
            other = theirs.base_model.model.get_submodule(name)
            basis = layer.ssvd_basis["default"]
            signs = (basis.V * other._psoft_A_cache["default"].mT).sum(0).sign()
            K = torch.zeros(k, k)
            K[tuple(torch.tril_indices(k, k, -1))] = layer.ssvd_theta["default"].detach() * k**-0.5
            K = (K - K.mT) * torch.outer(signs, signs)
            core = other.psoft_R["default"]
            with torch.no_grad():
                core.weight.copy_(-K[core.rows, core.cols])  # its R is (I + Q)(I - Q)^-1
                core.vector_b.copy_(1 + layer.ssvd_s["default"])
    with torch.no_grad():
        assert torch.allclose(ours(X), theirs(X), atol=1e-5)
        assert not torch.allclose(ours(X), layers()(X), atol=1e-2)


# --- merging, several adapters


@pytest.mark.parametrize("rotation", ROTATIONS)
@torch.no_grad()
def test_merging_changes_nothing_and_unmerging_restores_every_bit(rotation):
    model = adapted(rotation)
    weights = {name: p.clone() for name, p in model.named_parameters() if "base_layer" in name}
    before = model(X)
    model.merge_adapter(safe_merge=True)
    assert torch.allclose(model(X), before, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters() if name in weights)
    assert torch.equal(model(X), before)
    assert torch.allclose(model.merge_and_unload()(X), before, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_bases(dtype):
    base = layers().to(dtype)
    x = X.to(dtype)
    before = base(x)
    model = get_peft_model(base, SSVDConfig(target_modules=["wide", "tall"], rotation="strict"))
    assert torch.equal(model(x), before)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    perturb(model)
    after = model(x)
    assert after.dtype == dtype and not torch.allclose(after, before, atol=0.05)
    for _ in range(3):
        model.merge_adapter()
        assert torch.allclose(model(x), after, atol=0.02)
        model.unmerge_adapter()
    assert torch.equal(model(x), after)
    with torch.enable_grad():
        model(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_layer_of_zeros_is_adapted_and_stored(rotation, tmp_path):
    base = nn.Sequential(nn.Linear(64, 16))
    nn.init.zeros_(base[0].weight)
    kept = copy.deepcopy(base)
    model = perturb(get_peft_model(base, SSVDConfig(target_modules=["0"], rotation=rotation, basis="stored"))).train()
    x = torch.randn(200, 64, requires_grad=True)
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(kept, tmp_path)(x), model.eval()(x))


def test_autocast_does_not_hide_that_a_basis_is_that_of_its_weight():
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 16)), SSVDConfig(target_modules=["0"])).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(200, 64, requires_grad=True)).sum().backward()
        assert model.base_model.model[0]._basis_fits("default")


def test_an_adapter_that_is_added_after_a_cast_is_that_of_the_cast_weight(tmp_path):
    def config():
        return SSVDConfig(target_modules=["wide", "tall"])

    model = get_peft_model(layers(), config(), "a").to(torch.bfloat16)
    model.add_adapter("b", config())
    model.set_adapter("b")
    model.save_pretrained(tmp_path, selected_adapters=["b"])
    PeftModel.from_pretrained(layers().to(torch.bfloat16), tmp_path / "b")


def test_moving_a_frozen_adapter_leaves_it_frozen():
    model = get_peft_model(layers(), SSVDConfig(target_modules=["wide"], inference_mode=True))
    layer = model.base_model.model.wide
    layer._move_adapter_to_device_of_base_layer("default", torch.device("meta"))
    assert layer.ssvd_theta["default"].is_meta and not any(p.requires_grad for p in layer.parameters())


@torch.no_grad()
def test_a_broken_adapter_is_not_merged():
    model = adapted()
    model.base_model.model.wide.ssvd_s["default"][0] = float("nan")
    weight = model.base_model.model.wide.base_layer.weight.clone()
    with pytest.raises(
        ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems to be broken"
    ):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.base_model.model.wide.base_layer.weight, weight)


@torch.no_grad()
def test_several_adapters():
    base = layers()(X)
    model = adapted("strict")
    first = model(X)
    model.add_adapter("second", SSVDConfig(target_modules=["wide"], portion=0.9, rotation="none", init_weights=False))
    model.set_adapter("second")
    second = model(X)
    with model.disable_adapter():
        assert torch.equal(model(X), base)
    assert torch.equal(model(X), second)
    model.base_model.set_adapter(["default", "second"])
    both = model(X)
    wide = model.base_model.model.wide
    changes = wide.get_delta_weight("default") + wide.get_delta_weight("second")
    assert torch.allclose(wide.weight, wide.base_layer.weight + changes, atol=1e-5)
    for name in ("default", "second"):  # one after the other, and in one go below
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.merge_adapter([name])
    assert torch.allclose(model(X), both, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(X), both)
    model.merge_adapter()
    assert torch.allclose(model(X), both, atol=1e-5)
    model.unmerge_adapter()
    model.set_adapter("default")
    assert torch.equal(model(X), first)
    model.delete_adapter("second")
    assert torch.equal(model(X), first)
    assert not any("second" in name for name, _ in model.named_parameters())
    assert not any("second" in name for name, _ in model.named_buffers())
    assert list(wide.ssvd_basis) == list(wide.rotation) == list(wide.decomposition) == ["default"]


def test_adapters_share_one_decomposition(monkeypatch):
    model = adapted(portion=0.8)
    monkeypatch.setattr(Basis, "of", None)
    model.add_adapter("smaller", SSVDConfig(target_modules=["wide", "tall"], portion=0.3))
    basis = model.base_model.model.wide.ssvd_basis
    assert basis["smaller"].U.data_ptr() == basis["default"].U.data_ptr()
    assert basis["smaller"].k == 3
    with pytest.raises(TypeError):  # the first triplets of a larger randomised basis are other ones
        model.add_adapter("randomised", SSVDConfig(target_modules=["wide"], portion=0.8, svd="randomized"))


def test_a_smaller_randomised_basis_is_what_it_is_alone():
    def layer(*portions):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64))
        for i, portion in enumerate(portions):
            config = SSVDConfig(target_modules=["0"], portion=portion, svd="randomized")
            model = get_peft_model(model, config, "0") if i == 0 else (model.add_adapter(str(i), config), model)[1]
        return ssvd_layers(model)[0].ssvd_basis[str(len(portions) - 1)]

    assert torch.equal(layer(0.3, 0.1).V, layer(0.1).V)


@torch.no_grad()
def test_an_adapter_added_while_another_is_merged_sees_the_pretrained_weight():
    model = adapted(portion=0.3)
    model.merge_adapter()
    model.add_adapter("second", SSVDConfig(target_modules=["wide", "tall"], portion=0.9))
    fresh = get_peft_model(layers(), SSVDConfig(target_modules=["wide", "tall"], portion=0.9))
    for name in ("wide", "tall"):
        basis = model.base_model.model.get_submodule(name).ssvd_basis["second"]
        assert torch.equal(basis.V, fresh.base_model.model.get_submodule(name).ssvd_basis["default"].V)


def test_all_linear_finds_adapted_layers_again():
    model = adapted()
    model.add_adapter("everywhere", SSVDConfig(target_modules="all-linear"))
    assert [list(layer.ssvd_basis) for layer in ssvd_layers(model)] == [
        ["default", "everywhere"],
        ["default", "everywhere"],
        ["everywhere"],
    ]


def test_disabling_a_merged_adapter_unmerges_it():
    model = adapted()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(model(X), layers()(X))


@pytest.mark.parametrize("config_class", [SSVDConfig, SVFTConfig])
def test_modules_of_several_layers_that_are_trained_in_full_are_merged(config_class):
    config = config_class(target_modules=["fc1", "projection"], modules_to_save=["encoder.layers.0", "decoder"])
    model = get_peft_model(whisper(), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    before = logits(model)
    assert not torch.allclose(before, logits(whisper()), atol=0.1)
    merged = model.merge_and_unload()
    assert type(merged) is WhisperForConditionalGeneration and torch.allclose(logits(merged), before, atol=1e-4)


# --- decoding


def test_greedy_decoding_is_that_of_the_merged_model():
    model = perturb(get_peft_model(whisper(), SSVDConfig()), std=0.3)
    arguments = {"input_features": FEATURES, "max_new_tokens": 6, "do_sample": False}
    tokens = model.generate(**arguments)
    assert torch.equal(tokens, model.merge_and_unload().generate(**arguments))


# --- saving and loading

FRESH_PROCESS = """
import sys, torch
import ssvd
sys.path.insert(0, sys.argv[1])
from test_tuner import whisper, logits
from peft import PeftModel
torch.save(logits(PeftModel.from_pretrained(whisper(), sys.argv[2])), sys.argv[3])
"""


@pytest.mark.slow
def test_a_saved_adapter_does_the_same_in_a_fresh_process(tmp_path, request):
    model = perturb(get_peft_model(whisper(), SSVDConfig(rotation="strict")))
    model.save_pretrained(tmp_path / "adapter")
    assert "import ssvd" in (tmp_path / "adapter" / "README.md").read_text()
    command = [sys.executable, "-c", FRESH_PROCESS, str(request.path.parent), str(tmp_path / "adapter")]
    subprocess.run([*command, str(tmp_path / "logits.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_the_file_holds_parameters_and_fingerprints_only(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    kinds = {key.split(".", 3)[3] for key in stored}
    assert kinds == {"ssvd_theta", "ssvd_s", "ssvd_basis.fingerprint", "ssvd_variant.number"}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fingerprints = sum(v.numel() for k, v in stored.items() if k.endswith("fingerprint"))
    assert sum(v.numel() for v in stored.values()) == trained + fingerprints + len(ssvd_layers(model))
    assert fingerprints == sum(len(layer.ssvd_basis["default"].fingerprint) for layer in ssvd_layers(model))


def ssvd_layers(model):
    return [module for module in model.modules() if isinstance(module, SSVDLinear)]


def flip_signs(folder, seed=0):
    """Rewrite an adapter as if it had been trained on a basis with other signs.

    Of 12 components in 4 groups, whose sums the fingerprint holds, one in each group is flipped.
    """
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    model = get_peft_model(whisper(), SSVDConfig())
    generator = torch.Generator().manual_seed(seed)
    for key in [key for key in stored if key.endswith("fingerprint")]:
        layer = model.base_model.get_submodule(key.removeprefix("base_model.").removesuffix(".ssvd_basis.fingerprint"))
        basis, groups = layer.bases["default"], len(stored[key])
        signs = torch.ones(basis.k)
        signs[torch.arange(groups) + groups * torch.randint(basis.k // groups, (groups,), generator=generator)] = -1
        stored[key] = Basis(basis.U, basis.S, basis.V, basis.probe * signs, groups).fingerprint
        theta = key.replace("ssvd_basis.fingerprint", "ssvd_theta")
        full = torch.zeros(basis.k, basis.k)
        full[tuple(torch.tril_indices(basis.k, basis.k, -1))] = stored[theta]
        full = full * torch.outer(signs, signs)
        stored[theta] = full[tuple(torch.tril_indices(basis.k, basis.k, -1))]
    save_file(stored, file, metadata={"format": "pt"})


@pytest.mark.parametrize("way", ["from_pretrained", "low_cpu_mem", "load_adapter", "set_state_dict", "load_state_dict"])
def test_signs_are_repaired_on_every_way_of_loading(tmp_path, way):
    model = perturb(get_peft_model(whisper(), SSVDConfig(rotation="strict")))
    before = logits(model)
    model.save_pretrained(tmp_path)
    flip_signs(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    if way == "from_pretrained":
        loaded = PeftModel.from_pretrained(whisper(), tmp_path)
    elif way == "low_cpu_mem":
        loaded = PeftModel.from_pretrained(whisper(), tmp_path, low_cpu_mem_usage=True)
    else:
        loaded = get_peft_model(whisper(), SSVDConfig(rotation="strict"))
    if way == "load_adapter":
        loaded.merge_adapter()
        loaded.load_adapter(tmp_path, "other")
        loaded.unmerge_adapter()
        loaded.set_adapter("other")
    elif way == "set_state_dict":
        set_peft_model_state_dict(loaded, stored)
    elif way == "load_state_dict":
        named = {
            re.sub(r"(_basis|_variant)\.", r"\1.default.", k)
            if k.endswith(("fingerprint", "number"))
            else f"{k}.default": v
            for k, v in stored.items()
        }
        assert not loaded.load_state_dict(named, strict=False).unexpected_keys
    after = logits(loaded)
    assert torch.linalg.norm(after - before) <= 1e-4 * torch.linalg.norm(before)
    assert not torch.allclose(before, logits(whisper()), atol=0.01)
    # What is saved now fits the signs of this process.
    loaded.save_pretrained(tmp_path / "again", selected_adapters=loaded.active_adapters)
    again = PeftModel.from_pretrained(whisper(), next((tmp_path / "again").rglob("adapter_config.json")).parent)
    assert torch.equal(logits(again), after)


def test_another_base_model_is_refused(tmp_path):
    perturb(get_peft_model(whisper(), SSVDConfig())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another base model.*model\.encoder\.layers\.0\.self_attn\.k_proj"):
        PeftModel.from_pretrained(whisper(seed=1), tmp_path)
    merged = perturb(get_peft_model(whisper(), SSVDConfig())).merge_and_unload()
    with pytest.raises(ValueError, match="another base model"):
        PeftModel.from_pretrained(merged, tmp_path)


def test_parameters_without_fingerprints_are_loaded_with_a_warning():
    model = adapted()
    stored = {k: v for k, v in get_peft_model_state_dict(model).items() if "fingerprint" not in k}
    with pytest.warns(UserWarning, match="cannot be checked"):
        set_peft_model_state_dict(model, stored)


def test_a_full_checkpoint_brings_its_own_base_weight():
    model = adapted("strict")
    checkpoint = model.state_dict()
    torch.manual_seed(9)
    other = get_peft_model(Layers().eval(), SSVDConfig(target_modules=["wide", "tall"], rotation="strict"))
    other.load_state_dict(checkpoint)
    with torch.no_grad():
        assert torch.equal(other(X), model(X))
    other.merge_adapter()
    other.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="Unmerge the adapters"):
        other.load_state_dict(get_peft_model(Layers(), SSVDConfig(target_modules=["wide", "tall"])).state_dict())


def test_injected_adapters_copies_and_pickles():
    base = inject_adapter_in_model(SSVDConfig(target_modules=["wide", "tall"]), layers())
    perturb(base)
    with torch.no_grad():
        before = base(X)
        buffer = io.BytesIO()
        torch.save(base, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(base), pickle.loads(pickle.dumps(base)), torch.load(buffer, weights_only=False)):
            assert torch.equal(other(X), before)
        assert torch.equal(base.half().float()(X), base(X))


def test_modules_to_save_travel_with_the_adapter(tmp_path):
    model = get_peft_model(layers(), SSVDConfig(target_modules=["wide"], modules_to_save=["head"]))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3)
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(layers(), tmp_path)(X), model(X))


@torch.no_grad()
def test_the_smaller_space_is_the_output_of_wide_layers_and_else_the_input():
    for name, layer in adapted("approx", rotate="smaller").base_model.adapted_layers("default"):
        m, n = layer.base_layer.weight.shape
        side = "output" if m < n else "input"
        same = dict(adapted("approx", rotate=side).base_model.adapted_layers("default"))[name]
        assert layer.rotation["default"].side == side
        for p, q in zip(layer.parameters(), same.parameters(), strict=True):
            q.copy_(p)
        assert torch.equal(layer.get_delta_weight("default"), same.get_delta_weight("default"))


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.parametrize(
    "config",
    [SSVDConfig(), SSVDConfig(rotation="strict", rotate="both"), SVFTConfig()],
    ids=["approx", "strict, both", "svft"],
)
def test_compiled_models_do_the_same_in_one_graph(config):
    config.target_modules = {"wide", "tall"}
    model = perturb(get_peft_model(layers(), config))
    compiled = torch.compile(model.base_model.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(X), model(X), atol=1e-5)
    compiled(X).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    model(X).sum().backward()
    for p, gradient in zip((p for p in model.parameters() if p.requires_grad), gradients, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-5)


@pytest.mark.parametrize("side", ["input", "output", "both"])
@pytest.mark.parametrize("rotation", ROTATIONS)
@torch.no_grad()
def test_sides_of_the_rotation(rotation, side, tmp_path):
    model = adapted(rotation, rotate=side)
    sizes = {"input": 4 * 3 // 2, "output": 4 * 3 // 2, "both": 4 * 3}
    for layer in ssvd_layers(model):
        rotations = (2 if side == "both" else 1) * 16 if rotation == "none" else sizes[side]
        assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == rotations + 4
        # Rotating one side leaves the other basis where it was.
        basis = layer.bases["default"]
        change = layer.weight - layer.base_layer.weight
        core = basis.U.mT @ layer.weight @ basis.V
        assert torch.allclose(basis.U @ (core - torch.diag(basis.S)) @ basis.V.mT, change, atol=1e-5)
        if rotation == "strict":  # an orthogonal G leaves lengths of rows or columns alone
            scale = (basis.S * (1 + layer.ssvd_s["default"])).abs()
            lengths = {"input": core.norm(dim=1), "output": core.norm(dim=0), "both": torch.linalg.svdvals(core)}
            wanted = scale.sort(descending=True).values if side == "both" else scale
            assert torch.allclose(lengths[side], wanted, atol=1e-5)
    before = model(X)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(layers(), tmp_path)(X), before)
    model.merge_adapter()
    assert torch.allclose(model(X), before, atol=1e-5)


@pytest.mark.parametrize("rotation", ["approx", "strict"])
@pytest.mark.parametrize(
    "fields",
    [
        {"rotate": "both", "outer_portion": 0.25},
        {"rotate": "both", "outer_portion": 0.75},
        {"subspace": "tail"},
        {"subspace": "ends"},
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
@torch.no_grad()
def test_ranks_of_the_sides_and_other_subspaces_travel_with_the_adapter(rotation, fields, tmp_path):
    model = adapted(rotation, **fields)
    before = model(X)
    for layer in ssvd_layers(model):  # what the basis does not hold stays as it was
        basis, change = layer.bases["default"], layer.weight - layer.base_layer.weight
        U, V = basis.U[:, : basis.k], basis.V[:, : basis.k]
        assert change.abs().max() > 1e-3 and torch.allclose(U @ (U.mT @ change @ V) @ V.mT, change, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(layers(), tmp_path)(X), before)
    model.merge_adapter()
    assert torch.allclose(model(X), before, atol=1e-5)
    # The same parameters with another choice of triplets or sides would be another function.
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"subspace": "top", "outer_portion": None} if "subspace" in fields else {
        "portion": fields["outer_portion"], "outer_portion": config["portion"]
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"another base model|other settings"):
        PeftModel.from_pretrained(layers(), tmp_path)


def test_padded_bases(tmp_path):
    """With k = 60, U and V have four columns of zeros."""

    def layers():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 80), nn.Linear(80, 70), nn.Linear(70, 64)).eval()

    x = torch.randn(300, 64, requires_grad=True)
    for basis in ("recompute", "stored"):
        config = SSVDConfig(target_modules=["0", "1", "2"], rank=60, basis=basis, rotation="strict", rotate="both")
        model = perturb(get_peft_model(layers(), config), std=0.3)
        for layer in ssvd_layers(model):
            padded, W = layer.bases["default"], layer.base_layer.weight
            exact = Basis.of(W, 60)
            assert padded.U.shape[1] == padded.V.shape[1] == 64 and padded.k == 60 and padded.fits(W)
            assert torch.equal(padded.V[:, :60], exact.V) and not padded.V[:, 60:].any()
            core = torch.diag(exact.S) + layer.change("default")
            wanted = W + exact.U @ (core - torch.diag(exact.S)) @ exact.V.mT
            assert torch.allclose(layer.weight, wanted, atol=1e-5)
            assert layer.ssvd_theta["default"].numel() == 60 * 59
        after = model(x)
        loss = after.square().sum()
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        assert all(g.any() for g in gradients)
        model.save_pretrained(tmp_path / basis)
        loaded = PeftModel.from_pretrained(layers(), tmp_path / basis)
        assert torch.allclose(loaded(x), after, atol=1e-5)
        if basis == "stored":
            rounded = PeftModel.from_pretrained(layers().bfloat16().float(), tmp_path / basis)
            assert torch.allclose(rounded(x), after, atol=0.1)
        with torch.no_grad():
            model.add_adapter("second", SSVDConfig(target_modules=["0"], rank=33, init_weights=False))
            model.base_model.set_adapter(["default", "second"])
            both = model(x)
            model.merge_adapter()
            assert torch.allclose(model(x), both, atol=1e-4) and not torch.allclose(both, after, atol=0.1)


# --- configuration


@pytest.mark.parametrize(
    ("fields", "k"),
    [({}, 4), ({"portion": 1.0}, 12), ({"portion": 0.01}, 1), ({"rank": 7}, 7), ({"portion": 0.25}, 3)],
)
def test_the_portion_or_the_rank_sets_k(fields, k):
    model = adapted(**fields)
    for layer in ssvd_layers(model):
        assert layer.ssvd_basis["default"].k == k
        assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == k * (k + 1) // 2
        assert all(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(("portion", "r", "k"), [(0.29, 100, 29), (0.4, 384, 153), (0.4, 1024, 409), (0.001, 10, 1)])
def test_a_portion_is_rounded_down_as_decimal_numbers_are(portion, r, k):
    assert SSVDConfig(portion=portion).rank_of("layer", r, 2 * r) == k


def test_a_pattern_sets_the_portion_of_single_layers():
    model = adapted(portion_pattern={"tall": 0.75})
    assert [layer.ssvd_basis["default"].k for layer in ssvd_layers(model)] == [4, 9]
    with pytest.warns(RuntimeWarning, match="portion_pattern match no adapted layer: small"):
        adapted(portion_pattern={"small": 0.75})
    with pytest.warns(RuntimeWarning, match="portion_pattern match no adapted layer: tall"):
        model.add_adapter("second", SSVDConfig(target_modules=["wide"], portion_pattern={"tall": 0.5}))


def test_without_scale_only_the_rotation_is_trained():
    model = adapted("strict", train_scale=False)
    for layer in ssvd_layers(model):
        assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 4 * 3 // 2
        assert torch.allclose(
            torch.linalg.svdvals(layer.weight), torch.linalg.svdvals(layer.base_layer.weight), atol=1e-5
        )
    with pytest.raises(ValueError, match="wide has nothing to train"):
        adapted(rank=1, train_scale=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"portion": 0.0}, "portion 0.0"),
        ({"portion": 1.01}, "portion 1.01"),
        ({"portion_pattern": {"fc1": 2.0}}, "portion 2.0 .fc1."),
        ({"rank": 0}, "`rank` must be a positive integer"),
        ({"rotation": "cayley"}, "`rotation` must be one of approx, neumann, strict, none"),
        ({"svd": "fast"}, "`svd` must be one of exact, randomized"),
        ({"subspace": "middle"}, "`subspace` must be one of top, tail, ends"),
        ({"subspace": "tail", "svd": "randomized"}, "finds the first triplets only, not 'tail'"),
        ({"outer_portion": 0.2}, "`outer_portion` needs `rotate=.both.`, not 'input'"),
        ({"outer_portion": 0.0, "rotate": "both"}, "portion 0.0 .outer_portion."),
        ({"target_modules": "q", "layers_to_transform": [0]}, "`layers_to_transform` cannot be used"),
        ({"target_modules": "q", "layers_pattern": "h"}, "`layers_pattern` cannot be used"),
        ({"target_modules": ["q"], "layers_pattern": "h"}, "`layers_to_transform` must also be specified"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        SSVDConfig(**fields)


def test_layers_that_cannot_be_adapted_are_refused():
    with pytest.raises(ValueError, match="`rank` is 13, but the layer wide has only 12"):
        adapted(rank=13)
    with pytest.raises(ValueError, match=r"embed_tokens is torch.nn.modules.sparse.Embedding"):
        get_peft_model(whisper(), SSVDConfig(target_modules=["embed_tokens"]))

    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    with pytest.raises(ValueError, match=r"0 is .*Halved, which has its own forward method"):
        get_peft_model(nn.Sequential(Halved(8, 8)), SSVDConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match="floating-point weight, but that of 0 is torch"):
        get_peft_model(nn.Sequential(nn.Linear(8, 8)).to(torch.float8_e4m3fn), SSVDConfig(target_modules=["0"]))
    lora = get_peft_model(layers(), LoraConfig(target_modules=["wide"])).base_model.model
    with pytest.raises(ValueError, match=r"wide is peft.tuners.lora.layer.Linear"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del lora.peft_config
        get_peft_model(lora, SSVDConfig(target_modules=["wide"]))


@torch.no_grad()
def test_conv1d_weights_are_transposed():
    torch.manual_seed(0)
    base = nn.Sequential(Conv1D(10, 24))
    linear = nn.Linear(24, 10)
    linear.weight.copy_(base[0].weight.mT)
    linear.bias.copy_(base[0].bias)
    before = base(X)
    model = get_peft_model(base, SSVDConfig(target_modules=["0"], fan_in_fan_out=True))
    assert torch.allclose(model(X), before, atol=1e-6)
    same = perturb(get_peft_model(nn.Sequential(linear), SSVDConfig(target_modules=["0"])))
    assert torch.allclose(perturb(model)(X), same(X), atol=1e-5)
    unmerged = model(X)
    assert torch.allclose(model.merge_and_unload()(X), unmerged, atol=1e-5)


def test_the_randomised_basis_is_reloaded(tmp_path):
    model = adapted("strict", svd="randomized")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(layers(), tmp_path)(X), model(X))


def test_orthogonality_is_reported_by_layer():
    errors = adapted("strict").orthogonality_errors()
    assert list(errors) == ["wide", "tall"] and max(errors.values()) < 1e-5
    assert min(adapted("approx").orthogonality_errors().values()) > 0.01
    assert adapted(rank=1).orthogonality_errors() == {"wide": 0.0, "tall": 0.0}


def test_registering_again_is_harmless_and_a_clash_is_an_error():
    from ssvd.tuners import SSVDModel

    registration.register("ssvd", SSVDConfig, SSVDModel)
    with pytest.raises(RuntimeError, match="PEFT already has a method 'lora'"):
        registration.register("lora", SSVDConfig, SSVDModel)
    assert registration.peft_type_of("ssvd").value == "SSVD"
    assert copy.deepcopy(SSVDConfig()).peft_type is registration.peft_type_of("ssvd")
