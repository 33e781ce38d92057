"""Panels of a Grafana dashboard, and the Prometheus queries that they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

SELECT = 'model_name=~"$model_name"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def select(metric: str, more: str = "") -> str:
    """A metric of the chosen models."""
    return f"{metric}{{{SELECT}{',' if more else ''}{more}}}"


def rate(metric: str, by: str = "", more: str = "") -> str:
    """How much a counter rises in a second, over all servers."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({select(metric, more)}[$__rate_interval]))"


def quantiles(histogram: str) -> dict[str, str]:
    """Median and tail of a histogram."""
    buckets = rate(f"{histogram}_bucket", "le")
    return {
        f"p{round(100 * share)}": f"histogram_quantile({share}, {buckets})"
        for share in (0.5, 0.9, 0.99)
    }


def mean(histogram: str) -> str:
    return f"{rate(f'{histogram}_sum')} / {rate(f'{histogram}_count')}"


def share_within(histogram: str, limit: float) -> str:
    """The share of observations up to a boundary of the histogram's buckets."""
    within = rate(f"{histogram}_bucket", more=f'le="{limit}"')
    return f"{within} / {rate(f'{histogram}_count')}"


def share_by(label: str, counter: str, whole: str) -> dict[str, str]:
    """A counter's rate for each value of a label, as a share of another query's."""
    part = rate(counter, label)
    return {f"{{{{{label}}}}}": f"{part} / ignoring ({label}) group_left {whole}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """Queries by their legend; the legend may name labels, as in `{{code}}`.

    `kind` is a panel type of Grafana's. A `floor` paints a value below it red.
    """

    title: str
    unit: str
    queries: Mapping[str, str]
    text: str = ""
    kind: str = "timeseries"
    stacked: bool = False
    floor: float | None = None

    def json(self, number: int, place: Json) -> Json:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": SOURCE,
            "gridPos": place,
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": SOURCE,
                    "editorMode": "code",
                    "expr": query,
                    "legendFormat": legend,
                    "range": self.kind == "timeseries",
                    "instant": self.kind != "timeseries",
                }
                for index, (legend, query) in enumerate(self.queries.items())
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _OPTIONS[self.kind],
        }

    def _defaults(self) -> Json:
        steps: list[Json] = [{"color": "green", "value": None}]
        if self.floor is not None:
            steps = [{"color": "red", "value": None}, {"color": "green", "value": self.floor}]
        defaults: Json = {
            "unit": self.unit,
            "color": {"mode": "palette-classic" if self.kind == "timeseries" else "thresholds"},
            "thresholds": {"mode": "absolute", "steps": steps},
        }
        if self.kind == "timeseries":
            defaults["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 25 if self.stacked else 5,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            }
        return defaults


_REDUCED = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCED,
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    },
    "bargauge": {
        "reduceOptions": _REDUCED,
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
    },
}
