"""POST /v1/responses, without any memory of earlier ones: the input is the whole conversation."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from .answering import answer, key_of, served_model
from .chat import prepare
from .request_body import read_object
from .response_chat import ChatForm, told_as
from .response_replies import ResponseReplies
from .response_schemas import FORMAT_NAMES, ResponseRequest

router = APIRouter()


@router.post("/v1/responses")
async def create_response(http: Request) -> Response:
    served = served_model(http)
    body = await read_object(http)
    served.engine.check_room()
    request = ResponseRequest.read(body)
    request.check()
    form = ChatForm(request, body)
    with form.own_words():
        chat = await prepare(form.request, served, key_of(http))
    replies = ResponseReplies(request, chat.submits[0].request_id)
    ignored = [*request.extras(), chat.ignored]
    with told_as(FORMAT_NAMES):
        return await answer(http, form.request, chat.submits, replies, chat.reading, ignored)
