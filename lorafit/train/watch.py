"""Signs that a run learns nothing or goes astray, told while it goes on. Nothing is changed."""

from collections import deque
from collections.abc import Callable
from statistics import median

_WINDOW = 30  # steps that a loss is compared with
_FEW = 20  # steps before there is anything to compare with
_SPIKE_DEVIATIONS = 6.0
_SPIKE_FACTOR = 1.3
_STILL_AFTER = 100  # steps in which a loss should have moved
_EACH = 20  # of them at the beginning and at the end are compared


class Watch:
    """Looks at each step and says what is odd, each kind of thing a few times at most.

    losses: of the steps that were done before, where a run goes on. worst_rows: the rows of the
    step with the largest losses, as text; asked for only when they are to be named.
    """

    def __init__(self, losses: list[float] | None = None) -> None:
        self._losses = deque(losses or [], maxlen=_WINDOW)
        self._first = list(losses or [])[:_EACH]
        self._steps = len(losses or [])
        self._said: dict[str, int] = {}

    def step(self, loss: float, grad_norm: float, supervised_tokens: int,
             worst_rows: Callable[[], str]) -> list[str]:
        """What is odd about a step: loss in nats per token, norm before clipping."""
        found = []
        if supervised_tokens == 0:
            found += self._say("nothing", "no token of this step is trained: all its rows are "
                               "masked; see lorafit preview")
        elif grad_norm == 0.0:
            found += self._say("zero", "the gradient is exactly 0: no trained weight has an "
                               "influence on the loss; see lorafit targets for what is adapted, "
                               "and lorafit preview for what is trained")
        if self._is_spike(loss):
            found += self._say("spike", f"the loss is {loss:.3f}, and {median(self._losses):.3f} "
                               f"in the middle of the last {len(self._losses)} steps; rows with "
                               f"the largest losses: {worst_rows()}")
        self._losses.append(loss)
        self._steps += 1
        if len(self._first) < _EACH:
            self._first.append(loss)
        if self._steps == _STILL_AFTER and self._is_still():
            found += self._say("still", f"the loss has not moved in {self._steps} steps (median "
                               f"{median(self._first):.3f} of the first {_EACH}, "
                               f"{median(list(self._losses)[-_EACH:]):.3f} of the last): a larger "
                               "training.learning_rate, more targets, or rows that the base "
                               "knows already")
        return found

    def _is_spike(self, loss: float) -> bool:
        if len(self._losses) < _FEW:
            return False
        middle = median(self._losses)
        # 1.4826 makes the median distance a standard deviation where numbers are normal.
        spread = 1.4826 * median(abs(each - middle) for each in self._losses)
        return loss > middle + _SPIKE_DEVIATIONS * spread and loss > _SPIKE_FACTOR * middle

    def _is_still(self) -> bool:
        """Whether the last losses lie no lower than the first, by half of their own spread."""
        last = list(self._losses)[-_EACH:]
        begun = median(self._first)
        spread = 1.4826 * median(abs(each - begun) for each in self._first)
        return median(last) > begun - max(0.5 * spread, 0.005 * abs(begun))

    def _say(self, kind: str, text: str, most: int = 3) -> list[str]:
        self._said[kind] = self._said.get(kind, 0) + 1
        if self._said[kind] > most:
            return []
        return [text + ("; further ones are not told" if self._said[kind] == most > 1 else "")]
