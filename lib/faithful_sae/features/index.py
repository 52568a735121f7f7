"""The files of an index of features, and FeatureIndex, which reads them. Neither model nor SAE is
needed to read.

    index.json            what it is an index of; histogram edges
    latents.parquet       one row per latent
    contexts.parquet      where it fires: the strongest contexts and a sample of all
    explanations.parquet  what the methods of explain.py say of it
    related.parquet       latents near it (relations.py)
    vocabulary.json       a string for every token id

Contexts, explanations and related latents are sorted by latent and written in groups of a few
latents, so that a page reads one group of each.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faithful_sae.features.judging import SCORES
from faithful_sae.features.vocabulary import folded
from faithful_sae.files import read_json

if TYPE_CHECKING:
    from faithful_sae.sae.sae import TopKSAE

LATENTS = pa.schema(
    [
        ("latent", pa.int32()),
        ("frequency", pa.float64()),
        ("mean", pa.float32()),
        ("max", pa.float32()),
        ("dead", pa.bool_()),
        ("random_frequency", pa.float64()),
        ("fake", pa.bool_()),
        ("twin", pa.int32()),
        ("twin_cosine", pa.float32()),
        ("shared", pa.bool_()),
        ("histogram", pa.list_(pa.int32())),
    ]
)
CONTEXTS = pa.schema(
    [
        ("latent", pa.int32()),
        ("kind", pa.string()),
        ("rank", pa.int32()),
        ("stratum", pa.int32()),
        ("activation", pa.float32()),
        ("position", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("activations", pa.list_(pa.float32())),
        ("row", pa.int32()),
        ("place", pa.int32()),
        ("document", pa.int32()),
        ("loss_change", pa.list_(pa.float32())),
    ]
)
EXPLANATIONS = pa.schema(
    [
        ("latent", pa.int32()),
        ("method", pa.string()),
        ("rank", pa.int32()),
        ("text", pa.string()),
        ("value", pa.float32()),
    ]
)
RELATED = pa.schema(
    [
        ("latent", pa.int32()),
        ("relation", pa.string()),
        ("sae", pa.string()),
        ("rank", pa.int32()),
        ("other", pa.int32()),
        ("value", pa.float32()),
        ("together", pa.int32()),
    ]
)
# of the files above: 2 came with related.parquet, and with places and loss changes of contexts
FORMAT = 2
META = (
    "label",
    "run",
    "profile",
    "corpus",
    "seed",
    "other_seed",
    "layer",
    "k",
    "d_sae",
    "tokens",
    "mut_info_lost",
    "histogram_edges",
    "sfr_threshold",
    "ffr_frequency",
    "key",
    "sae",
)
# of what judges say, that a page has
JUDGED = ("latent", "judge", "scored", "text", *SCORES)
# whose explanations are tokens
TOKEN_METHODS = ("VocabProj", "MutInfo")
# fires on more than this share of the corpus' tokens
DENSE = 0.1


class FeatureError(ValueError):
    """An index cannot be read or does not belong here; the message says which and what to do."""


class FeatureIndex:
    """Reads an index folder.

    Args:
        folder: of build_index.
        judged: what judges say of its latents, one table of interpret_all below another; None: no
            judge was asked.

    Attributes:
        judged: that, without rows where no judge was asked.
        meta: index.json. label, run, profile, corpus (indexed text, and what the SAE was trained
            on), seed, other_seed, layer (and hook, where it is not the residual stream), k, d_sae,
            tokens (counted), mut_info_lost (the largest share of a latent's firings by which a
            count behind MutInfo may be too low; 0: all are exact), histogram_edges [bins + 1],
            sfr_threshold, ffr_frequency, key (of the provenance), sae (checksum of the weights).
            What is not known is None.
        latents: row i is latent i.
            frequency: share of the tokens on which it fires (activation above 0).
            mean, max: of its activations where it fires (0 if nowhere).
            dead: fires on none of the tokens.
            random_frequency: share of uniformly random tokens (NaN: not counted).
            fake: that is above ffr_frequency; None where not known.
            twin: matched latent in the other seed (-1: none).
            twin_cosine: of their decoder rows.
            shared: that is at least sfr_threshold; None where not known. An orphan is a latent with
            shared false.
            histogram: tokens by activation, between the histogram_edges; the first and last bin
            also hold what lies beyond.
        vocabulary: a string for each token id.

    Raises:
        FeatureError: no index in the folder, one of another version, or a damaged file, named;
            judged latents that it does not have.
    """

    def __init__(self, folder: str | Path, judged: pd.DataFrame | None = None):
        self.folder = Path(folder)
        self.meta = self._json("index.json")
        present = self.meta if isinstance(self.meta, dict) else ()
        for name in META:
            if name not in present:
                raise self._damaged("index.json", f"{name} is missing")
        if self.meta.get("format") != FORMAT:
            raise FeatureError(
                f"{self.folder}: an index that another version of this library made: delete it, "
                "and make paper (or build_index) makes it again"
            )
        self.judged = pd.DataFrame(columns=[*JUDGED]) if judged is None else judged
        if not self.judged.latent.between(0, self.meta["d_sae"] - 1).all():
            raise FeatureError(
                f"{self.folder}: judges were asked of other latents than 0 to "
                f"{self.meta['d_sae'] - 1}: of which SAE is the table?"
            )

    @cached_property
    def latents(self) -> pd.DataFrame:
        latents = self._whole("latents.parquet", LATENTS)
        if not np.array_equal(latents.latent, np.arange(self.meta["d_sae"])):
            raise self._damaged(
                "latents.parquet", f"its latents are not 0 to {self.meta['d_sae'] - 1}"
            )
        return latents

    @cached_property
    def vocabulary(self) -> list[str]:
        return self._json("vocabulary.json")

    def page(self, latent: int | np.integer) -> dict[str, Any]:
        """All that is known of one latent, as JSON can hold it (None for what is not known).

        Returns:
            {latent, frequency, mean, max, dead, random_frequency, fake, twin, twin_cosine, shared,
             histogram: [int],
             contexts: [{kind: "top" or "sample", rank, stratum, activation, position,
                         tokens: [str], activations: [float], row, place, document,
                         loss_change: [float]}],
             explanations: {method: [[text, value], ...]},
             related: {decoder: [[latent, cosine], ...],
                       correlated: [[latent, correlation, tokens on which both fire], ...],
                       elsewhere: [[sae, latent, cosine], ...]},
             judged: [{judge, scored, text, detection_random, detection_hard, fuzz_random,
                       fuzz_wrong}]}.
            A context's activation is that of tokens[position], the strongest of its row. stratum: 0
            for the power of two in which the latent's largest activation lies, 1 for that below,
            and so on, and the last for all that is weaker; -1 for kind "top". row: of the rows
            indexed; place: of that token in it; document: its number in the corpus; loss_change:
            of each token, in nats, where the latent is ablated (ablation.py). Both are None where
            not known. related: the largest first (relations.py), and elsewhere the nearest
            decoder row in each SAE of another corpus.

        Raises:
            FeatureError: no such latent; a damaged file.
        """
        if (
            isinstance(latent, bool)
            or not isinstance(latent, (int, np.integer))
            or not 0 <= latent < self.meta["d_sae"]
        ):
            raise FeatureError(
                f"{self.folder}: no latent {latent!r}: it has 0 to {self.meta['d_sae'] - 1}"
            )
        page = {name: _plain(value) for name, value in self.latents.iloc[latent].items()}
        if page["twin"] < 0:
            page["twin"] = None
        contexts = [self._with_text(row) for row in self._rows(self._contexts, latent)]
        explanations = {}
        for row in self._rows(self._explanations, latent):
            explanations.setdefault(row["method"], []).append([row["text"], row["value"]])
        related = {"decoder": [], "correlated": [], "elsewhere": []}
        for row in self._rows(self._related, latent):
            if row["sae"]:
                related["elsewhere"].append([row["sae"], row["other"], row["value"]])
            else:
                together = [] if row["together"] is None else [row["together"]]
                related[row["relation"]].append([row["other"], row["value"], *together])
        own: Any = self._judged.get(latent, self.judged[:0])
        judged = [
            {name: _plain(row[name]) for name in JUDGED[1:]} for row in own.to_dict("records")
        ]
        return page | {
            "contexts": contexts,
            "explanations": explanations,
            "related": related,
            "judged": judged,
        }

    def find(
        self,
        token: str | None = None,
        *,
        dead: bool | None = None,
        fake: bool | None = None,
        shared: bool | None = None,
        frequency: tuple[float, float] = (0.0, 1.0),
        order: str = "latent",
        descending: bool = False,
    ) -> pd.DataFrame:
        """Rows of `latents` that fit all that is asked for.

        Args:
            token: text of a token; those latents for which VocabProj or MutInfo names it, blanks
                and capitals apart.
            dead, fake, shared: True or False asks for that; latents of which it is not known never
                fit.
            frequency: least and largest share of tokens on which they fire, both included.
            order: a column of `latents` to sort by, equal ones by latent.
            descending: whether the largest come first.

        Raises:
            FeatureError: an unknown column.
        """
        found = self.latents
        columns = [name for name in found.columns if name != "histogram"]
        if order not in columns:
            raise FeatureError(f"cannot order by {order!r}: {', '.join(columns)}")
        keep = found.frequency.between(*frequency)
        for name, wanted in (("dead", dead), ("fake", fake), ("shared", shared)):
            if wanted is not None:
                keep &= found[name] == wanted
        if token is not None:
            keep &= found.latent.isin(self._by_token.get(token.strip().casefold(), ()))
        return found.loc[keep].sort_values(
            [order, "latent"], ascending=[not descending, True], kind="stable"
        )

    def elsewhere(self) -> pd.DataFrame:
        """The nearest decoder row of each latent in each SAE of another corpus: sae (its name),
        latent, other (the latent there) and value (the cosine).
        """
        table = self._whole("related.parquet", RELATED)
        return table.loc[table.sae != "", ["sae", "latent", "other", "value"]]

    def contexts(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(latent, its contexts as on its page) of every latent that has some, in order; a few
        latents in memory.
        """
        name, file, first, _ = self._contexts
        for group in range(len(first)):
            with self._blaming(name):
                rows = file.read_row_group(group, use_threads=False).to_pylist()
            for latent, own in itertools.groupby(rows, key=lambda row: row["latent"]):
                yield latent, [self._with_text(row) for row in own]

    def strongest_tokens(self) -> pd.DataFrame:
        """Of every context its latent, kind, and token: the text of its strongest token."""
        name, file, *_ = self._contexts
        with self._blaming(name):
            table = file.read(["latent", "kind", "position", "tokens"], use_threads=False)
        lists = table["tokens"].combine_chunks()
        first = lists.offsets.to_numpy()[:-1]
        ids = lists.values.to_numpy()[first + table["position"].to_numpy()]
        # most tokens are the strongest of many contexts
        text = pd.Series(self.vocabulary, dtype=object).take(ids).to_numpy()
        return table.select(["latent", "kind"]).to_pandas().assign(token=text)

    def explanations(self) -> pd.DataFrame:
        """All of explanations.parquet: latent, method, rank, text, value."""
        return self._whole("explanations.parquet", EXPLANATIONS)

    # --- files ------------------------------------------------------------------------------------

    @cached_property
    def _contexts(self):
        return self._grouped("contexts.parquet", CONTEXTS)

    @cached_property
    def _explanations(self):
        return self._grouped("explanations.parquet", EXPLANATIONS)

    @cached_property
    def _related(self):
        return self._grouped("related.parquet", RELATED)

    @cached_property
    def _judged(self):
        """{latent: rows of judged}."""
        return dict(list(self.judged.groupby("latent", sort=False)))

    @cached_property
    def _by_token(self):
        """{token, stripped and casefolded: latents that it explains}."""
        table = self.explanations()
        table = table[table.method.isin(TOKEN_METHODS)]
        return table.latent.groupby(folded(table.text)).unique().to_dict()

    def _with_text(self, context):
        return context | {"tokens": [self.vocabulary[i] for i in context["tokens"]]}

    def _grouped(self, name, schema):
        """(name, file, first latent of each group, last latent of each group)."""
        file = self._file(name, schema)
        statistics = [
            file.metadata.row_group(i).column(0).statistics for i in range(file.num_row_groups)
        ]
        if not all(s is not None and s.has_min_max for s in statistics):
            raise self._damaged(name, "no statistics of its latents")
        return (
            name,
            file,
            np.array([s.min for s in statistics], int),
            np.array([s.max for s in statistics], int),
        )

    def _rows(self, grouped, latent) -> list[dict[str, Any]]:
        name, file, first, last = grouped
        groups = np.flatnonzero((first <= latent) & (latent <= last)).tolist()
        with self._blaming(name):
            table = file.read_row_groups(groups, use_threads=False)
        # pyarrow makes its functions when it is imported
        own = pc.equal(table["latent"], latent)  # pyright: ignore[reportAttributeAccessIssue]
        return table.filter(own).drop_columns("latent").to_pylist()

    def _whole(self, name, schema) -> pd.DataFrame:
        with self._blaming(name):
            return self._file(name, schema).read().to_pandas()

    def _file(self, name, schema):
        path = self._present(name)
        with self._blaming(name):
            file = pq.ParquetFile(path, memory_map=True)
        if not file.schema_arrow.equals(schema):
            raise self._damaged(name, "other columns than an index has")
        return file

    def _json(self, name) -> Any:
        try:
            return read_json(self._present(name))
        except ValueError as error:
            raise self._damaged(name, error) from None

    @contextlib.contextmanager
    def _blaming(self, name):
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(name, error) from None

    def _present(self, name):
        path = self.folder / name
        if not path.is_file():
            raise FeatureError(
                f"{path} is missing: no index of features in this folder: run "
                "notebooks/09_explore_features, or build_index"
            )
        return path

    def _damaged(self, name, why):
        return FeatureError(
            f"{self.folder / name}: damaged ({why}): delete {self.folder} and build the index again"
        )


