"""Admits a generation: who asks, for what, at which price, under which hold."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from schemas.errors import Code
from services.backends.sql.budgets import ClockOff, IncarnationNotOpen, KeyNotActive, Shortfall
from services.backends.sql.job_records import FingerprintConflict, NewJob, QueueFull, Submitted
from services.backends.sql.jobs import Idempotence
from services.batch.inline import let_go, take_in
from services.batch.inputs import InputMissing, check_mime, check_type, decode_data_url
from services.batch.parts import Parts
from services.batch.view import View
from services.core.access import check_model
from services.core.catalog import Key
from services.core.errors import InvalidRequest, Refusal
from services.core.ids import ulid
from services.core.media import INPUTS, canonical, fingerprint, units_bound
from services.core.netguard import URL_MAX, UrlRefused, check_url
from services.core.prices import ModelPrice
from services.core.rating import Unpriced, rate
from services.core.shortfalls import refusal

_RECALL_S: Final = 0.1
_TYPICAL_S: Final = {"image": 10, "video": 60, "speech": 5, "transcription": 10}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One submission as any of the wires says it. `where` is the path of its parameters in the
    body, `clash` the code for an external id that was used for something else, `digests` the
    SHA-256 of files that came with it, by their ids: the same bytes make the same request. `take`:
    the id of the job to be made, and whether it may have been made."""

    model: str
    params: Mapping[str, Any]
    source: str
    where: str = "params"
    clash: Code = Code.IDEMPOTENCY_MISMATCH
    scope: str = ""
    external_id: str = ""
    idempotency_key: str = ""
    kind: str = ""
    body_bytes: int = 0
    callback_url: str = ""
    callback_param: str = "callback_url"
    extra: dict[str, str] = {}
    deadline_s: int | None = None
    start_within_s: int | None = None
    max_cost_nano: int | None = None
    priority: int = 0
    retention_s: int | None = None
    on_late: str = "attach"
    retry_of: str = ""
    digests: Mapping[str, str] = {}
    take: tuple[str, bool] = ("", False)


class Offer(NamedTuple):
    """What a submission would be: nothing is held yet."""

    model: ModelPrice
    params: dict[str, Any]
    units: dict[str, int]
    hold_nano: int
    eta_s: int
    channel: str
    price_version: str


