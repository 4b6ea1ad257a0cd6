"""What is wrong with a corpus is told in one sentence that names the file and the row."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError

SECONDS = 0.2


def audio(path: Path, samples: int = 3200) -> Path:
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, samples), 16000)
    return path


def cut_off(path: Path) -> None:
    data = audio(path).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file with one good row in line 2, and the rows given from line 3."""
    audio(tmp_path / "good.wav")

    def write(*rows: str | bytes, header: str = "id,path,text,start,duration") -> Path:
        lines = [header, "good,good.wav,hello,,", *rows]
        path = tmp_path / "table.csv"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
        return path

    return write


def check(path: Path, where: str, reason: str, good: int = 1) -> None:
    """Without skip_bad an error; with it, the bad one is listed and the rest is there."""
    with pytest.raises(UserError) as error:
        read_corpus(path)
    message = str(error.value)
    assert re.search(f"{re.escape(where)}: .*{reason}", message), message
    assert "1 bad utterance" in message and "skip_bad" in message and "\n" not in message
    corpus = read_corpus(path, skip_bad=True)
    assert len(corpus.cuts) == good
    (skipped,) = corpus.skipped
    assert skipped.where.endswith(where) and re.search(reason, skipped.reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("x,missing.wav,hello,,", r"there is no audio file .*missing\.wav"),
        (f"x,{'long' * 2000},hello,,", r"there is no audio file"),
        ("x,,hello,,", "the row has no path"),
        (",/,hello,,", "the row has no path to a file"),
        ("x,good.wav,,,", "utterance x has no text"),
        ("x,good.wav,   ,,", "utterance x has no text"),
        ("good,good.wav,again,,", r"the id good is already taken by .*table\.csv:2"),
        ("x,good.wav,hello,0.1,0.3", r"segment, 0\.1 to 0\.4 s, is empty or outside its recording, 0 to 0\.2 s"),
        ("x,good.wav,hello,5,", "outside its recording"),
        ("x,good.wav,hello,-1,0.5", "outside its recording"),
        ("x,good.wav,hello,0.1,0", "is empty or outside"),
        ("x,good.wav,hello,nan,", "is empty or outside"),
        ("x,good.wav,hello,soon,", "start must be a number, in seconds"),
        (b"x,good.wav,caf\xe9,,", "the row is not UTF-8"),
        ("x,good.wav,hello, there,,", "the row has 6 columns, the first line has 5"),
        ("x,good.wav", "the row has 2 columns"),
    ],
)
def test_bad_row(table, row, reason):
    check(table(row), "table.csv:3", reason)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.wav", lambda path: path.write_bytes(b"this is no audio"), r"a\.wav cannot be read \("),
        ("a.wav", lambda path: path.write_bytes(b""), r"a\.wav is empty \(0 bytes\)"),
        ("a.wav", lambda path: audio(path, 0), r"a\.wav holds no samples"),
        ("a.wav", cut_off, r"a\.wav is cut off"),
        ("a.flac", cut_off, r"a\.flac is cut off"),
        ("a.wav", Path.mkdir, r"there is no audio file"),
    ],
)
def test_bad_audio(table, tmp_path, name, make, reason):
    make(tmp_path / name)
    check(table(f"x,{name},hello,,"), "table.csv:3", reason)


def test_rows_are_counted_from_their_first_line(table):
    # A quoted text over two lines, a blank line, then the bad row.
    check(table('a,good.wav,"two\nlines",,', "", "x,missing.wav,hello,,"), "table.csv:6", "no audio file", good=2)


