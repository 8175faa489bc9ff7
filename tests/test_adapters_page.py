"""The page about adapters with names runs as it stands, on a small CLIP."""

import re
import shlex
from pathlib import Path

import torch

import mora
from mora.cli import main
from tests.mora.models import images, open_clip_model

PAGE = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text(encoding="utf-8")


def test_the_page_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    clip = open_clip_model()
    plain, keys = clip.encode_image(images()), list(clip.state_dict())
    names = {"clip": clip, "images": images()}
    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(code) == 8
    for block in code:
        exec(block, names)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(commands) == 4
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0, line
    assert sorted(path.name for path in (tmp_path / "shelf").iterdir() if path.name[0] != ".") == ["films", "food"]
    assert (tmp_path / "combined" / "combined.json").is_file()
    torch.testing.assert_close(names["plain"], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(names["mixed"][[0, 2]], names["films"][[0, 2]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(names["mixed"][1], names["films"][1], atol=1e-4)
    assert len(names["found"].projections) == 8
    assert list(mora.unpatch(clip).state_dict()) == keys
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == ["films", "food"]
    mora.load_adapter(open_clip_model(), tmp_path / "adapters" / "food", name="food")
