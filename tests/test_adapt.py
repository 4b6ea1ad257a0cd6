"""One fine-tuning run on real files: what is in its folder, which epoch it keeps, when it stops."""

import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration
from typer.testing import CliRunner

from ssvd.adapt import adapt
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.plan import plan_methods
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.whisper import Whisper
from ssvd.scoring import score
from ssvd.training.model_card import public_name
from ssvd.training.module import Adaptation
from ssvd.training.progress import Log
from ssvd.training.run_folder import load_adapted
from ssvd_cli.main import app

RATES = {"ssvd": 5e-3, "lora": 5e-3, "pissa": 2e-3, "svft": 2e-2, "full": 2e-4}  # high, as there are few updates


@pytest.fixture(scope="module", params=RATES)
def finished(request, tmp_path_factory, options, corpora):
    """(options, run folder, result) of a short run by each method, whose dev utterances are those of training."""
    run = tmp_path_factory.mktemp(request.param) / "run"
    rate = RATES[request.param]
    chosen = options(method=request.param, learning_rate=rate, dev=[str(corpora["child"])], updates_per_epoch=5)
    return chosen, run, adapt(chosen, run)


def test_run_folder_holds_what_is_needed_to_use_continue_and_repeat_the_run(finished):
    chosen, run, result = finished
    assert yaml.safe_load((run / "config.yaml").read_text()) == chosen.model_dump()
    assert json.loads((run / "result.json").read_text()) == result.as_dict()
    assert len(read_corpus(run / "data" / "train.jsonl.gz").cuts) == 16
    assert len(read_corpus(run / "data" / "dev.jsonl.gz").cuts) == 16
    assert (run / "checkpoints" / "last.ckpt").is_file() and any((run / "tensorboard").iterdir())
    assert len((run / "metrics.csv").read_text().splitlines()) == 4  # header, before training, two epochs
    best = run / ("model" if chosen.method == "full" else "adapter")
    assert result.adapter_bytes == sum(path.stat().st_size for path in best.glob("*.safetensors")) > 0
    assert not list(run.rglob("*.partial")) and not list(run.rglob("*.old"))


def test_what_is_published_of_a_run_holds_no_paths_of_this_machine(finished, embedded):
    chosen, run, _ = finished
    if chosen.method != "full":
        text = "".join((run / "adapter" / name).read_text() for name in ("README.md", "adapter_config.json"))
        assert "base_model: embedded" in text and "Trained on metadata.csv" in text
        assert not re.search(r"[\s\"'(](/|~)\w", text)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("openai/whisper-small", "openai/whisper-small"),
        ("/home/somebody/models/small/", "small"),
        ("~/models/small", "small"),
        ("../models/small", "small"),
        (str(Path(__file__).parent), "tests"),
        ("hf:mozilla/speech?split=train", "hf:mozilla/speech?split=train"),
        ("lhotse:recipe:/data/my corpus?audio=/data/audio&x=y", "lhotse:recipe:my corpus?audio=audio&x=y"),
    ],
)
def test_names_for_others_have_no_folders(name, public):
    assert public_name(name) == public


def test_how_far_ssvd_left_the_rotations_is_told_after_each_epoch(finished):
    chosen, run, result = finished
    if chosen.method != "ssvd":
        assert "orthogonality_error" not in (run / "metrics.csv").read_text()
        return
    errors = [epoch.orthogonality_error for epoch in result.series]
    assert errors[0] == 0 < errors[1] < errors[2] == result.orthogonality_error
    assert "orthogonality_error" in (run / "metrics.csv").read_text()


def test_trains_as_many_parameters_as_planned(finished, embedded):
    chosen, _, result = finished
    rows = {row.method: row for row in plan_methods(embedded, chosen.budget).methods}
    assert result.trainable_parameters == rows[chosen.method].trainable_parameters


def test_training_lowers_loss_and_error_rate_on_its_corpus(finished, embedded):
    _, run, result = finished
    assert result.best_epoch > 0 and result.best_dev_wer < result.zero_shot_dev_wer
    cuts = list(read_corpus(run / "data" / "train.jsonl.gz").cuts)
    base, adapted = load_model(embedded), load_adapted(str(embedded), run)
    with torch.no_grad():
        assert adapted.loss(adapted.collate(cuts)) < base.loss(base.collate(cuts))


def test_reloaded_best_epoch_gives_the_stored_hypotheses_and_their_error_rate(finished, embedded):
    _, run, result = finished
    rows = [json.loads(line) for line in (run / "hypotheses" / "dev.jsonl").read_text().splitlines()]
    speech = load_adapted(str(embedded), run)
    cuts = list(read_corpus(run / "data" / "dev.jsonl.gz").cuts)
    assert [cut.id for cut in cuts] == [row["id"] for row in rows]
    texts = speech.transcribe(speech.collate(cuts, text=False))
    assert texts == [row["hypothesis"] for row in rows]
    references = [row["reference"] for row in rows]
    assert score(references, texts, normaliser=result.normaliser).wer == result.best_dev_wer
    assert result.best_dev_wer == min(epoch.dev_wer for epoch in result.series)


