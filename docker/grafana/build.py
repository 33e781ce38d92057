"""Writes the dashboards that Grafana is given: `python docker/grafana/build.py`.

What they show is declared in `overview.py` and `speculation.py`, a row of panels at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import overview
import speculation
from panels import SOURCE, Json, Panel

FOLDER = Path(__file__).with_name("dashboards")
COLUMNS = 24
HEIGHT = {"stat": 4}
DEFAULT_HEIGHT = 8
Rows = Mapping[str, Sequence[Panel]]


def dashboard(uid: str, title: str, rows: Rows) -> Json:
    """A dashboard of Grafana 10.4 and later; the panels of a row share its width."""
    return {
        "uid": uid,
        "title": title,
        "tags": ["falcon"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_LINK],
        "templating": {"list": [_DATASOURCE, _MODEL_NAME]},
        "panels": _placed(rows),
    }


def _placed(rows: Rows) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for title, panels in rows.items():
        heading = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": heading,
                "panels": [],
            }
        )
        y += 1
        width = COLUMNS // len(panels)
        height = max(HEIGHT.get(panel.kind, DEFAULT_HEIGHT) for panel in panels)
        for column, panel in enumerate(panels):
            place = {"x": column * width, "y": y, "w": width, "h": height}
            placed.append(panel.json(len(placed) + 1, place))
        y += height
    return placed


_DATASOURCE = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "hide": 0,
    "refresh": 1,
}
_MODEL_NAME = {
    "name": "model_name",
    "label": "Model",
    "type": "query",
    "datasource": SOURCE,
    "definition": "label_values(falcon:ready, model_name)",
    "query": {"query": "label_values(falcon:ready, model_name)", "refId": "models"},
    "includeAll": True,
    "allValue": ".*",
    "multi": True,
    "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    "hide": 0,
    "refresh": 2,
    "sort": 1,
}
_LINK = {
    "title": "Falcon",
    "type": "dashboards",
    "tags": ["falcon"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
}


def dashboards() -> dict[str, str]:
    """The text of each file by its name."""
    made = {
        "overview.json": dashboard("falcon-overview", "Falcon: overview", overview.ROWS),
        "speculation.json": dashboard(
            "falcon-speculation", "Falcon: speculation", speculation.ROWS
        ),
    }
    return {name: json.dumps(one, indent=1) + "\n" for name, one in made.items()}


if __name__ == "__main__":
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)
