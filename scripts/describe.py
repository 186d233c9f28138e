r"""Turn a model's answers about items into attributes.

python scripts/describe.py --dataset=DIR --answers=FILE.csv --out=DIR/described/qwen2vl
python scripts/describe.py --dataset=DIR --store=STORE --prompt=configs/prompts/baby.txt --out=…
python scripts/describe.py --dataset=DIR --answers=FILE.csv --texts_out=STORE    # whole answers
python scripts/train.py --config=configs/attributeitemknn.py --config.dataset=DIR \
    --config.features=attributes=DIR/described/qwen2vl/attributes --workdir=RUN

The attributes are a feature store that any recommender can read. Answers are a table of ids and
texts, or what an extraction by a model that answers left in its store. `--out` gets attributes,
parsed.jsonl and summary.json, see mmjax/features/descriptions/describe.py. `--texts_out` gets
sentence embeddings of the complete answers, of any form or none.
"""

from functools import partial
from pathlib import Path
from typing import Any

from _app import run
from absl import flags

from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset, load
from mmjax.encoders.registry import load_encoder
from mmjax.features.descriptions import describe
from mmjax.features.descriptions.parse import slots_of_prompt
from mmjax.features.extraction.extract import extract
from mmjax.features.extraction.inputs import Inputs
from mmjax.features.extraction.job import Job
from mmjax.parallel import distributed, mesh

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Prepared folder (prepare.py).", required=True)
flags.DEFINE_string("answers", None, "Table of answers: CSV, TSV or Parquet.")
flags.DEFINE_string("id_column", None, "Of --answers; asin, Image Name, id or item if not given.")
flags.DEFINE_string("text_column", None, "Of --answers; result, Keywords or text if not given.")
flags.DEFINE_string("store", None, "Or a store whose extraction left descriptions.jsonl.")
flags.DEFINE_string("out", None, "Folder to make.")
flags.DEFINE_string("name", "", "What reports call the model; the name of --out by default.")
flags.DEFINE_list("slots", [], "Labels in order; found in the answers if not given.")
flags.DEFINE_string("prompt", None, "Or the prompt's file, whose [Label]s they are.")
flags.DEFINE_float("threshold", 0.45, "Mean cosine distance below which keywords become one.", 0)
flags.DEFINE_integer("top", 50, "Keywords of a slot; all others are `other`.", 1)
flags.DEFINE_integer("min_count", 1, "Rarer keywords are `other`.", 1)
flags.DEFINE_string("texts_out", None, "Store of sentence embeddings of the whole answers.")
flags.DEFINE_string("encoder", "bert", "Of keywords and whole answers, see extract.py.")
flags.DEFINE_string("weights", "all-MiniLM-L6-v2", "Of the encoder.")
flags.DEFINE_string("revision", None, "Revision of a hub id.")
flags.DEFINE_integer("batch", 64, "Texts in one device batch.", 1)
flags.DEFINE_string("mesh", "data=-1", "Devices for --texts_out.")
flags.DEFINE_bool("overwrite", False, "Replace what is there.")


def main() -> None:
    if not FLAGS.out and not FLAGS.texts_out:
        raise InputError("give --out for attributes, --texts_out for embeddings, or both")
    dataset = load(FLAGS.dataset)
    answers = describe.in_order(read_answers(), dataset)
    options = {"weights": FLAGS.weights or None, "revision": FLAGS.revision}
    if FLAGS.out:
        distributed.run_on_primary(partial(find_attributes, answers, dataset, options))
    if FLAGS.texts_out:
        job = Job(FLAGS.encoder, FLAGS.texts_out, options, batch=FLAGS.batch)
        grid = mesh.make(FLAGS.mesh, own=True)
        print(extract(answers, job, mesh=grid, overwrite=FLAGS.overwrite))


def find_attributes(answers: Inputs, dataset: Dataset, options: dict[str, Any]) -> None:
    tower = load_encoder(FLAGS.encoder, options)
    summary = describe.describe(
        answers,
        FLAGS.out,
        describe.embedder(tower, FLAGS.batch),
        slots=read_slots(),
        name=FLAGS.name,
        threshold=FLAGS.threshold,
        top=FLAGS.top,
        min_count=FLAGS.min_count,
        about={"keywords_by": {key: tower.about[key] for key in ("encoder", "revision")}},
        truth=dataset.attributes,
        overwrite=FLAGS.overwrite,
    )
    print(describe.card(summary))
    print(f"wrote {FLAGS.out}/attributes, parsed.jsonl, summary.json")


def read_answers() -> Inputs:
    if bool(FLAGS.answers) == bool(FLAGS.store):
        raise InputError("give one of --answers and --store")
    if FLAGS.store:
        return describe.read_store(FLAGS.store)
    return describe.read_table(FLAGS.answers, FLAGS.id_column, FLAGS.text_column)


def read_slots() -> list[str]:
    """Return the slots that the flags name.

    [] leaves them to the answers.
    """
    if not FLAGS.prompt:
        return [slot.strip() for slot in FLAGS.slots]
    if FLAGS.slots:
        raise InputError("give one of --slots and --prompt")
    path = Path(FLAGS.prompt)
    if not path.is_file():
        raise InputError(f"{path} is missing; check --prompt")
    slots = slots_of_prompt(path.read_text(encoding="utf-8"))
    if not slots:
        raise InputError(f"{path} asks for no [Label]; name the slots by --slots=A,B,C")
    return slots


if __name__ == "__main__":
    run(main, processes="joined")
