"""Builds the batch service. The only file of it that names concrete adapters."""

import tempfile
from pathlib import Path
from typing import Final

from schemas.config import DESCRIBED, Config
from services.backends import settings
from services.backends.clock import SystemClock
from services.backends.heartbeat import Heartbeat
from services.backends.http.client import HttpClient
from services.backends.http.fetch import Fetcher
from services.backends.http.private_server import PrivateServer
from services.backends.lifecycle import Loop
from services.backends.line_ticket import tickets
from services.backends.objects.folder import FolderStore
from services.backends.objects.port import ObjectStore
from services.backends.settings import under
from services.backends.sql import revision
from services.backends.sql.batch_claims import BatchClaims
from services.backends.sql.batch_lines import BatchLines
from services.backends.sql.batches import Batches
from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog
from services.backends.sql.deliveries import Deliveries
from services.backends.sql.endpoints import Endpoints
from services.backends.sql.engine import open_engine
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.housekeeping import Housekeeping
from services.backends.sql.incarnations import BATCH
from services.backends.sql.job_claims import JobClaims
from services.backends.sql.job_ends import JobEnds
from services.backends.sql.jobs import INCARNATION, Jobs
from services.backends.sql.uploads import Uploads
from services.batch.app import create_app
from services.batch.batch_engine import BatchEngine
from services.batch.batch_send import Sender
from services.batch.callbacks import Callbacks, CallbackSecrets
from services.batch.changes import ChangeFeed
from services.batch.engine import JobEngine
from services.batch.lanes import Lanes
from services.batch.links import LinkSigner
from services.batch.parts import Parts
from services.batch.providers.fal import Fal
from services.batch.providers.generic import Generic
from services.batch.providers.imagen import Imagen
from services.batch.providers.openai import OpenAI
from services.batch.providers.openai_embeddings import OpenAIEmbeddings
from services.batch.providers.openai_videos import OpenAIVideos
from services.batch.providers.port import Provider
from services.batch.providers.replicate import Replicate
from services.batch.providers.rerank import Rerank
from services.batch.providers.veo import Veo
from services.batch.receivers import Receivers
from services.batch.resources.base import Service
from services.batch.resources.batches import Desk
from services.batch.sweeps import Sweeps
from services.batch.typical import Typical
from services.batch.view import Views
from services.core.netguard import Guard
from services.core.routing import Cooldowns

_BUILT_IN: Final[tuple[type[Provider], ...]] = (
    OpenAI,
    OpenAIVideos,
    OpenAIEmbeddings,
    Rerank,
    Veo,
    Imagen,
    Fal,
)


class Batch:
    """The loops of the service by name, and what they share."""

    def __init__(self, config: Config) -> None:
        """Raises SchemaTooOld, DatabaseUnavailable."""
        clock = SystemClock()
        self._engine = open_engine(config.database.url, under(config, "."))
        revision.require(self._engine)
        secret = settings.load_secret(config.data_dir)
        budgets = Budgets(self._engine)
        budgets.open_incarnation(INCARNATION, BATCH, "-")
        writes = GroupedWrites(self._engine)
        parts = Parts(
            config=config,
            clock=clock,
            views=Views(Catalog(self._engine, secret), clock),
            jobs=Jobs(writes, budgets),
            claims=JobClaims(writes, config.batch.claim_s),
            ends=JobEnds(writes),
            uploads=Uploads(self._engine),
            store=object_store(config),
            http=HttpClient(),
            fetcher=Fetcher(Guard(config.batch.fetch_networks)),
            providers=providers(config),
            cooldowns=Cooldowns(clock.monotonic_s),
            typical=Typical(),
            lanes=Lanes(config.batch.threads, clock.monotonic_s),
        )
        self._beat = Heartbeat(config, "batch")
        engine = JobEngine(parts, self._beat.beat)
        feed = ChangeFeed(parts.jobs)
        signer = LinkSigner(secret, clock, config.artifacts)
        service = Service(parts, engine, signer, secret)
        deliveries, secrets = Deliveries(self._engine), CallbackSecrets(secret)
        endpoints = Endpoints(self._engine)
        receivers = Receivers(Fetcher(Guard(config.batch.callback_networks)), clock)
        batches = Batches(self._engine)
        callbacks = Callbacks(parts, deliveries, endpoints, batches, receivers, signer, secrets)
        claims = BatchClaims(self._engine, config.batch.claim_s)
        lines = BatchLines(self._engine)
        sender = Sender(parts, lines, HttpClient(), tickets(secret), edge_url(config))
        driver = BatchEngine(parts, claims, lines, sender)
        desk = Desk(service, batches, driver)
        server = PrivateServer(
            create_app(service, feed, deliveries, endpoints, secrets, receivers, desk),
            under(config, config.batch.socket),
            config.batch.listen,
            threads=config.batch.http_threads,
            setting="batch.",
        )
        self.loops: dict[str, Loop] = {
            "jobs": engine.run,
            "claims": engine.beat,
            "batches": driver.run,
            "batch_claims": driver.beat,
            "changes": feed.run,
            "callbacks": callbacks.run,
            "sweeps": Sweeps(parts, Housekeeping(self._engine)).run,
            "http": server.run,
        }

    def close(self) -> None:
        """After the loops have ended."""
        self._beat.stop()
        self._engine.dispose()


def object_store(config: Config) -> ObjectStore:
    """Where artifacts lie. Raises ConfigError for a secret that is not there."""
    artifacts = config.artifacts
    folder = under(config, artifacts.path)
    if artifacts.store == "folder":
        return FolderStore(folder)
    from services.backends.objects.s3 import S3Store  # a large library, for those who use it

    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)  # pieces that arrive faster than their readers take them
    return S3Store(
        folder,
        bucket=artifacts.bucket,
        prefix=artifacts.prefix,
        endpoint_url=artifacts.endpoint_url,
        region=artifacts.region,
        access_key=settings.resolve_secret(artifacts.access_key),
        secret_key=settings.resolve_secret(artifacts.secret_key),
    )


def edge_url(config: Config) -> str:
    """Where the lines of batches are sent."""
    if config.batch.edge_url:
        return config.batch.edge_url.rstrip("/")
    return f"http://{settings.host_in_url(config.edge.host)}:{config.edge.port}"


def providers(config: Config) -> dict[str, Provider]:
    """The adapters by name: the built-in ones, and those that channels describe in TOML."""
    found: dict[str, Provider] = {}
    for make in _BUILT_IN:
        provider = make()
        found[provider.name] = provider
    public = config.artifacts.public_url.rstrip("/")
    found[Replicate.name] = Replicate(f"{public}/hooks/replicate" if public else "")
    for channel in config.channels:
        if channel.provider.startswith(DESCRIBED):
            path = Path(channel.provider.removeprefix(DESCRIBED))
            found[channel.provider] = Generic(path)
    return found
