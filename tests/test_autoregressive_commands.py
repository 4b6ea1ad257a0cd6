"""The commands on the families that write token by token and on a transducer, from the plan to merged checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssvd.recognisers.loading import load_outline
from test_autoregressive import make_cut
from tiny_checkpoints import FAMILIES


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for name, seconds, text in (("one", 0.6, "a ball"), ("two", 1.1, "she ran home"), ("three", 0.9, "we saw")):
        make_cut(folder, name, seconds)
        rows.append({"path": f"{name}.wav", "text": text, "language": "en", "speaker": name})
    (folder / "utterances.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "utterances.jsonl"


def hypotheses(folder, system):
    lines = next((folder / "hypotheses").glob(f"{system}-*")).read_text().splitlines()
    return {row["id"]: row["hypothesis"] for row in map(json.loads, lines)}


# One of each kind always, the others with the slow tests.
ALWAYS = "qwen3_asr", "canary", "parakeet_tdt"


@pytest.mark.parametrize(
    "family",
    [*ALWAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in ALWAYS)],
)
def test_the_commands_take_it_as_they_take_whisper(family, table, ssvd, tiny_checkpoint, tmp_path, monkeypatch):
    if family == "speech_to_text":
        pytest.importorskip("sentencepiece")
    folder, run = tiny_checkpoint(family), tmp_path / "run"
    code, out, err = ssvd("plan", folder, "--layers", "all", "--json")
    assert code == 0, err
    assert json.loads(out)["layers"] == len(load_outline(folder, ["all"])[1])
    if family in ALWAYS:  # it starts a process, which takes long
        code, out, err = ssvd("data", "check", table, "--model", folder, "--workers", 1, "--no-audio")
        assert code == 0, err
    options = ["--epochs", 1, "--updates-per-epoch", 2, "--batch-size", 2, "--learning-rate", 0.01, "--device", "cpu"]
    options += ["--dev-limit", 1, "--text-style", "keep", "--layers", "all", "--method", "lora", "--budget", "rank=2"]
    code, _, err = ssvd("adapt", folder, "--train", table, "--dev", table, "--out", run, *options)
    assert code == 0, err
    assert json.loads((run / "result.json").read_text())["series"][1]["loss"] > 0
    weights = run / "adapter/adapter_model.safetensors"
    card = (run / "adapter/README.md").read_text().split("```python")[1].split("```")[0]
    monkeypatch.chdir(folder.parent)  # the card names the base without the path on this machine
    exec(card.replace('"adapter"', repr(str(run / "adapter"))), loaded := {})
    assert loaded["model"].peft_config["default"].peft_type.lower() == "lora"
    # Nothing is gained in so few updates: perturb what is kept, or every bug stays invisible.
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value if "fingerprint" in name else value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(weights).items()
    }
    save_file(state, weights, {"format": "pt"})
    code, _, err = ssvd("evaluate", folder, table, "--adapter", run, "--out", tmp_path / "scores")
    assert code == 0, err
    adapted = hypotheses(tmp_path / "scores", "run")
    assert adapted != hypotheses(tmp_path / "scores", "base") and len(adapted) == 3
    code, _, err = ssvd("merge", folder, run, tmp_path / "merged")
    assert code == 0, err
    code, _, err = ssvd("evaluate", tmp_path / "merged", table, "--out", tmp_path / "again")
    assert code == 0, err
    assert hypotheses(tmp_path / "again", "base") == adapted
    code, out, err = ssvd("transcribe", folder, table.parent / "one.wav", "--adapter", run, "--language", "en")
    assert code == 0 and out.strip() in adapted.values(), err
