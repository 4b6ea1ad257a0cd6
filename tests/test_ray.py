"""The benchmark on a Ray cluster of two nodes."""

import pytest

from ssvd.benchmark.grid import checked_grid
from ssvd.benchmark.records import read_results
from ssvd.benchmark.scheduler import run_benchmark
from ssvd.errors import UserError
from ssvd.training.progress import Log

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ssvd[ray]'")


@pytest.mark.slow
def test_two_nodes_compute_what_one_process_computes(corpora, tmp_path):
    from ray.cluster_utils import Cluster

    from ssvd.benchmark.on_ray import on_ray

    parts = {"train": str(corpora["child"]), "dev": str(corpora["adult"]), "test": str(corpora["child"])}
    values = {
        "models": {"tiny": "embedded"},
        "corpora": {"child": parts},
        "methods": [{"ssvd": "portion=0.2"}],
        "learning_rates": {"ssvd": [1e-3, 3e-3]},
        "extensions": 0,
        "seeds": [3, 4],
        "training": {"epochs": 1, "updates_per_epoch": 1, "batch_size": 4},
    }
    grid = checked_grid(values, "grid")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    with (tmp_path / "log").open("w+") as file:
        log = Log(file)
        try:
            execute = on_ray(cluster.address)
            assert len(ray.nodes()) == 2
            run_benchmark(grid, tmp_path / "ray", device="cpu", progress=log, execute=execute)
        finally:
            ray.shutdown()
            cluster.shutdown()
        run_benchmark(grid, tmp_path / "alone", device="cpu", progress=log)
    of_ray, alone = (read_results(tmp_path / name)[0] for name in ("ray", "alone"))
    assert [result.id for result in of_ray] == [result.id for result in alone]
    assert len(alone) == 3
    for one, other in zip(of_ray, alone, strict=True):
        assert one.test == other.test and one.search == other.search


def test_without_a_cluster_one_sentence_says_so():
    from ssvd.benchmark.on_ray import on_ray

    with pytest.raises(UserError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        on_ray("127.0.0.1:1")
