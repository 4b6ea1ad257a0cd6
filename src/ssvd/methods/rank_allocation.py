"""AdaLoRA's part in training (arXiv 2303.10512): the penalty in the loss, and the pruning of what matters least."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from torch import Tensor, nn

from ssvd.errors import UserError


class RankAllocation:
    """Allocates the ranks of AdaLoRA in a training, by PEFT's own code.

    All ranks are those of the start for a tenth of the updates. Then the least important triplets of all layers are
    pruned, on the cubic schedule of the authors, until the average rank is the target after half of the updates. As
    long as ranks fall, a triplet that was pruned may come back. The authors' schedules are alike: on MNLI they prune
    from 9 % to 42 % of the updates.

    Args:
        network: A model with one adapter of AdaLoRA, whose schedule is set.
        updates: Number of updates of the training.

    Attributes:
        end: The update after which ranks stay as they are.

    Raises:
        UserError: There is no time to prune.
    """

    def __init__(self, network: PeftModel, updates: int) -> None:
        if updates < 2:
            raise UserError("The method 'adalora' prunes ranks in training, which takes two updates or more: do more.")
        assert isinstance(network.base_model, AdaLoraModel)
        self._tuner: Any = network.base_model
        self._config: AdaLoraConfig = network.peft_config["default"]
        self.end = max(2, updates // 2)
        self._config.total_step, self._config.tinit, self._config.tfinal = updates, updates // 10, updates - self.end

    def penalty(self) -> Tensor:
        """Return what is added to the loss: how far the singular vectors are from orthonormal, a scalar.

        It is the mean of ||A A^T - I|| and ||B^T B - I|| (Frobenius) over all layers, times the weight of the
        configuration.
        """
        errors = []
        for name, parameter in self._tuner.model.named_parameters():
            if name.endswith(("lora_A.default", "lora_B.default")):
                rows = parameter if "lora_A" in name else parameter.mT
                errors.append(torch.linalg.matrix_norm(rows @ rows.mT - torch.eye(len(rows), device=rows.device)))
        mean, weight = torch.stack(errors).mean(), float(self._config.orth_reg_weight)
        return weight * mean

    def after_update(self, number: int) -> None:
        """Weigh the importance of each triplet by its gradient, which is still there, and prune the least important.

        Args:
            number: Number of the update that was just done, from 1 on.
        """
        allocator = self._tuner.rankallocator
        for name, parameter in self._tuner.model.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                for averages in (allocator.exp_avg_ipt, allocator.exp_avg_unc):
                    if name in averages:  # restored ones may be on another device
                        averages[name] = averages[name].to(parameter.device)
                # A layer may have been left out (LayerDrop); in float16, a step may have been skipped.
                gradient = parameter.grad
                parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient.nan_to_num(0, 0, 0)
        self._tuner.update_and_allocate(number)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let PEFT read and write the parameters of all triplets, those that are pruned now included."""
        pattern, self._config.rank_pattern = self._config.rank_pattern, None
        try:
            yield
        finally:
            self._config.rank_pattern = pattern

    def state(self) -> dict[str, Any]:
        """Return what a continued training needs beside the parameters."""
        allocator = self._tuner.rankallocator
        return {
            "pattern": self._config.rank_pattern,
            "sensitivity": allocator.exp_avg_ipt,
            "uncertainty": allocator.exp_avg_unc,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        allocator = self._tuner.rankallocator
        self._config.rank_pattern = state["pattern"]
        allocator.exp_avg_ipt, allocator.exp_avg_unc = dict(state["sensitivity"]), dict(state["uncertainty"])
        allocator.ipt = dict(state["sensitivity"])  # computed anew by each update; PEFT asks for the names alone


def pruned_parameters(module: nn.Module) -> int:
    """Count the parameters that AdaLoRA trains but has pruned: of a model without its adapter, none."""
    if not isinstance(module, PeftModel) or not isinstance(module.base_model, AdaLoraModel):
        return 0
    pruned = 0
    for name, kept in (module.peft_config["default"].rank_pattern or {}).items():
        layer: Any = module.base_model.model.get_submodule(name.partition(".lora_E")[0])
        values = layer.lora_E["default"]
        if values.requires_grad:
            pruned += (len(values) - sum(kept)) * (layer.in_features + layer.out_features + 1)
    return pruned
