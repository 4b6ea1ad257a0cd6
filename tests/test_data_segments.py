"""Columns that say which part of a recording an utterance is are read as segments, or refused by name."""

import json
from pathlib import Path

import pytest

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import field_value
from ssvd.errors import UserError
from test_data_corpus import tone

FIRST, SECOND = ("0.5", "1.25"), ("1.25", "3")  # starts and ends of two segments


def table(folder: Path, columns: str, *rows: tuple[str, ...], name: str = "t.csv") -> Path:
    tone(folder / "a.wav", seconds=4)
    lines = [f"path,text,{columns}", *(",".join(("a.wav", f"text {n}", *row)) for n, row in enumerate(rows))]
    if name.endswith(".csv"):
        (folder / name).write_text("\n".join(lines) + "\n")
    elif name.endswith(".tsv"):
        (folder / name).write_text("\n".join(lines).replace(",", "\t") + "\n")
    else:
        names = lines[0].split(",")
        values = ([*line.split(",")[:2], *map(float, line.split(",")[2:])] for line in lines[1:])
        (folder / name).write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in values))
    return folder / name


def segments(path: Path | str) -> list[tuple[float, float]]:
    return [(cut.start, cut.duration) for cut in read_corpus(path).cuts]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
@pytest.mark.parametrize(
    "columns",
    [
        "start,end",
        "begin,stop",
        "Start,STOP",
        "offset,end",
        "start_time,end_time",
        "begin_time,end_time",
        "starttime,endtime",
        "Start Time,End Time",
        "start (s),end (s)",
        "start_sec,end_sec",
        "segment_start,segment_end",
        "time_start,time_end",
        "audio_start,audio_end",
        "tmin,tmax",
    ],
)
def test_start_and_end(tmp_path, columns, name):
    path = table(tmp_path, columns, FIRST, SECOND, name=name)
    assert segments(path) == [(0.5, 0.75), (1.25, 1.75)]
    ids = [cut.id for cut in read_corpus(path).cuts]
    assert ids == ["a-0000500", "a-0001250"]
    assert {field_value(cut, column.lower()) for cut in read_corpus(path).cuts for column in columns.split(",")} == {
        None
    }


@pytest.mark.parametrize(
    "columns", ["offset,duration", "start,duration", "begin_s,duration_s", "start,segment_duration"]
)
def test_start_and_duration(tmp_path, columns):
    path = table(tmp_path, columns, ("0.5", "0.75"), ("1.25", "1.75"))
    assert segments(path) == [(0.5, 0.75), (1.25, 1.75)]


def test_end_and_duration_may_both_be_given_and_must_agree(tmp_path):
    path = table(tmp_path, "start,end,duration", ("0.5", "1.25", "0.75"), ("1.25", "", "1.75"), ("2", "3", ""))
    assert segments(path) == [(0.5, 0.75), (1.25, 1.75), (2.0, 1.0)]
    path = table(tmp_path, "start,end,duration", ("0.5", "1.25", "0.75"), ("1.25", "3", "4"))
    with pytest.raises(UserError, match=r"t\.csv:3: the segment lasts 1\.75 s by the column end and 4 s by the column"):
        read_corpus(path)


def test_without_an_end_the_rest_of_the_recording_is_taken_and_without_a_start_its_beginning(tmp_path):
    assert segments(table(tmp_path, "start", ("0.5",))) == [(0.5, 3.5)]
    assert segments(table(tmp_path, "end", ("0.5",))) == [(0.0, 0.5)]


