"""Files are written whole or not at all, and what others wrote is read or refused."""

import errno
import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from ssvd.documents import checked, parse_json, parse_yaml, read_yaml
from ssvd.errors import UserError, printable, shortened
from ssvd.files import (
    Journal,
    check_not_input,
    replaced_files,
    whole_file,
    whole_folder,
    write_json_lines,
    write_whole,
)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# Writing


def test_what_was_there_survives_a_full_disk(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("good")
    with pytest.raises(OSError, match="No space"), whole_file(page) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert contents(tmp_path) == {"page.html": "good"}


def test_a_device_is_written_to_and_stays_a_device():
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), "text")
    assert Path("/dev/full").is_char_device() and not Path("/dev/full.partial").exists()


def test_a_link_is_replaced_and_what_it_leads_to_is_kept(tmp_path):
    (tmp_path / "original").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "original")
    write_whole(tmp_path / "link", "new")
    assert contents(tmp_path) == {"original": "mine", "link": "new"}


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_cannot_be_finished_can_be_written_again(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with pytest.raises(OSError, match="full"), whole_folder(out) as folder:
        (folder / "config.json").write_text("{}")
        raise OSError("full")
    assert out.exists() == exists and contents(tmp_path) == {}
    (out / ".ssvd-partial").mkdir(parents=True)  # what a killed process leaves
    (out / ".ssvd-partial" / "weights").write_text("half")
    with whole_folder(out) as folder:
        (folder / "data").mkdir()
        (folder / "data" / "a").write_text("whole")
    assert contents(tmp_path) == {"out/data/a": "whole"}
    with pytest.raises(UserError, match="out is not empty: give a new folder"), whole_folder(out):
        raise AssertionError("it must not be written to")


def write(folder: Path, **files: str) -> None:
    with replaced_files(folder, ["a", "b", "sub/c"], "mine.sha256") as staging:
        for name, text in files.items():
            (staging / name.replace("_", "/")).parent.mkdir(exist_ok=True)
            (staging / name.replace("_", "/")).write_text(text)


def test_own_files_are_replaced_together_and_foreign_ones_never(tmp_path):
    (tmp_path / "other").write_text("somebody's")
    write(tmp_path, a="1", sub_c="1")
    write(tmp_path, a="2", b="2")
    files = contents(tmp_path)
    del files["mine.sha256"]
    assert files == {"other": "somebody's", "a": "2", "b": "2"}
    sums = (tmp_path / "mine.sha256").read_text()
    (tmp_path / "mine.sha256").write_text("my own checksums\n")
    with pytest.raises(UserError, match=r"mine\.sha256 exists already and is not what this command wrote"):
        write(tmp_path, a="3")
    (tmp_path / "mine.sha256").write_text(sums)
    (tmp_path / "b").write_text("edited by hand")
    for name in ("b", "sub/c"):
        (tmp_path / "sub" / "c").write_text("somebody's")
        before = contents(tmp_path)
        with pytest.raises(UserError, match=f"{name} exists already and is not what this command wrote"):
            write(tmp_path, a="3")
        assert contents(tmp_path) == before
        (tmp_path / "b").unlink(missing_ok=True)


def test_a_division_that_cannot_be_written_changes_nothing(tmp_path):
    write(tmp_path, a="1", b="1")
    before = contents(tmp_path)
    with pytest.raises(OSError), replaced_files(tmp_path, ["a", "b"], "mine.sha256") as staging:
        (staging / "a").write_text("2")
        raise OSError("full")
    assert contents(tmp_path) == before


def test_after_a_kill_between_two_files_all_are_known_as_own(tmp_path, monkeypatch):
    write(tmp_path, a="1", b="1")
    replace = Path.replace

    def kill(self: Path, target: Path) -> Path:
        if target == tmp_path / "b":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, a="2", b="2")
    assert (tmp_path / "a").read_text() == "2" and (tmp_path / "b").read_text() == "1"
    write(tmp_path, a="3", b="3")
    assert (tmp_path / "b").read_text() == "3"