def test_first_of_several_bad_rows_and_their_number(table):
    path = table("x,good.wav,,,", "y,missing.wav,hello,,", "z,good.wav,hello,9,")
    with pytest.raises(
        UserError, match=r"table\.csv:3: utterance x has no text \(3 of 4 utterances are bad\)\. .*skip_bad"
    ):
        read_corpus(path)
    assert [skipped.where[-1] for skipped in read_corpus(path, skip_bad=True).skipped] == ["3", "4", "5"]


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", "", "t.csv is empty; its first line must name the columns"),
        ("t.csv", "path,text\n", "t.csv holds no utterances"),
        ("t.csv", "path,sentence\na.wav,hello\n", r"has no column text \(found: path, sentence\); rename or add it"),
        ("t.csv", "path;text\na.wav;hello\n", r"has no column path and no text \(found: path;text\)"),
        ("t.csv", "path,text,Text\na.wav,x,y\n", "has the column 'text' twice"),
        ("t.csv", 'path,text\na.wav,"hello\n', "t.csv:2: the row is not CSV"),
        ("t.csv", "path,text\nmissing.wav,hello\n", r"t.csv:2: there is no audio file .*\(1 bad utterance of 1\)\.$"),
        ("t.jsonl", "\n", "t.jsonl is empty"),
        ("t.jsonl", '{"audio": "a.wav"}\n', r"has no column path and no text \(found: audio\)"),
        ("t.jsonl", "hello\n", r"has no column path"),
        ("t.txt", "hello", "is of an unknown kind. Give a table"),
    ],
)
def test_unusable_file(tmp_path, name, content, reason, skip_bad):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        read_corpus(tmp_path / name, skip_bad=skip_bad)


WORDS = ["path", "text", "start", "good.wav", "hello", "x", "0.1", "-1", "nan", "1e999", "9" * 5000, "../", "é\u2028"]
PIECES = [
    *(word.encode() for word in WORDS),
    b"null",
    b"\r\n",
    b"\xff",
    *(bytes([code]) for code in b',\t \n":{}[|\x00'),
]


@given(
    name=st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "text"]),
    pieces=st.lists(st.sampled_from(PIECES), max_size=30),
)
@settings(max_examples=150, deadline=None)
def test_nothing_but_user_errors(tmp_path_factory, name, pieces):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    audio(folder / "good.wav")
    (folder / "wav.scp").write_text("x good.wav\n")
    start = {
        "t.csv": b"path,text,start\ngood.wav,",
        "t.tsv": b"path\ttext\n",
        "t.jsonl": b'{"path": "good.wav", "text":',
    }
    (folder / name).write_bytes(start.get(name, b"") + b"".join(pieces))
    for skip_bad in (False, True):
        try:
            corpus = read_corpus(folder if name == "text" else folder / name, skip_bad=skip_bad)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert len(corpus.cuts)


def test_utf16(tmp_path):
    (tmp_path / "t.csv").write_text("path,text\n", encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16; save it as UTF-8"):
        read_corpus(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"path": "good.wav", "text": ', "the line is not JSON"),
        (b'["good.wav", "hello"]', "the line is not a JSON object"),
        (b'{"path": "good.wav", "text": "caf\xe9"}', "the line is not UTF-8"),
        (b'{"path": "good.wav"}', "has no text"),
        (b'{"path": "good.wav", "text": ["hello"]}', "text must be one value"),
        (b'{"path": "good.wav", "text": NaN}', "has no text"),
        (b'{"path": "good.wav", "text": "hello \\ud83d there"}', "half a character"),
        (b'{"path": ".", "text": "hello"}', "no path to a file"),
    ],
)
def test_bad_json_line(tmp_path, line, reason):
    audio(tmp_path / "good.wav")
    (tmp_path / "t.jsonl").write_bytes(b'{"path": "good.wav", "text": "hello", "id": "x"}\n' + line + b"\n")
    check(tmp_path / "t.jsonl", "t.jsonl:2", reason)


# Folders


def test_missing_path(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_corpus(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "is neither a Kaldi folder"),
        (["metadata.csv", "a.wav"], r"It holds metadata\.csv: give that file"),
        (["text"], r"has text but no wav\.scp"),
        (["wav.scp"], r"has wav\.scp but no text"),
    ],
)
def test_unknown_folder(tmp_path, files, reason):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=reason):
        read_corpus(tmp_path)


