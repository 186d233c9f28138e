"""Phi-3-vision and Phi-3.5-vision (Abdin et al. 2024): CLIP's ViT and Phi-3.

An image is cut into squares, plus an overview. The patches of each come from the last but one block
of CLIP ViT-L/14-336; four neighbouring patches become one token of the decoder. Long windows use
LongRoPE (Ding et al. 2024). transformers has no such model: names, configuration and order are
those of the code that was published with the checkpoints.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders import layers
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints import int8 as eight_bits
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.towers import clip
from mmjax.encoders.towers.vit import Tokens
from mmjax.encoders.vlm import decoder, embedding, generation, phi3_v_images, qwen_vl
from mmjax.encoders.vlm.decoder import Decoder
from mmjax.encoders.vlm.phi3_v_config import VisionConfig, text_config, turns, vision_config
from mmjax.encoders.vlm.phi3_v_images import Crops
from mmjax.encoders.vlm.prompts import Family
from mmjax.encoders.vlm.rotary import Rotary

MODEL_TYPES = ("phi3_v",)  # of config.json

# Prompt for one image. The texts before and after the image are tokenised separately, each with the
# tokenizer's special tokens, so that BEGIN stands before both.
IMAGE = "<|image_1|>"
PROMPT = "<|user|>\n<|image_1|>\n{prompt}<|end|>\n<|assistant|>\n"
BEGIN = "<s>"
# An answer ends with <|end|>, after which the model emits <|endoftext|>. The published
# generation_config.json names only </s>, at which the model does not stop.
ENDS = {"<|end|>": 32007, "<|endoftext|>": 32000, "<|assistant|>": 32001}


class Vision(nnx.Module):
    """CLIP's image encoder up to the read block, without class token."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.tokens = Tokens(width, config.image_size, config.patch_size, bias=False, rngs=rngs)
        self.input_norm = layers.layer_norm(width, epsilon, rngs=rngs)
        self.blocks = layers.stack(
            lambda rngs: layers.Block(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                activation=config.hidden_act,
                epsilon=epsilon,
                norm_first=True,
                rngs=rngs,
            ),
            config.depth,
            rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Encode normalised squares [N, S, S, 3] to patches [N, P, V].

        Patches are in rows from the top left.
        """

        def layer(block: layers.Block, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x), None

        x, _ = layers.over(self.blocks, layer, self.input_norm(self.tokens(x)), None)
        return x[:, 1:]


class Phi3V(nnx.Module):
    """Vision tower, projection of patches to image tokens, and decoder."""

    def __init__(
        self,
        vision: VisionConfig,
        text: Decoder,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        rngs: nnx.Rngs,
    ):
        self.mean, self.std = tuple(mean), tuple(std)
        square, width = 4 * vision.hidden_size, text.config.hidden_size
        self.vision, self.decoder = Vision(vision, rngs=rngs), text
        self.newline = nnx.Param(jnp.zeros(square))
        self.separator = nnx.Param(jnp.zeros(square))
        self.up = nnx.Linear(square, width, rngs=rngs)
        self.down = nnx.Linear(width, width, rngs=rngs)

    def look(self, crops: Crops) -> tuple[jax.Array, None]:
        """Encode the crops of a batch to image tokens [B, M, D].

        The second result is None: nothing is added to later layers.
        """
        batch, _, side = crops.pixels.shape[:3]
        squares = [crops.overview[:, None], crops.pixels.astype(jnp.float32)]
        x = jnp.concatenate(squares, axis=1).reshape(-1, side, side, 3) / 255
        mean, std = (jnp.array(part).reshape(1, 1, 1, 3) for part in (self.mean, self.std))
        patches = self.vision(((x - mean) / std).astype(self.up.kernel.dtype))
        image_tokens = self.project(merge(patches)).reshape(batch, -1, self.up.out_features)
        # In the order of NEWLINE and SEPARATOR.
        marks = self.project(jnp.stack([self.newline[...], self.separator[...]]))[None]
        table = jnp.concatenate([jnp.repeat(marks, batch, axis=0), image_tokens], axis=1)
        return jnp.take_along_axis(table, crops.places[:, :, None], axis=1), None

    def project(self, squares: jax.Array) -> jax.Array:
        """Project merged patches [..., 4 V] to tokens [..., D]."""
        return self.down(layers.gelu(self.up(squares)))


def merge(patches: jax.Array) -> jax.Array:
    """Concatenate each 2 x 2 neighbouring patches into one.

    Args:
      patches: [N, P, V], in rows.

    Returns:
      [N, P / 4, 4 V], in rows.
    """
    count, area, width = patches.shape
    half = math.isqrt(area) // 2
    grid = patches.reshape(count, half, 2, half, 2, width).swapaxes(2, 3)
    return grid.reshape(count, half * half, 4 * width)


def key_map(config: decoder.Config, vision: VisionConfig) -> list[Rule]:
    """Return the key map of Phi3VForCausalLM.

    CLIP's blocks after the one that is read are ignored.
    """
    layer, block = r"model\.layers\.(\d+)\.", r"decoder.blocks[\1]."
    images = r"model\.vision_embed_tokens\."
    tower = images + r"img_processor\.(?:vision_model\.)?"
    skipped = "|".join(str(n) for n in range(vision.depth, vision.num_hidden_layers))
    heads = config.num_attention_heads, *[config.num_key_value_heads] * 2
    return [
        Rule(images + r"wte\.weight", None),  # a copy of the decoder's embedding, if saved
        Rule(tower + rf"encoder\.layers\.(?:{skipped})\..*", None),
        Rule(tower + r"post_layernorm\..*", None),
        *(
            rule._replace(path=rule.path and "vision." + rule.path.replace(r".\1.", r"[\1]."))
            for rule in clip.vision_rules(tower)
        ),
        Rule(images + "sub_GN", "newline", np.ravel),
        Rule(images + "glb_GN", "separator", np.ravel),
        *hub.linear(images + r"img_projection\.0", "up"),
        *hub.linear(images + r"img_projection\.2", "down"),
        *hub.fused(
            layer + r"self_attn\.qkv_proj",
            [block + f"attention.{part}" for part in ("query", "key", "value")],
            [count * config.head_dim for count in heads],
        ),
        *hub.fused(
            layer + r"mlp\.gate_up_proj", [block + f"mlp.{part}" for part in ("gate", "up")]
        ),
        *qwen_vl.text_rules(config),
    ]


def build(
    config: decoder.Config,
    vision: VisionConfig,
    turns: Rotary,
    mean: Sequence[float],
    std: Sequence[float],
) -> Phi3V:
    rngs = nnx.Rngs(0)
    return Phi3V(vision, Decoder(config, turns, rngs=rngs), mean, std, rngs=rngs)


def load(
    *,
    weights: str = "microsoft/Phi-3.5-vision-instruct",
    revision: str | None = None,
    prompt: str = "",
    pooling: str = "eos",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    int8: bool = False,
    num_crops: int | None = None,
    window: int = 4096,
    image: ImageOptions = ImageOptions(),
    answers: generation.GenerationOptions = generation.GenerationOptions(),
) -> Tower:
    """Build the tower of a Phi-3-vision checkpoint.

    It encodes images (and texts) under a prompt.

    Args:
      weights: folder or hub id.
      num_crops: maximum number of squares of an image; unless given, as the checkpoint's image
        processor says. The model card advises 16 for single images.
      window: maximum number of tokens of a prompt and its answer; see `turns`.

    The other arguments are those of `qwen_tower.tower`.

    Raises:
      InputError: the checkpoint is missing, of another architecture, or lacks a shard; also what
        `embedding.tower` raises.
    """
    if int8:
        eight_bits.check()
    checkpoint = hub.find(weights, revision)
    folder = checkpoint.folder
    config_json = hub.read_config(folder, MODEL_TYPES)
    config, vision = text_config(folder, config_json), vision_config(folder, config_json)
    pixels = phi3_v_images.read(folder, num_crops)
    rotary = turns(folder, config, config_json, window)
    graph, params = hub.load_module(
        lambda: build(config, vision, rotary, pixels["mean"], pixels["std"]),
        checkpoint.weights,
        key_map(config, vision),
        jnp.dtype(dtype),
        lazy=True,
        then=eight_bits.of if int8 else lambda name: None,
    )
    sizes: dict[str, Any] = {"side": vision.image_size, "merged": vision.merged}
    family = Family(
        around=("", BEGIN + "\n"),
        begin=BEGIN,
        image_id=config.vocab_size - 1,  # after all ids of the tokenizer
        view=partial(phi3_v_images.view, num_crops=pixels["num_crops"], **sizes),
        shape=phi3_v_images.tokens,
        collate=phi3_v_images.collate,
        window=window,
    )
    return embedding.tower(
        graph,
        params,
        config=config,
        family=family,
        folder=folder,
        ends=tuple(ENDS.values()),
        prompt=prompt,
        pooling=pooling,
        layers=layers,
        image=image,
        answers=answers,
        about={
            "encoder": f"phi3_v:{checkpoint.name}",
            "revision": checkpoint.revision,
            "int8": int8,
            "preprocessing": f"{pixels}, window {window}",
        },
    )
