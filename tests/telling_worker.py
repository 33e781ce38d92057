"""The fake worker, but one that tells what it was asked: its answers depend on the `Submit`.

    python tests/telling_worker.py [options of fake_worker.py] FD

The order `tell` makes it say the value of that field of the `Submit` or of its sampling parameters,
as JSON. It ends at the first stop token. Log-probabilities are `fake_score`'s.
"""

from __future__ import annotations

import json

import fake_worker
import msgspec
from fake_worker import FakeWorker, Request, fake_score

from engine.messages import RequestOutput, Submit


class TellingRequest(Request):
    def next_output(self) -> RequestOutput:
        output = super().next_output()
        if (count := self.submit.logprobs) is None:
            return output
        return msgspec.structs.replace(
            output,
            logprobs=[fake_score(token, count) for token in output.token_ids],
        )


class TellingWorker(FakeWorker):
    def admit(self, submit: Submit) -> Request:
        request = super().admit(submit)
        if (name := request.orders.get("tell")) is not None:
            fields = msgspec.to_builtins(submit)
            fields |= fields.pop("sampling")
            said = json.dumps(fields[name])
            request.answer = [*self.tokenizer.encode(said).ids, request.answer[-1]]
        ends = [at for at, token in enumerate(request.answer) if token in submit.stop_token_ids]
        request.answer = request.answer[: min(ends, default=len(request.answer)) + 1]
        sent, scored = len(submit.output_ids), submit.scores_given
        return TellingRequest(submit, request.answer, request.orders, sent, scored=scored)


if __name__ == "__main__":
    fake_worker.FakeWorker = TellingWorker  # type: ignore[misc]  # what its main makes
    fake_worker.main()
