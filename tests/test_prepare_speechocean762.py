"""speechocean762, in its own layout and as recorded; and how `ssvd prepare` ends for any other source."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import field_value

SCORES = {"accuracy": 8, "completeness": 10.0, "fluency": 9, "prosodic": 9, "total": 8}


@pytest.fixture
def corpus(tmp_path) -> Path:
    """As its authors ship it: upper-case suffixes, paths below the corpus, scores in resource/; 20 + 4 speakers."""
    folder = tmp_path / "speechocean762"
    scores = {}
    for part, speakers in (("train", range(1, 21)), ("test", range(21, 25))):
        lines: dict[str, list[str]] = {name: [] for name in ("text", "wav.scp", "utt2spk", "spk2age", "spk2gender")}
        for speaker in speakers:
            lines["spk2age"].append(f"{speaker:04d}\t{6 + speaker % 10 * 3}")
            lines["spk2gender"].append(f"{speaker:04d}\t{'mf'[speaker % 2]}")
            for number in (11, 23):
                name = f"{speaker:05d}{number:04d}"
                path = f"WAVE/SPEAKER{speaker:04d}/{name}.WAV"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / path, np.full(1600, 0.1), 16000, format="WAV")
                lines["text"].append(f"{name}\tWE CALL IT BEAR")
                lines["wav.scp"].append(f"{name}\t{path}")
                lines["utt2spk"].append(f"{name}\t{speaker:04d}")
                scores[name] = {"text": "WE CALL IT BEAR", **SCORES, "words": [{"text": "WE", "phones": ["W", "IY0"]}]}
        (folder / part).mkdir()
        for name, rows in lines.items():
            (folder / part / name).write_text("\n".join(rows) + "\n")
    (folder / "resource").mkdir()
    (folder / "resource" / "scores.json").write_text(json.dumps(scores))
    return folder


def parts(out: Path):
    return {path.name.split(".")[0]: list(read_corpus(path).cuts) for path in sorted(out.glob("*.jsonl.gz"))}


def test_official_parts_with_dev_split_off_by_speaker_over_all_ages(ssvd, corpus, tmp_path):
    code, out, err = ssvd("prepare", "speechocean762", corpus, tmp_path / "out", "--dev", "20")
    assert code == 0, err
    found = parts(tmp_path / "out")
    assert {name: len(cuts) for name, cuts in found.items()} == {"dev": 8, "test": 8, "train": 32}
    speakers = {name: {field_value(cut, "speaker") for cut in cuts} for name, cuts in found.items()}
    assert speakers["test"] == {"0021", "0022", "0023", "0024"} and not speakers["dev"] & speakers["train"]
    ages = sorted({field_value(cut, "age") for cut in found["dev"]})
    assert ages[0] < 15 < 24 <= ages[-1]
    cut = found["test"][0]
    names = ("text", "gender", "language", *SCORES)
    assert [field_value(cut, name) for name in names] == ["WE CALL IT BEAR", "f", "en", *SCORES.values()]
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["normaliser"] == "english" and record["parts"]["test"]["texts_also_in_train"] == 1.0
    assert "100%" in out


def test_conditions_hold_for_all_parts_and_are_listed(ssvd, corpus, tmp_path):
    command = ["prepare", "speechocean762", corpus, tmp_path / "out", "--where", "age<=15", "--dev", "0"]
    code, _, err = ssvd(*command)
    assert code == 0, err
    found = parts(tmp_path / "out")
    assert found.keys() == {"train", "test"}
    assert all(field_value(cut, "age") <= 15 for cuts in found.values() for cut in cuts)
    rows = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").open()]
    assert len(rows) + sum(map(len, found.values())) == 48
    assert {row["rule"] for row in rows} == {
        "does not meet the conditions"
    } and f"left out: {len(rows)} does not meet the conditions" in err
    code, _, err = ssvd(*command)
    assert code == 0 and "nothing was done" in err


def test_without_scores_or_test_part_and_what_is_wrong(ssvd, corpus, tmp_path):
    scores = corpus / "resource" / "scores.json"
    scores.write_text("[1, 2")
    code, _, err = ssvd("prepare", "speechocean762", corpus, tmp_path / "out")
    assert code == 2 and "scores.json does not hold scores by utterance" in err
    scores.unlink()
    (corpus / "test").rename(corpus / "elsewhere")
    audio = corpus / "WAVE" / "SPEAKER0001" / "000010011.WAV"
    audio.write_bytes(audio.read_bytes()[:-1000])
    code, _, err = ssvd("prepare", "speechocean762", corpus, tmp_path / "out")
    assert code == 2 and "000010011.WAV is cut off" in err and "1 bad utterance of 40" in err
    code, _, err = ssvd("prepare", "speechocean762", corpus, tmp_path / "out", "--skip-bad")
    assert code == 0 and "left out: 1 bad" in err
    found = parts(tmp_path / "out")
    assert found.keys() == {"train", "dev"} and field_value(found["train"][0], "accuracy") is None
    code, _, err = ssvd("prepare", "speechocean762", corpus / "WAVE", tmp_path / "x")
    assert code == 2 and "there is neither train/text nor test/text in it" in err


def test_the_recordings(ssvd, recordings, tmp_path):
    code, _, err = ssvd("prepare", "speechocean762", recordings / "speechocean762", tmp_path / "out", "--dev", "15")
    assert code == 0, err
    found = parts(tmp_path / "out")
    assert found.keys() == {"train", "dev"} and sum(map(len, found.values())) == 1560
    assert not {field_value(cut, "speaker") for cut in found["dev"]} & {
        field_value(cut, "speaker") for cut in found["train"]
    }
    ages = {field_value(cut, "age") for cut in found["dev"]}
    assert min(ages) < 9 and max(ages) > 15
    assert len(load_audio(found["dev"][0], 16000)) == found["dev"][0].recording.num_samples


# Any other source


def test_flemish_recordings(ssvd, recordings, tmp_path):
    command = ["prepare", recordings / "flemish" / "metadata.csv", tmp_path / "out", "--split", "0/0/100"]
    code, _, err = ssvd(*command)
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert (record["language"], record["normaliser"]) == ("nl-BE", "dutch")
    assert (tmp_path / "out" / "ids" / "test.txt").read_text().split() == [
        cut.id for cut in parts(tmp_path / "out")["test"]
    ]
    code, _, err = ssvd(*command)
    assert code == 0 and "nothing was done" in err


@pytest.fixture
def table(tmp_path) -> Path:
    rows = ["path,text,speaker"]
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", np.full(1600, 0.1), 16000)
        rows.append(f"{number}.wav,een zin,s{number}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "table.csv"


def test_a_source_that_has_changed_is_not_passed_over(ssvd, table, tmp_path):
    out = tmp_path / "out"
    assert ssvd("prepare", table, out)[0] == 0
    table.write_text(table.read_text() + "0.wav,nog een zin,s9\n")
    code, _, err = ssvd("prepare", table, out)
    assert code == 2 and f"{table} has changed since {out} was prepared from it" in err and "remove" in err
    (out / "prepared.json").write_text("{")
    code, _, err = ssvd("prepare", table, out)
    assert code == 2 and "prepared.json cannot be read" in err


def test_a_part_that_was_removed_is_made_anew(ssvd, table, tmp_path):
    out = tmp_path / "out"
    assert ssvd("prepare", table, out)[0] == 0
    before = (out / "test.jsonl.gz").read_bytes()
    (out / "test.jsonl.gz").unlink()
    code, _, err = ssvd("prepare", table, out)
    assert code == 0 and "nothing was done" not in err and (out / "test.jsonl.gz").read_bytes() == before


def test_bad_rows_are_listed_in_the_folder(ssvd, table, tmp_path):
    table.write_text(table.read_text() + "missing.wav,een zin,s9\n")
    out = tmp_path / "out"
    code, _, err = ssvd("prepare", table, out, "--skip-bad")
    assert code == 0 and "table.csv:8: there is no audio file" in err
    (row,) = map(json.loads, (out / "left_out.jsonl").open())
    assert (row["where"], row["rule"]) == (f"{table}:8", "")


def test_options_may_come_first_and_the_help_names_every_corpus(ssvd, table, tmp_path):
    assert ssvd("prepare", "--seed", 3, table, tmp_path / "out")[0] == 0
    code, out, _ = ssvd("prepare", "--help")
    assert code == 0 and all(name in out for name in ("SOURCE", "myst", "cgn", "speechocean762", "ESPnet"))
    code, out, _ = ssvd("prepare", "SOURCE", "--help")
    assert code == 0 and "--balance" in out
