"""A string for every token id, as close to the text it stands for as a single token allows."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd


def display_strings(tokenizer: Any, ids: Sequence[int] | None = None) -> list[str]:
    """One string per id, of those given or of all, 0 to len(tokenizer) - 1.

    Byte-level pieces (GPT-2, GPT-NeoX, Llama 3) are decoded; where a token is only a part of a
    character, each byte that is no text of its own is written <0xNN>, as SentencePiece does.
    SentencePiece's (Llama 2, Gemma) have blanks for its marks. Special tokens, and the pieces of
    other tokenizers, are as they are written in the vocabulary. An id without a piece is "".
    """
    decoder = tokenizer.backend_tokenizer.decoder
    kind = json.dumps(json.loads(decoder.__getstate__())) if decoder else ""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))) if ids is None else ids)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    show = str
    if "ByteLevel" in kind:
        show = _from_bytes
    elif "ByteFallback" in kind or "\\u2581" in kind:
        show = _from_sentencepiece
    # a padded vocabulary has ids that no piece belongs to
    known = [piece or "" for piece in pieces]
    return [piece if piece in added else show(piece) for piece in known]


def visible(text: str, blanks: bool = True) -> str:
    """Text on one line: line breaks and tabs as signs, and blanks at both ends as well.

    Args:
        blanks: whether blanks at the ends are made visible; not where text goes on beside it.
    """
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    if not blanks:
        return shown
    return re.sub("^ +| +$", lambda match: "␣" * len(match[0]), shown)


def folded(tokens: pd.Series) -> pd.Series:
    """Tokens by which they are compared: blanks around them and capitals do not count."""
    return tokens.str.strip().str.casefold()


def _from_bytes(piece):
    if not all(c in BYTES for c in piece):
        return piece
    data = bytes(BYTES[c] for c in piece)
    shown = ""
    while data:
        try:
            return shown + data.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = data[error.start : error.end]
            shown += data[: error.start].decode("utf-8") + "".join(
                f"<0x{byte:02X}>" for byte in bad
            )
            data = data[error.end :]
    return shown


def _from_sentencepiece(piece):
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        byte = int(match[1], 16)
        return chr(byte) if byte < 128 else piece
    return piece.replace("\u2581", " ")


def _byte_characters():
    """{character: byte} of GPT-2's byte-level BPE: printable bytes stand for themselves, the others
    for characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


BYTES = _byte_characters()
