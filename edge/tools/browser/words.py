"""Text as the terms that are searched for.

In: text of any language. Out: terms. Knows nothing about documents. Words are runs of letters, marks and digits,
case-folded, in Unicode's compatibility form; scripts that are written without spaces, and Korean, whose words carry
their endings, give each pair of neighbouring characters.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

# Han, kana, Hangul; Thai, Lao, Burmese, Khmer
_UNSPACED = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)


def terms(text: str) -> list[str]:
    """Return the terms of a text in their order."""
    found: list[str] = []
    for match in _pattern().finditer(unicodedata.normalize("NFKC", text.casefold()).casefold()):
        run = match[0]
        if match.lastgroup == "unspaced" and len(run) > 1:
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            found.append(run)
    return found


def lone(term: str) -> bool:
    """Whether a term is one character of a script without spaces, of which an index has only pairs."""
    return len(term) == 1 and _pattern().match(term)["unspaced"] is not None  # type: ignore[index]  # a term matches


@cache
def _pattern() -> re.Pattern[str]:
    r"""`\w` knows no marks, without which words of Hindi or Arabic with vowels would fall apart."""
    marks = "".join(
        char for char in map(chr, range(min(sys.maxunicode, 0xFFFF) + 1)) if unicodedata.category(char)[0] == "M"
    )
    unspaced = f"[{_UNSPACED}]"
    return re.compile(rf"(?P<unspaced>{unspaced}+)|(?P<word>(?:(?!{unspaced})[\w{re.escape(marks)}])+)")
