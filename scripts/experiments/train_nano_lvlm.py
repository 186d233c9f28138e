r"""Train the nano LVLM of mmjax, a small Qwen2-VL.

It has a million parameters. It learns to fill in the blanks of configs/prompts/world.txt from the
world generator's pictures, and is saved as Hugging Face saves a Qwen2-VL, so that the code that
loads the 7B loads it:

  python scripts/experiments/train_nano_lvlm.py --out=FOLDER
  python scripts/extract.py --dataset=WORLD --encoder=qwen2_vl --weights=FOLDER \
      --prompt=configs/prompts/world.txt --out=STORE

The committed one is `--out=mmjax/encoders/nano --overwrite`. Same seed, machine and versions, same
weights.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of scripts/

from _app import run
from _nano import VISION, WINDOW, checkpoint, model, tokenizer_of

from mmjax.core import files, storage
from mmjax.core.progress import Progress
from mmjax.data.synthetic import drawing, world
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs.pixels import BICUBIC
from mmjax.encoders.registry import load_encoder
from mmjax.encoders.vlm import lvlm, prompts, qwen_tower, qwen_vl

FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "Folder of the checkpoint.", required=True)
flags.DEFINE_string("prompt", "configs/prompts/world.txt", "What it learns to answer.")
flags.DEFINE_integer("seed", 0, "Of pictures, order and initial weights.")
flags.DEFINE_integer("pictures", 12_288, "Drawn to learn from.")
flags.DEFINE_integer("unseen", 1_000, "Drawn to check with.")
flags.DEFINE_integer("steps", 1_300, "Of training.")
flags.DEFINE_integer("batch", 64, "Pictures a step.")
flags.DEFINE_float("lr", 2e-3, "Largest learning rate.")
flags.DEFINE_bool("overwrite", False, "Replace the folder.")

LABELS = ("Category", "Colour", "Material", "Pattern", "Style")


def main() -> None:
    begin = time.perf_counter()
    asked = prompts.read(FLAGS.prompt)
    answers = dict(zip(LABELS, world.WORDS.values(), strict=True))
    tokenizer = tokenizer_of(
        [
            "user\nassistant",
            asked,
            *(f"}}, [{k}] {{{w}}}, [" for k, v in answers.items() for w in v),
        ]
    )
    module = model(len(tokenizer), FLAGS.seed)
    graph, state = nnx.split(module)
    params = nnx.to_pure_dict(state)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{size:,} parameters, {len(tokenizer)} tokens")

    teach = Lessons(tokenizer, asked)
    codes = draw_codes(FLAGS.pictures, FLAGS.seed)
    views = [teach.view(pixels) for pixels in draw(codes, FLAGS.seed)]
    schedule = optax.warmup_cosine_decay_schedule(
        0, FLAGS.lr, min(100, FLAGS.steps // 4), FLAGS.steps
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )

    def loss(params, batch, target):
        states, _, _ = lvlm.read(hub.merge(graph, params), batch, lambda x: ())
        logits = hub.merge(graph, params).decoder.logits(states)
        taught = target >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target, 0))
        return jnp.where(taught, losses, 0).sum() / taught.sum()

    @jax.jit
    def step(params, moments, batch, target):
        value, gradient = jax.value_and_grad(loss)(params, batch, target)
        change, moments = optimiser.update(gradient, moments, params)
        return optax.apply_updates(params, change), moments, value

    moments = optimiser.init(params)
    rng = np.random.default_rng([FLAGS.seed, 1])
    with Progress("train", FLAGS.steps, unit="step") as progress:
        for rows in batches(rng, FLAGS.pictures):
            batch, target = teach(codes[rows], [views[row] for row in rows])
            params, moments, value = step(params, moments, batch, target)
            progress.add(1, f"loss {float(value):.3f}")
            if progress.done == FLAGS.steps:
                break

    with files.atomic_folder(storage.local(FLAGS.out), overwrite=FLAGS.overwrite) as folder:
        checkpoint(folder, params, module, tokenizer)
        record = check(folder)
        record |= {"seconds": round(time.perf_counter() - begin), "seed": FLAGS.seed}
        record |= {"steps": FLAGS.steps, "parameters": size, "pictures": FLAGS.pictures}
        files.write_json(folder / "training.json", record)
    print(json.dumps(record, indent=2))


def draw_codes(count: int, seed: int) -> np.ndarray:
    """Draw the attributes of `count` items, [N, 5]."""
    rng = np.random.default_rng([seed, 0])
    return np.stack([rng.integers(0, len(words), count) for words in world.WORDS.values()], 1)


def draw(codes: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield the pictures of items with these attributes."""
    with Progress("draw", len(codes)) as progress:
        for start in range(0, len(codes), drawing.BATCH):
            chunk = codes[start : start + drawing.BATCH]
            values = dict(zip(world.WORDS, chunk.T, strict=True))
            yield from drawing.draw(values, world.WORDS, drawing.hash_seed(seed, start))
            progress.add(len(chunk))


