"""Adapters on other machines, dtypes and copies of the base model: the same result, or a refusal that says why."""

import subprocess
import sys

import pytest
import scipy.linalg
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, WhisperForConditionalGeneration

from ssvd import SSVDConfig, SVFTConfig
from ssvd.spectral import basis as basis_module
from test_tuner import AUDIO, FEATURES, TOKENS, ctc, logits, perturb, whisper

CONFIGS = {
    "approx": lambda **fields: SSVDConfig(**fields),
    "both sides, strict": lambda **fields: SSVDConfig(rotate="both", rotation="strict", portion=1.0, **fields),
    "plain": lambda **fields: SVFTConfig(pattern="plain", **fields),
    "banded": lambda **fields: SVFTConfig(off_diagonals=4, **fields),
    "random": lambda **fields: SVFTConfig(pattern="random", seed=3, **fields),
    "top-k": lambda **fields: SVFTConfig(pattern="top-k", off_diagonals=2, **fields),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def same(first, second, tolerance=1e-4):
    return torch.linalg.norm(first.float() - second.float()) <= tolerance * torch.linalg.norm(second.float())


@pytest.fixture
def saved(tmp_path):
    """Saves a trained adapter of Whisper: (folder, logits of the model that it was trained on)."""

    def save(config, base=None):
        model = perturb(get_peft_model(base or whisper(), config))
        model.save_pretrained(tmp_path / "adapter")
        assert not same(logits(model), logits(whisper()), 0.01), "the adapter does something"
        return tmp_path / "adapter", logits(model)

    return save


def other_routine(W, positions):
    """Decomposes by another routine, and gives the triplets other signs."""
    U, S, Vh = (torch.tensor(x) for x in scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver="gesvd"))
    signs = torch.ones(len(S), dtype=S.dtype)
    signs[::2] = -1
    return (U * signs)[:, positions], S[positions], (Vh.mT * signs)[:, positions]


@configs
def test_another_routine_with_other_signs_gives_the_same(config, saved, monkeypatch):
    folder, before = saved(config())
    monkeypatch.setattr(basis_module, "_triplets", other_routine)
    assert same(logits(PeftModel.from_pretrained(whisper(), folder)), before)


def equal_singular_values():
    """Whisper whose weights have three equal leading singular values, and what finds their vectors in that order."""
    model = whisper()
    found = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "proj_out":
                U, S, Vh = torch.linalg.svd(module.weight.double(), full_matrices=False)
                S[:3] = S[0]
                module.weight.copy_((U * S) @ Vh)
                found[module.weight.sum().item()] = U, S, Vh.mT
    return model, found


@configs
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_equal_singular_values_in_another_order_give_the_same(config, order, saved, monkeypatch):
    model, found = equal_singular_values()

    def triplets(order):
        def of(W, positions):
            U, S, V = found[W.float().sum().item()] if W.float().sum().item() in found else _nearest(found, W)
            permuted = [*order, *range(3, len(S))]
            return U[:, permuted][:, positions], S[positions], V[:, permuted][:, positions]

        return of

    monkeypatch.setattr(basis_module, "_triplets", triplets((1, 0, 2)))
    folder, before = saved(config(), model)
    monkeypatch.setattr(basis_module, "_triplets", triplets(order))
    assert same(logits(PeftModel.from_pretrained(equal_singular_values()[0], folder)), before)


def _nearest(found, W):
    return min(found.values(), key=lambda usv: float("inf") if usv[0].shape[0] != W.shape[0] else _distance(usv, W))


def _distance(triplets, W):
    U, S, V = triplets
    product = (U * S) @ V.mT
    return float((product - W).norm()) if product.shape == W.shape else float("inf")


