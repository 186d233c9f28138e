"""The options that the contract test gives each recommender on its small world."""

COMMON = {"dim": 32, "layers": 2, "l_w": 5e-2}
OF_MODEL = {
    "bm3": {"layers": 1, "l_w": 0.1, "cl_weight": 0.1},
    "grcn": {"dim": 8, "content_dim": 8, "normalize_layers": True},
    "mmgcn": {"latent": 16, "concat": False, "l_w": 1.0},
    "pgl": {"drop": 0.1},
    "smore": {"l_w": 1e-3, "drop": 0.1},
    "lgmrec": {"l_w": 1e-3, "temperature": 3.0},
    "ials": {"iterations": 4, "l2": 0.03, "unobserved": 0.3},
    "lightgcn": {"l_w": 5e-3},
    "layergcn": {"l_w": 1e-3},
    "lattice": {"l_w": 1e-3},
    "lightgcnm": {"l_w": 1e-3},
    "mgcn": {"l_w": 1e-4},
    "micro": {"l_w": 1e-5},
    "ngcf": {"l_w": 7e-2, "message_dropout": 0.4},
    "ngcfm": {"l_w": 1e-3},
    "selfcf": {"l_w": 0.0, "layers": 1},
    "sgl": {"l_w": 1e-2, "temperature": 0.5},
    "simgcl": {"l_w": 1e-3, "cl_weight": 0.05},
}
# What each must reach of MostPop's Recall@20 after 20 epochs (1.3 unless said here).
FACTOR = {
    "random": 0.0,
    "mostpop": 1.0,
}
