"""Measure encoders: items/s of ours and PyTorch's on one checkpoint.

The checkpoints have the published shapes and, except for MiniLM's, random weights: speed does not
depend on them, and nothing need be downloaded. They are made by transformers' torch classes, so
both sides read the same file. The vectors of the sides are compared after the timing.
"""

import csv
import itertools
import shutil
import time
from pathlib import Path

import jax
import numpy as np

from benchmark.timing import median, timed
from mmjax import store
from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.core import Clock, stream
from mmjax.encoders.inputs import images, pixels
from mmjax.encoders.registry import load_encoder
from mmjax.parallel import mesh as meshes

# name -> (our encoder, its options, transformers' class and config)
TEXTS = {
    "minilm": ("bert", {}, None),
    "mpnet": (
        "mpnet",
        {},
        (
            "MPNetModel",
            "MPNetConfig",
            {"vocab_size": 30527, "max_position_embeddings": 514},
        ),
    ),
}
IMAGES = {
    "resnet50": ("resnet", {}, ("ResNetModel", "ResNetConfig", {})),
    "vit": ("vit", {}, ("ViTModel", "ViTConfig", {})),
    "clip": (
        "clip",
        {"modality": "image"},
        (
            "CLIPVisionModelWithProjection",
            "CLIPVisionConfig",
            {"patch_size": 16, "projection_dim": 512},
        ),
    ),
}
PROCESSORS = {
    "resnet50": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "clip": {"image_processor_type": "CLIPImageProcessor"},
}
PADDED = 128  # texts timed on the padded side, where every text costs the same


def inputs(name: str, folder: Path, texts: int, pictures: int) -> list[str]:
    """Return real plots or posters of the MovieLens folder.

    They are the same for every side.
    """
    if name in TEXTS:
        with open(folder / "items.csv", encoding="utf-8", newline="") as lines:
            overviews = [row["overview"] for row in csv.DictReader(lines) if row["overview"]]
        return list(itertools.islice(itertools.cycle(overviews), texts))
    paths = sorted((folder / "posters").glob("*.jpg"), key=lambda path: int(path.stem))
    if len(paths) < pictures:
        raise InputError(f"{folder}/posters holds {len(paths)} images, not {pictures}")
    return [str(path) for path in paths[:pictures]]


