r"""Encode images, texts or audio into feature stores.

A prepared dataset, one encoder:
  python scripts/extract.py --dataset=DIR --encoder=efficientnet --weights=efficientnet-lite0 \
      --out=DIR/features/visual
Several layers from one pass, several encoders in one run, a dual encoder and its fusion:
  python scripts/extract.py … --layers=pooler_output,hidden_states.3:mean --out=FOLDER
  python scripts/extract.py --config=configs/extract/movielens.py --dataset=DIR --out=FOLDER
  python scripts/extract.py … --encoder=clip --weights=openai/clip-vit-base-patch16 \
      --modality=visual_textual --fusion=concat --out=FOLDER
A large vision-language model under a prompt, whose answers come along as descriptions.jsonl:
  python scripts/extract.py … --encoder=qwen2_vl --weights=Qwen/Qwen2-VL-7B-Instruct \
      --prompt=configs/prompts/baby.txt --pooling=eos --layer=-1 --dtype=bfloat16 --out=STORE
Files and tables as they are, reviews among them; a Ducho configuration; any model of PyTorch:
  python scripts/extract.py --texts=reviews.tsv --id_columns=user,item --text_column=review …
  python scripts/extract.py --ducho=config.yml
  python scripts/extract.py … --backend=torch --encoder=timm --weights=NAME
Several processes, each with its devices, share the items (scripts/launch):
  python scripts/launch/local.py --processes=2 -- scripts/extract.py …

After a kill the same command resumes the extraction.
"""

from functools import partial

from _app import run
from absl import flags
from ml_collections import config_flags

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data.dataset import load
from mmjax.features import ducho
from mmjax.features.extraction import inputs
from mmjax.features.extraction.job import Job
from mmjax.features.extraction.plan import ExtractionPlan, check_modality, follow, steps_of
from mmjax.parallel import distributed, mesh

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Prepared folder (prepare.py) whose items are encoded.")
flags.DEFINE_string("images", None, "Or a folder of images, each named by its item.")
flags.DEFINE_string("audios", None, "Or a folder of audio files, each named by its item.")
flags.DEFINE_string("texts", None, "Or a table (TSV, CSV, Parquet) of texts.")
flags.DEFINE_list("id_columns", ["item"], "Of --texts: the item, or the user and the item.")
flags.DEFINE_string("text_column", "text", "Of --texts.")
flags.DEFINE_list("fields", ["text"], "Of --dataset, what a text is: text, title, or title,text.")

flags.DEFINE_string("encoder", None, "File in mmjax/encoders/towers, module, or auto by --weights.")
flags.DEFINE_enum("backend", "jax", ["jax", "torch"], "torch: any model, on the host.")
config_flags.DEFINE_config_file("config", None, "Several encoders: see configs/extract.")
flags.DEFINE_string("ducho", None, "Or a Ducho configuration.")
flags.DEFINE_multi_string("ducho_set", [], "Changes one of its values: a.b.c=value.")
flags.DEFINE_string("out", None, "Store to write (folder, gs:// or s3:// URL), or folder of them.")

flags.DEFINE_string("weights", None, "Checkpoint folder or file, hub id or packaged name.")
flags.DEFINE_string("revision", None, "Revision of a hub id.")
flags.DEFINE_list("layers", [], "Outputs: NAME, NAME:mean|cls|max|flatten, or number.")
flags.DEFINE_string("modality", None, "Of dual encoders: visual, textual, visual_textual.")
flags.DEFINE_string("fusion", None, "Of visual_textual: concat, sum, mul or mean.")
flags.DEFINE_alias("layer", "layers")
flags.DEFINE_string("pooling", None, "mean, cls, max or pooler; the checkpoint's own if not given.")
flags.DEFINE_string("prompt", None, "LVLM: text file with {image}, perhaps {title}, {description}.")
flags.DEFINE_integer("max_new_tokens", None, "LVLM: at which an answer is cut (128).")
flags.DEFINE_integer("max_image_tokens", None, "LVLM: images are made smaller to take no more.")
flags.DEFINE_bool("int8", None, "LVLM: the decoder's weights in eight bits.")
flags.DEFINE_float("temperature", None, "LVLM: answers are drawn; greedy if not given.")
flags.DEFINE_integer("seed", None, "LVLM: of drawn answers.")
flags.DEFINE_string("tokenizer", None, "Checkpoint whose tokenizer is used instead.")
flags.DEFINE_integer("max_length", None, "Tokens at which a text is cut.")
flags.DEFINE_enum("padding", None, ["bucket", "max_length"], "Of texts; to buckets if not given.")
flags.DEFINE_bool("clean", None, "Clean texts as Ducho's clear_text does.")
flags.DEFINE_string("image_processor", None, "Checkpoint whose image processor is used instead.")
flags.DEFINE_list("reshape", None, "HEIGHT,WIDTH that images are squeezed to.")
flags.DEFINE_enum("preprocessing", None, ["zscore", "minmax", "none"], "Of pixels.")
flags.DEFINE_list("mean", None, "With zscore: three numbers.")
flags.DEFINE_list("std", None, "With zscore: three numbers.")
flags.DEFINE_integer("max_pixels", None, "Images with more are not decoded.")
flags.DEFINE_float("max_seconds", None, "At which audio is cut.")
flags.DEFINE_bool("normalize_samples", None, "Audio to zero mean and unit variance, or not.")
flags.DEFINE_integer("width", None, "Of the plain encoders (at most 128 by default).")
flags.DEFINE_string("architecture", None, "torch: name of the model that a weights file fills.")
flags.DEFINE_bool("trust", None, "torch: a pickled module may run its code.")
flags.DEFINE_string("device", None, "torch: cpu or cuda.")
flags.DEFINE_integer("threads", None, "torch: on the CPU.")

