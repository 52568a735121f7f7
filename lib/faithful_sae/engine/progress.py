"""How a step tells of its progress: a line now and then, apart from what runs notebooks, whose
libraries take seconds to import.
"""

import re
import time
from typing import TextIO

EVERY = 15  # seconds between two lines of progress


BAR = re.compile(r"\[\d+:\d\d(:\d\d)?[<,]")  # of a progress bar's line: its time, [01:23<04:56,
NOTE = re.compile(r"(?:^|UserWarning: )(note: .*)", re.M)


def title(*words: str) -> str:
    """What a job is called: its rule, and the model, corpus or share that it is for."""
    return " · ".join(words)


class Progress:
    """Called with a step's output, print a line of its progress bar every few seconds, and every
    `note:`, after the step's name.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title = title
        self.stream = stream
        self.last = time.time()

    def __call__(self, text: str) -> None:
        text = text.strip()
        for note in NOTE.findall(text):
            self._tell(note)
        line = re.split(r"[\r\n]", text)[-1].strip()
        # not before it knows its rate
        if BAR.search(line) and "?" not in line and time.time() - self.last > EVERY:
            self.last = time.time()
            self._tell(re.sub(r"[|].*[|]", "", line))

    def _tell(self, line: str) -> None:
        print(f"    {self.title}  {line}", file=self.stream, flush=True)
