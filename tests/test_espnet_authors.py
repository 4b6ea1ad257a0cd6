"""Adapters as the authors' branch of ESPnet saves them: read, decoded, and written."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from ssvd.errors import UserError
from ssvd.merge import read_authors, write_authors
from ssvd.methods import Budget, apply_method
from ssvd.recognisers.espnet_checkpoint import find_checkpoint
from ssvd.recognisers.loading import load_model
from ssvd.training.run_folder import load_adapted
from ssvd_cli.errors import CommandError
from ssvd_cli.main import app
from test_espnet import _perturb, cut_of, make_owsm, owsm, pretraining, pytestmark  # noqa: F401

# The layers that their configuration for OWSM adapts.
TARGETS = (
    "attn.linear_q attn.linear_k attn.linear_v attn.linear_out embed.out cgmlp.channel_proj1.0 cgmlp.channel_proj2 "
    "feed_forward.w_1 feed_forward.w_2 feed_forward_macaron.w_1 feed_forward_macaron.w_2 merge_proj output_layer"
).split()


def their_weight(u, s_pre, v, s, gate, K_vec, rotation_map, wide):
    """The weight of a layer of theirs, written down entry by entry from their description."""
    k, T = len(s), np.zeros((len(s), len(s)))
    for value, (row, column) in zip(K_vec, combinations(range(k), 2), strict=True):
        T[row, column], T[column, row] = -value, value
    A = np.eye(k) + 2 * T if rotation_map == "linear" else np.linalg.inv(np.eye(k) - T) @ (np.eye(k) + T)
    sigma = np.array(s_pre)
    sigma[:k] += s / (1 + math.exp(-gate))
    rows = np.concatenate([A @ v[:k], v[k:]])
    weight = sum(np.outer(u[:, i], sigma[i] * rows[i]) for i in range(len(sigma)))
    return weight.T if wide else weight


def parts_of(state, name):
    return {part: state[f"{name}.{part}"].double().numpy() for part in ("u", "s_pre", "v", "s", "K_vec")} | {
        "gate": float(state[f"{name}.gate"])
    }


@pytest.fixture
def trained(owsm, tmp_path):  # noqa: F811
    """Writes an experiment of their ESPnet on the small OWSM, and the same weights as a plain checkpoint."""

    def make(rotation_map="linear", ratio=0.4, base=owsm, start=0.1, turn=0.05):
        folder, plain = tmp_path / "exp", tmp_path / "plain"
        generator = torch.Generator().manual_seed(4)
        checkpoint = find_checkpoint(base)
        state = torch.load(checkpoint.weights_file, weights_only=True)
        state = {name.replace("embed.out.0.", "embed.out."): tensor for name, tensor in state.items()}
        merged = dict(state)
        for name in [name.removesuffix(".weight") for name in state]:
            if not name.endswith(tuple(TARGETS)) or f"{name}.weight" not in state:
                continue
            W = state[f"{name}.weight"]
            wide, k = W.shape[0] < W.shape[1], int(min(W.shape) * ratio)
            u, s_pre, v = torch.linalg.svd(W.T if wide else W, full_matrices=False)
            parts = {
                "s": start * torch.randn(k, generator=generator),
                "gate": torch.tensor([0.3]),
                "K_vec": turn * torch.randn(k * (k - 1) // 2, generator=generator),
                "u": u,
                "s_pre": s_pre,
                "v": v,
                "svd_initialized": torch.tensor(True),
                "K_triu_idx": torch.triu_indices(k, k, 1),
            }
            state |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
            weight = their_weight(**parts_of(state, name), rotation_map=rotation_map, wide=wide)
            merged[f"{name}.weight"] = state[f"{name}.weight"] = torch.tensor(weight).float()
        conf = {"rank": 0, "alpha": 0, "dropout_rate": 0.0, "adapter_type": "ssvd", "rotation_ratio": ratio}
        conf |= {"rotation_map": rotation_map, "target_modules": [*TARGETS, "decoder.embed.0"]}
        checkpoint.write(state, folder, {"use_adapter": True, "adapter": "lora", "adapter_conf": conf})
        checkpoint.write(merged, plain)
        return folder, plain

    return make


@pytest.fixture
def batch(owsm, cut_of):  # noqa: F811
    """A batch of noise, which a model of random weights decodes as well as speech."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=40_000).astype(np.float32)
    return load_model(owsm).collate([cut_of(noise, "seven green ships")])


