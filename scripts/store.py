"""Show, check, fuse, import and export feature stores.

python scripts/store.py --action=show --store=STORE
python scripts/store.py --action=export_npy --store=STORE --file=image_feat.npy
python scripts/store.py --action=import_folder --file=FOLDER --store=STORE --dataset=DIR
python scripts/store.py --action=fuse --sources=VISUAL,TEXTUAL --fusion=concat --store=STORE
python scripts/store.py --action=control --sources=FEATURES --control=gaussian --store=STORE

One .npy is the format of MMRec, a folder of one .npy an item that of Ducho. `control` makes noise
of a store's features.
"""

import json

from _app import run
from absl import flags

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data.dataset import load
from mmjax.features.controls import CONTROLS, control
from mmjax.features.fuse import WAYS, fuse

FLAGS = flags.FLAGS
ACTIONS = ("show", "verify", "export_npy", "export_folder", "import_npy", "import_folder")
ACTIONS += ("fuse", "control")
flags.DEFINE_enum("action", "show", ACTIONS, "What to do.")
flags.DEFINE_string("store", None, "The store: folder, gs:// or s3:// URL.", required=True)
flags.DEFINE_string("file", None, "The .npy file or the folder of them to export to or import.")
flags.DEFINE_string("dataset", None, "Prepared folder whose items the rows are.")
flags.DEFINE_string("encoder", "", "For imports: what made the features.")
flags.DEFINE_list("sources", [], "Of fuse: stores of the same items; of control: the features.")
flags.DEFINE_enum("fusion", "concat", WAYS, "Of fuse.")
flags.DEFINE_enum("control", "gaussian", list(CONTROLS), "Of control: which noise.")
flags.DEFINE_integer("seed", 0, "Of control.")
flags.DEFINE_bool("overwrite", False, "Replace what is there.")


def main() -> None:
    action, overwrite = FLAGS.action, FLAGS.overwrite
    if action not in ("show", "verify", "fuse", "control") and not FLAGS.file:
        raise InputError(f"--action={action} needs --file")
    if action.startswith("import") and not FLAGS.dataset:
        raise InputError(f"--action={action} needs --dataset, which names the items")
    dataset = load(FLAGS.dataset) if FLAGS.dataset else None
    if action.startswith("import"):
        import_features = store.import_npy if action == "import_npy" else store.import_folder
        metadata = {"encoder": FLAGS.encoder, "imported_from": FLAGS.file, "overwrite": overwrite}
        import_features(FLAGS.file, FLAGS.store, dataset.item_ids, **metadata)
    if action == "fuse":
        fuse(FLAGS.sources, FLAGS.fusion, FLAGS.store, overwrite=overwrite)
    if action == "control":
        if len(FLAGS.sources) != 1:
            raise InputError("--action=control needs one --sources, the features")
        noise = {"seed": FLAGS.seed, "overwrite": overwrite}
        control(FLAGS.sources[0], FLAGS.store, FLAGS.control, **noise)
    opened = store.open_store(
        FLAGS.store,
        item_hash=dataset and dataset.item_hash(),
        n_items=dataset and dataset.n_items,
    )
    if action == "export_npy":
        store.export_npy(opened, FLAGS.file, overwrite=overwrite)
    elif action == "export_folder":
        store.export_folder(opened, FLAGS.file, overwrite=overwrite)
    elif action == "verify":
        opened.verify()
    present = int(sum(mask.sum() for _, _, mask in opened.blocks()))
    metadata = {key: value for key, value in opened.manifest.items() if key != "digests"}
    print(json.dumps({**metadata, "present": present}, indent=2, sort_keys=True))


if __name__ == "__main__":
    run(main)
