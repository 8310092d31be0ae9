"""Embeddings (OpenAI) and rerank (Jina and Cohere shapes), answered at once."""

import struct
from base64 import b64encode
from hashlib import shake_256
from typing import Any, Final

from services.sim.media.jobs import Ask, Job
from services.sim.media.openai_images import policy, refuse
from services.sim.media.shape import (
    Call,
    Reply,
    Route,
    Vendor,
    body_of,
    json_reply,
    text_in,
)
from services.sim.prompt import BadRequest, tokens

_DIMENSIONS: Final = 1536
_DIMENSIONS_MAX: Final = 65_536
_INPUTS_MAX: Final = 2048
EMBEDDINGS: Final = Vendor(name="openai-embeddings", id_form="emb_{}", refuse=refuse, policy=policy)
RERANK: Final = Vendor(name="rerank", id_form="rerank_{}", refuse=refuse, policy=policy)


def _embedding(call: Call) -> Ask:
    body = body_of(call)
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 1 <= len(texts) <= _INPUTS_MAX:
        raise BadRequest("'$.input' is invalid.", "input")
    if all(isinstance(part, int) for part in texts):
        texts = [texts]  # one text as its tokens
    dimensions = body.get("dimensions") or _DIMENSIONS
    if not isinstance(dimensions, int) or not 1 <= dimensions <= _DIMENSIONS_MAX:
        raise BadRequest("Invalid value for 'dimensions'.", "dimensions")
    spent = sum(len(t) if isinstance(t, list) else tokens(len(str(t).encode())) for t in texts)
    return Ask(
        operation="embedding",
        model=text_in(body, "model"),
        prompt=str(texts[0]),
        units={"input": spent},
        more={
            "texts": [str(text) for text in texts],
            "dimensions": dimensions,
            "base64": body.get("encoding_format") == "base64",
        },
    )


def _vector(model: str, text: str, dimensions: int) -> list[float]:
    """A direction of length one that follows from model and text."""
    raw = shake_256(f"{model}:{text}".encode()).digest(2 * dimensions)
    values = struct.unpack(f"<{dimensions}h", raw)
    length = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / length for value in values]


def _embedded(call: Call, job: Job) -> Reply:
    more, data = job.ask.more, []
    for index, text in enumerate(more["texts"][: len(more["texts"]) if job.outputs else 0]):
        vector: Any = _vector(job.ask.model, text, more["dimensions"])
        if more["base64"]:
            vector = b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    spent = job.ask.units["input"]
    usage = {"prompt_tokens": spent, "total_tokens": spent}
    told = {"object": "list", "data": data, "model": job.ask.model, "usage": usage}
    return json_reply(200, told)


def _rerank(call: Call) -> Ask:
    body = body_of(call)
    documents = body.get("documents")
    if not isinstance(documents, list) or not documents:
        raise BadRequest("documents: Field required", "documents")
    texts = [str(d.get("text", "")) if isinstance(d, dict) else str(d) for d in documents]
    top = body.get("top_n")
    query = text_in(body, "query")
    return Ask(
        operation="rerank",
        model=text_in(body, "model"),
        prompt=query,
        units={"calls": -(-len(texts) // 100)},
        more={
            "texts": texts,
            "top": len(texts) if top is None else max(0, int(top)),
            "cohere": "/v2/" in call.request.path,
            "returned": bool(body.get("return_documents")),
        },
    )


def _ranked(call: Call, job: Job) -> Reply:
    more = job.ask.more
    asked = set(job.ask.prompt.lower().split())
    results = []
    for index, text in enumerate(more["texts"]):
        words = set(text.lower().split())
        score = len(asked & words) / len(asked | words) if words else 0.0
        entry: dict[str, Any] = {"index": index, "relevance_score": round(score, 6)}
        if more["returned"]:
            entry["document"] = {"text": text}
        results.append(entry)
    results.sort(key=lambda entry: -entry["relevance_score"])
    results = results[: more["top"]] if job.outputs else []
    if more["cohere"]:
        billed = {"search_units": job.ask.units["calls"]}
        meta = {"api_version": {"version": "2"}, "billed_units": billed}
        return json_reply(200, {"id": job.id, "results": results, "meta": meta})
    spent = sum(tokens(len(text.encode())) for text in more["texts"])
    usage = {"total_tokens": spent, "prompt_tokens": spent}
    return json_reply(200, {"model": job.ask.model, "results": results, "usage": usage})


def _route(vendor: Vendor, path: str, read: Any, reply: Any) -> Route:
    return Route(
        vendor=vendor,
        method="POST",
        path=path,
        operation="create",
        read=read,
        reply=reply,
        at_once=True,
    )


ROUTES: Final = (
    _route(EMBEDDINGS, "/v1/embeddings", _embedding, _embedded),
    _route(RERANK, "/v[12]/rerank", _rerank, _ranked),
)
