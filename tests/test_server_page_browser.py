"""The page in a real browser over a real server: chat, stop, replay, keyboard, hostile text.

Needs Chromium; without one these tests are skipped, and `FALCON_CHROMIUM` can name one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.chromium import SHIFT, VARIABLE, Page, find_chromium, running_chromium
from tests.server_harness import Running, build_model_folder, eventually, running_server

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"no Chromium found; set {VARIABLE} to the program to run these tests"
)
SAY = "the falcon flies over the hills, hello world"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&lt;b&gt; ${1}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    with running_server(folder, model_len=4096) as running:
        yield running


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert PROGRAM is not None
    with running_chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(server: Running, tab: Page) -> Iterator[Page]:
    """The page, ready; at the end it must have asked nobody else and complained of nothing."""
    page = tab
    page.resize(1280, 800)
    page.emulate()
    page.open(server.url)
    page.wait("document.querySelector('#model').textContent === 'tiny'")
    yield page
    assert page.complaints == []
    assert all(url.startswith(server.url + "/") for url in page.requested), page.requested


def ask(page: Page, content: object) -> None:
    """Type a question and send it; a dict is an order to the fake worker."""
    page.run("document.querySelector('#question').focus()")
    page.type(json.dumps(content) if isinstance(content, dict) else str(content))
    page.press("Enter")


def asked(page: Page, content: object) -> None:
    """The same, to its end."""
    before = page.run("document.querySelectorAll('.facts, .problem').length")
    ask(page, content)
    page.wait(f"document.querySelectorAll('.facts, .problem').length > {before}")


def text(page: Page, selector: str) -> str:
    found: str = page.run(f"document.querySelector({json.dumps(selector)}).textContent")
    return found


def count(page: Page, selector: str) -> int:
    number: int = page.run(f"document.querySelectorAll({json.dumps(selector)}).length")
    return number


@contextmanager
def answering(page: Page, response: str) -> Iterator[None]:
    """Let the page's requests be answered by a JavaScript expression, and keep what they were."""
    page.run(
        "window.kept = window.fetch; window.sent = [];"
        "window.fetch = async (url, options) => {"
        f"sent.push([url, options]); return {response}; }}; 0"
    )
    yield
    page.run("window.fetch = window.kept; 0")


def refusing(status: int, message: str, code: str = "x", **headers: str) -> str:
    body = json.dumps({"error": {"message": message, "code": code}})
    return f"new Response({json.dumps(body)}, {{status: {status}, headers: {json.dumps(headers)}}})"


def bodies(page: Page) -> list[dict[str, Any]]:
    """What was sent to the chat endpoint."""
    return [json.loads(body) for body in page.posted]


def test_an_answer_streams_with_every_token_tinted_by_its_source(page: Page) -> None:
    asked(page, {"say": SAY, "step": 3})
    assert text(page, ".text") == SAY
    tokens, steps = count(page, ".text .token"), count(page, ".text .step")
    drafted, own = count(page, ".text .drafted"), count(page, ".text .bonus")
    assert drafted + own == tokens
    assert steps - own in (0, 1)  # the end token, which has no text, may be the last step's own
    assert drafted > own > 1
    total = int(text(page, ".facts p").split()[0])
    assert float(text(page, "#tau")) == pytest.approx(total / steps, abs=0.006)
    assert int(text(page, "[data-count=bonus]")) + int(text(page, "[data-count=drafted]")) == total
    assert text(page, "#announcer") == f"Answer: {SAY}"


def test_a_character_of_several_tokens_is_tinted_once(page: Page) -> None:
    asked(page, {"say": "é hello é", "step": 3})
    assert text(page, ".text") == "é hello é"
    assert count(page, ".text .unknown") == 0
    assert count(page, ".text .drafted") > 1


def test_the_tree_of_a_step_has_its_accepted_path_bright(page: Page) -> None:
    asked(page, {"say": SAY, "step": 3})
    assert count(page, "#tree .node.root") == 1
    assert count(page, "#tree .node.drafted") == 2
    assert count(page, "#tree .node.bonus") == 1
    assert count(page, "#tree .node.refused") == 2
    assert count(page, "#tree .edge") == 5
    words = page.run("document.querySelector('#tree svg').getAttribute('aria-label')")
    assert "2 accepted" in words
    assert text(page, "#caption") == words


