"""What computing and copying cost on this instance, as far as is known by now, corrected by every step.

Without a cost model there are two numbers, each a mean that forgets: seconds of device time per known token, and
seconds per byte between the tiers. A guess counts as if so much had been seen already, and what was seen fades with
every step. So one slow copy, such as the first one, into memory that nobody has touched, does not end copying: it is
tried again, and measured again. Computing is then taken to be linear in tokens, so a long context is thought cheaper
than it is.

With a cost model, steps are estimated from their load, and each kind (decode alone, with chunks) is corrected as a
whole by what live steps took, a factor that forgets; how far they scatter around it is the band. Known tokens are
computed in chunks beside what decodes now, each behind the ones before: a long context costs more than its length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from penstock.core.executor import ModelFacts, StepResult
from penstock.core.plan import Leap, Plan, Toward
from penstock.core.view import Estimate
from penstock.cost.follow import PlanLoads
from penstock.cost.load import StepLoad
from penstock.cost.model import CostModel

# Until something was measured. A token takes two operations per weight, and a weight about two bytes.
GUESSED_OPERATIONS_PER_S = 1e12
GUESSED_MOVE_BYTES_PER_S = 8e9
GUESS_TOKENS = 500  # how much the guesses weigh
GUESS_BYTES = 64 * 2**20
KEPT_PER_STEP = 0.9995  # of what was seen: half after 1400 steps
KEPT_OF_FACTOR = 0.98  # of the correction, per step of its kind: half after 34
FIRST_WEIGHT = 5.0  # steps that the model's own figure counts for
MOST_OFF = 8.0  # a step that takes more than this times longer is an accident: a compilation, a stopped process
CHUNK_TOKENS = 2048  # in which known tokens are computed


class _Rate:
    """Seconds per unit: all seconds over all units, the guess's included."""

    def __init__(self, guess_s: float, guess_units: float) -> None:
        self._seconds, self._units = 0.0, 0.0
        self._guess_s, self._guess_units = guess_s * guess_units, guess_units

    @property
    def unit_s(self) -> float:
        return (self._seconds + self._guess_s) / (self._units + self._guess_units)

    def see(self, seconds: float, units: float) -> None:
        self._seconds += seconds
        self._units += units

    def fade(self, steps: int = 1) -> None:
        kept_frac = KEPT_PER_STEP**steps
        self._seconds *= kept_frac
        self._units *= kept_frac


class _Factor:
    """What steps of one kind take, as a multiple of what the model says; both figures are means that forget."""

    def __init__(self) -> None:
        self.factor = 1.0
        self._weight = FIRST_WEIGHT
        self._off_frac: float | None = None  # None: none was seen, so the model's own band counts

    def corrected(self, estimate: Estimate) -> Estimate:
        """Twice the mean distance holds nine of ten steps, if they scatter as errors do."""
        band_frac = estimate.band_frac if self._off_frac is None else 2 * self._off_frac
        if estimate.is_extrapolated:
            band_frac = max(band_frac, estimate.band_frac)
        return Estimate(self.factor * estimate.seconds, band_frac, estimate.is_extrapolated)

    def see(self, model_s: float, seconds: float, steps: int = 1) -> None:
        """What so many steps together should take by the model, and took."""
        ratio = min(max(seconds / model_s, 1 / MOST_OFF), MOST_OFF)
        off_frac = abs(ratio / self.factor - 1)
        before_frac = off_frac if self._off_frac is None else self._off_frac
        kept_frac = KEPT_OF_FACTOR**steps
        new_weight = (1 - kept_frac) / (1 - KEPT_OF_FACTOR)
        self._weight = kept_frac * self._weight + new_weight
        self.factor += (ratio - self.factor) * new_weight / self._weight
        self._off_frac = before_frac + (off_frac - before_frac) * new_weight / self._weight


class Foreseen(msgspec.Struct, frozen=True):
    """A plan that is out: its load, what the model says that it takes, and that corrected by live steps."""

    plan_id: int
    load: StepLoad
    model: Estimate | None
    corrected: Estimate | None


