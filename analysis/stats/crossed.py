"""Values of [seed][document] -> their mean, with an error that counts seeds and documents.

Every seed is evaluated on the same documents, so the two are crossed: a two-way random layout
without replication. Both are a sample, so a result is to hold for other seeds and other documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
"""Of every interval."""

Table = Sequence[Sequence[float]]
"""[seed][document]."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and documents, in the unit of the values."""

    value: float
    error: float | None
    """Standard error over `over`; None when there is one value only."""
    df: float | None
    """Degrees of freedom of the error; None, like the interval, unless both were sampled."""
    low: float | None
    """Lower end of the 95% interval; None with one seed or one document."""
    high: float | None
    """Upper end of it."""
    seeds: int
    documents: int

    @property
    def over(self) -> str:
        """What `error` counts, in words; "" where there is no error."""
        counted = {"seeds": self.seeds > 1, "documents": self.documents > 1}
        return " and ".join(name for name, there in counted.items() if there)

    @property
    def distinguishable(self) -> bool:
        """Whether it has an interval, and that leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def p(self, against: float = 0.0) -> float | None:
        """Two-sided p of the mean being `against`; None with one seed or one document."""
        tail = self.tail(abs(self.value - against))
        return None if tail is None else 2 * tail

    def tail(self, distance: float) -> float | None:
        """Chance of a mean that errs by `distance` or more, to one side; None as in `p`."""
        if self.error is None or self.df is None:
            return None
        if not self.error:
            return 0.5 * (distance == 0) + float(distance < 0)
        return float(stdtr(self.df, -distance / self.error))


def crossed(values: Table) -> Estimate:
    """Values of [seed][document] -> the `Estimate` of their mean. Raises `ValueError` for none.

    The variance of the mean is (MS_seed + MS_document - MS_rest) / (S * D), without bias, where
    MS are mean squares of the two-way layout. The difference can come out near 0 or below, while
    in expectation it is at least MS_rest, as no component of variance is negative: so MS_rest
    bounds it below. Of the bounds in use this one covers nearest to 95%. Cutting each component at
    0 covers 1% more where documents differ; leaving out MS_rest altogether covers 2% more.
    Degrees of freedom are Satterthwaite's, no fewer than the smaller sample has.

    Where neither seeds nor documents differ by more than the rest, the interval covers 98 to 99%:
    with so few seeds nobody can know that they are alike. With two seeds that differ much it
    covers 88 to 91%: one degree of freedom does not suffice for the approximation.
    With one seed or one document the error is over the other alone, and there is no interval.
    """
    y = np.asarray(values, dtype=float)
    if y.ndim != 2 or not y.size:
        raise ValueError(f"values of shape {y.shape}, expected [seed][document], one each or more")
    seeds, documents = y.shape
    value = float(y.mean())
    if min(seeds, documents) == 1:
        error = float(y.std(ddof=1)) / math.sqrt(y.size) if y.size > 1 else None
        return Estimate(value, error, None, None, None, seeds, documents)
    variance, df = _variance(y)
    error = math.sqrt(variance)
    wide = float(stdtrit(df, (1 + CONFIDENCE) / 2)) * error
    return Estimate(value, error, df, value - wide, value + wide, seeds, documents)


def of_seeds(values: Sequence[float]) -> Estimate:
    """A value of each seed, each for all documents together: the interval is over seeds alone."""
    return crossed([[value] * 2 for value in values])


def _variance(y: np.ndarray) -> tuple[float, float]:
    """[seed, document] -> (variance of the mean, its degrees of freedom)."""
    by_seed, by_document = y.mean(1, keepdims=True), y.mean(0, keepdims=True)
    rest = y - by_seed - by_document + y.mean()
    s, d = (number - 1 for number in y.shape)
    dfs = np.array([s, d, s * d])
    squares = [y.shape[1] * by_seed.var(ddof=1), y.shape[0] * by_document.var(ddof=1)]
    squares.append((rest**2).sum() / (s * d))
    total = max(squares[0] + squares[1] - squares[2], squares[2])
    spread = (np.square(squares) / dfs).sum()
    df = max(total**2 / spread, min(s, d)) if spread else min(s, d)
    return float(total / y.size), float(df)


def ratio(gains: Table, gaps: Table) -> Estimate:
    """Both of [seed][document] -> mean gain over mean gap, a share.

    Its error is that of the mean of (gain - share * gap) / mean gap: the ratio made linear (delta
    method). That holds where the mean gap is well above 0, two of its own errors at least.
    """
    gain, gap = np.asarray(gains, dtype=float), np.asarray(gaps, dtype=float)
    share = float(gain.mean() / gap.mean())
    found = crossed((gain - share * gap) / gap.mean())
    if found.low is None or found.high is None:
        return replace(found, value=share)
    # The mean of what was made linear is 0 but for rounding.
    return replace(found, value=share, low=share + found.low, high=share + found.high)


def bootstrap(values: Table, draws: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """Values of [seed][document] -> 95% interval of their mean: (low, high), by percentiles.

    Draws seeds, and apart from them documents, the same ones for every seed. It assumes no
    distribution, and checks `crossed` where there are 20 seeds or more. With few it is too narrow
    (3 seeds: about 80% where they differ), as draws from so few vary too little. Where seeds and
    documents matter less than the rest it is too wide: the rest is counted up to three times.
    """
    y, drawn = np.asarray(values, dtype=float), np.random.default_rng(seed)
    of_seeds, of_documents = (
        drawn.multinomial(number, np.full(number, 1 / number), draws) / number for number in y.shape
    )
    means = ((of_seeds @ y) * of_documents).sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Name -> p of one family -> p adjusted by Holm's steps, in the order given."""
    adjusted, least = {}, 0.0
    for done, name in enumerate(sorted(p, key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - done) * p[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p}


def equivalence(estimate: Estimate, margin: float) -> float | None:
    """p of two one-sided t tests that the mean is not within (-margin, margin).

    Small is evidence that it is; None with one seed or one document.
    """
    return estimate.tail(margin - abs(estimate.value))
