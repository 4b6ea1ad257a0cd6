"""The demonstration at the smallest size: its files, and that a second call uses what the first made."""

import io
import json

import pytest
from matplotlib.image import imread

from ssvd.demo import demonstration as demo
from ssvd.errors import UserError
from ssvd.training.progress import Log


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"child-train": 8, "child-dev": 4, "child-test": 8, "adult-test": 4}
        corpora = {name: (kind, sizes[name], 4, seed) for name, (kind, _, _, seed) in demo.CORPORA.items()}
        patch.setattr(demo, "CORPORA", corpora)
        patch.setattr(demo, "EPOCHS", 1)
        yield


@pytest.fixture(scope="module")
def shown(small, tmp_path_factory):
    """(folder, what was printed, what was returned)"""
    out, told = tmp_path_factory.mktemp("demo") / "results", io.StringIO()
    return out, told, demo.run_demo(out, 0, Log(told))


def test_shows_what_each_method_gained_and_cost_and_calls_it_synthetic(shown):
    out, told, systems = shown
    summary = {name: system.as_dict() for name, system in systems.items()}
    assert list(summary) == ["base", "ssvd", "lora"]
    for system in summary.values():
        for corpus in ("child-test", "adult-test"):
            low, high = system[corpus]["interval"]
            assert low <= system[corpus]["wer"] <= high
    assert summary["ssvd"]["trainable_parameters"] == pytest.approx(summary["lora"]["trainable_parameters"], rel=0.15)
    stored = json.loads((out / "summary.json").read_text())
    assert stored["synthetic"] is True and stored["systems"] == json.loads(json.dumps(summary))
    text = told.getvalue()
    assert "Synthetic speech" in text and str(out) in text
    for system in summary.values():
        assert f"{system['child-test']['wer']:.1%}" in text and f"{system['adult-test']['wer']:.1%}" in text


def test_transcripts_are_of_utterances_that_the_base_model_got_wrong(shown):
    out, told, _ = shown
    examples = json.loads((out / "summary.json").read_text())["examples"]
    assert len(examples) == 3
    written = (out / "summary.txt").read_text()
    assert "Synthetic speech" in written
    for example in examples:
        assert example["base"] != example["reference"]
        for name in ("reference", "base", "ssvd"):
            assert example[name] in told.getvalue() and example[name] in written


@pytest.mark.parametrize("name", ["wer-per-epoch.png", "wer-against-trainables.png"])
def test_plots_are_pictures_with_something_on_them(shown, name):
    picture = imread(shown[0] / name)[..., :3]
    assert picture.shape[0] > 300 and picture.shape[1] > 500
    for color in demo.COLORS.values():
        rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(picture - rgb).max(axis=-1) < 0.02).sum() > 50, "each method is drawn in its colour"


def test_second_call_trains_nothing_anew_and_minds_no_results_of_other_seeds(shown):
    out, _, summary = shown
    foreign = {"id": "another", "reference": "one", "hypothesis": "two"}
    (out / "hypotheses" / "ssvd-seed-9-child-test-metadata.jsonl").write_text(json.dumps(foreign) + "\n")
    speech = {path: path.stat().st_mtime_ns for path in out.glob("*/**/*.flac")}
    told = io.StringIO()
    again = demo.run_demo(out, 0, Log(told))
    assert again == summary
    assert told.getvalue().count("is complete already") == 2
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/**/*.flac")} == speech


def test_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty: choose another folder"):
        demo.run_demo(tmp_path, 0, Log(io.StringIO()))
