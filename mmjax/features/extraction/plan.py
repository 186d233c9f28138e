"""Plans of extraction steps, run in order, finished ones skipped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from mmjax.core.errors import InputError
from mmjax.encoders.registry import choose_encoder
from mmjax.features.extraction.extract import extract
from mmjax.features.extraction.inputs import MODALITIES, Inputs
from mmjax.features.extraction.job import Job
from mmjax.features.fuse import WAYS, fuse
from mmjax.parallel import distributed


@dataclass(frozen=True)
class Fusion:
    """Stores to fuse into `out` once they exist."""

    sources: tuple[str, ...]
    how: str
    out: str


@dataclass(frozen=True)
class Step:
    """One job with its inputs, or one fusion of earlier stores."""

    inputs: Inputs
    job: Job | Fusion


@dataclass(frozen=True)
class ExtractionPlan:
    """Steps in order, and the requested options that were ignored.

    Ignored options have no meaning here.
    """

    steps: list[Step]
    ignored: list[str] = field(default_factory=list)


def steps_of(inputs: Inputs, job: Job, fusion: str | None = None) -> list[Step]:
    """Return the steps of one encoder.

    A dual encoder asked for visual_textual takes two steps, and a third one for a fusion. The
    stores are then `out/visual`, `out/textual` and, fused, `out/<fusion>`. The encoder `auto`
    becomes the one that the checkpoint's config.json asks for.

    Raises:
      InputError: a fusion of anything else, or no encoder for the checkpoint.
    """
    if fusion is not None and fusion not in WAYS:
        raise InputError(f"fusion {fusion!r} is none of {', '.join(WAYS)}")
    weights, revision = (job.options.get(key) for key in ("weights", "revision"))
    if job.encoder == "auto":
        job = replace(job, encoder=choose_encoder(weights, revision))
    modality = job.options.get("modality")
    if modality != "visual_textual":
        if fusion is not None:
            raise InputError("a fusion is of the two stores of --modality=visual_textual")
        return [Step(inputs, job)]
    names = ("visual", "textual")
    outs = [f"{job.out.rstrip('/')}/{name}" for name in names]
    layers = job.options.get("layers") or ()
    if len(layers) > 2:
        raise InputError("visual_textual takes one layer of each half: --layers=VISUAL,TEXTUAL")
    layers = layers * 2 if len(layers) == 1 else layers  # one name is asked of both halves
    job = replace(job, by_layer=False)
    steps = []
    for n, (name, out) in enumerate(zip(names, outs, strict=True)):
        options = {**job.options, "modality": name, "layers": layers[n : n + 1]}
        steps.append(Step(inputs, replace(job, out=out, options=options)))
    if fusion:
        steps.append(Step(inputs, Fusion(tuple(outs), fusion, f"{job.out.rstrip('/')}/{fusion}")))
    return steps


def follow(
    plan: Sequence[Step],
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run the steps in order and return their stores.

    Reports the outcome of each step through `say`. Several processes share the encoding
    (`extract`); `mesh` then holds the devices of this process.

    Raises:
      InputError: two steps that would write one store, or an error of `extract` or `fuse`.
    """
    jobs: dict[str, Job | Fusion] = {}
    for step in plan:
        if jobs.setdefault(step.job.out, step.job) != step.job:
            raise InputError(f"two encoders would write {step.job.out}; give them different names")
    distributed.agree({f"step {n + 1}": describe(step.job) for n, step in enumerate(plan)})
    stores: list[str] = []
    for number, step in enumerate(plan):
        if len(plan) > 1:
            say(f"[{number + 1}/{len(plan)}] {describe(step.job)}")
        if isinstance(step.job, Fusion):
            say(str(distributed.run_on_primary(partial(_fuse, step.job, overwrite))))
            stores.append(step.job.out)
        else:
            summary = extract(step.inputs, step.job, mesh=mesh, overwrite=overwrite)
            say(str(summary))
            stores += summary.stores
    return stores


def _fuse(job: Fusion, overwrite: bool) -> str:
    fused = fuse(job.sources, job.how, job.out, overwrite=overwrite)
    return f"{fused.url}: {fused.shape[0]} items x {fused.shape[1]}"


def describe(job: Job | Fusion) -> str:
    """Describe a step in one line."""
    if isinstance(job, Fusion):
        return f"{job.how} of {' and '.join(job.sources)}"
    options = {key: value for key, value in job.options.items() if value not in (None, ())}
    text = " ".join(f"{key}={_plain(value)}" for key, value in options.items())
    return f"{job.encoder} {text} -> {job.out}"


def check_modality(name: str | None) -> str | None:
    """Check the name of a modality and return it.

    The names are those of the literature.

    Raises:
      InputError: an unknown name.
    """
    names = (*MODALITIES, "visual_textual", "image_text")
    if name is not None and name not in names:
        raise InputError(f"modality {name!r} is none of {', '.join(names)}")
    return name


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
