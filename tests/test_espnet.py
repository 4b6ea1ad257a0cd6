"""OWSM: ESPnet's own networks and searches behind the interface of every recogniser, on small models of its kind."""

import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from lhotse import Recording, SupervisionSegment
from peft import PeftModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, apply_method, linear_shapes, parameters
from ssvd.plan import plan_methods, plan_run
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import load_check, load_model, load_outline
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.training.options import checked_options
from ssvd_cli.main import app
from ssvd_cli.recipes import read_options

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("espnet2") is None and not os.environ.get("CI"), reason="needs ESPnet: make setup-espnet"
)
SCRIPT = Path(__file__).parents[1] / "scripts" / "pretrain_owsm.py"


@pytest.fixture(scope="session")
def pretraining():
    """The script that makes models of OWSM's kind."""
    spec = importlib.util.spec_from_file_location("pretrain_owsm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_owsm(pretraining, tmp_path_factory):
    """Makes a checkpoint of random weights and 4 s, in OWSM's layout."""
    from ssvd.demo.sentences import sentence

    texts = [sentence(random.Random(seed)) for seed in range(2000)]

    def make(languages, **changes):
        folder = tmp_path_factory.mktemp("owsm")
        torch.manual_seed(3)
        sizes = {"dim": 32, "blocks": (2, 1), "pieces": 300} | changes
        return pretraining.write_checkpoint(folder, texts, languages=languages, **sizes)

    return make


@pytest.fixture(scope="session")
def owsm(make_owsm):
    return make_owsm(["eng"])


@pytest.fixture(scope="session")
def bilingual(make_owsm):
    return make_owsm(["eng", "nld"])


@pytest.fixture(scope="session")
def owsm_ctc(make_owsm):
    return make_owsm(["eng", "nld"], ctc=True)


@pytest.fixture(scope="session")
def cuts(corpora):
    return list(read_corpus(corpora["child"]).cuts)


@pytest.fixture
def cut_of(tmp_path):
    """Makes a cut of samples and a text."""

    def make(samples, text):
        path = tmp_path / "utterance.wav"
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        cut = Recording.from_file(path).to_cut()
        cut.supervisions = [SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, text=text)]
        return cut

    return make


@pytest.fixture
def stock(monkeypatch):
    """Texts of cuts by ESPnet alone, from the files of a folder, as its users decode."""
    from ssvd.recognisers.espnet_checkpoint import espnet_importable

    with espnet_importable():
        from espnet2.bin.s2t_inference import Speech2Text

    def decode(folder, cuts, **options):
        monkeypatch.chdir(folder)  # the paths in its config are relative
        options = {"lang_sym": "<eng>", "task_sym": "<asr>", "predict_time": False} | options
        search = Speech2Text("exp/s2t/config.yaml", "exp/s2t/model.pth", **options)
        texts = []
        for cut in cuts:
            audio = load_audio(cut, 16000)
            search.maxlenratio = -(16 + int(15 * len(audio) / 16000))
            texts.append(search(audio)[0][3].strip())
        return texts

    return decode


def _perturb(module, scale=0.5):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


# -- the interface


def test_texts_are_those_of_espnet_greedy_and_with_a_beam_that_joins_ctc(owsm, stock, cuts):
    speech = load_model(owsm)
    batch = speech.collate(cuts[:4], text=False)
    assert speech.transcribe(batch) == stock(owsm, cuts[:4], beam_size=1, ctc_weight=0.0)
    assert speech.transcribe(batch, Decoding(beams=3)) == stock(owsm, cuts[:4], beam_size=3, ctc_weight=0.3)
    assert speech.transcribe(batch, Decoding(beams=3)) != speech.transcribe(batch)


