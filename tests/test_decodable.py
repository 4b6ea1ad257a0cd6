"""With skip_bad, what only fails when its audio is decoded is left out and named; without it, it stops the command."""

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.decodable import decodable
from ssvd.errors import UserError
from ssvd.evaluate import evaluate
from ssvd.preparation.utterances_by_part import UtterancesByPart
from ssvd.recognisers.loading import load_model
from ssvd.training.data import read_data
from ssvd.training.progress import SILENT
from ssvd_options.preparation import SourceOptions
from test_data_check import noise


@pytest.fixture
def corpus(tmp_path) -> str:
    """Three good utterances; one that breaks in its middle, one with a sample that is no number."""
    for name in ("a", "b", "c", "broken"):
        noise(tmp_path / f"{name}.flac", seconds=3, seed=ord(name[0]))
    data = bytearray((tmp_path / "broken.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    (tmp_path / "broken.flac").write_bytes(data)
    samples = np.where(np.arange(16000) == 9000, np.nan, 0.1)
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    names = ("a.flac", "broken.flac", "b.flac", "nan.wav", "c.flac")
    rows = [f"{name.partition('.')[0]},{name},one two,s{number}" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["id,path,text,speaker", *rows]) + "\n")
    return str(tmp_path / "t.csv")


def test_utterances_are_decoded_once_and_the_others_named(corpus):
    cuts, skipped = decodable(read_corpus(corpus).cuts, corpus)
    assert [cut.id for cut in cuts] == ["a", "b", "c"]
    assert [item.id for item in skipped] == ["broken", "nan"]
    assert "broken.flac cannot be decoded" in skipped[0].reason and "nan.wav cannot be decoded" in skipped[1].reason
    bad = CutSet.from_cuts(cut for cut in read_corpus(corpus).cuts if cut.id == "nan")
    with pytest.raises(UserError, match=r"No utterance of here can be decoded\. The first: the audio of .*nan\.wav"):
        decodable(bad, "here")


def test_evaluation(embedded, corpus):
    evaluations, skipped = evaluate(str(embedded), [corpus], skip_bad=True, device="cpu")
    assert evaluations[0].score.utterances == 3
    assert sorted(item.id for item in skipped) == ["broken", "nan"]
    with pytest.raises(UserError, match=r"Utterance (broken|nan): the audio of .* cannot be decoded"):
        evaluate(str(embedded), [corpus], device="cpu")


def test_training(embedded, corpus, options):
    data = read_data(options(train=[corpus], dev=[corpus], skip_bad=True), load_model(str(embedded)), SILENT)
    assert {cut.id for cut in data.train} == {cut.id for cut in data.dev} == {"a", "b", "c"}
    assert sorted(item.id for item in data.skipped) == ["broken", "broken", "nan", "nan"]


def test_preparation(corpus):
    whole = read_corpus(corpus)
    read = UtterancesByPart({"": whole.cuts}, whole.skipped)
    prepared = read.divide("", SourceOptions(split="34/33/33", skip_bad=True))
    assert {cut.id for cuts in prepared.parts.values() for cut in cuts} == {"a", "b", "c"}
    assert sorted(item.id for item in prepared.left_out) == ["broken", "nan"]
