"""Adapters that PEFT itself saved, folders or names on the hub, do wherever run folders do."""

import json
import shutil

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ssvd import SSVDConfig
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.evaluate import evaluate
from ssvd.merge import merge
from ssvd.recognisers.loading import load_model
from ssvd.training.adapter_file import bind_adapter
from ssvd.training.base_fingerprint import base_fingerprint
from ssvd.training.run_folder import base_model_of, load_adapted
from ssvd.transcribe import transcribe_files

CONFIGS = {
    "ssvd": lambda layers: SSVDConfig(portion=0.4, target_modules=layers),
    "lora": lambda layers: LoraConfig(r=8, target_modules=layers),
}


SCALES = {"ssvd": 0.05, "lora": 0.3}  # of perturbations that change texts


def perturb(network, scale):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, embedded, corpora, tmp_path_factory):
    """(adapter folder as `save_pretrained` writes it, run folder with the same adapter, texts of the adapted model)."""
    folder = tmp_path_factory.mktemp(request.param)
    adapter, run = folder / "saved", folder / "run"
    speech = load_model(embedded)
    layers = speech.adaptable_layers()
    base = base_fingerprint(speech.module)
    speech.module = get_peft_model(speech.module, CONFIGS[request.param](layers))
    perturb(speech.module, SCALES[request.param])
    speech.module.eval()
    speech.module.save_pretrained(str(adapter))
    shutil.copytree(adapter, run / "adapter")
    (run / "config.yaml").write_text(yaml.safe_dump({"model": str(embedded), "train": ["x"]}))
    (run / "base.json").write_text(json.dumps(base))
    return adapter, run, transcribed(speech, corpora)


def transcribed(speech, corpora):
    cuts = list(read_corpus(corpora["adult"]).cuts)
    return speech.transcribe(speech.collate(cuts, text=False))


def test_adapter_changes_texts_as_in_a_run_folder(saved, embedded, corpora):
    adapter, run, texts = saved
    assert texts != transcribed(load_model(embedded), corpora)
    assert transcribed(load_adapted(str(embedded), adapter), corpora) == texts
    assert transcribed(load_adapted(str(embedded), run), corpora) == texts


def test_adapter_is_evaluated_beside_the_base(saved, embedded, corpora, tmp_path):
    adapter, run, _ = saved
    evaluations, _ = evaluate(str(embedded), [str(corpora["adult"])], adapters=[str(adapter), run], out=tmp_path)
    assert [evaluation.system for evaluation in evaluations] == ["base", str(adapter), str(run)]
    assert evaluations[1].score == evaluations[2].score != evaluations[0].score
    lines = {name: (tmp_path / "hypotheses" / f"{name}-metadata.jsonl").read_text() for name in ("saved", "run")}
    assert lines["saved"] == lines["run"]


def test_adapter_transcribes_files_as_a_run_folder(saved, embedded, corpora):
    adapter, run, _ = saved
    files = sorted(corpora["adult"].parent.glob("*.flac"))[:3]
    assert list(transcribe_files(str(embedded), files, adapter)) == list(transcribe_files(str(embedded), files, run))


def test_adapter_is_merged(saved, embedded, corpora, tmp_path):
    adapter, run, _ = saved
    merge(str(embedded), adapter, tmp_path / "adapter")
    merge(str(embedded), run, tmp_path / "run")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("adapter", "run")]
    base = load_file(embedded / "model.safetensors")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert any(not torch.equal(weights[0][name], base[name]) for name in base)
    with pytest.raises(UserError, match="is not empty"):
        merge(str(embedded), adapter, tmp_path / "run")


def test_base_model_is_named_by_adapter_and_run(saved, embedded, tmp_path):
    adapter, run, _ = saved
    assert base_model_of(adapter) == base_model_of(run) == str(embedded)
    nameless = shutil.copytree(adapter, tmp_path / "nameless")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match=r"nameless does not name its base model"):
        base_model_of(nameless)


