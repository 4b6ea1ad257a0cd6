"""CGN: its annotations, its layout, its speakers. The corpora are built here, from its public documentation."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.text_files import read_old_text
from ssvd.corpora.selection import field_value
from ssvd.errors import UserError
from ssvd.files import state_of
from ssvd.preparation.cgn import PAPER, clean
from ssvd.preparation.prepare import prepare_cgn
from ssvd.preparation.textgrid import parse_textgrid
from ssvd_options.preparation import COMPONENTS, SELECTIONS, CgnOptions

# Intervals: one rule each


@pytest.mark.parametrize(
    ("annotated", "text"),
    [
        ("een sn*a snelle vos.", "een sn snelle vos"),
        ("ne goeie*d computer*v, ge*z zult*u zien*x wel*n hé*t?", "ne goeie computer ge zult zien wel hé"),
        ("de computer*v-winkel is dicht*v*a.", "de computer-winkel is dicht"),
        ("ggg ja xxx dat was Xxx in Leuven ...", "ja dat was in Leuven"),
        ("ggg. xxx.", ""),
        ("de burgemeester van xxx-dorp en Sint-xxx-Kruis", "de burgemeester van dorp en Sint Kruis"),
        ("'k zag 't bij d'r en z'n foto's Hans' huis", "'k zag 't bij d'r en z'n foto's Hans' huis"),
        ("‘k weet ’t", "'k weet 't"),
        ("goed. en toen? ja ...", "goed en toen ja"),
        ("Sint-Niklaas zee-eend - nee", "Sint-Niklaas zee-eend nee"),
        ("één coëfficiënt, hè?", "één coëfficiënt hè"),
        (r"""\e'\e'n co\e"ff \c,a h\e`""", "één coëff ça hè"),  # as Praat writes letters where it knows no better
        ("ja*nee * nee_ja", "ja nee nee ja"),  # a mark between two words never joins them
    ],
)
def test_rules_of_text(annotated, text):
    assert clean(annotated) == text


# Annotations


SHORT = """File type = "ooTextFile short"
"TextGrid"

0.000
7.250
<exists>
2
"IntervalTier"
"N01001"
0.000
7.250
3
0.000
0.412
""
0.412
2.960
"'k zag ""gisteren"" een
snelle vos."
2.960
7.250
""
"TextTier"
"klik"
0.000
7.250
1
3.5
"hier"
"""
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 7.25
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "N01001"
        xmin = 0
        xmax = 7.25
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.412
            text = ""
        intervals [2]:
            xmin = 0.412
            xmax = 7.25
            text = "42 is 3.5 keer 12"
