"""One replica: requests wait, are read and answered, step by step, under the rules of the real scheduler.

In: requests, and what a step costs. Out: the same requests with their times, each told of when it ends. Uses simpy's
clock. Knows nothing about other replicas but whether one on the same machine computes.

The rules are those of `runtime/scheduler.py`, `prefill.py` and `admission.py`, and a test holds the steps to theirs: a
step is one token of every running answer, then a part of one prompt or of several. Between two steps that differ in
nothing but the length of answers lies nothing that could be decided, so these are one event: what a simulation costs
depends on requests and not on tokens. An arrival takes effect when the step that runs has ended, as in reality.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.profiles.fleet.kept import Kept
from edge.profiles.fleet.step_costs import StepCosts
from edge.profiles.fleet.workload import Ask, Outcome
from edge.runtime.admission import MAX_OVERTAKEN, WORTH_WAITING
from edge.runtime.engines.limits import MAX_RUNNING
from edge.runtime.prefill import PASSED_OVER
from edge.runtime.scheduler import SHARED_CHUNK
from edge.runtime.settings import MAX_WAITING

if TYPE_CHECKING:
    from simpy import Environment, Event


@dataclass(frozen=True, slots=True)
class StepMade:
    """What one step did, for those who want to see it: answers with a token more, and tokens read of prompts."""

    answers: int
    read: tuple[int, ...]


class Replica:
    """A process of the simulation. `told` is called with every request that has ended here."""

    def __init__(
        self,
        env: Environment,
        costs: StepCosts,
        told: Callable[[Ask], None],
        *,
        max_waiting: int = MAX_WAITING,
        beside: Sequence[Replica] = (),
        every_step: bool = False,
        seen: Callable[[StepMade], None] | None = None,
    ) -> None:
        """beside: replicas on the same machine, itself among them. every_step: an event for each step."""
        self._env, self._costs, self._told, self._seen = env, costs, told, seen
        self._max_waiting, self._beside = max_waiting, beside
        self._every_step = every_step or len(beside) > 1
        self.kept = Kept(costs.blocks, costs.block)
        self.waiting: list[Ask] = []
        self.reading: deque[Ask] = deque()
        self.answering: list[Ask] = []
        self._read: list[Ask] = []  # whole, in the step that runs
        self.computing = False
        self._decoded: list[Ask] = []  # by the step that runs
        self._chunks: list[int] = []  # of prompts, likewise
        self._alike_answers = 0  # of the last decode step, if nothing has been read since
        self.busy_s = 0.0
        self.tokens = 0
        self.preemptions = 0
        self._order = 0
        self._bell: Event = env.event()
        self._life = 0  # counts the times that it was lost
        env.process(self._live(self._life))

    @property
    def num_requests(self) -> int:
        return len(self.waiting) + len(self.reading) + len(self._read) + len(self.answering)

    def submit(self, ask: Ask) -> bool:
        """Queue a request; False: the queue is full, and it was not taken."""
        if len(self.waiting) >= self._max_waiting:
            return False
        ask.order, self._order = self._order, self._order + 1
        self.waiting.append(ask)
        self._ring()
        return True

    def lose(self) -> list[Ask]:
        """It is gone with everything that it held. Returns the requests that it had, the oldest first."""
        lost = sorted([*self.waiting, *self.reading, *self._read, *self.answering], key=lambda ask: ask.order)
        self.waiting, self.reading, self._read, self.answering = [], deque(), [], []
        self.kept = Kept(self._costs.blocks, self._costs.block)
        self.computing = False
        self._life += 1
        self._ring()  # its process sees that this life is over
        return lost

    def come_back(self) -> None:
        """It is there again, and has nothing in its cache."""
        self._env.process(self._live(self._life))

    # --- Its life -----------------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        if not self._bell.triggered:
            self._bell.succeed()

    def _live(self, life: int) -> Generator[Event, object, None]:
        env = self._env
        while self._life == life:
            if not (self.waiting or self.reading or self.answering):
                self.computing = False
                self._bell = env.event()
                yield self._bell
                continue
            began = env.now
            self.computing = True
            steps = self._alike()
            if steps > 1:
                behind = sum(ask.computed for ask in self.answering)
                change = self._change_s(len(self.answering))
                whole = change + self._costs.decodes_ms(len(self.answering), behind, steps) / 1000
                self._bell = env.event()
                yield env.timeout(whole) | self._bell
                if self._life != life:
                    return
                if env.now < began + whole:  # somebody came: the running step ends first
                    steps, ends_s = self._steps_by(env.now - began - change, behind, steps)
                    yield env.timeout(max(began + change + ends_s - env.now, 0.0))
                    if self._life != life:
                        return
                self._answered(steps)
            else:
                yield env.timeout(self.step_begins())
                if self._life != life:
                    return
                self.step_ends()
            self.busy_s += env.now - began

    def _steps_by(self, elapsed_s: float, behind: int, most: int) -> tuple[int, float]:
        """Which step ends at or after this time, and when."""
        low, high = 0, most  # high has ended by then, low has not
        while high - low > 1:
            middle = (low + high) // 2
            ended = self._costs.decodes_ms(len(self.answering), behind, middle) / 1000 >= elapsed_s
            low, high = (low, middle) if ended else (middle, high)
        return high, self._costs.decodes_ms(len(self.answering), behind, high) / 1000

    def _alike(self) -> int:
        """How many steps from now on are alike, if nobody comes."""
        if self._every_step or self.waiting or self.reading or not self.answering:
            return 1
        steps = min(ask.answer_tokens - ask.produced for ask in self.answering)
        blocks = len(self.answering) * (steps // self._costs.block + 1)
        return steps if blocks <= self.kept.room else 1

    # --- Admission ----------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let waiting requests begin as far as there is room."""
        if not self.waiting:
            return
        admitted: list[Ask] = []
        passed: list[Ask] = []
        for ask in list(self.waiting):
            running = [*admitted, *self.reading, *self.answering]
            if len(running) >= MAX_RUNNING or any(other.overtaken >= MAX_OVERTAKEN for other in passed):
                break
            if self._is_read_for_another(ask, bool(admitted or self.reading)):
                continue
            if not running or self.kept.fits(ask, running):
                for other in passed:
                    other.overtaken += 1
                self.waiting.remove(ask)
                self.kept.begin(ask)
                if not ask.moved and ask.began_s is None:
                    ask.cached_tokens = ask.computed
                admitted.append(ask)
            else:
                passed.append(ask)
                if len(passed) > MAX_OVERTAKEN:
                    break
        self.reading.extendleft(reversed(admitted))

    def _is_read_for_another(self, ask: Ask, any_is_read: bool) -> bool:
        """Whether the system prompt is being read for another request, and this one can start from it soon."""
        if not any_is_read or self.kept.has_system:
            return False
        return min(ask.system_tokens, ask.length - 1) >= self.kept.count_match(ask) + WORTH_WAITING

    # --- A step -------------------------------------------------------------------------------------------------------

    def step_begins(self) -> float:
        """Decide what the next step does, and return how many seconds it takes."""
        self._admit()
        block = self._costs.block
        growing = [ask for ask in self.answering if not ask.computed % block]  # those whose blocks are full
        for ask in sorted(growing, key=lambda one: one.order):
            if ask.computed:  # else it has given way to an older one
                self._has_room(ask, ask.computed + 1)
        self._decoded = list(self.answering)
        costs, behind = self._costs, sum(ask.computed for ask in self._decoded)
        ms = costs.decode_ms(len(self._decoded), behind) if self._decoded else 0.0
        ms += 1000 * self._change_s(len(self._decoded))
        self._chunks = []
        budget = whole = min(costs.chunk, SHARED_CHUNK) if self._decoded else costs.chunk
        self._begin_turns()
        while self.reading and budget > 0 and budget >= min(self.reading[0].missing, whole):
            ask = self.reading[0]
            tokens = min(ask.missing, budget)
            if not self._has_room(ask, ask.computed + tokens):
                continue
            ms += costs.prefill_ms(tokens, ask.computed)
            self._alike_answers = 0
            if ask.began_s is None:
                ask.began_s = self._env.now
            self._chunks.append(tokens)
            budget -= tokens
            ask.skipped = 0
            ask.computed += tokens
            self.reading.remove(ask)
            (self.reading if ask.missing else self._read).append(ask)
        if any(other.computing for other in self._beside if other is not self):
            ms *= costs.slowed(len(self._decoded))
        return ms / 1000

    def _change_s(self, answers: int) -> float:
        """What the next decode step takes longer than the one after it."""
        changes = answers not in (0, self._alike_answers)
        self._alike_answers = answers
        return self._costs.change_ms / 1000 if changes else 0.0

    def _begin_turns(self) -> None:
        """A prompt that was passed over too often is read first."""
        limit = PASSED_OVER + len(self.reading)
        if (starving := next((ask for ask in self.reading if ask.skipped >= limit), None)) is not None:
            self.reading.remove(starving)
            self.reading.appendleft(starving)
        for ask in self.reading:
            ask.skipped += 1

    def _has_room(self, ask: Ask, tokens: int) -> bool:
        """Make room for a running request, at the cost of younger ones; False if it must leave itself."""
        while not self.kept.grow(ask, tokens):
            running = [*self.reading, *self.answering]
            if not running or running == [ask]:  # as long as the cache can hold: it ends here
                self._leave(ask)
                self._end(ask, "answered" if ask.produced else "refused")
                return False
            leaving = max(running, key=lambda one: one.order)
            self._leave(leaving)
            self.preemptions += 1
            self.waiting.append(leaving)
            self.waiting.sort(key=lambda one: one.order)
            if leaving is ask:
                return False
        return True

    def _leave(self, ask: Ask) -> None:
        (self.reading if ask in self.reading else self.answering).remove(ask)
        self.kept.release(ask)

    def step_ends(self) -> None:
        """Everything that the step computed is there."""
        if self._seen is not None:
            self._seen(StepMade(len(self._decoded), tuple(self._chunks)))
        self._grown(self._decoded, 1)
        for ask in self._read:
            self.kept.note_read(ask)
            ask.produced += 1
            self.tokens += 1
            if ask.first_s is None:
                ask.first_s = self._env.now
        self.answering += self._read
        self._read = []
        self._end_finished()

    def _answered(self, steps: int) -> None:
        """So many steps alike have ended."""
        for ask in self.answering:
            self.kept.grow(ask, ask.computed + steps)
        if self._seen is not None:
            for _ in range(steps):
                self._seen(StepMade(len(self.answering), ()))
        self._grown(self.answering, steps)
        self._end_finished()

    def _grown(self, asks: Sequence[Ask], steps: int) -> None:
        for ask in asks:
            ask.computed += steps
            ask.produced += steps
            self.tokens += steps

    def _end_finished(self) -> None:
        for ask in [ask for ask in self.answering if ask.produced >= ask.answer_tokens]:
            self.answering.remove(ask)
            self.kept.release(ask)
            self._end(ask)

    def _end(self, ask: Ask, outcome: Outcome = "answered") -> None:
        ask.ended_s = self._env.now
        ask.outcome = outcome
        self._told(ask)
