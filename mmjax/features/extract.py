"""Inputs x encoder to stores: every row, in order, and who has none; a kill loses one chunk.

A tower's rows stream into one store a layer, chunk by chunk: within a chunk the encoder may take
rows in any order (texts of like length together), chunks are finished one after the other. The
same call goes on where a killed one was, and ends with the same bytes. A fitted encoder sees the
whole catalogue first.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mmjax import mesh as meshes
from mmjax import store
from mmjax.encoders.core import Batch, Batches, Clock, Encode, Fitted, Rows, Tower, stream
from mmjax.errors import InputError
from mmjax.features.inputs import MODALITIES, Inputs
from mmjax.features.loading import load_encoder, options_of
from mmjax.progress import Progress

CHUNK_ROWS = 512  # of a store: what a kill can lose
# A failed row may be mended and extracted again; an absent one has nothing to read.
NOTHING = {"image": "no image", "text": "no text", "audio": "no audio", "image_text": "no pair"}


@dataclass(frozen=True)
class Job:
    """One encoder and the stores it fills: `out` itself, or `out/<layer>` for several layers.

    `by_layer` makes it `out/<layer>` for a single layer too.
    """

    encoder: str
    out: str
    options: dict[str, Any] = field(default_factory=dict)  # of its `load`
    batch: int = 32  # rows a device program takes, rounded up to divide over the devices
    dtype: str = "float32"  # of the stores, and of the computation where the encoder can choose
    chunk_rows: int | None = None  # CHUNK_ROWS, rounded up to whole batches, unless given
    on_error: str = "skip"  # inputs that cannot be read are absent and listed; or "stop"
    by_layer: bool = False


@dataclass
class Summary:
    """What became of a job."""

    stores: list[str]
    items: int
    widths: list[int] = field(default_factory=list)
    present: int = 0
    encoded: int = 0  # rows that this call encoded; others were there from an earlier one
    failed: list[dict[str, str]] = field(default_factory=list)  # {"id", "input", "reason"}
    cut: int = 0  # inputs longer than the encoder's window
    seconds: float = 0.0
    waited: float = 0.0  # of them, seconds the device waited for the host

    def __str__(self) -> str:
        absent = self.items - self.present
        widths = " + ".join(map(str, self.widths))
        text = f"{', '.join(self.stores)}: {self.items} items x {widths}, {self.present} present, "
        text += f"{absent} absent ({len(self.failed)} listed in failures.jsonl)"
        if self.cut:
            text += f", {self.cut} cut to the encoder's window"
        if not self.encoded:
            return f"{text}; complete already"
        return (
            f"{text}; encoded {self.encoded} in {self.seconds:.1f} s, "
            f"{self.encoded / self.seconds:.1f} items/s, "
            f"{self.waited / self.seconds:.0%} of the time waiting for the host"
        )


def extract(
    inputs: Inputs, job: Job, *, mesh: Mesh | None = None, overwrite: bool = False
) -> Summary:
    """Encodes every row that has the encoder's modality into the stores of `job`.

    Args:
      mesh: batches are split over its axis `data`, parameters over `model`; without it
        everything happens on JAX's default device.
      overwrite: begin anew what is there, finished or not.

    Raises:
      InputError: anything the user can mend. What was written is kept, unfinished, for the same
        call to go on with.
    """
    if job.on_error not in ("stop", "skip"):
        raise InputError(f"on_error is stop or skip, not {job.on_error!r}")
    if job.batch < 1 or (job.chunk_rows is not None and job.chunk_rows < 1):
        raise InputError(f"batch and chunk_rows are at least 1, not {job.batch}, {job.chunk_rows}")
    options = dict(job.options)
    if options.get("modality") in MODALITIES:
        options["modality"] = MODALITIES[options["modality"]]
    if "dtype" in options_of(job.encoder):
        options["dtype"] = job.dtype
    encoder = load_encoder(job.encoder, options)
    devices = 1 if mesh is None else mesh.shape["data"]
    size = -(-job.batch // devices) * devices
    reader = _Reader(inputs, encoder.modality, size, mesh, job)
    fill = _stream_into if isinstance(encoder, Tower) else _fit_into
    return fill(reader, encoder, overwrite)


def places(job: Job, layers: Iterable[str]) -> list[str]:
    """The store of each layer."""
    layers = list(layers)
    if len(layers) == 1 and not job.by_layer:
        return [job.out]
    return [f"{job.out.rstrip('/')}/{layer.replace(':', '-')}" for layer in layers]


class _Reader:
    """The rows of one job on their way through an encoder: what failed, what was cut."""

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

    def create(self, url: str, width: int, overwrite: bool, **about: Any) -> store.Writer:
        return store.create(
            url,
            shape=(len(self.ids), width),
            dtype=self.job.dtype,
            item_ids=self.ids,
            chunk_rows=self.chunk_rows,
            overwrite=overwrite,
            resume=True,
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
    ) -> Rows:
        """Encodes groups of rows one after the other; the pipeline stays full between them."""

        def named() -> Iterator[Batch]:
            for rows in groups:
                for batch in batches([self.values[row] for row in rows], self.size):
                    why = {int(rows[at]): reason for at, reason in batch.failed.items()}
                    yield batch._replace(rows=rows[batch.rows], failed=why)

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
            params = meshes.spread(params, self.mesh)
        for rows, values in stream(named(), encode, params, self.rows, seen, self.clock):
            yield rows, values
            progress.add(len(rows), f"host-wait {self.clock.waited / progress.seconds:.0%}")

    def notes(self, start: int, present: np.ndarray) -> list[dict[str, Any]]:
        """What to remember of these rows: why each absent one is, and two counts."""
        stop = start + len(present)
        absent = {row: NOTHING[self.modality] for row in range(start, stop) if not self.values[row]}
        why = absent | {row: why for row, why in self.failed.items() if start <= row < stop}
        notes: list[dict[str, Any]] = [
            {"id": self.ids[row], "input": _spell(self.values[row]), "reason": why[row]}
            for row in sorted(why)
        ]
        cut = sum(count for row, count in self.cut.items() if start <= row < stop)
        return [*notes, {"present": int(present.sum()), "cut": cut}]


def _stream_into(reader: _Reader, tower: Tower, overwrite: bool) -> Summary:
    """Fills one store a layer, chunk by chunk."""
    values, widths = reader.values, list(tower.layers.values())
    urls = places(reader.job, tower.layers)
    summary = Summary(urls, len(values), widths)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(reader.create(url, width, overwrite, **about))
            for url, width, about in zip(urls, widths, _about(tower), strict=True)
        ]
        every = list(writers[0].store.spans())
        spans = [span for span in every if not all(span[0] in writer.done for writer in writers)]
        total, left = (
            sum(bool(values[row]) for span in some for row in range(*span))
            for some in (every, spans)
        )
        with Progress(reader.job.encoder, total, done=total - left) as progress:
            groups = (np.array([row for row in range(*span) if values[row]], int) for span in spans)
            encoded = reader.encode(groups, tower.batches, tower.encode, tower.params, progress)
            rows, vectors = next(encoded, (None, None))
            for start, stop in spans:
                blocks = [np.zeros((stop - start, width), np.float32) for width in widths]
                present = np.zeros(stop - start, bool)
                while rows is not None and rows[0] < stop:  # a batch never crosses two chunks
                    for block, vector in zip(blocks, vectors, strict=True):
                        block[rows - start] = vector
                    present[rows - start] = True
                    rows, vectors = next(encoded, (None, None))
                for writer, block in zip(writers, blocks, strict=True):
                    writer.write(start, block, present, reader.notes(start, present))
            summary.seconds, summary.waited = progress.seconds, reader.clock.waited
        summary.encoded = left
        _finish(writers, summary, reader.modality)
    return summary


def _fit_into(reader: _Reader, encoder: Fitted, overwrite: bool) -> Summary:
    """Fits on the rows that have the modality and writes them."""
    rows = np.flatnonzero([bool(value) for value in reader.values])
    with Progress(reader.job.encoder, len(rows)) as progress:

        def run(batches: Batches, program: Encode, params: Any) -> Rows:
            for found, values in reader.encode([rows], batches, program, params, progress):
                yield np.searchsorted(rows, found), values

        fitted = encoder.fit([reader.values[row] for row in rows], run)
        seconds = progress.seconds
    features = np.zeros((len(reader.values), fitted.shape[1]), np.float32)
    features[rows] = fitted
    present = features.any(axis=1)
    _some(present.any(), reader.modality)
    for row in rows[~present[rows]]:
        reader.failed.setdefault(int(row), "says nothing to this encoder")
    summary = Summary([reader.job.out], len(features), [fitted.shape[1]])
    summary.seconds, summary.waited, summary.encoded = seconds, reader.clock.waited, len(rows)
    with reader.create(reader.job.out, fitted.shape[1], overwrite, **encoder.about) as writer:
        for start, stop in writer.store.spans():
            if start not in writer.done:
                there = present[start:stop]
                writer.write(start, features[start:stop], there, reader.notes(start, there))
        _finish([writer], summary, reader.modality)
    return summary


def _about(tower: Tower) -> list[dict[str, Any]]:
    """The manifest's description of each layer."""
    about = dict(tower.about)
    own = about.pop("sentence_embedding", "")
    split = [layer.partition(":") for layer in tower.layers]
    return [
        {**about, "layer": name, "pooling": own if name == "sentence_embedding" else how}
        for name, _, how in split
    ]