"""


def test_short_and_long_textgrids():
    (tier,) = parse_textgrid(SHORT)
    assert tier.name == "N01001" and [interval.text for interval in tier.intervals] == [
        "",
        '\'k zag "gisteren" een\nsnelle vos.',
        "",
    ]
    assert tier.intervals[1][:2] == (0.412, 2.96)
    assert parse_textgrid(SHORT.replace("\n", "\r\n"))[0].intervals[2] == tier.intervals[2]
    (long,) = parse_textgrid(LONG)
    assert long.intervals == [(0.0, 0.412, ""), (0.412, 7.25, "42 is 3.5 keer 12")]
    assert parse_textgrid(SHORT.replace("<exists>", "<absent>")) == []


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.ort", "a.ort.gz"])
def test_encodings_that_annotations_come_in(tmp_path, encoding, name):
    data = "één coëfficiënt".encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_old_text(tmp_path / name) == "één coëfficiënt"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is cut off"),
        ("geen TextGrid", "is cut off"),
        (SHORT.replace('"TextGrid"', '"Pitch"'), "is not a TextGrid"),
        (SHORT[:-12], "is cut off"),
        (SHORT[: SHORT.index("2.960")], "is cut off"),
        (SHORT[: SHORT.index("gisteren")], "unpaired quote in line 18"),
        (SHORT.replace("0.412\n2.960", "0.412\ntwee"), "'.*zag.*' where a number should be"),
        (SHORT.replace('"TextTier"', '"Tier"'), "'Tier' where a tier should begin"),
    ],
)
def test_damaged_textgrids_are_told(text, reason):
    with pytest.raises(ValueError, match=f"(?s){reason}"):
        parse_textgrid(text)


# A corpus


def textgrid(end: float, **tiers: list[tuple[float, float, str]]) -> str:
    """A short TextGrid whose tiers are filled up with silence, as those of CGN are."""
    lines = ['File type = "ooTextFile short"', '"TextGrid"', "", "0.000", f"{end:.3f}", "<exists>", str(len(tiers))]
    for name, spoken in tiers.items():
        intervals, at = [], 0.0
        for start, stop, text in spoken:
            intervals += [(at, start, "")] if start > at else []
            intervals.append((start, stop, text))
            at = stop
        intervals += [(at, end, "")] if at < end else []
        lines += ['"IntervalTier"', f'"{name}"', "0.000", f"{end:.3f}", str(len(intervals))]
        for start, stop, text in intervals:
            lines += [f"{start:.3f}", f"{stop:.3f}", '"' + text.replace('"', '""') + '"']
    return "\n".join(lines) + "\n"


SPEAKERS = [
    "type\tcreator\tversion\tupdate\tID\tsex\tbirthYear\tbirthPlace\tbirthRegion\tlanguage\tnotes\tnotes",
    "spk\tCLS-KUN\t1.0\t\tN01001\tsex1\t1950\tNL-123\tregN1a\tSD\tgeboren in Één\t",
    "spk\tCLS-KUN\t1.0\t\tN01002\tsex2\t19nn\txxx\txxx\tregiolect: Gronings\t\t",
    "type\tcreator\tversion\tupdate\tID\tsex\tbirthYear\tbirthPlace\tbirthRegion\tlanguage\tnotes\tnotes",
    "spk\tELIS-UG\t1.0\t\tV40001\tsexX\t1971\tB-900\tregV2b\tunknown",
]
PHRASES = {"N01001": "'k zag gisteren een snelle vos.", "N01002": "ggg ja dat was xxx in Leuven ..."}


@pytest.fixture(scope="module")
def voices() -> dict[str, np.ndarray]:
    """Dutch by eSpeak NG, synthetic, 16 kHz."""
    from ssvd.demo.synthetic import Espeak

    espeak = Espeak()
    said = {"N01001": "ik zag gisteren een snelle vos", "N01002": "ja dat was in Leuven"}
    spoken = {name: espeak.speak(f"<speak>{text}</speak>", "nl", 175, 50) for name, text in said.items()}
    return {name: resample_poly(samples, 320, 441)[:32000].clip(-1, 1) for name, samples in spoken.items()}


class Builder:
    """Writes recordings with their annotation in CGN's tree."""

    def __init__(self, folder: Path, data: str = "data") -> None:
        self.folder, self.data = folder, folder / data
        (self.data / "meta" / "text").mkdir(parents=True)
        self.speakers(SPEAKERS)

    def speakers(self, lines: list[str]) -> None:
        (self.data / "meta" / "text" / "speakers.txt").write_bytes("\r\n".join(lines).encode("latin-1"))

    def audio(self, place: str, name: str, samples: np.ndarray, rate=16000, subtype="PCM_16") -> Path:
        path = self.data / "audio" / "wav" / place / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    def annotation(self, place: str, name: str, text: str | bytes, zipped: bool = True) -> Path:
        path = self.data / "annot" / "text" / "ort" / place / f"{name}.ort{'.gz' if zipped else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode("latin-1") if isinstance(text, str) else text
        path.write_bytes(gzip.compress(data) if zipped else data)
        return path

    def both(self, place: str, name: str, text: str | bytes, seconds: float = 8.0) -> None:
        self.annotation(place, name, text)
        time = np.arange(round(seconds * 16000)) / 16000
        self.audio(place, name, 0.2 * np.sin(2 * np.pi * 200 * time))


