"""The options that the contract test gives each recommender on its small world."""

COMMON = {"dim": 32, "layers": 2, "l_w": 5e-2}
OF_MODEL = {
    "ials": {"iterations": 4},
    "lightgcn": {"l_w": 5e-3},
}
# What each must reach of MostPop's Recall@20 after 20 epochs (1.3 unless said here).
FACTOR = {
    "random": 0.0,
    "mostpop": 1.0,
}