class Admission:
    """`submit` and `estimate` for every wire."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def key(self, key_id: str) -> Key:
        """The live key of an authenticated caller. Raises Refusal(INVALID_API_KEY)."""
        views = self._parts.views
        found = views.view().keys.get(key_id)
        if found is None:  # it may have been made a moment ago
            found = views.view(now=True).keys.get(key_id)
        if found is None or found.status != "active":
            raise Refusal(Code.INVALID_API_KEY, "this API key is not known")
        return found

    def offer(self, key: Key, ask: Ask) -> Offer:
        """Checks all that can be checked without money. Raises Refusal."""
        view = self._parts.views.view()
        model = check_model(view.snapshot, view.index, key, ask.model, media=True)
        if ask.kind and ask.kind != model.kind:
            raise InvalidRequest(
                f"model: {ask.model!r} makes {model.kind}, not {ask.kind}", param="model"
            )
        params = canonical(model, ask.params, where=ask.where)
        units = units_bound(model, params, self._file_bytes(key, ask, params))
        hold_nano, channel = self._dearest(view, key, model, units)
        if ask.max_cost_nano is not None and hold_nano > ask.max_cost_nano:
            raise Refusal(
                Code.MAX_COST_EXCEEDED,
                f"max_cost_exceeded: it may cost {hold_nano} nano-USD",
                param="max_cost_nano",
            )
        eta_s, version = self._eta_s(model, params), view.snapshot.prices.id
        return Offer(model, params, units, hold_nano, eta_s, channel, version)

    def submit(self, key: Key, ask: Ask) -> Submitted:
        """Raises Refusal."""
        if "\0" in ask.external_id + ask.model + ask.callback_url:
            raise InvalidRequest("names and URLs must not hold NUL")
        if ask.callback_url:
            try:
                check_url(ask.callback_url)
            except UrlRefused as ex:
                raise InvalidRequest(
                    f"{ask.callback_param}: {ex}", param=ask.callback_param
                ) from ex
        job_id, again = ask.take
        there = self._parts.jobs.get(job_id) if again else None
        if there is not None and there.account_id == key.account_id:
            return Submitted(there, replayed=False)
        offer = self.offer(key, ask)
        digests, came_along = dict(ask.digests), take_in(self._parts, key.account_id, offer.params)
        digests |= came_along
        try:
            made = self._submit(key, ask, offer, digests)
        except BaseException:
            let_go(self._parts, key.account_id, came_along)
            raise
        if made.replayed:
            let_go(self._parts, key.account_id, came_along)
        return made

    def _submit(self, key: Key, ask: Ask, offer: Offer, digests: Mapping[str, str]) -> Submitted:
        batch = self._parts.config.batch
        new = NewJob(
            id=ask.take[0] or ulid(),
            account_id=key.account_id,
            key_id=key.id,
            source=ask.source,
            kind=offer.model.kind,
            model=ask.model,
            priced_as=offer.model.model,
            group=key.group,
            price_version=offer.price_version,
            params=offer.params,
            fingerprint=fingerprint(
                offer.model.model,
                {
                    name: digests.get(value, value) if isinstance(value, str) else value
                    for name, value in offer.params.items()
                },
            ),
            hold_nano=offer.hold_nano,
            units=offer.units,
            eta_s=offer.eta_s,
            deadline_s=min(ask.deadline_s or batch.deadline_s, batch.deadline_s),
            start_within_s=None
            if ask.start_within_s is None
            else min(ask.start_within_s, batch.deadline_s),
            retention_s=ask.retention_s or self._parts.config.artifacts.retention_s,
            external_id=ask.external_id,
            body_bytes=ask.body_bytes,
            priority=ask.priority,
            callback_url=ask.callback_url,
            extra=ask.extra,
            on_late=ask.on_late,
            retry_of=ask.retry_of,
            capped_model=offer.model.model if offer.model.model in key.model_caps else "",
        )
        names = [f"ext:{ask.external_id}"] if ask.external_id else []
        names += [f"key:{ask.idempotency_key}"] if ask.idempotency_key else []
        known_as = Idempotence(ask.scope, tuple(names))
        return self._take(new, known_as, ask.clash, key.limit_ids[0])

    def _take(
        self, new: NewJob, known_as: Idempotence, clash: Code, quota_limit_id: str
    ) -> Submitted:
        parts = self._parts
        until_s = parts.clock.monotonic_s() + parts.config.batch.admission_wait_s
        while True:
            try:
                return parts.jobs.submit(new, known_as, parts.config.batch.queue_max)
            except Shortfall as ex:
                if not ex.only_leased or parts.clock.monotonic_s() >= until_s:
                    raise refusal(ex.failing, quota_limit_id, parts.clock.now_us()) from ex
            except FingerprintConflict as ex:
                code = clash if ex.name.startswith("ext:") else Code.IDEMPOTENCY_MISMATCH
                raise Refusal(code, f"{code}: it was used for another request") from ex
            except QueueFull as ex:
                most = parts.config.batch.queue_max
                raise Refusal(
                    Code.QUEUE_FULL, f"queue_full: {most} jobs wait already", retry_after_s=5
                ) from ex
            except KeyNotActive as ex:
                raise Refusal(Code.INVALID_API_KEY, "this API key may not spend now") from ex
            except (IncarnationNotOpen, ClockOff) as ex:
                raise Refusal(Code.UNAVAILABLE, "jobs cannot be taken now") from ex
            parts.clock.sleep(_RECALL_S)

    def _dearest(
        self, view: View, key: Key, model: ModelPrice, units: dict[str, int]
    ) -> tuple[int, str]:
        """The most that it can cost on a channel that may make it, and the first such channel."""
        serving = [
            each
            for each in view.serving(key.group, model.model)
            if each.provider in self._parts.providers
            and model.kind in self._parts.providers[each.provider].kinds
        ]
        if not serving:
            raise Refusal(Code.NO_CAPACITY, f"no_capacity: no channel makes {model.model}")
        try:
            costs = [
                rate(
                    view.snapshot.prices.book,
                    channel=each.name,
                    priced_as=model.model,
                    group=key.group,
                    usage=units,
                ).cost_nano
                for each in serving
            ]
        except Unpriced as ex:
            raise Refusal(Code.MODEL_WITHOUT_PRICE, f"model_without_price: {ex}") from ex
        return max(costs), serving[0].name

    def _file_bytes(self, key: Key, ask: Ask, params: Mapping[str, Any]) -> int:
        """Bytes of the named input files; those of a URL are not known: the largest allowed.
        Raises InvalidRequest for a file that is not there."""
        total = 0
        for name in INPUTS:
            value = params.get(name)
            for each in value if isinstance(value, list) else [value]:
                path = f"{ask.where}.{name}" if ask.where else name
                try:
                    total += self._input_bytes(key, name, path, each)
                except InputMissing as ex:
                    raise InvalidRequest(str(ex), param=path) from ex
        return total

    def _input_bytes(self, key: Key, name: str, path: str, value: Any) -> int:
        """Raises InputMissing."""
        if not isinstance(value, str) or not value:
            return 0
        if value.startswith("data:"):
            return check_type(decode_data_url(value, path), name, path).bytes
        if value.startswith("file_"):
            upload = self._parts.uploads.get(key.account_id, value)
            if upload is None:
                raise InputMissing(f"{path}: there is no file {value}")
            check_mime(upload.mime, name, path)
            return upload.bytes
        if not value.startswith(("https://", "http://")):
            raise InputMissing(f"{path}: write a URL, a data URL or the id of an uploaded file")
        if len(value) > URL_MAX:
            raise InputMissing(f"{path}: a URL has at most {URL_MAX} characters")
        return self._parts.config.artifacts.upload_max_bytes

    def _eta_s(self, model: ModelPrice, params: Mapping[str, Any]) -> int:
        typical = self._parts.typical.seconds(model.model)
        if typical is not None:
            return typical
        if model.kind == "video":
            return max(10, 7 * int(params["duration_seconds"]))
        return _TYPICAL_S.get(model.kind, 5)
