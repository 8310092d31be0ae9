from tests.parts.failure_matrix import CASES, PAGE, rendered


def test_the_page_has_the_table_that_the_end_to_end_tests_prove():
    page = PAGE.read_text("utf-8")
    assert rendered(page) == page, "run: python -m tests.parts.failure_matrix"
    assert len({case.name for case in CASES}) == len(CASES)
