"""A run whose results have words: they stand in its tables and its report, and resuming changes no byte."""

import csv
import json
from pathlib import Path

import pytest
from folders import contents
from test_report_run import report_of

import clip_gradcam_visualization as script
from models.explain.words import Word


@pytest.fixture
def weighed(monkeypatch):
    """Each character of an explained text adds a hundredth more than the one before it, from -0.01 on."""
    plain = script.Explainer._result

    def result(self, *arguments):
        unweighed = plain(self, *arguments)
        words = [
            [Word(letter, 0.01 * (place - 1), place, place + 1) for place, letter in enumerate(unweighed.texts[target])]
            for target in unweighed.targets
        ]
        return unweighed._replace(words=words)

    monkeypatch.setattr(script.Explainer, "_result", result)


def words_of(text):
    return [[letter, round(0.01 * (place - 1), 6)] for place, letter in enumerate(text)]


@pytest.mark.usefixtures("weighed")
def test_words_stand_in_tables_and_report_and_resuming_changes_no_byte(run):
    rows = run("--all-texts", "--no-figure")
    assert [row["words"] for row in rows] == [words_of(row["target"]) for row in rows] and len(rows) == 15
    with open("out/results.csv", encoding="utf-8-sig", newline="") as file:
        assert [json.loads(line["words"]) for line in csv.DictReader(file)] == [row["words"] for row in rows]
    document, cards = report_of()
    for card in cards.values():
        texts = card["words"]["texts"]
        expected = [words_of(document["names"][of_text["text"]]) for of_text in texts]
        assert [of_text["descriptions"][0] for of_text in texts] == expected and len(texts) == 3
    before = contents("out")
    Path("out", "clip_gradcam_000_overlay_0.png").unlink()
    assert run("--all-texts", "--no-figure", "--resume") == rows and contents("out") == before


def test_where_no_words_are_wanted_the_column_is_empty(run):
    assert {row["words"] for row in run("--no-figure")} == {None}
    assert all(card["words"] is None for card in report_of()[1].values())
