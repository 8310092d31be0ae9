import msgspec

from services.core.prices import ModelPrice, PriceBook


def book(price=1, multiplier=1_000_000, channels=None):
    model = ModelPrice(
        model="m",
        vendor="v",
        context_window=1,
        max_output_tokens=1,
        classes={"input": price, "output": 2},
    )
    return PriceBook(
        models={"m": model}, multipliers_ppm={"default": multiplier}, channels=channels or {}
    )


def test_the_version_id_follows_from_the_content_alone():
    first, same = book(), book()
    assert first.version_id() == same.version_id()
    assert first.version_id().startswith("pv_")
    changed = [book(price=2), book(multiplier=2), book(channels={"c": {"m": {"input": 1}}})]
    assert len({first.version_id(), *(one.version_id() for one in changed)}) == 4


def test_the_order_of_names_does_not_change_the_version_id():
    one = msgspec.structs.replace(book(), multipliers_ppm={"a": 1, "b": 2})
    other = msgspec.structs.replace(book(), multipliers_ppm={"b": 2, "a": 1})
    assert one.version_id() == other.version_id()


def test_a_book_survives_json():
    again = msgspec.json.decode(msgspec.json.encode(book()), type=PriceBook)
    assert again == book()
    assert again.version_id() == book().version_id()
