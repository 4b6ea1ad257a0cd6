"""Averages of adapted models, and models between base and adapted one."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch.testing import assert_close

from ssvd import SSVDConfig, SVFTConfig, load_model
from ssvd.average import average
from ssvd.errors import UserError
from ssvd.merge import merge
from ssvd.training.interpolation import copied_weights, merge_adapter
from ssvd.training.run_folder import load_adapted, read_config
from ssvd.training.scale_choice import Tried, best

TARGETS = ["fc1", "out_proj"]


def weights_of(embedded, run, scale=None):
    speech = load_adapted(embedded, run, scale=scale)
    merge_adapter(speech)
    return copied_weights(speech.module)


CONFIGS = {
    "ssvd": lambda: SSVDConfig(portion=0.2, target_modules=TARGETS),
    "svft": lambda: SVFTConfig(off_diagonals=2, target_modules=TARGETS),
    "lora": lambda: LoraConfig(r=4, target_modules=TARGETS),
}


@pytest.mark.parametrize("method", CONFIGS)
def test_scaled_model_lies_on_the_line_between_base_and_adapted_model(embedded, adapter, method):
    run = adapter(CONFIGS[method]())
    base = copied_weights(load_model(embedded).module)
    adapted = weights_of(embedded, run)
    half = weights_of(embedded, run, scale=0.5)
    name = "model.encoder.layers.0.fc1.weight"
    assert (adapted[name] - base[name]).norm() > 0.01 * base[name].norm()
    for name in base:
        assert_close(half[name], (base[name] + adapted[name]) / 2)
        assert_close(
            weights_of(embedded, run, scale=0.0)[name] if name.endswith("fc1.weight") else base[name], base[name]
        )


@pytest.mark.parametrize("method", CONFIGS)
def test_average_of_weights_is_their_mean_for_every_method(embedded, adapter, tmp_path, method):
    runs = [adapter(CONFIGS[method](), seed) for seed in range(3)]
    assert average(embedded, runs, tmp_path / "out", "weights") == "weights"
    parts = [weights_of(embedded, run) for run in runs]
    for name, weight in weights_of(embedded, tmp_path / "out").items():
        # The checkpoint is stored in float16, as the base model is.
        assert_close(weight, sum(part[name] for part in parts) / 3, rtol=1e-3, atol=1e-4)


def test_average_of_cores_is_an_adapter_of_the_mean_parameters(embedded, adapter, tmp_path):
    runs = [adapter(CONFIGS["ssvd"](), seed) for seed in range(2)]
    assert average(embedded, runs, tmp_path / "out") == "cores"
    first, second = (load_file(run / "adapter_model.safetensors") for run in runs)
    averaged = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert averaged.keys() == first.keys()
    for name, tensor in averaged.items():
        assert_close(tensor, first[name] if "_basis." in name else (first[name] + second[name]) / 2)
    # Not the mean of the weights: the core is a product of what is trained.
    adapted, parts = weights_of(embedded, tmp_path / "out"), [weights_of(embedded, run) for run in runs]
    name = "model.encoder.layers.0.fc1.weight"
    assert not torch.allclose(adapted[name], (parts[0][name] + parts[1][name]) / 2, atol=1e-5)


def test_cores_of_svft_average_to_the_same_model_as_the_weights(embedded, adapter, tmp_path):
    runs = [adapter(CONFIGS["svft"](), seed) for seed in range(2)]
    average(embedded, runs, tmp_path / "out", "cores")
    adapted, parts = weights_of(embedded, tmp_path / "out"), [weights_of(embedded, run) for run in runs]
    for name, weight in adapted.items():
        assert_close(weight, (parts[0][name] + parts[1][name]) / 2, rtol=1e-4, atol=1e-5)


def test_average_of_two_copies_is_the_run_itself(embedded, adapter, tmp_path):
    run = adapter(CONFIGS["ssvd"]())
    average(embedded, [run, run], tmp_path / "out")
    assert_close(weights_of(embedded, tmp_path / "out"), weights_of(embedded, run), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (LoraConfig(r=4, target_modules=TARGETS), r"differ in method \(SSVD and LORA\)"),
        (SSVDConfig(portion=0.3, target_modules=TARGETS), r"differ in rank \(0.2 and 0.3\)"),
        (SSVDConfig(portion=0.2, target_modules=["fc1"]), r"differ in layers \(\['fc1', 'out_proj'\] and \['fc1'\]\)"),
        (SSVDConfig(portion=0.2, target_modules=TARGETS, rotation="strict"), r"differ in rotation \(approx and strict"),
    ],
)
def test_runs_that_differ_are_refused_with_what_differs(embedded, adapter, tmp_path, other, told):
    runs = [adapter(CONFIGS["ssvd"]()), adapter(other)]
    for of in (None, "weights"):
        with pytest.raises(UserError, match=f"cannot be averaged: they {told}"):
            average(embedded, runs, tmp_path / "out", of)
    assert not (tmp_path / "out").exists()


def test_bad_averages_are_refused_by_the_command(refused, adapter, embedded, tmp_path):
    lora, ssvd = adapter(CONFIGS["lora"]()), adapter(CONFIGS["ssvd"]())
    out = ["--out", tmp_path / "out"]
    assert "Name two or more runs" in refused("average", ssvd, *out)
    assert "differ in method (SSVD and LORA)" in refused("average", ssvd, lora, *out)
    assert "has no cores" in refused("average", lora, lora, "--of", "cores", *out)
    assert "is not a run folder" in refused("average", ssvd, tmp_path / "none", *out)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in ssvd.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    config = json.loads((ssvd / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "another/model"}))
    assert "have different base models" in refused("average", ssvd, elsewhere, *out)
    assert not (tmp_path / "out").exists()


def test_whole_path_of_averages_and_scales(ssvd, adapter, corpora, embedded, tmp_path):
    runs = [adapter(CONFIGS["ssvd"](), seed, std=1.0) for seed in range(2)]
    code, out, err = ssvd("average", *runs, "--out", tmp_path / "mean")
    assert code == 0 and "holds the average of the cores of 2 runs" in out, err
    files = sorted(corpora["adult"].parent.glob("*.flac"))[:2]
    base = ssvd("transcribe", embedded, *files)[1]
    assert ssvd("transcribe", "--run", tmp_path / "mean", *files)[1] not in ("", base)
    assert ssvd("transcribe", "--run", tmp_path / "mean", "--scale", 0, *files)[1] == base
    code, out, err = ssvd("evaluate", "--run", tmp_path / "mean", "--scale", 0, corpora["adult"], "--json")
    assert code == 0, err
    first, second = json.loads(out)
    assert (first["scale"], second["scale"]) == (0, 0) and first["wer"] == second["wer"]
    assert "mean at 0.5" in ssvd("evaluate", "--run", tmp_path / "mean", "--scale", 0.5, corpora["adult"])[1]
    assert ssvd("merge", tmp_path / "mean", tmp_path / "half", "--scale", 0.5)[0] == 0
    merge(embedded, tmp_path / "mean", tmp_path / "half too", scale=0.5)
    half, too = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "half too"))
    assert_close(half, too, rtol=0, atol=0)


def test_scale_without_an_adapter_or_below_zero_is_told(refused, embedded, adapter, corpora):
    assert "--scale is for adapters" in refused("evaluate", embedded, corpora["adult"], "--scale", 0.5)
    run = adapter(CONFIGS["lora"]())
    assert "A scale of -1 is not possible" in refused("transcribe", "--run", run, "a.wav", "--scale", -1)
    with pytest.raises(UserError, match="A scale of nan is not possible"):
        load_adapted(embedded, run, scale=float("nan"))


def test_scale_is_the_best_on_dev_that_keeps_every_corpus():
    tried = [Tried(0.0, 0.3, [0.1, 0.2]), Tried(0.5, 0.2, [0.11, 0.2]), Tried(1.0, 0.1, [0.13, 0.2])]
    assert best(tried, [5, 0]).scale == 1.0
    assert best(tried, [1, 0]).scale == 0.5
    assert best(tried, [0.5, 0]).scale == 0.0
    assert best([*tried, Tried(1.5, 0.1, [0.1, 0.2])], [5, 5]).scale == 1.0  # of equal ones the smallest


def test_run_is_used_at_the_scale_that_it_chose(ssvd, corpora, embedded, tmp_path):
    run, adult = tmp_path / "run", corpora["adult"]
    command = ["adapt", embedded, "--train", corpora["child"], "--dev", corpora["child"], "--keep", f"{adult}:1"]
    command += ["--epochs", 1, "--updates-per-epoch", 6, "--batch-size", 4, "--learning-rate", 2e-2, "--dev-limit", 6]
    code, out, err = ssvd(*command, "--method", "lora", "--budget", "rank=4", "--device", "cpu", "--out", run)
    assert code == 0 and "chosen on dev" in out and "scale 0.25  dev WER" in err, err
    choice = json.loads((run / "scale.json").read_text())
    rows = choice["tried"]
    assert [row["scale"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    name = "metadata"
    kept = [row for row in rows if row["kept_wer"][name] <= rows[0]["kept_wer"][name] + 0.01]
    assert 0 < choice["scale"] == min(kept, key=lambda row: (row["dev_wer"], row["scale"]))["scale"] < 1
    assert json.loads((run / "result.json").read_text())["scale"] == choice["scale"]
    assert f"The run chose the scale {choice['scale']:g}" in (run / "adapter" / "README.md").read_text()
    assert read_config(run)["keep"] == [f"{adult}:1"]

    code, out, err = ssvd("evaluate", "--run", run, adult, "--json", "--batch-size", 8, "--device", "cpu")
    _, evaluated = json.loads(out)
    assert code == 0 and evaluated["scale"] == choice["scale"], err
    assert_close(weights_of(embedded, run), weights_of(embedded, run, scale=choice["scale"]))


def test_runs_that_chose_a_scale_have_an_average_of_weights_only(embedded, adapter, tmp_path):
    runs = [adapter(CONFIGS["ssvd"](), seed) for seed in range(2)]
    (runs[1] / "scale.json").write_text('{"scale": 0.5}')
    with pytest.raises(UserError, match="chose a scale"):
        average(embedded, runs, tmp_path / "out", "cores")
    assert average(embedded, runs, tmp_path / "out") == "weights"
    name = "model.encoder.layers.0.fc1.weight"
    whole, half = weights_of(embedded, runs[0])[name], weights_of(embedded, runs[1], scale=0.5)[name]
    assert_close(weights_of(embedded, tmp_path / "out")[name], (whole + half) / 2, rtol=1e-3, atol=1e-4)
    (runs[1] / "scale.json").write_text("[]")
    with pytest.raises(UserError, match=r"scale\.json does not state a scale"):
        average(embedded, runs, tmp_path / "again")


@pytest.mark.parametrize("keep", ["adults.csv", ":1", "adults.csv:-1", "adults.csv:much"])
def test_corpus_to_keep_without_a_bound_is_told(refused, embedded, corpora, tmp_path, keep):
    sentence = refused("adapt", embedded, "--train", corpora["child"], "--keep", keep, "--out", tmp_path / "run")
    assert f"keep {keep!r} cannot be read" in sentence
