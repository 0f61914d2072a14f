"""torchvision can be imported beside any build of torch, and a healthy one is left alone."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from braid.common import torchvision as torchvision_ops
from braid.common.torchvision import mend_torchvision

SCRIPT = """
from braid.common.torchvision import mend_torchvision
mend_torchvision()
mend_torchvision()
import torch, torchvision
net = torchvision.models.squeezenet1_1(weights=None)
assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
"""


def test_a_fresh_process_imports_torchvision_and_runs_a_model() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Importer:
    """Stands in for importlib: fails as told, then imports."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def import_module(self, name: str) -> ModuleType:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return importlib.import_module("json")


def patch(monkeypatch: pytest.MonkeyPatch, importer: Importer) -> list[str]:
    """Replace the importer; returns the list that defined operators go to."""
    defined: list[str] = []
    monkeypatch.setattr(torchvision_ops, "importlib", importer)
    monkeypatch.setattr(torchvision_ops.torch.library, "define", lambda op, _: defined.append(op))
    return defined


def test_a_healthy_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    importer = Importer()
    defined = patch(monkeypatch, importer)
    mend_torchvision()
    assert (importer.calls, defined) == (1, [])


def test_the_missing_operators_are_declared_and_the_import_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    importer = Importer(RuntimeError("operator torchvision::nms does not exist"))
    defined = patch(monkeypatch, importer)
    monkeypatch.setattr(sys, "modules", {**sys.modules, "torchvision.half": ModuleType("half")})
    mend_torchvision()
    assert (importer.calls, defined) == (2, ["torchvision::nms", "torchvision::qnms"])
    assert "torchvision.half" not in sys.modules


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ModuleNotFoundError("no such")])
def test_other_failures_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    defined = patch(monkeypatch, Importer(error))
    with pytest.raises(type(error)):
        mend_torchvision()
    assert defined == []
