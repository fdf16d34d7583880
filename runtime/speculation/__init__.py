"""Speculation: drafts are copied from texts, or made by what earlier answers taught, or by a smaller model.

`Drafter` drafts for one answer and learns how its drafts fared; `StepCost` and `Acceptance` hold what is learned,
`DraftStore` the stored texts, which `open_store` opens, and `SharedDrafts` what all answers of one model share.
"""

from edge.runtime.speculation.acceptance import Acceptance
from edge.runtime.speculation.automaton import SuffixAutomaton
from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.drafter import Drafter
from edge.runtime.speculation.opening import open_store
from edge.runtime.speculation.shared import SharedDrafts
from edge.runtime.speculation.store import DraftStore

__all__ = ["Acceptance", "DraftStore", "Drafter", "SharedDrafts", "StepCost", "SuffixAutomaton", "open_store"]
