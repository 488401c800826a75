"""The page of benchmarks says what the last run found. Nothing here is timed."""

import pytest

from benchmarks import __main__ as runner
from benchmarks import page


@pytest.fixture(scope="module")
def results():
    return page.read()


def test_the_page_is_that_of_the_results(results):
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results)
    assert page.FIGURE.exists()


def test_results_are_of_benchmarks_that_exist(results):
    assert set(results["benchmarks"]) <= set(runner.available())
    for name, part in results["benchmarks"].items():
        for row in part["rows"]:
            assert row["name"], name
            if "ratio" in row and "ratio_low" in row:
                assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"], row["name"]


def test_the_machine_is_named(results):
    assert {"cpu", "cores", "memory_gb", "system", "versions"} == set(results["machine"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"name": "a", "ours_s": 0.0123}, "a: ours 12.3 ms"),
        ({"name": "a", "ours_s": 2, "baseline_s": 3e-9}, "a: ours 2 s; baseline 3 ns"),
        (
            {"name": "a", "ratio": 812.4, "ratio_low": 7, "ratio_high": 900},
            "baseline / ours 812 (7–900)",
        ),
        ({"name": "a", "ours_s": 1, "baseline_s": 8, "ratio": 0.125}, "baseline / ours 8"),
        ({"name": "a", "note": "b"}, "a: b"),
    ],
)
def test_numbers_in_words(row, words):
    assert words in page.in_words(row)


def test_an_unknown_benchmark_is_named(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks", "no_such"])
    with pytest.raises(SystemExit):
        runner.main()
    assert "no benchmark no_such; there are" in capsys.readouterr().err