def batches(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Yield rows for batches, epoch after epoch."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - FLAGS.batch + 1, FLAGS.batch):
            yield order[start : start + FLAGS.batch]


class Lessons:
    """Maker of training rows, each a prompt and its answer.

    Only the answer is learned.
    """

    def __init__(self, tokenizer, asked: str):
        area = drawing.SIZE**2
        self.family = qwen_tower.family_of(
            tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            WINDOW,
            patch=VISION.patch_size,
            shortest=area,
            longest=area,
            resample=BICUBIC,
        )
        self.made = prompts.template(tokenizer, asked, self.family, Path("the nano LVLM"))
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.tokenizer = tokenizer

    def view(self, pixels: np.ndarray) -> qwen_vl.Patches:
        return self.family.view(Image.fromarray(pixels))

    def __call__(self, codes: np.ndarray, views: list) -> tuple[lvlm.Prompts, np.ndarray]:
        """Build a batch and its target tokens.

        The target of a token is the one that should follow it; -1 where it is not learned.
        """
        answer_ids = self.tokenizer([spell(row) for row in codes], add_special_tokens=False)[
            "input_ids"
        ]
        rows, begins = [], []
        for index, (answer, view) in enumerate(zip(answer_ids, views, strict=True)):
            shape = self.family.shape(view)
            ids, (before, behind) = self.made.fill({}, shape[0] * shape[1])
            begins.append(len(self.made.prefix) + len(ids))
            ids = np.concatenate([self.made.prefix, ids, answer, [self.end]]).astype(np.int32)
            before, behind = before + len(self.made.prefix), behind + len(answer) + 1
            positions = qwen_vl.positions([before, shape, behind])
            rows.append(prompts.PromptRow(index, ids, positions, view, shape[0] * shape[1]))
        (batch,) = prompts.stack(self.made, rows, len(rows))
        target = np.full(batch.ids.shape, -1, np.int32)
        for line, row, begin in zip(target, rows, begins, strict=True):
            line[begin - 1 : len(row.ids) - 1] = row.ids[begin:]
        return batch, target


def spell(codes: np.ndarray) -> str:
    """Return the answer that the prompt asks for."""
    words = (words[code] for words, code in zip(world.WORDS.values(), codes, strict=True))
    return ", ".join(f"[{label}] {{{word}}}" for label, word in zip(LABELS, words, strict=True))


def check(folder: Path) -> dict:
    """Return the share of right slots of unseen items.

    They pass through the loader and the decoding of any LVLM.
    """
    codes = draw_codes(FLAGS.unseen, FLAGS.seed + 1)
    texts = [""] * len(codes)
    options = {"weights": str(folder), "prompt": FLAGS.prompt, "max_new_tokens": 48}
    tower = load_encoder("qwen2_vl", options)
    with tempfile.TemporaryDirectory() as picture_folder:
        names = [f"{n}.jpg" for n in range(len(codes))]
        values = dict(zip(world.WORDS, codes.T, strict=True))
        drawing.write_pictures(values, world.WORDS, FLAGS.seed + 1, Path(picture_folder), names)
        batches = tower.batches([f"{picture_folder}/{name}" for name in names], FLAGS.batch)
        for rows, (*_, answers) in tower.stream(batches, tower.encode, tower.params):
            for row, answer in zip(rows.tolist(), answers, strict=True):
                texts[row] = answer.text
    right = np.zeros((len(codes), len(LABELS)), bool)
    for row, text, line in zip(codes, texts, right, strict=True):
        slots = text.split(", ")[: len(LABELS)]
        line[: len(slots)] = [a == b for a, b in zip(slots, spell(row).split(", "), strict=False)]
    return {
        "slot_accuracy": round(float(right.mean()), 4),
        "slots": dict(zip(LABELS, right.mean(axis=0).round(4).tolist(), strict=True)),
        "all_slots": round(float(right.all(axis=1).mean()), 4),
        "unseen": len(codes),
    }


if __name__ == "__main__":
    run(main)