def test_the_loss_is_that_of_espnet_on_what_its_preprocessor_makes(owsm, cuts):
    from espnet2.train.preprocessor import S2TPreprocessor

    speech = load_model(owsm)
    config = yaml.safe_load((owsm / "exp/s2t/config.yaml").read_text())
    prepare = S2TPreprocessor(
        train=False,
        token_type="bpe",
        token_list=config["token_list"],
        bpemodel=str(owsm / "data/bpe.model"),
        **config["preprocessor_conf"],
    )
    losses = []
    for cut in cuts[:3]:
        text = cut.supervisions[0].text
        fields = {"text": f"<eng><asr><notimestamps> {text}", "text_prev": "<na>", "text_ctc": text}
        data = prepare("utterance", {"speech": load_audio(cut, 16000)} | fields)
        # <na> stands behind a blank there, and ESPnet looks for it anywhere in the text before.
        tensors = {name: torch.from_numpy(np.asarray(value)).reshape(1, -1) for name, value in data.items()}
        lengths = {f"{name}_lengths": torch.tensor([tensor.shape[1]]) for name, tensor in tensors.items()}
        tensors["speech"] = tensors["speech"].float()
        losses.append(speech.module(**tensors, **lengths)[0].item())
    assert speech.loss(speech.collate(cuts[:3])).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_label_smoothing_and_masks_are_only_what_is_asked_for(owsm, cuts):
    speech = load_model(owsm)
    batch = speech.collate(cuts[:3])
    usual = speech.loss(batch).item()
    assert speech.loss(batch, label_smoothing=0.1).item() == pytest.approx(usual)  # as in the config
    assert speech.loss(batch, label_smoothing=0.0).item() != pytest.approx(usual)
    assert speech.loss(batch).item() == pytest.approx(usual)
    for dropout in (part for part in speech.module.modules() if isinstance(part, torch.nn.Dropout)):
        dropout.p = 0.0
    speech.module.train()
    assert speech.loss(batch).item() == pytest.approx(usual, rel=1e-5)
    speech.spec_augment = SpecAugment()
    assert speech.loss(batch).item() != pytest.approx(usual, rel=1e-4)


def test_a_text_and_a_loss_do_not_depend_on_the_others_of_the_batch(owsm, cuts):
    speech = load_model(owsm)
    together = speech.transcribe(speech.collate(cuts[:4], text=False))
    assert together == [speech.transcribe(speech.collate([cut], text=False))[0] for cut in cuts[:4]]
    single = [speech.loss(speech.collate([cut])).item() for cut in cuts[:4]]
    assert speech.loss(speech.collate(cuts[:4])).item() == pytest.approx(np.mean(single), rel=1e-5)


def test_a_long_recording_is_cut_at_its_pauses(owsm, cuts, cut_of):
    speech = load_model(owsm)
    audio = [load_audio(cut, 16000) for cut in cuts[:3]]
    pause = np.zeros(16000, dtype=np.float32)
    long = np.concatenate([part for samples in audio for part in (samples, pause)])
    text = speech.transcribe_audio(long)
    assert len(long) > 1.5 * speech.window * 16000
    assert len(text) > len(speech.transcribe_audio(audio[0]))
    assert speech.transcribe(speech.collate([cut_of(long, "")], text=False)) == [text]


def test_a_short_window_pads_less_and_refuses_what_is_longer(owsm, cuts):
    speech = load_model(owsm, window=2)
    assert speech.collate(cuts[:1], text=False).speech.shape[1] == 2 * 16000
    long = next(cut for cut in cuts if cut.duration > 2)
    assert "the window is 2 s" in speech.check(long)
    assert len(speech.transcribe(speech.collate([long], text=False))) == 1
    with pytest.raises(UserError, match=r"between 0.5 s and the model's own 4 s"):
        load_model(owsm, window=30)


def test_a_language_is_stated_or_detected(bilingual, cuts):
    speech = load_model(bilingual)
    assert speech.language is None
    assert "language is not stated" in speech.check(cuts[0])
    assert len(speech.transcribe(speech.collate(cuts[:2], text=False))) == 2  # detected
    stated = [load_model(bilingual, language=name) for name in ("Dutch", "nl", "nl-BE", "nld")]
    rows = [model.collate(cuts[:1]).labels["text"] for model in stated]
    assert all(torch.equal(row, rows[0]) for row in rows)
    assert rows[0][0, 0] == stated[0].module.token_list.index("<nld>")
    with pytest.raises(UserError, match="does not know the language 'French'"):
        load_model(bilingual, language="French")
    with pytest.raises(UserError, match=r"does not know the language '\?'"):
        load_model(bilingual, language="?")


