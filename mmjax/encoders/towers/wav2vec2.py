"""Wav2Vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021).

Audio encoders of one layout: convolutions make a frame of some 20 ms of raw samples, a grouped
convolution encodes the frames' positions, and transformer blocks follow, post-norm ("base") or
pre-norm ("large", stable).

Padding never counts: not in the group norm over time, not in attention, not in pooling. So a file's
vector does not depend on its batch; in transformers it does for checkpoints with group norm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import audio
from mmjax.encoders.layers import ACTIVATIONS, Block, layer_norm
from mmjax.encoders.outputs import Outputs

MODEL_TYPES = ("wav2vec2", "hubert")
NORM_EPSILON = 1e-5  # of the norms between convolutions, whatever config.json's layer_norm_eps


@dataclass(frozen=True)
class Config:
    """Shape of the encoder, by the names of config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    conv_bias: bool
    feat_extract_norm: str  # "group": after the first convolution; "layer": after each
    feat_extract_activation: str
    num_conv_pos_embeddings: int
    num_conv_pos_embedding_groups: int
    do_stable_layer_norm: bool
    feat_proj_layer_norm: bool = True

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Config":
        """Read the shape from config.json.

        Raises:
          InputError: a key is missing, or config.json asks for a variant that this tower does not
            compute.
        """
        for name in ("add_adapter", "adapter_attn_dim", "conv_pos_batch_norm"):
            if config.get(name):
                raise InputError(f"{name} {config[name]} is not supported")
        names = [name for name in cls.__dataclass_fields__ if name != "feat_proj_layer_norm"]
        missing = [name for name in names if name not in config]
        if missing:
            raise InputError(f"config.json lacks {', '.join(missing)}")
        if config["feat_extract_norm"] not in ("group", "layer"):
            raise InputError(f"feat_extract_norm {config['feat_extract_norm']!r} is not supported")
        for name in ("hidden_act", "feat_extract_activation"):
            if config[name] not in ACTIVATIONS:
                raise InputError(f"{name} {config[name]!r} is none of {[*ACTIVATIONS]}")
        fields = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def least(self) -> int:
        """Return the number of samples that make the first frame."""
        samples = 1
        for kernel, stride in zip(self.conv_kernel[::-1], self.conv_stride[::-1], strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


class TimeNorm(nnx.Module):
    """GroupNorm over time with one group per channel.

    Each channel gets zero mean and unit variance.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        del rngs  # unused; every layer takes it
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, there: jax.Array) -> jax.Array:
        """Normalise x [B, L, D] over the frames that count, in float32.

        Args:
          there: bool [B, L], true at the frames that count.
        """
        scale, bias = (
            part[...].astype(jnp.float32)[None, None] for part in (self.scale, self.bias)
        )
        there = there[:, :, None]
        count = jnp.maximum(there.sum(axis=1, keepdims=True), 1)
        values = x.astype(jnp.float32)
        mean = jnp.where(there, values, 0).sum(axis=1, keepdims=True) / count
        values = values - mean
        variance = jnp.where(there, values**2, 0).sum(axis=1, keepdims=True) / count
        return (values * jax.lax.rsqrt(variance + NORM_EPSILON) * scale + bias).astype(x.dtype)


class Convolution(nnx.Module):
    """Convolution over time without padding, optional norm, activation."""

    def __init__(self, config: Config, place: int, *, rngs: nnx.Rngs):
        channels = config.conv_dim[place - 1] if place else 1
        width = config.conv_dim[place]
        self.kernel, self.stride = config.conv_kernel[place], config.conv_stride[place]
        self.conv = nnx.Conv(
            channels,
            width,
            (self.kernel,),
            strides=(self.stride,),
            padding="VALID",
            use_bias=config.conv_bias,
            rngs=rngs,
        )
        if config.feat_extract_norm == "layer":
            self.norm: nnx.LayerNorm | TimeNorm | None = layer_norm(width, NORM_EPSILON, rngs=rngs)
        else:
            self.norm = TimeNorm(width, rngs=rngs) if place == 0 else None
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the output frames and their valid lengths.

        Args:
          x: [B, L, C].
          lengths: int [B]; the first `lengths` frames of x are valid.
        """
        x = self.conv(x)
        lengths = (lengths - self.kernel) // self.stride + 1
        if isinstance(self.norm, TimeNorm):
            x = self.norm(x, heard(x, lengths))
        elif self.norm is not None:
            x = self.norm(x)
        return self.activation(x), lengths


class Places(nnx.Module):
    """Position embedding: a weight-normalised grouped convolution over time.

    Tap k of the kernel is g_k v_k / |v_k|.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, taps = config.hidden_size, config.num_conv_pos_embeddings
        self.groups = config.num_conv_pos_embedding_groups
        shape = (taps, width // self.groups, width)
        init = nnx.initializers.normal(math.sqrt(4 / (taps * width)))
        self.directions = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.norms = nnx.Param(jnp.ones(taps))
        self.bias = nnx.Param(jnp.zeros(width))
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the position embedding of x [B, L, D].

        x is zero at padding, as it is before the first frame.
        """
        directions = self.directions[...].astype(jnp.float32)
        norms = self.norms[...].astype(jnp.float32)[:, None, None]
        kernel = directions * (norms * jax.lax.rsqrt((directions**2).sum((1, 2), keepdims=True)))
        taps = len(kernel)
        x = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(1,),
            padding=[(taps // 2, (taps - 1) // 2)],  # keeps the number of frames
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return self.activation(x + self.bias[...][None, None])


class Wav2Vec2(nnx.Module):
    """Encoder of Wav2Vec2Model and HubertModel."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, last = config.hidden_size, config.conv_dim[-1]
        self.stable = config.do_stable_layer_norm
        self.convolutions = nnx.List(
            Convolution(config, index, rngs=rngs) for index in range(len(config.conv_dim))
        )
        norm = config.feat_proj_layer_norm
        self.projection_norm = layer_norm(last, config.layer_norm_eps, rngs=rngs) if norm else None
        self.projection = nnx.Linear(last, width, rngs=rngs)
        self.places = Places(config, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.blocks = nnx.List(
            Block(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                activation=config.hidden_act,
                epsilon=config.layer_norm_eps,
                norm_first=config.do_stable_layer_norm,
                rngs=rngs,
            )
            for _ in range(config.num_hidden_layers)
        )

    def __call__(self, samples: jax.Array, lengths: jax.Array) -> tuple[Outputs, jax.Array]:
        """Return the hidden states of a batch and the mask of frames.

        With `do_stable_layer_norm` a LayerNorm lies between hidden_states.N and last_hidden_state,
        as in transformers 5.

        Args:
          samples: [B, N].
          lengths: int [B], how many samples are the file's; 0 without a file.

        Returns:
          The outputs: extract_features [B, L, C] (the projection's input), hidden_states.0 (the
          first block's input) to hidden_states.N and last_hidden_state [B, L, D]. And bool [B, L],
          true at the frames whose samples are all the file's.
        """
        x = samples[:, :, None].astype(self.projection.kernel.dtype)
        for convolution in self.convolutions:
            x, lengths = convolution(x, lengths)
        features = x if self.projection_norm is None else self.projection_norm(x)
        valid = heard(x, lengths)
        x = jnp.where(valid[:, :, None], self.projection(features), 0)
        x = x + self.places(x)
        hidden = [x if self.stable else self.norm(x)]
        for block in self.blocks:
            hidden.append(block(hidden[-1], valid[:, None]))
        last = self.norm(hidden[-1]) if self.stable else hidden[-1]
        results = {
            "extract_features": features,
            **outputs.states(hidden),
            "last_hidden_state": last,
        }
        return results, valid


def heard(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return the mask [B, L] of frames of x within `lengths`.

    Args:
      x: [B, L, D].
      lengths: int [B].
    """
    return jnp.arange(x.shape[1])[None] < lengths[:, None]


def key_map() -> list[Rule]:
    """Return the key map of Wav2Vec2Model and HubertModel.

    Names come with or without the prefix that task models add. The norms and directions of the
    position convolution's kernel have two pairs of names: those of torch's old and of its new
    weight norm.
    """
    model = r"(?:(?:wav2vec2|hubert)\.)?"
    places = model + r"encoder\.pos_conv_embed\.conv\."
    layer = model + r"encoder\.layers\.(\d+)\."
    convolution = model + r"feature_extractor\.conv_layers\.(\d+)\."
    return [
        Rule(model + "masked_spec_embed", None),  # replaces masked frames in training
        Rule(r"(?:lm_head|quantizer|project_hid|project_q|projector|classifier)\..*", None),
        Rule("layer_weights", None),  # of heads that sum the layers by weight
        *hub.conv(convolution + "conv", r"convolutions.\1.conv"),
        *hub.layer_norm(convolution + "layer_norm", r"convolutions.\1.norm"),
        *hub.layer_norm(model + r"feature_projection\.layer_norm", "projection_norm"),
        *hub.linear(model + r"feature_projection\.projection", "projection"),
        Rule(
            places + r"(?:weight_g|parametrizations\.weight\.original0)",
            "places.norms",
            lambda norms: norms.reshape(-1),
        ),
        Rule(
            places + r"(?:weight_v|parametrizations\.weight\.original1)",
            "places.directions",
            hub.channels_last,
        ),
        Rule(places + "bias", "places.bias"),
        *hub.layer_norm(model + r"encoder\.layer_norm", "norm"),
        *hub.linear(layer + r"attention\.q_proj", r"blocks.\1.attention.query"),
        *hub.linear(layer + r"attention\.k_proj", r"blocks.\1.attention.key"),
        *hub.linear(layer + r"attention\.v_proj", r"blocks.\1.attention.value"),
        *hub.linear(layer + r"attention\.out_proj", r"blocks.\1.attention.out"),
        *hub.layer_norm(layer + r"layer_norm", r"blocks.\1.attention_norm"),
        *hub.linear(layer + r"feed_forward\.intermediate_dense", r"blocks.\1.mlp.up"),
        *hub.linear(layer + r"feed_forward\.output_dense", r"blocks.\1.mlp.down"),
        *hub.layer_norm(layer + r"final_layer_norm", r"blocks.\1.mlp_norm"),
    ]


def load(
    *,
    weights: str,
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: audio.AudioOptions = audio.AudioOptions(),
) -> Tower:
    """Build the audio tower of a Wav2Vec 2.0 or HuBERT checkpoint.

    Args:
      weights: folder, file in a folder, or hub id.
      layers: outputs by name or number, pooled over the frames by their mean unless another pooling
        is named; `last_hidden_state` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    config = Config.read(hub.read_config(checkpoint.folder, MODEL_TYPES))
    graph, params = hub.load_module(
        lambda: Wav2Vec2(config, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(),
        jnp.dtype(dtype),
    )
    return audio.tower(
        graph,
        params,
        lambda module, samples, lengths: module(samples, lengths),
        folder=checkpoint.folder,
        options=options,
        least=config.least(),
        layers=layers,
        default="last_hidden_state",
        about={"encoder": f"wav2vec2:{checkpoint.name}", "revision": checkpoint.revision},
    )
