"""Batches of rows through an encoder, and the chunks they fill."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.core.progress import Progress
from mmjax.encoders.core import Batch, Batches, Clock, Encode, Rows, stream
from mmjax.encoders.vlm.batching import Answer
from mmjax.features.extraction.inputs import Inputs
from mmjax.features.extraction.job import Job
from mmjax.parallel import mesh as meshes
from mmjax.parallel import param_sharding

CHUNK_ROWS = 512  # rows of a chunk of a store; a kill loses at most one chunk
# A failed row may be mended and extracted again; an absent one has nothing to read.
NOTHING = {"image": "no image", "text": "no text", "audio": "no audio", "image_text": "no pair"}


class Reader:
    """Rows of one job, with the rows that failed or were cut."""

    def __init__(self, inputs: Inputs, modality: str, size: int, mesh: Mesh | None, job: Job):
        self.ids, self.values, self.modality = inputs.ids, inputs.of(modality), modality
        self.size, self.mesh, self.job = size, mesh, job
        self.rows = None if mesh is None else meshes.rows(mesh)
        self.about = {**inputs.about, "inputs": inputs.digest(modality), "batch": size}
        self.failed: dict[int, str] = {}
        self.cut: dict[int, int] = defaultdict(int)  # first row of a batch -> inputs cut in it
        self.clock = Clock()

    @property
    def chunk_rows(self) -> int:
        wanted = self.job.chunk_rows or CHUNK_ROWS
        return -(-wanted // self.size) * self.size

    def create(
        self, url: str, width: int, overwrite: bool, joining: bool = False, **about: Any
    ) -> store.Writer:
        return store.create(
            url,
            shape=(len(self.ids), width),
            dtype=self.job.dtype,
            item_ids=self.ids,
            chunk_rows=self.chunk_rows,
            overwrite=overwrite,
            resume=True,
            joining=joining,
            **about,
            **self.about,
        )

    def encode(
        self,
        groups: Iterable[np.ndarray],
        batches: Batches,
        encode: Encode,
        params: Any,
        progress: Progress,
        through: Callable[..., Rows] = stream,
    ) -> Rows:
        """Encode groups of rows one after the other.

        The pipeline stays full between groups.
        """

        def named() -> Iterator[Batch]:
            for rows in groups:
                prepared = batches([self.values[row] for row in rows], self.size)
                for number, batch in enumerate(prepared):
                    why = {int(rows[at]): reason for at, reason in batch.failed.items()}
                    batch_rows = rows[batch.rows]
                    yield batch._replace(rows=batch_rows, failed=why, begins=number == 0)

        def seen(batch: Batch) -> None:
            for row, why in batch.failed.items():
                if self.job.on_error == "stop":
                    raise InputError(
                        f"{_spell(self.values[row])} of item {self.ids[row]!r} cannot be read "
                        f"({why}); mend it or pass --on_error=skip"
                    )
                self.failed[row] = why
            if batch.cut:
                self.cut[int(batch.rows[0])] += batch.cut
            progress.add(len(batch.failed))

        if self.mesh is not None:
            params = param_sharding.spread(params, self.mesh)
        for rows, values in through(named(), encode, params, self.rows, seen, self.clock):
            yield rows, values
            progress.add(len(rows), f"host-wait {self.clock.waited / progress.seconds:.0%}")

    def notes(
        self, start: int, present: np.ndarray, answers: dict[int, Answer] | None = None
    ) -> list[dict[str, Any]]:
        """Return the notes on the rows of a chunk, for the store.

        They are the reason for each absent row, the answers of the encoder, and the counts of
        present rows and of cut inputs.
        """
        stop = start + len(present)
        no_input = NOTHING.get(self.modality, f"no {self.modality.split('_')[0]}")
        absent = {row: no_input for row in range(start, stop) if not self.values[row]}
        why = absent | {row: why for row, why in self.failed.items() if start <= row < stop}
        notes: list[dict[str, Any]] = [
            {"id": self.ids[row], "input": _spell(self.values[row]), "reason": why[row]}
            for row in sorted(why)
        ]
        notes += [
            {"id": self.ids[row], **answer._asdict()}
            for row, answer in sorted((answers or {}).items())
        ]
        cut = sum(count for row, count in self.cut.items() if start <= row < stop)
        return [*notes, {"present": int(present.sum()), "cut": cut}]


class Chunk:
    """Rows that are written to the stores as one chunk."""

    def __init__(self, reader: Reader, span: tuple[int, int], widths: list[int]):
        self.reader, (self.start, self.stop), self.widths = reader, span, widths
        self.present = np.zeros(self.stop - self.start, bool)
        self.blocks: list[np.ndarray] = []  # allocated when the first row comes
        self.answers: dict[int, Answer] = {}

    def fill(self, rows: np.ndarray, values: list[np.ndarray]) -> None:
        if not self.blocks:
            shape = len(self.present)
            self.blocks = [np.zeros((shape, width), np.float32) for width in self.widths]
        self.present[rows - self.start] = True
        for block, vectors in zip(self.blocks, values, strict=False):
            block[rows - self.start] = vectors
        if len(values) > len(self.blocks):
            self.answers |= dict(zip(rows.tolist(), values[-1], strict=True))

    @property
    def complete(self) -> bool:
        """Check that every row with input was read or has failed."""
        missing = np.flatnonzero(~self.present) + self.start
        reader = self.reader
        return not any(reader.values[row] and row not in reader.failed for row in missing)

    def write(self, writers: list[store.Writer]) -> None:
        self.fill(np.zeros(0, int), [])
        notes = self.reader.notes(self.start, self.present, self.answers)
        for writer, block in zip(writers, self.blocks, strict=True):
            writer.write(self.start, block, self.present, notes)


def _spell(value: Any) -> str:
    """Format an input for failures.jsonl.

    A path, or the first 200 characters of a text.
    """
    return " | ".join(map(_spell, value)) if isinstance(value, tuple) else value[:200]
