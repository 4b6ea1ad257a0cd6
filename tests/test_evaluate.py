"""Base and adapted models side by side on corpora; transcripts of files of any length."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from ssvd.adapt import adapt
from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.evaluate import evaluate
from ssvd.recognisers.decoding import Transcript
from ssvd.scoring import score
from ssvd.training.run_folder import load_adapted
from ssvd.transcribe import transcribe_files


@pytest.fixture(scope="module")
def run(tmp_path_factory, options, corpora):
    """A run whose adapter changes transcripts: it knows the dev utterances by heart."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    result = adapt(options(dev=[str(corpora["child"])], updates_per_epoch=5, learning_rate=5e-3), run)
    assert result.best_epoch > 0
    return run


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory, embedded, corpora):
    out = tmp_path_factory.mktemp("evaluation")
    paths = [str(path) for path in corpora.values()]
    evaluations, skipped = evaluate(
        str(embedded),
        paths,
        adapters=[run],
        by=["speaker", "accent"],
        out=out,
        page=out / "page.html",
        device="cpu",
    )
    assert not skipped
    return out, evaluations


def test_the_page_counts_the_errors_of_each_word_and_plays_the_worst_utterances(evaluated, corpora):
    out, evaluations = evaluated
    page = (out / "page.html").read_text()
    assert "Plotly" not in page.split("<script")[0] and len(page) < 4_000_000, "no charts, so no library for them"
    base, adapted = evaluations[:2]
    missed = [evaluation.word_errors.missed() for evaluation in (base, adapted)]
    word, count = missed[1].most_common(1)[0]
    cells = (word, base.word_errors.said[word], missed[0][word], count)
    row = re.search(rf"<tr><td>{word}</td>(<td.*?)</tr>", page)[1]
    assert [int(cell) for cell in re.findall(r">(\d+)</td>", row)] == list(cells[1:])
    rows = [json.loads(line) for line in (out / "hypotheses" / "run-child-metadata.jsonl").read_text().splitlines()]
    scores = {row["id"]: score([row["reference"]], [row["hypothesis"]], normaliser="english") for row in rows}
    errors = {name: s.substitutions + s.deletions + s.insertions for name, s in scores.items()}
    shown = re.findall(r"<p>(\S+?)(?:, speaker \S+)?: (\d+) → (\d+) word errors", page.split("adult-metadata</h2>")[0])
    assert {name: errors[name] for name, _, _ in shown} == {name: int(number) for name, _, number in shown}
    assert min(int(number) for _, _, number in shown) >= sorted(errors.values())[-len(shown)]
    sound = base64.b64decode(re.search(r'src="data:audio/flac;base64,([^"]+)"', page)[1])
    samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
    (cut,) = (cut for cut in read_corpus(corpora["child"]).cuts if cut.id == shown[0][0])
    assert rate == 16_000 and np.abs(samples - load_audio(cut, 16_000)).max() < 1e-4


def test_a_page_can_do_without_sound_and_replaces_no_other_file(embedded, corpora, tmp_path):
    page = tmp_path / "page.html"
    evaluate(str(embedded), [str(corpora["child"])], page=page, audio=False, device="cpu")
    assert "<audio" not in page.read_text() and "word errors of" in page.read_text()
    page.write_text("mine")
    with pytest.raises(UserError, match="is no page of ssvd"):
        evaluate("no model at all", [str(corpora["child"])], page=page)
    assert page.read_text() == "mine"


def test_every_system_is_scored_on_every_corpus_and_compared_with_the_base(evaluated, run):
    _, evaluations = evaluated
    assert [(evaluation.corpus, evaluation.system) for evaluation in evaluations] == [
        (corpus, system) for corpus in ("child-metadata", "adult-metadata") for system in ("base", str(run))
    ]
    for base, adapted in (evaluations[:2], evaluations[2:]):
        assert base.comparison is None
        assert adapted.comparison.difference == pytest.approx(adapted.score.wer - base.score.wer)
    assert evaluations[1].score.wer < evaluations[0].score.wer


def test_error_rates_follow_from_the_written_hypotheses(evaluated):
    out, evaluations = evaluated
    results = json.loads((out / "result.json").read_text())
    assert results["results"] == json.loads(json.dumps([evaluation.as_dict() for evaluation in evaluations]))
    for evaluation in evaluations:
        system = "base" if evaluation.system == "base" else "run"
        lines = (out / "hypotheses" / f"{system}-{evaluation.corpus}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len({row["id"] for row in rows}) == evaluation.score.utterances
        again = score(
            [row["reference"] for row in rows],
            [row["hypothesis"] for row in rows],
            speakers=[row["speaker"] for row in rows],
            normaliser=evaluation.normaliser,
        )
        assert again == evaluation.score


@pytest.mark.parametrize(
    ("languages", "given", "used"),
    [(["nl-BE"], None, "dutch"), (["nl", ""], None, "english"), (["nl"], "basic", "basic")],
)
def test_texts_are_normalised_by_the_language_that_a_corpus_states(embedded, corpora, tmp_path, languages, given, used):
    table = tmp_path / "nl.csv"
    audio = sorted(corpora["adult"].parent.glob("*.flac"))
    rows = [f"{path},zo'n één,{language}" for path, language in zip(audio, languages, strict=False)]
    table.write_text("\n".join(["path,text,language", *rows]))
    (evaluation,), _ = evaluate(str(embedded), [str(table)], normaliser=given, device="cpu", out=tmp_path / "out")
    assert evaluation.normaliser == used
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text())["results"]
    assert row["normaliser"] == used