@configs
def test_equal_singular_values_with_vectors_turned_among_them_are_refused(config, saved, monkeypatch):
    folder, _ = saved(config())
    own = basis_module._triplets

    def turned(W, positions):
        U, S, V = own(W, positions)
        turn = torch.linalg.qr(torch.randn(2, 2, dtype=W.dtype, generator=torch.Generator().manual_seed(0))).Q
        U[:, :2], V[:, :2] = U[:, :2] @ turn, V[:, :2] @ turn
        return U, S, V

    monkeypatch.setattr(basis_module, "_triplets", turned)
    with pytest.raises(ValueError, match=r'another singular basis.*basis="stored"'):
        PeftModel.from_pretrained(whisper(), folder)


@configs
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_base_model(config, dtype, saved):
    folder, before = saved(config())
    if dtype == torch.float64:  # the same weights
        double = PeftModel.from_pretrained(whisper().double(), folder)
        with torch.no_grad():
            after = double(input_features=FEATURES.double(), decoder_input_ids=TOKENS).logits
        assert same(after, before)
        return
    rounded = whisper().to(dtype).float()  # other weights
    with pytest.raises(ValueError, match="or on this one in another precision"):
        PeftModel.from_pretrained(rounded, folder)
    # Rounded after loading, the adapter keeps the basis that it was trained in.
    loaded = PeftModel.from_pretrained(whisper(), folder).to(dtype)
    with torch.no_grad():
        after = loaded(input_features=FEATURES.to(dtype), decoder_input_ids=TOKENS).logits
    assert same(after, before, 0.05)


@configs
@pytest.mark.parametrize("rounding", ["bf16", "int8"])
def test_a_stored_basis_carries_an_adapter_onto_a_rounded_copy(config, rounding, saved, tmp_path):
    folder, before = saved(config(basis="stored"))
    assert same(logits(PeftModel.from_pretrained(whisper(), folder)), before, 1e-6)
    base = whisper()
    with torch.no_grad():
        for weight in base.parameters():
            if weight.dim() == 2 and rounding == "int8":
                unit = weight.abs().amax(1, keepdim=True).clamp(min=1e-9) / 127
                weight.copy_((weight / unit).round() * unit)
            elif weight.dim() == 2:
                weight.copy_(weight.bfloat16())
    frozen = logits(base)
    loaded = PeftModel.from_pretrained(base, folder)
    assert same(logits(loaded), before, 0.05) and not same(frozen, before, 0.05)
    loaded.save_pretrained(tmp_path / "again")
    again, first = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "again", folder))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    with pytest.raises(ValueError, match="trained on another base model"):
        PeftModel.from_pretrained(whisper(seed=1), folder)


@configs
def test_another_base_model_is_refused(config, saved):
    folder, _ = saved(config())
    with pytest.raises(ValueError, match="trained on another base model"):
        PeftModel.from_pretrained(whisper(seed=1), folder)
    slightly = whisper()
    with torch.no_grad():
        for weight in slightly.parameters():
            weight.add_(0.003 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="trained on another base model"):
        PeftModel.from_pretrained(slightly, folder)


def test_other_entries_than_those_trained_are_refused(saved):
    folder, _ = saved(SVFTConfig(pattern="random", seed=3))
    stored = load_file(folder / "adapter_model.safetensors")
    other = get_peft_model(whisper(), SVFTConfig(pattern="random", seed=4))
    with pytest.raises(ValueError, match="trained other entries of"):
        set_peft_model_state_dict(other, stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["banded", "random"])
def test_entries_are_known_again_after_a_cast(pattern, dtype, tmp_path):
    model = get_peft_model(whisper(), SVFTConfig(pattern=pattern)).to(dtype)
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(whisper(), tmp_path)


@configs
def test_hot_swapping_two_adapters(config, saved):
    first_folder, first = saved(config())
    model = PeftModel.from_pretrained(whisper(), first_folder)
    other = perturb(get_peft_model(whisper(), config()), std=0.3, seed=9)
    states = [load_file(first_folder / "adapter_model.safetensors"), get_peft_model_state_dict(other)]
    for _ in range(2):
        for state, wanted in zip(states, (first, logits(other)), strict=True):
            set_peft_model_state_dict(model, dict(state))
            assert same(logits(model), wanted, 1e-5)


