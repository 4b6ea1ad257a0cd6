"""Adapters that are not what they say are refused with a reason, whatever PEFT's own loader would make of them."""

import copy
import json
import pickle
import resource
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from ssvd import SSVDConfig, SVFTConfig
from ssvd.files import write_json
from ssvd.methods import Budget, apply_method
from ssvd.training.adapter_file import belongs_to_base, bind_adapter, check_adapter, load_adapter
from ssvd.training.base_fingerprint import base_fingerprint, differing_weight
from test_tuner import ctc, logits, whisper

BUDGETS = {
    "ssvd": "p=0.4", "lora": "rank=4", "dora": "rank=4", "pissa": "rank=4", "vera": "rank=8", "svft": "band=2",
    "psoft": "rank=4", "oft": "block=8",
}  # fmt: skip
LAYERS = [name for name, m in whisper().named_modules() if isinstance(m, nn.Linear) and name != "proj_out"]


def perturb(network, scale=0.05):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def saved(method, folder):
    """An adapter of a run of this method on the small Whisper, with a module that is trained in full: its logits."""
    base = whisper()
    write_json(folder.parent / "base.json", base_fingerprint(base))
    network = perturb(apply_method(base, method, LAYERS, Budget.parse(BUDGETS[method]), ["encoder.layer_norm"]))
    network.save_pretrained(str(folder))
    bind_adapter(folder, folder.parent / "base.json", "whisper")
    return logits(network)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of adapters and their logits by method, saved when first asked for."""
    made = {}

    def get(method):
        if method not in made:
            folder = tmp_path_factory.mktemp(method) / "adapter"
            made[method] = folder, saved(method, folder)
        return made[method]

    return get


@pytest.fixture
def copied(adapters, tmp_path):
    """Copies an adapter, to be damaged."""
    return lambda method: shutil.copytree(adapters(method)[0], tmp_path / method)


def change_config(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_tensors(folder, change):
    """Rewrite the file with the same metadata."""
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
    save_file(change(load_file(file)), file, metadata)


def unbind(folder):
    """Make an adapter what PEFT itself would have saved, before it stored its settings."""
    file = folder / "adapter_model.safetensors"
    stored = {name: tensor for name, tensor in load_file(file).items() if "ssvd_variant" not in name}
    save_file(stored, file, {"format": "pt"})


def refused(folder, match, base=None):
    with pytest.raises(ValueError, match=match) as error:
        base = base or whisper()
        check_adapter(base, folder)
        load_adapter(base, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", BUDGETS)
def test_adapters_of_every_method_load_with_and_without_what_binds_them(method, adapters, copied):
    folder, wanted = adapters(method)
    assert not torch.allclose(wanted, logits(whisper()), atol=0.01)
    older = copied(method)
    unbind(older)
    for each in (folder, older):
        base = whisper()
        check_adapter(base, each)
        assert torch.allclose(logits(load_adapter(base, each)), wanted, atol=1e-5)


# --- damaged files


def truncated(size):
    def damage(folder):
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return damage


def replaced(content):
    return lambda folder: (folder / "adapter_model.safetensors").write_bytes(content)


def a_folder(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        truncated(0),
        truncated(4),
        truncated(1000),
        truncated(-1),
        replaced(pickle.dumps({"x": 1})),
        replaced(b"PK\x03\x04" + bytes(100)),
        replaced((2**62).to_bytes(8, "little") + b"{}"),
        a_folder,
    ],
    ids=["empty", "4 bytes", "1000 bytes", "without the last byte", "pickle", "zip", "huge header", "folder"],
)
def test_a_damaged_file_is_told(damage, copied):
    folder = copied("ssvd")
    damage(folder)
    refused(folder, r"its adapter_model.safetensors is damaged or not a safetensors file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "adapter_config.json cannot be read"),
        ("\udcff", "adapter_config.json cannot be read"),
        ("[" * 100_000, "adapter_config.json cannot be read"),
        ("[1]", "adapter_config.json does not hold fields by name"),
        ("{}", "its peft_type, None, is not a method"),
        ('{"peft_type": ["LORA"]}', "is not a method"),
        ('{"peft_type": "PROMPT_TUNING"}', "'PROMPT_TUNING', is not a method"),
        ('{"peft_type": "LORA", "target_modules": 5}', "."),
        ('{"peft_type": "LORA", "target_modules": "("}', "."),
        ('{"peft_type": "LORA", "r": "many"}', "."),
        ('{"peft_type": "SSVD", "portion": null}', "."),
        ('{"peft_type": "SSVD", "rotation": "sideways"}', "`rotation` must be one of"),
    ],
)
def test_a_damaged_configuration_is_told(content, match, copied):
    folder = copied("ssvd")
    unbind(folder)
    (folder / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(folder, match)


# --- tensors


def first(stored, part=""):
    """The name of a trained tensor."""
    return next(name for name in sorted(stored) if part in name and stored[name].dim() and "finger" not in name)


def without_encoder(stored):
    return {name: tensor for name, tensor in stored.items() if "encoder.layers" not in name}


def without_one(stored):
    return {name: tensor for name, tensor in stored.items() if name != first(stored)}


def with_one_value(value):
    def change(stored):
        stored[first(stored)].view(-1)[-1] = value
        return stored

    return change


def converted(dtype):
    return lambda stored: stored | {first(stored): stored[first(stored)].to(dtype)}


EMBEDDING = "base_model.model.model.decoder.embed_tokens.weight"
NORM = "base_model.model.model.encoder.layer_norm.weight"
CHANGES = {
    "nothing": (lambda stored: {"x": torch.ones(1)}, "lacks"),
    "no encoder": (without_encoder, "lacks"),
    "one missing": (without_one, "lacks 1 tensors"),
    "no trained module": (
        lambda stored: {name: t for name, t in stored.items() if "layer_norm" not in name},
        "lacks 2",
    ),
    "foreign": (lambda stored: stored | {"x": torch.ones(1)}, "holds 1 tensors that it has no place for, among them x"),
    "of the base": (lambda stored: stored | {EMBEDDING: torch.ones(60, 32)}, "has no place for, among them .*embed"),
    "other shape": (lambda stored: stored | {first(stored): torch.ones(3, 7)}, "has the shape"),
    "int8": (converted(torch.int8), "has the type I8"),
    "bool": (converted(torch.bool), "has the type BOOL"),
    "float8": (converted(torch.float8_e4m3fn), "has the type F8"),
    "nan": (with_one_value(float("nan")), "not finite or too large"),
    "-inf": (with_one_value(float("-inf")), "not finite or too large"),
    "huge": (with_one_value(1e30), "not finite or too large"),
    "nan in a trained module": (lambda stored: stored | {NORM: stored[NORM] * float("nan")}, "not finite or too large"),
    "huge in a trained module": (lambda stored: stored | {NORM: stored[NORM] * 1e6}, "not finite or too large"),
}


@pytest.mark.parametrize("method", ["ssvd", "lora", "svft"])
@pytest.mark.parametrize(("change", "match"), CHANGES.values(), ids=CHANGES)
def test_every_tensor_is_accounted_for(method, change, match, copied):
    folder = copied(method)
    change_tensors(folder, change)
    refused(folder, match)


@pytest.mark.parametrize("method", BUDGETS)
def test_absurd_values_are_refused_by_what_they_do(method, copied):
    """Each is of a size that a single parameter may have."""
    folder = copied(method)
    change_tensors(
        folder,
        lambda stored: (
            {n: t if n.endswith(("fingerprint", "number")) else 9000 * t.sign() for n, t in stored.items()}
            if method != "svft"
            else {n: 9000 * t.sign() if "svft_M" in n else t for n, t in stored.items()}
        ),
    )
    refused(folder, "to more than 100 times its size")


def test_the_tensors_of_one_method_are_no_adapter_of_another(adapters, copied):
    for one, other in (("ssvd", "lora"), ("lora", "dora"), ("svft", "ssvd")):
        folder = copied(one)
        unbind(folder)
        shutil.copy(adapters(other)[0] / "adapter_config.json", folder)
        refused(folder, "lacks .* tensors")


# --- configurations


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("ssvd", {"rotation": "strict"}),
        ("ssvd", {"rotate": "output"}),
        ("ssvd", {"svd": "randomized"}),
        ("ssvd", {"target_modules": ["q_proj"]}),
        ("svft", {"pattern": "random"}),
        ("lora", {"lora_alpha": 64}),
        ("lora", {"use_rslora": True}),
        ("pissa", {"init_lora_weights": True}),
        ("vera", {"projection_prng_key": 1}),
        ("oft", {"use_cayley_neumann": False}),
        ("psoft", {"psoft_alpha": 40}),
    ],
)
def test_another_configuration_of_the_same_shapes_is_refused(method, fields, copied):
    folder = copied(method)
    change_config(folder, **fields)
    refused(folder, "adapter_config.json is not the one that it was trained with")


def test_fields_that_change_nothing_may_differ(adapters, copied):
    folder = copied("lora")
    change_config(folder, base_model_name_or_path="elsewhere", inference_mode=False, peft_version="9")
    base = whisper()
    check_adapter(base, folder)
    assert torch.equal(logits(load_adapter(base, folder)), adapters("lora")[1])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rotation": "strict"}, "trained with other settings in .*`rotation`"),
        ({"rotation": "neumann"}, "trained with other settings"),
        ({"rotate": "output"}, "trained with other settings"),
        ({"svd": "randomized"}, "trained with other settings"),
        ({"train_scale": False}, "has no place for, among them .*ssvd_s"),
        ({"rotate": "both"}, "has the shape"),
        ({"portion": 0.3}, "has the shape"),
        ({"portion_pattern": {"fc1": 0.3}}, "has the shape"),
        ({"exclude_modules": ["fc1"]}, "has no place for"),
        ({"layers_to_transform": [0], "target_modules": ["q_proj", "fc1"]}, "has no place for"),
        ({"modules_to_save": None}, "has no place for, among them .*layer_norm"),
    ],
)
def test_an_adapter_that_peft_saved_is_bound_to_its_settings(fields, match, copied):
    folder = copied("ssvd")
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    change_config(folder, **fields)
    refused(folder, match)


@pytest.mark.parametrize("config", [SSVDConfig(rotate="output", rotation="strict"), SVFTConfig(pattern="plain")])
def test_settings_survive_a_cast(config, tmp_path):
    """They are stored as a number that every dtype represents."""
    network = perturb(get_peft_model(whisper(), config))
    network.to(torch.bfloat16).save_pretrained(str(tmp_path))
    base = whisper()
    check_adapter(base, tmp_path)
    load_adapter(base, tmp_path)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("lora", {"r": 10**6}),
        ("lora", {"rank_pattern": {"fc1": 10**8}}),
        ("vera", {"r": 10**7}),
        ("ssvd", {"rank": 10**9}),
    ],
)
def test_a_rank_of_a_million_is_refused_before_memory_is_taken(method, fields, copied):
    folder = copied(method)
    unbind(folder)
    change_config(folder, **fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "has the shape .* in its file and .* by its configuration|has only 32 singular triplets")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3  # KiB


def test_the_base_model_is_left_alone_by_the_check(adapters):
    base = whisper()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    check_adapter(base, adapters("pissa")[0])
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(tensor.is_meta for tensor in base.parameters())


# --- the base model


def test_a_change_of_any_weight_of_the_base_is_noticed():
    for base in (whisper(), ctc_model()):
        stored = json.loads(json.dumps(base_fingerprint(base)))
        assert differing_weight(copy.deepcopy(base), stored) is None
        for name in stored["weights"]:
            weight = base.state_dict()[name]
            before = weight.clone()
            weight.view(-1)[weight.numel() // 2] += 0.01 + 0.01 * weight.abs().max()
            assert differing_weight(base, stored) is not None, name
            weight.copy_(before)


def ctc_model():
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    return ctc(Wav2Vec2Config, Wav2Vec2ForCTC)


def test_exchanged_rows_are_noticed():
    base = whisper()
    stored = base_fingerprint(base)
    with torch.no_grad():
        weight = base.model.decoder.embed_tokens.weight
        weight[[5, 6]] = weight[[6, 5]]
    assert "embed_tokens" in differing_weight(base, stored)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_rounded_copy_of_the_base_is_the_same_base(dtype):
    base = whisper()
    stored = base_fingerprint(base)
    assert differing_weight(copy.deepcopy(base).to(dtype), stored) is None
    assert differing_weight(copy.deepcopy(base).to(dtype).float(), stored) is None
    noisy = copy.deepcopy(base)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight += 0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert differing_weight(noisy.to(dtype), stored) is not None


def test_windows_may_differ_but_not_the_positions_in_them():
    base = whisper()
    stored = base_fingerprint(base)
    positions = base.model.encoder.embed_positions.weight.detach()
    base.model.encoder.embed_positions = nn.Embedding.from_pretrained(positions[:7].clone())
    assert differing_weight(base, stored) is None and differing_weight(whisper(), base_fingerprint(base)) is None
    base.model.encoder.embed_positions.weight[6, 3] += 0.1
    assert "embed_positions" in differing_weight(base, stored)


def test_nan_and_other_architectures_are_other_bases():
    base = whisper()
    stored = base_fingerprint(base)
    assert differing_weight(ctc_model(), stored) is not None
    with torch.no_grad():
        base.model.encoder.conv1.bias[0] = float("nan")
    assert differing_weight(base, stored) == "model.encoder.conv1.bias"


def test_samples_of_former_versions_are_still_compared():
    base = whisper()
    weight = base.model.encoder.layers[0].fc1.weight
    places = torch.linspace(0, weight.numel() - 1, 8).long()
    stored = {"model.encoder.layers.0.fc1": weight.detach().flatten()[places].tolist()}
    assert differing_weight(base, stored) is None
    assert differing_weight(copy.deepcopy(base).bfloat16(), stored) is None
    assert differing_weight(whisper(seed=1), stored) == "model.encoder.layers.0.fc1.weight"
    for damaged in ([], {"model.encoder.layers.0.fc1": [1.0]}, {"weights": 5}, {"weights": {"x": {"sums": "?"}}}):
        with pytest.raises(ValueError):
            differing_weight(base, damaged)


def test_an_adapter_is_bound_to_the_fingerprint_of_its_base(adapters, copied):
    folder = adapters("lora")[0]
    stored = base_fingerprint(whisper())
    assert belongs_to_base(folder, json.loads(json.dumps(stored)))
    assert not belongs_to_base(folder, base_fingerprint(whisper(seed=1)))
    older = copied("lora")
    unbind(older)
    assert belongs_to_base(older, {})


def test_what_peft_saved_of_lora_is_checked_too(tmp_path):
    network = perturb(get_peft_model(whisper(), LoraConfig(target_modules=["q_proj"], r=2)))
    network.save_pretrained(str(tmp_path))
    base = whisper()
    check_adapter(base, tmp_path)
    assert torch.equal(logits(load_adapter(base, tmp_path)), logits(network))
    change_config(tmp_path, lora_alpha=10**9)
    refused(tmp_path, "to more than 100 times its size")
