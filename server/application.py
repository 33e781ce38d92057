"""The application and all it stands on, made from settings; whoever runs it has it listen."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastapi import FastAPI

from engine.client import WORKER_COMMAND, EngineClient

from .app import create_app
from .dialects import dialect_of
from .lifecycle import Life
from .metrics import Metrics
from .otlp import traces_sent
from .request_log import RequestLog
from .served import ServedModel
from .settings import Settings, SettingsError
from .signals import keys_reloaded_on_hangup
from .template_process import ConfinedTemplate
from .templates import BadTemplate, TemplateMaker
from .tokenizer import ChatTokenizer, load_tokenizer

if TYPE_CHECKING:
    from .tracing import Tracing

logger = logging.getLogger(__name__)


class Application(NamedTuple):
    """The engine is its user's to start and to stop."""

    app: FastAPI
    engine: EngineClient
    life: Life


@contextlib.contextmanager
def assembled(settings: Settings, command: Sequence[str] = WORKER_COMMAND) -> Iterator[Application]:
    """The application, in a running event loop; the engine is to be started and stopped within.

    Raises `SettingsError` for a folder that cannot be served.
    """
    limits = settings.limits
    engine = EngineClient(
        settings.engine, command, limits.engine_timeout, limits.max_num_queued_reqs
    )
    life = Life(engine)
    with (
        keys_reloaded_on_hangup(settings.access.keys),
        _loaded_tokenizer(settings) as tokenizer,
        traces_sent(settings.otlp_traces_endpoint) as tracing,
    ):
        served = _served_model(settings, tokenizer, engine, life, tracing)
        log = RequestLog()
        engine.observers.append(log.observe_step)
        yield Application(create_app(served, life, limits, settings.access, log), engine, life)


def _served_model(
    settings: Settings,
    tokenizer: ChatTokenizer,
    engine: EngineClient,
    life: Life,
    tracing: Tracing | None,
) -> ServedModel:
    metrics = Metrics(settings.model_names[0])
    metrics.watch(engine, lambda: life.state == "ready")
    return ServedModel(
        names=settings.model_names,
        created=int(time.time()),
        tokenizer=tokenizer,
        engine=engine,
        metrics=metrics,
        dialect=dialect_of(
            tokenizer.template, settings.tool_call_parser, settings.reasoning_parser
        ),
        tracing=tracing,
    )


@contextlib.contextmanager
def _loaded_tokenizer(settings: Settings) -> Iterator[ChatTokenizer]:
    """The tokenizer, whose chat template runs in a process of its own as long as this is open."""
    with contextlib.ExitStack() as open_:

        def confined(
            source: str, variables: Mapping[str, str], tool_source: str | None
        ) -> ConfinedTemplate:
            template = ConfinedTemplate(source, variables, tool_source)
            return open_.enter_context(contextlib.closing(template))

        tokenizer = _load_tokenizer(settings, confined)
        if tokenizer.template is None:
            logger.warning("the model has no chat template: chat requests get a 400")
        yield tokenizer


def _load_tokenizer(settings: Settings, make_template: TemplateMaker) -> ChatTokenizer:
    folder = settings.model_folder
    try:
        return load_tokenizer(folder, make_template, settings.chat_template)
    except BadTemplate as error:
        raise SettingsError(f"{folder}: {error}") from error
    except json.JSONDecodeError as error:
        raise SettingsError(f"{folder} holds broken JSON: {error}") from error
    except Exception as error:  # tokenizers raises bare Exception for a definition it cannot read
        raise SettingsError(f"cannot read {folder}/tokenizer.json: {error}") from error
