"""The vision-language model that the package carries: small, in Hugging Face's format, right."""

from pathlib import Path

import numpy as np
import pytest
from support.speakers import ask

from mmjax.data.synthetic import drawing, world
from mmjax.encoders.checkpoints import hub, locate
from mmjax.encoders.towers import qwen2_vl
from mmjax.encoders.vlm import generation

PROMPT = Path(__file__).resolve().parents[2] / "configs/prompts/world.txt"
LABELS = ("Category", "Colour", "Material", "Pattern", "Style")
COUNT = 128


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Attributes that no seed of the training draws, and the pictures' paths."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(12345)
    values = {name: rng.integers(0, len(words), COUNT) for name, words in world.WORDS.items()}
    names = [f"{n}.jpg" for n in range(COUNT)]
    drawing.write_pictures(values, world.WORDS, 12345, folder, names)
    said = [
        ", ".join(
            f"[{label}] {{{words[code]}}}"
            for label, words, code in zip(LABELS, world.WORDS.values(), codes, strict=True)
        )
        for codes in zip(*values.values(), strict=True)
    ]
    return [str(folder / name) for name in names], said


def test_it_is_small_and_whole():
    found = locate.find("nano-lvlm")
    assert sum(path.stat().st_size for path in found.folder.iterdir()) < 4 << 20
    assert found.revision.startswith("mmjax ")
    assert "sha256:" in found.revision


@pytest.mark.slow
def test_it_describes_items_that_it_never_saw(items):
    paths, said = items
    options = generation.GenerationOptions(max_new_tokens=48)
    tower = qwen2_vl.load(weights="nano-lvlm", prompt=str(PROMPT), answers=options)
    found = ask(tower, paths, size=64)
    right = [
        told == true
        for n, answer in enumerate(said)
        for told, true in zip(found[n][-1].text.split(", "), answer.split(", "), strict=True)
    ]
    assert np.mean(right) >= 0.9
    assert all(found[n][-1].ended for n in found)


@pytest.mark.slow
def test_transformers_says_the_same(items):
    torch = pytest.importorskip("torch")
    from PIL import Image
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    paths = items[0][:4]
    folder = hub.find("nano-lvlm").folder
    options = generation.GenerationOptions(max_new_tokens=48)
    tower = qwen2_vl.load(weights="nano-lvlm", prompt=str(PROMPT), answers=options)
    found = ask(tower, paths)
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor, tokenizer = Qwen2VLImageProcessorPil.from_pretrained(folder), hub.tokenizer(folder)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for n, path in enumerate(paths):
        seen = processor([Image.open(path)], return_tensors="pt")
        shown = "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4)
        text = PROMPT.read_text().strip()
        text = text.replace("{image}", f"<|vision_start|>{shown}<|vision_end|>")
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            said = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == image).int(),
                **seen,
                max_new_tokens=48,
                do_sample=False,
            )
        new = said[0, ids.shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == found[n][-1].text
