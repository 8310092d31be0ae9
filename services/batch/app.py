"""The routes of the batch service. Only the edge reaches them, with a signed identity."""

from typing import Any

import falcon
from sqlalchemy.exc import DataError

from schemas.errors import Code
from services.backends.job_wire import STORED_PATH
from services.backends.objects.port import StoreUnavailable
from services.backends.sql.deliveries import Deliveries
from services.backends.sql.endpoints import Endpoints
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger
from services.batch.callbacks import CallbackSecrets
from services.batch.changes import ChangeFeed
from services.batch.receivers import Receivers
from services.batch.resources import (
    artifacts,
    batches,
    callbacks,
    endpoints,
    files,
    internal,
    jobs,
    message_batches,
    openai,
    tasks,
    videos,
)
from services.batch.resources.base import Service, refuse
from services.core.errors import InvalidRequest, Refusal


def create_app(
    service: Service,
    feed: ChangeFeed,
    deliveries: Deliveries,
    registered: Endpoints,
    secrets: CallbackSecrets,
    receivers: Receivers,
    desk: batches.Desk,
) -> falcon.App:
    """The WSGI application."""
    app = falcon.App()
    app.req_options.strip_url_path_trailing_slash = True
    app.req_options.keep_blank_qs_values = True
    app.add_route("/v1/tasks/submit", tasks.SubmitResource(service))
    app.add_route("/v1/tasks/query", tasks.QueryResource(service))
    cancel = tasks.CancelResource(service)
    app.add_route("/v1/tasks/cancel", cancel)
    app.add_route("/v1/tasks/cancel/{task_id}", cancel)
    app.add_route("/v1/jobs", jobs.JobsResource(service))
    app.add_route("/v1/jobs/query", jobs.JobsQueryResource(service))
    app.add_route("/v1/jobs/estimate", jobs.EstimateResource(service))
    app.add_route("/v1/jobs/{job_id}", jobs.JobResource(service))
    app.add_route("/v1/jobs/{job_id}/cancel", jobs.JobCancelResource(service))
    app.add_route("/v1/jobs/{job_id}/events", jobs.JobEventsResource(service))
    app.add_route("/v1/jobs/{job_id}/attempts", jobs.JobAttemptsResource(service))
    app.add_route("/v1/jobs/{job_id}/redrive", jobs.JobRedriveResource(service))
    sent = callbacks.DeliveriesResource(service, deliveries)
    app.add_route("/v1/jobs/{job_id}/deliveries", sent)
    app.add_route("/v1/webhooks/secret", callbacks.SecretResource(service, secrets))
    hooks = endpoints.EndpointsResource(service, registered, secrets)
    app.add_route("/v1/webhooks/endpoints", hooks)
    hook = endpoints.EndpointResource(service, registered, deliveries, secrets, receivers)
    app.add_route("/v1/webhooks/endpoints/{endpoint_id}", hook)
    for suffix in ("rotate", "test", "deliveries"):
        path = f"/v1/webhooks/endpoints/{{endpoint_id}}/{suffix}"
        app.add_route(path, hook, suffix=suffix)
    again = callbacks.RedeliverResource(service, deliveries)
    app.add_route("/v1/webhooks/deliveries/{delivery_id}/redeliver", again)
    app.add_route("/v1/files", files.FilesResource(service))
    file = files.FileResource(service)
    app.add_route("/v1/files/{file_id}", file)
    app.add_route("/v1/files/{file_id}/content", file, suffix="content")
    batch = batches.BatchResource(desk)
    app.add_route("/v1/batches", batches.BatchesResource(desk))
    app.add_route("/v1/batches/{batch_id}", batch)
    app.add_route("/v1/batches/{batch_id}/cancel", batch, suffix="cancel")
    messages = message_batches.MessageBatchesResource(desk)
    app.add_route("/v1/messages/batches", messages)
    app.add_route("/v1/messages/batches/{batch_id}", messages, suffix="one")
    for suffix in ("cancel", "results"):
        app.add_route(f"/v1/messages/batches/{{batch_id}}/{suffix}", messages, suffix=suffix)
    artifact = artifacts.ArtifactResource(service)
    app.add_route("/v1/artifacts/{artifact_id}", artifact)
    app.add_route("/v1/artifacts/{artifact_id}/url", artifact, suffix="url")
    app.add_route("/v1/artifacts/{artifact_id}/content", artifacts.ContentResource(service))
    app.add_route("/a/{artifact_id}", artifacts.LinkResource(service))
    edit = openai.FormResource(service, "image", openai.edit_params, "image", "mask")
    app.add_route("/v1/images/edits", edit)
    heard = openai.FormResource(service, "transcription", openai.transcription_params, "file")
    app.add_route("/v1/audio/transcriptions", heard)
    video = videos.VideoResource(service)
    app.add_route("/v1/videos", videos.VideosResource(service))
    app.add_route("/v1/videos/{video_id}", video)
    app.add_route("/v1/videos/{video_id}/content", video, suffix="content")
    app.add_route("/v1/videos/generations", tasks.SubmitResource(service))
    app.add_route("/v1/videos/tasks/{task_id}", videos.OldTaskResource(service))
    app.add_route("/hooks/{provider}", internal.HookResource(service))
    app.add_route("/internal/changes", internal.ChangesResource(service, feed))
    app.add_route(STORED_PATH + "/{sha256}", internal.StoredResource(service))
    app.add_route("/internal/health", internal.HealthResource(service))
    app.add_error_handler(Exception, _crashed)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler((DatabaseUnavailable, StoreUnavailable), _unavailable)
    app.add_error_handler(DataError, _unstorable)
    app.add_error_handler(Refusal, lambda req, resp, ex, params: refuse(resp, ex, req.path))
    return app


def _http_error(
    req: falcon.Request, resp: falcon.Response, ex: falcon.HTTPError, params: dict[str, Any]
) -> None:
    codes = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}
    code = codes.get(ex.status_code, Code.INVALID_PARAM)
    refuse(resp, Refusal(code, ex.description or ex.title or "no such route"), req.path)


def _unavailable(
    req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]
) -> None:
    get_logger().warning("batch_unavailable", path=req.path, error=str(ex))
    refuse(
        resp,
        Refusal(Code.UNAVAILABLE, "jobs cannot be read or taken now; try again shortly"),
        req.path,
    )


def _unstorable(
    req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]
) -> None:
    """PostgreSQL holds no NUL: nothing has such a name."""
    refuse(resp, InvalidRequest("a name holds what no name can"), req.path)


def _crashed(
    req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]
) -> None:
    get_logger().error("batch_request_crashed", path=req.path, exc_info=ex)
    refuse(resp, Refusal(Code.INTERNAL_ERROR, "internal error"), req.path)
