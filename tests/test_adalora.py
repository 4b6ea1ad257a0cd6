"""AdaLoRA: the penalty, the pruning of ranks on its schedule, and runs that stop and continue in between."""

import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from ssvd.adapt import adapt
from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, RankAllocation, apply_method, trainable_parameters
from ssvd.training.module import Adaptation

LAYERS = ["0", "2"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8))


@pytest.fixture
def adapted():
    """Rank 4 on average, so 6 at the start."""
    return apply_method(network(), "adalora", LAYERS, Budget("rank", 4))


def ranks(module):
    """Number of singular values that are not zero, by layer."""
    return [int((layer.lora_E["default"] != 0).sum()) for layer in layers_of(module)]


def layers_of(module):
    return [module.base_model.model[0], module.base_model.model[2]]


def train(module, updates, first=1, total=None):
    """Learn a function that needs the second layer's rank, and return the total rank after each update."""
    allocation = RankAllocation(module, total or updates)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-2)
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(first, updates + 1):
        x = torch.randn(16, 12, generator=generator)
        (module(x) - x[:, :8]).square().mean().add(allocation.penalty()).backward()
        optimizer.step()
        allocation.after_update(number)
        optimizer.zero_grad()
        found.append(sum(ranks(module)))
    return found


def test_ranks_fall_on_the_cubic_schedule_to_the_target(adapted):
    totals = train(adapted, 40)
    begin, end, initial, target = 4, 20, 12, 8
    assert totals[: begin - 1] == [initial] * (begin - 1)
    for update in range(begin + 1, end):
        left = 1 - (update - begin) / (end - begin)
        assert totals[update - 1] == math.floor((initial - target) * left**3 + target)
    assert totals[end - 1 :] == [target] * (len(totals) - end + 1)
    pattern = adapted.peft_config["default"].rank_pattern
    assert sum(map(sum, pattern.values())) == target
    assert ranks(adapted)[0] != ranks(adapted)[1]  # they were allocated, not divided equally


def test_trained_parameters_are_counted_without_what_is_pruned(adapted, tmp_path):
    sizes = [12 + 20 + 1, 20 + 8 + 1]
    assert trainable_parameters(adapted) == 6 * sum(sizes)
    train(adapted, 20)
    expected = sum(rank * size for rank, size in zip(ranks(adapted), sizes, strict=True))
    assert trainable_parameters(adapted) == expected
    adapted.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == expected
    assert trainable_parameters(adapted) == expected
    again = PeftModel.from_pretrained(network(), tmp_path, is_trainable=True)
    assert trainable_parameters(again) == expected
    x = torch.randn(3, 12)
    torch.testing.assert_close(again(x), adapted(x))
    torch.testing.assert_close(again.merge_and_unload()(x), adapted(x))


def test_the_penalty_is_the_mean_distance_of_the_vectors_from_orthonormal(adapted):
    allocation, errors = RankAllocation(adapted, 10), []
    for layer in layers_of(adapted):
        A, B = layer.lora_A["default"], layer.lora_B["default"]
        errors += [(A @ A.T - torch.eye(6)).norm(), (B.T @ B - torch.eye(6)).norm()]
    assert allocation.penalty().item() == pytest.approx(0.1 * torch.stack(errors).mean().item())
    with torch.no_grad():
        for layer in layers_of(adapted):
            nn.init.orthogonal_(layer.lora_A["default"])
            nn.init.orthogonal_(layer.lora_B["default"])
    assert allocation.penalty() < 1e-6


def test_layers_without_a_gradient_or_with_an_infinite_one_are_of_no_importance(adapted):
    allocation = RankAllocation(adapted, 8)
    with torch.no_grad():
        for layer in layers_of(adapted):
            layer.lora_E["default"].fill_(1.0)
    x = torch.randn(4, 12)
    for number in range(1, 5):
        adapted.zero_grad()
        adapted(x).square().mean().backward()
        first, second = layers_of(adapted)
        first.lora_A["default"].grad = first.lora_B["default"].grad = first.lora_E["default"].grad = None
        second.lora_A["default"].grad[0] = torch.inf
        allocation.after_update(number)
    assert ranks(adapted)[0] == 0 and ranks(adapted)[1] > 0


def test_a_training_too_short_to_prune_is_refused(adapted):
    with pytest.raises(UserError, match="prunes ranks in training, which takes two updates or more"):
        RankAllocation(adapted, 1)
    assert train(adapted, 2)[-1] == 8


# -- whole runs


@pytest.fixture(scope="module")
def pruning(options):
    """Options of 3 epochs of 2 updates of 2 batches: ranks are pruned from the first to the third of 6 updates."""
    return options(method="adalora", budget="rank=2", epochs=3, accumulation=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def whole(pruning, tmp_path_factory):
    run = tmp_path_factory.mktemp("adalora") / "run"
    return run, adapt(pruning, run)


def test_a_run_ends_at_the_budget(whole, embedded):
    run, result = whole
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    pattern = state["allocation"]["pattern"]
    assert len(pattern) == 44 and sum(map(sum, pattern.values())) == 2 * 44
    values = {name: value for name, value in state["state_dict"].items() if name.endswith("lora_E")}
    assert all(len(value) == 3 for value in values.values())  # all triplets, those that were pruned too
    assert sum(int((value != 0).sum()) for value in values.values()) == 2 * 44
    kept = [sum(kept) for kept in pattern.values()]
    nominal = METHODS["adalora"].count({"layer": (192, 768)}, 1) * 88
    assert 0 < result.trainable_parameters < nominal and max(kept) > min(kept)


# It continues from update 2, while ranks fall, or from update 4, when they are final.
@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_stopped_continues_to_the_same_result(pruning, whole, tmp_path, monkeypatch, epochs):
    run, (other, expected) = tmp_path / "run", whole
    step, seen = Adaptation.training_step, []

    def stop(self, *args):
        seen.append(args)
        if len(seen) == 4 * epochs + 1:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as context:
        context.setattr(Adaptation, "training_step", stop)
        with pytest.raises(UserError, match="Interrupted"):
            adapt(pruning, run)
    result = adapt(None, run, resume=True)
    first, second = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (run, other))
    assert first["allocation"]["pattern"] == second["allocation"]["pattern"]
    assert all(torch.equal(first["state_dict"][name], value) for name, value in second["state_dict"].items())
    assert [row.loss for row in result.series] == [row.loss for row in expected.series]
    assert result.trainable_parameters == expected.trainable_parameters


@pytest.mark.slow
def test_several_processes_prune_the_same_ranks(options, tmp_path):
    patterns = []
    for devices in (1, 2):
        run = tmp_path / str(devices)
        adapt(options(method="adalora", budget="rank=2", devices=devices, learning_rate=1e-2), run)
        patterns.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["allocation"]["pattern"])
    assert patterns[0] == patterns[1]
