"""A stream of shuffled activations from (model, token rows): what every SAE of a corpus is trained on.

One pass of the language model feeds all SAEs. Rows are visited in a fresh random order each epoch, a window of about buffer_tokens
activations at a time; a window's activations are shuffled together, and what does not fill a batch goes into the next window. So a
batch is a random draw from buffer_tokens / sequence_length rows. Memory: twice buffer_tokens x D float32, while a window is read.
"""

import numpy as np
import torch


def rows_in_batches(rows, batch_rows, order=None):
    """Yield int64 tensors [<= batch_rows, T] of the rows, in the given order of indices (default: as they are)."""
    order = np.arange(len(rows)) if order is None else order
    for start in range(0, len(order), batch_rows):
        yield torch.from_numpy(np.asarray(rows[np.sort(order[start:start + batch_rows])], dtype=np.int64))


def token_activations(lm, ids, include_bos):
    """Activations of the tokens of ids [B, T], as float32 [N, D]; BOS positions are left out unless `include_bos`."""
    x = lm.activations(ids)
    return x.flatten(0, 1) if include_bos else x[ids.to(x.device) != lm.bos_id]


class ActivationStream:
    """Iterates over float32 [batch_tokens, D] until `n_tokens` activations have been given out, repeating the rows if need be.

    Every batch is full but the last, which may be shorter. The stream depends on `seed`, not on the SAEs trained from it, and every
    window on its number alone, so that a stream goes on from a `state` with the same bytes.

    Raises:
        ValueError: no rows; nothing but BOS in them.
    """

    def __init__(self, lm, rows, *, n_tokens, batch_tokens, buffer_tokens, lm_batch_rows, include_bos, seed):
        if len(rows) == 0:
            raise ValueError("no token rows to take activations from")
        self.lm, self.rows, self.n_tokens, self.batch_tokens, self.seed = lm, rows, n_tokens, batch_tokens, seed
        self.lm_batch_rows, self.include_bos = lm_batch_rows, include_bos
        self.window_rows = max(buffer_tokens // rows.shape[1], 1)
        self.window = self.given = 0
        self.left = torch.empty(0, lm.d_model, device=lm.device)   # what the window before did not give out
        self.between = True                                        # two windows, where there is a state

    def __iter__(self):
        while self.given < self.n_tokens:
            pool = torch.cat([self.left, *self._read()])
            order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(self._window_seed())).to(pool.device)
            remaining = self.n_tokens - self.given
            use = remaining if len(pool) >= remaining else len(pool) // self.batch_tokens * self.batch_tokens
            if use == 0:
                self._next(pool, 0)
            for start in range(0, use, self.batch_tokens):
                batch = pool[order[start:min(start + self.batch_tokens, use)]]
                self.between = start + self.batch_tokens >= use
                if self.between:
                    self._next(pool[order[use:]], use)
                yield batch
            pool = order = None    # not beside the next window

    def state(self) -> dict | None:
        """{window, given, left}: where the stream is, after the batch given out last; None in the middle of a window."""
        return {"window": self.window, "given": self.given, "left": self.left} if self.between else None

    def resume(self, state):
        """Go on from a `state` of a stream with the same arguments."""
        self.window, self.given, self.left = int(state["window"]), int(state["given"]), state["left"].to(self.lm.device)

    def _next(self, left, used):
        if self.window * self.window_rows > len(self.rows) and self.given + used + len(left) == 0:
            raise ValueError("the token rows hold nothing but BOS, and BOS is left out (include_bos: false)")
        self.window, self.given, self.left = self.window + 1, self.given + used, left

    def _read(self):
        """Activations of the window's rows, window_rows of them in the epoch's order, fewer in an epoch's last window."""
        epoch, window = divmod(self.window, -(-len(self.rows) // self.window_rows))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        for ids in rows_in_batches(self.rows, self.lm_batch_rows, order[window * self.window_rows:(window + 1) * self.window_rows]):
            yield token_activations(self.lm, ids, self.include_bos)

    def _window_seed(self):
        return int(np.random.SeedSequence([self.seed, self.window]).generate_state(1, np.uint64)[0] >> 1)
