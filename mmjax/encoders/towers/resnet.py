"""ResNet (He et al. 2016), from Hugging Face's or torchvision's checkpoints.

A strided stem, then four stages of residual blocks, x + f(x). Each stage is half as large as the
one before and twice as wide. The image's vector is the mean over positions of the last. Both
checkpoints compute torchvision's "v1.5": the stride is in the 3 x 3 convolution of a bottleneck,
not in the 1 x 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from mmjax.encoders.inputs.pixels import BILINEAR, IMAGENET, ImageOptions, Pixels
from mmjax.encoders.layers import ACTIVATIONS
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers.convolution import ConvNorm, conv_norm, count_classes

# Torchvision's IMAGENET1K_V1 transform, for checkpoints without preprocessor_config.json; where the
# margin is odd torchvision may crop one pixel further right or down than transformers and this do.
PIXELS = Pixels(256, (224, 224), BILINEAR, mean=IMAGENET[0], std=IMAGENET[1], nearest=True)
# Prefixes that training code adds to names, names of the classifier, and other heads.
PREFIX = r"(?:(?:module|backbone|model|resnet)\.)*"
CLASSIFIER = r"(?:fc|classifier\.1)"
HEADS = (
    r"(?:fc|classifier|head|neck|global_pool|concat|attr_predictor|cate_predictor|"
    r"embed_extractor|triplet_net|roi_pool|landmark\w*)\..*"
)

MODEL_TYPES = ("resnet",)  # of config.json


@dataclass(frozen=True)
class Config:
    """Shape of the network, by the names of config.json."""

    embedding_size: int
    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    layer_type: str  # "basic" or "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False  # the first 1 x 1 has the stride, as in the paper

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Config":
        """Read the shape from config.json.

        Raises:
          InputError: a key is missing, or config.json asks for a variant that this tower does not
            compute.
        """
        names = [*cls.__dataclass_fields__]
        missing = [name for name in names[:4] if name not in config]
        if missing:
            raise InputError(f"config.json lacks {', '.join(missing)}")
        if config["layer_type"] not in ("basic", "bottleneck"):
            raise InputError(f"layer_type {config['layer_type']!r} is not basic or bottleneck")
        if config.get("hidden_act", "relu") not in ACTIVATIONS:
            raise InputError(f"hidden_act {config['hidden_act']!r} is none of {[*ACTIVATIONS]}")
        if config.get("num_channels", 3) != 3:
            raise InputError(f"ResNet of {config['num_channels']} channels; images have 3")
        fields = {name: config[name] for name in names if name in config}
        fields |= {name: tuple(fields[name]) for name in ("hidden_sizes", "depths")}
        return cls(**fields)

    @classmethod
    def infer(cls, source: Path) -> "Config":
        """Infer the shape from a file or folder of torchvision's tensors.

        Names and shapes of the tensors give it.

        Raises:
          InputError: conv1 or a layer is missing.
        """
        pattern = re.compile(PREFIX + r"(conv1|layer(\d+)\.(\d+)\.conv(\d))\.weight")
        widths = {
            (int(match[2] or 0), int(match[3] or 0), int(match[4] or 0)): len(read())
            for tensor, read in tensors(source)
            if (match := pattern.fullmatch(tensor))
        }
        stages = max(stage for stage, _, _ in widths)
        depths = [len({n for at, n, _ in widths if at == stage}) for stage in range(1, stages + 1)]
        if (0, 0, 0) not in widths or 0 in depths:
            raise InputError(f"{source} is no whole ResNet: conv1 or a layer is missing")
        last = max(n for _, _, n in widths)
        return cls(
            embedding_size=widths[0, 0, 0],
            hidden_sizes=tuple(widths.get((n, 0, last), 0) for n in range(1, stages + 1)),
            depths=tuple(depths),
            layer_type="bottleneck" if last == 3 else "basic",
        )


class Block(nnx.Module):
    """Residual block, activation(shortcut(x) + f(x)).

    f has two 3 x 3 convolutions (basic), or 1 x 1, 3 x 3 and 1 x 1 (bottleneck).
    """

    def __init__(
        self, config: Config, channels: int, features: int, stride: int, *, rngs: nnx.Rngs
    ):
        self.activation = ACTIVATIONS[config.hidden_act]
        if config.layer_type == "basic":
            plan = [(features, 3, stride), (features, 3, 1)]
        else:
            inner = features // 4
            first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
            plan = [(inner, 1, first), (inner, 3, second), (features, 1, 1)]
        sizes = [channels] + [size for size, _, _ in plan]
        self.convs = nnx.List(
            ConvNorm(
                before,
                after,
                window,
                stride=step,
                padding=window // 2,
                activation=config.hidden_act if n + 1 < len(plan) else None,
                rngs=rngs,
            )
            for n, (before, (after, window, step)) in enumerate(zip(sizes, plan, strict=False))
        )
        same = channels == features and stride == 1
        self.shortcut = None if same else ConvNorm(channels, features, stride=stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to x [B, H, W, C]."""
        y = x
        for conv in self.convs:
            y = conv(y)
        return self.activation(y + (self.shortcut(x) if self.shortcut is not None else x))


