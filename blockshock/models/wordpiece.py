"""English text as the tokens of an uncased BERT: words and punctuation, each in the longest pieces that it has.

As ``BertTokenizer`` does it (Devlin et al., arXiv 1810.04805; Wu et al., arXiv 1609.08144, §4.1), in plain Python.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

LONGEST_WORD = 100
"""Characters of a word; a longer one is unknown."""


class WordPiece:
    """Text → ids.

    Args:
        vocabulary: the pieces, in the order of their ids; those that go on a word begin with ``##``. It has
            ``[CLS]``, ``[SEP]`` and ``[UNK]``.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._ids = {piece: index for index, piece in enumerate(vocabulary)}

    def __call__(self, text: str, longest: int) -> list[int]:
        """Ids of a text between ``[CLS]`` and ``[SEP]``, these two counted, cut at the longest that is wanted."""
        found = [self._ids[piece] for word in _words(text) for piece in self._pieces(word)]
        return [self._ids["[CLS]"], *found[: longest - 2], self._ids["[SEP]"]]

    def _pieces(self, word: str) -> list[str]:
        """The longest piece that the word begins with, and of the rest again; unknown where there is none."""
        found: list[str] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1) if len(word) <= LONGEST_WORD else ()
            end = next((end for end in ends if prefix + word[start:end] in self._ids), None)
            if end is None:
                return ["[UNK]"]
            found.append(prefix + word[start:end])
            start = end
        return found


def _words(text: str) -> Iterator[str]:
    """Words in lower case and without accents; punctuation, and each Chinese character, by itself."""
    word = ""
    for character in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(character)
        if (
            category == "Mn"
            or character in "\0\ufffd"
            or (category in ("Cc", "Cf", "Co") and character not in "\t\n\r")
        ):
            continue
        blank = character.isspace()
        alone = _is_punctuation(character, category) or _is_chinese(ord(character))
        if (blank or alone) and word:
            yield word
            word = ""
        if alone:
            yield character
        elif not blank:
            word += character
    if word:
        yield word


def _is_punctuation(character: str, category: str) -> bool:
    """What Unicode says is punctuation, and all of ASCII that is neither letter, digit nor blank."""
    return category[0] == "P" or (
        character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    )


def _is_chinese(code: int) -> bool:
    return any(first <= code <= last for first, last in _CHINESE)


_CHINESE = (
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)),
    *((0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F)),
)
