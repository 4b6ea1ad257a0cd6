"""Where the processes of a training run: how many there are, who starts them, and which of them this one is."""

import os
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from ssvd.errors import UserError
from ssvd.hardware import pick_device
from ssvd_options import AdaptOptions

Starter = Literal["torchrun", "SLURM", "this package", "nobody"]


@dataclass(frozen=True)
class Placement:
    """The processes of a training, one for each device, and which of them this one is.

    Attributes:
        devices: Number of processes on each machine.
        nodes: Number of machines.
        rank: Number of this process among all, from 0.
        local_rank: Number of this process on its machine, from 0.
        starter: Who has started the processes; "nobody" where that is still to be done.
    """

    devices: int = 1
    nodes: int = 1
    rank: int = 0
    local_rank: int = 0
    starter: Starter = "nobody"

    @property
    def size(self) -> int:
        """Number of processes on all machines."""
        return self.devices * self.nodes

    def local(self, number: int) -> "Placement":
        """Return the placement of a process that this package starts on this machine."""
        return replace(self, rank=self.rank + number, local_rank=number, starter="this package")

    def environment(self) -> ClusterEnvironment:
        """Return how Lightning learns which process this one is."""
        if self.starter == "torchrun":
            return TorchElasticEnvironment()
        return SLURMEnvironment(auto_requeue=False) if self.starter == "SLURM" else LightningEnvironment()


ALONE = Placement()


def find_placement(options: AdaptOptions) -> Placement:
    """Return the placement that torchrun or SLURM have made, else the one that the options ask for.

    Where they state one device and one machine, the training is one of its own, whoever has started this process, as
    those of a grid are.

    Raises:
        UserError: The options contradict what was started, or there are no such devices or processes.
    """
    if options.devices == options.nodes == 1:
        found = ALONE
    elif TorchElasticEnvironment.detect():
        found = _started("torchrun", int(os.environ["LOCAL_WORLD_SIZE"]))
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and SLURMEnvironment.detect():
        found = _started("SLURM", int(os.environ["SLURM_STEP_NUM_TASKS"]) // int(os.environ["SLURM_STEP_NUM_NODES"]))
    else:
        found = _asked_for(options)
    for name, wanted, number in (("devices", options.devices, found.devices), ("nodes", options.nodes, found.nodes)):
        if wanted not in (None, number):
            raise UserError(
                f"{name} is {wanted}, but {found.starter} has started processes for {number}: give {name} as "
                f"{number}, or start other processes."
            )
    _check_devices(options, found)
    _check_training(options, found)
    return found


def _started(starter: Starter, devices: int) -> Placement:
    environment = Placement(starter=starter).environment()
    size = environment.world_size()
    if size % devices:
        raise UserError(f"{starter} has started {size} processes, not equally many on each machine: start as many.")
    return Placement(devices, size // devices, environment.global_rank(), environment.local_rank(), starter)


def _asked_for(options: AdaptOptions) -> Placement:
    devices, nodes = options.devices or 1, options.nodes or 1
    if nodes == 1:
        return Placement(devices)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if missing:
        raise UserError(
            f"nodes is {nodes}: start this command on each machine by torchrun or srun, or with the environment "
            f"variables MASTER_ADDR, MASTER_PORT and NODE_RANK ({missing[0]} is not set)."
        )
    node = os.environ["NODE_RANK"]
    if not node.isdecimal() or int(node) >= nodes:
        raise UserError(f"NODE_RANK is {node!r}: set it to the number of this machine, from 0 to {nodes - 1}.")
    return Placement(devices, nodes, rank=int(node) * devices)


def _check_devices(options: AdaptOptions, placement: Placement) -> None:
    kind = pick_device(options.device).type
    if placement.size == 1 or kind == "cpu":
        return
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if placement.devices > there:
        raise UserError(
            f"This machine has {there} device{'s' * (there != 1)} of the kind {kind}, but {placement.devices} are "
            f"asked for: give devices={there}, or the device cpu."
        )


def _check_training(options: AdaptOptions, placement: Placement) -> None:
    if options.strategy == "fsdp":
        raise UserError(_no_fsdp(options.method))
    if options.batch_seconds is None and options.batch_size < placement.size:
        raise UserError(
            f"A batch of {options.batch_size} utterances cannot be divided among {placement.size} processes: give a "
            f"batch_size of at least {placement.size}, which counts all of them together."
        )


def _no_fsdp(method: str) -> str:
    if method.startswith(("ssvd", "svft")):
        reason = (
            "FSDP divides parameters among the devices, but not the frozen bases of {}, which are most of its state"
        )
    else:
        reason = (
            "under FSDP, all devices must compute the same number of steps, but each decodes dev utterances of its own "
            "(method {})"
        )
    return f"The strategy fsdp is not possible: {reason.format(repr(method))}. Use ddp, with less memory per device."
