import os
import stat
import subprocess
import sys

import pytest

from services.backends import settings
from services.backends.settings import ConfigError


def load(tmp_path, text="", environ=None, **overrides):
    file = tmp_path / "tollgate.toml"
    file.write_text(text)
    return settings.load(file, environ or {}, **overrides)


def test_defaults_file_environment_and_overrides_in_this_order(tmp_path):
    assert settings.load(None, {}).edge.port == 8080
    text = '[edge]\nport = 1\nworkers = 3\nhost = "0.0.0.0"\n'
    config = load(
        tmp_path,
        text,
        {"TOLLGATE_EDGE__PORT": "2", "TOLLGATE_EDGE__PING_S": "1.5"},
        edge__host="::1",
    )
    assert (config.edge.port, config.edge.workers, config.edge.ping_s, config.edge.host) == (
        2,
        3,
        1.5,
        "::1",
    )
    assert load(tmp_path, text, {"TOLLGATE_EDGE__PORT": "2"}, edge__port=None).edge.port == 2


def test_the_data_folder_is_absolute_and_paths_lie_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settings.load(None, {"TOLLGATE_DATA_DIR": "there"})
    assert config.data_dir == str(tmp_path / "there")
    assert settings.under(config, "a/b") == tmp_path / "there" / "a" / "b"
    assert str(settings.under(config, "/abs")) == "/abs"
    assert settings.load(None, {"TOLLGATE_DATA_DIR": "x"}, data_dir="y").data_dir == str(
        tmp_path / "y"
    )


def test_lists_and_booleans_from_the_environment(tmp_path):
    config = load(
        tmp_path,
        "",
        {"TOLLGATE_BUS__BOOTSTRAP": "a:1, b:2", "TOLLGATE_BUS__CREATE_TOPICS": "false"},
    )
    assert config.bus.bootstrap == ["a:1", "b:2"]
    assert config.bus.create_topics is False


def test_other_variables_are_no_configuration(tmp_path):
    load(tmp_path, "", {"TOLLGATE_CRASH_AT": "x", "PATH": "/bin", "OTHER__THING": "1"})


