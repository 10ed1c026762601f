#!/usr/bin/env python
"""Streams a synthetic PIPE by real ranks and workers: is every row seen once, is memory flat, is resuming exact?

    python benchmarks/data_streaming.py --rows 100000 --json

Rows per second stand next to plain `datasets` iteration over the same files, which decodes the two scenes of each row
and does nothing else: no join with masks, no crops, no augmentation, no CLIP preprocessing.
"""

import argparse
import gc
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

KEY = ("target_img_dataset", "img_id", "ann_id")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--rows", type=int, default=100_000, help="rows of the table (default 100000)")
    add("--ranks", type=int, default=2, help="processes that would train (default 2)")
    add("--workers", type=int, default=2, help="loader processes of each rank (default 2)")
    add("--batch_size", type=int, default=32, help="rows per batch and rank (default 32)")
    add("--image_size", type=int, default=64, help="side of the pictures in pixels (default 64)")
    add("--row_group", type=int, default=500, help="rows of a parquet row group (default 500)")
    add("--window", type=int, default=1000, help="shuffle window in rows (default 1000)")
    add("--compare_batches", type=int, default=100, help="batches compared after resuming (default 100)")
    add("--plain_rows", type=int, default=20_000, help="rows of the speed comparisons (default 20000)")
    add("--max_growth_mb", type=float, default=300, help="allowed growth of memory, all processes (default 300)")
    add("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args(argv)


def write_tables(root: Path, rows: int, size: int, group: int) -> None:
    """PIPE and PIPE_Masks with repeated img_ids; the masks in another order and in other files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image, ImageDraw

    def jpeg(image: Image.Image) -> dict[str, Any]:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        return {"bytes": buffer.getvalue(), "path": None}

    rng = np.random.default_rng(0)
    pool = []
    for _ in range(64):
        source = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((size, size), 3)
        mask = Image.new("L", (size, size))
        x, y = rng.uniform(0.1, 0.4, 2) * size
        ImageDraw.Draw(mask).ellipse((x, y, x + size / 2, y + size / 2), fill=255)
        target = source.copy()
        target.paste(tuple(rng.integers(0, 256, 3).tolist()), mask=mask)
        pool.append((jpeg(source), jpeg(target), jpeg(mask)))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = [(name, pa.string()) for name in KEY]
    tables = {
        "PIPE": pa.schema([("source_img", image), ("target_img", image), ("Instruction_Class", pa.string()), *text]),
        "PIPE_Masks": pa.schema([("mask", image), *text]),
    }

    def key(row: int) -> tuple[str, str, str]:
        return "COCO" if row % 2 else "LVIS", f"{row // 4:012d}", str(row)

    per_file = {"PIPE": max(group, rows // 16), "PIPE_Masks": max(group, rows // 5)}
    for name, schema in tables.items():
        (root / name).mkdir(parents=True)
        for start in range(0, rows, per_file[name]):
            # No dictionary for pictures: the pool repeats, real pictures do not.
            options: dict[str, Any] = {"use_dictionary": list(KEY), "compression": "none"}
            with pq.ParquetWriter(root / name / f"train-{start:09d}.parquet", schema, **options) as writer:
                stop = min(start + per_file[name], rows)
                for first in range(start, stop, group):
                    numbers = list(range(first, min(first + group, stop)))
                    if name == "PIPE_Masks":
                        rng.shuffle(numbers)
                    columns: dict[str, Any] = dict(zip(KEY, zip(*map(key, numbers), strict=True), strict=True))
                    columns = {k: list(v) for k, v in columns.items()}
                    pictures = [pool[n % 64] for n in numbers]
                    if name == "PIPE":
                        columns["source_img"] = [p[0] for p in pictures]
                        columns["target_img"] = [p[1] for p in pictures]
                        columns["Instruction_Class"] = [f"add thing {n}" for n in numbers]
                    else:
                        columns["mask"] = [p[2] for p in pictures]
                    writer.write_table(pa.table(columns, schema))


def resident_mb() -> float:
    """Memory that this process and its loader workers have written, shared pages counted in parts (Linux).

    Pages of files (libraries) are left out: their share changes when other programs start or end.
    """
    total = 0
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:
        return float("nan")
    for pid in ("self", *children):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # a worker that has just ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total / 1024


def checksum(batch: Any) -> int:
    """A number that changes with any bit of a batch's tensors."""
    value = 0
    for name in ("source", "target", "object", "mask"):
        value = zlib.crc32(batch[name].numpy().tobytes(), value)
    return value


def data_module(root: Path, options: argparse.Namespace, workers: int) -> Any:
    """The module under test."""
    from lit_insert.data.pipe import PipeTripletDataModule

    return PipeTripletDataModule(
        str(root / "PIPE"),
        str(root / "PIPE_Masks"),
        batch_size=options.batch_size,
        num_workers=workers,
        size=options.image_size,
        object_size=32,
        streaming=True,
        shuffle_window=options.window,
        val_fraction=0.0,
        min_side=8,
    )


def quiet(rank: int, world: int, store: Path) -> None:
    """Join the process group, with one thread each."""
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)