@pytest.mark.parametrize("kind", ["itself", "detour", "symbolic link", "hard link", "linked folder"])
def test_an_output_may_not_be_an_input_by_any_path(tmp_path, kind):
    (tmp_path / "sub").mkdir()
    source = tmp_path / "source"
    source.write_text("mine")
    (tmp_path / "linked").symlink_to(tmp_path)
    (tmp_path / "symbolic").symlink_to("source")
    os.link(source, tmp_path / "hard")
    out = {
        "itself": source,
        "detour": tmp_path / "sub" / ".." / "source",
        "symbolic link": tmp_path / "symbolic",
        "hard link": tmp_path / "hard",
        "linked folder": tmp_path / "linked" / "source",
    }[kind]
    with pytest.raises(UserError, match="is read by this command, which would overwrite it"):
        check_not_input([tmp_path / "new", out], [tmp_path / "none", source])
    check_not_input([tmp_path / "new"], [source])


def test_names_that_are_not_utf8_are_stored_and_printed(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write_json_lines(tmp_path / "rows.jsonl", [{"path": name}])
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"path": "caf\\udce9.wav"}\n'
    printable(name).encode()
    assert printable("café") == "café"


# Journals


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    count: int


def test_a_journal_loses_the_line_that_was_being_written_and_no_other(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, Row) as journal:
        journal.add(Row(name="a\u2028b", count=1))
        journal.add(Row(name="b", count=2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with Journal(path, Row) as journal:
        assert journal.rows == [Row(name="a\u2028b", count=1)]
        journal.add(Row(name="b", count=2))
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": "a", "count": 1}\n{"name": "b"\n',
        b'{"name": "a", "count": "many"}\n',
        b'{"name": "a", "count": 1, "other": 2}\n',
        b"[]\n",
        b"my notes, without a line end",
        b"\xff\xfe\x00",
        b'{"name": "\\ud800", "count": 1}\n',
        b"[" * 50_000 + b"\n",
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"j\.jsonl:[12]: the line is damaged \(.+\); remove the file") as error:
        Journal(path, Row)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert path.read_bytes() == content


# Reading


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2024-13-45", "line 2: '2024-13-45' is no timestamp"),
        ("a: !!bool maybe", "line 1: 'maybe' is no bool"),
        ("a: " + "9" * 5000, "line 1: '9999.*' is no int"),
        ("a: !!timestamp never", "line 1: 'never' is no timestamp"),
        ("a: !!int ''", "line 1: '' is no int"),
        ("[" * 1000, "nested too deeply"),
        ("[" * 200_000, "nested too deeply"),  # more than libyaml bears
        ("- " * 1000, "nested too deeply"),
        ("? [1]\n: 2", "line 1: .*unhashable key"),
        ("a: *b", "line 1: found undefined alias"),
        ("a\x00b", "unacceptable character"),
        ('a: "\\ud83d"', "half a character"),
        (b"\xff\xfea", "can't decode byte"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_yaml_that_python_chokes_on_is_a_reason_in_words(text, reason):
    with pytest.raises(ValueError, match=reason) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_yaml_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


@pytest.mark.parametrize("text", ["[" * 50_000, '{"a": "\\udc80"}', "1" * 5000, b'"\xff"', "", "{"])
def test_json_that_python_chokes_on_is_a_reason_in_words(text):
    with pytest.raises(ValueError) as error:
        parse_json(text)
    assert type(error.value) is not RecursionError and "\n" not in str(error.value)


def test_whole_characters_outside_of_the_basic_plane_are_read():
    assert parse_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_a_wrong_field_is_named():
    with pytest.raises(ValueError, match=r"1\.count: must be a valid integer.*, but is 'many'"):
        checked(list[Row], [{"name": "a", "count": 1}, {"name": "b", "count": "many"}])


@pytest.mark.parametrize("value", [16**5000, ["x" * 9999] * 9999, {"a": {"b": [[[[[[1]]]]]]}}, "\ud800"], ids=type)
def test_any_value_fits_into_a_message(value):
    text = shortened(value)
    assert len(text) < 2000
    text.encode()
