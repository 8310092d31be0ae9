-- What the rows of jobs tell besides, and jobs as people ask for them: rows of `requests`, so there
-- is nothing more to fill, to rebuild or to count twice.
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS job_id String CODEC(ZSTD(1)) AFTER upstream_request_id,
    ADD COLUMN IF NOT EXISTS job_kind LowCardinality(String) AFTER job_id,
    ADD COLUMN IF NOT EXISTS job_state LowCardinality(String) AFTER job_kind,
    ADD COLUMN IF NOT EXISTS job_error LowCardinality(String) AFTER job_state;

CREATE OR REPLACE VIEW usage AS
SELECT
    request_id, occurred_at, account_id, key_id, source, dialect, path,
    asked_model, model, upstream_model, channel, `group`, stream,
    session_id, agent_id, client, tags,
    status, outcome, billed, error_code, error_stage, error_message,
    input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
    reasoning_tokens, units,
    cost_nano, toDecimal128(cost_nano, 9) / 1000000000 AS cost_usd,
    written_off_nano, toDecimal128(written_off_nano, 9) / 1000000000 AS written_off_usd,
    provider_cost_nano, toDecimal128(provider_cost_nano, 9) / 1000000000 AS provider_cost_usd,
    hold_nano, price_version, multiplier_ppm, tier, estimated,
    ttfb_ms, total_ms, attempts, upstream_request_id, job_id,
    event_id, incarnation, seq, lease_id, lease_seq,
    log_topic, log_partition, log_offset, log_time
FROM requests FINAL;

CREATE OR REPLACE VIEW jobs AS
SELECT
    job_id, job_kind AS kind, job_state AS state, job_error AS error, error_message,
    occurred_at, occurred_at - toIntervalMillisecond(total_ms) AS created_at,
    ttfb_ms AS queued_ms, total_ms,
    account_id, key_id, path, asked_model, model, upstream_model, channel, `group`,
    input_tokens, units,
    cost_nano, toDecimal128(cost_nano, 9) / 1000000000 AS cost_usd,
    provider_cost_nano, toDecimal128(provider_cost_nano, 9) / 1000000000 AS provider_cost_usd,
    hold_nano, price_version, multiplier_ppm, attempts, upstream_request_id,
    request_id, event_id
FROM requests FINAL
WHERE job_id != '';
