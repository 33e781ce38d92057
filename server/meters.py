"""Makes Prometheus metrics that all carry the same labels, in one registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_COMMON = ("model_name", "engine")


class Meters:
    """Every metric has the model's name and, as vLLM's have, the number of the engine."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry = registry
        self._values = (model_name, "0")

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _COMMON, registry=self._registry).labels(*self._values)

    def counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _COMMON, registry=self._registry).labels(*self._values)

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(name, text, _COMMON, registry=self._registry, buckets=buckets)
        return family.labels(*self._values)

    def counters(self, name: str, text: str, *labels: str) -> Callable[..., Counter]:
        """A counter for each combination of label values: a function of these."""
        family = Counter(name, text, (*_COMMON, *labels), registry=self._registry)
        return lambda *values: family.labels(*self._values, *values)

    def info(self, name: str, text: str, facts: Callable[[], Mapping[str, str] | None]) -> None:
        """Facts as labels of a gauge that is always 1; it is not there while they are not known."""
        self._registry.register(
            _Info(name, text, dict(zip(_COMMON, self._values, strict=True)), facts)
        )


class _Info(Collector):
    def __init__(
        self,
        name: str,
        text: str,
        common: Mapping[str, str],
        facts: Callable[[], Mapping[str, str] | None],
    ) -> None:
        self._name, self._text, self._common, self._facts = name, text, common, facts

    def collect(self) -> Iterator[Metric]:
        if (facts := self._facts()) is None:
            return
        labels = {**self._common, **facts}
        family = GaugeMetricFamily(self._name, self._text, labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        yield family
