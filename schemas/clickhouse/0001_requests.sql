-- One row per terminal event (usage or error), billed and failed alike. Every column follows from
-- the event and its place in the log, so a row can be made again and is the same row.
--
-- The sort key starts with what every question has (whose, when) and ends with the event, so copies
-- of one event meet under it: ReplacingMergeTree then keeps the one with the highest offset. That
-- is the belt. The braces are the tokens of the inserts and the sink's look-up of resent events.
CREATE TABLE IF NOT EXISTS requests
(
    event_id               String CODEC(ZSTD(1)),
    request_id             String CODEC(ZSTD(1)),
    kind                   LowCardinality(String),
    account_id             LowCardinality(String),
    key_id                 LowCardinality(String),
    occurred_at            DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    source                 LowCardinality(String),
    incarnation            LowCardinality(String),
    seq                    UInt64,
    lease_id               String CODEC(ZSTD(1)),
    lease_seq              UInt64,
    dialect                LowCardinality(String),
    path                   LowCardinality(String),
    asked_model            LowCardinality(String),
    model                  LowCardinality(String),
    upstream_model         LowCardinality(String),
    channel                LowCardinality(String),
    `group`                LowCardinality(String),
    price_version          LowCardinality(String),
    multiplier_ppm         UInt64,
    tier                   LowCardinality(String),
    stream                 Bool,
    session_id             String CODEC(ZSTD(1)),
    agent_id               String CODEC(ZSTD(1)),
    client                 LowCardinality(String),
    tags                   Map(LowCardinality(String), String),
    status                 UInt16,
    outcome                LowCardinality(String),
    billed                 Bool,
    error_code             LowCardinality(String),
    error_stage            LowCardinality(String),
    error_message          String CODEC(ZSTD(1)),
    input_tokens           UInt64,
    output_tokens          UInt64,
    cache_read_tokens      UInt64,
    cache_write_5m_tokens  UInt64,
    cache_write_1h_tokens  UInt64,
    reasoning_tokens       UInt64,
    units                  Map(LowCardinality(String), UInt64),
    hold_nano              Int64,
    cost_nano              Int64,
    written_off_nano       Int64,
    provider_cost_nano     Int64,
    estimated              Bool,
    ttfb_ms                UInt64,
    total_ms               UInt64,
    attempts               UInt16,
    upstream_request_id    String CODEC(ZSTD(1)),
    log_topic              LowCardinality(String),
    log_partition          UInt32,
    log_offset             UInt64,
    log_time               DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    INDEX by_request request_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_offset log_offset TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(log_offset)
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (account_id, occurred_at, event_id)
SETTINGS non_replicated_deduplication_window = 10000;