class OnlineCosts:
    """The `CostView` of an engine, corrected by every result. model: None, or what estimates a step from its load.
    follows_plans: note the load of every plan even without a model, for whoever logs it.
    """

    def __init__(self, facts: ModelFacts, model: CostModel | None = None, *, follows_plans: bool = False) -> None:
        byte_s = 1 / GUESSED_MOVE_BYTES_PER_S
        if model is not None:
            byte_s = sum(model.move_s(GUESS_BYTES, toward) for toward in Toward) / len(Toward) / GUESS_BYTES
        self._model = model
        self._loads = PlanLoads(facts) if model is not None or follows_plans else None
        self._out: deque[Foreseen] = deque()
        self._factors = {False: _Factor(), True: _Factor()}  # by whether a step has chunks
        self._decoding = StepLoad(decode_rows=1, decode_keys=1, samples=1)  # the last step's, but for its chunks
        self._token = _Rate(facts.weight_bytes / GUESSED_OPERATIONS_PER_S, GUESS_TOKENS)
        self._byte = _Rate(byte_s, GUESS_BYTES)
        self._decode_s = 0.0  # of a step that only decodes, lately

    # --- the view -----------------------------------------------------------------------------------------------------
    def prefill_s(self, tokens: int) -> float:
        if self._model is None:
            return tokens * self._token.unit_s
        rows, keys = self._decoding.decode_rows, self._decoding.decode_keys
        without_s = self._estimate(self._model, StepLoad(rows, keys, samples=rows)).seconds
        seconds = 0.0
        for start in range(0, tokens, CHUNK_TOKENS):
            n = min(CHUNK_TOKENS, tokens - start)
            pairs = n * (start + (n + 1) / 2)
            load = StepLoad(rows, keys, chunk_tokens=n, chunk_keys=start + n, chunk_pairs=pairs, samples=rows + 1)
            seconds += max(0.0, self._estimate(self._model, load).seconds - without_s)
        return seconds

    def move_s(self, n_bytes: int) -> float:
        return n_bytes * self._byte.unit_s

    def step(self, plan: Plan) -> Estimate | None:
        if self._model is None or self._loads is None:
            return None
        return self._estimate(self._model, self._loads.of(plan))

    def _estimate(self, model: CostModel, load: StepLoad) -> Estimate:
        return self._factors[bool(load.chunk_tokens)].corrected(model.step(load))

    # --- what is seen -------------------------------------------------------------------------------------------------
    def note_plan(self, plan: Plan) -> Foreseen | None:
        """A plan goes out; None if its load is not followed."""
        if self._loads is None:
            return None
        foreseen = self._foreseen(plan.id, self._loads.follow(plan))
        self._out.append(foreseen)
        return foreseen

    def _foreseen(self, plan_id: int, load: StepLoad) -> Foreseen:
        if self._model is None or not load.tokens:
            return Foreseen(plan_id, load, None, None)
        model = self._model.step(load)
        return Foreseen(plan_id, load, model, self._factors[bool(load.chunk_tokens)].corrected(model))

    def note_step(self, plan: Plan, result: StepResult) -> None:
        """A step was carried out; what a chunk took is what the step took longer than one without."""
        tokens = sum(chunk.tokens for chunk in plan.chunks)
        self._token.fade()
        self._byte.fade()
        foreseen = self._out.popleft() if self._out else None  # results come in the order of the plans
        if plan.is_empty:
            return
        if foreseen is not None and foreseen.model is not None and not plan.moves:  # on a CPU the step moves, too
            self._factors[bool(tokens)].see(foreseen.model.seconds, result.device_s)
            if foreseen.load.decode_rows:
                self._decoding = foreseen.load
        if not tokens:
            self._decode_s += 0.1 * (result.device_s - self._decode_s)
            return
        others_s = self._decode_s if plan.decode.rows else 0.0
        self._token.see(max(0.0, result.device_s - others_s), tokens)

    def note_decodes(self, leap: Leap, seconds: Sequence[float]) -> None:
        """The steps of a leap were planned, and as many results, which took so long, were collected."""
        decode_s, n = self._decode_s, len(seconds)
        for step_s in seconds:
            decode_s += 0.1 * (step_s - decode_s)
        self._decode_s = decode_s
        self._token.fade(n)
        self._byte.fade(n)
        if self._loads is None:
            return
        rows, keys = self._loads.group.tokens, self._loads.keys_ahead(n)
        self._loads.leap(n, leap.ends)
        if self._model is not None:
            self._factors[False].see(float(self._model.decode_s(rows, keys).sum()), sum(seconds), n)
        self._decoding = StepLoad(rows, float(keys[-1]), samples=rows)
        self._out = deque(self._foreseen(one.plan_id, self._decoding) for one in self._out)

    def note_move(self, n_bytes: int, seconds: float) -> None:
        """So many bytes were copied between the tiers."""
        self._byte.see(seconds, n_bytes)

    def counters(self) -> dict[str, float]:
        """Gauges by plain name."""
        counts = {"prefill_seconds_per_token": self.prefill_s(1), "host_move_seconds_per_byte": self.move_s(1)}
        if self._model is not None:
            counts["decode_cost_factor"] = self._factors[False].factor
            counts["prefill_cost_factor"] = self._factors[True].factor
        return counts
