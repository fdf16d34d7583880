"""The suffix automaton of a growing text of token ids: where did its latest ids occur before, and what came next?

In: ids, one after another. Out: the longest suffix that has occurred before, and what followed it then. Knows nothing
about models, probabilities or files.

The automaton is Blumer's (Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"). Drafting
the continuation of a repeated suffix is prompt lookup decoding (Saxena 2023), here with the longest suffix in place of
an n-gram of fixed length, as in SuffixDecoding (Oliaro et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# How many suffixes of one end get it as their latest, from the longest on; `draft` says what this limit costs.
_NOTED = 16


class SuffixAutomaton:
    """All substrings of a text, online, amortized O(1) per id.

    Ids are 0 or more. There are at most two states per id. Most have a single transition: flat lists hold the first one
    of each state, and a dictionary holds the others.
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._text: list[int] = []  # separators are negative and all different, so that nothing matches across
        self._breaks = 0
        self._last = 0  # the state of the whole text
        # One entry per state; state 0 is the empty string.
        self._length = [0]  # of its longest string
        self._link = [-1]  # the state of its longest suffix that ends in more places
        self._end = [-1]  # where it last ended with an id after it; -1 for nowhere
        self._token: list[int | None] = [None]  # its first transition ...
        self._target = [0]
        self._more: dict[int, dict[int, int]] = {}  # ... and the others
        self.extend(ids)

    def __len__(self) -> int:
        """How many ids it has so far; a break counts as one."""
        return len(self._text)

    def tail(self, count: int) -> list[int]:
        """Return the last `count` ids, or all if there are fewer."""
        return self._text[-count:] if count > 0 else []

    def append(self, token_id: int) -> None:
        """Add one id to the text."""
        self.extend((token_id,))

    def separate(self) -> None:
        """End one text and begin another: no match and no draft reaches across."""
        self._breaks += 1
        self.extend((-self._breaks,))

    def extend(self, ids: Iterable[int]) -> None:
        """Add ids to the text."""
        first, target, more, link = self._token, self._target, self._more, self._link
        for token in ids:
            if token >= 0:
                self._note_end()
            self._text.append(token)
            state, new = self._last, self._new_state(self._length[self._last] + 1)
            self._last = new
            while state >= 0:
                found = first[state]
                if found is None:
                    first[state] = token
                    target[state] = new
                elif found == token:
                    self._join(state, token, target[state])
                    break
                else:
                    others = more.get(state)
                    if others is None:
                        more[state] = {token: new}
                    elif token in others:
                        self._join(state, token, others[token])
                        break
                    else:
                        others[token] = new
                state = link[state]

    def _note_end(self) -> None:
        """Note where the suffixes of the text end, as an id is about to follow.

        If a string has such an end, so have its suffixes: the walk may stop at the first noted one after the limit.
        """
        end, link, state = self._end, self._link, self._last
        here, noted = len(self._text) - 1, 0
        while state > 0 and (noted < _NOTED or end[state] < 0):
            end[state] = here
            state = link[state]
            noted += 1

    def _new_state(self, length: int) -> int:
        self._length.append(length)
        self._link.append(0)
        self._end.append(-1)
        self._token.append(None)
        self._target.append(0)
        return len(self._length) - 1

    def _join(self, state: int, token: int, found: int) -> None:
        """Link the text's state to that of its longest repeated suffix: `found`, where `token` leads from `state`."""
        length, link, first, target, more = self._length, self._link, self._token, self._target, self._more
        if length[found] == length[state] + 1:
            link[self._last] = found
            return
        # The strings of `found` that also end here become a state of their own.
        clone = self._new_state(length[state] + 1)
        link[clone], self._end[clone] = link[found], self._end[found]
        first[clone], target[clone] = first[found], target[found]
        if found in more:
            more[clone] = more[found].copy()
        while state >= 0:
            if first[state] == token and target[state] == found:
                target[state] = clone
            elif first[state] != token and more[state][token] == found:
                more[state][token] = clone
            else:
                break
            state = link[state]
        link[found] = link[self._last] = clone

    def draft(self, count: int) -> tuple[int, list[int]]:
        """Return the length of the longest suffix of the text that occurred before, and `count` ids that followed it.

        (0, []) if the last id is new. The length is exact. The ids are from the latest earlier occurrence; one that was
        itself the end of 15 or more longer repeats, each with a state of its own, may be passed over for an earlier
        one. If the occurrence ends fewer than `count` ids ago, the draft continues with its own beginning: a loop is
        drafted to any length.
        """
        state = self._followed(self._link[self._last])
        if state == 0:
            return 0, []
        begin = self._end[state] + 1
        ids = self._text[begin : begin + max(count, 0)]
        if len(ids) < count:
            ids = (ids * (count // len(ids) + 1))[:count]
        return self._length[state], self._up_to_break(ids)

    def find(self, tail_ids: Sequence[int], count: int) -> tuple[int, list[int]]:
        """Return the length of the longest suffix of other ids in this text, and up to `count` ids that followed it.

        (0, []) if the text has no such suffix with an id after it. Of several occurrences, one is chosen as in `draft`.
        O(len(tail_ids)).
        """
        length, link, first, target, more = self._length, self._link, self._token, self._target, self._more
        state = matched = 0
        for token in tail_ids:
            while True:
                if first[state] == token:
                    state, matched = target[state], matched + 1
                    break
                others = more.get(state)
                if others is not None and token in others:
                    state, matched = others[token], matched + 1
                    break
                if state == 0:
                    break
                state = link[state]
                matched = length[state]
        followed = self._followed(state)
        if followed == 0:
            return 0, []
        begin = self._end[followed] + 1
        return min(matched, length[followed]), self._up_to_break(self._text[begin : begin + max(count, 0)])

    def _followed(self, state: int) -> int:
        """Return the state of the longest suffix of a state's strings with an id after it somewhere, or 0."""
        while state > 0 and self._end[state] < 0:
            state = self._link[state]
        return max(state, 0)

    def _up_to_break(self, ids: list[int]) -> list[int]:
        if not self._breaks:
            return ids
        return ids[: next((i for i, token in enumerate(ids) if token < 0), len(ids))]
