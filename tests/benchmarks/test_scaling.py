"""Curves through sizes: planted curves are found again, with intervals that hold them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_ct.errors import InputError
from benchmarks import scaling

SIZES = [(0.15, 1), (0.5, 1), (1.7, 1), (6.5, 1), (0.5, 0.25), (0.5, 0.5), (0.5, 4)]
PLANTED = {"a": (2.5, 0.1, 0.2, 0.4, 0.4), "b": (2.53, 0.12, 0.2, 0.4, 0.4)}
NOISE = 0.002


def study(num_seeds: int = 1) -> dict[str, Any]:
    random = np.random.default_rng(0)
    variants = []
    for family, fit in PLANTED.items():
        for parameters, samples in SIZES:
            bits = float(scaling.curve(np.array(fit), 1e6 * parameters, 1e6 * samples))
            seeds = [bits + NOISE * random.standard_normal() for _ in range(num_seeds)]
            runs = [{"tokens": 1e6 * samples, "bits_per_sample": each} for each in seeds]
            variants.append(
                {"name": f"{family}-{parameters}m-{samples}m", "parameters": 1e6 * parameters, "runs": runs}
            )
    return {"study": "planted", "store": "none", "commit": "none", "variants": variants}


def test_planted_curves_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "NUM_REFITS", 40)
    points = scaling.families(study())
    result = scaling.summarise(points, scaling.refits(points, NOISE))
    for family, fit in PLANTED.items():
        found = result["families"][family]
        assert found["rms_left"] < 2 * NOISE
        low, high = found["far_interval"]
        assert low <= scaling.curve(np.array(fit), scaling.FAR_PARAMETERS, scaling.FAR_SAMPLES) <= high
    near, *_ = result["differences"]
    low, high = near["interval"]
    a, b = (scaling.curve(np.array(PLANTED[family]), near["parameters"], near["samples"]) for family in "ab")
    assert near["difference"] == pytest.approx(a - b, abs=2 * NOISE)
    assert low < near["difference"] < high < 0


def test_noise_is_that_between_seeds() -> None:
    assert scaling.noise_between_seeds(study()) is None
    assert scaling.noise_between_seeds(study(num_seeds=20)) == pytest.approx(NOISE, rel=0.15)


def test_a_study_that_is_not_done_is_refused() -> None:
    begun = study()
    begun["variants"][0]["runs"] = begun["variants"][1]["runs"] = [{"state": "waiting"}]
    with pytest.raises(InputError, match="a has 5 runs"):
        scaling.families(begun)


def test_the_command_writes_json_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "NUM_REFITS", 4)
    (tmp_path / "study.json").write_text(json.dumps(study(num_seeds=2)))
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["scaling", str(tmp_path), "--out", str(out), "--picture", str(picture)])
    scaling.main()
    assert json.loads(out.read_text())["families"].keys() == set(PLANTED)
    assert picture.read_bytes()[:4] == b"\x89PNG"