def test_groups_of_a_field_add_up_to_the_whole(evaluated):
    for evaluation in evaluated[1]:
        assert len(evaluation.groups["speaker"]) == 4
        for parts in evaluation.groups.values():
            assert sum(part.words for part in parts.values()) == evaluation.score.words
            assert sum(part.substitutions for part in parts.values()) == evaluation.score.substitutions


@pytest.mark.parametrize(("windows", "used"), [((None, 3.5), 4.0), ((3.5, None), 3.5)])
def test_systems_differ_in_nothing_but_the_adapter(run, embedded, corpora, tmp_path, monkeypatch, ssvd, windows, used):
    runs = [copy_of(run, tmp_path / name / "run") for name in "ab"]
    for folder, window in zip(runs, windows, strict=True):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"window": window}))
    seen = []

    def decode(self, batch, decoding):
        seen.append(self.window)
        return [Transcript("text", "text")] * len(batch.ids)

    monkeypatch.setattr("ssvd.recognisers.whisper.Whisper.decode", decode)
    code, out, _ = ssvd("evaluate", embedded, corpora["adult"], "--adapter", runs[0], "--adapter", runs[1])
    assert code == 0 and seen == [used] * 3 and "a-run" in out and "b-run" in out


@pytest.fixture
def undecoded(monkeypatch):
    """Decoding before everything given is checked would be lost time."""
    monkeypatch.setattr("ssvd.recognisers.whisper.Whisper.decode", lambda *args, **kwargs: pytest.fail("decoded"))


def test_runs_of_the_same_name_are_refused_rather_than_overwritten(run, embedded, corpora, tmp_path, undecoded):
    with pytest.raises(UserError, match="Two adapters have the same name"):
        evaluate(str(embedded), [str(corpora["adult"])], adapters=[run, run], out=tmp_path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"by": ["age"]}, "No utterance of .* has the field 'age'; the fields are: accent, "),
        ({"by": ["accent:6-10,x"]}, "The bands of 'accent:6-10,x' cannot be read"),
        ({"where": ["age<9"]}, "'age<9' names an unknown field; there are accent, "),
        ({"normaliser": "klingon"}, "no normaliser 'klingon'; choose one of none, basic, english"),
        ({"device": "tpu"}, "no device 'tpu' here; choose one of auto, cpu"),
        ({"window": 9.0}, "A window of 9 s is not possible"),
    ],
)
def test_bad_option_is_refused_before_decoding(run, embedded, corpora, given, told, undecoded):
    with pytest.raises(UserError, match=told):
        evaluate(str(embedded), [str(corpora["adult"])], adapters=[run], **given)


@pytest.fixture(scope="module")
def sibling(embedded, tmp_path_factory):
    """A model of the same architecture whose weights differ by some percent, as after further training."""
    folder = tmp_path_factory.mktemp("sibling")
    for path in embedded.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        weights[name] = weight * (1 + 0.05 * torch.randn(weight.shape, generator=generator)).to(weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_adapter_of_another_base_model_is_refused(run, sibling, corpora, undecoded):
    with pytest.raises(UserError, match=r"was trained on another base model than .*: use the one"):
        evaluate(str(sibling), [str(corpora["adult"])], adapters=[run])
    with pytest.raises(UserError, match="another base model"):
        load_adapted(str(sibling), run)


def copy_of(run, to):
    for path in run.rglob("*"):
        if path.is_file():
            (to / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(run)).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("config.yaml", r"is not a run folder \(it has no config.yaml\) and not a PEFT adapter"),
        ("adapter/adapter_config.json", "holds no adapter"),
        ("base.json", r"base\.json cannot be read"),
    ],
)
def test_incomplete_run_folder_is_told(run, embedded, tmp_path, missing, told):
    folder = copy_of(run, tmp_path / "copy")
    (folder / missing).unlink()
    with pytest.raises(UserError, match=told):
        load_adapted(str(embedded), folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model.encoder.layers.0.fc1": "x"}'])
def test_damaged_samples_of_the_base_are_told(run, embedded, tmp_path, content):
    folder = copy_of(run, tmp_path / "copy")
    (folder / "base.json").write_text(content)
    with pytest.raises(UserError, match=r"base\.json cannot be read"):
        load_adapted(str(embedded), folder)


def test_files_of_any_format_rate_and_length_are_transcribed(run, embedded, corpora, tmp_path):
    cuts = list(read_corpus(corpora["adult"]).cuts)[:3]
    audio = [load_audio(cut, 16000) for cut in cuts]
    pause = np.zeros(16000, dtype=np.float32)
    wav, flac, long = tmp_path / "one.wav", tmp_path / "two.flac", tmp_path / "long.wav"
    soundfile.write(wav, np.stack([audio[0], audio[0]], axis=1), 16000)
    soundfile.write(flac, audio[1], 16000)
    soundfile.write(long, np.concatenate([part for samples in audio for part in (samples, pause)]), 16000)
    missing = tmp_path / "missing.wav"
    told = transcribe_files(str(embedded), [wav, missing, flac, long])
    rows = {transcription.path: (transcription.text, transcription.error) for transcription in told}
    assert list(rows) == [wav, missing, flac, long]
    assert rows[missing] == ("", f"there is no audio file {missing}")
    words = {path: text.split() for path, (text, _) in rows.items()}
    assert words[wav] and words[flac] and len(words[long]) > 1.5 * len(words[wav])

    speech = load_adapted(str(embedded), run)
    (adapted,) = transcribe_files(str(embedded), [flac], run)
    batch = speech.collate([cuts[1]], text=False)
    assert [adapted.text] == speech.transcribe(batch)
