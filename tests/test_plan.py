"""What is planned without weights, against what is then trained and stored."""

import json
import re
import shutil

import pytest
from transformers import Wav2Vec2Config

from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, apply_method, trainable_parameters
from ssvd.plan import plan_methods
from ssvd.recognisers.loading import load_model


def rows(planned):
    return {row.method: row for row in planned.methods}


@pytest.mark.parametrize("name", ["ssvd", "ssvd both", "lora", "dora", "pissa", "svft", "psoft", "oft", "full"])
def test_what_is_planned_is_what_is_trained(name, embedded):
    row = rows(plan_methods(embedded, "4%"))[name]
    speech = load_model(embedded)
    module = apply_method(speech.module, name, speech.adaptable_layers(), Budget("%", 4))
    assert trainable_parameters(module) == row.trainable_parameters
    assert row.optimiser_bytes == 12 * row.trainable_parameters
    assert row.trainable_share == pytest.approx(row.trainable_parameters / 3_229_248)


@pytest.mark.parametrize(
    ("name", "budget"), [("ssvd", "p=0.4"), ("lora", "rank=8"), ("vera", "rank=64"), ("svft", "band=4")]
)
def test_the_size_of_the_file_is_near(name, budget, embedded, tmp_path):
    row = rows(plan_methods(embedded, budget))[name]
    speech = load_model(embedded)
    module = apply_method(speech.module, name, speech.adaptable_layers(), Budget.parse(budget))
    module.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert row.adapter_bytes <= size <= 1.06 * row.adapter_bytes + 30_000


def test_no_weights_are_read(embedded, tmp_path):
    shutil.copy(embedded / "config.json", tmp_path)
    for place in (tmp_path, tmp_path / "config.json"):
        assert plan_methods(place).methods == plan_methods(embedded).methods


def test_out_of_reach_the_nearest_is_named(embedded):
    row = rows(plan_methods(embedded))["vera"]
    assert row.trainable_parameters is None and "the nearest is 20,352, with rank=192" in row.reason


def test_of_a_method_s_own_number_only_those_that_are_set_by_it(embedded):
    assert rows(plan_methods(embedded, "rank=4")).keys() == {
        *("lora", "lora+", "rslora", "dora", "pissa", "mica", "eva", "adalora", "vera", "psoft", "osf")
    }
    with pytest.raises(UserError, match="cannot be read"):
        plan_methods(embedded, "ranks=4")


def test_the_encoder_is_trained_whichever_layers_are_chosen(embedded):
    row, chosen = (rows(plan_methods(embedded, layers=layers))["full encoder"] for layers in (["encoder"], ["decoder"]))
    assert chosen.trainable_parameters == row.trainable_parameters > 1_000_000
    assert (chosen.operations, row.operations) == (1, 1.5)  # a ratio of the chosen layers


def test_a_model_without_a_decoder_has_all_rows_but_that_of_the_encoder(tmp_path):
    Wav2Vec2Config(num_hidden_layers=1, architectures=["Wav2Vec2ForCTC"]).save_pretrained(tmp_path)
    found = rows(plan_methods(tmp_path, "2%"))
    assert "use the method 'full'" in found["full encoder"].reason
    assert found["full"].trainable_share == 1 and found["lora"].trainable_parameters


def test_operations(embedded):
    found = {name: row.operations for name, row in rows(plan_methods(embedded, "4%")).items() if row.operations}
    assert found["frozen"] == 1 and found["full"] == 1.5
    assert found["lora"] < found["oft"] < found["ssvd"] < found["full"] < found["psoft"]
    many = rows(plan_methods(embedded, "4%", tokens=100_000))["ssvd"].operations
    assert many < found["ssvd"] < rows(plan_methods(embedded, "4%", tokens=500))["ssvd"].operations


def test_every_method_is_planned(embedded):
    assert set(rows(plan_methods(embedded))) == set(METHODS)


def test_the_command_prints_a_table_or_json(embedded, capsys):
    from ssvd_cli.main import app

    app(["plan", str(embedded), "--budget", "2%", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 3_229_248 and found["layers"] == 44
    app(["plan", str(embedded), "--budget", "4%"], standalone_mode=False)
    text = capsys.readouterr().out
    assert re.search(r"lora +rank=5 +119,040 +3\.69% +0\.48 MB +1\.43 MB", text)
    assert "Left out: The method 'vera'" in text
