"""What a step of a job works with, made once per process by `bootstrap`."""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.config import Config
from services.backends.clock import Clock
from services.backends.http.fetch import Fetcher
from services.backends.objects.port import ObjectStore
from services.backends.sql.job_claims import JobClaims
from services.backends.sql.job_ends import JobEnds
from services.backends.sql.jobs import Jobs
from services.backends.sql.uploads import Uploads
from services.batch.lanes import Lanes
from services.batch.providers.port import Http, Provider
from services.batch.typical import Typical
from services.batch.view import Views
from services.core.routing import Cooldowns


class Parts(NamedTuple):
    config: Config
    clock: Clock
    views: Views
    jobs: Jobs
    claims: JobClaims
    ends: JobEnds
    uploads: Uploads
    store: ObjectStore
    http: Http
    fetcher: Fetcher
    providers: Mapping[str, Provider]
    cooldowns: Cooldowns
    typical: Typical
    lanes: Lanes
