"""Waiting for those who run makes sense only while somebody runs."""

from __future__ import annotations

from penstock.core.sequence import SeqState, SequenceView
from penstock.core.view import Admission, View


def others_run(seq: SequenceView, view: View) -> bool:
    """Somebody else takes part in steps, and will give memory back; a paused one holds its memory and does not."""
    return any(other.state is SeqState.RUNNING and other.id != seq.id for other in view.running)


def wait_unless_stuck(seq: SequenceView, view: View) -> Admission:
    """The answer for a sequence that does not fit now.

    If nobody runs, memory lies with paused sequences and waiting would last for ever: one of them goes on, at the
    expense of the others if it must, and a new one lets those behind it be asked.
    """
    if others_run(seq, view):
        return Admission.WAIT
    return Admission.START if seq.state is SeqState.PAUSED else Admission.SKIP