@pytest.fixture
def builder(tmp_path) -> Builder:
    return Builder(tmp_path / "CGN_2.0.3")


@pytest.fixture
def corpus(builder, voices) -> Path:
    """Eight recordings with every awkward case."""
    silence = np.zeros((round(7.25 * 8000), 2))
    for channel, (name, start) in enumerate((("N01001", 0.412), ("N01002", 2.5))):
        samples = resample_poly(voices[name], 1, 2)
        at = round(start * 8000)
        silence[at : at + len(samples), channel] = samples
    builder.audio("comp-c/nl", "fn000123", silence, 8000, "ALAW")
    text = textgrid(
        7.25,
        N01001=[(0.412, 2.96, PHRASES["N01001"])],
        N01002=[(2.48, 7.25, PHRASES["N01002"])],
        N01003=[],
        UNKNOWN=[(0.0, 0.3, "wie is dat?"), (7.0, 7.25, "één")],
        BACKGROUND=[(0.0, 7.25, "verkeer")],
        COMMENT=[(0.0, 7.25, "niet te verstaan")],
    )
    builder.annotation("comp-c/nl", "fn000123", text)
    # Plain, UTF-8 with a byte order mark, Windows line ends.
    flemish = textgrid(8.0, V40001=[(0.0, 1.0, 'één d\'r*d "ne" goeie.'), (1.0, 1.5, "ggg"), (2.0, 3.0, "ja*a\nnee?")])
    builder.both("comp-o/vl", "fv400001", flemish)
    (builder.data / "annot/text/ort/comp-o/vl/fv400001.ort.gz").unlink()
    builder.annotation("comp-o/vl", "fv400001", b"\xef\xbb\xbf" + flemish.replace("\n", "\r\n").encode(), zipped=False)
    # Not in the table of speakers; over 30 s; beyond the audio by 0.08 s and by 3 s.
    times = [(0.0, 30.5, "veel te lang"), (30.6, 40.08, "net op tijd"), (40.08, 43.0, "er voorbij")]
    builder.both("comp-a/nl", "fn000777", textgrid(43.0, N09999=times), 40.0)
    builder.annotation("comp-a/nl", "fn000778", textgrid(2.0, N01001=[(0.0, 1.0, "geen geluid")]))
    builder.audio("comp-a/vl", "fv400009", np.zeros(16000) + 0.1)
    return builder.folder


WHOLE = "100/0/0"


def cuts(out: Path, part: str = "train"):
    return {cut.id: cut for cut in read_corpus(out / f"{part}.jsonl.gz").cuts}


def left_out(out: Path) -> dict[str, str]:
    rows = map(json.loads, (out / "left_out.jsonl").read_text().splitlines())
    return {row["id"]: row["rule"] for row in rows}


def test_every_awkward_case(ssvd, corpus, tmp_path):
    out = tmp_path / "out"
    code, told, err = ssvd("prepare", "cgn", corpus, out, "--split", "100/0/0")
    assert code == 0, err
    found = cuts(out)
    assert {name: cut.supervisions[0].text for name, cut in found.items()} == {
        "fn000777-N09999-0030600-0040080": "net op tijd",
        "fn000123-N01001-0000412-0002960": "'k zag gisteren een snelle vos",
        "fn000123-N01002-0002480-0007250": "ja dat was in Leuven",
        "fv400001-V40001-0000000-0001000": "één d'r ne goeie",
        "fv400001-V40001-0002000-0003000": "ja nee",
    }
    assert left_out(out) == {
        "fn000777-N09999-0000000-0030500": "over 30 s",
        "fn000777-N09999-0040080-0043000": "beyond the end of the audio",
        "fn000778": "recordings without audio",
        "fv400009": "recordings without annotation (.ort)",
        "fn000123-UNKNOWN-0000000-0000300": "unknown speaker",
        "fn000123-UNKNOWN-0007000-0007250": "unknown speaker",
        "fv400001-V40001-0001000-0001500": "no words",
    }
    assert "left out: 2 unknown speaker" in err and "179,440" in told
    record = json.loads((out / "prepared.json").read_text())
    assert (record["normaliser"], record["language"], record["paper"]) == ("dutch", "nl", PAPER)

    first = found["fn000123-N01001-0000412-0002960"]
    names = ("speaker", "gender", "birth_year", "region", "speaker_language", "component", "variety", "language")
    assert [field_value(first, name) for name in names] == ["N01001", "m", 1950, "regN1a", "SD", "c", "nl", "nl"]
    second = found["fn000123-N01002-0002480-0007250"]
    assert [field_value(second, name) for name in names[:5]] == ["N01002", "f", None, None, "regiolect: Gronings"]
    flemish = found["fv400001-V40001-0000000-0001000"]
    assert [field_value(flemish, name) for name in names[1:5]] == [None, 1971, "regV2b", None]
    stranger = found["fn000777-N09999-0030600-0040080"]
    assert [field_value(stranger, name) for name in names[:3]] == ["N09999", None, None]
    assert stranger.end == 40.0  # 0.08 s over is rounding: clipped


