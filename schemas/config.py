"""The shape of the configuration file (TOML), with the built-in defaults.

`services.backends.settings` fills it from file and environment and reports a wrong value with its
path. Secrets are written `env:NAME` or `file:PATH` and stay so until the moment of use. Relative
paths are relative to `data_dir`.
"""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
PROVIDERS: Final = (
    *("fal", "imagen", "openai", "openai-embeddings", "openai-videos"),
    *("replicate", "rerank", "veo"),
)
DESCRIBED: Final = "http:"  # before the file that describes a provider
TextDialect: TypeAlias = Literal["anthropic", "chat", "responses"]


class Section(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class Edge(Section, kw_only=True):
    host: Text = "127.0.0.1"
    port: Port = 8080
    workers: Positive = 2
    max_body_bytes: Positive = 32 * 1024 * 1024
    body_timeout_s: Seconds = 60.0
    ping_s: Seconds = 15.0
    event_stall_s: Seconds = 30.0  # a job's event stream of which so long nothing is taken is cut
    poll_s: Seconds = 0.25  # catalog version and lease state
    catalog_grace_s: Seconds = 5.0
    admission_wait_s: Seconds = 2.0
    # A key for which a worker wrote off more than this today (UTC) holds whole bounds only.
    writeoff_limit_nano: Annotated[int, msgspec.Meta(ge=0)] = 1_000_000_000
    graceful_timeout_s: Seconds = 30.0
    max_attempts: Positive = 3
    failover_s: Seconds = 30.0
    query_url: str = "unix:run/query.sock"
    trusted_proxies: list[str] = []  # addresses or CIDRs whose X-Forwarded-For is believed
    batch_url: str = "unix:run/batch.sock"


class Bus(Section, kw_only=True):
    kind: Literal["local", "kafka"] = "local"
    path: str = "bus.db"
    bootstrap: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1:9092"])
    partitions: Positive = 6
    replication: Positive = 1
    topic_prefix: str = ""  # put before every topic name, so that a cluster can be shared
    create_topics: bool = True
    client_id: str = "tollgate"


class Database(Section, kw_only=True):
    url: str = "sqlite:///tollgate.db"  # relative to data_dir; postgresql+psycopg://... else


class ClickHouse(Section, kw_only=True):
    dsn: str = "chdb:///clickhouse"  # path relative to data_dir; http://user:pw@host:8123/db else
    database: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")] = "tollgate"


class Outbox(Section, kw_only=True):
    path: str = "outbox"
    sync: Literal["interval", "full"] = "interval"
    sync_interval_s: Seconds = 0.05
    rotate_bytes: Positive = 10 * 1024 * 1024
    max_bytes: Positive = 8 * 1024 * 1024 * 1024
    ballast_bytes: Positive = 16 * 1024 * 1024


class Meter(Section, kw_only=True):
    relay_poll_s: Seconds = 0.05
    relay_batch: Positive = 2000
    ledger_batch: Positive = 2000
    ledger_wait_s: Seconds = 0.05
    clickhouse_batch: Positive = 5000
    clickhouse_wait_s: Seconds = 0.3
    query_socket: str = "run/query.sock"
    query_listen: str = ""  # host:port for a query role on another machine than the edge
    dead_ratio_max: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    dead_consecutive_max: Positive = 1000
    # An event further ahead of the log's clock, or older when the log took it, is set aside.
    future_max_s: Seconds = 300.0
    age_max_days: Positive = 400
    # A worker whose host did not come back for so long is declared lost.
    lost_after_s: Annotated[float, msgspec.Meta(gt=0, le=90 * 86_400)] = 86_400.0


class Batch(Section, kw_only=True):
    """Media jobs. `socket` is where the edge reaches the service; `listen` host:port for an edge on
    another machine."""

    socket: str = "run/batch.sock"
    listen: str = ""
    threads: Positive = 16  # steps of jobs at once
    http_threads: Positive = 16
    poll_s: Seconds = 0.2  # how often it looks for due jobs
    claim_s: Seconds = 30.0  # after which the jobs of a dead process are taken over
    account_concurrency: Annotated[int, msgspec.Meta(ge=0)] = 0  # running jobs; 0: unlimited
    queue_max: Positive = 10_000  # open jobs of an account
    deadline_s: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400)] = 86_400
    unknown_grace_s: Seconds = 15.0  # a create that may be under way is not looked for earlier
    gone_s: Seconds = 60.0  # an upstream that denies a job so long, three times, has lost it
    watch_s: Annotated[int, msgspec.Meta(ge=0)] = 3_600  # late results are looked for so long
    admission_wait_s: Seconds = 2.0
    callback_networks: list[str] = []  # closed networks whose receivers may be called
    fetch_networks: list[str] = []  # closed networks of which inputs and results may be fetched
    idempotency_s: Annotated[int, msgspec.Meta(ge=3600)] = 7 * 86_400
    # Batches. Where their lines are sent; empty: to the edge of this configuration, on this host.
    edge_url: str = ""
    lines_max: Positive = 50_000  # of one batch; its size is bounded by edge.max_body_bytes
    lines_at_once: Positive = 16  # in this process
    account_lines: Positive = 4  # at once of an account, and half of a key's concurrency at most
    open_batches_max: Positive = 100  # of an account
    line_timeout_s: Seconds = 900.0


