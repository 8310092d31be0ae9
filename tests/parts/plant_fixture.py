"""The `plant` fixture: `pytest_plugins = ["tests.parts.clickhouse_fixtures",
"tests.parts.plant_fixture"]`."""

import pytest

from schemas import config as schema
from services.backends.settings import load
from tests.parts.plant import EMBEDDED, SERVED, Plant
from tests.parts.postgres import drop_database, postgres_url
from tests.parts.sqlite import migrated_url


def _config(request, tmp_path, database_name) -> schema.Config:
    common = {"data_dir": str(tmp_path), "clickhouse__database": database_name}
    if request.param == "embedded":
        folder = request.getfixturevalue("chdb_folder")
        url = migrated_url(tmp_path)
        dsn = f"chdb:///{folder}/engine"
        return load(None, {}, database__url=url, clickhouse__dsn=dsn, bus__partitions=3, **common)
    broker = request.getfixturevalue("kafka_broker")
    front = request.getfixturevalue("shared_front")
    bus = broker.bus_config()
    return load(
        None,
        {},
        database__url=postgres_url(),
        clickhouse__dsn=front.url,
        bus__kind="kafka",
        bus__bootstrap=bus.bootstrap,
        bus__topic_prefix=bus.topic_prefix,
        bus__partitions=3,
        **common,
    )


@pytest.fixture(params=[EMBEDDED, SERVED])
def plant(request, tmp_path, database_name):
    config = _config(request, tmp_path, database_name)
    made = Plant(config)
    if request.param == "embedded":
        made.keep_engine()
    yield made
    made.close()
    if request.param == "served":
        drop_database(config.database.url)