CHANNEL = '[[channels]]\nname = "c"\ndialect = "chat"\nbase_url = "http://h"\nmodels = ["m"]\n'
MEDIA = '[[channels]]\nname = "m"\nprovider = "{}"\nbase_url = "http://h"\nmodels = ["m"]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[edge]\nport = 'x'", "edge.port: expected 'int', got 'str'"),
        ("[edge]\nport = 99999", "edge.port: expected 'int' <= 65535"),
        ("[edge]\ncolour = 1", "edge: object contains unknown field 'colour'"),
        ("[nothing]", "the file: object contains unknown field 'nothing'"),
        ("[edge\n", "is not TOML"),
        (CHANNEL.replace('"chat"', '"smtp"'), r"channels\[0\].dialect: invalid enum value 'smtp'"),
        (CHANNEL.replace("http://h", "h"), r"channels\[0\].base_url: must start with http"),
        (CHANNEL.replace('["m"]', "[]"), r"channels\[0\].models: a channel serves"),
        (CHANNEL + CHANNEL, r"channels\[1\].name: `c` is used twice"),
        (CHANNEL + 'credential = "sk-clear"', r"channels\[0\].credential: write env:NAME"),
        ('[[groups]]\nname = "g"\n[[groups]]\nname = "g"', r"groups\[1\].name: `g` is used twice"),
        ('[database]\nurl = "mysql://x"', "database.url: write sqlite"),
        (
            "[edge]\ntrusted_proxies = ['::1', 'x']",
            r"edge.trusted_proxies\[1\]: 'x' is not an addr",
        ),
        ("[batch]\nfetch_networks = ['x']", r"batch.fetch_networks\[0\]: 'x' is not an addr"),
        ("[batch]\ncallback_networks = ['x']", r"batch.callback_networks\[0\]: 'x' is not an addr"),
        ('[clickhouse]\ndsn = "x"', "clickhouse.dsn: write chdb"),
        ('[clickhouse]\ndsn = "chdb://folder"', "clickhouse.dsn: write chdb"),
        ('[clickhouse]\ndsn = "http://u:sk-clear@h:x"', "clickhouse.dsn: write chdb"),
        ('[database]\nurl = "sqlite:///"', "database.url: write sqlite"),
        (
            '[database]\nurl = "postgresql+psycopg://u:secret@h:port/x"',
            "database.url: write sqlite",
        ),
        ('[bus]\nkind = "kafka"\nbootstrap = []', "bus.bootstrap: name at least one broker"),
        ('[edge]\nquery_url = "here"', "edge.query_url: write unix:PATH or http"),
        ('[bus]\nbootstrap = ["here:9092", "x:y"]', r"bus.bootstrap\[1\]: write host:port"),
        ('[meter]\nquery_listen = "9000"', "meter.query_listen: write host:port"),
        ('[artifacts]\npublic_url = "gateway.example"', "artifacts.public_url: must start"),
        ('[edge]\nhost = ""', "edge.host: expected 'str' of length >= 1"),
        ('[clickhouse]\ndatabase = "a b"', "clickhouse.database: expected 'str' matching regex"),
        ('[[bonus]]\nfrom_usd = "ten"\npercent = "3"', r"bonus\[0\].from_usd: not an amount"),
        (MEDIA.format("nobody"), r"channels\[0\].provider: one of fal, imagen, .* or http:FILE"),
        (MEDIA.format("http:/none.toml"), r"channels\[0\].provider: there is no file /none.toml"),
        ('data_dir = ""', "data_dir: expected 'str' of length >= 1"),
        (CHANNEL.replace("http://h", "http://h:99999"), r"channels\[0\].base_url: .*Port out of"),
        (CHANNEL.replace("http://h", "http:///v1"), r"channels\[0\].base_url: names no host"),
        (CHANNEL.replace("http://h", "http://h/a b"), r"channels\[0\].base_url: has a space"),
        (CHANNEL.replace("http://h", "http://u:p@h"), r"channels\[0\].base_url: has more than"),
        (CHANNEL.replace("http://h", "http://h?x=1"), r"channels\[0\].base_url: has more than"),
        (CHANNEL.replace("http://h", "http://[::1"), r"channels\[0\].base_url: is no URL"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_path(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "sk-clear" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TOLLGATE_EDGE__PORT", "http", r"TOLLGATE_EDGE__PORT \(edge.port\): expected 'int'"),
        ("TOLLGATE_EDGE__COLOUR", "1", "no `edge.colour`"),
        ("TOLLGATE_NOTHING__X", "1", "no section `nothing`"),
        ("TOLLGATE_CHANNELS__X", "1", "no section `channels`"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path, name, value, says):
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, "", {name: value})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        settings.load(tmp_path / "none.toml", {})


def test_secrets_are_read_at_the_moment_of_use(tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET", "s3cret")
    (tmp_path / "f").write_text(" from file\n")
    assert settings.resolve_secret("env:A_SECRET") == "s3cret"
    assert settings.resolve_secret(f"file:{tmp_path}/f") == "from file"
    assert settings.resolve_secret("") == ""
    (tmp_path / "two").write_text("sk-x\nsk-y\n")
    (tmp_path / "empty").write_text("\n")
    for wrong, says in [
        (f"file:{tmp_path}/two", "two is not one line of ASCII"),
        (f"file:{tmp_path}/empty", "empty is empty"),
        ("env:NONE", "NONE is not set"),
        ("file:/none", "cannot read"),
        ("sk-x", "clear text"),
    ]:
        with pytest.raises(ConfigError, match=says) as caught:
            settings.resolve_secret(wrong)
        assert "sk-x" not in str(caught.value)


def test_the_secret_of_a_data_folder_is_made_once_and_private(tmp_path):
    first = settings.load_secret(tmp_path / "d")
    assert len(first) == 32
    assert settings.load_secret(tmp_path / "d") == first
    assert stat.S_IMODE(os.stat(tmp_path / "d" / "secret.key").st_mode) == 0o600
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["secret.key"]
    (tmp_path / "d" / "secret.key").write_text("short")
    with pytest.raises(ConfigError, match=r"cannot read .*secret\.key"):
        settings.load_secret(tmp_path / "d")


def test_processes_that_start_together_agree_on_the_secret(tmp_path):
    code = (
        "from services.backends.settings import load_secret\n"
        f"print(load_secret({str(tmp_path)!r}).hex())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)
    ]
    assert len({process.communicate()[0] for process in started}) == 1
