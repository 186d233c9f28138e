"""A tiny Qwen2-VL that answers: random weights, a byte tokenizer, Qwen's special tokens."""

import json

import numpy as np
from PIL import Image

from support.towers import save_random

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL += ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(special=SPECIAL, template=TEMPLATE):
    """Every byte is a token, so nothing merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token="<|im_end|>" if "<|im_end|>" in special else special[0],
        pad_token=special[0],
        chat_template=template,
    )


def save_speaker(folder, seed=3, window=512):
    """Saves a checkpoint whose answers end by themselves, some sooner, some later."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = byte_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]},
            max_position_embeddings=window,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
        ),
        vision_config=dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2),
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    save_random(model, folder, seed)
    with torch.no_grad():
        # Sharp attention, so that answers differ from image to image; none of them shows one.
        for layer in model.model.language_model.layers:
            for part, factor in (("q", 4), ("k", 4), ("v", 4), ("o", 4)):
                getattr(layer.self_attn, f"{part}_proj").weight.mul_(factor)
        model.lm_head.weight.mul_(3)
        model.lm_head.weight[[ids[name] for name in SPECIAL]] = 0
    # Several tokens end an answer, as Qwen's two do, or a random model would hardly come to one.
    model.generation_config.eos_token_id = [ids["<|im_end|>"], *range(0, 256, 12)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    about = {"image_processor_type": "Qwen2VLImageProcessor"}
    about |= {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 20}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def save_pictures(folder, count=11, seed=0, shapes=None):
    """Noise of several shapes, drawn or in turn."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{n:02d}.png") for n in range(count)]
    for n, path in enumerate(paths):
        drawn = rng.integers(30, 150, 2)
        shape = (*(shapes[n % len(shapes)] if shapes else drawn), 3)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
    return paths


def ask(tower, inputs, size=4, rows=None):
    """position -> what a speaking tower gave: (vector of each layer, …, answer)."""
    found = {}
    for at, values in tower.stream(tower.batches(inputs, size), tower.encode, tower.params, rows):
        for i, row in enumerate(at.tolist()):
            found[row] = tuple(value[i] for value in values)
    return found
