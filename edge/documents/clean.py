"""Characters of a text that was taken out of another format.

In: text as a library gives it. Out: text that can be written as UTF-8: halves of characters joined or replaced, without
control characters other than tabs and line ends, which are "\\n". Files of text do not come here: they are as they are.
"""

from __future__ import annotations

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n?|[\f\v\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
# Letters as fonts have them: ligatures, and radicals that stand for whole Chinese characters (U+2F00: U+4E00).
_GLYPHS = re.compile("[\ufb00-\ufb06\u2f00-\u2fd5]")


def clean(text: str) -> str:
    """Return a text without what no prompt needs."""
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _CONTROL.sub("", _LINE_ENDS.sub("\n", text))


def letters(text: str) -> str:
    """Return a text with letters in the place of glyphs that mean the same: "file" for "\ufb01le"."""
    return _GLYPHS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