def test_what_cannot_be_learnt_is_said(owsm, cuts, cut_of):
    speech = load_model(owsm)
    samples = load_audio(cuts[0], 16000)
    assert speech.check(cuts[0]) is None
    assert "no text" in speech.check(cut_of(samples, " "))
    assert "vocabulary lacks" in speech.check(cut_of(samples, "привет"))
    assert "frames" in speech.check(cut_of(samples, "many words " * 60))
    alone = load_check(owsm)
    assert [alone(cuts[0]), alone(cut_of(samples, "привет"))] == [None, speech.check(cut_of(samples, "привет"))]
    with pytest.raises(UserError, match="Utterance utterance: It has no text"):
        speech.collate([cut_of(samples, "")])


@pytest.mark.parametrize("mark", ["<eng>", "<asr>", "<notimestamps>", "<0.00>", "<sos>", "<na>", "<|nl|>", "<unk>"])
def test_prompts_within_texts_are_not_learnt_as_if_they_were_spoken(owsm, owsm_ctc, cuts, cut_of, mark):
    samples = load_audio(cuts[0], 16000)
    for speech in (load_model(owsm), load_model(owsm_ctc, language="en")):
        for text in (f"{mark} the fish", f"the fish{mark}"):
            assert f"holds {mark}, a mark for models" in speech.check(cut_of(samples, text))


def test_the_text_before_is_none_where_espnet_says_so_and_has_no_marks(owsm, cuts, cut_of):
    speech = load_model(owsm)
    cut = cut_of(load_audio(cuts[0], 16000), "the fish")
    without = speech.collate([cut]).labels["text_prev"]
    for previous, stated in (("<na>", True), (" ", True), ("a cat", False)):
        cut.supervisions[0].custom = {"text_prev": previous}
        assert torch.equal(speech.collate([cut]).labels["text_prev"], without) == stated
    cut.supervisions[0].custom = {"text_prev": "<eng><asr> a cat"}
    assert "holds <eng>" in speech.check(cut)


