"""The routes of jobs at the public door; all but streams and waiting is the batch service's."""

import falcon

from services.edge.jobs import sync
from services.edge.jobs.forward import Forwarder, HookRoute, JobRoute, LinkRoute
from services.edge.jobs.stream import JobEventsRoute, StreamTokenRoute, TaskStreamRoute
from services.edge.worker import Worker


def add_job_routes(app: falcon.App, worker: Worker) -> None:
    """Adds them to the edge's app."""
    forwarder = Forwarder(worker)
    submit = JobRoute(forwarder, "post", counted=True, submits=True)
    app.add_route("/v1/tasks/submit", submit)
    app.add_route("/v1/tasks/query", JobRoute(forwarder, "get", "post"))
    cancel = JobRoute(forwarder, "post")
    app.add_route("/v1/tasks/cancel", cancel)
    app.add_route("/v1/tasks/cancel/{task_id}", cancel)
    app.add_route("/v1/tasks/stream/{task_id}", TaskStreamRoute(forwarder))
    jobs = JobRoute(forwarder, "get", "post", counted=True, submits=True, waits=("POST",))
    app.add_route("/v1/jobs", jobs)
    app.add_route("/v1/jobs/query", JobRoute(forwarder, "post"))
    app.add_route("/v1/jobs/estimate", JobRoute(forwarder, "post"))
    app.add_route("/v1/jobs/{job_id}", JobRoute(forwarder, "get", "delete", waits=("GET",)))
    app.add_route("/v1/jobs/{job_id}/cancel", JobRoute(forwarder, "post"))
    app.add_route("/v1/jobs/{job_id}/events", JobEventsRoute(forwarder))
    app.add_route("/v1/jobs/{job_id}/stream_token", StreamTokenRoute(forwarder))
    app.add_route("/v1/jobs/{job_id}/attempts", JobRoute(forwarder, "get"))
    app.add_route("/v1/jobs/{job_id}/redrive", submit)
    app.add_route("/v1/jobs/{job_id}/deliveries", JobRoute(forwarder, "get"))
    app.add_route("/v1/webhooks/secret", JobRoute(forwarder, "get"))
    app.add_route("/v1/webhooks/endpoints", JobRoute(forwarder, "get", "post"))
    hook = "/v1/webhooks/endpoints/{endpoint_id}"
    app.add_route(hook, JobRoute(forwarder, "get", "patch", "delete"))
    app.add_route(hook + "/rotate", JobRoute(forwarder, "post"))
    app.add_route(hook + "/test", JobRoute(forwarder, "post", counted=True))
    app.add_route(hook + "/deliveries", JobRoute(forwarder, "get"))
    again = JobRoute(forwarder, "post")
    app.add_route("/v1/webhooks/deliveries/{delivery_id}/redeliver", again)
    largest = worker.config.edge.max_body_bytes
    app.add_route("/v1/files", JobRoute(forwarder, "get", "post", body_max=largest))
    app.add_route("/v1/files/{file_id}", JobRoute(forwarder, "get", "delete"))
    app.add_route("/v1/files/{file_id}/content", JobRoute(forwarder, "get"))
    app.add_route("/v1/batches", JobRoute(forwarder, "get", "post", counted=True))
    app.add_route("/v1/batches/{batch_id}", JobRoute(forwarder, "get"))
    app.add_route("/v1/batches/{batch_id}/cancel", JobRoute(forwarder, "post"))
    for path, methods in (
        ("", ("get", "post")),
        ("/{batch_id}", ("get", "delete")),
        ("/{batch_id}/cancel", ("post",)),
        ("/{batch_id}/results", ("get",)),
    ):
        route = JobRoute(
            forwarder, *methods, counted=not path, body_max=largest, dialect="anthropic"
        )
        app.add_route(f"/v1/messages/batches{path}", route)
    app.add_route("/v1/artifacts/{artifact_id}", JobRoute(forwarder, "get"))
    app.add_route("/v1/artifacts/{artifact_id}/url", JobRoute(forwarder, "post"))
    app.add_route("/v1/artifacts/{artifact_id}/content", JobRoute(forwarder, "get", "head"))
    app.add_route("/a/{artifact_id}", LinkRoute(forwarder))
    app.add_route("/hooks/{provider}", HookRoute(forwarder))
    film = JobRoute(forwarder, "get", "post", counted=True, submits=True, body_max=largest)
    app.add_route("/v1/videos", film)
    app.add_route("/v1/videos/{video_id}", JobRoute(forwarder, "get", "delete"))
    app.add_route("/v1/videos/{video_id}/content", JobRoute(forwarder, "get"))
    app.add_route("/v1/videos/generations", submit)
    app.add_route("/v1/videos/tasks/{task_id}", JobRoute(forwarder, "get"))
    for path, show in (
        ("/v1/images/edits", sync.show_images),
        ("/v1/audio/transcriptions", sync.show_content),
    ):
        app.add_route(path, sync.FormRoute(forwarder, show))
    for path, kind, to_input, show in (
        ("/v1/images/generations", "image", sync.image_input, sync.show_images),
        ("/v1/audio/speech", "speech", sync.speech_input, sync.show_content),
        ("/v1/embeddings", "embedding", sync.embedding_input, sync.show_content),
        ("/v1/rerank", "rerank", sync.rerank_input, sync.show_content),
    ):
        app.add_route(path, sync.SyncRoute(forwarder, kind, to_input, show))
