"""A causal language model with one hook point in block `layer`, by name:

    residual    the residual stream entering the block (paper, Table 5): `hidden_states[layer]` of
                Hugging Face, `blocks.<layer>.hook_resid_pre` of TransformerLens
    mlp         what its MLP adds to that stream, `blocks.<layer>.hook_mlp_out`
    attention   what its attention adds to it, `blocks.<layer>.hook_attn_out`

The last two are the outputs as they are added: behind the normalisation that Gemma 2 and 3, OLMo 2
and 3 and GLM 4 have there. All three are as wide as the stream.

Weights are Hugging Face's as they are, for training and for evaluation alike. Loading never runs a
model's own code and reads weights from safetensors alone.

A model that does not fit one GPU is spread over several: the embedding and the first blocks on the
first, the last blocks and the head on the last. Each part fetches its inputs; ids go in from
anywhere, and what comes out is on `device`, the last, where SAEs are too. Blocks run one after the
other, so more GPUs make room, not speed, and change no number.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils._pytree import tree_map_only
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from faithful_sae.lm.architectures import (
    Hook,
    ModelError,
    Shape,
    beside_blocks,
    blocks_of,
    hooked_module,
    not_hooked,
    shape_of,
    too_many_tokens,
    unknown,
)
from faithful_sae.text import hub

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE = re.compile(r"auto|cpu|cuda(:(?P<number>\d+))?")


class _Stop(Exception):
    """Carries the hooked tensor out of a forward pass that need not go on."""


@dataclass
class LanguageModel:
    """A causal LM with its tokenizer and a hook point, `hook` of block `layer`; made by load_model.

    Token ids are int64 [B, T], on any device. Rows are packed without padding unless an attention
    mask is given.
    """

    model: Any
    tokenizer: Any
    layer: int
    bos_id: int
    # the commit of a Hub model
    revision: str | None = None
    hook: Hook = "residual"

    def __post_init__(self):
        self.blocks = blocks_of(self.model)
        self.device = self.model.get_output_embeddings().weight.device
        homes = [next(block.parameters()).device for block in self.blocks]
        # of the blocks, by device
        self.shares = {device: homes.count(device) / len(homes) for device in {*homes, self.device}}
        self.d_model = self.model.config.hidden_size
        self.context = shape_of(self.model).context
        # without the rows some models pad their embedding with
        self.vocab_size = len(self.tokenizer)

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return shape_of(self.model)

    @functools.cached_property
    def _pass_through(self) -> Callable[..., Any]:
        """What a block that does nothing does: it gives out what it takes, as its own kind does, a
        tensor or (Bloom, Falcon, GPT-J, GPT-Neo) a tuple of it and nothing else.
        """

        def stop(_module: Any, _args: Any, output: Any) -> None:
            raise _Stop(output)

        handle = self.blocks[0].register_forward_hook(stop)
        try:
            ids = torch.tensor([[self.bos_id]], device=self.model.device)
            with torch.no_grad():
                self.model.base_model(input_ids=ids, use_cache=False)
        except _Stop as stopped:
            output = stopped.args[0]
        else:
            raise AssertionError("block 0 did not run")
        finally:
            handle.remove()
        if not isinstance(output, tuple):
            return lambda hidden_states, *args, **kwargs: hidden_states
        rest = (None,) * (len(output) - 1)
        return lambda hidden_states, *args, **kwargs: (hidden_states, *rest)

    @contextlib.contextmanager
    def at_layer(
        self, function: Callable[[torch.Tensor], torch.Tensor | None], skip: bool = False
    ) -> Iterator[None]:
        """Within the context, `function` sees every tensor that passes the hook point.

        Args:
            function: given the hooked tensor [B, T, D]; what it returns, if anything, takes its
                place.
            skip: the blocks before a hooked residual stream do nothing; their work would be thrown
                away by the replacement. What they add to the stream reaches past another hook.
        """
        module = hooked_module(self.model.config.model_type, self.hook)
        if module is None:
            with self._at_input(function, skip):
                yield
        else:
            with self._at_output(getattr(self.blocks[self.layer], module), function):
                yield

    @contextlib.contextmanager
    def _at_output(
        self, module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> Iterator[None]:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            several = isinstance(output, tuple)
            # copies: Falcon adds to its MLP's output in place
            new = function((output[0] if several else output).clone())
            if new is None:
                return None
            new = new.clone()
            return (new, *output[1:]) if several else new

        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _at_input(
        self, function: Callable[[torch.Tensor], torch.Tensor | None], skip: bool
    ) -> Iterator[None]:
        def hook(_, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            new = function(x)
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        handle = self.blocks[self.layer].register_forward_pre_hook(hook, with_kwargs=True)
        early = self.blocks[: self.layer] if skip else []
        for block in early:
            block.forward = self._pass_through
        try:
            yield
        finally:
            handle.remove()
            for block in early:
                del block.forward

    @torch.no_grad()
    def activations(
        self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The hooked tensor: float32 [B, T, D]. The forward pass stops there: nothing that comes
        later in the block, no later block, no head.

        Args:
            ids: int64 [B, T].
            attention_mask: [B, T], 0 where `ids` is padding.
        """

        def stop(x):
            raise _Stop(x)

        with self.at_layer(stop):
            try:
                self.model.base_model(
                    input_ids=ids.to(self.model.device),
                    attention_mask=attention_mask,
                    use_cache=False,
                )
            except _Stop as stopped:
                return stopped.args[0].to(self.device).float()
        raise AssertionError(f"block {self.layer} did not run")

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Next-token logits float32 [B, T, V] and the hooked activations float32 [B, T, D], in one
        pass. ids: int64 [B, T].
        """
        kept = []
        with self.at_layer(lambda x: kept.append(x.to(self.device).float())):
            logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits.float()
        return logits, kept[0]

    @torch.no_grad()
    def spliced_logits(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B, T, V] when `x` stands in for the hooked tensor. Blocks before a hooked
        residual stream do not run. Zeros in place of an MLP's or attention's output ablate it.

        Args:
            ids: int64 [B, T].
            x: [B, T, D].
        """
        with self.at_layer(lambda hidden: x.to(hidden), skip=True):
            return self.model(input_ids=ids.to(self.model.device), use_cache=False).logits.float()

    def bos_distribution(self) -> torch.Tensor:
        """The model's distribution of the first token, given BOS alone: float64 [vocab_size], sums
        to 1.
        """
        return self.next_distribution([self.bos_id])

    @torch.no_grad()
    def next_distribution(self, ids: Sequence[int]) -> torch.Tensor:
        """The model's distribution of the token after some ids: float64 [vocab_size], sums to 1."""
        logits = self.model(
            input_ids=torch.tensor([[*ids]], device=self.model.device), use_cache=False
        ).logits
        return torch.softmax(logits[0, -1, : self.vocab_size].double(), -1).cpu()


