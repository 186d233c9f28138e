"""Image processors against transformers' own, which run without torch: the bytes and the values."""

import json

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from mmjax.core.errors import InputError
from mmjax.encoders.inputs import images
from mmjax.encoders.inputs.pixels import IMAGENET, ImageOptions, Pixels

SIZES = ((30, 47), (61, 40), (52, 52), (131, 20), (33, 34))  # (width, height)
SQUARE = {"height": 40, "width": 36}
ALIGN = {
    "size": {"height": 52, "width": 52},
    "crop_size": {"height": 43, "width": 43},
    "do_center_crop": True,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "do_normalize": False,
    "include_top": False,
    "resample": 2,
}
RESNET = {"image_mean": IMAGENET[0], "image_std": IMAGENET[1], "size": 224, "crop_pct": 0.875}
CONFIGS = [  # preprocessor_config.json, by its image_processor_type
    ("CLIP", {}),
    ("CLIP", {"size": {"shortest_edge": 50}, "crop_size": {"height": 41, "width": 38}}),
    ("CLIP", {"size": 40, "crop_size": 39, "resample": 2}),
    ("CLIP", {"do_resize": False, "crop_size": 45}),
    ("CLIP", {"size": SQUARE, "do_center_crop": False}),
    ("CLIP", {"size": 30, "do_center_crop": False, "do_rescale": False, "do_normalize": False}),
    ("ViT", {}),
    ("ViT", {"size": 48, "resample": 3, "do_normalize": False}),
    ("ViT", {"size": 20, "image_mean": 0.4, "image_std": 0.3}),
    (
        "ViT",
        {"size": SQUARE, "image_mean": [0, 100, 3], "image_std": [9, 8, 7], "do_rescale": False},
    ),
    ("DeiT", {}),
    ("DeiT", {"size": SQUARE, "crop_size": 50, "image_mean": IMAGENET[0]}),
    ("Bit", {}),
    ("Bit", {"size": {"shortest_edge": 40}, "crop_size": {"height": 50, "width": 50}}),
    ("ConvNext", {}),
    ("ConvNext", RESNET),
    ("ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 0.9, "resample": 2}),
    ("ConvNext", {"size": {"shortest_edge": 48}, "do_resize": False}),
    ("Siglip", {}),
    ("Siglip", {"size": SQUARE, "resample": 2, "do_convert_rgb": None}),
    ("Siglip", {"size": 40}),
    ("Blip", {}),
    ("Blip", {"size": SQUARE}),
    ("EfficientNet", {}),
    ("EfficientNet", {"size": SQUARE, "include_top": False}),
    ("EfficientNet", {"size": SQUARE, "image_std": [0.2, 0.3, 0.4], "resample": 0}),
    ("EfficientNet", {"size": SQUARE, "do_normalize": False}),
    ("EfficientNet", {"size": SQUARE, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNet", {"size": SQUARE, "rescale_offset": True, "do_rescale": False}),
    ("EfficientNet", ALIGN),
]


def noise(size, seed=0):
    """Of the sharpest edges there are, which show every wrong filter."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3)).astype(np.uint8))


def write(folder, kind="CLIP", **config):
    about = {"image_processor_type": f"{kind}ImageProcessor", **config}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_bytes_and_values_are_transformers(tmp_path, kind, config):
    write(tmp_path, kind, **config)
    theirs = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(tmp_path)
    pixels = Pixels.read(tmp_path, ImageOptions())
    normalize = jax.jit(pixels.normalize)
    untouched = {"do_rescale": False, "do_normalize": False}
    if kind == "EfficientNet":
        untouched["include_top"] = False
    for size in SIZES:
        image = noise(size)
        raw = pixels.apply(image)
        (whole,) = theirs(image, **untouched)["pixel_values"]
        np.testing.assert_array_equal(raw, whole.transpose(1, 2, 0))
        if isinstance(pixels.crop or pixels.resize, tuple):
            assert raw.shape[:2] == pixels.size
        else:
            with pytest.raises(InputError, match="pass --reshape"):
                _ = pixels.size
            continue
        (wanted,) = theirs(image)["pixel_values"]
        got = normalize(raw[None])[0]
        scale = max(1, np.abs(wanted).max() / 4)  # float32 of values to 255 has fewer decimals
        np.testing.assert_allclose(got, wanted.transpose(1, 2, 0), atol=1e-6 * scale, rtol=0)


def test_older_names_of_processors(tmp_path):
    named = write(tmp_path, "CLIP", size=30, crop_size=28)
    wanted = Pixels.read(named, ImageOptions())
    for name in ("CLIPFeatureExtractor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"):
        about = {"feature_extractor_type": name, "size": 30, "crop_size": 28}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
        assert Pixels.read(tmp_path, ImageOptions()) == wanted
    vit = {"do_resize": True, "size": 30}  # ViT's first ones did not say what they are
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(vit))
    assert Pixels.read(tmp_path, ImageOptions()).resize == (30, 30)


def test_a_missing_file_needs_a_default_or_a_name(tmp_path):
    with pytest.raises(InputError, match=r"preprocessor_config\.json is missing; name another"):
        Pixels.read(tmp_path, ImageOptions())
    default = Pixels((8, 8))
    assert Pixels.read(tmp_path, ImageOptions(), default) == default
    other = tmp_path / "other"
    other.mkdir()
    write(other, "ViT", size=9)
    for name in (other, other / "preprocessor_config.json"):
        assert Pixels.read(tmp_path, ImageOptions(image_processor=str(name)), default).size == (
            9,
            9,
        )
    with pytest.raises(InputError, match="nowhere"):
        Pixels.read(tmp_path, ImageOptions(image_processor=str(tmp_path / "nowhere")), default)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"image_processor_type": "SamImageProcessor"}', "a SamImageProcessor, which is none of"),
        ('{"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 3}}', "size"),
        ('{"image_processor_type": "CLIPImageProcessor", "size": "big"}', "size"),
        (
            '{"image_processor_type": "CLIPImageProcessor", "crop_size": {"shortest_edge": 3}}',
            "crop_size",
        ),
        ('{"image_processor_type": "CLIPImageProcessor", "image_std": [1, 1]}', "image_std"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused(tmp_path, text, message):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Pixels.read(tmp_path, ImageOptions())


def test_reshape_is_bicubic_and_crops_nothing(tmp_path):
    write(tmp_path, size={"shortest_edge": 50}, crop_size=40, resample=2)
    pixels = Pixels.read(tmp_path, ImageOptions(reshape=(20, 30)))
    assert pixels.size == (20, 30)
    image = noise((61, 40))
    wanted = image.resize((30, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels.apply(image), np.asarray(wanted))
    assert pixels.mean == Pixels.read(tmp_path, ImageOptions()).mean


def test_preprocessing_overrules_the_checkpoint(tmp_path):
    write(tmp_path, "EfficientNet", **ALIGN)
    raw = np.stack([np.asarray(noise((8, 8), seed)) // 2 + 9 for seed in range(3)])
    raw[2] = 7  # of one colour altogether
    unit = raw.astype(np.float64) / 255

    def values(**options):
        return np.asarray(Pixels.read(tmp_path, ImageOptions(**options)).normalize(raw))

    np.testing.assert_allclose(values(preprocessing="none"), unit, atol=1e-6)
    low, high = (part(unit, axis=(1, 2, 3), keepdims=True) for part in (np.min, np.max))
    spread = np.where(high > low, high - low, 1)
    np.testing.assert_allclose(values(preprocessing="minmax"), (unit - low) / spread, atol=1e-6)
    zscore = (unit - IMAGENET[0]) / IMAGENET[1]
    np.testing.assert_allclose(values(preprocessing="zscore"), zscore, atol=1e-5)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    own = values(preprocessing="zscore", mean=mean, std=std)
    np.testing.assert_allclose(own, (unit - mean) / std, atol=1e-5)
    np.testing.assert_array_equal(values(mean=mean, std=std), own)
    write(tmp_path, "CLIP")
    np.testing.assert_allclose(values(mean=mean, std=std), (unit - mean) / std, atol=1e-5)
    clip = Pixels.read(tmp_path, ImageOptions())
    assert Pixels.read(tmp_path, ImageOptions(preprocessing="zscore")) == clip  # it is one already


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preprocessing": "whiten"}, "'whiten' is none of zscore, minmax, none"),
        ({"preprocessing": "minmax", "mean": (0.0,) * 3}, "belong to zscore, not to .* minmax"),
        ({"preprocessing": "none", "std": (1.0,) * 3}, "belong to zscore, not to .* none"),
        ({"mean": (0.5,)}, "three numbers each, not 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"reshape": (0, 30)}, "reshape"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, options, message):
    write(tmp_path)
    with pytest.raises(InputError, match=message):
        Pixels.read(tmp_path, ImageOptions(**options))


def test_pictures_too_large_to_decode_are_left_out(tmp_path):
    for name, size in (("small", (20, 30)), ("large", (31, 20))):
        noise(size).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("small", "large")]
    options = ImageOptions(reshape=(8, 8), max_pixels=600)
    pixels = Pixels.read(write(tmp_path), options)
    (batch,) = images.pixel_batches(paths, 2, pixels.apply, pixels.size, options)
    assert batch.rows.tolist() == [0]
    assert batch.failed == {1: "31 x 20 pixels are more than the limit of 600"}
    assert not batch.arrays[0][1].any()
