"""The benchmark of libraries: every part of it at small sizes, and what the documentation says of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import libraries

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("libraries") / "out.json"
    options = ["--recordings", "20", "--repeats", "1", "--recipes", str(ROOT / "recipes"), "--out", str(out)]
    libraries.main([*options, "--device", "cpu"])
    return json.loads(out.read_text())


def test_only_sharp_filters_pass_the_band_and_leave_nothing_beyond_it(result: Any) -> None:
    for row in result["resampling"]["rows"]:
        is_sharp = row["within_db"] > -0.1 and (row["beyond_db"] is None or row["beyond_db"] < -90)
        assert is_sharp != row["name"].endswith("torchaudio"), row


def test_scipy_draws_what_a_loop_would(result: Any) -> None:
    assert result["intervals"]["rows"][1]["apart"] < 1e-9


def test_omegaconf_merges_the_shipped_recipes_alike_and_loses_odd_texts(result: Any) -> None:
    merging = result["merging"]
    assert merging["num_variants"] == merging["num_alike"] > 50
    own, omegaconf = merging["rows"]
    assert [own[odd] for odd in libraries.ODD_VALUES] == [repr(odd) for odd in libraries.ODD_VALUES]
    assert (omegaconf["???"], omegaconf["${"]) == ("'x'", "GrammarParseError")
