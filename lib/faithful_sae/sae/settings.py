"""What can be set of each variant of SAE that a parameter file can name, apart from what it does
(variants/), so that a file is checked without loading PyTorch.

Wherever a variant has a `k`, a parameter file says it under `sae.k`. Penalties and thresholds are
in units of the tokens' spread s, the root of their mean squared distance from their mean: as if
activations were centred and scaled to a mean squared norm of 1 (see variants/base.py).
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


def setting(says: str, default: Any = dataclasses.MISSING, **limits: float) -> Any:
    """A field of a variant's settings.

    Args:
        says: what it means, for messages and the reference of parameters.
        limits: gt, ge, lt, le.
    """
    return dataclasses.field(default=default, metadata={"says": says} | limits)


def warmup_setting() -> Any:
    """The field that each penalty has."""
    return setting(
        "share of the steps over which the penalty rises to its full weight", 0.1, ge=0, le=1
    )


class Settings:
    """Of any variant.

    Attributes:
        group: SAEs of one variant that are trained together are coupled, so many at a time.
        beginning: how many of a training's first batches decide what it begins with.
        in_context: whether its loss looks at what the language model makes of x_hat, so that it is
            trained on whole rows of tokens: how many rows a batch has at least. 0: it is not.
    """

    group: int = 1
    beginning: ClassVar[int] = 1
    in_context: ClassVar[int] = 0

    @property
    def keeps_variance(self) -> bool:
        """Whether the loss asks that x_hat explains x."""
        return True

    @property
    def dependent(self) -> str:
        """Why seeds differ by more, or less, than chance, so that what they share is no evidence;
        nothing if they do not.
        """
        return ""

    def problem(self, d_sae: int) -> str:
        """Why so many latents do not go with the settings; nothing if they do."""
        return ""


@dataclass(frozen=True)
class TopK(Settings):
    """The k largest latents of each token."""

    k: int = setting("active latents per token", gt=0)


@dataclass(frozen=True)
class L1(Settings):
    """A penalty on the sum of the latents."""

    l1: float = setting("weight of the penalty; a lone latent is shrunk by l1 s / 2", 0.1, ge=0)
    warmup: float = warmup_setting()


@dataclass(frozen=True)
class ReLU(L1):
    """All positive latents, and an L1 penalty."""


@dataclass(frozen=True)
class Gated(L1):
    """Gates that an L1 penalty closes, and magnitudes that it does not shrink."""

    l1: float = setting("weight of the penalty on what opens the gates", 0.5, ge=0)


@dataclass(frozen=True)
class ProLU(L1):
    """Latents whose bias decides whether they are active, and is not added."""

    sparsity: Literal["l1", "sqrt"] = setting("sum of the latents, or of their roots", "l1")
    gradient: Literal["relu", "ste"] = setting("which of the two made-up gradients", "ste")


@dataclass(frozen=True)
class JumpReLU(TopK):
    """Latents above thresholds that are trained to leave k active per token on average."""

    sparsity: Literal["quadratic", "step"] = setting(
        "quadratic: weight (L0 / k - 1)^2; step: weight L0, and k is where it begins", "quadratic"
    )
    weight: float = setting("of that, beside the fraction of variance unexplained", 1.0, ge=0)
    warmup: float = warmup_setting()
    bandwidth: float = setting("of the kernel that sees a threshold, in units of s", 0.05, gt=0)


@dataclass(frozen=True)
class BatchTopK(TopK):
    """The k B largest latents of a batch of B tokens; above one threshold in use."""


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK whose first latents reconstruct the tokens alone, too."""

    shares: tuple[float, ...] = setting(
        "of the latents, in each nested dictionary; the last is 1", (0.0625, 0.125, 0.25, 0.5, 1.0)
    )

    def widths(self, d_sae: int) -> list[int]:
        """Latents of each dictionary."""
        return [round(share * d_sae) for share in self.shares]

    def problem(self, d_sae: int) -> str:
        widths = [0, *self.widths(d_sae)]
        if widths[-1] == d_sae and all(a < b for a, b in itertools.pairwise(widths)):
            return ""
        return (
            f"shares = {list(self.shares)} of d_sae = {d_sae} latents must rise to 1, by at least "
            "one latent each"
        )


@dataclass(frozen=True)
class Switch(TopK):
    """TopK in the one of several experts that a router picks for the token."""

    experts: int = setting("disjoint groups of latents of one size", 4, gt=0)
    balance: float = setting("weight of the loss that spreads tokens over experts", 0.1, ge=0)

    def problem(self, d_sae: int) -> str:
        if d_sae % self.experts == 0 and d_sae // self.experts >= self.k:
            return ""
        return (
            f"experts = {self.experts} must divide d_sae = {d_sae} and leave each at least k = "
            f"{self.k} latents"
        )


