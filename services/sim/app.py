"""Serves calls: reads a request in its dialect, answers it, with the fault that it asks for."""

import gzip
from dataclasses import replace
from typing import Any, Final

import orjson
from gevent import socket

from services.sim import anthropic, chat, faults, prices, responses
from services.sim.answer import compose
from services.sim.calls import CallLog
from services.sim.faults import Fault
from services.sim.http import ClientGone, Connection, HungUp, Request
from services.sim.media.serve import Media
from services.sim.prompt import Answer, BadRequest, Dialect, Prompt
from services.sim.streaming import Pace, send_events

_DIALECTS: Final = (anthropic.DIALECT, chat.DIALECT, responses.DIALECT)
_JSON: Final = ("content-type", "application/json")
_NUISANCE: Final = [("server", "sim"), ("set-cookie", "sim=1; Path=/")]


class Provider:
    """One simulated provider; `serve` handles one connection."""

    def __init__(
        self, log: CallLog, table: prices.Table, media: Media, *, pace: Pace, seed: int
    ) -> None:
        self._log = log
        self._media = media
        self._prices = table
        self._pace = pace
        self._seed = seed

    def serve(self, sock: socket.socket, address: Any) -> None:
        connection = Connection(sock)
        try:
            while request := connection.read_request():
                self._one(request, connection)
                if request.headers.get("connection", "").lower() == "close":
                    break
        except (ClientGone, HungUp, ValueError, OSError):
            pass  # the entry of the call, if any, is already written
        finally:
            connection.close()

    def _one(self, request: Request, connection: Connection) -> None:
        if "/sim/" in request.path and not request.path.startswith("/sim/stolen"):
            return self._control(request, connection)
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return connection.reply(200, [_JSON], b"" if request.method == "HEAD" else b"{}")
        entry = self._log.open(request)
        try:
            self._call(request, connection, entry)
        except ClientGone:
            entry["client_gone"] = True
            raise
        finally:
            self._log.close(entry, request, connection)
        return None

    def _control(self, request: Request, connection: Connection) -> None:
        what = request.path.partition("/sim/")[2]
        answer: Any = {"ok": True}
        if what == "log":
            calls = self._log.calls(int(request.query.get("after", "0")))
            answer = {"calls": calls, "last_id": self._log.last_id}
        elif what == "reset":
            self._log.reset()
            self._media.reset()
        elif what.startswith("echo/"):
            answer = self._log.raw(what.removeprefix("echo/"))
        elif what.startswith("media/"):
            answer = self._media.control(what.removeprefix("media/"), request)
        connection.reply(200, [_JSON], orjson.dumps(answer))

    def _call(self, request: Request, connection: Connection, entry: dict[str, Any]) -> None:
        counting = request.path.endswith("/v1/messages/count_tokens")
        path = request.path.removesuffix("/count_tokens")
        dialect = next((d for d in _DIALECTS if path.endswith(d.path)), None)
        if dialect is None or request.method == "GET":
            return self._elsewhere(request, connection, entry)
        entry["dialect"] = dialect.name
        headers = self._headers(dialect, entry["id"])
        try:
            body = orjson.loads(request.body)
            if not isinstance(body, dict):
                raise BadRequest("The body is not a JSON object.")
            if counting:
                body.setdefault("max_tokens", 1)
            prompt = dialect.read(body, request.headers)
        except (BadRequest, orjson.JSONDecodeError, AttributeError, TypeError, KeyError) as problem:
            return self._refuse(dialect, connection, headers, problem)
        entry.update(model=prompt.model, stream=prompt.stream, session=prompt.session)
        fault = faults.find(prompt.model, request.headers.get("x-sim-fault", ""), request.path)
        fault = self._settle_flaky(fault, prompt, dialect)
        entry["fault"] = fault.name if fault else None
        if counting and not fault:
            counted = orjson.dumps({"input_tokens": prompt.input.total})
            return connection.reply(200, [_JSON, *headers], counted)
        answer = compose(prompt, request.body, self._seed)
        self._answer(dialect, prompt, answer, fault, connection, headers, entry)
        return None

    def _settle_flaky(self, fault: Fault | None, prompt: Prompt, dialect: Dialect) -> Fault | None:
        """`flaky` fails as an overload until the session has had its number of failures."""
        if fault is None or fault.name != "flaky":
            return fault
        session = f"{dialect.name}:{prompt.model}:{prompt.session}"
        if self._log.failed[session] >= fault.number:
            return None
        self._log.failed[session] += 1
        return Fault("529", 0) if dialect.name == "anthropic" else Fault("error", 503)

    def _headers(self, dialect: Dialect, call_id: int) -> list[tuple[str, str]]:
        told = f"req_sim_{call_id:08d}"
        if dialect.name == "anthropic":
            limits = [("anthropic-ratelimit-requests-remaining", "999"), ("request-id", told)]
        else:
            limits = [("x-ratelimit-remaining-requests", "999"), ("x-request-id", told)]
            limits += [("openai-processing-ms", "1"), ("openai-version", "2020-10-01")]
        return limits + _NUISANCE

    def _refuse(
        self, dialect: Dialect, connection: Connection, headers: Any, problem: Exception
    ) -> None:
        message, param, code = "We could not parse the JSON body of your request.", None, None
        if isinstance(problem, BadRequest):
            message, param, code = problem.message, problem.param, problem.code
        elif not isinstance(problem, orjson.JSONDecodeError):
            message = "A field of the request has a wrong type."
        body = dialect.error(400, message, param, code)
        connection.reply(400, [_JSON, *headers], orjson.dumps(body))

    def _answer(
        self,
        dialect: Dialect,
        prompt: Prompt,
        answer: Answer,
        fault: Fault | None,
        connection: Connection,
        headers: list[tuple[str, str]],
        entry: dict[str, Any],
    ) -> None:
        name = fault.name if fault else ""
        if fault and self._fail(dialect, fault, connection, headers):
            return
        if name == "empty":
            answer = replace(
                answer, text="", thinking="", calls=(), finish="stop", output=0, reasoning=0
            )
        elif fault and (name == "huge-usage" or self._overcharges(fault)):
            answer = replace(answer, output=fault.number * (prompt.max_output or answer.output))
        with_usage = name != "no-usage"
        self._record(dialect, prompt, answer, entry)
        if self._pace.first_s:
            connection.pause(self._pace.first_s)
        if prompt.stream and name != "truncated-json":
            connection.start(200, [("content-type", "text/event-stream; charset=utf-8"), *headers])
            events = dialect.events(prompt, answer, with_usage)
            send_events(connection, dialect, events, fault, self._pace, entry)
            return
        if self._pace.tokens_per_s:
            connection.pause(answer.output / self._pace.tokens_per_s)
        self._send_json(dialect.reply(prompt, answer, with_usage), fault, connection, headers)

    def _overcharges(self, fault: Fault) -> bool:
        if fault.name != "overcharge":
            return False
        self._log.failed[fault.name] += 1
        return self._log.failed[fault.name] % 10 == 0

    def _record(
        self, dialect: Dialect, prompt: Prompt, answer: Answer, entry: dict[str, Any]
    ) -> None:
        """What is reported and would be charged if the answer goes out whole."""
        spent = prices.units(prompt, answer, answer.output)
        entry["finish"] = answer.finish
        entry["units"] = spent
        entry["usage"] = dialect.usage(prompt, answer)
        entry["charge_usd"] = prices.charge(self._prices, prompt.model, spent)

    def _fail(self, dialect: Dialect, fault: Fault, connection: Connection, headers: Any) -> bool:
        """Answers with an error when the fault is one; False when the answer goes on."""
        name, number = fault
        extra: list[tuple[str, str]] = []
        status, code, message = 0, None, ""
        if name == "error":
            status = number
        elif name in ("429", "529"):
            status = int(name)
            extra = [("retry-after", str(number))] if number else []
        elif name == "too-long":
            status, code = 400, "context_length_exceeded"
            message = "prompt is too long: 250000 tokens > 200000 maximum"
        elif name == "200-error-body":
            status, message = 200, faults.MESSAGES[529]
        elif name == "redirect":
            connection.reply(307, [("location", "/sim/stolen"), *headers], b"")
            return True
        elif name in ("stall-first", "hang-head", "close-connect"):
            if name == "hang-head":
                connection.send_raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/ev")
            if number:
                connection.pause(number)
            raise HungUp
        if not status:
            return False
        shape = dialect.error(
            529 if status == 200 else status,
            message or faults.MESSAGES.get(status, "Error"),
            None,
            code,
        )
        connection.reply(status, [_JSON, *extra, *headers], orjson.dumps(shape))
        return True

    def _send_json(
        self, reply: dict[str, Any], fault: Fault | None, connection: Connection, headers: Any
    ) -> None:
        body = orjson.dumps(reply)
        name = fault.name if fault else ""
        if name == "truncated-json":
            body = body[: len(body) // 2]
        elif name == "bad-json":
            body = b"<html>upstream is having a bad day</html>"
        elif name == "gzip":
            body, headers = gzip.compress(body), [("content-encoding", "gzip"), *headers]
        elif fault and name in ("slow", "stall"):
            connection.pause(fault.number / (1000 if name == "slow" else 1))
        elif name in ("cut-mid-stream", "error-mid-stream"):
            connection.start(200, [_JSON, *headers])
            connection.write(body[: len(body) // 2])
            raise HungUp
        connection.reply(200, [_JSON, *headers], body)

    def _elsewhere(self, request: Request, connection: Connection, entry: dict[str, Any]) -> None:
        """Paths outside the text dialects: media, the list of models."""
        if self._media.serve(request, connection, entry):
            return None
        if request.method == "GET" and request.path.endswith("/v1/models"):
            return self._models(request, connection)
        return connection.reply(404, [_JSON], orjson.dumps({"error": {"message": "Not found"}}))

    def _models(self, request: Request, connection: Connection) -> None:
        names = list(self._prices) or ["sim-small"]
        if "anthropic-version" in request.headers:
            rows: list[dict[str, Any]] = [
                {"type": "model", "id": n, "display_name": n, "created_at": "2025-10-09T00:00:00Z"}
                for n in names
            ]
            listed = {"data": rows, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        else:
            rows = [
                {"id": n, "object": "model", "created": chat.CREATED, "owned_by": "sim"}
                for n in names
            ]
            listed = {"object": "list", "data": rows}
        return connection.reply(200, [_JSON], orjson.dumps(listed))