def load_model(
    id_or_path: str | Path,
    layer: int,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    gpus: int = 1,
    hook: Hook = "residual",
) -> LanguageModel:
    """Load a causal LM from a Hub id or a folder.

    Args:
        id_or_path: a folder in Hugging Face's format (config.json, *.safetensors, tokenizer files)
            or a Hub id.
        layer: block that is hooked, 0 to n_layers - 1.
        device: "cpu", "cuda", "cuda:1" and the like, or "auto" (a GPU if there is one).
        dtype: "float32", "bfloat16", "float16", or "auto" (as stored).
        revision: branch, tag or commit of a Hub model; the commit it resolves to is kept in
            `.revision`.
        gpus: how many of the GPUs it is spread over.
        hook: "residual" (the stream entering the block), "mlp" or "attention" (what these add to
            it).

    Raises:
        ModelError: no such device or dtype; no such hook, or none in this architecture; fewer GPUs
            than asked for; missing or incomplete folder, unknown or gated or unreachable model, an
            architecture that is not known, no tokenizer, more tokens than the embedding has rows,
            no BOS, layer out of range.
    """
    name = str(id_or_path)
    if dtype not in DTYPES:
        raise ModelError(f"{name}: dtype {dtype!r} must be one of {', '.join(DTYPES)}")
    asked = DEVICE.fullmatch(device)
    if not asked:
        raise ModelError(
            f"{name}: device {device!r} must be auto, cpu, cuda, or cuda:1 and the like"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and int(asked["number"] or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device: {device} was asked for and there is none here: write `device: auto` or `cpu` "
            f"to run {name} without"
        )
    if gpus > 1 and (device != "cuda" or torch.cuda.device_count() < gpus):
        raise ModelError(
            f"gpus: {gpus} were asked for, and there are {torch.cuda.device_count()} here: give "
            f"{name} more, or lower gpus"
        )
    folder, at = _located(name, revision)
    config = read_config(folder, name)
    if why := not_hooked(config.model_type, hook):
        raise ModelError(f"{name}: {why}")
    if not 0 <= layer < config.num_hidden_layers:
        raise ModelError(
            f"{name}: layer {layer} is out of range: it has blocks 0 to "
            f"{config.num_hidden_layers - 1}"
        )
    with explained(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.get_vocab()
    # transformers makes up an empty one
    if not set(ids) - set(tokenizer.all_special_tokens):
        raise ModelError(
            f"{name}: no tokenizer in it: copy the model's tokenizer.json and "
            "tokenizer_config.json beside config.json"
        )
    if why := too_many_tokens(1 + max(ids.values()), config.vocab_size):
        raise ModelError(f"{name}: {why}")
    bos_id = beginning_of_sequence(tokenizer, name)
    with explained(name, "model"):
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
    model, loaded = found
    if loaded["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelError(
            f"{name}: its weights lack {', '.join(sorted(loaded['missing_keys'])[:3])}: is every "
            "*.safetensors file there?"
        )
    model.name_or_path = name
    spread(model.eval(), [f"cuda:{i}" for i in range(gpus)] if gpus > 1 else [device])
    return LanguageModel(model, tokenizer, layer, bos_id, at, hook)


def read_config(folder: Path | str, name: str) -> Any:
    """The configuration of a model folder, as transformers reads it.

    Raises:
        ModelError: no readable config.json, or an architecture that is not known.
    """
    with explained(name, "model"):
        config = AutoConfig.from_pretrained(folder)
    if why := unknown(config):
        raise ModelError(f"{name}: {why}")
    return config


def _located(name, revision):
    """(folder of a model, its commit if it is one of the Hub)."""
    if Path(name).is_dir():
        return Path(name), None
    try:
        is_commit = revision and hub.COMMIT.fullmatch(revision)
        at = revision if is_commit else hub.resolve("model", name, revision or "main")
        return hub.fetch_model(name, at), at
    except hub.HubError as error:
        raise ModelError(f"{error} (and there is no such folder)") from error


def spread(model: Any, devices: Sequence[str]) -> None:
    """Put a model on one device or, in contiguous runs of blocks of about equal size, on several;
    changes it in place.
    """
    if len(devices) == 1:
        model.to(devices[0])
        return
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if head.weight is embedding.weight:  # one matrix, used on the first device and on the last
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for part, number in device_map(model, len(devices)).items():
        part.to(devices[number])
        part.register_forward_pre_hook(_fetch(devices[number]), with_kwargs=True)
    # positions and masks are made where ids are
    model.base_model.register_forward_pre_hook(_fetch(devices[0]), with_kwargs=True)


def device_map(model: Any, n: int) -> dict[torch.nn.Module, int]:
    """{module: number of its device, 0 to n - 1}, of all modules in the order in which they run.

    A block goes where its middle falls when all weights, laid end to end, are cut into n equal
    lengths; so no device holds more than an equal share and one block, or the embedding, more.
    """
    blocks = blocks_of(model)
    parts = list(beside_blocks(model).children())
    at = parts.index(blocks)
    behind = [part for part in parts[at + 1 :] if _bytes(part)]
    # rotary embeddings, too, serve from the first
    before = [part for part in parts if part is not blocks and part not in behind]
    behind.append(model.get_output_embeddings())
    done = sum(map(_bytes, before))
    total = done + _bytes(blocks) + sum(map(_bytes, behind))
    places = []
    for block in blocks:
        places.append(min(int(n * (done + _bytes(block) / 2) / total), n - 1))
        done += _bytes(block)
    return (
        dict.fromkeys(before, 0)
        | dict(zip(blocks, places, strict=True))
        | dict.fromkeys(behind, n - 1)
    )


def _bytes(module):
    return sum(weights.nbytes for weights in module.parameters())


def _fetch(device):
    """A hook that brings a module's tensors to its device; what is there already stays as it is."""

    def hook(_, args, kwargs):
        return tree_map_only(torch.Tensor, lambda t: t.to(device), (args, kwargs))

    return hook


def beginning_of_sequence(tokenizer: Any, name: str) -> int:
    """The id generation starts from: BOS, or, said out loud, EOS where a tokenizer has no BOS.

    Raises:
        ModelError: the tokenizer has neither.
    """
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{name}: its tokenizer has neither BOS nor EOS: set bos_token in tokenizer_config.json"
        )
    warnings.warn(
        f"note: {name}: its tokenizer has no BOS; EOS {tokenizer.eos_token!r} (id "
        f"{tokenizer.eos_token_id}) takes its place",
        stacklevel=2,
    )
    return tokenizer.eos_token_id


@contextlib.contextmanager
def explained(name: str, what: str) -> Iterator[None]:
    """Turn the many ways in which a model folder fails to load into one line that says what to do.

    Args:
        name: of the model.
        what: of it is loaded: model or tokenizer.

    Raises:
        ModelError: instead of what was raised.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        kind = (type(error).__name__ + text).lower()
        if "safetensor" in kind and "pickle" not in text and what == "model":
            raise ModelError(
                f"{name}: cannot read its weights ({text[:160]}): a folder needs whole "
                "*.safetensors files"
            ) from error
        raise ModelError(
            f"{name}: cannot load its {what} ({text[:160]}): a model folder needs config.json, "
            "*.safetensors, tokenizer.json and tokenizer_config.json"
        ) from error
