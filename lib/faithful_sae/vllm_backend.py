"""The faithful dataset by vLLM, for models and GPUs worth it: documents of the same form as
generate.sample's, other random numbers.

vLLM is no dependency of this repository; `generate.backend: vllm` asks for it.
"""

import numpy as np
import torch


def sampler(run, lm):
    """A function (seed, tokens, progress) that samples documents as the run asks: batches of
    generate.batch_rows, each finished, until there are so many tokens. vLLM loads a copy of the
    model `lm` into what is free of the GPU's memory.

    Raises:
        ImportError: vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise ImportError(
            f"{run.file}: generate.backend: vllm, and vLLM is not installed: install it on a "
            "machine with a GPU (in a "
            "copy of this environment: it brings its own torch), or set generate.backend: "
            "transformers"
        ) from error
    g = run.generate
    padded = lm.model.config.vocab_size > lm.vocab_size
    free, total = torch.cuda.mem_get_info(lm.device) if lm.device.type == "cuda" else (1, 1)
    engine = LLM(
        model=lm.model.name_or_path,
        revision=lm.revision,
        dtype=str(lm.model.dtype).removeprefix("torch."),
        max_model_len=g.max_new_tokens + 1,
        generation_config="vllm",  # not the model's own temperature and top_p
        gpu_memory_utilization=0.9 * free / total,
    )  # a share of all memory, of which lm has some
    ends = {lm.bos_id, lm.tokenizer.eos_token_id} - {None}

    def documents(seed):
        rng = np.random.default_rng(seed)
        starts = (
            [[]] * g.batch_rows
            if g.first_token == "bos"
            else rng.integers(lm.vocab_size, size=(g.batch_rows, 1)).tolist()
        )
        going = [
            i
            for i, start in enumerate(starts)
            if len(start) < g.max_new_tokens and not ends & set(start)
        ]
        options = [
            SamplingParams(
                temperature=g.temperature,
                top_p=g.top_p,
                max_tokens=g.max_new_tokens - len(starts[i]),
                detokenize=False,
                ignore_eos=True,
                stop_token_ids=sorted(ends),
                seed=int(rng.integers(2**31)),
                allowed_token_ids=list(range(lm.vocab_size)) if padded else None,
            )
            for i in going
        ]
        outputs = engine.generate(
            [{"prompt_token_ids": [lm.bos_id, *starts[i]]} for i in going], options, use_tqdm=False
        )
        sampled = dict(zip(going, (output.outputs[0].token_ids for output in outputs)))
        return [np.array([*start, *sampled.get(i, ())], np.int32) for i, start in enumerate(starts)]

    def draw(seed, tokens, progress):
        found = []
        count = 0
        while count < tokens:
            new = documents([seed, len(found)])
            found = found + new
            count = count + sum(map(len, new))
            progress(sum(map(len, new)))
        return found

    return draw
