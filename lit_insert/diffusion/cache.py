"""What frozen encoders make of a training set, computed once and kept on disk.

A cache is a folder of shards, each with 256 consecutive samples as safetensors. The name of the folder is a digest of
all that the features depend on (data, preprocessing, encoder weights, precision), so that a stale cache is never read;
the name of a shard has the checksum of its bytes, so that a damaged one is noticed and made again.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.loading import BrokenSample, SkippedSample
from lit_insert.errors import InputError

log = logging.getLogger(__name__)
SHARD = 256
_FORMAT = 1
_PROBES = 16
_PICTURES = ("source", "target", "object")
Encode = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Views(Protocol):
    """A training set whose samples come in few versions, such as plain and flipped.

    ``views`` is their number, 0 if they differ from epoch to epoch, and then ``endless`` says why.
    """

    views: int
    endless: str

    def __len__(self) -> int:
        """Number of samples."""

    def view(self, index: int, view: int) -> Mapping[str, Any]:
        """One version of a sample."""

    def view_of(self, index: int, epoch: int) -> int:
        """Which version an epoch uses."""


def content_key(dataset: Views, encoders: Sequence[nn.Module], **settings: Any) -> str:
    """Digest of what features depend on.

    Args:
        dataset: Enters with its ``fingerprint()``, if it has one, and the pixels of some of its samples.
        encoders: Enter with all their weights.
        **settings: Whatever else matters, such as the precision.
    """
    digest = hashlib.blake2b(digest_size=12)
    own = getattr(dataset, "fingerprint", str)()
    digest.update(repr((_FORMAT, type(dataset).__name__, len(dataset), dataset.views, own, settings)).encode())
    for index in sorted({i * (len(dataset) - 1) // max(_PROBES - 1, 1) for i in range(_PROBES)}):
        try:
            sample = dataset.view(index, 0)
        except SkippedSample as error:
            digest.update(str(error).encode())
            continue
        for name in (*_PICTURES, "mask"):
            if name in sample:
                _add(digest, sample[name])
        digest.update(str(sample.get("id")).encode())
    for encoder in encoders:
        for name, value in encoder.state_dict().items():
            digest.update(name.encode())
            _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Tensor) -> None:
    value = value.detach().cpu().contiguous()
    digest.update(repr((tuple(value.shape), value.dtype)).encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy())


class FeatureCache:
    """The shards of one data set and one set of encoders.

    Args:
        folder: Where caches are kept; this one gets the subfolder ``key``.
        key: From `content_key`.
        length: Number of samples.
        views: Number of versions of each.
    """

    def __init__(self, folder: str | Path, key: str, length: int, views: int) -> None:
        self.folder = Path(folder).expanduser() / key
        self.length, self.views = length, views
        self._files: dict[int, Path] = {}
        self._open: dict[int, tuple[Any, dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # file handles stay in their process

    @property
    def num_shards(self) -> int:
        """Number of shards of a complete cache."""
        return -(-self.length // SHARD)

    def scan(self) -> int:
        """Look which shards there are; returns their number."""
        self._files = {int(path.name[6:11]): path for path in sorted(self.folder.glob("shard-*.safetensors"))}
        return len(self._files)

    def check_complete(self) -> None:
        """Make sure that every shard is in sight.

        Raises:
            InputError: If not, which means that processes do not share the folder.
        """
        have = self.scan()
        if have != self.num_shards:
            raise InputError(
                f"{self.folder}: {have} of {self.num_shards} shards are here; feature_cache must be a folder that all "
                "processes share"
            )

    def check(self, shard: int) -> bool:
        """Whether a shard is there and undamaged, as of the last `scan`; a damaged one is removed."""
        path = self._files.get(shard)
        if path is None:
            return False
        checksum = 0
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                checksum = zlib.crc32(block, checksum)
        if path.stem.rpartition("-")[2] == f"{checksum:08x}":
            return True
        log.warning("%s is damaged and will be made again", path)
        path.unlink()
        return False

    def write(self, shard: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Write one shard atomically.

        Raises:
            InputError: If the disk does not take it; shards written before stay.
        """
        data = save({k: v.contiguous() for k, v in tensors.items()}, {"about": json.dumps(about)})
        path = self.folder / f"shard-{shard:05d}-{zlib.crc32(data):08x}.safetensors"
        try:
            with atomic_file(path, durable=True) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror or error}; what is cached so far stays, free space and go on"
            ) from error

    def read(self, index: int, view: int) -> dict[str, Any]:
        """Features of one version of a sample, with its "id" and "instruction".

        Raises:
            SkippedSample: If the sample could not be used when the cache was made.
            InputError: If the shard is missing.
        """
        shard, place = divmod(index, SHARD)
        if shard not in self._open:
            if shard not in self._files:
                self.scan()
            try:
                handle = safe_open(self._files[shard], framework="pt")
            except (SafetensorError, OSError, KeyError) as error:
                raise InputError(
                    f"{self.folder}: shard {shard} is gone or broken; start again to rebuild it"
                ) from error
            self._open[shard] = handle, json.loads(handle.metadata()["about"])
        handle, about = self._open[shard]
        if str(place) in about["skipped"]:
            name, reason, broken = about["skipped"][str(place)]
            raise (BrokenSample if broken else SkippedSample)(name, reason)
        row = about["rows"][place]
        sample: dict[str, Any] = {}
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            part = handle.get_slice(name)
            sample[name] = part[row, 0] if name == "object_tokens" else part[row, view]
        return {**sample, "mask": sample["mask"].float(), "id": about["ids"][row], "instruction": about["texts"][row]}


