import pytest

from services.backends import price_files
from services.core.errors import InvalidRequest
from services.core.media import canonical, fingerprint, units_bound

MODELS = price_files.load()


def ask(model, **given):
    return canonical(MODELS[model], given, where="params")


@pytest.mark.parametrize(
    ("model", "given", "path"),
    [
        ("sora-2", {}, "params"),
        ("sora-2", {"prompt": "a", "duration_seconds": 11}, "params.duration_seconds"),
        ("sora-2", {"prompt": "a", "duration_seconds": True}, "params.duration_seconds"),
        ("sora-2", {"prompt": "a", "resolution": "480p"}, "params.resolution"),
        ("sora-2", {"prompt": "a", "fps": 24}, "params"),
        ("seedance-fast", {"prompt": "a", "duration_seconds": 4}, "params.duration_seconds"),
        ("gpt-image-2", {"prompt": "a", "n": 5}, "params.n"),
        ("gpt-image-2", {"prompt": "", "n": 1}, "params.prompt"),
        ("gpt-image-2", {"prompt": "a", "quality": "best"}, "params.quality"),
        ("gpt-4o-mini-tts", {"input": "x" * 4097}, "params.input"),
        ("gpt-4o-transcribe", {}, "params"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_path(model, given, path):
    with pytest.raises(InvalidRequest) as caught:
        ask(model, **given)
    assert caught.value.param == path


def test_equal_requests_have_one_fingerprint_however_they_are_spelled():
    spelled = [
        {"prompt": "a", "duration_seconds": 5},
        {"duration_seconds": 5, "prompt": "a", "resolution": ""},
        {"prompt": "a"},
    ]
    assert len({fingerprint("sora-2", ask("sora-2", **each)) for each in spelled}) == 1
    assert fingerprint("sora-2", ask("sora-2", prompt="a", seed=1)) != fingerprint(
        "sora-2", ask("sora-2", prompt="a")
    )


@pytest.mark.parametrize(
    ("model", "given", "units"),
    [
        ("sora-2", {"prompt": "a", "duration_seconds": 7}, {"seconds": 7, "calls": 1}),
        ("gpt-image-2", {"prompt": "a", "n": 3}, {"images": 3}),
        ("gpt-image-2", {"prompt": "a", "quality": "high"}, {"images_high": 1}),
        (
            "gpt-image-2",
            {"prompt": "a", "quality": "high", "size": "1152x2048", "n": 2},
            {"images_high_2048": 2},
        ),
        ("gpt-image-2", {"prompt": "a", "quality": "high", "size": "auto"}, {"images_high": 1}),
        ("gpt-image-2", {"prompt": "a", "size": "2048x2048"}, {"images": 1}),
        ("gpt-4o-mini-tts", {"input": "hello"}, {"characters": 5}),
        ("text-embedding-3-small", {"input": ["abc", "é"]}, {"input": 5}),
        ("text-embedding-3-small", {"input": [[1, 2, 3], "ab"]}, {"input": 5}),
    ],
)
def test_the_hold_covers_what_was_asked(model, given, units):
    assert units_bound(MODELS[model], ask(model, **given)) == units


def test_a_transcription_is_bound_by_the_size_of_its_audio():
    params = ask("gpt-4o-transcribe", file="file_1")
    assert units_bound(MODELS["gpt-4o-transcribe"], params, 64_000) == {"seconds": 65}
