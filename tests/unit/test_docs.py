"""README and docs speak of what exists: commands and their options, settings, routes, files, links;
their reference tables are the program's."""

import re
from pathlib import Path
from unittest.mock import MagicMock

import click
import falcon.inspect
import msgspec
import pytest

from schemas import config
from schemas.errors import SHAPES, Code
from services.backends import price_files
from services.batch.resources import jobs
from services.cli.main import tollgate
from services.core import media
from services.core.jobs import Fault
from services.edge.app import create_routes

ROOT = Path(__file__).parent.parent.parent
FILES = [ROOT / "README.md", ROOT / "compose" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in FILES}
SECTIONS = {
    field.name: field.type
    for field in msgspec.structs.fields(config.Config)
    if isinstance(field.type, type) and issubclass(field.type, config.Section)
}
LISTS = {"channels": config.Channel, "groups": config.Group, "bonus": config.Bonus}
ROUTES = falcon.inspect.inspect_routes(create_routes(MagicMock(), MagicMock()))
NO_SETTINGS = {
    "bus.db",
    *(f"batch.{end}" for end in ("completed", "failed", "cancelled", "expired")),
}
OTHER_ROUTES = {"/v1/projects/P/locations/L/publishers/google"}  # of the simulated provider
MADE_FILES = {"compose/.env"}
page = pytest.mark.parametrize("page", PAGES)


def cells(text, first):
    """The rows of the table whose header begins with the cell `first`."""
    table = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table]


def names(text):
    return re.findall(r"`([a-z_0-9]+)`", text)


@page
def test_commands_and_options_exist(page):
    for line in PAGES[page].splitlines():
        for call in re.finditer(r"\btollgate ((?:--config \S+ )?(?:[a-z]+ ?)+)([^`#|;)]*)", line):
            command, said = tollgate, call[0]
            for word in call[1].split(" ") if not call[1].startswith("--") else call[1].split()[2:]:
                if not isinstance(command, click.Group) or not word:
                    break
                found = command.get_command(click.Context(command), word)
                assert found is not None, said
                command = found
            options = {
                name for each in command.params for name in (*each.opts, *each.secondary_opts)
            }
            assert set(re.findall(r"(?<!\S)(--[a-z][a-z0-9-]*)", said)) <= options, said


@page
def test_settings_exist(page):
    for section, field in re.findall(r"`(?:\[)?(\w+)\.(\w+)[`\s]", PAGES[page]):
        if section in SECTIONS and f"{section}.{field}" not in NO_SETTINGS:
            assert field in SECTIONS[section].__struct_fields__, f"{section}.{field}"
    for section, field in re.findall(r"\bTOLLGATE_([A-Z]+)__([A-Z_]+)", PAGES[page]):
        assert field.lower() in SECTIONS[section.lower()].__struct_fields__, field


@page
def test_files_and_links_exist(page):
    text, folder = PAGES[page], (ROOT / page).parent
    for named in re.findall(r"`((?:schemas|services|tests|scripts|docs|compose)/[\w/.-]+)`", text):
        assert named in MADE_FILES or (ROOT / named).exists(), named
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = (folder / file).resolve() if file else ROOT / page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@page
def test_routes_exist(page):
    routes = [each.path.split("/") for each in ROUTES]
    text = re.sub(
        r"\$\{?\w+\}?|\b(?:task|job|video|file)_\.\.\.|\{[\w.]+\['id'\]\}", "{}", PAGES[page]
    )
    for path in set(re.findall(r"(?<![\w.])(?:\{\})?(/(?:v1|api)/[\w/{}-]+)", text)) - OTHER_ROUTES:
        parts = path.rstrip("/").split("/")
        assert any(
            all(ours == told or "{" in ours for ours, told in zip(route, parts, strict=False))
            and len(parts) <= len(route)
            for route in routes
        ), path


def test_the_settings_are_those_of_the_program():
    text = PAGES["docs/settings.md"]
    for name, shape in {**SECTIONS, **LISTS}.items():
        title = f"`[[{name}]]`" if name in LISTS else f"`[{name}]`"
        told = {row[0].strip("`"): row[1] for row in cells(text, title)}
        assert list(told) == list(shape.__struct_fields__)
        for field in msgspec.structs.fields(shape):
            value = field.default
            if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
                value = field.default_factory()
            if value is msgspec.NODEFAULT:
                assert told[field.name] == "required"
            else:
                assert msgspec.json.decode(told[field.name].strip("`")) == value, field.name


def test_the_errors_are_those_of_the_program():
    told = {
        name: (int(status), shape.strip("`"))
        for codes, status, shape, _ in cells(PAGES["docs/api.md"], "code")
        for name in names(codes)
    }
    kept = {Code.CLIENT_GONE, Code.ABANDONED, Code.CONTEXT_LENGTH_EXCEEDED}  # told to no client
    assert told == {
        code.value: (shape.status, shape.anthropic_type)
        for code, shape in SHAPES.items()
        if code not in kept
    }


def test_the_management_calls_are_those_of_the_program():
    told = {
        (path, method)
        for methods, paths, _ in cells(PAGES["docs/accounts.md"], "methods")
        for path in re.findall(r"`([^`]+)`", paths)
        for method in methods.split(", ")
    }
    assert told == {
        (route.path, each.method)
        for route in ROUTES
        if route.path.startswith("/api/v1/") and "me" not in route.path.split("/")
        for each in route.methods
        if not each.internal and each.method != "PATCH" and route.path != "/api/v1/usage"
    }


def test_submissions_parameters_and_faults_are_those_of_the_program():
    text = PAGES["docs/media.md"]
    told = {kind: tuple(names(row)) for kind, row in cells(text, "kind")}
    assert told == {kind: shape.__struct_fields__ for kind, shape in media._SHAPES.items()}
    fields = [name for row in cells(text, "of `POST /v1/jobs`") for name in names(row[0])]
    assert sorted(fields) == sorted(jobs._Submit.__struct_fields__)
    (faults,) = re.findall(r"`error\.code` one of ([^.]+)\.", text)
    assert names(faults) == [fault.value for fault in Fault]


def test_the_fields_of_a_price_file_are_those_of_the_program():
    told = {
        name for row in cells(PAGES["docs/prices.md"], "of `[[models]]`") for name in names(row[0])
    }
    example = {
        "model",
        "tiers",
        "provider_usd_per_million",
        "provider_tiers",
        "long_context_tokens",
    }
    assert told | example == set(price_files._Row.__struct_fields__)
    assert all(name in PAGES["docs/prices.md"] for name in example)