def test_adapter_on_the_hub_is_found_by_name(saved, embedded, corpora, tmp_path, monkeypatch):
    """As the cache of the hub holds it once it is downloaded."""
    adapter, _, texts = saved
    repository = tmp_path / "models--somebody--children"
    shutil.copytree(adapter, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert transcribed(load_adapted(str(embedded), "somebody/children"), corpora) == texts
    assert base_model_of("somebody/children") == str(embedded)
    with pytest.raises(UserError, match=r"somebody/adults is not a run folder .* and not a PEFT adapter"):
        load_adapted(str(embedded), "somebody/adults")


def other_model(embedded, folder, change):
    """A copy of the embedded model with other weights."""
    shutil.copytree(embedded, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: change(weight) for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def test_adapter_that_does_not_fit_is_refused_in_a_sentence(saved, embedded, tmp_path):
    adapter = saved[0]
    broken = shutil.copytree(adapter, tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    name, weight = next(
        (name, weight) for name, weight in weights.items() if weight.dim() and weight.is_floating_point()
    )
    save_file(
        weights | {name: torch.zeros(*weight.shape[:-1], weight.shape[-1] + 1)}, broken / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"The adapter of .*broken does not load onto") as error:
        load_adapted(str(embedded), broken)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_adapter_of_another_base_is_refused_where_it_says_so(saved, embedded, tmp_path):
    """SSVD's adapters hold fingerprints of their base, run folders samples of it; PEFT's LoRA holds neither."""
    adapter, run, _ = saved
    other = other_model(embedded, tmp_path / "other", lambda weight: weight * 1.5 + 0.1)
    with pytest.raises(UserError, match="another base model than"):
        load_adapted(str(other), run)
    if "SSVD" in (adapter / "adapter_config.json").read_text():
        with pytest.raises(UserError, match=r"The adapter of .* does not load onto .*other") as error:
            load_adapted(str(other), adapter)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("changed", ["embed_tokens", "conv2.bias", "decoder.layer_norm", "embed_positions"])
def test_weights_of_the_base_that_no_adapter_touches_are_compared(saved, embedded, tmp_path, changed):
    _, run, _ = saved
    weights = load_file(embedded / "model.safetensors")
    (name,) = [
        name for name in weights if name.endswith((changed, f"{changed}.weight")) and "encoder.embed" not in name
    ]
    other = shutil.copytree(embedded, tmp_path / "other")
    weights[name][-1] *= 1.1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"another base model than .*{changed}.* differs\."):
        load_adapted(str(other), run)


def test_adapter_of_another_run_is_refused(saved, embedded, tmp_path):
    """Each file of a run belongs to the others."""
    first, second = (shutil.copytree(saved[1], tmp_path / name) for name in ("first", "second"))
    for run in (first, second):
        bind_adapter(run / "adapter", run / "base.json", "embedded")
    load_adapted(str(embedded), first)
    config = json.loads((second / "adapter" / "adapter_config.json").read_text())
    (first / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"bias": "all", "rotate": "output"}))
    with pytest.raises(UserError, match="is not the one that it was trained with; copy both files from the same run"):
        load_adapted(str(embedded), first)
    base = json.loads((second / "base.json").read_text())
    base["weights"]["model.encoder.conv1.weight"]["sums"][0] *= 1 + 1e-7
    (second / "base.json").write_text(json.dumps(base))
    with pytest.raises(UserError, match=r"base\.json is that of another adapter; copy the run folder whole"):
        load_adapted(str(embedded), second)


def test_run_without_the_file_of_its_adapter_is_told(saved, embedded, tmp_path):
    run = shutil.copytree(saved[1], tmp_path / "run")
    (run / "adapter" / "adapter_model.safetensors").rename(run / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"run has no adapter_model.safetensors; save it again"):
        load_adapted(str(embedded), run)


def test_folder_without_adapter_is_refused_by_name(embedded, saved, tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder \(it has no config.yaml\) and not a PEFT adapter"):
        load_adapted(str(embedded), tmp_path)
    pickled = shutil.copytree(saved[0], tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(UserError, match=r"pickled has no adapter_model.safetensors; save it again"):
        load_adapted(str(embedded), pickled)
