"""Plain PyTorch versions of four recommenders for the benchmark.

They are written as one would with torch only, after MMRec's mathematics: full Adam on every table,
COO adjacency, offset BPR loss, Frobenius penalties (FREEDOM: log-sigmoid BPR loss, no penalty).
Sampling and ranking are vectorised (MMRec loops in Python there), so that the comparison is of the
arithmetic.
"""

import numpy as np
import torch
from torch.nn.functional import logsigmoid, sigmoid

torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless this is set


class Peer(torch.nn.Module):
    """BPR-MF, LightGCN, VBPR or FREEDOM by name.

    `options` are those of its config.
    """

    def __init__(self, name: str, catalog, options: dict):
        super().__init__()
        self.name, self.options, dim = name, options, options["dim"]
        users, items = catalog.shape
        self.user = torch.nn.Parameter(torch.empty(users, dim * (2 if name == "vbpr" else 1)))
        self.item = torch.nn.Parameter(torch.empty(items, dim))
        for table in (self.user, self.item):
            torch.nn.init.xavier_uniform_(table)
        parts = [torch.from_numpy(np.array(x)) for x in catalog.features.values()]
        if name == "vbpr":
            self.features = torch.cat(parts, 1)
            self.linear = torch.nn.Linear(self.features.shape[1], dim)
        if name == "freedom":
            self.features = torch.nn.ParameterList(parts)
            self.linears = torch.nn.ModuleList(torch.nn.Linear(x.shape[1], dim) for x in parts)
            image, text = (neighbours(x, options["top_k"]) for x in parts)
            self.similar = (0.1 * image + 0.9 * text).coalesce()
        if name in ("lightgcn", "freedom"):
            pairs = (catalog.train_user, catalog.train_item)
            self.pairs = [torch.from_numpy(np.asarray(x, np.int64)) for x in pairs]
            self.whole = self.graph = self.normalised(*self.pairs)

    def normalised(self, user, item) -> torch.Tensor:
        users, items = len(self.user), len(self.item)
        rows, columns = torch.cat([user, item + users]), torch.cat([item + users, user])
        degree = torch.bincount(rows, minlength=users + items) + 1e-7
        values = (degree[rows] * degree[columns]) ** -0.5
        size = (users + items,) * 2
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, size).coalesce()

    def redraw(self) -> None:
        """Prune FREEDOM's graph, as MMRec does before an epoch."""
        if self.name == "freedom":
            user, item = self.pairs
            degrees = torch.bincount(user)[user] * torch.bincount(item)[item]
            count = int((1 - self.options["drop"]) * len(user))
            kept = torch.multinomial(degrees.float() ** -0.5, count)
            self.graph = self.normalised(user[kept], item[kept])

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.name == "vbpr":
            return self.user, torch.cat([self.item, self.linear(self.features)], 1)
        if self.name == "bprmf":
            return self.user, self.item
        layers = self.options["layers"]
        graph = self.graph if self.training else self.whole
        state = total = torch.cat([self.user, self.item])
        for _ in range(layers):
            state = torch.sparse.mm(graph, state)
            total = total + state
        users, items = (total / (layers + 1)).split([len(self.user), len(self.item)])
        if self.name == "freedom":
            items = items + torch.sparse.mm(self.similar, self.item)
        return users, items

    def loss(self, user, pos, neg, l_w: float) -> torch.Tensor:
        if self.name == "vbpr":
            pairs = torch.cat([pos, neg])
            content = self.linear(self.features[pairs])
            rows = torch.cat([self.item[pairs], content], 1)
            u, (i, j) = self.user[user], rows.chunk(2)
            ego = (u, i, j)
        else:
            users, items = self.tables()
            u, i, j = users[user], items[pos], items[neg]
            ego = (self.user[user], self.item[pos], self.item[neg])
        if self.name == "freedom":
            total = -logsigmoid((u * (i - j)).sum(1)).mean()
            for linear, features in zip(self.linears, self.features, strict=True):
                x = linear(features)
                total = total - l_w * logsigmoid((u * (x[pos] - x[neg])).sum(1)).mean()
            return total
        ranking = -torch.log(1e-10 + sigmoid((u * (i - j)).sum(1))).mean()
        return ranking + l_w * sum(x.norm() for x in ego) / len(user)


def neighbours(x: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k-NN graph by cosine, every edge 1/k.

    The similarities are dense, as in MMRec.
    """
    unit = x / x.norm(dim=1, keepdim=True)
    near = torch.topk(unit @ unit.T, k).indices
    rows = torch.arange(len(x)).repeat_interleave(k)
    values = torch.full((len(rows),), 1 / k)
    return torch.sparse_coo_tensor(torch.stack([rows, near.flatten()]), values, (len(x),) * 2)


def epoch(model: Peer, optimizer, user, item, n_items: int, batch: int, l_w: float) -> float:
    """Train for one epoch over shuffled interactions.

    Negatives that the user has interacted with are drawn again.

    Returns:
      The loss of the last batch.
    """
    model.train()
    model.redraw()
    known, _ = torch.sort(user * n_items + item)
    last = 0.0
    for rows in torch.randperm(len(user)).split(batch):
        u, i = user[rows], item[rows]
        j = torch.randint(n_items, (len(u),))
        while True:
            key = u * n_items + j
            position = torch.searchsorted(known, key).clamp_(max=len(known) - 1)
            taken = known[position] == key
            if not taken.any():
                break
            j[taken] = torch.randint(n_items, (int(taken.sum()),))
        optimizer.zero_grad()
        loss = model.loss(u, i, j, l_w)
        loss.backward()
        optimizer.step()
        last = loss.item()
    return last


@torch.no_grad()
def evaluate(model: Peer, task, longest: int, chunk: int = 4096) -> float:
    """Compute full-rank Recall and nDCG at `longest`, vectorised.

    Returns:
      The mean Recall.
    """
    model.eval()
    users, items = model.tables()
    n_items = len(items)
    user_ids = torch.from_numpy(task.users.astype(np.int64))
    owner = torch.from_numpy(np.repeat(np.arange(len(user_ids)), np.diff(task.target.start)))
    keys = owner * n_items + torch.from_numpy(task.target.item.astype(np.int64))
    seen_owner = np.repeat(np.arange(len(user_ids)), np.diff(task.seen.start))
    weight = 1 / torch.log2(torch.arange(2, longest + 2).float())
    ideal = torch.cumsum(weight, 0)
    recall, ndcg = [], []
    for start in range(0, len(user_ids), chunk):
        stop = min(start + chunk, len(user_ids))
        scores = users[user_ids[start:stop]] @ items.T
        low, high = np.searchsorted(seen_owner, [start, stop])
        rows = torch.from_numpy(seen_owner[low:high] - start)
        scores[rows, torch.from_numpy(task.seen.item[low:high].astype(np.int64))] = -1e10
        top = scores.topk(longest).indices + torch.arange(start, stop)[:, None] * n_items
        hit = torch.isin(top, keys).float()
        relevant = torch.from_numpy(task.relevant[start:stop])
        recall.append(hit.sum(1) / relevant)
        capped = relevant.clamp(max=longest).long() - 1
        ndcg.append((hit * weight).sum(1) / ideal[capped])
    torch.cat(ndcg).mean()
    return float(torch.cat(recall).mean())