class CachedViews:
    """A training set as its features: what the loader reads in place of pictures.

    Args:
        dataset: The training set.
        cache: Complete.
    """

    def __init__(self, dataset: Views, cache: FeatureCache) -> None:
        self.dataset, self.cache = dataset, cache

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """The features of the version that this epoch uses; see `FeatureCache.read`."""
        return self.cache.read(index, self.dataset.view_of(index, epoch))


def fill(
    cache: FeatureCache,
    dataset: Views,
    encode: Encode,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Compute the shards of this rank that are missing or damaged. Can be stopped and repeated at any time.

    Args:
        cache: To fill.
        dataset: What to read.
        encode: Batch of pictures to features by name; what "source" and "target" give is kept for each view,
            "object_tokens" for the first.
        batch_size: Samples encoded at a time.
        num_workers: Reading processes.
        rank: This process among ``world_size``; it takes every ``world_size``-th shard.
        world_size: Number of processes that fill the cache together.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=rank != 0) as progress:
        task = progress.add_task("checking features", total=len(range(rank, cache.num_shards, world_size)))
        cache.scan()
        for half in cache.folder.glob(".shard-*"):  # what a kill in the middle of a write left behind
            if int(half.name[7:12]) % world_size == rank:
                half.unlink(missing_ok=True)
        missing = []
        for shard in range(rank, cache.num_shards, world_size):
            if not cache.check(shard):
                missing.append(shard)
            progress.advance(task)
        spans = [range(s * SHARD, min((s + 1) * SHARD, cache.length)) for s in missing]
        progress.update(task, description="caching features", completed=0, total=sum(map(len, spans)))
        if not missing:
            return
        log.info("caching features of %d samples in %s", sum(map(len, spans)), cache.folder)
        keys = [(i, view) for span in spans for i in span for view in range(cache.views)]
        reader = iter(_reader(dataset, keys, batch_size, num_workers))
        for shard, span in zip(missing, spans, strict=True):
            tensors, about = _encode_shard(reader, span, cache.views, encode, batch_size)
            cache.write(shard, tensors, about)
            progress.advance(task, len(span))


class _Reader:
    """Samples by (index, view); one that cannot be used comes as its exception."""

    def __init__(self, dataset: Views, keys: Sequence[tuple[int, int]]) -> None:
        self.dataset, self.keys = dataset, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> Any:
        index, view = self.keys[at]
        try:
            sample = self.dataset.view(index, view)
        except SkippedSample as error:
            return error.name, error.reason, isinstance(error, BrokenSample)
        return {k: v for k, v in sample.items() if k in (*_PICTURES, "mask", "id", "instruction")}


def _reader(dataset: Views, keys: Sequence[tuple[int, int]], batch_size: int, num_workers: int) -> Iterator[Any]:
    samples: Any = _Reader(dataset, keys)
    for chunk in DataLoader(samples, batch_size, num_workers=num_workers, collate_fn=list):
        yield from chunk


def _encode_shard(
    reader: Iterator[Any], span: range, views: int, encode: Encode, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    about: dict[str, Any] = {"ids": [], "texts": [], "rows": [], "skipped": {}}
    tensors: dict[str, list[Tensor]] = {}
    waiting: list[list[Mapping[str, Any]]] = []
    for place in range(len(span)):
        versions = [next(reader) for _ in range(views)]
        failed = next((v for v in versions if isinstance(v, tuple)), None)
        about["rows"].append(len(about["ids"]))
        if failed is not None:
            about["skipped"][str(place)] = list(failed)
        else:
            waiting.append(versions)
            about["ids"].append(str(versions[0]["id"]))
            about["texts"].append(str(versions[0].get("instruction", "")))
        if len(waiting) == batch_size or (waiting and place == len(span) - 1):
            for name, part in _encode_views(waiting, views, encode).items():
                tensors.setdefault(name, []).append(part)
            waiting = []
    return {name: torch.cat(parts) for name, parts in tensors.items()}, about


def _encode_views(rows: list[list[Mapping[str, Any]]], views: int, encode: Encode) -> dict[str, Tensor]:
    """Features (rows, views, …); those of the reference, which no view changes, (rows, 1, …)."""
    by_view: list[dict[str, Tensor]] = []
    for view in range(views):
        names = _PICTURES if view == 0 else _PICTURES[:2]
        batch = {name: torch.stack([row[view][name] for row in rows]) for name in names}
        features = {k: v.detach().cpu() for k, v in encode(batch).items()}
        features["mask"] = torch.stack([row[view]["mask"] for row in rows]) > 0.5
        by_view.append(features)
    return {name: torch.stack([f[name] for f in by_view if name in f], dim=1) for name in by_view[0]}
