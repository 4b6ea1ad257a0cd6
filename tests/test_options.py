"""Options of a run: stated once without torch, checked all at once, before any work."""

import subprocess
import sys

import pytest
import yaml

from ssvd.adapt import adapt
from ssvd.errors import UserError
from ssvd.training.options import changed_options, checked_options
from ssvd_options import AdaptOptions

GOOD = {"model": "openai/whisper-tiny", "train": ["train.csv"]}


def test_the_options_import_neither_torch_nor_the_package():
    code = """
import sys, ssvd_options
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "ssvd", "peft", "yaml", "rich"}))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


def test_every_option_has_a_help_text_that_stands_alone():
    for name, field in AdaptOptions.model_fields.items():
        assert field.description and field.description[0].isupper() and field.description.endswith("."), name


def test_paths_and_augmentations_are_written_so_that_a_run_can_be_resumed_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    values = {
        "model": "model",
        "train": ["a.csv", "hf:name?split=train"],
        "dev": ["b.csv"],
        "augment": ["speed=0.90:1.10"],
    }
    options = checked_options(values)
    assert options.model == str(tmp_path / "model")
    assert options.train == [str(tmp_path / "a.csv"), "hf:name?split=train"]
    assert options.dev == [str(tmp_path / "b.csv")]
    assert options.augment == ["speed=0.9:1.1"]


def test_a_name_on_the_hub_stays_as_it_is():
    assert checked_options(GOOD).model == "openai/whisper-tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, but is 0."),
        ({"epochs": "many"}, "epochs must be a whole number, but is 'many'."),
        ({"epochs": 1.5}, "epochs must be a whole number, but is 1.5."),
        ({"batch_seconds": "much"}, "batch_seconds must be a number or auto, but is 'much'."),
        ({"clip": 0}, "clip must be above 0, but is 0."),
        ({"warmup": 2}, "warmup must be at most 1, but is 2."),
        ({"label_smoothing": 1}, "label_smoothing must be below 1, but is 1."),
        ({"skip_bad": "perhaps"}, "skip_bad must be true or false, but is 'perhaps'."),
        ({"train": "train.csv"}, "train must be a list, but is 'train.csv'."),
        ({"dev": ["dev.csv", 3]}, "item 2 of dev must be text, but is 3."),
        ({"decay": "steep"}, "decay must be linear, cosine, inverse-sqrt or none, but is 'steep'."),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or mps, but is 'tpu'."),
        ({"epoch": 3}, "there is no option 'epoch' (did you mean 'epochs'?)."),
        ({"xyz": 3}, "there is no option 'xyz'."),
        ({"train": []}, "train names no corpus to train on."),
        ({"budget": "nonsense"}, "The budget 'nonsense' cannot be read: write p=0.4"),
        ({"method": "magic"}, "There is no method 'magic'; choose one of"),
        ({"method": "frozen"}, "The method 'frozen' trains nothing: evaluate the model instead."),
        ({"normaliser": "klingon"}, "There is no normaliser 'klingon'"),
        ({"augment": ["echo=1"]}, "There is no augmentation 'echo=1'"),
    ],
)
def test_a_mistake_is_reported_in_a_sentence_that_begins_with_its_source(change, message):
    with pytest.raises(UserError) as error:
        checked_options(GOOD | change, "config.yaml: ")
    assert str(error.value).startswith(f"config.yaml: {message}")
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_all_mistakes_are_reported_at_once():
    wrong = {
        "train": ["x"],
        "epochs": 0,
        "colour": "red",
        "budget": "much",
        "normaliser": "klingon",
        "augment": ["echo"],
    }
    with pytest.raises(UserError) as error:
        checked_options(wrong, "config.yaml: ")
    sentence = str(error.value)
    assert sentence.startswith("config.yaml: 6 options are wrong: (1) ")
    for mistake in ("model is missing", "epochs must", "'colour'", "budget 'much'", "'klingon'", "augmentation 'echo'"):
        assert mistake in sentence
    assert "\n" not in sentence and "--" not in sentence


def test_nonsense_is_refused_before_the_model_and_the_corpus_are_read(tmp_path, monkeypatch, embedded):
    monkeypatch.setattr("ssvd.adapt.load_model", lambda *args, **kwargs: pytest.fail("the model was read"))
    for change in ({"budget": "nonsense"}, {"method": "magic"}, {"augment": ["echo"]}, {"normaliser": "klingon"}):
        with pytest.raises(UserError):
            adapt(AdaptOptions(**(GOOD | change)), tmp_path / "run")


@pytest.mark.parametrize(
    "change", [{"method": "lora", "budget": "rank=5000"}, {"budget": "p=1.5"}, {"budget": "rank=8"}]
)
def test_budget_out_of_reach_is_refused_before_the_corpus_is_read(tmp_path, monkeypatch, embedded, change):
    monkeypatch.setattr("ssvd.adapt.read_data", lambda *args: pytest.fail("the corpus was read"))
    with pytest.raises(UserError):
        adapt(AdaptOptions(**(GOOD | {"model": str(embedded), "device": "cpu"} | change)), tmp_path / "run")


def test_options_that_only_change_the_speed_may_differ_in_a_resumed_run():
    first, second = checked_options(GOOD), checked_options(GOOD | {"workers": 3, "prefetch": 5, "device": "cpu"})
    assert changed_options(first, second) == []
    assert changed_options(first, checked_options(GOOD | {"epochs": 3, "workers": 3})) == ["epochs"]


def test_config_of_an_old_run_without_newer_options_loads():
    old = {"model": "m", "train": ["/a.csv"], "method": "ssvd", "budget": "p=0.4", "epochs": 3, "seed": 1}
    options = checked_options(yaml.safe_load(yaml.safe_dump(old)))
    assert options.epochs == 3 and options.fallback is True and options.text_style == "auto"
