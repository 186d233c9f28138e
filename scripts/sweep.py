r"""Run a sweep: tune on validation, read the test split once.

  python scripts/sweep.py --config=configs/sweeps/noise_controls.py:small --workdir=SWEEP \
    --config.dataset=DIR

A grid is trained as few programs. Run the same command again after a kill: it goes on, and does
nothing twice. Run it several times at once, on one host or many that share the folder: they share
the work. With --estimate it only says what it will take; with --compile it only fills the cache of
compiled programs (--compile_cache, or SWEEP/programs), from which all processes then start.
`report.py --sweep=SWEEP` makes the page.
"""

import jax
from _app import run
from absl import flags
from ml_collections import config_flags

from mmjax.core import storage
from mmjax.parallel import compile_cache
from mmjax.parallel import mesh as meshes
from mmjax.sweep import estimate, precompile, space, worker
from mmjax.sweep.plan import Plan
from mmjax.sweep.resources import Resources

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/sweeps/NAME.py[:small]")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this sweep.", required=True)
MOST = flags.DEFINE_integer("max_trials_per_program", 0, "0 for as many as memory holds.", 0)
RETRY = flags.DEFINE_bool("retry_failed", False, "Train once more what failed.")
COMPILE = flags.DEFINE_bool("compile", False, "Only compile all programs, into the cache.")
ESTIMATE = flags.DEFINE_bool("estimate", False, "Only say what it will take.")
EXPIRY = flags.DEFINE_float(
    "lease_seconds", 300.0, "After which what a lost process was doing is taken over.", 1.0
)


def main() -> None:
    workdir = storage.local(WORKDIR.value)
    if not jax.config.jax_compilation_cache_dir:
        compile_cache.keep(workdir / "programs")
    sweep = CONFIG.value.to_dict()
    resources = Resources(sweep)
    cells, without = resources.resolve(space.cells(sweep))
    for cell, store in without.items():
        print(f"left out: {cell}, there is no {store!r}")
    plan = Plan(sweep, cells, resources, workdir)
    if COMPILE.value:
        print(f"{precompile.compile_all(plan, MOST.value)} programs are in the cache")
        return
    if ESTIMATE.value:
        free = meshes.free_memory(meshes.make(cells[0].config["mesh"]))
        print(estimate.table(estimate.estimate(plan, MOST.value), free))
        return
    worker.run(plan, most=MOST.value, retry_failed=RETRY.value, expiry=EXPIRY.value)
    print(f"done; python scripts/report.py --sweep={workdir} makes its page")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run(main, processes="workers")
