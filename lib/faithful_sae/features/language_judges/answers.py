"""The answers of language models on disk: what was asked once is not asked again, whatever becomes
of the process that asked.

One SQLite file. Every answer is a transaction, so a killed run loses at most the call that it was
waiting for, and several runs may share a file.
"""

import contextlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from faithful_sae.features.index import FeatureError
from faithful_sae.files import writing

# that another process may hold the file
WAIT = 60.0


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    Attributes:
        text: as it was written; "" where the model's probabilities alone were read.
        model: what the model is called by whoever answered.
        p: of each window asked about, 0 to 1; empty where a text was asked for, and where the
            answer cannot be read.
    """

    text: str
    model: str
    p: Sequence[float] = ()


class Answers:
    """A file of answers by key, made when it is not there.

    Raises:
        FeatureError: not a file of answers, or damaged.
        DiskFullError, ReadOnlyError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        self._run("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, key: str) -> Answer | None:
        """The answer kept under a key."""
        found = self._run("SELECT answer FROM answers WHERE key = ?", key)
        return Answer(**json.loads(found[0][0])) if found else None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; the first one under a key stays."""
        with writing(self.path):
            text = json.dumps(asdict(answer), ensure_ascii=False)
            self._run("INSERT OR IGNORE INTO answers VALUES (?, ?)", key, text)

    def __len__(self) -> int:
        return self._run("SELECT count(*) FROM answers")[0][0]

    def _run(self, statement, *values):
        try:
            # opened anew each time, which is little beside any model's work: so it may be used
            # from any thread and after a fork
            connection = sqlite3.connect(self.path, timeout=WAIT)
            with contextlib.closing(connection), connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise FeatureError(
                f"{self.path}: cannot be used as a file of answers ({error}): move it away if it "
                "is damaged or something else; answers are then asked for again"
            ) from error