@torch.no_grad()
def outputs(speech, batch):
    """The encoder's output and the loss, in float64 for comparison."""
    speech.module.eval()
    encoded = speech._network.encode(batch.speech, torch.tensor([batch.speech.shape[1]]))[0]
    return encoded.double(), speech.loss(batch).double()


def same(ours, theirs):
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rotation_map", ["linear", "cayley"])
def test_an_adapter_of_theirs_decodes_equally_and_goes_back(rotation_map, trained, owsm, batch, tmp_path):  # noqa: F811
    folder, plain = trained(rotation_map)
    converted = read_authors(owsm, folder, tmp_path / "adapter")
    assert (converted.basis, converted.layers) == ("recompute", len(load_model(owsm).adaptable_layers()))
    assert converted.error < 1e-3
    speech, reference = load_adapted(owsm, tmp_path / "adapter"), load_model(plain)
    assert same(outputs(speech, batch), outputs(reference, batch))
    assert not same(outputs(load_model(owsm), batch), outputs(reference, batch))
    assert speech.transcribe(batch) == reference.transcribe(batch)

    write_authors(owsm, tmp_path / "adapter", tmp_path / "back")
    (file,), config = (tmp_path / "back").glob("exp/*/*.pth"), tmp_path / "back/exp/s2t/config.yaml"
    back, first = torch.load(file, weights_only=True), torch.load(folder / "exp/s2t/model.pth", weights_only=True)
    conf = yaml.safe_load(config.read_text())["adapter_conf"]
    assert back.keys() == first.keys()
    assert all(back[name].shape == first[name].shape and back[name].dtype == first[name].dtype for name in first)
    assert (conf["rotation_map"], conf["rank"]) == (rotation_map, 12)
    for name in [name.removesuffix(".K_vec") for name in back if name.endswith(".K_vec")]:
        weight, wide = back[f"{name}.weight"], back[f"{name}.u"].shape[0] != back[f"{name}.weight"].shape[0]
        assert torch.allclose(weight, first[f"{name}.weight"], atol=1e-4)
        assert np.allclose(
            their_weight(**parts_of(back, name), rotation_map=rotation_map, wide=wide), weight, atol=1e-4
        )
    again = read_authors(owsm, tmp_path / "back", tmp_path / "again")
    assert again.error < 1e-4
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert all(torch.allclose(other[name], tensor, atol=1e-3) for name, tensor in one.items())


def test_a_decomposition_that_cannot_be_found_again_is_stored(trained, owsm, batch, tmp_path):  # noqa: F811
    # With equal singular values any basis is one, and theirs came from float32.
    flat = tmp_path / "flat"
    checkpoint = find_checkpoint(owsm)
    state = torch.load(checkpoint.weights_file, weights_only=True)
    name = "encoder.encoders.0.attn.linear_q.weight"
    state[name] = torch.linalg.qr(state[name]).Q.contiguous()
    checkpoint.write(state, flat)
    folder, plain = trained(base=flat)
    converted = read_authors(flat, folder, tmp_path / "adapter")
    assert converted.basis == "stored" and converted.error < 1e-3
    assert same(outputs(load_adapted(flat, tmp_path / "adapter"), batch), outputs(load_model(plain), batch))


def test_their_untrained_start_is_not_the_pretrained_model_and_is_kept(trained, owsm, batch, tmp_path):  # noqa: F811
    folder, plain = trained(turn=0.0, start=0.4)
    read_authors(owsm, folder, tmp_path / "adapter")
    adapted = outputs(load_adapted(owsm, tmp_path / "adapter"), batch)
    assert same(adapted, outputs(load_model(plain), batch)) and not same(adapted, outputs(load_model(owsm), batch))


def changed(folder, change):
    (file,) = folder.glob("exp/*/*.pth")
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    return folder


