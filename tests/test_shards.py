"""Audio in shards is the audio of the corpus that they were written from, however it is read."""

import csv
import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from lhotse import CutSet

from ssvd.adapt import adapt
from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.shar_writing import write_shar
from ssvd.errors import UserError
from ssvd.training.batches import ByCount, EpochBatches, InGroups
from ssvd.training.sequential import ShardedBatches, shard_groups


@pytest.fixture(scope="module")
def cuts(corpora):
    """Utterances of one recording each, but for one that begins within its recording."""
    first, *others = list(read_corpus(corpora["adult"]).cuts)
    return [first.truncate(offset=0.5, preserve_id=True), *others]


@pytest.fixture(scope="module")
def shar(cuts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shar") / "adult"
    assert write_shar(cuts, folder, size=3) == 3
    return folder


def test_shards_hold_the_utterances_and_their_audio(cuts, shar):
    found = {cut.id: cut for cut in read_corpus(shar).cuts}
    assert found.keys() == {cut.id for cut in cuts}
    for cut in cuts:
        assert found[cut.id].supervisions[0].to_dict() | {"start": 0} == cut.supervisions[0].to_dict() | {"start": 0}
        expected = load_audio(cut, 16_000)
        assert np.abs(load_audio(found[cut.id], 16_000) - expected).max() < 1e-4  # 16 bits
    assert [cut.id for cut in found.values()] != [cut.id for cut in cuts]


def test_lhotse_reads_the_shards_that_ssvd_writes_and_the_other_way_round(cuts, shar, tmp_path):
    by_lhotse = {cut.id: cut.load_audio() for cut in CutSet.from_shar(in_dir=shar)}
    for cut in read_corpus(shar).cuts:
        assert np.array_equal(by_lhotse[cut.id].mean(axis=0), load_audio(cut, cut.sampling_rate))
    CutSet.from_cuts(cuts).to_shar(tmp_path, {"recording": "wav"}, shard_size=4)
    for cut, own in zip(read_corpus(tmp_path).cuts, cuts, strict=True):
        assert np.abs(load_audio(cut, 16_000) - load_audio(own, 16_000)).max() < 1e-4


def test_batches_from_whole_shards_equal_those_from_single_utterances(shar):
    chosen = list(read_corpus(shar).cuts)
    sizes = [path.stat().st_size for path in sorted(shar.glob("recording.*.tar"))]
    groups = shard_groups(chosen, together=sizes[0] + sizes[1])
    assert groups == [list(range(6)), [6, 7]]
    a_pass = InGroups([ByCount(len(group), 2) for group in groups], groups)
    numbers = EpochBatches(a_pass, 2 * len(a_pass), seed=0, number=0)
    batches = ShardedBatches(chosen, groups, numbers)
    assert len(batches) == 8
    for batch, row in zip(batches, numbers, strict=True):
        assert {cut.recording.sources[0].type for cut in batch} == {"memory"}
        for cut, number in zip(batch, row, strict=True):
            assert np.array_equal(load_audio(cut, 16_000), load_audio(chosen[number], 16_000))
            assert cut.id == chosen[number].id


def test_each_shard_is_read_once_in_a_pass_and_no_more_than_one_group_ahead(shar, monkeypatch):
    read = []

    def recorded(tar):
        read.append(tar.name)
        return original(tar)

    from ssvd.training import sequential

    original = sequential.read_shard
    monkeypatch.setattr(sequential, "read_shard", recorded)
    chosen = list(read_corpus(shar).cuts)
    groups = shard_groups(chosen, together=1)
    assert len(groups) == 3
    a_pass = InGroups([ByCount(len(group), 1) for group in groups], groups)
    seen = 0
    for batch in ShardedBatches(chosen, groups, EpochBatches(a_pass, len(a_pass), 0, 0)):
        seen += len(batch)
        assert len(read) <= -(-seen // 3) + 2
    assert sorted(read) == [path.name for path in sorted(shar.glob("recording.*.tar"))]


def test_pass_in_groups_sees_each_utterance_once_and_one_group_changes_nothing():
    groups = [[0, 2, 4], [1, 3, 5, 7], [6]]
    a_pass = InGroups([ByCount(len(group), 1) for group in groups], groups)
    orders = [torch.cat(list(a_pass.shuffled(torch.Generator().manual_seed(seed)))).tolist() for seed in range(9)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) > 5 and {order[0] for order in orders} > {6}
    whole = ByCount(50, 4)
    alone = InGroups([whole], [range(50)])
    assert list(EpochBatches(alone, 30, 3, 0)) == list(EpochBatches(whole, 30, 3, 0))


def test_run_on_shards_is_a_run_on_their_utterances(shar, cuts, options, tmp_path):
    """The same losses: shards within one group are shuffled as a corpus of files is."""
    order = [cut.id for cut in read_corpus(shar).cuts]
    files = sorted(cuts, key=lambda cut: order.index(cut.id))
    write_cuts(CutSet.from_cuts(files), tmp_path / "files.jsonl.gz")

    def losses(name, train, workers=0):
        adapt(options(train=[str(train)], workers=workers), tmp_path / name)
        with (tmp_path / name / "metrics.csv").open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]

    expected = losses("files", tmp_path / "files.jsonl.gz")
    assert losses("shards", shar) == losses("read by a worker", shar, workers=1)
    assert losses("again", shar) == pytest.approx(expected, rel=1e-3)


def test_command_writes_shards_and_goes_on_where_it_was_stopped(ssvd, refused, corpora, tmp_path):
    out, partial = tmp_path / "shards", tmp_path / "shards.partial"
    call = ["data", "shards", corpora["adult"], out, "--size", 4]
    assert ssvd(*call)[0] == 0
    out.rename(partial)
    kept = partial / "recording.000000.tar"
    before = kept.stat().st_mtime_ns
    (partial / "cuts.000001.jsonl.gz").unlink()  # stopped in the middle of a shard
    (partial / "recording.000999.tar").write_bytes(b"")
    (partial / "tmpabc").mkdir()  # what a killed call was writing
    (partial / "tmpabc" / "cuts.000001.jsonl.gz").write_bytes(b"")
    code, told, _ = ssvd(*call)
    assert code == 0 and "8 utterances in 2 shards" in told
    assert (out / kept.name).stat().st_mtime_ns == before and not partial.exists()
    assert not (out / "recording.000999.tar").exists()
    assert {cut.id for cut in read_corpus(out).cuts} == {cut.id for cut in read_corpus(corpora["adult"]).cuts}
    assert "exists already" in refused(*call)


def test_damaged_shards_are_told_in_a_sentence(shar, tmp_path):
    folder = tmp_path / "shar"
    folder.mkdir()
    for path in shar.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    chosen = list(read_corpus(folder).cuts)
    tar = folder / "recording.000000.tar"
    lost = chosen[1].id
    with tarfile.open(tar, "r:") as file:
        members = [(member, file.extractfile(member).read()) for member in file]
    with tarfile.open(tar, "w:") as file:
        for member, data in members:
            if not member.name.startswith(f"{lost}."):
                file.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match=f"{lost}"):
        load_audio(chosen[1], 16_000)
    groups = shard_groups(chosen)
    with pytest.raises(UserError, match="not in its shard"):
        list(ShardedBatches(chosen, groups, [[1]]))
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match="cannot be"):
        load_audio(chosen[0], 16_000)
    with pytest.raises(UserError, match="shard cannot be read"):
        list(ShardedBatches(chosen, groups, [[0]]))
    cuts = folder / "cuts.000001.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(cuts.read_bytes()).splitlines()]
    rows[0]["recording"] = 3
    cuts.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    with pytest.raises(UserError, match=r"cuts\.000001\.jsonl\.gz:1"):
        read_corpus(folder)
    tar.unlink()
    with pytest.raises(UserError, match=r"recording\.000000\.tar is missing"):
        read_corpus(folder)
