"""`GET /v1/models` and `GET /v1/models/{id}`: what the key may use, in the caller's shape."""

from typing import Any, Final

import falcon

from schemas.errors import Code
from services.core.access import allowed_models
from services.core.errors import InvalidRequest, Refusal
from services.core.moments import rfc3339
from services.core.prices import ModelPrice
from services.edge.authenticated import Authenticated, Caller

PAGE_MAX: Final = 1000


class ModelsResource(Authenticated):
    """The Anthropic list when the request carries `anthropic-version`, else OpenAI's. No prices
    in the body, by design: they are at `/api/pricing`."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, model_id: str = "") -> None:
        anthropic = req.get_header("anthropic-version") is not None

        def answer(caller: Caller) -> Any:
            index = caller.view.index
            models = allowed_models(caller.view.snapshot, index, caller.key)
            if not model_id:
                wanted = _filtered(models, req)
                return _anthropic_list(wanted, req) if anthropic else _openai_list(wanted)
            found = index.resolve(model_id)
            if found is None or found.model not in {model.model for model in models}:
                raise Refusal(
                    Code.MODEL_NOT_FOUND, f"model_not_found: this key has no model {model_id!r}"
                )
            return _anthropic(found) if anthropic else _openai(found)

        self._serve(req, resp, answer, "anthropic" if anthropic else "chat")


def _filtered(models: list[ModelPrice], req: falcon.Request) -> list[ModelPrice]:
    wanted = set(req.get_param_as_list("capability") or [])
    family = req.get_param("family")
    return [
        model
        for model in models
        if wanted <= set(model.capabilities) and family in (None, model.vendor)
    ]


def _openai(model: ModelPrice) -> dict[str, Any]:
    return {
        "id": model.model,
        "object": "model",
        "created": model.created,
        "owned_by": model.vendor,
        "family": model.vendor,
        "capabilities": model.capabilities,
        "context_window": model.context_window,
        "max_output_tokens": model.max_output_tokens,
        "input_modalities": model.input_modalities,
        "output_modalities": model.output_modalities,
        "pricing_url": "/api/pricing",
    }


def _openai_list(models: list[ModelPrice]) -> dict[str, Any]:
    return {"object": "list", "data": [_openai(model) for model in models]}


def _anthropic(model: ModelPrice) -> dict[str, Any]:
    created = rfc3339(model.created * 1_000_000)
    return {
        "type": "model",
        "id": model.model,
        "display_name": model.display_name or model.model,
        "created_at": created,
    }


def _anthropic_list(models: list[ModelPrice], req: falcon.Request) -> dict[str, Any]:
    """A page of the list: `limit` (default 20, at most 1000), `after_id`, `before_id`."""
    ids = [model.model for model in models]
    try:
        limit = int(req.get_param("limit") or 20)
    except ValueError as ex:
        raise InvalidRequest("limit must be a number", param="limit") from ex
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidRequest(f"limit must be between 1 and {PAGE_MAX}", param="limit")
    start, stop = 0, len(ids)
    after, before = req.get_param("after_id"), req.get_param("before_id")
    if after in ids:
        start = ids.index(after) + 1
    if before in ids:
        stop = ids.index(before)
    page = models[start:stop]
    shown = page[-limit:] if before else page[:limit]
    data = [_anthropic(model) for model in shown]
    return {
        "data": data,
        "has_more": len(page) > len(shown),
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
