"""Compute cells on a Ray cluster, as many at a time as it has room for; its nodes share a file system."""

import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ssvd.benchmark.grid import Grid
from ssvd.benchmark.scheduler import Execute, Outcome, run_locked
from ssvd.benchmark.tasks import Task, failure, write_record
from ssvd.errors import UserError


def on_ray(address: str, gpus: float = 0, cpus: float = 1) -> Execute:
    """Return what `run_benchmark` takes to execute tasks on Ray.

    Args:
        address: "local" to start Ray on this machine, or the address of a cluster, such as "auto" or "HOST:6379".
        gpus: Share of a GPU that each task takes.
        cpus: Number of cores that each task takes.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed here; install it with: pip install 'ssvd[ray]'") from None
    if not ray.is_initialized():
        try:
            host, _, port = address.rpartition(":")
            if port.isdigit():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except (OSError, ValueError) as error:
            raise UserError(f"There is no Ray cluster at {address!r} ({' '.join(str(error).split())}).") from None
    # A task that is lost with its node is started again, and continues from its last epoch.
    remote = ray.remote(num_gpus=gpus, num_cpus=cpus, max_retries=2)(run_locked)

    def execute(grid: Grid, out: Path, tasks: Sequence[Task], device: str) -> Iterator[Outcome]:
        running = {remote.remote(grid, out, task, device): task for task in tasks}
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            task, started = running.pop(reference), datetime.now(UTC)
            try:
                summary = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                for other in running:
                    ray.cancel(other, force=True)
                raise error.cause from None
            except ray.exceptions.RayError as error:
                reason = f"Its worker was lost ({type(error).__name__})."
                write_record(out, failure(task, task.id, reason, "cpu", started))
                summary = f"failed: {reason}"
            if summary is not None:
                yield Outcome(task, summary)

    return execute
