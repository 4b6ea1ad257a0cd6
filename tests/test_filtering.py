"""The filter of utterances that a recogniser hears otherwise: its thresholds, for any corpus."""

import json

import pytest

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import field_value
from ssvd.errors import UserError
from ssvd.preparation.filtering import Thresholds
from ssvd.recognisers.decoding import Transcript


@pytest.fixture
def table(corpora, tmp_path):
    """Speakers of 3, 4, 6 and 20 years, who say ten words each."""
    cuts = list(read_corpus(corpora["adult"]).cuts)
    rows = ["path,text,speaker,age,gender,language"]
    ages = dict(zip(sorted({field_value(cut, "speaker") for cut in cuts}), (3, 4, 6, 20), strict=True))
    for cut in cuts:
        speaker = field_value(cut, "speaker")
        gender = "f" if ages[speaker] in (3, 20) else "m"
        rows.append(f"{cut.recording.sources[0].source},{'word ' * 9}end,{speaker},{ages[speaker]},{gender},en")
    path = tmp_path / "ages.csv"
    path.write_text("\n".join(rows))
    return path


@pytest.fixture
def heard(monkeypatch):
    """Makes the recogniser leave out so many of the ten words of each utterance."""

    def leave_out(words):
        def decode(speech, cuts, **options):
            return (Transcript(" ".join(["word"] * (10 - words)), "") for _ in cuts)

        monkeypatch.setattr("ssvd.evaluate.decode", decode)

    return leave_out


@pytest.mark.parametrize(
    ("left_out", "thresholds", "kept"),
    [
        (5, None, {3, 4, 6, 20}),
        (6, None, set()),
        (6, "60", {3, 4, 6, 20}),
        (6, "age:3-4=60,5-7=40", {3, 4}),
        (5, "age:3-4=60,5-7=40", {3, 4, 20}),  # 50 in all other groups
        (4, "age:3-4=60,5-7=40", {3, 4, 6, 20}),
        (6, "gender:f=60,m=40", {3, 20}),
        (6, "age:4=70", {4}),
    ],
)
def test_each_group_has_its_largest_wer(left_out, thresholds, kept, table, heard, embedded, ssvd, tmp_path):
    heard(left_out)
    options = [] if thresholds is None else ["--filter-wer", thresholds]
    arguments = ["prepare", table, tmp_path / "out", "--split", "100/0/0", "--filter-model", embedded]
    code, _, err = ssvd(*arguments, "--device", "cpu", *options)
    if not kept:
        assert code == 2
        return
    assert code == 0, err
    found = read_corpus(tmp_path / "out/train.jsonl.gz").cuts
    assert {field_value(cut, "age") for cut in found} == kept
    rows = [json.loads(line) for line in (tmp_path / "out/left_out.jsonl").open()] if len(kept) < 4 else []
    assert all(f"a WER of {left_out}0%" in row["reason"] for row in rows)
    assert ssvd(*arguments, "--device", "cpu", *options)[0] == 0  # was prepared with these options before
    assert ssvd(*arguments, "--device", "cpu", "--filter-wer", "1")[0] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("much", "'much' of 'much' is no percentage from 0 to 1000"),
        ("nan", "is no percentage"),
        ("-1", "is no percentage"),
        ("age:3-4", "cannot be read: write them as age:3-4=60,5-7=40"),
        ("age:3-4=x", "'x' of 'age:3-4=x' is no percentage"),
        (":3-4=5", "cannot be read"),
        ("age:3-4=5,3-4=6", "cannot be read"),
        ("age:3-5=60,4-7=40", "overlap or run backwards"),
        ("age:7-5=60", "overlap or run backwards"),
        ("age:3-4=60,5=40", "are bands and values"),
    ],
)
def test_what_is_wrong_with_thresholds_is_told(text, message):
    with pytest.raises(UserError, match=message):
        Thresholds.parse(text)


def test_wrong_thresholds_stop_before_anything_is_read(table, embedded, refused, tmp_path):
    given = ["prepare", table, tmp_path / "out", "--filter-model", embedded]
    assert "is no percentage" in refused(*given, "--filter-wer", "age:3-4=sixty")
    assert "No utterance has the field 'grade'" in refused(*given, "--filter-wer", "grade:1-2=60")
