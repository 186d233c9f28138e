"""Load torch modules of transformers and sentence-transformers.

The types and helpers that all kinds of modules share are here, too.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.weights import SUFFIXES, digest
from mmjax.encoders.inputs.pixels import Pixels

INPUTS = {  # what models of transformers call their main input
    "pixel_values": "image",
    "input_ids": "text",
    "input_values": "audio",
    "input_features": "audio",
}
HALVES = {"image": "vision", "text": "text", "audio": "audio"}  # as dual encoders call them
WINDOW = 512  # tokens, for models that do not give a limit

Run = Callable[[dict[str, Any], bool], Any]


class Request(NamedTuple):
    """Torch model that the user asks for; `backend.load` explains the fields."""

    weights: str
    revision: str | None
    modality: str | None
    architecture: str | None
    dtype: Any  # torch.dtype
    trust: bool


class Model(NamedTuple):
    """Torch module and the facts needed to feed it."""

    module: Any  # torch.nn.Module
    run: Run  # (tensors by transformers' names, hidden states too?) -> what the module returns
    modality: str
    revision: str
    folder: Path | None = None  # where files of a tokenizer or a processor may lie
    # If no layer is asked for, the first of these that exists is used.
    defaults: tuple[str, ...] = ("output",)
    pixels: Pixels | None = None  # where there is no preprocessor_config.json
    window: int = WINDOW
    pools: bool = False  # the module itself makes one vector of a text
    prompt: str = ""  # put before each text
    prefix: str = ""  # outputs may be asked for with this prefix


def transformers(request: Request) -> Model:
    """Load an architecture of transformers.

    It is one that AutoModel knows, or another class of transformers by its name.

    Raises:
      InputError: no such checkpoint or class, or a checkpoint that leaves parameters at random.
    """
    checkpoint = hub.find(request.weights, request.revision)
    if checkpoint.weights.is_file():
        raise InputError(f"{checkpoint.weights} is a file; name the folder with its config.json")
    loader: Any = getattr(library("transformers"), request.architecture or "AutoModel", None)
    if not hasattr(loader, "from_pretrained"):
        raise InputError(f"transformers has no model class {request.architecture!r}")
    source, commit = _source(request, checkpoint)

    def attempt(**options: Any) -> tuple[Any, list[str]]:
        with reported(f"{request.weights} cannot be loaded by transformers"), _quiet():
            module, loading_info = loader.from_pretrained(
                source,
                revision=commit or "main",
                dtype=request.dtype,
                trust_remote_code=request.trust,
                ignore_mismatched_sizes=True,  # rejected below, by name
                output_loading_info=True,
                **options,
            )
        mismatched = [name for name, *_ in loading_info["mismatched_keys"]]
        return module, sorted({*loading_info["missing_keys"], *mismatched})

    module, lacking = attempt()
    if lacking and all("pooler." in name for name in lacking):
        # Checkpoints of other heads have no pooler, and a random one is worse than none.
        module, lacking = attempt(add_pooling_layer=False)
    if lacking:
        raise InputError(
            f"{request.weights} does not hold what {type(module).__name__} needs "
            f"({', '.join(lacking[:8])}); name the class that it was saved from as architecture"
        )
    modality = request.modality or _modality(module, request.weights)
    window = _window(module)
    if getattr(module.config, "is_encoder_decoder", False):
        module = module.get_encoder()
    dual = hasattr(module, f"get_{modality}_features")
    return Model(
        module,
        _half(module, modality) if dual else _whole(module),
        modality,
        checkpoint.revision,
        checkpoint.folder,
        (
            f"{modality}_embeds",
            "sentence_embedding",
            "pooler_output",
            "last_hidden_state",
            "output",
        ),
        window=window,
        prefix=f"{HALVES[modality]}_model_output." if dual else "",
    )


def sentence_transformers(request: Request) -> Model:
    """Load a SentenceTransformer with all of its modules.

    That includes modules that mmjax lacks.

    Raises:
      InputError: no such checkpoint, or the package is not installed.
    """
    checkpoint = hub.find(request.weights, request.revision)
    build = library("sentence_transformers").SentenceTransformer
    source, commit = _source(request, checkpoint)
    with reported(f"{request.weights} cannot be loaded by sentence-transformers"), _quiet():
        module = build(
            source,
            revision=commit,
            device="cpu",  # until it is moved
            trust_remote_code=request.trust,
            model_kwargs={"dtype": request.dtype},
        )
    revision = checkpoint.revision
    if Path(request.weights).is_dir():  # each of its modules has a folder of weights
        files = [path for path in checkpoint.folder.rglob("*") if path.suffix in SUFFIXES]
        revision = " ".join(digest(folder) for folder in sorted({path.parent for path in files}))
    return Model(
        module,
        lambda inputs, states: module(dict(inputs)),
        "text",
        revision,
        checkpoint.folder,
        ("sentence_embedding",),
        window=module.max_seq_length or WINDOW,
        pools=True,
        prompt=module.prompts.get(module.default_prompt_name) or "",
    )


def library(package: str) -> Any:
    """Import a package of the extra `torch`.

    Raises:
      InputError: it is not installed, or was compiled for another torch.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.replace("_", "-")
        raise InputError(f"{name} is not installed; pip install 'mmjax[torch]' has it") from None
    except (RuntimeError, OSError) as error:
        raise InputError(f"{package} does not fit the torch that is installed: {error}") from None


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn any exception of foreign code into one InputError.

    Foreign code may raise anything; the cause is kept.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(f"{what}: it brings code of its own, run only with trust") from error
        line = " ".join(str(error).split())[:300]
        raise InputError(f"{what}: {type(error).__name__}: {line}") from error


