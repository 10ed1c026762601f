import pickle

import pytest
import torch

from lit_insert.data.loading import BrokenSample, SkippedSample
from lit_insert.diffusion import cache as module
from lit_insert.diffusion.cache import CachedViews, FeatureCache, content_key, fill
from lit_insert.errors import InputError


class Pictures:
    """Samples of random numbers; view 1 is mirrored."""

    endless = ""

    def __init__(self, length=11, views=2, broken=(), skipped=(), shift=0.0):
        self.length, self.views, self.broken, self.skipped, self.shift = length, views, broken, skipped, shift
        self.read = []

    def __len__(self):
        return self.length

    def view_of(self, index, epoch):
        return (index + epoch) % self.views

    def view(self, index, view=0):
        self.read.append((index, view))
        if index in self.broken:
            raise BrokenSample(f"s{index}", "cut off")
        if index in self.skipped:
            raise SkippedSample(f"s{index}", "too small")
        generator = torch.Generator().manual_seed(index)
        source, target = torch.randn(2, 3, 4, 4, generator=generator) + self.shift
        sample = {"source": source, "target": target, "mask": (source[:1] > 0).float()}
        if view:
            sample = {k: v.flip(-1) for k, v in sample.items()}
        thing = torch.randn(3, 2, 2, generator=generator)
        return {**sample, "object": thing, "instruction": f"add {index}", "id": f"s{index}"}


def encode(batch):
    features = {"target_moments": batch["target"] * 2, "scene_latents": batch["source"] + 1}
    if "object" in batch:
        features["object_tokens"] = batch["object"].flatten(2).bfloat16()
    return features


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 4)


def filled(tmp_path, data, **options):
    cache = FeatureCache(tmp_path, "key", len(data), data.views)
    fill(cache, data, encode, **{"batch_size": 3, **options})
    return cache


def same(data, cache, epochs=2):
    for epoch in range(epochs):
        for index in range(len(data)):
            got, wanted = CachedViews(data, cache).sample(index, epoch), data.view(index, data.view_of(index, epoch))
            assert torch.equal(got["target_moments"], wanted["target"] * 2)
            assert torch.equal(got["scene_latents"], wanted["source"] + 1)
            assert torch.equal(got["object_tokens"], wanted["object"].flatten(1).bfloat16())
            assert torch.equal(got["mask"], wanted["mask"])
            assert (got["id"], got["instruction"]) == (wanted["id"], wanted["instruction"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("length", "views"), [(11, 2), (8, 1), (1, 2)])
def test_features_come_back_as_they_were(tmp_path, length, views, workers):
    data = Pictures(length, views)
    cache = filled(tmp_path, data, num_workers=workers)
    cache.check_complete()
    same(data, pickle.loads(pickle.dumps(cache)))


def test_a_second_time_nothing_is_read(tmp_path):
    data = Pictures()
    filled(tmp_path, data)
    data.read.clear()
    filled(tmp_path, data)
    assert data.read == []


def test_an_interrupted_fill_goes_on_where_it_was(tmp_path):
    data, calls = Pictures(), []

    def stop(batch):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return encode(batch)

    cache = FeatureCache(tmp_path, "key", len(data), data.views)
    with pytest.raises(KeyboardInterrupt):
        fill(cache, data, stop, batch_size=4)
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".safetensors"] * 2  # whole shards only
    half = cache.folder / ".shard-00002-0000abcd.x1.safetensors"
    half.write_bytes(b"a kill left this")
    data.read.clear()
    filled(tmp_path, data)
    assert {index for index, _ in data.read} == {8, 9, 10}
    assert not half.exists()
    same(data, cache)


@pytest.mark.parametrize("harm", ["flip a byte", "cut", "empty", "remove"])
def test_damaged_shards_are_made_again(tmp_path, harm):
    data = Pictures()
    path = sorted(filled(tmp_path, data).folder.iterdir())[1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    damaged = {"flip a byte": content, "cut": content[:-20], "empty": b""}
    path.unlink() if harm == "remove" else path.write_bytes(damaged[harm])
    data.read.clear()
    cache = filled(tmp_path, data)
    assert {index for index, _ in data.read} == {4, 5, 6, 7}
    same(data, cache)


def test_samples_that_cannot_be_used_stay_so(tmp_path):
    data = Pictures(broken=(2, 4, 5, 6, 7), skipped=(0,))
    cache = filled(tmp_path, data)
    with pytest.raises(BrokenSample, match="s2: cut off"):
        cache.read(2, 0)
    with pytest.raises(SkippedSample, match="s0: too small") as caught:
        cache.read(0, 1)
    assert not isinstance(caught.value, BrokenSample)
    for index in (1, 3, 8, 10):
        assert cache.read(index, 0)["id"] == f"s{index}"


def test_ranks_share_the_work(tmp_path):
    data, caches = Pictures(), []
    for rank in range(2):
        data.read.clear()
        caches.append(filled(tmp_path, data, rank=rank, world_size=2))
        assert {index // 4 for index, _ in data.read} == ({0, 2} if rank == 0 else {1})
    same(data, caches[0])


def test_a_folder_that_is_not_shared_is_noticed(tmp_path):
    cache = filled(tmp_path, Pictures(), rank=0, world_size=2)
    with pytest.raises(InputError, match=r"2 of 3 shards.*all processes share"):
        cache.check_complete()
    with pytest.raises(InputError, match="shard 1 is gone"):
        cache.read(5, 0)


def test_full_disk_is_one_line_and_leaves_no_half_shard(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device; what is cached so far stays"):
        filled(tmp_path, Pictures())
    assert list((tmp_path / "key").iterdir()) == []


def test_key_follows_content():
    torch.manual_seed(0)
    encoder = torch.nn.Linear(3, 3)
    key = content_key(Pictures(), [encoder], feature="last")
    assert key == content_key(Pictures(), [encoder], feature="last")
    others = [
        content_key(Pictures(12), [encoder], feature="last"),
        content_key(Pictures(views=1), [encoder], feature="last"),
        content_key(Pictures(shift=0.1), [encoder], feature="last"),
        content_key(Pictures(broken=(0,)), [encoder], feature="last"),
        content_key(Pictures(), [encoder], feature="pooled"),
    ]
    with torch.no_grad():
        encoder.bias[0] += 1e-6
    others.append(content_key(Pictures(), [encoder], feature="last"))
    assert len({key, *others}) == len(others) + 1