class Artifacts(Section, kw_only=True):
    """What jobs made. `public_url` begins the links to them: the address of the edge as clients
    outside see it; empty: the address that the request came to. With `store = "s3"` they lie in
    `bucket` (of what speaks S3 at `endpoint_url`; empty: AWS) and `path` holds what is on its way;
    keys are secrets, empty: as boto3 finds them. `link_key`: the number of the key that signs
    links; raise it by one to change that key."""

    store: Literal["folder", "s3"] = "folder"
    path: str = "artifacts"
    bucket: str = ""
    prefix: str = ""
    endpoint_url: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = ""
    public_url: str = ""
    link_key: Positive = 1
    url_lifetime_s: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400)] = 86_400
    retention_s: Annotated[int, msgspec.Meta(ge=60)] = 7 * 86_400
    max_bytes: Positive = 2 * 1024 * 1024 * 1024
    upload_max_bytes: Positive = 512 * 1024 * 1024
    account_files_bytes: Positive = 20 * 1024 * 1024 * 1024  # of `/v1/files`, uploads are free


class Log(Section, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    path: str = "logs"


class Sim(Section, kw_only=True):
    host: Text = "127.0.0.1"
    port: Port = 0  # 0: any free port, chosen by `tollgate up`


class Channel(Section, kw_only=True):
    """Text, called by the edge, has a `dialect`; media, driven by the batch service, a `provider`:
    the name of an adapter, or `http:FILE` for one that is described in TOML."""

    name: Name
    dialect: TextDialect | Literal[""] = ""
    provider: str = ""
    base_url: str
    credential: str = ""
    models: list[str] | dict[str, str]
    groups: list[Name] = msgspec.field(default_factory=lambda: ["default"])
    priority: int = 0  # higher first
    weight: Positive = 1
    max_concurrency: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0: unlimited
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 30.0  # streams: wait for the first byte
    total_timeout_s: Seconds = 600.0  # non-streaming
    idle_timeout_s: Seconds = 300.0  # streams: silence after the first byte
    count_tokens: bool = True  # anthropic: the upstream has /v1/messages/count_tokens


class Group(Section, kw_only=True):
    name: Name
    multiplier: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 1.0
    models: list[str] = []  # empty: every priced model


class Bonus(Section, kw_only=True):
    from_usd: str  # top-ups of this much and more
    percent: str  # of the amount


class Config(Section, kw_only=True):
    data_dir: Text = "./data"
    edge: Edge = msgspec.field(default_factory=Edge)
    bus: Bus = msgspec.field(default_factory=Bus)
    database: Database = msgspec.field(default_factory=Database)
    clickhouse: ClickHouse = msgspec.field(default_factory=ClickHouse)
    outbox: Outbox = msgspec.field(default_factory=Outbox)
    meter: Meter = msgspec.field(default_factory=Meter)
    batch: Batch = msgspec.field(default_factory=Batch)
    artifacts: Artifacts = msgspec.field(default_factory=Artifacts)
    log: Log = msgspec.field(default_factory=Log)
    sim: Sim = msgspec.field(default_factory=Sim)
    channels: list[Channel] = []
    groups: list[Group] = []
    bonus: list[Bonus] = []  # empty: schemas/bonus.toml
