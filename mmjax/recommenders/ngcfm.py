"""NGCF-M: NGCF with VBPR's content space beside it."""

import jax
from flax import nnx

from mmjax.recommenders import base, ngcf
from mmjax.recommenders.layers import projection


class NGCFM(ngcf.NGCF):
    """NGCF-M: NGCF with VBPR's content space beside it.

    Ducho meets Elliot (arXiv 2409.15857): s = <z_u, z_i> + <t_u, p_i>.

    z is NGCF's, but the mean of its states (`combine`); p_i = n(F_i W + b) of the frozen features
    of all modalities side by side, n unit vectors. The loss is BPR plus l_w times half the squares
    of the batch's rows of z, t and p over B. Elliot's BPR is clipped where -s(u, i) + s(u, j) > 80.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 3,
        node_dropout: float = 0.1,
        combine: str = "mean",
        evaluation_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            catalog,
            dim=dim,
            layers=layers,
            node_dropout=node_dropout,
            combine=combine,
            evaluation_dropout=evaluation_dropout,
            rngs=rngs,
        )
        self.head = projection.Head(catalog, dim, rngs=rngs)

    def _tables(
        self,
        adjacency: ngcf.Adjacency,
        key: jax.Array | None = None,
        rate: jax.Array | float = 0,
    ) -> base.Tables:
        return self.head.beside(super()._tables(adjacency, key, rate))
