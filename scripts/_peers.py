"""Plain PyTorch versions of three recommenders: what the benchmark compares with, side by side.

Written as one would with torch alone, after MMRec's mathematics: full Adam on every table, COO
adjacency, offset BPR loss, Frobenius penalties. Sampling and ranking are vectorised (MMRec loops in
Python there), so that the comparison is of the arithmetic.
"""

import numpy as np
import torch
from torch.nn.functional import sigmoid


class Peer(torch.nn.Module):
    """BPR-MF, LightGCN or VBPR by name; `rows(u, i, j)` gives what loss and penalty need."""

    def __init__(self, name: str, catalog, dim: int, layers: int = 2):
        super().__init__()
        self.name, self.layers = name, layers
        users, items = catalog.shape
        self.user = torch.nn.Parameter(torch.empty(users, dim * (2 if name == "vbpr" else 1)))
        self.item = torch.nn.Parameter(torch.empty(items, dim))
        for table in (self.user, self.item):
            torch.nn.init.xavier_uniform_(table)
        if name == "vbpr":
            parts = [np.asarray(x) for x in catalog.features.values()]
            self.features = torch.from_numpy(np.concatenate(parts, 1))
            self.linear = torch.nn.Linear(self.features.shape[1], dim)
        if name == "lightgcn":
            user, item = (np.asarray(x, np.int64) for x in (catalog.train_user, catalog.train_item))
            rows = np.concatenate([user, item + users])
            columns = np.concatenate([item + users, user])
            degree = np.bincount(rows, minlength=users + items) + 1e-7
            values = (degree[rows] * degree[columns]) ** -0.5
            where, size = torch.from_numpy(np.stack([rows, columns])), (users + items,) * 2
            values = torch.from_numpy(values.astype(np.float32))
            self.graph = torch.sparse_coo_tensor(where, values, size).coalesce()

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.name == "vbpr":
            return self.user, torch.cat([self.item, self.linear(self.features)], 1)
        if self.name == "bprmf":
            return self.user, self.item
        state = total = torch.cat([self.user, self.item])
        for _ in range(self.layers):
            state = torch.sparse.mm(self.graph, state)
            total = total + state
        return tuple((total / (self.layers + 1)).split([len(self.user), len(self.item)]))

    def loss(self, user, pos, neg, l_w: float) -> torch.Tensor:
        if self.name == "vbpr":
            both = torch.cat([pos, neg])
            content = self.linear(self.features[both])
            rows = torch.cat([self.item[both], content], 1)
            u, (i, j) = self.user[user], rows.chunk(2)
            ego = (u, i, j)
        else:
            users, items = self.tables()
            u, i, j = users[user], items[pos], items[neg]
            ego = (self.user[user], self.item[pos], self.item[neg])
        ranking = -torch.log(1e-10 + sigmoid((u * (i - j)).sum(1))).mean()
        return ranking + l_w * sum(x.norm() for x in ego) / len(user)


def epoch(model: Peer, optimizer, user, item, n_items: int, batch: int, l_w: float) -> float:
    """One epoch over shuffled interactions; negatives are redrawn where the user has them."""
    known, _ = torch.sort(user * n_items + item)
    last = 0.0
    for rows in torch.randperm(len(user)).split(batch):
        u, i = user[rows], item[rows]
        j = torch.randint(n_items, (len(u),))
        while True:
            key = u * n_items + j
            place = torch.searchsorted(known, key).clamp_(max=len(known) - 1)
            taken = known[place] == key
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
    """Full-rank Recall and nDCG at `longest`, vectorised; returns the mean Recall."""
    users, items = model.tables()
    n_items = len(items)
    who = torch.from_numpy(task.users.astype(np.int64))
    owner = torch.from_numpy(np.repeat(np.arange(len(who)), np.diff(task.target.start)))
    keys = owner * n_items + torch.from_numpy(task.target.item.astype(np.int64))
    seen_owner = np.repeat(np.arange(len(who)), np.diff(task.seen.start))
    weight = 1 / torch.log2(torch.arange(2, longest + 2).float())
    ideal = torch.cumsum(weight, 0)
    recall, ndcg = [], []
    for start in range(0, len(who), chunk):
        stop = min(start + chunk, len(who))
        scores = users[who[start:stop]] @ items.T
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