def test_card_of_the_adapter_shows_code_that_loads_it(finished, embedded, monkeypatch):
    chosen, run, _ = finished
    monkeypatch.chdir(embedded.parent)  # the card names no folders of this machine
    if chosen.method == "full":
        return  # a plain checkpoint
    card = (run / "adapter" / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0]
    space: dict = {}
    exec(code.replace('"adapter"', repr(str(run / "adapter"))), space)
    family = {"pissa": "lora"}.get(chosen.method, chosen.method)
    assert space["model"].peft_config["default"].peft_type.lower() == family
    assert "lightning" not in code  # which a PEFT user need not have
    assert ("import ssvd" in code) == (family in ("ssvd", "svft"))


class Scripted:
    """Stands in for decoding: of the dev texts, so many are wrong before training and after each epoch."""

    def __init__(self, monkeypatch, *wrong: int):
        self.wrong = iter(wrong)
        self.adapters: list[dict[str, torch.Tensor]] = []
        monkeypatch.setattr(Whisper, "transcribe", self.transcribe)

    def transcribe(self, batch, decoding):
        assert len(batch.ids) == 8, "the dev set is one batch"
        wrong = next(self.wrong)
        return ["nonsense"] * wrong + [self.references[name] for name in batch.ids[wrong:]]

    def follow(self, corpus):
        self.references = {cut.id: cut.supervisions[0].text for cut in read_corpus(corpus).cuts}
        return self


@pytest.fixture
def scripted(monkeypatch, corpora):
    return lambda *wrong: Scripted(monkeypatch, *wrong).follow(corpora["adult"])


