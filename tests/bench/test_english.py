"""examples/bench/english.py: words with tags become text, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import english
import pytest


def test_corpora_become_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(english, "SHORTEST", 3)
    files = {
        "brown/ca01": "The/at dog/nn did/dod n't/* ``/`` bark/vb ''/'' ./.\n\n\tIt/pps sat/vbd ./.\n",
        "masc_tagged/written/letters/a.txt": "Dear_JJ John_NNP ,_,\nthanks_NNS ._.",
        "masc_tagged/spoken/call/b.txt": "um_UH well_UH",
        "abc/science.txt": "A star.\r\n\r\nA planet.",
        "abc/rural.txt": "A cow.",
        "state_union/1946.txt": "Mr. Speaker:  \nGreetings.",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content.encode())
    out = tmp_path / "english.txt"
    assert english.main([str(tmp_path), "-o", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    # by the seed; what is last, "A cow." here, is cut off: it may be half a document
    assert text == (
        "Dear John, thanks.\n\nA star.\n\nA planet.\n\nMr. Speaker:\nGreetings.\n\n"
        'The dog didn\'t "bark". It sat.\n'
    )
    again = tmp_path / "again.txt"
    english.main([str(tmp_path), "-o", str(again)])
    assert again.read_bytes() == out.read_bytes()


def test_what_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "brown").mkdir()
    with pytest.raises(SystemExit):
        english.main([str(tmp_path), "-o", str(tmp_path / "english.txt")])
    assert "lacks masc_tagged, abc, state_union" in capsys.readouterr().err
