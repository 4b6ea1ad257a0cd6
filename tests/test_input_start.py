"""The start of EVA: principal directions of what layers read, and runs that begin with them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssvd.adapt import adapt
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.methods import Budget, apply_method
from ssvd.recognisers.loading import load_model
from ssvd.training.input_start import PrincipalDirections, input_directions, start_from_inputs
from ssvd.training.module import Adaptation


def variance_share(directions, vectors):
    """Variance of the vectors along the directions, as a share of the most that so many directions can have."""
    centred = vectors - vectors.mean(0)
    most = torch.linalg.svdvals(centred)[: len(directions)].square().sum()
    return float((centred @ directions.mT).square().sum() / most)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 3, 7, 16]), st.lists(st.integers(1, 90), min_size=6, max_size=9))
def test_directions_have_the_most_variance_in_whatever_parts_the_vectors_come(seed, count, parts):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(100 + sum(parts), 16, generator=generator) * 0.8 ** torch.arange(16) + 3
    seen = PrincipalDirections(count, 16)
    for part in vectors.split([100, *parts]):
        seen.add(part)
    found = seen.found()
    torch.testing.assert_close(found @ found.mT, torch.eye(count), atol=1e-4, rtol=0)
    assert variance_share(found, vectors) > 0.97


def test_too_few_vectors_have_no_directions():
    seen = PrincipalDirections(3, 12)
    seen.add(torch.randn(11, 12))
    assert seen.found() is None
    seen.add(torch.randn(1, 12))
    assert seen.found().shape == (3, 12)


@pytest.fixture(scope="module")
def cuts(corpora):
    return list(read_corpus(corpora["child"]).cuts)


def test_layers_start_along_what_they_read_of_real_speech_and_change_nothing(embedded, cuts):
    speech = load_model(embedded)
    batch = speech.collate(cuts[:3])
    before = speech.loss(batch).item()
    torch.manual_seed(0)
    speech.module = apply_method(speech.module, "eva", speech.adaptable_layers(), Budget("rank", 4))
    random = {name: p.detach().clone() for name, p in speech.module.named_parameters() if "lora_A" in name}
    start_from_inputs(speech, cuts, seed=0)
    assert speech.loss(batch).item() == before
    name = "model.encoder.layers.0.self_attn.q_proj"
    layer, read = speech.module.base_model.model.get_submodule(name), []
    with layer.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0].flatten(0, -2))), torch.no_grad():
        for cut in cuts:
            speech.loss(speech.collate([cut]))
    start, former = layer.lora_A["default"].weight.detach(), random[f"base_model.model.{name}.lora_A.default.weight"]
    former = torch.linalg.qr(former.mT).Q.mT  # of unit length too
    assert variance_share(start, torch.cat(read)) > 0.98 > 0.4 > variance_share(former, torch.cat(read))
    assert all(not torch.equal(p, random[name]) for name, p in speech.module.named_parameters() if name in random)
    assert not any(module._forward_pre_hooks for module in speech.module.modules())


def test_a_rank_above_the_width_leaves_the_other_rows_as_they_were():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.Linear(9, 8))
    network = apply_method(model, "eva", ["0", "1"], Budget("rank", 5))
    found = input_directions(network, (network(torch.randn(4, 6, 3)) is None for _ in range(3)))
    assert {name.rpartition(".")[2]: tuple(rows.shape) for name, rows in found.items()} == {"0": (3, 3), "1": (5, 9)}


# -- whole runs


def starts(run):
    """A of all layers, which no rate so small has moved."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if "lora_A" in name}


@pytest.fixture(scope="module")
def still(options):
    return options(method="eva", budget="rank=2", learning_rate=1e-12)


@pytest.fixture(scope="module")
def whole(still, tmp_path_factory):
    run = tmp_path_factory.mktemp("eva") / "run"
    adapt(still, run)
    return starts(run)


def test_a_run_begins_along_the_inputs_and_so_does_one_that_was_stopped_before(still, whole, tmp_path, monkeypatch):
    for rows in whole.values():
        torch.testing.assert_close(rows @ rows.mT, torch.eye(2), atol=1e-4, rtol=0)

    def stop(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Adaptation, "training_step", stop)
        with pytest.raises(UserError, match="Interrupted"):
            adapt(still, tmp_path / "run")
    adapt(None, tmp_path / "run", resume=True)
    again = starts(tmp_path / "run")
    assert all(torch.equal(again[name], rows) for name, rows in whole.items())


def test_a_continued_run_keeps_its_start(still, whole, tmp_path, monkeypatch):
    step, seen = Adaptation.training_step, []

    def stop_in_the_second_epoch(self, *args):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as context:
        context.setattr(Adaptation, "training_step", stop_in_the_second_epoch)
        with pytest.raises(UserError, match="Interrupted"):
            adapt(still.model_copy(update={"epochs": 2}), tmp_path / "run")
    monkeypatch.setattr("ssvd.adapt.start_from_inputs", lambda *args: seen.append(args))
    adapt(None, tmp_path / "run", resume=True)
    again = starts(tmp_path / "run")
    assert not seen and all(torch.equal(again[name], rows) for name, rows in whole.items())


@pytest.mark.slow
def test_two_processes_begin_with_the_same(still, whole, tmp_path):
    adapt(still.model_copy(update={"devices": 2}), tmp_path / "run")
    again = starts(tmp_path / "run")
    assert all(torch.equal(again[name], rows) for name, rows in whole.items())