flags.DEFINE_integer("workers", None, "Threads that decode; as many as cores if not given.")
flags.DEFINE_integer("batch", 32, "Items in one device batch.")
flags.DEFINE_integer("chunk_rows", None, "Items a kill can lose; 512 if not given.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of computation and store.")
flags.DEFINE_enum("on_error", "skip", ["skip", "stop"], "At an input that cannot be read.")
flags.DEFINE_string("mesh", "data=-1", "Of a process: batches over data, parameters over model.")
flags.DEFINE_bool("overwrite", False, "Begin anew what is there.")
flags.DEFINE_bool("export_folders", False, "Also write one .npy an item beside every store.")

OPTIONS = ("weights", "revision", "layers", "modality", "pooling", "tokenizer", "max_length")
OPTIONS += ("padding", "clean", "image_processor", "reshape", "preprocessing", "mean", "std")
OPTIONS += ("max_pixels", "max_seconds", "normalize_samples", "width", "workers")
OPTIONS += ("prompt", "max_new_tokens", "max_image_tokens", "temperature", "seed", "int8")
OPTIONS += ("architecture", "trust", "device", "threads")


def main() -> None:
    plan = make_plan()
    for key in plan.ignored:
        print(f"ignored {key}")
    grid = mesh.make(FLAGS.mesh, own=True)
    for url in follow(plan.steps, mesh=grid, overwrite=FLAGS.overwrite):
        if FLAGS.export_folders:
            distributed.run_on_primary(partial(export, url))


def export(url: str) -> None:
    store.export_folder(store.open_store(url), f"{url}.npy", overwrite=True)


def make_plan() -> ExtractionPlan:
    """Build the plan that the flags ask for.

    It is one encoder, a config of several, or Ducho's configuration.
    """
    ways = [name for name in ("encoder", "config", "ducho") if FLAGS[name].value]
    if FLAGS.backend == "torch" and not ways:
        FLAGS.encoder, ways = "auto", ["encoder"]
    if len(ways) != 1:
        raise InputError("give one of --encoder, --config and --ducho")
    if ways == ["ducho"]:
        return ducho.read(FLAGS.ducho, FLAGS.ducho_set, FLAGS.dtype)
    if not FLAGS.out:
        raise InputError("--out is missing; see --help")
    rows = read_inputs()
    if ways == ["config"]:
        jobs = FLAGS.config.to_dict()["jobs"]
        steps = [
            step
            for name, settings in jobs.items()
            for step in steps_of(rows, *job_of(settings, f"{FLAGS.out}/{name}"))
        ]
        return ExtractionPlan(steps)
    settings = {name: FLAGS[name].value for name in OPTIONS}
    settings |= {name: FLAGS[name].value for name in ("encoder", "backend", "fusion", "batch")}
    return ExtractionPlan(steps_of(rows, *job_of(settings, FLAGS.out)))


def read_inputs() -> inputs.Inputs:
    """Read the rows that the flags name.

    They are of a dataset, or files and a table joined by id.
    """
    if FLAGS.dataset:
        return inputs.of_dataset(load(FLAGS.dataset), FLAGS.fields)
    parts = []
    for flag, modality in (("images", "image"), ("audios", "audio")):
        if FLAGS[flag].value:
            parts.append(inputs.of_files(FLAGS[flag].value, modality))
    if FLAGS.texts:
        parts.append(inputs.of_table(FLAGS.texts, FLAGS.id_columns, FLAGS.text_column))
    if not parts:
        raise InputError("give --dataset, or --images, --audios or --texts")
    rows = parts[0]
    for part in parts[1:]:
        rows = inputs.join(rows, part)
    return rows


def job_of(about: dict, out: str) -> tuple[Job, str | None]:
    """Return an encoder's job and fusion from its checked settings.

    The settings are converted to their types.
    """
    about = {key: value for key, value in about.items() if value is not None}
    encoder, fusion = about.pop("encoder", "auto"), about.pop("fusion", None)
    if about.pop("backend", "jax") == "torch":
        about["kind"], encoder = encoder, "hosted"
    check_modality(about.get("modality"))
    for key, kind, count in (("reshape", int, 2), ("mean", float, 3), ("std", float, 3)):
        if key in about:
            about[key] = numbers(key, about[key], kind, count)
    about["layers"] = tuple(about.get("layers", ()))
    batch = about.pop("batch", FLAGS.batch)
    settings = {key: FLAGS[key].value for key in ("dtype", "chunk_rows", "on_error")}
    settings |= {key: about.pop(key) for key in list(about) if key in settings}
    if not about["layers"]:
        del about["layers"]  # the plain encoders have none
    return Job(encoder, out, about, batch=batch, **settings), fusion


def numbers(key: str, values: list, kind: type, count: int) -> tuple:
    try:
        converted = tuple(kind(value) for value in values)
    except ValueError:
        converted = ()
    if len(converted) != count:
        raise InputError(f"--{key} takes {count} numbers, not {','.join(map(str, values))!r}")
    return converted


if __name__ == "__main__":
    run(main, processes="joined")