def test_a_click_on_words_shows_their_step(page: Page) -> None:
    asked(page, {"say": SAY, "step": 3})
    page.click('.step[data-step="1"]')
    assert page.run("document.querySelector('#step').value") == "2"
    assert text(page, "#step-label").startswith("Step 2 / ")
    assert count(page, ".step.shown") == 1
    assert count(page, '.step[data-step="1"].shown') == 1


def test_steps_play_one_by_one(page: Page) -> None:
    asked(page, {"say": SAY, "step": 5})
    page.run("document.querySelector('#step').value = 1; 0")
    page.click("#play")
    assert text(page, "#play") == "Pause"
    page.wait("document.querySelector('#play').textContent === 'Play'")
    assert page.run("(({value, max}) => value === max)(document.querySelector('#step'))")


def test_replay_shows_both_runs_and_that_they_are_identical(page: Page) -> None:
    asked(page, {"say": SAY, "step": 3, "delay": 0.01})
    page.click(".facts button")
    page.wait("document.querySelector('.verdict')")
    assert text(page, ".verdict").startswith("Identical, character for character")
    assert [text(page, f".run:nth-child({n}) .text") for n in (1, 2)] == [SAY, SAY]
    assert count(page, ".run:nth-child(2) .drafted") == 0
    speeds = [float(text(page, f".run:nth-child({n}) .pace b")) for n in (1, 2)]
    assert min(speeds) > 0
    first, second = bodies(page)
    assert first["speculative"] == {"enabled": True, "trace": True}
    assert second["speculative"] == {"enabled": False, "trace": True}
    assert first | {"speculative": 0} == second | {"speculative": 0}
    assert isinstance(first["seed"], int)


WATCH = """window.faded = 0; new MutationObserver(() => {
  faded = Math.max(faded, document.querySelectorAll('.run:first-child .ahead').length);
}).observe(document.body, {subtree: true, childList: true, attributes: true}); 0"""


def test_a_replay_lets_the_first_answer_come_again_at_its_own_pace(page: Page) -> None:
    asked(page, {"say": SAY, "step": 3, "delay": 0.02})
    page.run(WATCH)
    page.click(".facts button")
    page.wait("document.querySelector('.verdict')")
    assert page.run("faded") > 1
    page.wait("document.querySelectorAll('.ahead').length === 0")


def test_a_replay_that_differs_says_from_where(page: Page) -> None:
    asked(page, {"say": SAY, "step": 3})
    other = {"choices": [{"delta": {"content": "the raven"}, "finish_reason": "stop"}]}
    stream = f"data: {json.dumps(other)}\n\ndata: [DONE]\n\n"
    with answering(page, f"new Response({json.dumps(stream)})"):
        page.click(".facts button")
        page.wait("document.querySelector('.verdict')")
    assert text(page, ".verdict").startswith("The texts differ from character 5 on")


def test_every_answer_is_replayed_when_the_settings_say_so(page: Page) -> None:
    page.run("document.querySelector('#always-replay').click()")
    ask(page, {"say": "hello"})
    page.wait("document.querySelector('.verdict')")
    assert count(page, ".run") == 2


@pytest.mark.parametrize("way", ["escape", "button"])
def test_a_running_answer_is_stopped_and_freed(page: Page, server: Running, way: str) -> None:
    aborts = server.received("Abort")
    ask(page, {"say": "hello", "forever": True, "delay": 0.02})
    page.wait("document.querySelectorAll('.step').length > 2")
    assert text(page, "#send") == "Stop"
    if way == "escape":
        page.press("Escape")
    else:
        page.press("Tab")
        page.press("Enter")
    page.wait("document.querySelector('.facts')")
    assert text(page, ".facts p").startswith("stopped")
    assert text(page, "#send") == "Send"
    eventually(lambda: server.received("Abort") == aborts + 1)


def test_a_stopped_answer_is_replayed_as_far_as_it_went(page: Page) -> None:
    ask(page, {"say": "hello", "forever": True, "delay": 0.02})
    page.wait("document.querySelectorAll('.step').length > 2")
    page.press("Escape")
    page.wait("document.querySelector('.facts')")
    page.click(".facts button")
    page.wait("document.querySelector('.verdict')")
    assert text(page, ".verdict").startswith("Identical as far as both went")


