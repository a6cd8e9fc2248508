"""PromQL from the server's metric objects, so that a metric that is renamed can't leave an expression behind."""

from __future__ import annotations

from prometheus_client import Gauge

from offramp_server.ops.instruments import Counter, Histogram

OF_MODEL = 'model=~"$model",version=~"$version"'
OF_POLICY = f'{OF_MODEL},policy=~"$policy"'
WINDOW = "$__rate_interval"


def name(family: Counter | Gauge | Histogram) -> str:
    """The family's name, as it is scraped but for the suffixes of counters and histograms."""
    (metric,) = family.describe()
    return metric.name


def rate(counter: Counter, *by: str, where: str = OF_MODEL) -> str:
    """Increase a second of a counter, summed but for the labels `by`."""
    return _sum_of_rates(f"{name(counter)}_total", by, where)


def mean(histogram: Histogram, *by: str, where: str = OF_MODEL) -> str:
    """Mean of what a histogram observed lately."""
    return " / ".join(_sum_of_rates(f"{name(histogram)}_{part}", by, where) for part in ("sum", "count"))


def buckets(histogram: Histogram, *by: str, where: str = OF_MODEL) -> str:
    """Observations a second up to each bound of a histogram."""
    return _sum_of_rates(f"{name(histogram)}_bucket", ("le", *by), where)


def quantile(q: float, histogram: Histogram, *by: str, where: str = OF_MODEL) -> str:
    """Quantile of what a histogram observed lately."""
    return f"histogram_quantile({q}, {buckets(histogram, *by, where=where)})"


def gauge(family: Gauge, *by: str, aggregation: str = "sum", where: str = OF_MODEL) -> str:
    """A gauge, aggregated but for the labels `by`."""
    return f"{_over(aggregation, by)} ({name(family)}{{{where}}})"


def of_servers(series: str, info: Gauge) -> str:
    """A series about processes, of those that `info` says serve the chosen models: it is 0 for a model that was unloaded."""
    return f"{series} and on (job, instance) ({name(info)}{{{OF_MODEL}}} == 1)"


def _sum_of_rates(series: str, by: tuple[str, ...], where: str) -> str:
    return f"{_over('sum', by)} (rate({series}{{{where}}}[{WINDOW}]))"


def _over(aggregation: str, by: tuple[str, ...]) -> str:
    return f"{aggregation} by ({', '.join(by)})" if by else aggregation
