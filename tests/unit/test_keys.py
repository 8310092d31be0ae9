import re

from services.core.keys import generate, masked, sha256_hex


def test_a_key_has_its_form_and_is_never_the_same():
    made = {generate() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(r"sk-toll-[A-Za-z0-9_-]{43}", secret) for secret in made)


def test_the_mask_shows_four_characters_only():
    secret = generate()
    assert masked(secret) == f"sk-toll-...****{secret[-4:]}"
    assert secret[8:-4] not in masked(secret)


def test_the_lookup_hash_takes_any_text():
    assert sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert len(sha256_hex("\udcff")) == 64  # a header byte outside of UTF-8
