"""An answer that is known beforehand, written with drafts on an engine whose steps cost what a test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge.runtime.speculation import Drafter, StepCost

StepMs = Callable[[int], float]  # ms of the next step, by its rows


def line(first: float, slope: float) -> StepMs:
    return lambda rows: first * (1 + slope * (rows - 1))


EIGHT_ROWS_COST_A_QUARTER_MORE = line(1.0, 0.25 / 7)


class Run:
    """The answer, step by step. `speedup` is over steps of 1 ms."""

    def __init__(
        self,
        answer: Sequence[int],
        drafter: Drafter,
        cost: StepCost,
        step_ms: StepMs = EIGHT_ROWS_COST_A_QUARTER_MORE,
    ) -> None:
        self.written: list[int] = []
        self.drafts: list[tuple[int, int]] = []  # tokens that stood before, ids drafted
        self.ms = 0.0
        while len(self.written) < len(answer):
            at = len(self.written)
            draft = drafter.draft(len(answer) - at)
            right = next((i for i, token in enumerate(draft) if token != answer[at + i]), len(draft))
            new = list(answer[at : at + right + 1])
            drafter.observe(new, len(draft))
            ms = step_ms(len(draft) + 1)
            cost.record(len(draft) + 1, ms)
            self.ms += ms
            self.written += new
            if draft:
                self.drafts.append((at, len(draft)))
        assert self.written == list(answer)
        self.speedup = len(answer) / self.ms
