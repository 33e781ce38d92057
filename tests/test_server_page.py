"""The page's files as they are served: headers, addresses, labels, and that nothing is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from server.page import FOLDER, TYPES
from tests.server_harness import Running, build_model_folder, running_server

FILES = sorted(file.name for file in FOLDER.iterdir())
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which no browser loads
VOID = {"input", "link", "meta"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_server(build_model_folder(tmp_path_factory.mktemp("model"))) as running:
        yield running


class Elements(HTMLParser):
    """Every element of a document: its name, attributes, ancestors, and the text inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.texts: list[str] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), [self.found[at][0] for at in self._open]))
        self.texts.append("")
        if tag not in VOID:
            self._open.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.found[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for at in self._open:
            self.texts[at] += data


@pytest.fixture(scope="module")
def page() -> Elements:
    return Elements((FOLDER / "page.html").read_text())


def test_root_is_the_page(server: Running) -> None:
    answer = server.get("/")
    assert (answer.status_code, answer.text) == (200, (FOLDER / "page.html").read_text())
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_with_its_type_and_nothing_from_elsewhere(
    server: Running, name: str
) -> None:
    answer = server.get(f"/static/{name}")
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"


def test_head_says_the_same_without_the_content(server: Running) -> None:
    whole, head = server.get("/"), server.client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


def test_a_browser_that_has_the_file_is_told_so(server: Running) -> None:
    etag = server.get("/static/page.js").headers["etag"]
    for known in (etag, f'"other", W/{etag}'):
        answer = server.get("/static/page.js", headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert server.get("/static/page.css", headers={"if-none-match": etag}).status_code == 200


@pytest.mark.parametrize("path", ["/static/", "/static/no.js", "/static/..%2Fpage.py", "/static"])
def test_other_files_do_not_exist(server: Running, path: str) -> None:
    assert server.get(path).json()["error"]["code"] == "unknown_url"


def test_only_get_and_head_are_taken(server: Running) -> None:
    answer = server.client.post("/")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("name", FILES)
def test_files_name_no_outside_address(name: str) -> None:
    text = (FOLDER / name).read_text().replace(NAMESPACE, "")
    assert not re.search(r"//\w|https?:|@import|url\(", text)


def test_markup_has_no_scripts_styles_or_handlers_of_its_own(page: Elements) -> None:
    for tag, attributes, _ in page.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert tag != "style"
        assert tag != "script" or attributes.get("src")


def test_every_control_has_a_name(page: Elements) -> None:
    labels = {a["for"] for tag, a, _ in page.found if tag == "label"}
    for (tag, attributes, _), text in zip(page.found, page.texts, strict=True):
        if tag in {"input", "textarea", "select"}:
            assert attributes["id"] in labels
        if tag in {"button", "a"}:
            assert text.strip()
        if tag in {"dialog", "aside", "section"} or "role" in attributes:
            is_live = attributes.get("role") == "status"
            assert is_live or {"aria-label", "aria-labelledby"} & attributes.keys()


def test_references_between_elements_hold(page: Elements) -> None:
    ids = [attributes["id"] for _, attributes, _ in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.found:
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            if name in attributes:
                assert set((attributes[name] or "").split()) <= set(ids)
    scripts = "".join(file.read_text() for file in FOLDER.glob("*.js"))
    assert set(re.findall(r'byId\("([\w-]+)"\)', scripts)) <= set(ids)


def test_text_never_becomes_markup() -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\("
    for file in FOLDER.glob("*.js"):
        assert not re.search(sinks, file.read_text()), file


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: int) -> None:
    styles = (FOLDER / "page.css").read_text().split("prefers-color-scheme: dark")[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", styles))
    for ink in ("ink", "muted", "faint"):
        for ground in ("ground", "surface"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for pair in (
        ("drafted-ink", "drafted"),
        ("predicted-ink", "predicted"),
        ("problem", "problem-ground"),
    ):
        assert contrast(colours[pair[0]], colours[pair[1]]) >= 4.5, pair
    assert contrast(colours["drafted-edge"], colours["surface"]) >= 3.0
    assert contrast(colours["line-strong"], colours["surface"]) >= 3.0
