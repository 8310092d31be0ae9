-- One row per upstream call of a request, numbered from 1 in the order they were made.
CREATE TABLE IF NOT EXISTS attempts
(
    event_id             String CODEC(ZSTD(1)),
    request_id           String CODEC(ZSTD(1)),
    attempt              UInt16,
    account_id           LowCardinality(String),
    key_id               LowCardinality(String),
    occurred_at          DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    dialect              LowCardinality(String),
    model                LowCardinality(String),
    channel              LowCardinality(String),
    status               UInt16,
    code                 LowCardinality(String),
    upstream_request_id  String CODEC(ZSTD(1)),
    started_at           DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    total_ms             UInt64,
    log_topic            LowCardinality(String),
    log_partition        UInt32,
    log_offset           UInt64,
    log_time             DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    INDEX by_request request_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(log_offset)
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (account_id, occurred_at, event_id, attempt)
SETTINGS non_replicated_deduplication_window = 10000;
