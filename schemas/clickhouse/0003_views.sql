-- What people query; docs/sql.md gives the unit and meaning of every column.
--
-- The roll-ups are views over FINAL and not tables filled at insert time: a view fed by inserts
-- counts a resent event twice although the table below drops it, and a table rebuilt per hour is
-- behind for late events. A view is exact at every moment and there is nothing to rebuild.
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
    ttfb_ms, total_ms, attempts, upstream_request_id,
    event_id, incarnation, seq, lease_id, lease_seq,
    log_topic, log_partition, log_offset, log_time
FROM requests FINAL;

CREATE OR REPLACE VIEW usage_attempts AS
SELECT
    request_id, attempt, occurred_at, account_id, key_id, dialect, model, channel,
    status, code, upstream_request_id, started_at, total_ms, event_id
FROM attempts FINAL;

CREATE OR REPLACE VIEW usage_hourly AS
SELECT
    toStartOfHour(occurred_at) AS hour, account_id, key_id, model, channel, outcome, error_code,
    count() AS requests,
    countIf(billed) AS billed_requests,
    sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens,
    sum(cache_read_tokens) AS cache_read_tokens,
    sum(cache_write_5m_tokens) AS cache_write_5m_tokens,
    sum(cache_write_1h_tokens) AS cache_write_1h_tokens,
    sum(reasoning_tokens) AS reasoning_tokens,
    sum(toInt128(requests.cost_nano)) AS cost_nano,
    toDecimal128(sum(toInt128(requests.cost_nano)), 9) / 1000000000 AS cost_usd,
    sum(toInt128(requests.written_off_nano)) AS written_off_nano,
    sum(toInt128(requests.provider_cost_nano)) AS provider_cost_nano,
    avg(ttfb_ms) AS ttfb_ms_avg,
    avg(total_ms) AS total_ms_avg
FROM requests FINAL
GROUP BY hour, account_id, key_id, model, channel, outcome, error_code;

CREATE OR REPLACE VIEW usage_daily AS
SELECT
    toDate(occurred_at, 'UTC') AS day, account_id, key_id, model, channel, outcome, error_code,
    count() AS requests,
    countIf(billed) AS billed_requests,
    sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens,
    sum(cache_read_tokens) AS cache_read_tokens,
    sum(cache_write_5m_tokens) AS cache_write_5m_tokens,
    sum(cache_write_1h_tokens) AS cache_write_1h_tokens,
    sum(reasoning_tokens) AS reasoning_tokens,
    sum(toInt128(requests.cost_nano)) AS cost_nano,
    toDecimal128(sum(toInt128(requests.cost_nano)), 9) / 1000000000 AS cost_usd,
    sum(toInt128(requests.written_off_nano)) AS written_off_nano,
    sum(toInt128(requests.provider_cost_nano)) AS provider_cost_nano,
    avg(ttfb_ms) AS ttfb_ms_avg,
    avg(total_ms) AS total_ms_avg
FROM requests FINAL
GROUP BY day, account_id, key_id, model, channel, outcome, error_code;
