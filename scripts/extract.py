"""Encodes a prepared dataset's images or texts into a store.

python scripts/extract.py --dataset=DIR --encoder=plain_image --out=STORE
python scripts/extract.py --dataset=DIR --encoder=bert --weights=all-MiniLM-L6-v2 --out=STORE
"""

from _app import run
from absl import flags

from mmjax import mesh
from mmjax.data.dataset import load
from mmjax.features.extract import extract

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Prepared folder (prepare.py).", required=True)
flags.DEFINE_string("encoder", None, "File name in mmjax/encoders, or module.", required=True)
flags.DEFINE_string("out", None, "Store to write: folder, gs:// or s3:// URL.", required=True)
flags.DEFINE_string("weights", None, "Checkpoint folder, hub id or packaged name.")
flags.DEFINE_string("revision", None, "Revision of a hub id.")
flags.DEFINE_string("pooling", None, "mean, cls, max or pooler; the checkpoint's own if not given.")
flags.DEFINE_integer("width", None, "Width of the plain encoders (at most 128 by default).")
flags.DEFINE_list("fields", ["text"], "Text fields to encode: text, title, or title,text.")
flags.DEFINE_integer("batch", 32, "Items in one device batch.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of computation and store.")
flags.DEFINE_enum("on_error", "stop", ["stop", "skip"], "At an input that cannot be read.")
flags.DEFINE_string("mesh", "data=-1", "Devices; a batch is split over `data`.")
flags.DEFINE_bool("overwrite", False, "Replace a store that is there.")


def main() -> None:
    options = {name: getattr(FLAGS, name) for name in ("weights", "revision", "pooling", "width")}
    summary = extract(
        load(FLAGS.dataset),
        FLAGS.encoder,
        FLAGS.out,
        options=options,
        fields=FLAGS.fields,
        batch=FLAGS.batch,
        dtype=FLAGS.dtype,
        on_error=FLAGS.on_error,
        rows=mesh.rows(mesh.make(FLAGS.mesh)),
        overwrite=FLAGS.overwrite,
    )
    for item, given, why in summary.failed:
        print(f"skipped item {item}: {given}: {why}")
    print(
        f"{summary.store}: {summary.items} items x {summary.width}, {summary.present} present, "
        f"{summary.items - summary.present} absent ({len(summary.failed)} could not be read), "
        f"{summary.seconds:.1f} s, {summary.present / summary.seconds:.1f} items/s"
    )


if __name__ == "__main__":
    run(main)