@pytest.mark.parametrize(
    ("columns", "row", "reason"),
    [
        ("start,offset,end", ("0", "0", "1"), "the columns offset and start, and both say the start"),
        ("onset,offset", ("0", "1"), "the columns offset and onset, and both say the start"),
        ("start,end,stop", ("0", "1", "1"), "the columns end and stop, and both say the end"),
        ("start_ms,end_ms", ("0", "1000"), "the column start_ms, whose unit is not the second"),
        ("start,end_ms", ("0", "1000"), "the column end_ms, whose unit is not the second"),
        ("start,duration_ms", ("0", "1000"), "the column duration_ms, whose unit is not the second"),
        ("startms,endms", ("0", "1000"), "the column startms"),
        ("start_sample,end_sample", ("0", "16000"), "the column start_sample"),
        ("offset,num_frames,duration_frames", ("0", "100", "100"), "the column duration_frames"),
        ("begin time - hh:mm:ss.ms,x", ("0", "1"), "the column begin time - hh:mm:ss.ms"),
    ],
)
def test_what_is_ambiguous_is_refused_by_name(tmp_path, columns, row, reason):
    for name in ("t.csv", "t.jsonl"):
        with pytest.raises(UserError, match=reason):
            read_corpus(table(tmp_path, columns, row, name=name))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("0:01", "0:02"), "start must be a number, in seconds"),
        (("1", "soon"), "end must be a number, in seconds"),
        (("2", "1"), "segment, 2 to 1 s, is empty or outside"),
        (("500", "1250"), "segment, 500 to 1250 s, is empty or outside its recording, 0 to 4 s"),
        (("nan", "1"), "is empty or outside"),
        (("1", "nan"), "is empty or outside"),
    ],
)
def test_bad_values_are_named_by_row(tmp_path, row, reason):
    with pytest.raises(UserError, match=rf"t\.csv:3: .*{reason}"):
        read_corpus(table(tmp_path, "start,end", FIRST, row))


@pytest.mark.parametrize(
    "columns", ["start_date", "end_reason", "duration_ms", "num_frames", "audio_duration", "start_char", "stopped"]
)
def test_other_columns_are_fields(tmp_path, columns):
    (cut,) = read_corpus(table(tmp_path, columns, ("3",))).cuts
    assert (cut.start, cut.duration) == (0.0, 4.0) and field_value(cut, columns) == 3


def hf(folder: Path, columns: str, *rows: tuple[str, ...], options: str = "") -> str:
    tone(folder / "a.wav", seconds=4)
    lines = [f"file_name,text,{columns}", *(",".join(("a.wav", f"text {n}", *row)) for n, row in enumerate(rows))]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return f"hf:{folder}?split=train{options}"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("columns", ["start,end", "begin_time,end_time"])
def test_hugging_face_datasets_have_segments_too(folder, columns):
    corpus = read_corpus(hf(folder, columns, FIRST, SECOND))
    assert [(cut.start, cut.duration) for cut in corpus.cuts] == [(0.5, 0.75), (1.25, 1.75)]
    assert [cut.id for cut in corpus.cuts] == ["a-0000500", "a-0001250"]
    start, end = columns.split(",")
    assert f"start = {start}, end = {end}" in corpus.notes[0] and "start=&end=&duration=" in corpus.notes[0]


def test_columns_of_segments_are_chosen_as_other_columns(folder):
    name = hf(folder, "from,offset,duration", ("1", "0", "2"), options="&start=from&duration=")
    assert segments(name) == [(1.0, 3.0)]
    assert segments(hf(folder, "start,end", ("1", "2"), options="&start=&end=&duration=")) == [(0.0, 4.0)]
    assert segments(hf(folder, "duration", ("3600",))) == [(0.0, 4.0)]  # a fact about the audio, in whatever unit
    assert segments(hf(folder, "duration", ("3",), options="&duration=duration")) == [(0.0, 3.0)]
    with pytest.raises(UserError, match=r"column start_ms, whose unit is not .*add start=&end=&duration= to the name"):
        read_corpus(hf(folder, "start_ms,end_ms", ("0", "1000")))
    with pytest.raises(UserError, match="has no column 'from'"):
        read_corpus(hf(folder, "start,end", ("1", "2"), options="&start=from"))
