from pathlib import Path

import pytest
import torch

from braid.training import checkpoint


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"step": 3, "weights": {"a": torch.arange(3.0)}, "history": [{"loss": 0.5}]}
    checkpoint.save(tmp_path / "new" / "state.pt", state)
    loaded = checkpoint.load(tmp_path / "new" / "state.pt")
    assert loaded is not None
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["state.pt"]
    assert checkpoint.load(tmp_path / "absent.pt") is None


def test_a_failed_save_leaves_the_old_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"step": 1})

    def half(state: object, file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_or_foreign_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"weights": torch.zeros(100)})
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.pt: not a readable checkpoint; delete it"):
            checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"state\.pt: expected a checkpoint dict, got list"):
        checkpoint.load(path)
    torch.save({"code": print}, path)  # a pickled function is refused, not called
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load(path)
