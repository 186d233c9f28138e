"""Embedding store: a float array [I, F] and the present items.

Rows are in the dataset's item order. A store is a folder or a URL (`gs://…`, `s3://…`, whatever
TensorStore opens) that holds

  manifest.json   what the rows are, how they were made, a digest per chunk, `complete`
  features/       zarr3 [I, F], chunks of whole rows (about 4 MiB), crc32c in every chunk
  present/        zarr3 bool [I], chunked by the same rows; an absent item's row is zeros
  items.txt       the items' ids, one per line
  failures.jsonl  of an extraction: the items that could not be read, and why
  parts/          only while unfinished: a record of every chunk that is written

The manifest is written first with `complete: false` and replaced at the end. So a store that a kill
left unfinished cannot be opened, but `create` can resume it. Chunks are independent: several
writers may share them. The `content_hash` changes with any value, so it is the key of whatever is
derived from a store.
"""

from mmjax.store.convert import export_folder, export_npy, import_folder, import_npy
from mmjax.store.create import create, refuse_existing, write_array
from mmjax.store.read import Store, open_store
from mmjax.store.write import Writer

__all__ = [
    "Store",
    "Writer",
    "create",
    "export_folder",
    "export_npy",
    "import_folder",
    "import_npy",
    "open_store",
    "refuse_existing",
    "write_array",
]