def test_a_segment_of_two_channel_a_law_is_cut_where_it_lies(corpus, voices, tmp_path):
    prepare_cgn(corpus, tmp_path / "out", CgnOptions(components="c", split=WHOLE))
    found = cuts(tmp_path / "out")
    path = corpus / "data" / "audio" / "wav" / "comp-c" / "nl" / "fn000123.wav"
    info = soundfile.info(path)
    assert (info.subtype, info.samplerate, info.channels) == ("ALAW", 8000, 2)
    cut = found["fn000123-N01001-0000412-0002960"]
    assert cut.recording.sources[0].source == str(path) and not list((tmp_path / "out").rglob("*.wav"))
    assert (cut.start, cut.duration) == (0.412, 2.548)
    samples = load_audio(cut, 16000)
    assert len(samples) == pytest.approx(2.548 * 16000, abs=2)
    expected = voices["N01001"] / 2  # the other channel is silent, and the channels are averaged
    assert np.corrcoef(samples[: len(expected)], expected[: len(samples)])[0, 1] > 0.95


def test_overlap_is_known_and_dropped_on_demand(corpus, tmp_path):
    prepare_cgn(corpus, tmp_path / "kept", CgnOptions(components="c", split=WHOLE, unknown_speakers=True))
    found = cuts(tmp_path / "kept")
    assert {name[9:]: field_value(cut, "overlapped") for name, cut in found.items()} == {
        "N01001-0000412-0002960": "yes",
        "N01002-0002480-0007250": "yes",
        "UNKNOWN-0000000-0000300": "no",
        "UNKNOWN-0007000-0007250": "yes",
    }
    assert field_value(found["fn000123-UNKNOWN-0007000-0007250"], "speaker") == "UNKNOWN-fn000123"
    prepare_cgn(corpus, tmp_path / "dropped", CgnOptions(split=WHOLE, overlap="drop"))
    rules = left_out(tmp_path / "dropped")
    assert [name for name, rule in rules.items() if rule == "overlapping speech"] == [
        "fn000123-N01001-0000412-0002960",
        "fn000123-N01002-0002480-0007250",
    ]


def test_intervals_that_only_touch_do_not_overlap(builder, tmp_path):
    tiers = {"N01001": [(0.0, 1.0, "een"), (3.0, 4.0, "drie")], "N01002": [(1.0, 2.0, "twee"), (3.9, 5.0, "vier")]}
    builder.both("comp-a/nl", "fn000001", textgrid(8.0, **tiers))
    prepare_cgn(builder.folder, tmp_path / "out", CgnOptions(split=WHOLE))
    assert {field_value(cut, "text"): field_value(cut, "overlapped") for cut in cuts(tmp_path / "out").values()} == {
        "een": "no",
        "twee": "no",
        "drie": "yes",
        "vier": "yes",
    }


# What is chosen


