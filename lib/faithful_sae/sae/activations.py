"""A stream of shuffled activations from (model, token rows): what every SAE of a corpus is trained
on.

One pass of the language model feeds all SAEs. The rows are put in random order once and cut into
groups, one for each forward pass. Each epoch visits the groups in a fresh random order, a window of
about buffer_tokens activations at a time; a window's activations are shuffled together, and what
does not fill a batch goes into the next window. So a batch is a random draw from buffer_tokens /
sequence_length rows. While SAEs are trained on one window, a thread reads the next.

Memory: two windows, 2 x buffer_tokens x D float32. Groups stay the same in all epochs, so that what
the model says of them can be kept on disk instead of computed again, to the same bytes.

A few activations of a large model are massive (Sun et al. 2024): their norm is ten to a hundred
times the median, and they hold most of the variance, which SAEs would be trained on. With
`max_norm` they are left out, as dictionary_learning does, and listed. What is kept on disk has
them, so that it serves any max_norm.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from faithful_sae.sae.activation_cache import ActivationCache

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


# activations whose norms give a stream's median
SAMPLE = 16_384


def norm_limit(norms: Tensor, max_norm: float) -> float:
    """max_norm x the median of some norms [N] (the lower one of two in the middle): activations
    above it are massive. NaN if a norm is.
    """
    return max_norm * norms.median().item()


def moderate(x: Tensor, limit: float) -> Tensor:
    """Activations [N, D] without massive ones. What is not a number stays, so that whoever uses it
    says so.
    """
    return x[~(x.norm(dim=-1) > limit)]


def rows_in_batches(rows: np.ndarray, batch_rows: int) -> Iterator[Tensor]:
    """Yield int64 tensors [<= batch_rows, T] of the rows, as they are."""
    for start in range(0, len(rows), batch_rows):
        yield as_ids(rows[start : start + batch_rows])


def as_ids(rows: np.ndarray) -> Tensor:
    """int64 tensor of token rows [R, T] of an array or memory map."""
    return torch.from_numpy(np.asarray(rows, dtype=np.int64))


def token_activations(lm: "LanguageModel", ids: Tensor, include_bos: bool) -> Tensor:
    """Activations of the tokens of ids [B, T], as float32 [N, D]; BOS positions are left out unless
    `include_bos`.
    """
    x = lm.activations(ids)
    return x.flatten(0, 1) if include_bos else x[ids.to(x.device) != lm.bos_id]


def moderate_limit(
    lm: "LanguageModel",
    rows: np.ndarray,
    include_bos: bool,
    batch_rows: int,
    max_norm: float | None,
    sample: float = math.inf,
) -> float:
    """The largest norm of a moderate activation of token rows [R, T], by the median of all of them
    or of the first `sample`; infinite where max_norm is None.
    """
    if max_norm is None:
        return math.inf
    norms, count = [], 0
    for ids in rows_in_batches(rows, batch_rows):
        norms.append(token_activations(lm, ids, include_bos).norm(dim=-1))
        count += len(norms[-1])
        if count >= sample:
            break
    return norm_limit(torch.cat(norms), max_norm)


class Massive:
    """The activations that a stream leaves out, each listed once.

    Attributes:
        limit: the largest norm that is not massive, once known.
    """

    def __init__(self) -> None:
        self.limit: float | None = None
        # of each group of rows: row, position, token, norm [N, 4]
        self.groups: dict[int, np.ndarray] = {}

    def note(self, group: int, columns: Sequence[np.ndarray]) -> None:
        """Those of a group of rows, unless they are known: row, position (in it), token (its id)
        and norm, [N] each.
        """
        if group not in self.groups:
            self.groups[group] = np.stack(columns, 1).astype(float)

    def state(self) -> dict:
        """{limit, massive}, once there is a limit."""
        if self.limit is None:
            return {}
        # a reader may be adding to it
        groups = [np.insert(rows, 0, group, 1) for group, rows in [*self.groups.items()]]
        found = np.concatenate([np.empty((0, 5)), *groups])
        return {"limit": self.limit, "massive": torch.from_numpy(found)}

    def resume(self, state: Mapping) -> None:
        """Go on from a `state`."""
        if "limit" in state:
            self.limit = float(state["limit"])
            found = state["massive"].cpu().numpy()
            self.groups = {int(g): found[found[:, 0] == g, 1:] for g in np.unique(found[:, 0])}

    def table(self) -> pd.DataFrame:
        """The largest first: row, position, token, norm."""
        found = np.concatenate([np.empty((0, 4)), *(self.groups[g] for g in sorted(self.groups))])
        table = pd.DataFrame(found, columns=["row", "position", "token", "norm"])
        table = table.astype({"row": int, "position": int, "token": int})
        return table.sort_values(["norm", "row", "position"], ascending=[False, True, True])


class ActivationStream:
    """Iterates over float32 [batch_tokens, D] until `n_tokens` activations have been given out,
    repeating the rows if need be.

    Every batch is full but the last, which may be shorter. The stream depends on `seed`, not on the
    SAEs trained from it, and every window on its number alone, so that a stream goes on from a
    `state` with the same bytes.

    Args:
        rows: int [R, T].
        n_tokens: activations given out in all.
        buffer_tokens: activations in a window.
        lm_batch_rows: rows of a group, fewer if the buffer does not hold so many.
        include_bos: whether activations at BOS are given out.
        seed: of the order.
        cache: None: the language model runs in every epoch.
        max_norm: activations of a norm above so many times the median are left out. The median is
            that of the first SAMPLE activations, in the order of the groups; None: none are.

    Raises:
        ValueError: no rows; nothing but BOS in them.
    """

    def __init__(
        self,
        lm: "LanguageModel",
        rows: np.ndarray,
        *,
        n_tokens: int,
        batch_tokens: int,
        buffer_tokens: int,
        lm_batch_rows: int,
        include_bos: bool,
        seed: int,
        cache: ActivationCache | None = None,
        max_norm: float | None = None,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("no token rows to take activations from")
        self.lm = lm
        self.rows = rows
        self.n_tokens = n_tokens
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.include_bos = include_bos
        self.cache = cache
        self.max_norm = max_norm
        self.left_out = Massive()
        window_rows = max(buffer_tokens // rows.shape[1], 1)
        self.group_rows = min(lm_batch_rows, window_rows)
        self.window_groups = window_rows // self.group_rows
        self.groups = -(-len(rows) // self.group_rows)
        # in an epoch
        self.windows = -(-self.groups // self.window_groups)
        self.row_order = np.random.default_rng(seed).permutation(len(rows))
        self.window = 0
        self.given = 0
        # what the window before did not give out: less than a batch
        self.left = torch.empty(0, lm.d_model, device=lm.device)
        # two windows, where there is a state
        self.between = True

    def __iter__(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, self.window)
            while self.given < self.n_tokens:
                pool = self._behind_what_was_left(*ahead.result())
                use = self.n_tokens - self.given
                if len(pool) < use:
                    use = len(pool) // self.batch_tokens * self.batch_tokens
                    ahead = reader.submit(self._read, self.window + 1)
                order = torch.randperm(
                    len(pool), generator=torch.Generator().manual_seed(self._window_seed())
                ).to(pool.device)
                if use == 0:
                    self._next(pool[order], 0)
                for start in range(0, use, self.batch_tokens):
                    batch = pool[order[start : min(start + self.batch_tokens, use)]]
                    self.between = start + self.batch_tokens >= use
                    if self.between:
                        self._next(pool[order[use:]], use)
                    yield batch
                # not beside the next two windows
                del pool, order

    def state(self) -> dict | None:
        """{window, given, left}: where the stream is, after the batch given out last; None in the
        middle of a window. With max_norm also those of Massive.
        """
        if not self.between:
            return None
        return {
            "window": self.window,
            "given": self.given,
            "left": self.left,
            **self.left_out.state(),
        }

    def resume(self, state: Mapping) -> None:
        """Go on from a `state` of a stream with the same arguments."""
        self.window = int(state["window"])
        self.given = int(state["given"])
        self.left = state["left"].to(self.lm.device)
        self.left_out.resume(state)

    @property
    def limit(self) -> float | None:
        """The largest norm given out, once known; None without max_norm."""
        return self.left_out.limit

    def massive(self) -> pd.DataFrame:
        """The activations that were left out of the windows read so far; see Massive."""
        return self.left_out.table()

    def keep(self, groups: Iterable[int]) -> None:
        """See to it that the cache holds these groups, of the `groups` there are."""
        for group in groups:
            self._group(group)

    def _next(self, left, used):
        if self.window >= self.windows and self.given + used + len(left) == 0:
            raise ValueError(
                "the token rows hold nothing but BOS, and BOS is left out (include_bos: false)"
            )
        self.window = self.window + 1
        self.given = self.given + used
        self.left = left

    def _read(self, number):
        """(buffer, end): a window's activations are buffer[batch_tokens:end]; before them there is
        room for what is left over.
        """
        epoch, window = divmod(number, self.windows)
        chosen = np.random.default_rng([self.seed, epoch]).permutation(self.groups)[
            window * self.window_groups :
        ][: self.window_groups]
        tokens = self.window_groups * self.group_rows * self.rows.shape[1]
        buffer = torch.empty(self.batch_tokens + tokens, self.lm.d_model, device=self.lm.device)
        end = self.batch_tokens
        for group in chosen:
            x = self._moderate(int(group))
            buffer[end : end + len(x)] = x
            end += len(x)
        return buffer, end

    def _behind_what_was_left(self, buffer, end):
        pool = buffer[self.batch_tokens - len(self.left) : end]
        pool[: len(self.left)] = self.left
        return pool

    def _group(self, group):
        """Activations of one group of rows, from the cache if they are there."""
        if self.cache and (x := self.cache.read(group)) is not None:
            return x.to(self.lm.device)
        x = token_activations(self.lm, as_ids(self.rows[self._rows_of(group)]), self.include_bos)
        if self.cache:
            self.cache.write(group, x)
        return x

    def _rows_of(self, group):
        return np.sort(self.row_order[group * self.group_rows : (group + 1) * self.group_rows])

    def _moderate(self, group):
        """A group without its massive activations, which are noted."""
        x = self._group(group)
        if self.max_norm is None:
            return x
        norms = x.norm(dim=-1)
        if self.left_out.limit is None:
            self.left_out.limit = norm_limit(self._sample_of_norms(), self.max_norm)
        # what is not a number stays, so that the training says so
        massive = norms > self.left_out.limit
        if massive.any():
            rows = self._rows_of(group)
            ids = np.asarray(self.rows[rows])
            content = np.ones(ids.shape, bool) if self.include_bos else ids != self.lm.bos_id
            row, position = (index[massive.cpu().numpy()] for index in content.nonzero())
            columns = (rows[row], position, ids[row, position], norms[massive].cpu().numpy())
            self.left_out.note(group, columns)
        return x[~massive]

    def _sample_of_norms(self):
        """[N] of the first groups."""
        found, count = [], 0
        for group in range(self.groups):
            found.append(self._group(group).norm(dim=-1))
            count += len(found[-1])
            if count >= SAMPLE:
                break
        return torch.cat(found)

    def _window_seed(self):
        return int(
            np.random.SeedSequence([self.seed, self.window]).generate_state(1, np.uint64)[0] >> 1
        )