class ResNet(nnx.Module):
    """ResNet; `classes` adds the linear classifier."""

    def __init__(self, config: Config, *, classes: int | None = None, rngs: nnx.Rngs):
        self.stem = ConvNorm(
            3,
            config.embedding_size,
            7,
            stride=2,
            padding=3,
            activation=config.hidden_act,
            rngs=rngs,
        )
        self.stages: nnx.List[Any] = nnx.List()
        channels = config.embedding_size
        for stage, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            first = 2 if stage or config.downsample_in_first_stage else 1
            self.stages.append(
                nnx.List(
                    Block(config, size if n else channels, size, 1 if n else first, rngs=rngs)
                    for n in range(depth)
                )
            )
            channels = size
        self.classifier = nnx.Linear(channels, classes, rngs=rngs) if classes else None

    def __call__(self, pixels: jax.Array) -> Outputs:
        """Return the feature maps and pooled output of a batch of images.

        Args:
          pixels: [B, H, W, 3], normalised.

        Returns:
          hidden_states.0 (the stem's, after max pooling) to hidden_states.4 and last_hidden_state
          [B, H', W', C], pooler_output [B, C] and, with the classifier, logits; by the names of
          torchvision's nodes also layer1 to layer4, avgpool and fc.
        """
        x = self.stem(pixels)
        hidden = [max_pool(x)]
        for stage in self.stages:
            x = hidden[-1]
            for block in stage:
                x = block(x)
            hidden.append(x)
        pooled = outputs.pool(x, None, "mean")
        results = {**outputs.states(hidden), "last_hidden_state": x, "pooler_output": pooled}
        results |= {f"layer{n}": state for n, state in enumerate(hidden) if n} | {"avgpool": pooled}
        if self.classifier is not None:
            results["logits"] = results["fc"] = self.classifier(pooled)
        return results


def max_pool(x: jax.Array) -> jax.Array:
    """Max-pool feature maps with a 3 x 3 window, stride 2.

    x: [B, H, W, C], to half the size.
    """
    outside = jnp.array(-jnp.inf, x.dtype)
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, outside, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)


def key_map(config: Config, *, classes: int | None = None) -> list[Rule]:
    """Return the key map of Hugging Face's and torchvision's ResNet.

    Hugging Face's names are those of ResNetModel and ResNetForImageClassification.
    """
    rules = hub.linear(PREFIX + CLASSIFIER, "classifier") if classes else []
    stem = PREFIX + r"embedder\.embedder\."
    rules += conv_norm(stem + "convolution", stem + "normalization", "stem")
    rules += conv_norm(PREFIX + "conv1", PREFIX + "bn1", "stem")
    block = PREFIX + r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    rules += conv_norm(
        block + r"layer\.(\d+)\.convolution",
        block + r"layer\.(\d+)\.normalization",
        r"stages.\1.\2.convs.\3",
    )
    rules += conv_norm(
        block + r"shortcut\.convolution",
        block + r"shortcut\.normalization",
        r"stages.\1.\2.shortcut",
    )
    for stage in range(len(config.depths)):  # torchvision counts stages and convolutions from 1
        block, target = PREFIX + rf"layer{stage + 1}\.(\d+)\.", rf"stages.{stage}.\1."
        for n in range(3):
            rules += conv_norm(f"{block}conv{n + 1}", f"{block}bn{n + 1}", f"{target}convs.{n}")
        rules += conv_norm(block + r"downsample\.0", block + r"downsample\.1", target + "shortcut")
    return [*rules, Rule(PREFIX + HEADS, None)]


def load(
    *,
    weights: str,
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: ImageOptions = ImageOptions(),
) -> Tower:
    """Build the image tower of a ResNet checkpoint.

    Depths, widths and blocks come from config.json or, without one, from the tensors themselves.
    Without preprocessor_config.json images are prepared as torchvision does for IMAGENET1K_V1: the
    shorter edge to 256, bilinear, the central 224 x 224, ImageNet's mean and deviation.

    Args:
      weights: folder, hub id, or a file with torchvision's names.
      layers: outputs by name or number; `pooler_output` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    if hub.has(checkpoint.weights, PREFIX + r"layer1\.0\.conv1\.weight"):
        config = Config.infer(checkpoint.weights)
    else:
        config = Config.read(hub.read_config(checkpoint.folder, MODEL_TYPES))
    classes = count_classes(checkpoint.weights, PREFIX + CLASSIFIER, config.hidden_sizes[-1])
    graph, params = hub.load_module(
        lambda: ResNet(config, classes=classes, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(config, classes=classes),
        jnp.dtype(dtype),
    )
    return images.tower(
        graph,
        params,
        lambda module, pixels: module(pixels),
        folder=checkpoint.folder,
        options=options,
        pixels=PIXELS,
        layers=layers,
        default="pooler_output",
        about={"encoder": f"resnet:{checkpoint.name}", "revision": checkpoint.revision},
    )
