"""The methods inside ESPnet's own training and decoding."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from ssvd.adapt import AdaptOptions, adapt
from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.methods import METHODS
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import load_model
from ssvd.training.batches import ByCount
from test_espnet import SMALLEST, cut_of, make_owsm, owsm, pretraining, pytestmark  # noqa: F401

EXAMPLE = Path(__file__).parents[1] / "examples" / "espnet_myst"


@pytest.fixture(scope="session")
def undropped(make_owsm):  # noqa: F811
    """A model of OWSM's kind without dropout: training draws nothing at random."""
    folder = make_owsm(["eng"])
    file = folder / "exp/s2t/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["encoder_conf"] |= {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "positional_dropout_rate": 0.0}
    config["decoder_conf"] |= dict.fromkeys(
        ("dropout_rate", "positional_dropout_rate", "self_attention_dropout_rate", "src_attention_dropout_rate"), 0.0
    )
    file.write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def recipe(undropped, corpora, tmp_path):
    """Writes the YAML of a training by ESPnet on four utterances, one batch an epoch, and returns its path."""
    cuts = list(read_corpus(corpora["child"]).cuts)[:4]
    data = tmp_path / "data"
    data.mkdir()
    columns = {
        "wav.scp": [cut.recording.sources[0].source for cut in cuts],
        "text": [f"<eng><asr><0.00> {cut.supervisions[0].text}<2.00>" for cut in cuts],
        "text.prev": ["<na>" for _ in cuts],
        "text.ctc": [cut.supervisions[0].text for cut in cuts],
    }
    for name, values in columns.items():
        lines = [f"{cut.id} {value}\n" for cut, value in zip(cuts, values, strict=True)]
        (data / name).write_text("".join(lines))

    def write(name, adapter_conf, epochs=3, **changes):
        config = yaml.safe_load((undropped / "exp/s2t/config.yaml").read_text())
        kinds = {"wav.scp": ("speech", "sound"), "text.prev": ("text_prev", "text"), "text.ctc": ("text_ctc", "text")}
        files = [[str(data / file), *kind] for file, kind in (kinds | {"text": ("text", "text")}).items()]
        config |= {
            "bpemodel": str(undropped / "data/bpe.model"),
            "train_data_path_and_name_and_type": files,
            "valid_data_path_and_name_and_type": files,
            "train_shape_file": [str(data / "wav.scp")],
            "valid_shape_file": [str(data / "wav.scp")],
            "batch_type": "unsorted",
            "batch_size": 4,
            "max_epoch": epochs,
            "num_workers": 0,
            "ngpu": 0,
            "output_dir": str(tmp_path / "exp" / name),
            "optim": "adamw",
            "optim_conf": {"lr": 0.01, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.0},
            "scheduler": None,
            "grad_clip": 5.0,
            "use_adapter": True,
            "adapter": name,
            "adapter_conf": {"base_model_file": str(undropped / "exp/s2t/model.pth")} | adapter_conf,
            "save_strategy": "required_grad_only",
            "best_model_criterion": [["valid", "loss", "min"]],
            "keep_nbest_models": 1,
            "use_tensorboard": False,
            "use_matplotlib": False,
        } | changes
        config["preprocessor_conf"] |= {"speech_init_silence": 0.0, "text_prev_apply_prob": 0.0, "time_apply_prob": 0.0}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def train():
    """Trains by ESPnet in this process and returns the folder of the experiment."""
    from ssvd.espnet_plugin import espnet_importable

    with espnet_importable():
        from espnet2.tasks.s2t import S2TTask

    def run(config):
        S2TTask.main(cmd=["--config", str(config)])
        return Path(yaml.safe_load(config.read_text())["output_dir"])

    return run


def _built(config, weights=None):
    """ESPnet's own model of an experiment, as `Speech2Text` builds it."""
    from espnet2.tasks.s2t import S2TTask

    return S2TTask.build_model_from_file(config, weights)[0]


def test_espnet_trains_the_adapter_that_we_train(recipe, train, undropped, corpora, tmp_path, monkeypatch):
    # In the same order: where a gradient is noise, Adam makes a whole step of rounding errors.
    monkeypatch.setattr(ByCount, "shuffled", lambda self, generator: [torch.arange(4)])
    exp = train(recipe("ssvd", {"portion": 0.4}))
    theirs = torch.load(exp / "3epoch.pth", weights_only=True)
    four = tmp_path / "four.csv"
    lines = corpora["child"].read_text().splitlines()
    folder = corpora["child"].parent
    four.write_text("\n".join([lines[0], *(f"{folder}/{line}" for line in lines[1:5])]) + "\n")
    options = {"model": str(undropped), "train": [str(four)], "dev": [str(four)], "epochs": 3, "batch_size": 4}
    schedule = {"learning_rate": 0.01, "warmup": 0.0, "decay": "none", "text_style": "keep", "device": "cpu"}
    adapt(AdaptOptions(**options, **schedule), tmp_path / "run")
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ours = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    trained = {name.replace(".default", ""): value for name, value in theirs.items() if "ssvd" in name}
    assert trained and ours.keys() <= {name.replace(".default", "") for name in theirs}
    for name, value in trained.items():
        assert (value - ours[name]).abs().max() < 1e-4, name
        if "fingerprint" not in name:
            assert value.abs().max() > 0.01, name