@pytest.fixture
def many(builder) -> Path:
    """A recording of 2 speakers for each component and variety."""
    for number, letter in enumerate(COMPONENTS):
        for variety, code in (("nl", "N"), ("vl", "V")):
            tiers = {f"{code}{10000 + 2 * number + k}": [(k, k + 0.8, f"zin {letter}")] for k in (0, 1)}
            builder.both(f"comp-{letter}/{variety}", f"f{code.lower()}{number:06d}", textgrid(2.0, **tiers), 2.0)
    return builder.folder


def test_components_varieties_and_the_papers_selections(ssvd, many, tmp_path):
    def chosen(*options):
        out = tmp_path / re.sub(r"\W", "", "".join(options))
        code, _, err = ssvd("prepare", "cgn", many, out, "--split", "100/0/0", *options)
        assert code == 0, err
        found = cuts(out).values()
        letters = "".join(sorted({field_value(cut, "component") for cut in found}))
        return letters, {field_value(cut, "variety") for cut in found}, err

    assert chosen()[:2] == (COMPONENTS, {"nl", "vl"})
    assert chosen("--components", "a,d", "--varieties", "vl")[:2] == ("ad", {"vl"})
    letters, _, err = chosen("--selection", "paper-letters")
    assert letters == SELECTIONS["paper-letters"] == "abeghijklmno" and "disagree with the corpus documentation" in err
    assert chosen("--selection", "paper-names")[0] == "aehijklmno"
    for options, told in (
        (["--components", "p"], "CGN has no component 'p'"),
        (["--varieties", "fr"], "CGN has no variety 'fr'"),
        (["--selection", "paper"], "selection must be one of paper-letters, paper-names"),
        (["--selection", "paper-names", "--components", "a"], "without components"),
        (["--overlap", "maybe"], "overlap must be keep or drop, but is 'maybe'"),
    ):
        code, _, err = ssvd("prepare", "cgn", many, tmp_path / "x", *options)
        assert code == 2 and told in err


def test_division_by_speaker_near_70_10_20_with_its_ids(many, tmp_path):
    record = prepare_cgn(many, tmp_path / "out").record
    sizes = record["parts"]
    assert {part: sizes[part]["utterances"] for part in sizes} == {"train": 42, "dev": 6, "test": 12}
    assert sizes["dev"]["speakers_also_in_train"] == sizes["test"]["speakers_also_in_train"] == 0
    for part in sizes:
        assert (tmp_path / "out" / "ids" / f"{part}.txt").read_text().split() == list(cuts(tmp_path / "out", part))
    prepare_cgn(many, tmp_path / "other", CgnOptions(seed=1))
    assert set(cuts(tmp_path / "other", "test")) != set(cuts(tmp_path / "out", "test"))


def test_a_folder_prepared_by_an_earlier_version_is_recognised(many, tmp_path):
    chosen = CgnOptions(components="d,a", varieties="vl,nl", overlap="drop", audio=many / "data" / "audio" / "wav")
    record = prepare_cgn(many, tmp_path / "out", chosen).record
    assert record["options"] == {
        "source": str(many),
        "audio": str(many / "data" / "audio" / "wav"),
        "components": "ad",
        "varieties": ["nl", "vl"],
        "overlap": False,
        "unknown_speakers": False,
        "recordings": [],
        "where": [],
        "portions": {"train": 0.7, "dev": 0.1, "test": 0.2},
        "seed": 0,
        "balance": None,
        "skip_bad": False,
        "state": state_of(many),
    }
    assert prepare_cgn(many, tmp_path / "out", chosen).already


def test_a_list_of_recordings_is_dev_and_the_rest_is_train(ssvd, many, tmp_path):
    (tmp_path / "nbest").write_bytes(b"\xef\xbb\xbffn000002\r\ncomp-o/vl/fv000014.wav\r\nfn999999\r\n")
    code, _, err = ssvd("prepare", "cgn", many, tmp_path / "out", "--recordings", f"dev={tmp_path / 'nbest'}")
    assert code == 0, err
    assert {name[:8] for name in cuts(tmp_path / "out", "dev")} == {"fn000002", "fv000014"}
    assert len(cuts(tmp_path / "out")) == 56 and not (tmp_path / "out" / "test.jsonl.gz").exists()
    assert "left out: 1 listed, not in the corpus" in err and left_out(tmp_path / "out").keys() == {"fn999999"}
    prepare_cgn(many, tmp_path / "only", CgnOptions(recordings=[str(tmp_path / "nbest")], split=WHOLE))
    assert len(cuts(tmp_path / "only")) == 4
    assert sum(rule == "recordings not in the list" for rule in left_out(tmp_path / "only").values()) == 28


