"""A hostile chat template costs its own process, its own requests, and no more than its seconds."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from server import template_process
from server.template_process import ConfinedTemplate
from server.templates import (
    BadTemplate,
    ChatTemplate,
    Conversation,
    PromptTooLong,
    TemplateRefused,
)
from tests.server_harness import (
    PATIENCE,
    TEMPLATE,
    build_model_folder,
    eventually,
    running_server,
)

HOSTILE = {
    "endless loop": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "one endless operation": "{% set a = messages | length + 8 %}{{ (a ** (a ** a)) % 7 }}",
    "memory in one operation": "{{ 'x' | center(90000000000) }}",
    "memory by and by": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "format": "{{ '%9999999999d' | format(1) }}",
    "too much text": "{% for a in range(100) %}{{ 'x' | center(999999) }}{% endfor %}",
}
LIMIT = 100_000_000


def said(text: str) -> Conversation:
    return Conversation([{"role": "user", "content": text}])


USER = said("hi")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time for the template, so that the tests take less."""
    code = (
        "from server import template_worker as worker; worker.CPU_SECONDS = 0.2; "
        "worker.MEMORY_BYTES = 256 * 1024**2; worker.main()"
    )
    monkeypatch.setattr(template_process, "COMMAND", (*template_process.COMMAND[:2], "-c", code))


@pytest.fixture
def trap() -> Iterator[ConfinedTemplate]:
    """Renders "fine" unless the message asks for one of the hostile ones."""
    cases = "".join(
        f"{{% if messages[0]['content'] == '{name}' %}}{source}{{% endif %}}"
        for name, source in HOSTILE.items()
    )
    with closing(ConfinedTemplate(cases + "{{ fine }}", {"fine": "fine"})) as template:
        yield template


@pytest.mark.parametrize("name", HOSTILE)
def test_a_rendering_that_takes_too_much_is_refused_and_the_next_is_not(
    trap: ConfinedTemplate, name: str
) -> None:
    with pytest.raises(TemplateRefused) as refusal:
        trap.render(said(name), LIMIT)
    assert "chat template" in str(refusal.value)
    assert trap.render(USER, LIMIT) == "fine"


def test_it_renders_what_the_plain_template_renders() -> None:
    names = {"bos_token": "<|bos|>"}
    messages = [{"role": "system", "content": "ä\u2028 "}, {"role": "user", "content": "\0<b>"}]
    tool = "{{ tools[0].name }}{{ own }}{{ add_generation_prompt }}"
    plain = ChatTemplate(TEMPLATE, names, tool)
    with closing(ConfinedTemplate(TEMPLATE, names, tool)) as confined:
        assert confined.source == plain.source
        assert confined.variables == plain.variables
        assert confined.reserved == plain.reserved
        for conversation in (
            Conversation(messages),
            Conversation(messages, [{"name": "f"}], {"own": [1.5, None]}, False),
        ):
            rendered = confined.render(conversation, 999)
            assert rendered == plain.render(conversation, 999)
            with pytest.raises(PromptTooLong):
                confined.render(conversation, len(rendered) - 1)
        with pytest.raises(TemplateRefused, match=r"Not that\.$"):
            confined.render(said("refuse me"), LIMIT)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{% if %}", "does not parse"),
        ("{{ (9 ** (9 ** 9)) % 7 }}", "too long to read"),  # computed when it is compiled
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "chat template"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused(source: str, complaint: str) -> None:
    with pytest.raises(BadTemplate, match=complaint):
        ConfinedTemplate(source, {})


def test_threads_share_one_process(trap: ConfinedTemplate) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: trap.render(USER, LIMIT), range(100))) == {"fine"}


def test_a_process_that_was_killed_is_replaced(trap: ConfinedTemplate) -> None:
    assert trap._process is not None
    trap._process._process.kill()
    with pytest.raises(TemplateRefused):
        trap.render(USER, LIMIT)
    assert trap.render(USER, LIMIT) == "fine"


def test_a_process_that_was_stopped_is_killed(
    trap: ConfinedTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trap._process is not None
    trap._process._sock.settimeout(0.1)
    os.kill(trap._process._process.pid, signal.SIGSTOP)
    with pytest.raises(TemplateRefused):
        trap.render(USER, LIMIT)
    assert trap.render(USER, LIMIT) == "fine"


def test_the_process_sees_no_environment_and_ends_with_its_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FALCON_API_KEY", "sk-falcon-1234")
    template = ConfinedTemplate("{{ 1 }}", {})
    assert template._process is not None
    process = template._process._process
    assert b"sk-falcon" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    template._process._sock.close()
    assert process.wait(PATIENCE) == 0


def test_a_hostile_template_leaves_the_server_answering(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "hostile")
    trap = "{% if messages[0]['content'] == 'trap' %}{{ (9 ** (9 ** messages | length)) }}"
    trap += HOSTILE["one endless operation"] + "{% endif %}"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = trap + TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with running_server(folder) as server, ThreadPoolExecutor(3) as pool:
        trapped = [pool.submit(server.post, server.chat("trap")) for _ in range(3)]
        eventually(lambda: server.get("/health").status_code == 200)
        assert server.post(server.chat("hello")).status_code == 200
        for answer in trapped:
            assert answer.result(PATIENCE).status_code == 400
            assert answer.result(PATIENCE).json()["error"]["param"] == "messages"
