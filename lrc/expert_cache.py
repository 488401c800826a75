"""A cache that serves requests one at a time, as they come: the policies of `lrc.replay`, live."""

import numpy as np

from lrc.errors import LrcError
from lrc.kernels import cpu_replay


class ExpertCache:
    """Decides which experts are resident; holds no weights.

    Parameters
    ----------
    rules : lrc.kernels.cpu_replay.Rules
        Of a policy that does not know the future, under the contract "engine".
    alpha : float, optional
        Share of the newest router weights in scores; without, every use counts 1.
    seed : int
        Of the policy "random".
    """

    def __init__(self, rules: cpu_replay.Rules, alpha: float | None = None, seed: int = 0):
        if rules.policy == cpu_replay.BELADY:
            raise LrcError("policy 'belady' knows the future, which a running engine does not")
        self._rules = rules
        self._alpha = alpha
        self._cache = cpu_replay.empty_cache(rules, seed)

    @property
    def resident(self) -> np.ndarray:
        """Which experts are in the cache: bool array [ids]."""
        return self._cache.place >= 0

    def serve(self, ids: np.ndarray, weights: np.ndarray, clock: int) -> np.ndarray:
        """Look up the experts of a request, and make them resident.

        Parameters
        ----------
        ids : int array [uses]
            Each once.
        weights : float array [uses]
            Router weights (for scores).
        clock : int
            Step; never falls.

        Returns
        -------
        bool array [uses]
            Which were resident before.
        """
        hits = np.empty(len(ids), np.bool_)
        gains = (
            np.ones(len(ids)) if self._alpha is None else self._alpha * np.asarray(weights, float)
        )
        never = np.full(len(ids), cpu_replay.NEVER)
        cpu_replay.serve(
            np.asarray(ids, np.int32), gains, never, int(clock), self._rules, self._cache, hits
        )
        return hits

    def forget(self) -> None:
        """Empty the cache, as before a new text."""
        cpu_replay.forget(self._rules, self._cache)
