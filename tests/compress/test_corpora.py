"""Texts from NLTK's corpora: downloaded from a local copy of its index, kept, and put together."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from shrinkc.compression.corpora import CHARACTERS, read_corpora
from shrinkc.compression.recipe import load_recipe, parse_recipe
from shrinkc.compression.texts import read_texts
from shrinkc.core.errors import BadData, BadRecipe

nltk = pytest.importorskip("nltk")

NEWS = "The rain came late.\nFarmers wait.\n"
TAGGED = (
    "The/at jury/nn said/vbd ``/`` no/at ''/'' ;;/. it/pps did/dod not/* ./.\n\n\nWhy/wrb ??/.\n"
)
FILES = {
    "abc": {"abc/rural.txt": NEWS, "abc/science.txt": "Ice melts.\n"},
    "brown": {"brown/ca01": TAGGED, "brown/cats.txt": "ca01 news\n", "brown/CONTENTS": "A\n"},
}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Give NLTK an empty folder of data and a server with two small corpora; return the addresses that it fetched."""
    packages = {name: zipped(files) for name, files in FILES.items()}
    index = "".join(
        f'<package id="{name}" name="{name}" subdir="corpora" unzip="1" size="{len(content)}" '
        f'unzipped_size="{sum(map(len, FILES[name].values()))}" checksum="{hashlib.md5(content).hexdigest()}" '
        f'sha256_checksum="{hashlib.sha256(content).hexdigest()}" '
        f'url="https://data.example/{name}.zip"/>'
        for name, content in packages.items()
    )
    addresses: list[str] = []

    def urlopen(url: str, **_: object) -> io.BytesIO:
        addresses.append(url)
        name = url.rpartition("/")[2].removesuffix(".zip")
        if url.endswith(".xml"):
            return io.BytesIO(
                f"<nltk_data><packages>{index}</packages><collections/></nltk_data>".encode()
            )
        return io.BytesIO(packages[name])

    downloader = nltk.downloader.Downloader(download_dir=str(tmp_path / "data"))
    monkeypatch.setattr(nltk.downloader, "urlopen", urlopen)
    monkeypatch.setattr(nltk.downloader, "_downloader", downloader)
    monkeypatch.setattr(nltk, "download", downloader.download)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "data")])
    for name in FILES:
        monkeypatch.setattr(nltk.corpus, name, unloaded(name))
    read_corpora.cache_clear()
    return addresses


def unloaded(name: str) -> object:
    """Return a new lazy reader of the corpus, which was not loaded from another folder of data."""
    from nltk.corpus.reader import CategorizedTaggedCorpusReader, PlaintextCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    if name == "abc":
        return LazyCorpusLoader("abc", PlaintextCorpusReader, r"(?!\.).*\.txt")
    return LazyCorpusLoader(
        "brown", CategorizedTaggedCorpusReader, r"c[a-z]\d\d", cat_file="cats.txt"
    )


def zipped(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()


def test_corpora_are_downloaded_once_and_put_together(fetched: list[str]) -> None:
    (text,) = read_texts(("nltk:abc,brown",), "calibration.text")
    assert text.name == "nltk:abc,brown"
    assert sorted(text.content.strip().split("\n\n")) == [
        "Farmers wait.",
        "Ice melts.",
        'The jury said "no"; it did not.',
        "The rain came late.",
        "Why?",
    ]
    assert sum(address.endswith(".zip") for address in fetched) == 2
    read_corpora.cache_clear()
    assert read_corpora("nltk:abc,brown") == text.content
    assert sum(address.endswith(".zip") for address in fetched) == 2


def test_documents_are_chosen_evenly_up_to_a_size(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"Sentence number {n} of a long text about nothing.\n" for n in range(100_000)]
    monkeypatch.setitem(FILES, "abc", {})
    monkeypatch.setattr("shrinkc.compression.corpora._paragraphs", lambda *_: map(str.strip, lines))
    content = read_corpora("nltk:abc")
    assert 0.99 * CHARACTERS < len(content) < CHARACTERS
    half = sum(int(line.split()[2]) < 50_000 for line in content.split("\n\n"))
    assert 0.4 < half / content.count("\n\n") < 0.6


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nltk:abcd", "NLTK has no corpus 'abcd'"),
        ("nltk:", "NLTK has no corpus ''"),
        ("nltk:util", "NLTK has no corpus 'util'"),
    ],
)
def test_unknown_corpora_are_refused(source: str, said: str) -> None:
    with pytest.raises(BadData, match=said):
        read_corpora(source)


def test_without_a_network_the_ways_out_are_named(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(url: str, **_: object) -> io.BytesIO:
        raise OSError("Name or service not known")

    monkeypatch.setattr(nltk.downloader, "urlopen", no_network)
    with pytest.raises(BadData, match="NLTK cannot download abc: .*Name or service") as caught:
        read_corpora("nltk:abc")
    assert "--text FILE" in (caught.value.hint or "")
    assert "NLTK_DATA" in (caught.value.hint or "")


def test_corpora_are_no_paths(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[calibration]\ntext = ["nltk:abc", "own.txt"]\n[gptq]\n')
    recipe = load_recipe(str(file))
    assert recipe.calibration.text == ("nltk:abc", str(tmp_path / "own.txt"))
    assert [path.name for _, path in recipe.text_files()] == ["own.txt"]
    with pytest.raises(BadRecipe, match="only a text file can measure"):
        parse_recipe({"gptq": {}, "evaluate": {"text": "nltk:abc"}})
