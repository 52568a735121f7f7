"""What probes lose when latents are ablated: targeted probe perturbation (TPP) and spurious
correlation removal (SCR), in SAEBench's form (Karvonen et al. 2025, arXiv 2503.09532; SCR after
Marks et al. 2024, arXiv 2403.19647).

Neither is to be relied on. An audit (Chanin 2026, arXiv 2605.18229) finds that TPP falls as an SAE
trains on, and that SCR changes its sign at large N. They are here to be compared with.

A property is a label that a text has or has not. On texts of which half have property i, a logistic
regression reads it from the mean x of a text's tokens: logit_i = x . w_i + b_i. z is the mean of
the latents, and d_f a row of W_dec.

    effect_f     (mean z_f with i - mean z_f without) (w_i . d_f), on training texts
    S_i          TPP: the N latents with the largest effect, among those with both factors above 0
                 SCR: the N with the largest |effect| above 0
    A_j          accuracy of probe j on test texts
    A_j|S        the same with the latents of S at 0, what the SAE does not reconstruct being kept
    TPP_N        mean over i of (A_i - A_i|S_i) - mean over j != i of (A_j - A_j|S_i)

Pooling, decoder and probe are linear, so nothing is decoded:

    logit_j|S    logit_j - sum over f in S of z_f (w_j . d_f)

This holds where x_hat is z W_dec + b_dec; an SAE that normalises x is refused. A threshold or
experts change nothing.

SCR has two properties. Its probe is trained on texts that have both or neither, so that it cannot
tell them apart. Tests have all four kinds of text in equal numbers:

    A_base       accuracy of that probe, as a probe of the wanted property
    A_ablated    the same, with S of the unwanted one
    A_oracle     accuracy of the wanted property's own probe
    SCR_N        (A_ablated - A_base) / (A_oracle - A_base); 0 where the denominator is below .001

and the direction that counts is that with the lower A_base.

At 0, a latent says of every text that it has not what the latent stands for. So whether SCR gains
anything hangs on the intercept of the confused probe: it must say yes to texts that have the wanted
property alone.

Our probes are fitted until they converge, with scikit-learn's L2 penalty, and are the same every
time. SAEBench's make 20 passes of Adam (rate .001, batches of 16, L1 penalty .001) from a random
beginning, and keep the pass that is best on the test texts. They are far from converged, and their
training decides how large the intercept is beside what latents say. So levels are not comparable
with SAEBench's. Where TPP has too few latents that speak for a property, SAEBench's ablates some
that speak against it.

N texts, D model, F latents, C properties.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.linear_model import LogisticRegression

from faithful_sae.metrics.sparse_probing import balanced
from faithful_sae.sae.sae import TopKSAE

SIZES = (2, 5, 10, 20, 50, 100, 500)
# of SCR's denominator
LEAST = 0.001
NO_LATENTS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Texts:
    """Texts, pooled (metrics/probing.py).

    Attributes:
        x: float [N, D], means of activations.
        z: float [N, F], means of latents.
        has: bool [N, C], which properties each has. Labels are properties that exclude each other:
            labels[:, None] == np.unique(training labels).
    """

    x: np.ndarray
    z: np.ndarray
    has: np.ndarray

    def __getitem__(self, places: np.ndarray) -> "Texts":
        return Texts(self.x[places], self.z[places], self.has[places])


@dataclass(frozen=True)
class TPP:
    """TPP of one SAE, with one number of ablated latents; unreliable, see `caution`.

    Attributes:
        n: latents that may be ablated.
        score: TPP_N, -1 to 1.
        intended: mean over properties of what the own probe loses, -1 to 1.
        unintended: mean of what the others lose, -1 to 1.
        accuracy: mean over properties of A_i, 0 to 1.
        latents: mean number of latents that are.
        converged: whether all probes did.
    """

    caution: ClassVar[str] = "falls as an SAE trains on (Chanin 2026)"
    n: int
    score: float
    intended: float
    unintended: float
    accuracy: float
    latents: float
    converged: bool


@dataclass(frozen=True)
class SCR:
    """SCR of one SAE, with one number of ablated latents; unreliable, see `caution`.

    Attributes:
        n: latents that may be ablated.
        score: SCR_N, 1: as good as the oracle, 0: nothing gained, without lower bound.
        first, second: SCR_N with the first property wanted, and with the second.
        wanted: 0 or 1, the property whose score counts.
        base, ablated, oracle: accuracies of that direction, 0 to 1.
        latents: how many are ablated in it.
        converged: whether all probes did.
    """

    caution: ClassVar[str] = "changes its sign at large N (Chanin 2026)"
    n: int
    score: float
    first: float
    second: float
    wanted: int
    base: float
    ablated: float
    oracle: float
    latents: int
    converged: bool


@dataclass(frozen=True)
class Probe:
    """A linear probe of one property.

    Attributes:
        w: float64 [D].
        b: the intercept.
        says: float64 [F], w . d_f of each latent.
        converged: whether the fit did.
    """

    w: np.ndarray
    b: float
    says: np.ndarray
    converged: bool

    def logits(self, texts: Texts, latents: np.ndarray) -> np.ndarray:
        """float64 [N], with some latents [n] ablated."""
        return texts.x @ self.w + self.b - texts.z[:, latents] @ self.says[latents]

    def accuracy(self, texts: Texts, has: np.ndarray, latents: np.ndarray) -> float:
        """Share of texts of which it says rightly whether they have it, bool [N]."""
        return float(((self.logits(texts, latents) > 0) == has).mean())


def fit_probe(
    sae: TopKSAE,
    x: np.ndarray,
    has: np.ndarray,
    inverse_regularisation: float = 1.0,
    max_iter: int = 1000,
) -> Probe:
    """A logistic regression, and what it makes of each latent.

    Args:
        x: float [N, D], of training texts.
        has: bool [N].
        inverse_regularisation: scikit-learn's C.
        max_iter: of its solver.
    """
    model = LogisticRegression(C=inverse_regularisation, max_iter=max_iter)
    model.fit(x.astype(float), has)
    w = model.coef_[0]
    says = sae.W_dec.double().cpu().numpy() @ w
    return Probe(
        w, np.asarray(model.intercept_).item(), says, bool(np.all(model.n_iter_ < max_iter))
    )


def tpp(
    sae: TopKSAE,
    train: Texts,
    test: Texts,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    **options: Any,
) -> list[TPP]:
    """TPP for each number of ablated latents.

    Args:
        train, test: of at least two properties.
        sizes: N.
        seed: of the draws of texts: half have the property.
        options: of fit_probe.

    Raises:
        ValueError: an SAE that normalises x; arrays that do not fit; fewer than two properties; one
            that all texts have, or none.
    """
    _check(sae, train, test)
    probes, orders, tests = [], [], []
    for i in range(train.has.shape[1]):
        own = train[balanced(train.has[:, i], seed)]
        probe = fit_probe(sae, own.x, own.has[:, i], **options)
        difference = _difference(own.z, own.has[:, i])
        speaks = (difference > 0) & (probe.says > 0)
        probes.append(probe)
        orders.append(_largest(np.where(speaks, difference * probe.says, 0.0)))
        tests.append(test[balanced(test.has[:, i], seed)])
    others = ~np.eye(len(probes), dtype=bool)

    def accuracies(latents):
        """[C], of all probes."""
        return np.array(
            [
                probe.accuracy(texts, texts.has[:, j], latents)
                for j, (probe, texts) in enumerate(zip(probes, tests, strict=True))
            ]
        )

    whole = accuracies(NO_LATENTS)
    found = []
    for n in sizes:
        lost = whole - np.array([accuracies(order[:n]) for order in orders])
        intended, unintended = np.diag(lost).mean(), lost[others].mean()
        found.append(
            TPP(
                n,
                float(intended - unintended),
                float(intended),
                float(unintended),
                float(whole.mean()),
                float(np.mean([len(order[:n]) for order in orders])),
                all(probe.converged for probe in probes),
            )
        )
    return found


def scr(
    sae: TopKSAE,
    train: Texts,
    test: Texts,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    **options: Any,
) -> list[SCR]:
    """SCR for each number of ablated latents.

    Args:
        train, test: of two properties, each of the four kinds of text among them.
        sizes: N.
        seed: of the draws of texts: as many of each kind.
        options: of fit_probe.

    Raises:
        ValueError: an SAE that normalises x; arrays that do not fit; other than two properties; a
            kind of text that there is none of.
    """
    _check(sae, train, test)
    for texts in (train, test):
        if texts.has.shape[1] != 2 or len(np.unique(_kinds(texts))) < 4:
            raise ValueError(
                "SCR needs two properties, and texts that have both, either or neither: of "
                f"{texts.has.shape[1]} properties, the first two make "
                f"{len(np.unique(_kinds(texts)))} kinds of text"
            )
    train, test = (texts[balanced(_kinds(texts), seed)] for texts in (train, test))
    own = [fit_probe(sae, train.x, train.has[:, i], **options) for i in (0, 1)]
    both = train[train.has[:, 0] == train.has[:, 1]]
    confused = fit_probe(sae, both.x, both.has[:, 0], **options)
    orders = [_largest(np.abs(_difference(train.z, train.has[:, i]) * own[i].says)) for i in (0, 1)]
    base = [confused.accuracy(test, test.has[:, i], NO_LATENTS) for i in (0, 1)]
    oracle = [own[i].accuracy(test, test.has[:, i], NO_LATENTS) for i in (0, 1)]
    wanted = int(base[1] < base[0])
    found = []
    for n in sizes:
        ablated = [confused.accuracy(test, test.has[:, i], orders[1 - i][:n]) for i in (0, 1)]
        first, second = (
            (ablated[i] - base[i]) / (oracle[i] - base[i]) if oracle[i] - base[i] >= LEAST else 0.0
            for i in (0, 1)
        )
        found.append(
            SCR(
                n,
                (first, second)[wanted],
                first,
                second,
                wanted,
                base[wanted],
                ablated[wanted],
                oracle[wanted],
                len(orders[1 - wanted][:n]),
                all(probe.converged for probe in (*own, confused)),
            )
        )
    return found


def _check(sae, *parts):
    if sae.normalisation != "none":
        raise ValueError(
            f"this SAE normalises x ({sae.normalisation}), so that pooled latents do not say what "
            "an ablation takes away: TPP and SCR need one that does not"
        )
    for texts in parts:
        n, properties = texts.has.shape
        shapes = [texts.x.shape, texts.z.shape]
        fitting = [(n, sae.d_model), (n, sae.d_sae)]
        if shapes != fitting:
            raise ValueError(
                f"x and z of {n} texts have shapes {shapes}, and must have {fitting}: pool them "
                "with this SAE"
            )
        if properties < 2 or properties != parts[0].has.shape[1]:
            raise ValueError(
                f"{n} texts have {properties} of two or more properties: training and test texts "
                "need the same"
            )
        lonely = [i for i, share in enumerate(texts.has.mean(0)) if share in (0, 1)]
        if lonely:
            raise ValueError(f"all texts have property {lonely[0]}, or none has: leave it out")


def _kinds(texts):
    """Of two properties, 0 to 3."""
    return 2 * texts.has[:, 0].astype(int) + texts.has[:, 1]


def _difference(z, has):
    """float64 [F]: mean with a property less mean without."""
    return z[has].mean(0, dtype=float) - z[~has].mean(0, dtype=float)


def _largest(effect):
    """Latents with an effect above 0, the largest first."""
    order = np.argsort(-effect, kind="stable")
    return order[effect[order] > 0]
