"""Modules for the torch backend from transformers and sentence-transformers, and what all share."""

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
WINDOW = 512  # tokens, of models that do not say

Run = Callable[[dict[str, Any], bool], Any]


class Request(NamedTuple):
    """What the user asks for; `backend.load` says what the names mean."""

    weights: str
    revision: str | None
    modality: str | None
    architecture: str | None
    dtype: Any  # torch.dtype
    trust: bool


class Model(NamedTuple):
    """A torch module and what must be known to feed it."""

    module: Any  # torch.nn.Module
    run: Run  # (tensors by transformers' names, hidden states too?) -> what the module returns
    modality: str
    revision: str
    folder: Path | None = None  # where files of a tokenizer or a processor may lie
    defaults: tuple[str, ...] = ("output",)  # the first that there is, if no layer is asked for
    pixels: Pixels | None = None  # where there is no preprocessor_config.json
    window: int = WINDOW
    pools: bool = False  # it makes one vector of a text by itself
    prompt: str = ""  # put before each text
    prefix: str = ""  # with which outputs may be asked for


def transformers(request: Request) -> Model:
    """Any architecture that AutoModel knows, or another class of transformers by its name.

    Raises:
      InputError: no such checkpoint or class, or a checkpoint that leaves parameters at random.
    """
    checkpoint = hub.find(request.weights, request.revision)
    if checkpoint.weights.is_file():
        raise InputError(f"{checkpoint.weights} is a file; name the folder with its config.json")
    loader = getattr(library("transformers"), request.architecture or "AutoModel", None)
    if not hasattr(loader, "from_pretrained"):
        raise InputError(f"transformers has no model class {request.architecture!r}")
    source, commit = _source(request, checkpoint)

    def attempt(**options: Any) -> tuple[Any, list[str]]:
        with reported(f"{request.weights} cannot be loaded by transformers"), _quiet():
            module, about = loader.from_pretrained(
                source,
                revision=commit or "main",
                dtype=request.dtype,
                trust_remote_code=request.trust,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
                **options,
            )
        wrong = [name for name, *_ in about["mismatched_keys"]]
        return module, sorted({*about["missing_keys"], *wrong})

    module, lacking = attempt()
    if lacking and all("pooler." in name for name in lacking):
        # Checkpoints of other heads have none, and one drawn at random is worse than none.
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
    """A SentenceTransformer with all of its modules, also those that mmjax lacks.

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
    if Path(request.weights).is_dir():  # its modules keep their weights in folders of their own
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
    """A package of the extra `torch`.

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
    """Other people's code may raise anything: it becomes one sentence, and its cause is kept."""
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
    """The folder; but where code is trusted the hub id and its commit, for that code to be had."""
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
    """The longest text in tokens; RoBERTa and its kin count positions from their padding's on."""
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return part.num_embeddings - part.padding_idx - 1
    return getattr(module.config.get_text_config(), "max_position_embeddings", None) or WINDOW


def _also(states: bool) -> dict[str, bool]:
    return {"output_hidden_states": True} if states else {}


def _whole(module: Any) -> Run:
    return lambda inputs, states: module(**inputs, **_also(states))


def _half(module: Any, modality: str) -> Run:
    """One half of a dual encoder: what it returns itself, and its vector in the common space."""
    features = getattr(module, f"get_{modality}_features")
    half = getattr(module, f"{HALVES[modality]}_model", None)
    own: dict[str, Any] = {}

    def keep(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, Mapping):
            own.update(output)  # at once: some then put the common vector in pooler_output's place

    if half is not None:
        half.register_forward_hook(keep)

    def run(inputs: dict[str, Any], states: bool) -> dict[str, Any]:
        own.clear()
        result = features(**inputs, **_also(states))
        if isinstance(result, Mapping):
            return {**(own or result), f"{modality}_embeds": result.pooler_output}
        return {**own, f"{modality}_embeds": result}

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its report of unused weights, which are checked here."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
