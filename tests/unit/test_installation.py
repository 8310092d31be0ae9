import subprocess

import msgspec
import pytest

from schemas.config import Channel, Config
from services.backends import price_files, settings
from services.cli import installation
from services.cli.demo import Demo, base_url, examples


def config_of(tmp_path, **overrides):
    return settings.load(None, {}, data_dir=str(tmp_path), **overrides)


def channel(url, **more):
    return Channel(name="c", dialect="chat", base_url=url, models=["gpt-4o"], **more)


def test_without_channels_the_simulated_provider_serves_every_priced_model(tmp_path):
    config = config_of(tmp_path, sim__port=9000)
    made = installation.channels(config)
    assert {each.dialect for each in made} == {"anthropic", "chat", "responses", ""}
    assert all(bool(each.dialect) != bool(each.provider) for each in made)
    assert {each.base_url.rpartition("/v1")[0] or each.base_url for each in made} == {
        "http://127.0.0.1:9000"
    }
    assert {name for each in made for name in each.models} == set(price_files.load())
    assert installation.wants_sim(config)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:9000", True),
        ("http://127.0.0.1:9000/v1", True),
        ("http://127.0.0.1:90001", False),
        ("https://api.openai.com/v1", False),
    ],
)
def test_with_channels_the_provider_runs_only_when_one_points_at_it(tmp_path, url, wanted):
    config = config_of(tmp_path, sim__port=9000)
    config.channels = [channel(url)]
    assert installation.channels(config) == config.channels
    assert installation.wants_sim(config) is wanted


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("fd00::1", "http://[fd00::1]:8080"),
        ("gateway.local", "http://gateway.local:8080"),
    ],
)
def test_the_address_that_clients_use(tmp_path, host, url):
    assert base_url(config_of(tmp_path, edge__host=host)) == url


def test_the_mark_follows_what_is_applied(tmp_path, monkeypatch):
    monkeypatch.setenv("UPSTREAM", "one")
    config = config_of(tmp_path)
    config.channels = [channel("http://h", credential="env:UPSTREAM")]
    marks = {installation.mark_of(config)}
    assert installation.mark_of(config) in marks
    monkeypatch.setenv("UPSTREAM", "two")
    marks.add(installation.mark_of(config))
    config.channels[0].priority = 5
    marks.add(installation.mark_of(config))
    monkeypatch.setattr(price_files, "built_in_folder", lambda: tmp_path)
    marks.add(installation.mark_of(config))
    assert len(marks) == 4
    config.edge.port = 1  # nothing of the database depends on it
    assert installation.mark_of(config) in marks


def test_applied_needs_the_same_mark_and_the_database(tmp_path):
    config, other = config_of(tmp_path), config_of(tmp_path)
    other.channels = [channel("http://h")]
    installation.set_applied(config)
    assert not installation.is_applied(config)
    (tmp_path / "tollgate.db").touch()
    assert installation.is_applied(config)
    assert not installation.is_applied(other)
    installation.set_applied(other)  # whoever does it: the database holds these channels now
    assert not installation.is_applied(config)
    assert installation.is_applied(other)
    other.database.url = "postgresql+psycopg://h/db"
    assert not installation.is_applied(other)


def test_commands_beside_up_know_where_the_simulated_provider_is(tmp_path):
    config, beside = config_of(tmp_path, sim__port=9000), config_of(tmp_path)
    (tmp_path / "run").mkdir()
    assert installation.sim_url(beside) == "http://127.0.0.1:0"  # it never ran
    installation.remember_sim_port(config, 9000)
    assert installation.channels(beside) == installation.channels(config)
    assert installation.mark_of(beside) == installation.mark_of(config)


def test_the_printed_provider_file_is_a_valid_configuration(tmp_path):
    text = examples(Demo("http://127.0.0.1:8080", "sk-toll-x"), [], simulated=True)
    line = next(each.strip() for each in text.splitlines() if each.strip().startswith("printf"))
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    config = settings.load(tmp_path / "tollgate.toml", {})
    assert [each.name for each in config.channels] == ["anthropic"]
    assert set(config.channels[0].models) <= set(price_files.load())
    assert not installation.wants_sim(config)


def test_every_command_of_the_examples_is_shell(tmp_path):
    text = examples(Demo("http://h:1", "sk-toll-x"), ["--data-dir", "/a b"], simulated=True)
    for line in text.splitlines():
        if line.startswith("    "):
            subprocess.run(["bash", "-n", "-c", line], check=True)
    assert "--data-dir '/a b'" in text
    assert "sim-cut" not in examples(Demo("http://h:1", "k"), [], simulated=False)


def test_the_defaults_are_the_documented_ones():
    assert msgspec.to_builtins(Config())["edge"]["port"] == 8080