def ordinary(latents: pd.DataFrame) -> pd.DataFrame:
    """Rows of `latents` that fire, and are neither dense nor known to be fake."""
    fake = latents.fake.map(lambda fake: fake is True)
    return latents.loc[~latents.dead & (latents.frequency <= DENSE) & ~fake]


def sae_checksum(sae: TopKSAE) -> str:
    """SHA-256 of an SAE's weights, by which an index knows the SAE that it was made from."""
    # torch comes with it, which reading an index does without
    from faithful_sae.files.checkpoint import checksum

    return checksum({n: t.detach().cpu().contiguous() for n, t in sae.weights.items()})


def _plain(value) -> Any:
    """A cell of a DataFrame as JSON can hold it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


# --- writing --------------------------------------------------------------------------------------


def write_grouped(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write Arrow tables, each of a few latents in order, as one parquet file with one row group
    for each that has rows.
    """
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        # a list of columns is right too, which pyarrow's own default hides
        write_statistics=["latent"],  # pyright: ignore[reportArgumentType]
    ) as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)


def write_latents(path: Path, latents: pd.DataFrame) -> None:
    """Write the DataFrame of FeatureIndex.latents."""
    pq.write_table(
        pa.Table.from_pandas(latents, LATENTS, preserve_index=False), path, compression="zstd"
    )