def row_number(sample_id: str) -> int:
    """Ids end with the annotation, which is the row here."""
    return int(sample_id.rsplit("-", 1)[1])


def whole_epoch(rank: int, root: Path, options: argparse.Namespace, out: Path) -> None:
    """One epoch: rows seen, memory over time, and what a resumed run must reproduce."""
    import numpy as np
    import torch

    quiet(rank, options.ranks, root / "store-epoch")
    loader = data_module(root, options, options.workers).train_dataloader()
    half = len(loader) // 2
    seen: list[int] = []
    after: list[tuple[list[int], int]] = []
    memory, state, start = [], None, 0.0
    every = max(1, len(loader) // 50)
    for number, batch in enumerate(loader):
        if number == 0:
            gc.collect()  # the first one unshares what the workers inherited: that is no growth
            start = time.perf_counter()  # from the first batch on: workers are up
        rows = [row_number(i) for i in batch["id"]]
        seen += rows
        if half <= number < half + options.compare_batches:
            after.append((rows, checksum(batch)))
        if number == half - 1:
            state = loader.state_dict()
        if number % every == 0:
            memory.append(resident_mb())
    seconds = time.perf_counter() - start
    loader.close()
    np.save(out / f"seen-{rank}.npy", np.array(seen))
    result = {
        "rows_per_s": (len(seen) - options.batch_size) / max(seconds, 1e-9),
        "memory": memory,
        "state": state,
        "after": after,
    }
    (out / f"epoch-{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def resumed(rank: int, root: Path, options: argparse.Namespace, out: Path) -> None:
    """A new process, other workers, the saved state of rank 0 on every rank, as Lightning hands it out."""
    import torch

    quiet(rank, options.ranks, root / "store-resume")
    state = json.loads((out / "epoch-0.json").read_text())["state"]
    loader = data_module(root, options, workers=0).train_dataloader()
    loader.load_state_dict(state)
    after = []
    for batch in loader:
        after.append(([row_number(i) for i in batch["id"]], checksum(batch)))
        if len(after) == options.compare_batches:
            break
    (out / f"resumed-{rank}.json").write_text(json.dumps(after))
    torch.distributed.destroy_process_group()


class Decoded:
    """Rows joined, decoded and cut, without transforms."""

    def __init__(self, triplets: Any) -> None:
        self.triplets = triplets

    def __len__(self) -> int:
        return len(self.triplets)

    def sample(self, index: int, epoch: int) -> str:
        """The id, once everything is decoded."""
        return self.triplets.triplet(index).id


def first(batch: Any) -> Any:
    """A collate function that copies nothing."""
    return batch


def speed_ours(rank: int, root: Path, options: argparse.Namespace, out: Path) -> None:
    """Join, decode and cut only."""
    from lit_insert.data.loading import resumable_loader

    quiet(rank, options.ranks, root / "store-ours")
    data = data_module(root, options, options.workers).dataset("train")
    order = data.order(True, options.window, options.workers)
    loader = resumable_loader(Decoded(data), options.batch_size, options.workers, order=order, collate_fn=first)
    (out / f"ours-{rank}.json").write_text(json.dumps(timed(loader, options)))
    loader.close()


def speed_plain(rank: int, root: Path, options: argparse.Namespace, out: Path) -> None:
    """Plain `datasets` with the same ranks and workers: decode the two scenes of each row."""
    from datasets import Image, load_dataset
    from datasets.distributed import split_dataset_by_node
    from torch.utils.data import DataLoader

    quiet(rank, options.ranks, root / "store-plain")
    files = sorted(str(p) for p in (root / "PIPE").glob("*.parquet"))
    rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
    rows = rows.cast_column("source_img", Image()).cast_column("target_img", Image())
    rows = split_dataset_by_node(rows, rank=rank, world_size=options.ranks)
    loader = DataLoader(rows, options.batch_size, num_workers=options.workers, collate_fn=first_and_load)
    (out / f"plain-{rank}.json").write_text(json.dumps(timed(loader, options)))


def first_and_load(batch: Any) -> Any:
    """Pillow decodes on demand; ask for it, and hand back ids as the other loader does."""
    for row in batch:
        row["source_img"].load()
        row["target_img"].load()
    return [row["ann_id"] for row in batch]


def timed(loader: Any, options: argparse.Namespace) -> float:
    """Rows per second after the first batch."""
    count, start = 0, 0.0
    for number, batch in enumerate(loader):
        if number == 0:
            start = time.perf_counter()
        else:
            count += len(batch)
        if count * options.ranks >= options.plain_rows:
            break
    return count / max(time.perf_counter() - start, 1e-9)


def on_ranks(target: Any, root: Path, options: argparse.Namespace, out: Path) -> None:
    """Run ``target`` once a rank, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(r, root, options, out)) for r in range(options.ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{target.__name__}: a rank failed")


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Everything; returns the figures."""
    import numpy as np

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    note(f"writing {options.rows} rows")
    write_tables(root, options.rows, options.image_size, options.row_group)
    size = sum(p.stat().st_size for p in root.rglob("*.parquet")) / 2**20
    out = root / "out"
    out.mkdir()
    note(f"{size:.0f} MB; one epoch on {options.ranks} ranks with {options.workers} workers each")
    on_ranks(whole_epoch, root, options, out)
    note("resuming in the middle, in new processes without workers")
    on_ranks(resumed, root, options, out)
    note("speed of joining and decoding, and of plain datasets")
    on_ranks(speed_ours, root, options, out)
    on_ranks(speed_plain, root, options, out)

    counts = np.zeros(options.rows, int)
    epochs = [json.loads((out / f"epoch-{r}.json").read_text()) for r in range(options.ranks)]
    for rank in range(options.ranks):
        np.add.at(counts, np.load(out / f"seen-{rank}.npy"), 1)
    again = [json.loads((out / f"resumed-{r}.json").read_text()) for r in range(options.ranks)]
    # Workers of both ranks fill at the same time, so the sums over ranks at equal progress are what the machine holds.
    memory = np.array([e["memory"] for e in epochs]).sum(0)

    def rate(name: str) -> float:
        return round(sum(json.loads((out / f"{name}-{r}.json").read_text()) for r in range(options.ranks)), 1)

    return {
        "rows": options.rows,
        "ranks": options.ranks,
        "workers": options.workers,
        "batch_size": options.batch_size,
        "image_size": options.image_size,
        "table_mb": round(size, 1),
        "rows_missing": int((counts == 0).sum()),
        "rows_twice": int((counts > 1).sum()),
        "memory_mb_first_batch": round(float(memory[0]), 1),
        "memory_mb_peak": round(float(memory.max()), 1),
        "memory_mb_growth": round(float(memory.max() - memory[0]), 1),
        "memory_mb_second_half_growth": round(float(memory[len(memory) // 2 :].max() - memory[len(memory) // 2]), 1),
        "memory_mb_by_progress": [round(float(m)) for m in memory[:: max(1, len(memory) // 10)]],
        "resume_batches_compared": sum(len(a) for a in again),
        "resume_exact": all(a == e["after"] for a, e in zip(again, epochs, strict=True)),
        "rows_per_s_triplets": round(sum(e["rows_per_s"] for e in epochs), 1),
        "rows_per_s_join_and_decode": rate("ours"),
        "rows_per_s_plain_datasets": rate("plain"),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether all of it holds."""
    options = parse(argv)
    with tempfile.TemporaryDirectory(prefix="data_streaming_") as folder:
        figures = measure(options, Path(folder))
    figures["ok"] = bool(
        not figures["rows_missing"]
        and not figures["rows_twice"]
        and figures["resume_exact"]
        and not figures["memory_mb_growth"] > options.max_growth_mb
    )
    for name, value in figures.items():
        print(f"{name:32} {value}")
    if options.json:
        print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