# What is missing or damaged


def test_data_under_another_name_and_audio_elsewhere(tmp_path):
    builder = Builder(tmp_path / "CGNAnn2.0.3", data="Data")
    builder.both("comp-k/nl", "fn000001", textgrid(2.0, N01001=[(0.0, 1.0, "het nieuws")]), 2.0)
    (builder.data / "audio" / "wav").rename(tmp_path / "discs")
    (builder.data / "meta" / "text" / "speakers.txt").unlink()
    with pytest.raises(UserError, match=r"holds no data/audio/wav; give the folder .* with the option audio"):
        prepare_cgn(builder.folder, tmp_path / "out", CgnOptions(split=WHOLE))
    prepare_cgn(builder.folder, tmp_path / "out", CgnOptions(split=WHOLE, audio=tmp_path / "discs"))
    (cut,) = cuts(tmp_path / "out").values()
    assert cut.recording.sources[0].source == str(tmp_path / "discs/comp-k/nl/fn000001.wav")
    with pytest.raises(UserError, match="does not hold CGN: there is no data/annot/text/ort in it"):
        prepare_cgn(tmp_path, tmp_path / "x")
    with pytest.raises(UserError, match="holds no recordings of the components a and varieties nl, vl"):
        prepare_cgn(builder.folder, tmp_path / "x", CgnOptions(components="a", audio=tmp_path / "discs"))


def test_speakers_without_a_header_are_told(builder, tmp_path):
    builder.both("comp-k/nl", "fn000001", textgrid(2.0, N01001=[(0.0, 1.0, "het nieuws")]), 2.0)
    builder.speakers(SPEAKERS[1:2])
    with pytest.raises(UserError, match=r"speakers\.txt:1: the first line must name the columns, ID among them"):
        prepare_cgn(builder.folder, tmp_path / "out", CgnOptions(split=WHOLE))


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("annot/text/ort/comp-k/nl/fn000001.ort.gz", lambda data: data[:-9], "cannot be read"),
        ("annot/text/ort/comp-k/nl/fn000001.ort.gz", lambda data: gzip.compress(b"leeg"), "the file is cut off"),
        ("audio/wav/comp-k/nl/fn000001.wav", lambda data: data[:-900], "is cut off"),
        ("audio/wav/comp-k/nl/fn000001.wav", lambda data: b"", "is empty"),
    ],
)
def test_damage_stops_unless_it_is_skipped_and_listed(ssvd, builder, tmp_path, file, damage, reason):
    for number in (1, 2):
        grid = textgrid(2.0, N01001=[(0.0, 1.0, "het nieuws")])
        builder.both("comp-k/nl", f"fn00000{number}", grid, 2.0)
    path = builder.data / file
    path.write_bytes(damage(path.read_bytes()))
    command = ["prepare", "cgn", builder.folder, tmp_path / "out", "--split", "100/0/0"]
    code, _, err = ssvd(*command)
    assert code == 2 and reason in err and "fn000001" in err and "1 bad utterance of 2" in err and "skip_bad" in err
    code, _, err = ssvd(*command, "--skip-bad")
    assert code == 0 and "left out: 1 bad" in err
    assert list(cuts(tmp_path / "out")) == ["fn000002-N01001-0000000-0001000"]
    code, _, err = ssvd(*command, "--skip-bad")
    assert code == 0 and "nothing was done" in err
    code, _, err = ssvd(*command, "--skip-bad", "--overlap", "drop")
    assert code == 2 and "other options (overlap was True)" in err
