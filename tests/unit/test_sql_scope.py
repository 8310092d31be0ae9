import pytest

from services.meter.sql_scope import MAX_SQL_CHARS, SqlRefused, reading_statement


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select * from usage -- ; INTO OUTFILE\n where model = 'a;b'",
        "  /* c */ WITH 1 AS x SELECT x",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SHOW TABLES",
        "DESCRIBE usage",
        "DESC usage",
        "EXPLAIN SELECT 1",
        "SELECT 'INTO OUTFILE', \"file\", `a;b` FROM t",
        "SELECT 'it''s', 'a\\'b;'",
        "SELECT tags['team'], units['x'] FROM usage",
        "SELECT file FROM (SELECT 1 AS file)",
        "SELECT 1.5e3, 0xff, -1, a::Int64, b ? 1 : 2 FROM t",
    ],
)
def test_reading_statements_pass_as_they_are(sql):
    assert reading_statement(sql) == sql


def test_trailing_semicolons_and_comments_go():
    assert reading_statement("SELECT 1 ; ; -- done") == "SELECT 1"
    assert reading_statement("SELECT 1 /* x */") == "SELECT 1"


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("", "empty"),
        (" -- nothing\n;", "empty"),
        ("INSERT INTO t VALUES (1)", "begins"),
        ("DROP TABLE usage", "begins"),
        ("SET readonly = 0", "begins"),
        ("SYSTEM SHUTDOWN", "begins"),
        ("'SELECT'", "begins"),
        ("`SELECT` 1", "begins"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT 1; DROP TABLE usage", "one statement"),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", "OUTFILE"),
        ("SELECT 1 into /* */ outfile '/tmp/x'", "OUTFILE"),
        ("SELECT file('/etc/passwd')", "file"),
        ("SELECT File ('/etc/passwd')", "file"),
        ("SELECT `file`('/etc/passwd')", "file"),
        ("SELECT \"fi\\x6ce\"('/etc/passwd')", "escapes"),
        ("SELECT file/**/('/etc/passwd')", "file"),
        ("SELECT * FROM hasColumnInTable('h:1','u','p','d','t','c')", "hascolumnintable"),
        ("SELECT 'open", "unexpected"),
        ("SELECT 1 /* open", "unexpected"),
        ("SELECT /* a /* b */ 1", "nest"),
        ("SELECT $$; DROP TABLE usage$$", "unexpected"),
        ("SELECT \u2018x\u2019", "unexpected"),
        ("SELECT 1\x00", "unexpected"),
        ("SELECT " + "1" * MAX_SQL_CHARS, "longer"),
    ],
)
def test_everything_else_is_refused_with_a_reason(sql, why):
    with pytest.raises(SqlRefused, match=why):
        reading_statement(sql)