@configs
def test_transformers_own_loader(config, saved):
    folder, before = saved(config())
    model = whisper()
    model.load_adapter(str(folder))
    assert same(logits(model), before, 1e-5)


FRESH = """
import sys, torch
import ssvd
sys.path.insert(0, sys.argv[1])
from test_tuner import logits
from peft import AutoPeftModel, PeftModel
from transformers import WhisperForConditionalGeneration
base = WhisperForConditionalGeneration.from_pretrained(sys.argv[2])
own = WhisperForConditionalGeneration.from_pretrained(sys.argv[2])
own.load_adapter(sys.argv[3])
models = PeftModel.from_pretrained(base, sys.argv[3]), own, AutoPeftModel.from_pretrained(sys.argv[3])
torch.save([logits(model.eval()) for model in models], sys.argv[4])
"""


@pytest.mark.parametrize(
    "config", [CONFIGS["approx"], pytest.param(CONFIGS["top-k"], marks=pytest.mark.slow)], ids=["ssvd", "svft"]
)
def test_every_loader_in_a_fresh_process(config, tmp_path, request):
    whisper().save_pretrained(tmp_path / "base")
    base = WhisperForConditionalGeneration.from_pretrained(tmp_path / "base")
    model = perturb(get_peft_model(base, config()))
    model.save_pretrained(tmp_path / "adapter")
    places = [request.path.parent, tmp_path / "base", tmp_path / "adapter", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", FRESH, *map(str, places)], check=True)
    results = torch.load(tmp_path / "logits.pt")
    assert len(results) == 3 and all(same(result, logits(model), 1e-6) for result in results)


@configs
def test_the_fingerprint_takes_less_than_2_percent(config):
    torch.manual_seed(0)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(300, 400)), _with_target(config(), "0"))
    stored = get_peft_model_state_dict(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained < sum(tensor.numel() for tensor in stored.values()) <= 1.02 * trained
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())


def _with_target(config, name):
    config.target_modules = {name}
    return config


@configs
@pytest.mark.parametrize("basis", ["recompute", "stored"])
def test_a_whole_checkpoint_brings_base_weights_and_bases(config, basis):
    model = perturb(get_peft_model(whisper(), config(basis=basis)))
    other = get_peft_model(whisper(seed=1), config(basis=basis)).eval()
    other.load_state_dict(model.state_dict())
    assert same(logits(other), logits(model), 1e-6)


@configs
@pytest.mark.parametrize("basis", ["recompute", "stored"])
def test_a_model_without_memory_is_filled_by_a_whole_checkpoint(config, basis):
    model = perturb(get_peft_model(whisper(), config(basis=basis)))
    with torch.device("meta"):
        empty = get_peft_model(whisper(), config(basis=basis)).eval()
    assert sum(p.numel() for p in empty.parameters() if p.requires_grad) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    empty.load_state_dict(model.state_dict(), assign=True)
    assert same(logits(empty), logits(model), 1e-6)


def test_a_ctc_model_by_its_loaders(tmp_path):
    base = ctc(Wav2Vec2Config, Wav2Vec2ForCTC)
    base.save_pretrained(tmp_path / "base")
    model = perturb(get_peft_model(Wav2Vec2ForCTC.from_pretrained(tmp_path / "base"), SSVDConfig()))
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = model(AUDIO).logits
        loaded = PeftModel.from_pretrained(Wav2Vec2ForCTC.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
        assert same(loaded(AUDIO).logits, wanted, 1e-6)
        assert type(AutoPeftModel.from_pretrained(tmp_path / "adapter")) is PeftModel


def test_a_damaged_fingerprint_is_refused(saved):
    folder, _ = saved(SSVDConfig())
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    name = next(name for name in stored if name.endswith("fingerprint"))
    stored[name] = stored[name] + 0.01
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="another singular basis"):
        PeftModel.from_pretrained(whisper(), folder)
