"""A stream of shuffled activations from (model, token rows): what every SAE of a corpus is trained on.

One pass of the language model feeds all seeds. Rows are visited in a fresh random order each epoch; activations pass through a
buffer that is filled, shuffled, and half emptied in turn, so that a batch mixes tokens from buffer_tokens / sequence_length
rows and more. Memory: buffer_tokens x D float32, twice while it is shuffled.
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


def activation_batches(lm, rows, *, n_tokens, batch_tokens, buffer_tokens, lm_batch_rows, include_bos, seed):
    """Yield float32 [batch_tokens, D] until `n_tokens` activations have been given out, repeating the rows if need be.

    Every batch is full but the last, which may be shorter. The stream depends on `seed`, not on the SAEs trained from it.

    Raises:
        ValueError: no rows.
    """
    if len(rows) == 0:
        raise ValueError("no token rows to take activations from")
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    source = _endless(lm, rows, lm_batch_rows, include_bos, rng)
    buffer, given = torch.empty(0, lm.d_model, device=lm.device), 0
    while given < n_tokens:
        parts, size = [buffer], len(buffer)
        while size < min(buffer_tokens, n_tokens - given):
            parts.append(next(source))
            size += len(parts[-1])
        buffer = torch.cat(parts)
        del parts
        buffer = buffer[torch.randperm(len(buffer), generator=generator).to(buffer.device)]
        last = len(buffer) >= n_tokens - given
        use = n_tokens - given if last else max(len(buffer) // 2 // batch_tokens, 1) * batch_tokens
        for start in range(0, use, batch_tokens):
            yield buffer[start:min(start + batch_tokens, use)]
        buffer, given = buffer[use:].clone(), given + use


def _endless(lm, rows, batch_rows, include_bos, rng):
    while True:
        for ids in rows_in_batches(rows, batch_rows, rng.permutation(len(rows))):
            yield token_activations(lm, ids, include_bos)