def test_folder_with_two_files_of_cuts(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"type": "MonoCut", "supervisions": []}\n')
    with pytest.raises(UserError, match=r"several files of Lhotse cuts \(a\.jsonl, b\.jsonl\); give one"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "where", "reason"),
    [
        ("text", b"a hello\nb\n", "text:2", "utterance b has no text"),
        ("text", b"a hello\nb caf\xe9\n", "text:2", "the line is not UTF-8"),
        ("text", b"a hello\nb one\nb two\n", "text:3", "b is already in line 2"),
        ("text", b"a hello\n", "segments:2", "b is not in .*text"),
        ("segments", b"a rec 0 0.1\n", "text:2", "b is not in .*segments"),
        ("segments", b"a rec 0 0.1\nb rec 0.1 end\n", "segments:2", "must be: utterance recording start end"),
        ("segments", b"a rec 0 0.1\nb rec 0.1 0.9\n", "text:2", "outside its recording"),
        ("segments", b"a rec 0 0.1\nb other 0.1 0.2\n", "text:2", r"other is not in .*wav\.scp"),
        ("utt2spk", b"a s\n", "text:2", "b is not in .*utt2spk"),
        ("spk2age", b"s 9\nt \xff\n", "spk2age:2", "the line is not UTF-8"),
    ],
)
def test_bad_kaldi_line(tmp_path, file, content, where, reason):
    audio(tmp_path / "rec.wav")
    files = {
        "wav.scp": b"rec rec.wav\n",
        "segments": b"a rec 0 0.1\nb rec 0.1 0.2\n",
        "text": b"a hello\nb world\n",
        "utt2spk": b"a s\nb t\n",
    }
    for name, data in (files | {file: content}).items():
        (tmp_path / name).write_bytes(data)
    check(tmp_path, where, reason)


def test_kaldi_text_without_audio_entry(tmp_path):
    audio(tmp_path / "a.wav")
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    (tmp_path / "text").write_text("a hello\nb world\n")
    check(tmp_path, "text:2", r"b is not in .*wav\.scp")


# Lhotse cuts


SEGMENT = {"id": "x", "recording_id": "r", "start": 0.0, "duration": 0.2, "channel": 0, "text": "hello"}


def cut(path: Path, **changes) -> dict:
    source = {"type": "file", "channels": [0], "source": str(path)}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 3200, "duration": 0.2}
    row = {
        "id": "x",
        "start": 0.0,
        "duration": 0.2,
        "channel": 0,
        "supervisions": [SEGMENT],
        "recording": recording,
    }
    return row | {"type": "MonoCut"} | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"supervisions": []}, "cut x has no supervision"),
        ({"duration": 0.9}, r"cut x, 0 to 0\.9 s, is empty or outside its recording, 0 to 0\.2 s"),
        ({}, "the id x is already taken by .*:1"),
        ({"type": "Sausage"}, "Unexpected cut type"),
        ({"duration": "long"}, "the line is not a cut of Lhotse"),
        ({"id": 5}, "not a cut of Lhotse .id: must be a valid string, but is 5"),
        ({"supervisions": [SEGMENT | {"duration": 0.0}]}, "is empty or outside its cut"),
        ({"type": "MixedCut", "tracks": []}, "not a cut of"),
    ],
)
def test_bad_cut(tmp_path, changes, reason):
    path = audio(tmp_path / "a.wav")
    lines = [json.dumps(cut(path)), json.dumps(cut(path, **changes))]
    (tmp_path / "cuts.jsonl").write_text("\n".join(lines))
    check(tmp_path / "cuts.jsonl", "cuts.jsonl:2", reason)


def test_cut_without_recording(tmp_path):
    bad = cut(tmp_path / "a.wav")
    del bad["recording"]
    (tmp_path / "cuts.jsonl").write_text("\n".join([json.dumps(cut(audio(tmp_path / "a.wav"))), json.dumps(bad)]))
    check(tmp_path / "cuts.jsonl", "cuts.jsonl:2", "cut x has no recording")


def test_cut_without_its_audio(tmp_path):
    lines = [json.dumps(cut(audio(tmp_path / "a.wav"))), json.dumps(cut(tmp_path / "gone.wav", id="y"))]
    (tmp_path / "cuts.jsonl").write_text("\n".join(lines))
    check(tmp_path / "cuts.jsonl", "cuts.jsonl:2", r"there is no audio file .*gone\.wav")


def test_recordings_are_not_cuts(tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps(cut(tmp_path / "a.wav")["recording"]))
    with pytest.raises(UserError, match=r"the line is a Recording, not a cut of one recording"):
        read_corpus(tmp_path / "r.jsonl")


def test_damaged_gzip(tmp_path):
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(b'{"type": "MonoCut"}\n' * 50)[:-12])
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz cannot be read"):
        read_corpus(tmp_path / "cuts.jsonl.gz")