def test_the_conversation_is_sent_along_until_a_new_chat(page: Page) -> None:
    asked(page, "one")
    asked(page, "two")
    assert [message["content"] for message in bodies(page)[-1]["messages"]] == [
        "one",
        "echo:one",
        "two",
    ]
    page.click("#new-chat")
    assert count(page, ".turn") == 0
    asked(page, "three")
    assert [message["content"] for message in bodies(page)[-1]["messages"]] == ["three"]


def test_settings_go_into_the_request(page: Page) -> None:
    page.click("#open-settings")
    for field, value in (("system", "Be brief."), ("max-tokens", "7"), ("seed", "42")):
        page.run(f"document.querySelector('#{field}').select()")
        page.type(value)
    page.run("document.querySelector('#temperature').select()")
    page.type("0.5")
    page.press("Enter")
    page.wait("!document.querySelector('#settings').open")
    asked(page, "hello world hello world")
    body = bodies(page)[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 7, 42)
    assert "cut at max tokens · 7 tokens" in text(page, ".facts p")


def test_an_invalid_setting_is_set_back_where_it_can_be_seen(page: Page) -> None:
    page.click("#open-settings")
    page.run("document.querySelector('#temperature').select()")
    page.type("3")
    page.press("Escape")
    page.wait("document.querySelector('#temperature').value === '0'")


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    page.type("hello")
    page.press("Enter", SHIFT)
    page.type("world")
    page.press("Enter")
    page.wait("document.querySelector('.facts')")
    assert bodies(page)[-1]["messages"][-1]["content"] == "hello\nworld"
    order = []
    for _ in range(10):
        page.press("Tab")
        order.append(page.run("document.activeElement.id || document.activeElement.className"))
    assert order[:4] == ["send", "step", "play", "tree"]
    rest = order[order.index("skip") :]
    assert rest[:5] == ["skip", "new-chat", "open-settings", "scroller", "quiet"]
    page.run("document.querySelector('#step').focus()")
    page.press("Home")
    page.press("ArrowRight")
    spoken = page.run("document.querySelector('#step').getAttribute('aria-valuetext')")
    assert spoken.startswith("Step 2 of ")
    page.run("document.querySelector('#open-settings').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#settings').open")
    page.press("Escape")
    page.wait("!document.querySelector('#settings').open")
    assert page.run("document.activeElement.id") == "open-settings"


def test_nothing_is_sent_while_an_answer_runs_or_when_there_is_nothing(page: Page) -> None:
    ask(page, "  ")
    assert count(page, ".turn") == 0
    ask(page, {"say": "hello", "forever": True, "delay": 0.02})
    page.wait("document.querySelector('.step')")
    ask(page, "next")
    assert count(page, ".turn") == 1
    assert page.run("document.querySelector('#question').value") == "next"
    page.press("Escape")
    page.wait("document.querySelector('.facts')")


def test_hostile_text_stays_text(page: Page) -> None:
    asked(page, HOSTILE)
    page.click(".facts button")
    page.wait("document.querySelector('.verdict')")
    assert text(page, ".text") == f"echo:{HOSTILE}"
    assert HOSTILE in text(page, ".question")
    assert count(page, "#turns img, #turns script, #turns b:not(.pace b), #tree img") == 0
    assert page.run("window.hacked === undefined")