def _finish(writers: list[store.Writer], summary: Summary, modality: str) -> None:
    """Completes the stores with what failed; takes them away if nothing could be encoded."""
    for writer in writers:
        if writer.store.manifest["complete"]:
            outcome = writer.store.manifest["outcome"]
            failures = store.layout.read(writer.store.url, writer.store.kv, "failures.jsonl") or b""
            summary.failed = [json.loads(line) for line in failures.decode().splitlines()]
        else:
            notes = writer.notes()
            summary.failed = [note for note in notes if "id" in note]
            counts = [note for note in notes if "id" not in note]
            present, cut = (sum(note[key] for note in counts) for key in ("present", "cut"))
            if not present:
                writer.discard()
            _some(present > 0, modality)
            lines = [json.dumps(note, ensure_ascii=False) + "\n" for note in summary.failed]
            writer.attach("failures.jsonl", "".join(lines).encode())
            outcome = {"present": present, "failed": len(summary.failed), "cut": cut}
        summary.present, summary.cut = outcome["present"], outcome["cut"]
        writer.finish(**outcome)


def _some(there: bool, modality: str) -> None:
    if not there:
        raise InputError(f"not one {modality} could be encoded; nothing is written")


def _spell(value: Any) -> str:
    """An input as failures.jsonl shows it: a path, or the beginning of a text."""
    return " | ".join(map(_spell, value)) if isinstance(value, tuple) else value[:200]
