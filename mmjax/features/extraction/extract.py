"""Inputs x encoder to stores: every row, in order, and who has none; a kill loses one chunk.

A tower's rows stream into one store a layer, chunk by chunk: the encoder takes the chunks in their
order and a chunk's rows in any (texts of like length together); a chunk is written when its last
row is there. The same call goes on where a killed one was, and ends with the same bytes. A fitted
encoder sees the whole catalogue first.

Several processes take turns at the chunks, each with its own devices, into the same stores; the
first begins and finishes them, and fits.
"""

import json
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax import store
from mmjax.core.errors import InputError, Preempted
from mmjax.core.progress import Progress
from mmjax.encoders.core import Batches, Encode, Fitted, Rows, Tower, stream
from mmjax.encoders.registry import load_encoder, options_of
from mmjax.features.extraction.batches import Chunk, Reader
from mmjax.features.extraction.inputs import MODALITIES, Inputs
from mmjax.features.extraction.job import Job, Summary, places
from mmjax.parallel import distributed


def extract(
    inputs: Inputs, job: Job, *, mesh: Mesh | None = None, overwrite: bool = False
) -> Summary:
    """Encodes every row that has the encoder's modality into the stores of `job`.

    Args:
      mesh: of this process's devices; batches are split over its axis `data`, parameters over
        `model`; without it everything happens on JAX's default device.
      overwrite: begin anew what is there, finished or not.

    Raises:
      InputError: anything the user can mend. What was written is kept, unfinished, for the same
        call to go on with.
      Preempted: asked to end, it did so after a batch.
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
    reader = Reader(inputs, encoder.modality, size, mesh, job)
    if isinstance(encoder, Tower):
        return _stream_into(reader, encoder, overwrite)
    fitted = distributed.run_on_primary(lambda: _fit_into(reader, encoder, overwrite))
    return fitted or Summary([job.out], len(inputs.ids))


def _stream_into(reader: Reader, tower: Tower, overwrite: bool) -> Summary:
    """Fills one store a layer, chunk by chunk."""
    widths, urls = list(tower.layers.values()), places(reader.job, tower.layers)
    summary = Summary(urls, len(reader.values), widths)
    with ExitStack() as stack:

        def begin(joining: bool) -> list[store.Writer]:
            stores = zip(urls, widths, _about(tower), strict=True)
            return [
                stack.enter_context(reader.create(url, width, overwrite, joining, **about))
                for url, width, about in stores
            ]

        own = distributed.run_on_primary(lambda: begin(joining=False))
        writers = distributed.run_on_all(lambda: own or begin(joining=True))
        distributed.run_on_all(lambda: _encode_share(reader, tower, writers, summary))
        distributed.run_on_primary(lambda: _finish(writers, summary, reader.modality))
    return summary


def _encode_share(
    reader: Reader, tower: Tower, writers: list[store.Writer], summary: Summary
) -> None:
    """Encodes and writes every n-th of the chunks that are not there, n the number of processes."""
    values, widths = reader.values, summary.widths
    every = list(writers[0].store.spans())
    lacking = [span for span in every if not all(span[0] in writer.done for writer in writers)]
    share = lacking[jax.process_index() :: jax.process_count()]
    total, left, own = (
        sum(bool(values[row]) for span in some for row in range(*span))
        for some in (every, lacking, share)
    )
    with (
        distributed.Notice(own=True) as notice,
        Progress(reader.job.encoder, total - left + own, done=total - left) as progress,
    ):
        groups = (np.array([row for row in range(*span) if values[row]], int) for span in share)
        through = tower.stream or stream
        encoded = reader.encode(
            groups, tower.batches, tower.encode, tower.params, progress, through
        )
        chunks = {span[0]: Chunk(reader, span, widths) for span in share}
        for rows, found in encoded:
            starts = rows // reader.chunk_rows * reader.chunk_rows
            for start in np.unique(starts).tolist():
                here = starts == start
                chunks[start].fill(rows[here], [part[here] for part in found])
                if chunks[start].complete:
                    chunks.pop(start).write(writers)
            if notice.given():
                raise Preempted(f"whole chunks of {', '.join(summary.stores)} are kept")
        for start in sorted(chunks):  # of whose rows the last could not be read
            chunks.pop(start).write(writers)
        for writer in writers:
            writer.settle()
        summary.seconds, summary.waited = progress.seconds, reader.clock.waited
    summary.encoded = left


def _fit_into(reader: Reader, encoder: Fitted, overwrite: bool) -> Summary:
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
            summary.failed = [note for note in notes if "reason" in note]
            answers = [note for note in notes if "text" in note]
            counts = [note for note in notes if "id" not in note]
            present, cut = (sum(note[key] for note in counts) for key in ("present", "cut"))
            if not present:
                writer.discard()
            _some(present > 0, modality)
            writer.attach("failures.jsonl", _lines(summary.failed))
            outcome = {"present": present, "failed": len(summary.failed), "cut": cut}
            if answers:
                writer.attach("descriptions.jsonl", _lines(answers))
                outcome["unended"] = sum(not answer["ended"] for answer in answers)
        summary.present, summary.cut = outcome["present"], outcome["cut"]
        summary.unended = outcome.get("unended", 0)
        writer.finish(**outcome)


def _lines(notes: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(note, ensure_ascii=False) + "\n" for note in notes).encode()


def _some(there: bool, modality: str) -> None:
    if not there:
        raise InputError(f"not one {modality} could be encoded; nothing is written")
