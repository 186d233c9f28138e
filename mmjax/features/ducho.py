"""Plans of mmjax from Ducho configurations (YAML).

Options of a configuration that have no meaning here are listed as ignored. Every model of every
modality and source becomes a step; its stores have the paths of Ducho's folders of arrays,
`<dataset_path>/<output_path>/<backend>/<model>/<layer>`, except for the layers' names. Where Ducho
and mmjax differ, and why:

* images and texts of `visual_textual` are paired by their ids, not by their sorted positions;
* `last_hidden_state` and numbered layers become one vector an item: the mean over the tokens;
* torchvision's ResNets are read from their copies on the Hugging Face hub; Keras' EfficientNets
  are Google's there; any other model of torchvision runs through `--backend=torch`;
* `audio` runs (Ducho 2.0 skips it: its list of extractions lacks the word), mixed to one channel;
  samples are normalised where torchaudio's bundle does it, and raw for transformers, as Ducho's.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.features.extraction import inputs
from mmjax.features.extraction.inputs import Inputs
from mmjax.features.extraction.job import Job
from mmjax.features.extraction.plan import ExtractionPlan, Step, steps_of

# Names of libraries that carry weights of their own -> the same weights on the Hugging Face hub.
COPIES = {
    ("torch", "resnet18"): ("resnet", "timm/resnet18.tv_in1k"),
    ("torch", "resnet50"): ("resnet", "timm/resnet50.tv2_in1k"),
    ("torch", "resnet152"): ("resnet", "timm/resnet152.tv2_in1k"),
    ("torch", "wav2vec2_base"): ("wav2vec2", "facebook/wav2vec2-base"),
    ("torch", "wav2vec2_large"): ("wav2vec2", "facebook/wav2vec2-large"),
    ("torch", "wav2vec2_asr_base_960h"): ("wav2vec2", "facebook/wav2vec2-base-960h"),
    ("torch", "hubert_base"): ("wav2vec2", "facebook/hubert-base-ls960"),
    ("torch", "hubert_large"): ("wav2vec2", "facebook/hubert-large-ll60k"),
    **{
        ("tensorflow", f"efficientnetb{n}"): ("efficientnet", f"google/efficientnet-b{n}")
        for n in range(8)
    },
}
RESNET_LAYERS = {
    "",
    "avgpool",
    "layer1",
    "layer2",
    "layer3",
    "layer4",
    "fc",
}  # of mmjax's own tower
MODALITIES = ("visual", "textual", "audio", "visual_textual")
SOURCES = ("items", "interactions")
DEVICES = ("gpu list", "gpu_list", "gpu")
SOURCE_KEYS = {"input_path", "output_path", "model", "item_column", "text_column"}
SOURCE_KEYS |= {"interaction_columns", "interaction_column"}
MODEL_KEYS = {"model_name", "name", "output_layers", "backend", "framework", "batch_size"}
MODEL_KEYS |= {"reshape", "preprocessing", "mean", "std", "clear_text", "tokenizer_name"}
MODEL_KEYS |= {"image_processor", "image_processor_name", "fusion"}
DEFAULT_BACKEND = {"visual": "torch", "textual": "transformers", "audio": "torch"}


def read(path: str | Path, changes: Sequence[str] = (), dtype: str = "float32") -> ExtractionPlan:
    """Read a configuration file into a plan.

    Relative paths start at `dataset_path`, as in Ducho; that itself starts where the command runs.

    Args:
      path: the YAML file.
      changes: `a.b.c=value` each, as on Ducho's command line.
      dtype: of the stores.

    Raises:
      InputError: no such file, not a Ducho configuration, or a model that mmjax cannot run.
    """
    config = _load(Path(path))
    for change in changes:
        _change(config, change)
    ignored = [f"{key} (the mesh says which devices)" for key in DEVICES if key in config]
    known = {*MODALITIES, *DEVICES, "dataset_path"}
    ignored += [key for key in config if key not in known]
    root = Path(config.get("dataset_path") or ".")
    steps: list[Step] = []
    for modality in MODALITIES:
        for source, section in (config.get(modality) or {}).items():
            where = f"{modality}.{source}"
            if source not in SOURCES:
                ignored.append(where)
                continue
            if not isinstance(section, dict) or not isinstance(section.get("model"), list):
                raise InputError(f"{path}: {where} needs input_path, output_path and a model list")
            ignored += [f"{where}.{key}" for key in section if key not in SOURCE_KEYS]
            if isinstance(section.get("output_path"), dict):
                ignored.append(f"{where}.output_path.textual (both stores go below the visual one)")
            rows = _inputs(root, modality, section, where)
            for model in section["model"]:
                ignored += [f"{where}.model.{key}" for key in model if key not in MODEL_KEYS]
                steps += _steps(rows, root, modality, section, model, dtype)
    if not steps:
        raise InputError(f"{path} asks for no extraction; it has {', '.join(config) or 'nothing'}")
    return ExtractionPlan(steps, ignored)


def _load(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; give a Ducho configuration") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is no Ducho configuration: it should be a mapping")
    return config


def _change(config: dict[str, Any], change: str) -> None:
    keys, separator, value = change.partition("=")
    node: Any = config
    *parents, last = keys.split(".")
    for key in parents:
        node = node.get(key) if isinstance(node, dict) else None
    if not separator or not isinstance(node, dict):
        raise InputError(f"{change!r} changes nothing; give KEY.KEY=VALUE of the configuration")
    node[last] = yaml.safe_load(value)


def _inputs(root: Path, modality: str, about: dict[str, Any], where: str) -> Inputs:
    """Return the rows that a modality's source names."""
    path = about.get("input_path")
    if modality == "visual_textual":
        if not isinstance(path, dict) or not {"visual", "textual"} <= set(path):
            raise InputError(f"{where}.input_path needs visual and textual")
        pictures = inputs.of_files(root / path["visual"], "image")
        return inputs.join(pictures, _table(root / path["textual"], about, where))
    if not isinstance(path, str):
        raise InputError(f"{where}.input_path is missing")
    if modality == "textual":
        return _table(root / path, about, where)
    return inputs.of_files(root / path, {"visual": "image", "audio": "audio"}[modality])