def parameters(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_keeps_the_best_epoch_and_not_the_last(scripted, options, tmp_path):
    scripted(8, 2, 5)
    result = adapt(options(), tmp_path / "run")
    assert result.best_epoch == 1
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    kept = parameters(tmp_path / "run")
    assert last.keys() == kept.keys() and not all(torch.equal(last[name], kept[name]) for name in kept)
    wrong = [json.loads(line) for line in (tmp_path / "run" / "hypotheses" / "dev.jsonl").read_text().splitlines()]
    assert sum(row["hypothesis"] == "nonsense" for row in wrong) == 2


def test_first_of_equally_good_epochs_is_kept(scripted, options, tmp_path):
    scripted(8, 3, 3)
    assert adapt(options(), tmp_path / "run").best_epoch == 1


def test_patience_counts_epochs_since_the_best(scripted, options, tmp_path):
    scripted(8, 5, 6, 4, 4, 7, 0)
    result = adapt(options(epochs=6, updates_per_epoch=1, patience=2), tmp_path / "run")
    assert [epoch.epoch for epoch in result.series] == [0, 1, 2, 3, 4, 5]
    assert result.best_epoch == 3


def test_run_that_is_killed_after_its_patience_ended_trains_no_further(scripted, options, tmp_path):
    scripted(8, 5, 6, 0)
    run = tmp_path / "run"
    result = adapt(options(epochs=3, updates_per_epoch=1, patience=1), run)
    (run / "result.json").unlink()
    assert adapt(None, run, resume=True).series == result.series


def test_run_in_which_no_epoch_helps_says_so_and_keeps_an_adapter_that_changes_nothing(
    scripted, options, tmp_path, embedded
):
    scripted(1, 1, 2)
    log = io.StringIO()
    result = adapt(options(), tmp_path / "run", progress=Log(log))
    assert result.best_epoch == 0 and "No epoch was better" in log.getvalue()
    base, adapted = load_model(embedded), load_adapted(str(embedded), tmp_path / "run")
    batch = base.collate(list(read_corpus(tmp_path / "run" / "data" / "dev.jsonl.gz").cuts))
    with torch.no_grad():
        torch.testing.assert_close(adapted.loss(batch), base.loss(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("best", [1, 3])
def test_a_pruned_adapter_loads_and_is_told_of_where_it_is_larger_than_the_budget(
    scripted, options, tmp_path, embedded, best
):
    scripted(8, *(3 if epoch == best else 5 for epoch in (1, 2, 3)))
    log, run = io.StringIO(), tmp_path / "run"
    result = adapt(options(method="adalora", budget="rank=2", epochs=3, learning_rate=1e-2), run, progress=Log(log))
    kept = parameters(run)
    size = sum(value.numel() for value in kept.values())
    told = "The best epoch ended at update 2, before the ranks were pruned to the budget at update 3" in log.getvalue()
    assert (size > result.trainable_parameters) if best == 1 else (size == result.trainable_parameters)
    assert told == (best == 1)
    pattern = json.loads((run / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert len({sum(ranks) for ranks in pattern.values()}) > 1
    loaded = load_adapted(str(embedded), run).module.state_dict()
    assert all(torch.equal(loaded[f"{name}.default"], value) for name, value in kept.items())


@pytest.mark.parametrize("method", ["ssvd", "lora"])
def test_loss_that_is_no_number_stops_the_run_and_the_best_adapter_remains(options, tmp_path, embedded, method):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"The loss became (nan|inf).*learning_rate lower than 1e\+30") as error:
        adapt(options(method=method, learning_rate=1e30, clip=1e30, epochs=3), run)
    assert "\n" not in str(error.value)
    assert all(value.isfinite().all() for value in parameters(run).values())
    load_adapted(str(embedded), run)
    assert not (run / "result.json").exists()


@pytest.fixture
def limit():
    """Limits the size of files, which is to a program as a full disk; lifted at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# An adapter takes 0.5 MB and a checkpoint more: which of them is written first, and fails, follows from the best epoch.
@pytest.mark.parametrize("wrong", [2, 5], ids=["adapter", "checkpoint"])
def test_full_disk_is_told_in_a_sentence_and_the_run_continues_once_there_is_space(
    monkeypatch, scripted, options, tmp_path, limit, wrong
):
    scripted(8, 3, wrong)
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        begin = Adaptation.on_train_epoch_start
        context.setattr(
            Adaptation, "on_train_epoch_start", lambda self: (begin(self), self.current_epoch and limit(100_000))
        )
        with pytest.raises(UserError, match=r"Could not write to .*free some space and resume the run") as error:
            adapt(options(), run)
        limit(resource.RLIM_INFINITY)
    assert "\n" not in str(error.value)
    assert all(value.isfinite().all() for value in parameters(run).values())
    scripted(wrong)
    result = adapt(None, run, resume=True)
    assert result.best_epoch == (2 if wrong == 2 else 1)
    assert [epoch.epoch for epoch in result.series] == [0, 1, 2]


def test_a_network_trains_in_training_mode(options, tmp_path, monkeypatch):
    """Dropout and masks are at work, but statistics that are in no adapter stay as they are."""
    modes = []
    step = Adaptation.training_step

    def training_step(self, batch, index):
        modes.append({type(layer).__name__: layer.training for layer in self.network.modules()})
        return step(self, batch, index)

    monkeypatch.setattr(Adaptation, "training_step", training_step)
    losses = {}
    for method in ("ssvd", "full"):
        for masked in (False, True):
            chosen = options(method=method, spec_augment=masked, epochs=1)
            losses[method, masked] = adapt(chosen, tmp_path / f"{method}-{masked}").series[1].loss
        assert losses[method, False] != losses[method, True]
    assert len(modes) == 8 and all(all(mode.values()) for mode in modes)


def test_a_checkpoint_that_could_not_be_written_leaves_the_former(options, tmp_path, monkeypatch):
    run = tmp_path / "run"
    save = torch.save

    def killed(value, file):
        save({}, file)
        raise KeyboardInterrupt

    begin = Adaptation.on_train_epoch_start

    def epoch(self):
        begin(self)
        if self.current_epoch == 1:
            monkeypatch.setattr(torch, "save", killed)

    monkeypatch.setattr(Adaptation, "on_train_epoch_start", epoch)
    with pytest.raises((UserError, KeyboardInterrupt)):
        adapt(options(), run)
    monkeypatch.undo()
    assert [epoch.epoch for epoch in adapt(None, run, resume=True).series] == [0, 1, 2]


def test_merged_model_needs_transformers_alone_and_computes_the_same(finished, embedded, tmp_path):
    chosen, run, _ = finished
    merged = tmp_path / "merged"
    assert CliRunner().invoke(app, ["merge", str(embedded), str(run), str(merged)]).exit_code == 0
    speech = load_adapted(str(embedded), run)
    features = torch.randn(2, 80, 400, generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor([[1, 5, 9], [1, 7, 8]])
    with torch.no_grad():
        logits = speech.module(input_features=features, decoder_input_ids=inputs).logits
    plain = WhisperForConditionalGeneration.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        found = plain(input_features=features, decoder_input_ids=inputs).logits
    # The embedded model is stored as fp16, and so is what is merged.
    torch.testing.assert_close(found, logits, rtol=0, atol=0.05)
    if chosen.method == "ssvd":
        code = f"""
import sys
from transformers import WhisperForConditionalGeneration
WhisperForConditionalGeneration.from_pretrained({str(merged)!r})
assert not {{"ssvd", "peft"}} & set(sys.modules)
"""
        subprocess.run([sys.executable, "-c", code], check=True)
