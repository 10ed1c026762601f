"""What recipes share: work through candidates in threads, note each outcome, go on after an interrupt."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.loading import BrokenSample, SkippedSample
from lit_insert.errors import InputError

JOURNAL = ".prepared.jsonl"
_FLUSH = 50


class Named(Protocol):
    """What a recipe works through."""

    @property
    def id(self) -> str:
        """Name, different for different candidates."""


C = TypeVar("C", bound=Named)


@dataclass
class Summary:
    """What a run of `build` did.

    Attributes:
        made: Triplets in the folder, by split.
        new: Triplets made in this run.
        dropped: Candidates left out, by reason.
        broken: Names and faults of pictures that cannot be read.
    """

    made: Counter[str] = field(default_factory=Counter)
    new: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)


class Journal:
    """What has become of each candidate, one line each, so that a later run need not look again.

    Args:
        out: The folder being made.
        settings: How; a folder made in another way is refused.
        key: Column of a row that has the candidate's id; each row also has ``split``.
        files: Columns with paths below the split's folder.
        retried: Reasons for dropping that may have gone since, so that a later run looks again.

    Raises:
        InputError: If the folder was made with other settings, or holds something else.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        key: str,
        files: Sequence[str],
        retried: Sequence[str] = ("broken",),
    ) -> None:
        self.out, self.path = out, out / JOURNAL
        self.key, self.files, self.retried = key, files, retried
        self.rows: dict[str, dict[str, Any]] = {}
        self.dropped: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        kept = [line for line in lines[:-1] if line]  # what follows the last line break was cut short by a kill
        if kept:
            before = json.loads(kept[0])
            for name in settings:
                if before.get(name) != settings[name]:
                    raise InputError(
                        f"{out}: was made with {name} {before.get(name)}, not {settings[name]}; choose another folder"
                    )
        elif out.is_dir() and any(p for p in out.iterdir() if not p.name.startswith(".")):
            raise InputError(f"{out}: is not empty and was not made by this recipe; choose another folder")
        for line in kept[1:]:
            self._take(json.loads(line))
        out.mkdir(parents=True, exist_ok=True)
        for leftover in (*out.glob(".*.*.*"), *out.glob("*/.*.*.*"), *out.glob("*/*/.*.*")):
            leftover.unlink()  # temporary files of a run that was killed
        with atomic_file(self.path) as temporary:
            temporary.write_text("\n".join(kept or [json.dumps(settings)]) + "\n", encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def _take(self, entry: dict[str, Any]) -> None:
        if "dropped" in entry:
            self.dropped[entry["id"]] = entry["dropped"]
            self.faults[entry["id"]] = entry.get("fault", "")
        else:
            self.dropped.pop(entry[self.key], None)
            self.rows[entry[self.key]] = entry

    def done(self, name: str) -> bool:
        """Whether a candidate was dropped, or made with all its files still there."""
        row = self.rows.get(name)
        if row is None:
            return name in self.dropped and self.dropped[name] not in self.retried
        return all((self.out / row["split"] / row[c]).is_file() for c in self.files)

    def add(self, entry: dict[str, Any]) -> None:
        """Note the outcome of one candidate."""
        self._take(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def work_through(
    candidates: Iterable[C],
    make: Callable[[C], dict[str, Any]],
    journal: Journal,
    write_tables: Callable[[], None],
    workers: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Summary:
    """Make what is not made yet; the journal is closed at the end.

    Args:
        candidates: What to look at; of two with the same id the first counts.
        make: Writes a candidate's files and returns its row; raises `SkippedSample` to drop it.
        journal: Takes the rows.
        write_tables: Writes what names the files; called now and then, and whenever the work stops.
        workers: Threads; one a core if not given.
        tick: Called after each candidate.
    """
    summary = Summary()

    def outcome(candidate: C) -> dict[str, Any]:
        try:
            return make(candidate)
        except BrokenSample as error:
            return {"id": candidate.id, "dropped": "broken", "name": error.name, "fault": error.reason}
        except SkippedSample as error:
            return {"id": candidate.id, "dropped": error.reason}

    def note(entry: dict[str, Any]) -> None:
        if entry.get("dropped") == "broken":
            summary.broken[entry["name"]] = entry["fault"]
        journal.add(entry)
        if "dropped" not in entry:
            summary.new += 1
            if summary.new % _FLUSH == 0:
                write_tables()
        tick()

    count = workers or os.cpu_count() or 1
    seen: set[str] = set()
    waiting: deque[Future[dict[str, Any]]] = deque()
    pool = ThreadPoolExecutor(count)
    try:
        for candidate in candidates:
            repeated = candidate.id in seen
            seen.add(candidate.id)
            summary.dropped["same object twice"] += repeated
            if repeated or journal.done(candidate.id):
                tick()
                continue
            waiting.append(pool.submit(outcome, candidate))
            if len(waiting) >= 2 * count:
                note(waiting.popleft().result())
        while waiting:
            note(waiting.popleft().result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        write_tables()
        journal.close()
    summary.made.update(row["split"] for row in journal.rows.values())
    summary.dropped.update(journal.dropped.values())
    summary.dropped += Counter()  # without the zeros
    return summary