def _table(path: Path, about: dict[str, Any], where: str) -> Inputs:
    keys = about.get("interaction_columns") or about.get("item_column")
    keys = [keys] if isinstance(keys, str) else keys
    if not keys or not about.get("text_column"):
        raise InputError(
            f"{where} needs text_column, and item_column or interaction_columns: the columns of "
            f"{path} that hold them"
        )
    return inputs.of_table(path, keys, about["text_column"])


def _steps(
    rows: Inputs,
    root: Path,
    modality: str,
    about: dict[str, Any],
    model: dict[str, Any],
    dtype: str,
) -> Iterator[Step]:
    name = model.get("model_name") or model.get("name")
    if not name:
        raise InputError(f"a model of {modality} has no model_name")
    backend = model.get("backend") or model.get("framework")
    backend = backend or ("transformers" if "/" in name else DEFAULT_BACKEND.get(modality, ""))
    if modality == "visual_textual":
        backend = "transformers"
    out = about.get("output_path") or "."
    out = out["visual"] if isinstance(out, dict) else out
    label = name if modality == "textual" else Path(name).name
    layers = model.get("output_layers", "")
    layers = [_layer(name, backend, modality) for name in _list(layers)]
    encoder, weights, extra = _encoder(name, backend, modality, layers, root)
    options = {
        "weights": weights,
        "layers": tuple(filter(None, dict.fromkeys(layers))),
        "modality": modality if modality == "visual_textual" else None,
        "image_processor": model.get("image_processor_name") or model.get("image_processor"),
        "tokenizer": model.get("tokenizer_name"),
        "clean": True if model.get("clear_text") else None,
        **extra,
        **(_pixels(model, backend) if "visual" in modality else {}),
    }
    if modality == "audio":
        options["normalize_samples"] = name.lower() == "hubert_large"
    batch = max(32, int(model.get("batch_size") or 1))  # Ducho's default is only 1
    folder = str(root / out / backend / label)
    job = Job(encoder, folder, options, batch=batch, dtype=dtype, by_layer=True)
    yield from steps_of(rows, job, model.get("fusion"))


def _encoder(
    name: str, backend: str, modality: str, layers: Sequence[str], root: Path
) -> tuple[str, str, dict[str, Any]]:
    """Return encoder, weights and further options of a Ducho model."""
    copy = COPIES.get((backend, name.lower()))
    if copy and (copy[0] != "resnet" or set(layers) <= RESNET_LAYERS):
        return *copy, {}
    if name.endswith((".pt", ".pth")):
        weights = next((str(path) for path in (Path(name), root / name) if path.exists()), name)
        return "resnet", weights, {}
    if backend == "tensorflow":
        raise InputError(
            f"{name} of Keras is not run; of Keras' models mmjax has EfficientNetB0 to B7, and "
            "others as copies for PyTorch (backend: torch); change or remove it"
        )
    if backend == "torch" and modality == "audio":
        known = ", ".join(key for kind, key in COPIES if kind == "torch" and "resnet" not in key)
        raise InputError(f"{name} is not run; of torchaudio's bundles mmjax has {known}")
    if backend == "torch":
        return "hosted", name.lower(), {"kind": "torchvision"}
    found = name in hub.PACKAGED or "/" in name or Path(name).is_dir()
    if backend == "sentence_transformers" and not found:
        name = f"sentence-transformers/{name}"  # as that library does
    return "auto", name, {}


def _layer(layer: Any, backend: str, modality: str) -> str:
    """Return mmjax's name of a layer; "" is the encoder's default."""
    text = str(layer)
    if modality == "visual_textual":
        # Numbers are the embeddings; `vision_model_output.pooler_output` is a tower's own output.
        match = re.fullmatch(r"(?:vision|text)_model_output\.(.+)", text)
        return match[1] if match else ("" if text.isdigit() or not text else text.lower())
    if backend == "sentence_transformers":
        return "sentence_embedding"
    if modality == "textual" and not text:
        return "pooler_output"
    if text in ("avg_pool", "flatten"):  # Keras' name, and the same numbers in one row
        return "pooler_output" if backend == "tensorflow" else "avgpool"
    return text.lower() if backend == "transformers" else text


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _pixels(model: dict[str, Any], backend: str) -> dict[str, Any]:
    """Return the image options of a model.

    Ducho resizes to 224 x 224 by default, without keeping the aspect ratio; a model of transformers
    brings its own processor.
    """
    shape = model.get("reshape")
    if backend != "transformers":
        shape = shape or (224, 224)
    preprocessing = model.get("preprocessing") or (None if backend == "transformers" else "none")
    return {
        "reshape": tuple(shape)[::-1] if shape else None,  # Ducho gives Pillow's (width, height)
        "preprocessing": preprocessing,
        "mean": tuple(model["mean"]) if model.get("mean") else None,
        "std": tuple(model["std"]) if model.get("std") else None,
    }
