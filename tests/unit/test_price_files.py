import pytest

from services.backends import price_files
from services.backends.price_files import REQUIRED, PriceFileError
from services.core.routing import normalized

GOOD = """
vendor = "v"
[[models]]
model = "m"
context_window = 10
max_output_tokens = 5
[models.usd_per_million]
input = "1"
cache_read = "0.1"
cache_write_5m = "1.25"
cache_write_1h = "2"
output = "5"
"""

# USD per 1M: input, cache write, cache read, output, as the public price list prints them.
PRICE_LIST = {
    "claude-haiku-4-5": ("1.00", "1.25", "0.10", "5.00"),
    "claude-sonnet-4-5": ("3.00", "3.75", "0.30", "15.00"),
    "claude-sonnet-4-6": ("3.00", "3.75", "0.30", "15.00"),
    "claude-opus-4-5": ("15.00", "18.75", "1.50", "75.00"),
    "claude-opus-4-6": ("15.00", "18.75", "1.50", "75.00"),
    "claude-opus-4-7": ("5.00", "6.25", "0.50", "25.00"),
    "gpt-4o-mini": ("0.15", "0.15", "0.075", "0.60"),
    "gpt-4o": ("2.50", "2.50", "1.25", "10.00"),
    "gpt-5-nano": ("0.05", "0.05", "0.025", "0.40"),
    "gpt-5-4-nano": ("0.05", "0.05", "0.025", "0.40"),
    "gpt-5-mini": ("0.25", "0.25", "0.125", "2.00"),
    "gpt-5-4-mini": ("0.25", "0.25", "0.125", "2.00"),
    "gpt-5-2": ("1.25", "1.25", "0.625", "10.00"),
    "gpt-5-4": ("1.25", "1.25", "0.625", "10.00"),
    "gpt-5-4-pro": ("3.00", "3.00", "1.50", "15.00"),
    "gpt-5-5-instant": ("2.50", "2.50", "1.25", "20.00"),
    "gpt-5-5": ("5.00", "5.00", "0.50", "30.00"),
    "gemini-3-flash": ("0.30", "0.30", "0.075", "2.50"),
    "gemini-3-1-pro": ("3.50", "3.50", "0.875", "25.00"),
    "deepseek-v3-2": ("0.27", "0.27", "0.027", "1.10"),
    "deepseek-v4-flash": ("0.20", "0.20", "0.02", "0.80"),
    "deepseek-v4-pro": ("0.55", "0.55", "0.055", "2.20"),
    "kimi-k2-5": ("0.60", "0.60", "0.06", "2.50"),
    "kimi-k2-6": ("0.60", "0.60", "0.06", "2.50"),
    "glm-5": ("0.50", "0.50", "0.05", "1.50"),
    "glm-5-1": ("0.50", "0.50", "0.05", "1.50"),
    "minimax-m2.5": ("0.40", "0.40", "0.04", "1.20"),
    "minimax-m2.7": ("0.40", "0.40", "0.04", "1.20"),
}


def load(tmp_path, text):
    file = tmp_path / "v.toml"
    file.write_text(text)
    return price_files.load(file)


@pytest.mark.parametrize("model", sorted(PRICE_LIST))
def test_the_built_in_data_holds_the_price_list_exactly(model):
    names = ("input", "cache_write_5m", "cache_read", "output")
    expected = {
        name: price_files.usd_per_million(text)
        for name, text in zip(names, PRICE_LIST[model], strict=True)
    }
    classes = price_files.load()[model].classes
    assert {name: classes[name] for name in names} == expected


def test_every_built_in_model_is_priced_whole():
    models = {n: m for n, m in price_files.load().items() if m.kind == "text"}
    for model in models.values():
        assert set(REQUIRED) <= set(model.classes), model.model
        assert 0 < model.classes["cache_read"] <= model.classes["input"] <= model.classes["output"]
        assert model.max_output_tokens <= model.context_window
        long_write = 2 if model.vendor == "anthropic" else 1
        assert model.classes["cache_write_1h"] == long_write * model.classes["input"]
        assert model.created > 1_700_000_000
        assert {"text", "streaming"} <= set(model.capabilities)
    searches = {models[name].classes["web_search"] for name in ("claude-opus-4-7", "gpt-5-5")}
    assert searches == {10_000_000 * 1_000_000}  # one cent each


def test_every_built_in_media_model_has_the_price_of_its_kind():
    models = [model for model in price_files.load().values() if model.kind != "text"]
    assert {model.kind for model in models} >= {"image", "video", "speech", "transcription"}
    for model in models:
        assert set(price_files.MEDIA[model.kind]) & set(model.classes), model.model
        assert all(price > 0 for price in model.classes.values())


def test_no_two_built_in_names_mean_the_same():
    names = [normalized(name) for name in price_files.load()]
    assert len(set(names)) == len(names)