REFUSED = {
    "was trained on another base model: u, s_pre and v of": lambda state: state["decoder.output_layer.s_pre"].mul_(1.5),
    "encoder.after_norm.weight is not that of the base model": lambda state: state["encoder.after_norm.weight"].add_(1),
    "holds decoder.embed.0.lora_A, which an adapter of SSVD has no place for": lambda state: state.update(
        {"decoder.embed.0.lora_A": torch.ones(2, 3)}
    ),
    "is not a layer of SSVD on this base model: it lacks gate": lambda state: state.pop("decoder.output_layer.gate"),
    "the sizes in decoder.output_layer do not fit": lambda state: state.update(
        {"decoder.output_layer.s": torch.zeros(3)}
    ),
    "holds no adapter of SSVD .K_vec.": lambda state: [state.pop(name) for name in list(state) if "K_vec" in name],
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_an_adapter_cannot_hold_is_refused(said, trained, owsm, tmp_path):  # noqa: F811
    folder = changed(trained()[0], REFUSED[said])
    with pytest.raises(UserError, match=said):
        read_authors(owsm, folder, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_unknown_map_and_folders_of_other_things_are_refused(trained, owsm, tmp_path):  # noqa: F811
    folder, _ = trained()
    config = folder / "exp/s2t/config.yaml"
    config.write_text(config.read_text().replace("rotation_map: linear", "rotation_map: expm"))
    with pytest.raises(UserError, match="rotation_map is 'expm', and only linear and cayley"):
        read_authors(owsm, folder, tmp_path / "adapter")
    with pytest.raises(UserError, match="holds no model of ESPnet"):
        read_authors(owsm, tmp_path, tmp_path / "adapter")


def adapter_of(owsm, folder, method, budget="p=0.4"):  # noqa: F811
    speech = load_model(owsm)
    network = apply_method(speech.module, method, speech.adaptable_layers(), Budget.parse(budget))
    _perturb(network)
    network.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    ("method", "budget", "said"),
    [
        ("ssvd", "p=0.4", "rotates the output basis of .* train with rotate='smaller'"),
        ("ssvd tail", "p=0.4", "no place for other triplets than the first"),
        ("ssvd neumann", "p=0.4", "has the rotations approx and strict, and no 'neumann'"),
        ("lora", "rank=2", "holds adapters of SSVD alone"),
    ],
)
def test_what_their_format_has_no_place_for_is_not_written(method, budget, said, owsm, tmp_path):  # noqa: F811
    adapter = adapter_of(owsm, tmp_path / "adapter", method, budget)
    with pytest.raises(UserError, match=said):
        write_authors(owsm, adapter, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_the_command_converts_there_and_back(owsm, batch, tmp_path):  # noqa: F811
    def run(*arguments):
        result = CliRunner().invoke(app, ["merge", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    adapter = adapter_of(owsm, tmp_path / "adapter", "ssvd smaller")
    run(owsm, adapter, tmp_path / "theirs", "--to", "espnet-ssvd")
    assert "changes differ by" in run(owsm, tmp_path / "theirs", tmp_path / "ours", "--to", "peft")
    assert same(*(outputs(load_adapted(owsm, tmp_path / name), batch) for name in ("adapter", "ours")))
    with pytest.raises(CommandError, match="Name the base model too"):
        run(tmp_path / "theirs", tmp_path / "x", "--to", "peft")
    with pytest.raises(CommandError, match="has no --scale"):
        run(owsm, adapter, tmp_path / "x", "--to", "espnet-ssvd", "--scale", 0.5)
    # As a model, theirs is refused with a hint.
    with pytest.raises(UserError, match=r"One of SSVD can be converted"):
        load_model(tmp_path / "theirs")


@pytest.mark.parametrize("recipe", ["ssvd", "dora", "svft"])
def test_the_recipe_of_the_authors_trains_a_small_model(recipe, owsm, tmp_path):  # noqa: F811
    lines = ["path,text,speaker"]
    for number in range(4):
        noise = np.random.default_rng(number).normal(scale=0.1, size=30_000)
        soundfile.write(tmp_path / f"{number}.wav", noise, 16000)
        lines.append(f"{number}.wav,seven green ships,{number}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    arguments = [owsm, "--config", f"myst-owsm-{recipe}", "--train", table, "--dev", table, "--out", tmp_path / "run"]
    shorter = "--epochs 1 --updates-per-epoch 2 --accumulation 1 --batch-size 2 --workers 0 --device cpu".split()
    result = CliRunner().invoke(app, ["adapt", *map(str, arguments), *shorter], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "run/result.json").read_text())
    assert written["series"][-1]["update"] == 2 and math.isfinite(written["series"][-1]["loss"])
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["decay"] == "inverse-sqrt"
