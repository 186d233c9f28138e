"""Resumable encoding of inputs into stores, chunk by chunk.

A tower's rows stream into one store per layer, chunk by chunk. The encoder takes the chunks in
order and a chunk's rows in any order (texts of similar length share a batch). A chunk is written
when its last row is encoded, so that a kill loses one chunk. The same call resumes where a killed
one stopped, and ends with the same bytes. Rows without input or with an error are absent and
listed. A fitted encoder sees the whole catalogue first.

Several processes take turns at the chunks, each with its own devices, into the same stores. The
first process creates and completes the stores, and fits.
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
from mmjax.features.extraction.job import ExtractionSummary, Job, places
from mmjax.parallel import distributed


def extract(
    inputs: Inputs, job: Job, *, mesh: Mesh | None = None, overwrite: bool = False
) -> ExtractionSummary:
    """Encode all rows that have the encoder's modality.

    They go into the stores of `job`.

    Args:
      mesh: of this process's devices; batches are split over its axis `data`, parameters over
        `model`. Without it everything runs on JAX's default device.
      overwrite: replace existing stores, finished or not.

    Raises:
      InputError: anything that the user can mend. The rows written so far are kept, unfinished, for
        the same call to resume from.
      Preempted: a request to end came, and the call ended after a batch.
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
    return fitted or ExtractionSummary([job.out], len(inputs.ids))


def _stream_into(reader: Reader, tower: Tower, overwrite: bool) -> ExtractionSummary:
    """Fill one store per layer, chunk by chunk."""
    widths, urls = list(tower.layers.values()), places(reader.job, tower.layers)
    summary = ExtractionSummary(urls, len(reader.values), widths)
    with ExitStack() as stack:

        def begin(joining: bool) -> list[store.Writer]:
            stores = zip(urls, widths, _about(tower), strict=True)
            return [
                stack.enter_context(reader.create(url, width, overwrite, joining, **about))
                for url, width, about in stores
            ]

        primary_writers = distributed.run_on_primary(lambda: begin(joining=False))
        writers = distributed.run_on_all(lambda: primary_writers or begin(joining=True))
        distributed.run_on_all(lambda: _encode_share(reader, tower, writers, summary))
        distributed.run_on_primary(lambda: _finish(writers, summary, reader.modality))
    return summary


def _encode_share(
    reader: Reader, tower: Tower, writers: list[store.Writer], summary: ExtractionSummary
) -> None:
    """Encode and write this process's share of the missing chunks.

    It is every n-th of them, n the number of processes.
    """
    values, widths = reader.values, summary.widths
    spans = list(writers[0].store.spans())
    missing = [span for span in spans if not all(span[0] in writer.done for writer in writers)]
    share = missing[jax.process_index() :: jax.process_count()]
    total, missing_rows, share_rows = (
        sum(bool(values[row]) for span in selection for row in range(*span))
        for selection in (spans, missing, share)
    )
    with (
        distributed.Notice(own=True) as notice,
        Progress(
            reader.job.encoder, total - missing_rows + share_rows, done=total - missing_rows
        ) as progress,
    ):
        groups = (np.array([row for row in range(*span) if values[row]], int) for span in share)
        through = tower.stream or stream
        encoded = reader.encode(
            groups, tower.batches, tower.encode, tower.params, progress, through
        )
        chunks = {span[0]: Chunk(reader, span, widths) for span in share}
        for rows, outputs in encoded:
            starts = rows // reader.chunk_rows * reader.chunk_rows
            for start in np.unique(starts).tolist():
                in_chunk = starts == start
                chunks[start].fill(rows[in_chunk], [part[in_chunk] for part in outputs])
                if chunks[start].complete:
                    chunks.pop(start).write(writers)
            if notice.given():
                raise Preempted(f"whole chunks of {', '.join(summary.stores)} are kept")
        for start in sorted(chunks):  # chunks whose last row could not be read
            chunks.pop(start).write(writers)
        for writer in writers:
            writer.settle()
        summary.seconds, summary.waited = progress.seconds, reader.clock.waited
    summary.encoded = missing_rows


def _fit_into(reader: Reader, encoder: Fitted, overwrite: bool) -> ExtractionSummary:
    """Fit on the rows that have the modality, and write them."""
    rows = np.flatnonzero([bool(value) for value in reader.values])
    with Progress(reader.job.encoder, len(rows)) as progress:

        def run(batches: Batches, program: Encode, params: Any) -> Rows:
            for encoded_rows, values in reader.encode([rows], batches, program, params, progress):
                yield np.searchsorted(rows, encoded_rows), values

        fitted = encoder.fit([reader.values[row] for row in rows], run)
        seconds = progress.seconds
    features = np.zeros((len(reader.values), fitted.shape[1]), np.float32)
    features[rows] = fitted
    present = np.any(features, axis=1)
    _some(present.any(), reader.modality)
    for row in rows[~present[rows]]:
        reader.failed.setdefault(int(row), "says nothing to this encoder")
    summary = ExtractionSummary([reader.job.out], len(features), [fitted.shape[1]])
    summary.seconds, summary.waited, summary.encoded = seconds, reader.clock.waited, len(rows)
    with reader.create(reader.job.out, fitted.shape[1], overwrite, **encoder.about) as writer:
        for start, stop in writer.store.spans():
            if start not in writer.done:
                chunk_present = present[start:stop]
                writer.write(
                    start, features[start:stop], chunk_present, reader.notes(start, chunk_present)
                )
        _finish([writer], summary, reader.modality)
    return summary


def _about(tower: Tower) -> list[dict[str, Any]]:
    """Return the manifest's description of each layer."""
    settings = dict(tower.about)
    sentence_pooling = settings.pop("sentence_embedding", "")
    parts = [layer.partition(":") for layer in tower.layers]
    return [
        {
            **settings,
            "layer": name,
            "pooling": sentence_pooling if name == "sentence_embedding" else pooling,
        }
        for name, _, pooling in parts
    ]


def _finish(writers: list[store.Writer], summary: ExtractionSummary, modality: str) -> None:
    """Complete the stores with their failures and counts.

    Removes a store if nothing could be encoded.
    """
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