def test_what_espnet_saved_decodes_with_espnet_on_the_right_base(recipe, train, undropped, corpora):
    from espnet2.bin.s2t_inference import Speech2Text

    exp = train(recipe("dora", {"rank": 2}))
    saved = torch.load(exp / "valid.loss.best.pth", weights_only=True)
    assert not any(name.endswith("base_layer.weight") for name in saved)
    model = _built(exp / "config.yaml", exp / "valid.loss.best.pth")
    base = load_model(undropped).module.state_dict()
    frozen = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(frozen[name], value) for name, value in base.items())  # not ESPnet's random start
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in trained)
    search = Speech2Text(exp / "config.yaml", exp / "valid.loss.best.pth", beam_size=1, lang_sym="<eng>")
    cut = next(iter(read_corpus(corpora["child"]).cuts))
    search.maxlenratio = -40
    speech = load_model(undropped)
    text = speech.transcribe(speech.collate([cut], text=False), Decoding(max_new_tokens=40))[0]
    assert search(load_audio(cut, 16000))[0][3].strip() != text


def test_training_resumes_where_it_was(recipe, train):
    whole = torch.load(train(recipe("ssvd_strict", {"portion": 0.5}, epochs=4)) / "4epoch.pth", weights_only=True)
    first = recipe("ssvd_strict", {"portion": 0.5}, epochs=2, output_dir="")
    config = yaml.safe_load(first.read_text())
    config["output_dir"] = str(first.parent / "exp" / "resumed")
    first.write_text(yaml.safe_dump(config))
    train(first)
    first.write_text(yaml.safe_dump(config | {"max_epoch": 4, "resume": True}))
    resumed = torch.load(train(first) / "4epoch.pth", weights_only=True)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.allclose(resumed[name], value, atol=1e-6), name


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.config and not m.has_part_in_training])
def test_every_method_survives_ten_rounds_of_training_and_validation(name, undropped, corpora):
    """Frozen weights stay, only the adapter is trained, and modes change nothing."""
    from espnet2.layers.create_adapter import create_adapter

    from ssvd.espnet_plugin import adapter_name

    speech = load_model(undropped)
    budget = SMALLEST.get(name, "band=0" if name == "svft plain" else "p=0.4")
    file = str(undropped / "exp/s2t/model.pth")
    model = speech.module
    create_adapter(model, adapter_name(METHODS[name]), {"base_model_file": file, "budget": budget})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and not any(
        parameter.requires_grad for key, parameter in model.named_parameters() if "base_layer" in key
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in trained:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    batch = speech.collate(list(read_corpus(corpora["child"]).cuts)[:2])
    before = speech.loss(batch).item()
    for _ in range(10):
        model.train()
        speech.loss(batch)
        model.eval()
        with torch.no_grad():
            assert speech.loss(batch).item() == pytest.approx(before, rel=1e-5)
    base = load_model(undropped).module.state_dict()
    frozen = {key.replace(".base_layer", ""): value for key, value in model.state_dict().items()}
    if name != "pissa":  # which starts by taking its components out of the frozen weight
        assert all(torch.equal(frozen[key], value) for key, value in base.items())


def test_a_file_that_lacks_the_adapter_does_not_load_in_silence(recipe, train):
    exp = train(recipe("ssvd", {"portion": 0.4}, epochs=1))
    saved = torch.load(exp / "1epoch.pth", weights_only=True)
    name = next(name for name in saved if "ssvd_theta" in name)
    broken = exp / "broken.pth"
    torch.save({key: value for key, value in saved.items() if key != name}, broken)
    with pytest.raises(UserError, match="lacks 1 of"):
        _built(exp / "config.yaml", broken)
    other = recipe("svft", {"band": 1}, epochs=1)
    with pytest.raises(UserError, match="another adapter or adapter_conf"):
        _built(other, exp / "1epoch.pth")


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"base_model_file": None}, "needs base_model_file"),
        ({"base_model_file": "nowhere.pth"}, "nowhere.pth cannot be read"),
        ({"portion": 2}, "portion=2 is not possible"),
        ({"alpha": 64}, "has no option 'alpha'"),
        ({"layers": ["nothing"]}, "There is no layer to adapt"),
    ],
)
def test_a_wrong_adapter_conf_is_one_sentence(conf, sentence, recipe):
    with pytest.raises(UserError, match=sentence):
        _built(recipe("ssvd", conf))


def test_a_module_of_espnet_runs_with_the_methods_registered(recipe, monkeypatch, capsys):
    config = recipe("ssvd", {"portion": 7})
    command = [sys.executable, "-W", "ignore", "-m", "ssvd.espnet_plugin", "-m", "espnet2.bin.s2t_train"]
    done = subprocess.run([*command, "--config", str(config)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: portion=7 is not possible")
    monkeypatch.setattr(sys, "argv", ["espnet_plugin"])
    with pytest.raises(SystemExit, match="2"):
        import_module("ssvd.espnet_plugin").main()  # needs ESPnet
    assert "Give a module of ESPnet to run" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(EXAMPLE.glob("conf/tuning/*.yaml")), ids=lambda file: file.stem)
def test_the_recipe_of_the_example_trains_a_small_model(file, recipe, train):
    tuning = yaml.safe_load(file.read_text())
    if not tuning.get("use_adapter"):
        assert tuning["init_param"]
        return
    conf = {key: value for key, value in tuning["adapter_conf"].items() if key != "base_model_file"}
    if tuning["adapter"] in ("vera", "svft"):  # the small model's layers have no such rank and band
        conf |= {"rank": 16} if tuning["adapter"] == "vera" else {"band": 16}
    exp = train(
        recipe(tuning["adapter"], conf, epochs=1, specaug=tuning["specaug"], specaug_conf=tuning["specaug_conf"])
    )
    assert (exp / "1epoch.pth").is_file()
