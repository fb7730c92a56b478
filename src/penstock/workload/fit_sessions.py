"""The law of sessions from a trace: how many turns, what pauses, and how much a turn adds to what was said."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from penstock.workload.burstgpt import SessionLaw
from penstock.workload.columns import Columns
from penstock.workload.lengths import Counts, Floats

NORMAL = NormalDist()
P90_SIGMAS = NORMAL.inv_cdf(0.9)


MOST_CUT = 0.1  # share of later turns whose turn before is not in the trace


def fit_sessions(calls: Columns) -> SessionLaw | None:
    """Fit requests that belong to sessions. What the trace does not tell keeps its default.

    None where most requests have no session, or where the trace is a slice shorter than its sessions: of them it would
    show the beginnings only, and prompts that repeat what it does not hold.

    Turns are max(1, round(LogNormal)): the probits of P(turns <= k) lie on a line over log(k + 0.5), fitted by least
    squares weighted by p (1 - p), for that is how well a share is known. Pauses: median and 90th percentile.
    """
    ordered = calls.of(np.lexsort((calls.turns, calls.sessions)))
    is_first = np.append(True, np.diff(ordered.sessions) != 0)
    n_cut, n_later = int((is_first & (ordered.turns > 0)).sum()), int((ordered.turns > 0).sum())
    if not calls.has_turns or (calls.sessions < 0).mean() > 0.5 or n_cut > MOST_CUT * n_later:
        return None
    is_later = np.append(False, (np.diff(ordered.sessions) == 0) & (ordered.sessions[1:] >= 0))
    median, sigma = _turns(np.bincount(ordered.sessions[ordered.sessions >= 0]))
    law = replace(SessionLaw(), turns_median=median, turns_sigma=sigma)
    timed = (ordered.elapsed_s > 0) & (ordered.outputs > 0)
    if timed.any():
        speed = float(ordered.outputs[timed].sum() / ordered.elapsed_s[timed].sum())
        law = replace(law, answer_tokens_per_s=speed)
    return _with_history(_with_pauses(law, ordered, is_later), ordered, is_later)


def _turns(counts: Counts) -> tuple[float, float]:
    """(median, sigma of the logarithm)."""
    counts = counts[counts > 0]
    places = np.unique(counts)[:-1]  # behind the last one the share is 1, and its probit infinite
    default = SessionLaw().turns_sigma
    if places.size == 0:
        return (float(counts[0]), 0.05) if counts.size else (1.0, 0.05)
    shares = np.array([(counts <= place).mean() for place in places])
    probits, logs = np.array([NORMAL.inv_cdf(float(share)) for share in shares]), np.log(places + 0.5)
    if places.size == 1:
        return math.exp(float(logs[0] - default * probits[0])), default
    slope, start = np.polyfit(logs, probits, 1, w=np.sqrt(shares * (1 - shares)))
    return math.exp(float(-start / slope)), float(1 / slope)


def _with_pauses(law: SessionLaw, ordered: Columns, is_later: Counts) -> SessionLaw:
    pauses_s = ordered.pauses_s[is_later & (ordered.pauses_s > 0)]
    if pauses_s.size == 0:  # only arrivals are known: what is left between two when the answer is taken off
        answers_s = ordered.outputs[:-1] / law.answer_tokens_per_s
        gaps_s = np.diff(ordered.arrivals_s) - answers_s
        pauses_s = gaps_s[is_later[1:] & (gaps_s > 0)]
    if pauses_s.size == 0:
        return law
    p50_s, p90_s = np.quantile(pauses_s, (0.5, 0.9))
    sigma = max(0.01, math.log(p90_s / p50_s) / P90_SIGMAS)
    cap_s = max(float(pauses_s.max()), float(p90_s))
    return replace(law, pause_median_s=float(p50_s), pause_sigma=sigma, pause_cap_s=cap_s)


def _with_history(law: SessionLaw, ordered: Columns, is_later: Counts) -> SessionLaw:
    """Either a prompt repeats what was said, and adds to it, or it is new text alone."""
    if not is_later.any():
        return law
    said = (ordered.inputs + ordered.outputs)[np.flatnonzero(is_later) - 1]
    later, first_mean = ordered.inputs[is_later], max(1.0, float(ordered.inputs[~is_later].mean()))
    is_cut = later < said
    if is_cut.mean() > 0.5:
        return replace(law, new_text_frac=float(later.mean()) / first_mean, history_cap_tokens=0)
    # a prompt is the history, up to the cap, and new text: the shortest of those that were cut tells the cap
    cap_tokens = int(np.quantile(later[is_cut], 0.01)) if is_cut.any() else int(said.max())
    added: Floats = np.maximum(later - np.minimum(said, cap_tokens), 0).astype(float)
    return replace(law, new_text_frac=float(added.mean()) / first_mean, history_cap_tokens=cap_tokens)