def _source(request: Request, checkpoint: hub.Checkpoint) -> tuple[str, str | None]:
    """Return the folder to load from, or hub id and commit.

    The latter is for trusted code, which transformers then downloads.
    """
    local = request.weights in hub.PACKAGED or Path(request.weights).exists()
    if request.trust and not local:
        return request.weights, checkpoint.revision
    return str(checkpoint.folder), None


def _modality(module: Any, weights: str) -> str:
    dual = [name for name in HALVES if hasattr(module, f"get_{name}_features")]
    if len(dual) > 1:
        raise InputError(f"{weights} encodes {' and '.join(dual)}; choose one by modality")
    if module.main_input_name not in INPUTS:
        raise InputError(f"{weights} reads {module.main_input_name}, which mmjax does not make")
    return INPUTS[module.main_input_name]


def _window(module: Any) -> int:
    """Return the longest text in tokens.

    RoBERTa and its kin count positions from their padding's on.
    """
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return part.num_embeddings - part.padding_idx - 1
    return getattr(module.config.get_text_config(), "max_position_embeddings", None) or WINDOW


def _also(states: bool) -> dict[str, bool]:
    return {"output_hidden_states": True} if states else {}


def _whole(module: Any) -> Run:
    return lambda inputs, states: module(**inputs, **_also(states))


def _half(module: Any, modality: str) -> Run:
    """Return a run of one half of a dual encoder.

    It gives what the half returns itself, and its vector in the common space.
    """
    features = getattr(module, f"get_{modality}_features")
    half = getattr(module, f"{HALVES[modality]}_model", None)
    half_outputs: dict[str, Any] = {}

    def keep(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, Mapping):
            # Copied now: some models then overwrite pooler_output with the common vector.
            half_outputs.update(output)

    if half is not None:
        half.register_forward_hook(keep)

    def run(inputs: dict[str, Any], states: bool) -> dict[str, Any]:
        half_outputs.clear()
        result = features(**inputs, **_also(states))
        named = isinstance(result, Mapping)  # transformers' ModelOutput
        if named:
            return {**(half_outputs or result), f"{modality}_embeds": result.pooler_output}
        return {**half_outputs, f"{modality}_embeds": result}

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and its report of unused weights.

    Unused weights are checked here.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