def test_an_engine_error_keeps_what_came_and_offers_to_try_again(page: Page) -> None:
    asked(page, {"say": SAY, "error_after": 3})
    assert SAY.startswith(text(page, ".text"))
    assert text(page, ".text")
    assert not text(page, ".facts p").startswith("stopped")
    alert = text(page, "[role=alert] p")
    assert (
        alert
        == "The answer broke off. The engine failed on this request; others were not affected."
    )
    page.click("[role=alert] button")
    page.wait("document.querySelectorAll('.problem').length === 1")
    page.wait("document.querySelector('#send').textContent === 'Send'")
    assert len(bodies(page)) == 2


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (refusing(400, "Not that."), "The server refused the request. Not that."),
        (refusing(400, "Long.", "context_length_exceeded"), "too long for the model"),
        (refusing(429, "Full.", **{"retry-after": "2"}), "is busy. Full. Retry after 2 s."),
        (refusing(503, "Gone.", **{"retry-after": "5"}), "is not ready. Gone. Retry after 5 s."),
        ("new Response('<html>', {status: 502})", "The server answered with status 502."),
        ("Promise.reject(new TypeError('Failed to fetch'))", "The server does not answer."),
        ("new Response('data: {\"choices\": []}\\n\\n')", "ended before the answer was complete"),
        ("new Response('data: nonsense\\n\\n')", "no chat completion"),
        (
            "new Response(new ReadableStream({pull(c) { c.error(new TypeError('cut')); }}))",
            "The connection broke",
        ),
    ],
)
def test_failures_are_told_in_words(page: Page, response: str, words: str) -> None:
    with answering(page, response):
        asked(page, "hi")
        assert words in text(page, "[role=alert] p")
    assert text(page, "#send") == "Send"
    asked(page, "again")
    assert [message["content"] for message in bodies(page)[-1]["messages"]] == ["again"]


def test_a_server_that_wants_a_key_is_given_one(page: Page) -> None:
    assert page.run("document.querySelector('#key-field').hidden")
    with answering(page, refusing(401, "Who are you?")):
        asked(page, "hi")
        page.wait("document.querySelector('#settings').open")
        assert page.run("document.activeElement.id") == "api-key"
        page.type("s3cret")
        page.press("Enter")
        page.wait("!document.querySelector('#settings').open")
        page.click("[role=alert] button")
        page.wait("document.querySelector('#settings').open")
        assert page.run("sent.at(-1)[1].headers.authorization") == "Bearer s3cret"
    assert page.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_the_end_stays_in_sight_unless_the_reader_scrolled_up(page: Page) -> None:
    area = "document.querySelector('#scroller')"
    distance = f"({area}.scrollHeight - {area}.scrollTop - {area}.clientHeight)"
    page.run("document.querySelector('#max-tokens').value = ''; 0")
    ask(page, {"say": "hello world\n", "forever": True, "delay": 0.005, "step": 8})
    page.wait(f"{area}.scrollHeight > 3 * {area}.clientHeight")
    assert page.run(f"{distance} < 40")
    page.run(f"{area}.scrollTop = 100; 0")
    page.wait("!document.querySelector('#to-newest').hidden")
    height = page.run(f"{area}.scrollHeight")
    page.wait(f"{area}.scrollHeight > {height}")
    assert page.run(f"{area}.scrollTop") == 100
    page.click("#to-newest")
    height = page.run(f"{area}.scrollHeight")
    page.wait(f"{area}.scrollHeight > {height} && {distance} < 40")
    page.press("Escape")
    page.wait("document.querySelector('.facts')")


def test_everything_that_can_be_used_has_a_name_for_screen_readers(page: Page) -> None:
    asked(page, {"say": SAY, "step": 3})
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    page.call("Accessibility.disable")
    usable = {"button", "textbox", "slider", "link", "region", "group", "image", "complementary"}
    found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in usable]
    assert len(found) > 9
    assert [node for node in found if not node["name"]["value"].strip()] == []


def test_both_colour_schemes_are_followed(page: Page) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate(prefers_color_scheme=scheme)
        grounds.add(page.run("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == {"rgb(245, 246, 247)", "rgb(15, 19, 23)"}


def test_nothing_moves_for_those_who_asked_for_it(page: Page) -> None:
    page.emulate(prefers_reduced_motion="reduce")
    asked(page, {"say": SAY, "step": 3, "delay": 0.01})
    moving = "[...document.querySelectorAll('*')].filter((e) => e.getAnimations().length).length"
    assert page.run(moving) == 0
    page.run(WATCH)
    page.click(".facts button")
    page.wait("document.querySelector('.verdict')")
    assert page.run("faded") == 0


def test_it_fits_a_phone(page: Page) -> None:
    page.resize(360, 640)
    asked(page, {"say": "hello" * 60, "step": 3})
    page.click("#unfold")
    page.wait("document.querySelector('#tree').clientHeight > 100")
    page.click(".facts button")
    page.wait("document.querySelector('.verdict')")
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run("document.querySelector('#scroller').scrollWidth") <= 360
    assert page.run("document.querySelector('#send').getBoundingClientRect().bottom") <= 640