@dataclass(frozen=True)
class MutualChoice(BatchTopK):
    """BatchTopK that revives seldom latents, too, not dead ones alone."""

    seldom: float = setting(
        "latents that fire less than this share of what Zipf's law, fitted to the batch, predicts "
        "for their rank are treated as dead; 0: none",
        0.5,
        ge=0,
    )


@dataclass(frozen=True)
class FeatureChoice(TopK):
    """Each latent is active on its own largest of a batch; above thresholds of their own in use."""

    exponent: float = setting(
        "the i-th latent is active on a number of tokens that falls as i^-exponent; 0: on as many "
        "as all others",
        0.0,
        ge=0,
    )


@dataclass(frozen=True)
class Archetypal(TopK):
    """TopK whose directions are those of means of activations, or near them."""

    delta: float = setting(
        "how far a row may be from the archetypes' hull, in units of s; 0: in it", 0.1, ge=0
    )
    centroids: Literal["shared", "own"] = setting(
        "of k-means, which the directions begin at: shared by all seeds, or each seed's own",
        "shared",
    )
    beginning: ClassVar[int] = 16

    @property
    def dependent(self) -> str:
        shared = "begins at the same centroids for all seeds: they would share those"
        return shared if self.centroids == "shared" else ""


@dataclass(frozen=True)
class Tilted(TopK):
    """TopK that weighs tokens more the worse they are reconstructed, for what is rare."""

    tilt: float = setting(
        "a token weighs exp(tilt x its squared error / s^2): at 5, an error that is larger by 0.2 "
        "weighs e times as much",
        5.0,
        gt=0,
    )


@dataclass(frozen=True)
class Mutual(TopK):
    """TopK SAEs that are trained together, and drawn to find the same directions."""

    weight: float = setting(
        "of what they do not share, beside the fraction of variance unexplained", 0.1, ge=0
    )
    warmup: float = warmup_setting()
    group: int = setting("SAEs that are coupled: so many of the seeds, in their order", 2, ge=2)

    @property
    def dependent(self) -> str:
        return "couples seeds: what they share would be asked of them, not found"


@dataclass(frozen=True)
class EndToEnd(TopK):
    """TopK SAEs that keep what the language model does with an activation."""

    kl: float = setting("weight of KL of the next token, in nats", 1.0, ge=0)
    downstream: float = setting(
        "weight of the fraction of variance unexplained of the residual stream behind later "
        "blocks, on average; 0: the paper's e2e",
        1.0,
        ge=0,
    )
    local: float = setting("weight of the fraction of variance unexplained, here", 0.0, ge=0)
    in_context: ClassVar[int] = 1

    @property
    def keeps_variance(self) -> bool:
        return self.local > 0

    def problem(self, d_sae: int) -> str:
        some = self.kl or self.downstream or self.local
        return "" if some else "kl, downstream and local are all 0: there is nothing to minimise"


@dataclass(frozen=True)
class Causal(TopK):
    """TopK SAEs whose latents the rest of the model reads as if it were linear in them."""

    weight: float = setting(
        "of how far logits of mixed latents are from mixed logits, as a share of their variance, "
        "beside the fraction of variance unexplained",
        0.1,
        ge=0,
    )
    warmup: float = warmup_setting()
    # of two rows there is but one mixture
    in_context: ClassVar[int] = 3


@dataclass(frozen=True)
class PCA(TopK):
    """Principal components of the first batch, each with both signs: a baseline, not trained."""

    @property
    def dependent(self) -> str:
        return "is the same for all seeds: they would share all latents"


def batch_problem(settings: Settings, d_sae: int, batch_tokens: int, row_tokens: int) -> str:
    """Why batches are too small, or the first ones too few; nothing if they do."""
    rows = settings.in_context
    if rows and (batch_tokens % row_tokens or rows * row_tokens > batch_tokens):
        return (
            f"= {batch_tokens}: {type(settings).__name__} is trained on whole rows: write a "
            f"multiple of sequence_length = {row_tokens}, at least {rows * row_tokens}"
        )
    there = settings.beginning * batch_tokens
    if settings.beginning == 1 or there >= d_sae:
        return ""
    return (
        f"= {batch_tokens}: {type(settings).__name__} begins with a centroid for each of d_sae = "
        f"{d_sae} latents, and its first {settings.beginning} batches have {there} activations"
    )


SETTINGS: dict[str, type[Any]] = {
    "topk": TopK,
    "relu": ReLU,
    "batch_topk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "prolu": ProLU,
    "switch": Switch,
    "mutual_choice": MutualChoice,
    "feature_choice": FeatureChoice,
    "archetypal": Archetypal,
    "tilted": Tilted,
    "mutual": Mutual,
    "end_to_end": EndToEnd,
    "causal": Causal,
    "pca": PCA,
}
