"""Answers come in order, and a GPU's are not waited for before they are due."""

import pytest
import torch

from audio_ct.training.finite import BEHIND, FiniteChecks


def add(checks: FiniteChecks, device: str, *answers: bool) -> None:
    for step, answer in enumerate(answers, 1):
        checks.add(step, torch.tensor(answer, device=device))


def test_on_a_cpu_every_answer_is_there_at_once() -> None:
    checks = FiniteChecks()
    add(checks, "cpu", True, False)
    assert list(checks.settled(all_of_them=False)) == [(1, True), (2, False)]
    assert list(checks.settled(all_of_them=True)) == []


@pytest.mark.gpu
def test_a_gpus_last_answers_come_when_all_are_asked_for() -> None:
    checks = FiniteChecks()
    add(checks, "cuda", True, False, *[True] * BEHIND)
    assert list(checks.settled(all_of_them=False)) == [(1, True), (2, False)]
    assert list(checks.settled(all_of_them=True)) == [(3 + i, True) for i in range(BEHIND)]
