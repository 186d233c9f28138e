"""Shape, tokenizer and checkpoint of the nano LVLM.

The checkpoint is saved as Hugging Face saves a Qwen2-VL.
"""

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmjax.data.synthetic import drawing
from mmjax.encoders.towers import qwen2_vl
from mmjax.encoders.vlm import decoder, qwen_vl, rotary

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL += ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
# ChatML, as Qwen's, without a system turn: every token of a prompt costs time.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = qwen2_vl.VisionConfig(
    depth=3, embed_dim=96, hidden_size=128, mlp_ratio=4, num_heads=4, patch_size=8
)
SECTIONS = (4, 6, 6)
THETA = 10_000.0
WINDOW = 1024


def text_config(vocabulary: int) -> decoder.Config:
    return decoder.Config(
        vocab_size=vocabulary,
        hidden_size=VISION.hidden_size,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the words of `texts`.

    Any other text is bytes.
    """
    model = Tokenizer(models.BPE())
    # All characters between two words are one token, "}, [" for example: short answers are quick.
    between = r"[^\p{L}\p{N}]*[^\s\p{L}\p{N}][^\p{L}\p{N}]*"
    split = pre_tokenizers.Split(Regex(rf" ?\p{{L}}+|\p{{N}}|{between}|\s+"), "isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def model(vocabulary: int, seed: int) -> nnx.Module:
    config = text_config(vocabulary)
    turns = rotary.blocks(config.head_dim, THETA, SECTIONS)
    rngs = nnx.Rngs(seed)
    return qwen_vl.QwenVl(
        qwen2_vl.Vision(VISION, qwen_vl.MEAN, qwen_vl.STD, rngs=rngs),
        decoder.Decoder(config, turns, rngs=rngs),
    )


def checkpoint(folder: Path, params: Any, module: nnx.Module, tokenizer: Any) -> None:
    """Write config, tokenizer, image processor and bfloat16 safetensors."""
    text = module.decoder.config
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "dtype": "bfloat16",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "hidden_act": text.hidden_act,
        "rms_norm_eps": text.rms_norm_eps,
        "max_position_embeddings": WINDOW,
        "rope_theta": THETA,
        "rope_scaling": {"type": "mrope", "mrope_section": list(SECTIONS)},
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": VISION.depth,
            "embed_dim": VISION.embed_dim,
            "hidden_size": VISION.hidden_size,
            "mlp_ratio": VISION.mlp_ratio,
            "num_heads": VISION.num_heads,
            "patch_size": VISION.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }
    area = drawing.SIZE**2
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": VISION.patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": area,
        "max_pixels": area,
        "image_mean": list(qwen_vl.MEAN),
        "image_std": list(qwen_vl.STD),
    }
    ends = {"eos_token_id": ids["<|im_end|>"], "do_sample": False}
    for name, content in (
        ("config", config),
        ("generation_config", ends),
        ("preprocessor_config", processor),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save_pretrained(str(folder))
    save_file(tensors(params), folder / "model.safetensors", {"format": "pt"})


def tensors(params: Any) -> dict[str, np.ndarray]:
    """Return our parameters in bfloat16 under Hugging Face's names.

    This is the key map of the loader, inverted.
    """
    vision, text = params["vision"], params["decoder"]
    arrays: dict[str, Any] = {}

    def linear(name: str, part: Any) -> None:
        arrays[f"{name}.weight"] = part["kernel"].T
        if "bias" in part:
            arrays[f"{name}.bias"] = part["bias"]

    def norm(name: str, part: Any) -> None:
        arrays[f"{name}.weight"] = part["scale"]
        if "bias" in part:
            arrays[f"{name}.bias"] = part["bias"]

    kernel = vision["patches"]["project"]["kernel"]
    size = VISION.patch_size
    arrays["visual.patch_embed.proj.weight"] = kernel.T.reshape(-1, 3, 2, size, size)
    for n in range(VISION.depth):
        block = jax.tree.map(lambda leaf: leaf[n], vision["blocks"])  # noqa: B023
        name, attention = f"visual.blocks.{n}", block["attention"]
        parts = [attention[part] for part in ("query", "key", "value")]
        linear(
            f"{name}.attn.qkv",
            {
                "kernel": np.concatenate([part["kernel"] for part in parts], 1),
                "bias": np.concatenate([part["bias"] for part in parts]),
            },
        )
        linear(f"{name}.attn.proj", attention["out"])
        norm(f"{name}.norm1", block["attention_norm"])
        norm(f"{name}.norm2", block["mlp_norm"])
        linear(f"{name}.mlp.fc1", block["mlp"]["up"])
        linear(f"{name}.mlp.fc2", block["mlp"]["down"])
    norm("visual.merger.ln_q", vision["merger"]["norm"])
    linear("visual.merger.mlp.0", vision["merger"]["up"])
    linear("visual.merger.mlp.2", vision["merger"]["down"])
    arrays["model.embed_tokens.weight"] = text["embed"]["table"]
    norm("model.norm", text["norm"])
    for n in range(len(text["blocks"]["mlp_norm"]["scale"])):
        block = jax.tree.map(lambda leaf: leaf[n], text["blocks"])  # noqa: B023
        name = f"model.layers.{n}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            linear(f"{name}.self_attn.{theirs}_proj", block["attention"][ours])
        for part in ("gate", "up", "down"):
            linear(f"{name}.mlp.{part}_proj", block["mlp"][part])
        norm(f"{name}.input_layernorm", block["attention_norm"])
        norm(f"{name}.post_attention_layernorm", block["mlp_norm"])
    return {
        name: np.ascontiguousarray(np.asarray(leaf).astype(ml_dtypes.bfloat16))
        for name, leaf in arrays.items()
    }