def test_decimal_text_is_read_exactly(tmp_path):
    model = load(tmp_path, GOOD.replace('"0.1"', '"0.000000001"'))["m"]
    assert model.classes["cache_read"] == 1
    assert model.classes["cache_write_5m"] == 1_250_000_000
    assert model.provider_classes == {}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('vendor = "v"', "", "v.toml: the file: .*vendor"),
        ('input = "1"', "", r"v.toml: models\[0\].usd_per_million: `input` is missing"),
        ('input = "1"', "input = 1.0", r"v.toml: models\[.*usd_per_million.*Expected `str`"),
        ('input = "1"', 'input = "-1"', r"v.toml: models\[0\].usd_per_million.input: out of range"),
        ('input = "1"', 'input = "one"', r"models\[0\].usd_per_million.input: not a decimal"),
        ('input = "1"', 'input = "1e999999"', r"models\[0\].usd_per_million.input: not a decimal"),
        ('input = "1"', 'input = "1e-10"', r"models\[0\].usd_per_million.input: finer"),
        ('input = "1"', 'input = "NaN"', r"models\[0\].usd_per_million.input: finer"),
        ("context_window = 10", "context_window = 0", r"v.toml: models\[.*context_window"),
        ("context_window = 10", "colour = 1", r"v.toml: models\[.*"),
        ('model = "m"', 'model = "m"\naliases = ["n", "n"]\n[[models]]\nmodel = "n"', "v.toml"),
        ('vendor = "v"', "vendor = ", "v.toml: not TOML"),
    ],
)
def test_a_wrong_row_is_one_line_with_file_and_path(tmp_path, old, new, says):
    assert old in GOOD
    with pytest.raises(PriceFileError, match=says) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert "\n" not in str(caught.value)


TIERED = (
    GOOD.replace("max_output_tokens = 5", "max_output_tokens = 5\nlong_context_tokens = 4")
    + """
[models.tiers]
flex = { input = "0.5" }
long = { input = "2", output = "7.5" }
"flex+long" = { input = "1.5" }
[models.provider_tiers]
priority = { output = "9" }
[[channels]]
channel = "one"
model = "m"
usd_per_million = { output = "6" }
tiers = { flex = { output = "4" } }
provider_usd_per_million = { output = "1" }
"""
)
NANO = 10**9


def test_tiers_long_contexts_and_channels(tmp_path):
    file = tmp_path / "v.toml"
    file.write_text(TIERED)
    found = price_files.read(file)
    model = found.models["m"]
    assert model.long_context_tokens == 4
    assert {k: v for k, v in model.classes.items() if ":" in k} == {
        "flex:input": NANO // 2,
        "long:input": 2 * NANO,
        "long:output": 75 * NANO // 10,
        "flex+long:input": 15 * NANO // 10,
    }
    assert model.provider_classes == {"priority:output": 9 * NANO}
    one = found.channels["one"]["m"]
    assert one.classes == {"output": 6 * NANO, "flex:output": 4 * NANO}
    assert one.provider_classes == {"output": NANO}
    price_files.require_models(found, [])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("flex = {", "Flex = {", r"v.toml: models\[0\].tiers.Flex: a tier is called"),
        ('"flex+long"', '"long+flex"', r"models\[0\].tiers.long\+flex: a tier is called"),
        ('"flex+long"', '"flex+short"', r"models\[0\].tiers.flex\+short: a tier is called"),
        ('input = "0.5"', 'images = "1"', r"models\[0\].tiers.flex.images: there is no plain"),
        ('output = "7.5"', 'output = "x"', r"models\[0\].tiers.long.output: not a decimal"),
        ('output = "9"', 'output = "-9"', r"models\[0\].provider_tiers.priority.output: out of"),
        ("long_context_tokens = 4", "", r"models\[0\].long_context_tokens: is missing"),
        ('output = "4" }', '"Out put" = "4" }', r"channels\[0\].tiers.flex.Out put: a class"),
        ('channel = "one"', 'channel = ""', r"channels\[.*channel"),
        ('channel = "one"\n', "", r"v.toml: channels\[0\]: .*channel"),
    ],
)
def test_a_wrong_tier_or_channel_is_one_line_with_its_path(tmp_path, old, new, says):
    assert old in TIERED
    with pytest.raises(PriceFileError, match=says):
        load(tmp_path, TIERED.replace(old, new))


def test_a_threshold_needs_its_prices(tmp_path):
    text = GOOD.replace("max_output_tokens = 5", "max_output_tokens = 5\nlong_context_tokens = 4")
    with pytest.raises(PriceFileError, match=r"models\[0\].tiers.long: is missing"):
        load(tmp_path, text)


def test_a_channel_prices_only_known_models(tmp_path):
    file = tmp_path / "v.toml"
    row = '[[channels]]\nchannel = "one"\nmodel = "n"\nusd_per_million = { output = "6" }\n'
    file.write_text(GOOD + row)
    own = price_files.read(file)
    price_files.require_models(own, ["n"])
    with pytest.raises(PriceFileError, match="one prices 'n', which is no model"):
        price_files.require_models(own, ["o"])
    file.write_text(GOOD + row + row)
    with pytest.raises(PriceFileError, match=r"channels\[1\]: n on one stands twice"):
        price_files.read(file)


def test_a_name_that_is_taken_is_refused(tmp_path):
    row = GOOD.partition("[[models]]")[2]
    with pytest.raises(PriceFileError, match=r"models\[1\]: `m` already names m"):
        load(tmp_path, f"{GOOD}[[models]]{row}")
    with pytest.raises(PriceFileError, match=r"models\[1\]: `m-latest` already names m"):
        load(
            tmp_path,
            f"{GOOD}[[models]]{row}".replace(
                'model = "m"', 'model = "x"\naliases = ["m-latest"]', 2
            ).replace('"x"\naliases = ["m-latest"]', '"m"', 1),
        )


def test_a_missing_file_and_an_empty_folder(tmp_path):
    with pytest.raises(PriceFileError, match="no price file"):
        price_files.load(tmp_path)
    with pytest.raises(PriceFileError, match="cannot read"):
        price_files.load(tmp_path / "none.toml")