def test_owsm_ctc_learns_and_decodes(owsm_ctc, cuts):
    speech = load_model(owsm_ctc, language="en")
    batch = speech.collate(cuts[:3])
    first = speech.loss(batch)
    optimizer = torch.optim.Adam(speech.module.parameters(), 1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        speech.loss(batch).backward()
        optimizer.step()
    assert speech.loss(batch) < 0.8 * first
    together = speech.transcribe(speech.collate(cuts[:3], text=False))
    assert together == [speech.transcribe(speech.collate([cut], text=False))[0] for cut in cuts[:3]]
    with pytest.raises(UserError, match="decodes greedily"):
        speech.transcribe(batch, Decoding(beams=4))
    network, layers = load_outline(owsm_ctc)
    assert layers == speech.adaptable_layers()
    assert parameters(network) == parameters(speech.module)


def _check_words(timed, texts, batch):
    """Texts are those of decoding, and each word stands after the one before it, within the speech."""
    assert [one.text for one in timed] == texts and any(texts)
    for one, seconds in zip(timed, batch.seconds, strict=True):
        assert [word.text for word in one.words] == one.text.split()
        times = [time for word in one.words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= seconds for time in times)
        assert all(0 < word.confidence <= 1 for word in one.words)
        assert (one.confidence is None) == (one.text == "") and (one.confidence is None or 0 < one.confidence < 1)


def test_words_have_the_times_of_the_ctc_branch_and_the_probability_of_the_decoder(owsm, cuts):
    speech = load_model(owsm)
    _perturb(speech.module, 0.05)
    with torch.no_grad():
        speech.module.decoder.output_layer.bias[speech.module.eos] += 1.2  # so that texts end
    batch = speech.collate(cuts[:3], text=False)
    timed = speech.decode_timed(batch)
    _check_words(timed, speech.transcribe(batch), batch)
    with torch.no_grad():
        for row, one in zip(batch.speech, timed, strict=True):
            hypothesis = speech._search(row, lang_sym="<eng>", task_sym="<asr>")[0][4]
            written = len(hypothesis.yseq) - 4  # after <sos><eng><asr><notimestamps>
            assert written < 16
            assert one.confidence == pytest.approx(math.exp(float(hypothesis.scores["decoder"]) / written), rel=1e-3)


def test_words_of_owsm_ctc_are_those_of_its_frames(owsm_ctc, cuts):
    speech = load_model(owsm_ctc, language="en")
    _perturb(speech.module, 0.05)
    batch = speech.collate(cuts[:3], text=False)
    _check_words(speech.decode_timed(batch), speech.transcribe(batch), batch)


# -- files


def _copied(owsm, tmp_path):
    import shutil

    return Path(shutil.copytree(owsm, tmp_path / "copy"))


def test_every_tensor_is_accounted_for(owsm, tmp_path):
    folder = _copied(owsm, tmp_path)
    file = folder / "exp/s2t/model.pth"
    state = torch.load(file, weights_only=True)

    def saved(changed):
        torch.save(changed, file)
        return folder

    name = "encoder.encoders.0.attn.linear_q.weight"
    with pytest.raises(UserError, match=rf"lacks {name} .missing: 1, too many: 0"):
        load_model(saved({key: value for key, value in state.items() if key != name}))
    with pytest.raises(UserError, match=r"holds encoder\.spare\.weight"):
        load_model(saved(state | {"encoder.spare.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match="size mismatch"):
        load_model(saved(state | {name: torch.zeros(3, 3)}))
    published = {re.sub(r"embed\.out\.(?=[wb])", "embed.out.0.", key): value for key, value in state.items()}
    renamed = {key.replace("embed.out.0.", "embed.out."): value for key, value in published.items()}
    assert renamed.keys() != published.keys()
    for names in (published, renamed):
        loaded = load_model(saved(names)).module.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in published.items())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be read"):
        load_model(folder)


def test_weights_that_are_not_finite_or_no_tensors_are_refused(owsm, tmp_path):
    folder = _copied(owsm, tmp_path)
    file = folder / "exp/s2t/model.pth"
    state = torch.load(file, weights_only=True)
    name = "decoder.embed.0.weight"
    state[name][3, 0] = float("nan")
    torch.save(state, file)
    with pytest.raises(UserError, match=rf"not all finite numbers, those of {name}"):
        load_model(folder)
    for content in ([1, 2], {"model": state}, torch.zeros(3)):
        torch.save(content, file)
        with pytest.raises(UserError, match="no tensors by name"):
            load_model(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["preprocessor_conf"].update(fs=8000), "the sampling rate (16000 in frontend_conf, 8000 in"),
        (lambda c: c["frontend_conf"].update(fs="8k"), "the sampling rate (8000.0 in frontend_conf, 16000 in"),
        (lambda c: c["frontend_conf"].update(n_mels=64), "size mismatch"),
        (lambda c: c["frontend_conf"].update(hop_length=-1), "config.yaml"),
        (lambda c: c["token_list"].__setitem__(30, c["token_list"][31]), "twice"),
        (lambda c: c["token_list"].__setitem__(2, "<?>"), "<na>"),
        (lambda c: c["token_list"].__setitem__(c["token_list"].index("<asr>"), "<?>"), "token_list lacks <asr>"),
        (lambda c: c["token_list"].__setitem__(c["token_list"].index("<eng>"), "<?>"), "has no language"),
        (lambda c: c["token_list"].append("zork"), "size mismatch"),
        (lambda c: c["token_list"].insert(0, c["token_list"].pop(1)), "the blank (0 in the network, 1 in token_list)"),
        (
            lambda c: c.update(
                token_list=[f"t{n}" if n > 100 and t.isalpha() else t for n, t in enumerate(c["token_list"])]
            ),
            "pieces of its bpemodel",
        ),
        (lambda c: c["preprocessor_conf"].update(notime_symbol="<none>"), "token_list lacks <none>"),
        (lambda c: c["preprocessor_conf"].update(speech_length="long"), "config.yaml"),
        (lambda c: c["preprocessor_conf"].update(speech_length=1e9), "speech_length is 1000000000.0"),
        (lambda c: c.update(preprocessor_conf=None), "config.yaml"),
        (lambda c: c.update(normalize_conf=3), "config.yaml"),
        (lambda c: c.update(bpemodel=None), "bpemodel is None"),
        (lambda c: c.update(token_type=7), "config.yaml"),
    ],
)
def test_parts_that_disagree_are_refused(owsm, tmp_path, change, said):
    folder = _copied(owsm, tmp_path)
    file = folder / "exp/s2t/config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "- a", "a: 2024-13-45", "[" * 3000, "a: !!bool maybe", "\x00"])
def test_damaged_yaml_is_told(owsm, tmp_path, text):
    folder = _copied(owsm, tmp_path)
    for name in ("exp/s2t/config.yaml", "meta.yaml"):
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=name):
            load_model(folder)


def test_a_checkpoint_is_found_in_the_layouts_that_exist(owsm, tmp_path):
    folder = _copied(owsm, tmp_path)
    reference = load_model(owsm).module.state_dict()
    (folder / "meta.yaml").unlink()
    for name in (folder, folder / "exp/s2t", folder / "exp/s2t/model.pth"):
        found = load_model(name).module.state_dict()
        assert all(torch.equal(found[key], value) for key, value in reference.items())
    (folder / "exp/s2t/2epoch.pth").write_bytes((folder / "exp/s2t/model.pth").read_bytes())
    with pytest.raises(UserError, match=r"several models .exp/s2t/2epoch.pth, exp/s2t/model.pth."):
        load_model(folder)
    (folder / "exp/s2t/2epoch.pth").unlink()
    (folder / "data/bpe.model").unlink()
    with pytest.raises(UserError, match=r"bpemodel is data/bpe.model, and there is no such file"):
        load_model(folder)
    (folder / "exp/s2t/config.yaml").write_text("encoder: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_model(folder)
    (folder / "exp/s2t/config.yaml").write_text("encoder: rnn\ntoken_list: [a]\n")
    with pytest.raises(UserError, match="does not describe a model that ESPnet"):
        load_model(folder)


def test_a_name_on_the_hub_is_an_espnet_model_by_its_meta_yaml(owsm, tmp_path, monkeypatch):
    import shutil

    import huggingface_hub

    snapshot = tmp_path / "models--espnet--tiny" / "snapshots" / "abc"
    shutil.copytree(owsm, snapshot)
    (tmp_path / "models--espnet--tiny" / "refs").mkdir()
    (tmp_path / "models--espnet--tiny" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    reference = load_model(owsm).module.state_dict()
    found = load_model("espnet/tiny").module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in reference.items())


def test_without_espnet_a_sentence_says_how_to_install_it(owsm):
    code = "import sys; sys.modules['espnet2'] = None; from ssvd.__main__ import main; main()"
    command = [sys.executable, "-c", code, "transcribe", str(owsm), "x.wav"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert ("pip install --no-deps espnet==202511" in done.stderr) == (sys.version_info < (3, 12))
    assert "pip install 'ssvd[espnet]'" in done.stderr and "Traceback" not in done.stderr


def test_an_espnet_without_a_module_that_is_needed_is_not_said_to_be_missing():
    from ssvd.recognisers.espnet_checkpoint import espnet_importable, espnet_release

    with (
        pytest.raises(UserError, match=rf"ESPnet {espnet_release()} has no espnet2\.nothing") as raised,
        espnet_importable(),
    ):
        import espnet2.nothing  # noqa: F401
    assert "not installed" not in str(raised.value)


@pytest.mark.slow
def test_importing_espnet_leaves_no_false_torchaudio_behind():
    code = (
        "from ssvd.recognisers.espnet_checkpoint import espnet_importable\n"
        "with espnet_importable():\n    import espnet2.tasks.s2t\n"
        "import sys; print('torchaudio' in sys.modules and sys.modules['torchaudio'].__spec__ is None)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# -- the commands


def test_the_script_that_pretrains_finds_the_error_rate_of_each_corpus(pretraining, owsm, corpora):
    rates = pretraining.error_rates(owsm, {"adults": corpora["adult"]})
    assert rates.keys() == {"adults"} and rates["adults"] > 0.5  # of random weights


@pytest.mark.parametrize("method", ["ssvd", "vera", "full"])
def test_the_commands_take_owsm_as_they_take_whisper(method, owsm, stock, corpora, tmp_path, monkeypatch):
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    made, table = tmp_path / "run", corpora["child"]
    budget = {"vera": "rank=16"}.get(method, "p=0.4")
    options = ["--epochs", 1, "--updates-per-epoch", 3, "--batch-size", 4, "--learning-rate", 0.02, "--dev-limit", 4]
    run(
        "adapt", owsm, "--train", table, "--dev", table, "--out", made, "--method", method, "--budget", budget, *options
    )
    # An untrained model gains nothing, so epoch 0 is the best: perturb what is kept, or every bug stays invisible.
    if method == "full":
        (weights,) = (made / "model").glob("exp/*/*.pth")
        state = torch.load(weights, weights_only=True)
        state["decoder.output_layer.weight"] += 0.05 * torch.randn_like(state["decoder.output_layer.weight"])
        torch.save(state, weights)
    else:
        weights = made / "adapter/adapter_model.safetensors"
        state = load_file(weights)
        generator = torch.Generator().manual_seed(0)
        for name, value in state.items():
            if "fingerprint" not in name and "variant" not in name:
                state[name] = value + 0.1 * torch.randn(value.shape, generator=generator)
        save_file(state, weights, {"format": "pt"})
    result = json.loads((made / "result.json").read_text())
    assert result["adapter_bytes"] > 0
    if method != "full":
        code = (made / "adapter/README.md").read_text().split("```python")[1].split("```")[0]
        monkeypatch.chdir(owsm.parent)  # the card names the base without the path on this machine
        exec(code.replace('"adapter"', repr(str(made / "adapter"))), card := {})
        assert next(iter(card["model"].get_model_status().active_adapters)) == "default"
    scores = json.loads(run("evaluate", owsm, table, "--adapter", made, "--json", "--out", tmp_path / "scores"))
    assert [row["system"] for row in scores] == ["base", str(made)]
    lines = (tmp_path / "scores/hypotheses/run-metadata.jsonl").read_text().splitlines()
    adapted = {row["id"]: row["hypothesis"] for row in map(json.loads, lines)}
    base = (tmp_path / "scores/hypotheses/base-metadata.jsonl").read_text().splitlines()
    assert adapted != {row["id"]: row["hypothesis"] for row in map(json.loads, base)}
    cuts = [cut for cut in read_corpus(table).cuts if cut.id in adapted][:4]
    merged = tmp_path / "merged"
    run("merge", owsm, made, merged)
    assert stock(merged, cuts, beam_size=1) == [adapted[cut.id] for cut in cuts]
    audio = cuts[0].recording.sources[0].source
    assert run("transcribe", owsm, audio, "--adapter", made).strip() == adapted[cuts[0].id]


OF_RANK_1 = dict.fromkeys(("lora", "lora+", "rslora", "dora", "pissa", "eva", "adalora", "osf"), "rank=1")
SMALLEST = {**OF_RANK_1, "vera": "rank=16", "oft": "block=4"}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.config])
def test_every_method_starts_at_the_model_and_reloads_the_same(name, owsm, cuts, tmp_path):
    speech = load_model(owsm)
    layers, batch = speech.adaptable_layers(), speech.collate(cuts[:3])
    before = speech.loss(batch).item()
    budget = SMALLEST.get(name, "band=0" if name == "svft plain" else "p=0.4")
    speech.module = apply_method(speech.module, name, layers, Budget.parse(budget))
    assert speech.loss(batch).item() == pytest.approx(before, rel=1e-5)
    _perturb(speech.module)
    changed = speech.loss(batch).item()
    assert abs(changed - before) > 1e-4 * before
    speech.module.save_pretrained(str(tmp_path))
    other = load_model(owsm)
    other.module = PeftModel.from_pretrained(other.module, str(tmp_path))
    assert other.loss(batch).item() == pytest.approx(changed, rel=5e-6)


# -- the paper's counts


@pytest.fixture(scope="session")
def outlines(pretraining, tmp_path_factory):
    """Outlines of OWSM v3.1 base and medium and of OWLS-2B, by the sizes in their papers, as (module, layers)."""
    tokens = ["<blank>", "<unk>", "<na>", *(f"t{n}" for n in range(50_002 - 6)), "<sos>", "<eos>", "<sop>"]
    made = {}
    for name, dim, encoder, decoder in [("0.1B", 384, 6, 6), ("1B", 1024, 18, 18), ("2B", 2048, 16, 16)]:
        config = pretraining.config_of(tokens, dim, (encoder, decoder), heads=dim // 64)
        if name == "2B":  # OWLS: a Transformer encoder
            config["encoder"] = "transformer"
            kept = ("output_size", "attention_heads", "num_blocks", "input_layer", "linear_units")
            config["encoder_conf"] = {key: config["encoder_conf"][key] for key in kept}
        file = tmp_path_factory.mktemp(name) / "config.yaml"
        file.write_text(yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
        made[name] = (file, *load_outline(file))
    return made


def test_sizes_are_those_published(outlines):
    assert {name: parameters(module) for name, (_, module, _) in outlines.items()} == {
        "0.1B": 101_182_628,
        "1B": 1_016_891_044,
        "2B": 2_304_882_340,
    }
    assert {name: len(layers) for name, (_, _, layers) in outlines.items()} == {"0.1B": 128, "1B": 380, "2B": 258}


@pytest.mark.parametrize(("recipe", "trained"), [("ssvd", 31_861_100), ("lora", 40_626_752)])
def test_the_plan_of_a_recipe_counts_what_the_authors_train(recipe, trained, outlines):
    # Theirs have a gate in each of 380 layers more, and in LoRA that of the embedding.
    options = read_options(Path(f"myst-owsm-{recipe}")) | {"model": str(outlines["1B"][0]), "train": ["t.csv"]}
    planned = plan_run(checked_options(options), tokens=6000)
    assert (planned.trainable_parameters, planned.updates, planned.utterances) == (trained, 7500, 240_000)


def test_the_plan_counts_what_the_paper_trains(outlines):
    rows = {row.method: row for row in plan_methods(outlines["1B"][0], "p=0.4").methods}
    assert rows["ssvd"].trainable_parameters == 31_861_100
    _, module, layers = outlines["1B"]
    shapes = linear_shapes(module, layers)
    assert METHODS["lora"].count(shapes, 32) == 40_626_752
    # The paper adapts the token embedding by LoRA too.
    assert METHODS["lora"].count(shapes | {"decoder.embed.0": (50_002, 1024)}, 32) == 42_259_584
    small = linear_shapes(*outlines["0.1B"][1:])
    assert METHODS["ssvd"].count(small, 0.4) == 1_507_968


# (method, model): settings and counts in millions, arXiv 2509.02830, Table IV; for SSVD the setting is k.
TABLE = {
    ("lora", "0.1B"): {8: 2.07, 16: 4.13, 32: 8.26},
    ("lora", "1B"): {8: 10.56, 16: 21.13, 32: 42.26},
    ("lora", "2B"): {8: 12.69, 16: 25.39, 32: 50.78},
    ("vera", "0.1B"): {32: 1.74, 64: 3.36, 128: 6.59},
    ("vera", "1B"): {256: 13.82, 384: 20.40},
    ("vera", "2B"): {256: 14.16, 384: 20.86},
    ("dora", "0.1B"): {8: 2.19, 16: 4.26, 32: 8.39},
    ("dora", "1B"): {8: 11.22, 16: 21.76, 32: 42.92},
    ("dora", "2B"): {8: 13.47, 16: 26.16, 32: 51.55},
    ("pissa", "0.1B"): {8: 2.07, 16: 4.13, 32: 8.26},
    ("pissa", "1B"): {8: 10.56, 16: 21.13, 32: 42.26},
    ("pissa", "2B"): {8: 12.69, 16: 25.39, 32: 50.78},
    ("svft", "0.1B"): {8: 1.23, 16: 2.39, 32: 4.67, 64: 9.03},
    ("svft", "1B"): {8: 7.00, 16: 13.55, 32: 26.52, 64: 51.88},
    ("svft", "2B"): {8: 9.38, 16: 18.20, 32: 35.74},
    ("ssvd", "0.1B"): {153: 1.51, 239: 3.67, 320: 6.57},
    ("ssvd", "1B"): {227: 9.83, 256: 12.50, 292: 16.26, 341: 22.16, 409: 31.86},
    ("ssvd", "2B"): {341: 15.04, 409: 21.63, 512: 33.88},
}
# The paper prints 21.76; by its own other counts, LoRA's 21.13 and a magnitude for each output, it is 21.79.
MISPRINTED = {("dora", "1B", 16)}


@pytest.mark.parametrize(("method", "model"), TABLE)
def test_the_counts_of_the_paper_are_reproduced(method, model, outlines):
    _, module, layers = outlines[model]
    shapes = linear_shapes(module, layers)
    dim = module.encoder.output_size()
    for setting, millions in TABLE[method, model].items():
        if method == "ssvd":
            count = METHODS["ssvd"].count(shapes, setting / dim)
        else:  # the paper's other methods come with a LoRA of the same rank on the token embedding; ours leave it alone
            count = METHODS[method].count(shapes, setting) + setting * (50_002 + dim)
        is_right = count / 1e6 == pytest.approx(millions, abs=0.0055)
        assert is_right != ((method, model, setting) in MISPRINTED), (setting, count)
