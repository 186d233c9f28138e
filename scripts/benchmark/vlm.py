"""Measure vision-language models: ours and transformers' on one checkpoint.

  prefill  a batch of prompts with images of one shape: prefill only
  mixed    prompts with images of many shapes in the order they come: prefill only; ours uses
           buckets and reads the shared prefix once, torch pads each batch on the left
  decode   a batch of answers of exactly `--answer` tokens, the prefill of their prompts left out

The checkpoint has random weights of a published shape, or of the small one for CPUs.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmark.timing import median, timed
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.core import Tower, place
from mmjax.encoders.towers import qwen2_vl
from mmjax.encoders.vlm import batching, generation

VOCABULARY = {"2b": 151_936, "7b": 152_064}
SHAPES = {  # (decoder, vision)
    "100m": (
        dict(hidden_size=512, intermediate_size=2816, layers=12, heads=8, keys=2, tied=True),
        dict(depth=6, embed_dim=512, num_heads=8),
    ),
    "2b": (
        dict(hidden_size=1536, intermediate_size=8960, layers=28, heads=12, keys=2, tied=True),
        dict(depth=32, embed_dim=1280, num_heads=16),
    ),
    "7b": (
        dict(hidden_size=3584, intermediate_size=18_944, layers=28, heads=28, keys=4, tied=False),
        dict(depth=32, embed_dim=1280, num_heads=16),
    ),
}
PROMPT = Path(__file__).resolve().parents[2] / "configs/prompts/baby.txt"
PEAK = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}
ONE_SHAPE = (224, 224)


def checkpoint(name: str, folder: Path, dtype: str) -> Path:
    """Write a random Qwen2-VL with transformers, unless it exists.

    It has the nano LVLM's tokenizer.

    Returns:
      The checkpoint's folder.
    """
    out = folder / name
    if out.exists():
        return out
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text, vision = SHAPES[name]
    nano = hub.find("nano-lvlm").folder
    ids = json.loads((nano / "config.json").read_text())
    half = text["hidden_size"] // text["heads"] // 2
    sections = [half // 4, half * 3 // 8, half * 3 // 8]
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=VOCABULARY.get(name, 32_768),
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            num_key_value_heads=text["keys"],
            max_position_embeddings=32_768,
            rope_parameters={"rope_type": "default", "mrope_section": sections},
            tie_word_embeddings=text["tied"],
            bos_token_id=ids["bos_token_id"],
            eos_token_id=ids["eos_token_id"],
        ),
        vision_config={**vision, "hidden_size": text["hidden_size"]},
        tie_word_embeddings=text["tied"],
        **{key: ids[key] for key in ids if key.endswith("token_id") and "os_" not in key},
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    model = Qwen2VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    # No token may end an answer: the benchmark sets its length. Id -1 is never the likeliest.
    model.generation_config.eos_token_id = None
    staging = folder / f".{name}"
    model.save_pretrained(staging)
    for path in (*nano.glob("token*"), nano / "chat_template.jinja"):
        shutil.copy(path, staging)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136}
    (staging / "preprocessor_config.json").write_text(
        json.dumps(processor | {"max_pixels": 28 * 28 * 256})
    )
    (staging / "generation_config.json").write_text(json.dumps({"eos_token_id": [-1]}))
    text = PROMPT.read_text().strip()
    (staging / "first.txt").write_text(text)
    (staging / "behind.txt").write_text(text.replace("{image}", "") + "{image}")
    staging.rename(out)
    return out


def pictures(folder: Path, count: int, *, mixed: bool) -> list[str]:
    """Write pictures of noise and return their paths.

    They have one shape, or, if `mixed`, a random shape each.
    """
    rng = np.random.default_rng(0)
    out = folder / f"{'mixed' if mixed else 'alike'}-{count}"
    out.mkdir(exist_ok=True)
    paths = [str(out / f"{n:04d}.png") for n in range(count)]
    for path in paths:
        shape = rng.integers(60, 420, 2) if mixed else ONE_SHAPE
        if not Path(path).exists():
            pixels = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return paths


def of_mmjax(
    weights: Path, paths: dict[str, list[str]], batch: int, repeats: int, answer: int, dtype: str
) -> tuple[dict, dict[str, np.ndarray]]:
    """Measure our prefill, decoding and compile time.

    Building the batches is the host's work and left out, on both sides.

    Returns:
      A row with images/s of prefill, tokens/s of decoding and compile seconds; and each task's last
      states [N, D] for comparison.
    """
    row, states, times = {}, {}, {}

    def load(prompt: str, pooling: str) -> tuple[Tower, Any]:
        tower = qwen2_vl.load(
            weights=str(weights),
            prompt=str(weights / prompt),
            pooling=pooling,
            dtype=dtype,
            answers=generation.GenerationOptions(max_new_tokens=answer),
        )
        return tower, jax.block_until_ready(place(tower.params, None))

    for task, prompt in (("prefill", "first.txt"), ("mixed", "behind.txt")):
        tower, params = load(prompt, "last_prompt")
        made = list(tower.batches(paths[task], batch))
        states[task] = np.zeros((len(paths[task]), *tower.layers.values()), np.float32)

        def call(tower=tower, params=params, made=made, found=states[task]):
            for rows, (values,) in tower.stream(iter(made), tower.encode, params):
                found[rows] = values

        times[f"{task}_s"], row[f"{task}_compile_s"] = warmed(call, repeats)
        row[f"{task}_images_s"] = len(paths[task]) / median(times[f"{task}_s"])
    tower, params = load("first.txt", "eos")
    made = list(tower.batches(paths["prefill"], batch))
    steps = tower.stream.args[0]
    prepared, line = steps.prepare(params), np.zeros(batch, np.int32)

    def speak():
        for slots in batching.run(steps, iter(made), prepared, None):
            jax.block_until_ready(slots.end)

    def read():
        for part in made:
            jax.block_until_ready(steps.read(prepared, *part.arrays, line))

    times["answer_s"], row["decode_compile_s"] = warmed(speak, repeats)
    seconds = median(times["answer_s"]) - median(warmed(read, repeats)[0])
    row["decode_tokens_s"] = len(paths["prefill"]) * answer / seconds
    return row | {"times": times}, states


def warmed(call, repeats: int) -> tuple[list[float], float]:
    """Time repeated calls after a first one.

    Returns:
      Seconds of the calls, and by how much the first one took longer.
    """
    begin = time.perf_counter()
    call()
    first = time.perf_counter() - begin
    times = timed(call, repeats)
    return times, first - median(times)


def of_torch(
    weights: Path, paths: dict[str, list[str]], batch: int, repeats: int, answer: int, dtype: str
) -> tuple[dict, dict[str, np.ndarray]]:
    """Measure the same of transformers' model.

    It uses scaled-dot-product attention. The row also counts the tokens of the prompts.
    """
    import torch
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    model = Qwen2VLForConditionalGeneration.from_pretrained(weights, **kinds).eval().to(device)
    tokenizer = hub.tokenizer(weights)
    tokenizer.padding_side = "left"
    processor = Qwen2VLImageProcessorPil.from_pretrained(weights)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    row, states, times = {}, {}, {}

    def batches(given, prompt):
        text = (weights / prompt).read_text()
        for start in range(0, len(given), batch):
            chunk = given[start : start + batch]
            vision_inputs = processor([Image.open(path) for path in chunk], return_tensors="pt")
            prompts = []
            for grid in vision_inputs["image_grid_thw"]:
                shown = "<|image_pad|>" * (int(grid.prod()) // 4)
                shown = text.replace("{image}", f"<|vision_start|>{shown}<|vision_end|>")
                chat = [{"role": "user", "content": shown}]
                prompts.append(
                    tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
                )
            made = tokenizer(prompts, return_tensors="pt", padding=True)
            kinds = {"mm_token_type_ids": (made["input_ids"] == image).int()}
            found = {**made, **kinds, **vision_inputs}
            found.pop("token_type_ids", None)
            found["pixel_values"] = found["pixel_values"].to(model.dtype)
            yield {key: value.to(device) for key, value in found.items()}

    for task, prompt in (("prefill", "first.txt"), ("mixed", "behind.txt")):
        made = list(batches(paths[task], prompt))
        width = model.config.text_config.hidden_size
        states[task] = np.zeros((len(paths[task]), width), np.float32)

        def call(made=made, found=states[task]):
            for number, part in enumerate(made):
                last = model.model(**part).last_hidden_state[:, -1]
                found[number * batch : number * batch + len(last)] = last.float().cpu().numpy()

        with torch.no_grad():
            times[f"{task}_s"] = warmed(call, repeats)[0]
        row[f"{task}_images_s"] = len(paths[task]) / median(times[f"{task}_s"])
        row[f"{task}_tokens"] = sum(int(part["attention_mask"].sum()) for part in made)
    made = list(batches(paths["prefill"], "first.txt"))

    def speak(count: int):
        fixed = {"max_new_tokens": count, "min_new_tokens": count, "eos_token_id": None}
        for part in made:
            model.generate(**part, **fixed, do_sample=False, pad_token_id=0)

    with torch.no_grad():
        times["answer_s"] = warmed(lambda: speak(answer + 1), repeats)[0]
        seconds = median(times["answer_s"]) - median(warmed(lambda: speak(1), repeats)[0])
    row["decode_tokens_s"] = len(paths["prefill"]) * answer / seconds
    return row | {"times": times}, states


def flops_a_token(name: str) -> float:
    """Return the FLOPs of the decoder's weights for one token.

    Multiplications and additions both count; attention is left out.
    """
    text, _ = SHAPES[name]
    width = text["hidden_size"]
    keys = width // text["heads"] * text["keys"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * text["intermediate_size"]
    return 2.0 * text["layers"] * layer


def finish(name: str, rows: list[dict], batch: int, mixed: int) -> None:
    """Add tokens/s and FLOP/s to both sides' rows.

    The token counts are in torch's row.
    """
    peak = PEAK.get(jax.devices()[0].device_kind)
    for row in rows:
        for task, count in (("prefill", batch), ("mixed", mixed)):
            tokens_an_image = rows[1][f"{task}_tokens"] / count
            row[f"{task}_tokens_s"] = row[f"{task}_images_s"] * tokens_an_image
        row["prefill_tflops"] = row["prefill_tokens_s"] * flops_a_token(name) / 1e12
        if peak:
            row["prefill_peak_share"] = row["prefill_tflops"] * 1e12 / peak