def checkpoint(name: str, folder: Path) -> str:
    """Return the checkpoint's folder, made if it is missing.

    MiniLM's comes from a package, whose name is returned.
    """
    _, _, recipe = {**TEXTS, **IMAGES}[name]
    if recipe is None:
        return "all-MiniLM-L6-v2"
    target = folder / name
    if target.exists():
        return str(target)
    import json

    import torch
    import transformers

    torch.manual_seed(0)
    kind, config, changes = recipe
    model = getattr(transformers, kind)(getattr(transformers, config)(**changes)).eval()
    with torch.no_grad():
        # Variances as after training, so that values keep their scale.
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_var.fill_(2.0)
    staging = folder / f".{name}"
    model.save_pretrained(staging)
    if name in PROCESSORS:
        (staging / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    else:
        for path in Path(hub.find("all-MiniLM-L6-v2").folder).glob("*token*"):
            shutil.copy(path, staging)
        shutil.copy(Path(hub.find("all-MiniLM-L6-v2").folder) / "vocab.txt", staging)
    staging.rename(target)
    return str(target)


def of_mmjax(name: str, weights: str, given: list[str], batch: int, repeats: int, out: Path):
    """Measure items/s of our pipeline and its stages.

    Compilation is left out.

    Returns:
      The vectors [N, D], and the row of numbers.
    """
    encoder, options, _ = {**TEXTS, **IMAGES}[name]
    tower = load_encoder(encoder, {"weights": weights, "dtype": "float32", **options})
    sharding = meshes.rows(meshes.make("data=1"))
    params = jax.device_put(tower.params, jax.devices()[0])
    vectors = np.zeros((len(given), *tower.layers.values()), np.float32)

    def whole(clock=None):
        batches = tower.batches(given, batch)
        for rows, (values,) in stream(
            batches, tower.encode, params, sharding, clock=clock or Clock()
        ):
            vectors[rows] = values

    begin = time.perf_counter()
    whole()  # compiles every shape that these inputs need
    first = time.perf_counter() - begin
    clock = Clock()
    times = timed(lambda: whole(clock), repeats)
    seconds = median(times)
    stages = stages_of(name, tower, params, given, batch, vectors, out)
    return vectors, {
        "items_s": len(given) / seconds,
        "times": {"whole_s": times},
        "compile_s": first - seconds,
        "host_wait": clock.waited / repeats / seconds,
        "stages_ms": {key: 1e3 * value / len(given) for key, value in stages.items()},
    }


def stages_of(name, tower, params, given, batch, vectors, out) -> dict[str, float]:
    """Time each stage separately.

    All inputs pass one after the other, in one thread. Times are in seconds.
    """
    stages = {}
    if name in IMAGES:
        (decode_s,) = timed(lambda: [images.read(path, 10**9) for path in given], 1)
        (batches_s,) = timed(lambda: list(tower.batches(given, batch)), 1)
        stages |= {"decode": decode_s, "resize": max(0.0, batches_s - decode_s)}
    else:
        (stages["tokenise"],) = timed(lambda: list(tower.batches(given, batch)), 1)
    batches = list(tower.batches(given, batch))
    (stages["device"],) = timed(
        lambda: [jax.block_until_ready(tower.encode(params, *b.arrays)) for b in batches], 1
    )
    ids = [str(row) for row in range(len(given))]
    (stages["write"],) = timed(
        lambda: store.write_array(out / "store", vectors, item_ids=ids, overwrite=True), 1
    )
    return stages


def of_torch(name: str, weights: str, given: list[str], batch: int, repeats: int, padded: bool):
    """Measure items/s of a plain torch loop on the checkpoint.

    Texts are padded to the longest of their batch, taken in order, or (`padded`) to the tokenizer's
    limit, as Ducho's loop pads them.

    Returns:
      The vectors [N, D], and the row of numbers.
    """
    import torch
    import transformers

    if name in TEXTS:
        folder = hub.find(weights).folder
        tokenizer = hub.tokenizer(folder)
        model = transformers.AutoModel.from_pretrained(str(folder)).eval()
        limit = {"minilm": 256}.get(name, 512)
        if padded:
            given, limit = given[:PADDED], min(512, tokenizer.model_max_length)

        def encode(part):
            batch_inputs = tokenizer(
                part,
                truncation=True,
                max_length=limit,
                padding="max_length" if padded else True,
                return_tensors="pt",
            )
            batch_inputs.pop("token_type_ids", None)
            states = model(**batch_inputs).last_hidden_state
            mask = batch_inputs["attention_mask"][..., None]
            return (states * mask).sum(1) / mask.sum(1)
    else:
        kind = IMAGES[name][2][0]
        model = getattr(transformers, kind).from_pretrained(weights).eval()
        recipe = pixels.Pixels.read(Path(weights), pixels.ImageOptions())
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (recipe.mean, recipe.std))

        def encode(part):
            batch_inputs = np.stack([recipe.apply(images.read(path, 10**9)) for path in part])
            values = torch.from_numpy(batch_inputs).permute(0, 3, 1, 2).contiguous().float()
            output = model((values * recipe.scale - mean) / std)
            vectors = output.image_embeds if name == "clip" else output.pooler_output
            return vectors.flatten(1)

    vectors = []

    def whole():
        vectors.clear()
        with torch.no_grad():
            for start in range(0, len(given), batch):
                vectors.append(encode(given[start : start + batch]).numpy())

    whole()
    times = timed(whole, repeats)
    items_s = len(given) / median(times)
    return np.concatenate(vectors), {"items_s": items_s, "times": {"whole_s": times}}
