"""The recipes that come with the package, held against the configurations of SSVD's authors."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssvd.errors import UserError
from ssvd.methods import Budget, apply_method, find_method, linear_shapes, trainable_parameters
from ssvd.plan import plan_run
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.training.options import checked_options
from ssvd.training.schedule import rate_factor
from ssvd_cli.errors import CommandError
from ssvd_cli.main import app
from ssvd_cli.recipes import read_options
from ssvd_cli.shipped import shipped

# egs2/myst/asr1/conf/tuning/peft_tuning_owsm_*.yaml of ESPnet: what all five state.
THEIRS = {
    "lr": 1e-4,
    "warmup_steps": 1500,
    "weight_decay": 0.0,
    "batch_size": 8,
    "accum_grad": 4,
    "num_iters_per_epoch": 2000,
    "max_epoch": 15,
    "patience": 3,
    "lsm_weight": 0.1,
    "grad_clip": 5.0,  # ESPnet's default
    "seed": 42,
    "freq_mask": (2, 27),
    "time_mask": (10, 0.05),
}
# And what each states in adapter_conf; how its learning rate, 1e-4, reads in our units.
ADAPTERS = {
    "ssvd": ({"rotation_ratio": 0.4}, lambda lr: lr * math.sqrt(409)),
    "lora": ({"rank": 32, "alpha": 64}, lambda lr: lr),
    "dora": ({"rank": 32, "alpha": 64}, lambda lr: lr),
    "pissa": ({"rank": 32, "alpha": 32}, lambda lr: lr),
    "svft": ({"off_diag": 0}, lambda lr: lr / 2),  # M stands behind sigmoid(gate), which starts at 1/2
}
# Shapes of OWSM v3.1 medium: square, tall, wide, and the widest.
SHAPES = {"q": (1024, 1024), "w_1": (4096, 1024), "w_2": (1024, 4096), "out": (1024, 19456)}


def recipe(name):
    return checked_options(read_options(Path(f"myst-owsm-{name}")) | {"train": ["train.csv"]})


def test_there_is_a_recipe_for_each_of_their_configurations():
    assert {name for name in shipped("recipes") if name.startswith("myst-owsm-")} == {
        f"myst-owsm-{name}" for name in ADAPTERS
    }
    listed = CliRunner().invoke(app, ["adapt", "--list"]).output
    assert all(name in listed for name in shipped("recipes")) and "# " not in listed


@pytest.mark.parametrize("name", ADAPTERS)
def test_values_are_those_of_the_authors(name):
    options, (conf, rate) = recipe(name), ADAPTERS[name]
    assert options.model == "espnet/owsm_v3.1_ebf" and options.layers == ["encoder", "decoder"]
    assert options.learning_rate == pytest.approx(rate(THEIRS["lr"]), rel=1e-4)
    assert (options.batch_size, options.accumulation) == (THEIRS["batch_size"], THEIRS["accum_grad"])
    assert options.updates_per_epoch * options.accumulation == THEIRS["num_iters_per_epoch"]
    assert (options.epochs, options.seed, options.clip) == (15, THEIRS["seed"], THEIRS["grad_clip"])
    assert (options.weight_decay, options.label_smoothing) == (THEIRS["weight_decay"], THEIRS["lsm_weight"])
    # ESPnet stops when the best epoch is more than `patience` epochs ago, this package when it is as many.
    assert options.patience == THEIRS["patience"] + 1
    masks = SpecAugment()
    assert options.spec_augment and (masks.frequency_masks, masks.frequency_width) == THEIRS["freq_mask"]
    assert (masks.time_masks, masks.time_share) == THEIRS["time_mask"]
    method = find_method(options.method)
    setting = method.setting(SHAPES, Budget.parse(options.budget), 1_016_891_044)
    config = method.config(SHAPES, setting)
    stated = {
        "rotation_ratio": getattr(config, "portion", None),
        "rank": getattr(config, "r", None),
        "alpha": getattr(config, "lora_alpha", None),
        "off_diag": getattr(config, "off_diagonals", None),
    }
    assert {field: stated[field] for field in conf} == conf
    assert getattr(config, "use_dora", False) == (name == "dora")
    assert (getattr(config, "init_lora_weights", None) == "pissa") == (name == "pissa")
    if name == "ssvd":
        assert (config.rotation, config.rotate) == ("approx", "smaller")
        assert {config.rank_of(layer, *shape) for layer, shape in SHAPES.items()} == {409}
    if name == "svft":
        assert config.pattern == "plain"


def test_the_schedule_is_theirs():
    options, updates = recipe("ssvd"), 15 * 500
    for update in (0, 1, 700, 1499, 1500, 4000, 7499):
        step = update + 1  # linear up to 1,500 updates, then with the inverse square root
        theirs = min(step / 1500, math.sqrt(1500 / step))
        ours = rate_factor(update, updates=updates, warmup=options.warmup, decay=options.decay)
        assert ours == pytest.approx(theirs)


def test_options_on_the_command_line_replace_those_of_a_recipe_and_an_unknown_name_is_told(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ssvd.adapt.adapt", lambda options, out, **rest: asked.append(options) or (_ for _ in ()).throw(SystemExit)
    )
    CliRunner().invoke(app, ["adapt", "--config", "myst-owsm-lora", "--train", "train.csv", "--epochs", "2"])
    assert (asked[0].epochs, asked[0].method, asked[0].patience) == (2, "lora", 4)
    with pytest.raises(CommandError, match="There is no file or recipe 'myst-owsm-x'; the package has myst-owsm-dora"):
        CliRunner().invoke(app, ["adapt", "--config", "myst-owsm-x", "--train", "t.csv"], catch_exceptions=False)


@pytest.mark.parametrize("name", ["ssvd", "lora", "svft plain", "full"])
def test_the_plan_of_a_run_counts_what_is_there(name, embedded):
    budget = {"lora": "rank=4", "svft plain": "band=0"}.get(name, "p=0.4")
    values = {"model": str(embedded), "train": ["t.csv"], "method": name, "budget": budget}
    size = {"updates_per_epoch": 10, "epochs": 3, "accumulation": 2, "batch_size": 4}
    planned = plan_run(checked_options(values | size), tokens=1000)
    speech = load_model(embedded)
    layers = speech.adaptable_layers()
    module = apply_method(speech.module, name, layers, Budget.parse(budget))
    numbers = sum(p.numel() for p in module.parameters()) + 3 * planned.trainable_parameters
    for layer in module.modules():
        for basis in getattr(layer, "bases", {}).values():
            numbers += basis.k * (len(basis.U) + len(basis.V))
    assert planned.memory_bytes == 4 * numbers
    assert planned.trainable_parameters == trainable_parameters(module)
    assert (planned.updates, planned.utterances) == (30, 240)
    frozen = sum(
        2 * (62 if ".decoder." in layer else 1000) * rows * columns
        for layer, (rows, columns) in linear_shapes(load_model(embedded).module, layers).items()
    )
    assert planned.operations >= 2 * 60 * frozen and planned.operations <= 4 * 2 * 60 * frozen


def test_a_plan_needs_what_it_does_not_read(embedded):
    values = {"model": str(embedded), "train": ["t.csv"]}
    with pytest.raises(UserError, match="state updates_per_epoch"):
        plan_run(checked_options(values))
    with pytest.raises(UserError, match="state batch_size"):
        plan_run(checked_options(values | {"updates_per_epoch": 3, "batch_seconds": 60}))


def test_the_command_plans_a_recipe_on_any_model(embedded, tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text(f"model: {embedded}\nmethod: lora\nbudget: rank=4\nupdates_per_epoch: 5\nepochs: 2\n")
    printed = CliRunner().invoke(app, ["plan", "--config", str(config)], catch_exceptions=False).output
    assert "10, of 160 utterances in all" in printed and "TFLOP/s" in printed
    # A recipe on another model.
    arguments = ["plan", str(embedded), "--config", "myst-owsm-lora", "--json"]
    planned = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).output)
    assert (planned["model"], planned["setting"], planned["updates"]) == (str(embedded), "rank=32", 7500)
    with pytest.raises(CommandError, match="Name a model"):
        CliRunner().invoke(app, ["plan"], catch_exceptions=False)
