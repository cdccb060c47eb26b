"""Nothing grows while a process trains, evaluates and samples; and what grows is noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.soak import describe, growth, has_not_grown, soak
from tests.faults.runs import COMPRESSIVE

RECIPE = """
name: tiny
corpus: {{store: {store}, clip_seconds: 0.1}}
model: {model}
optimizer: {{learning_rate: 1e-3}}
training: {{batch_size: 2, window_length: 32, max_tokens: 1, precision: float32, checkpoint_every_windows: 5}}
evaluation: {{batch_size: 2, window_length: 4096, cold_start_samples: 16}}
"""


@pytest.mark.fault("soak")
def test_nothing_grows(
    store_path: Path, tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    path, minutes = tmp_path / "recipe.yaml", times(0, 5)
    path.write_text(RECIPE.format(store=json.dumps(str(store_path)), model=COMPRESSIVE))
    found = growth(soak(path, [f"tracking.enabled={minutes > 0}"], tmp_path, minutes=minutes))
    # In a few rounds an allocator may still ask for a page.
    assert has_not_grown(found if minutes else found | {"memory_mib": 0.0}), describe(found)
    measured(f"{minutes} minutes, {describe(found)}")


@pytest.mark.parametrize("leak", ["memory_mib", "open_files", "threads", "gpu_mib"])
def test_what_grows_is_noticed(leak: str) -> None:
    warm_up = [
        {"seconds": 1.0, "memory_mib": 100.0 * i, "open_files": i, "threads": 1, "gpu_mib": 0.0} for i in range(6)
    ]
    steady = [dict(warm_up[-1]) for _ in range(6)]
    assert has_not_grown(growth(warm_up + steady))
    assert not has_not_grown(growth(warm_up + [each | {leak: each[leak] + i} for i, each in enumerate(steady)]))
