"""The text that a language model is trained on: of docstrings alone, each paragraph once, whole documents held out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))
import collect_text
from collect_text import documents, held_out, joined, paragraphs, texts, without_repeats

SOURCE = b'''"""What the module says, in one sentence that is long enough."""
raise SystemExit("it is not imported")

class A:
    """What the class says:
    on two lines, the second indented.

        >>> code(that, is, run, as, a, test, is, left, out)

    Too short.

    \xc3\x89galit\xc3\xa9 is a word that is not written in ASCII letters.
    """

    async def f(self):
        r"""What a function says, with an escape \\d that is none of Python's."""
        return "A string that is long enough and no docstring at all."

add_docstr(A.g, merge("""What is said of what is not written in Python,
  which other functions put together.""", " and this is said there, too, at some length."))
other("A string that is given to any other function, long enough.")
'''
SAID = [
    "What the module says, in one sentence that is long enough.",
    "What the class says:\non two lines, the second indented.",
    "What a function says, with an escape \\d that is none of Python's.",
    "What is said of what is not written in Python,\nwhich other functions put together.",
    "and this is said there, too, at some length.",
]


def test_docstrings_are_found_and_nothing_else() -> None:
    found = [paragraph for text in texts(SOURCE) for paragraph in paragraphs(text)]
    assert sorted(found) == sorted(SAID)


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("Of 40 letters and more, this one is kept.", True),
        ("Of fewer than 40 letters: it is not.", False),
        (">>> this = is(code, although, it, has, many, letters)", False),
        ("a = [1.0, 2.0, 3.0], b = [4.0, 5.0, 6.0], c = [7, 8]", False),
        ("naïve words are not written in ASCII letters alone, are they?", False),
    ],
)
def test_what_is_english(text: str, stays: bool) -> None:
    assert list(paragraphs(text)) == [text] * stays


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that is installed, with files that are no part of the text."""
    files = {
        "pack_of_docs/b.py": SOURCE,
        "pack_of_docs/a.py": SOURCE,
        "pack_of_docs/tests/test_a.py": b'"""What a test says is no part of the text that is collected."""',
        "pack_of_docs/_vendor/c.py": b'"""What another package says is no part of the text, either."""',
        "pack_of_docs/d.txt": b"What is in no docstring, in whatever file it is.",
        "pack_of_docs-1.2.dist-info/METADATA": b"Name: pack-of-docs\nVersion: 1.2+cpu\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "pack_of_docs-1.2.dist-info" / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "pack-of-docs"


def test_files_are_read_in_the_order_of_their_names_and_never_imported(package: str) -> None:
    found = documents(package)
    assert list(found) == ["pack-of-docs pack_of_docs/a.py", "pack-of-docs pack_of_docs/b.py"]
    assert sorted(found["pack-of-docs pack_of_docs/a.py"]) == sorted(SAID)
    assert list(without_repeats(found, [])) == ["pack-of-docs pack_of_docs/a.py"], "the other says the same"


def test_another_version_is_not_collected_from(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_text, "ROOT", tmp_path)
    monkeypatch.setattr(collect_text, "LICENCES", {package: "MIT"})
    (tmp_path / "constraints.txt").write_text("pack-of-docs==1.2\n")
    assert collect_text.versions() == {package: "1.2"}, "a build is no version"
    (tmp_path / "constraints.txt").write_text("pack-of-docs==1.3\n")
    with pytest.raises(SystemExit, match=r"pack-of-docs 1\.3, here is 1\.2: .* -c constraints\.txt pack-of-docs"):
        collect_text.versions()
    monkeypatch.setattr(collect_text, "LICENCES", {"no-such-pack": "MIT"})
    (tmp_path / "constraints.txt").write_text("no-such-pack==1\n")
    with pytest.raises(SystemExit, match="here is none"):
        collect_text.versions()


def test_documents_are_held_out_whole_and_say_nothing_that_others_do() -> None:
    said = lambda name, size: [f"{name} {index}".ljust(100, ".") for index in range(size // 100)]  # noqa: E731
    found = {f"torch {name}.py": said(name, 3000) for name in "abcdefgh"}
    found |= {"rich i.py": said("i", 3000), "torch small.py": said("s", 500), "torch large.py": said("l", 50_000)}
    last = held_out(found, size=7000)
    assert len(last) == 3
    assert last == sorted(last)
    assert {name[:6] for name in last} == {"torch "}
    assert not {"torch small.py", "torch large.py"} & {*last}
    found["torch large.py"].append(found[last[0]][0].replace(" ", "\n"))
    kept = without_repeats(found, last)
    assert list(kept) == [*(name for name in found if name not in last), *last]
    assert kept[last[0]] == found[last[0]][1:], "what others say, too, is theirs"
    assert joined(kept, last[1:]) == "\n\n\n".join("\n\n".join(found[name]) for name in last[1:]) + "\n"


def test_a_text_that_is_not_the_committed_one_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who says different things is named."""
    about = json.loads((collect_text.DATA / "lm_corpus.json").read_text())
    monkeypatch.setattr(collect_text, "collected", lambda: ({"lm_corpus.txt": "words\n"}, about))
    collect_text.main([str(tmp_path / "corpus.txt")])
    assert (tmp_path / "corpus.txt").read_text() == "words\n"
    other = json.loads(json.dumps(about))
    other["packages"]["numpy"]["sha256"] = "0"
    monkeypatch.setattr(collect_text, "collected", lambda: ({"lm_corpus.txt": "words\n"}, other))
    with pytest.raises(SystemExit, match="the docstrings of numpy differ"):
        collect_text.main([str(tmp_path / "other.txt")])
    assert not (tmp_path / "other.txt").exists()


def test_what_is_committed_is_of_the_pinned_packages_under_the_licence_that_is_beside_it() -> None:
    """A pin that is raised makes another text: collect it with --new, and train anew."""
    pins = dict(line.split("==") for line in (collect_text.ROOT / "constraints.txt").read_text().split())
    about = json.loads((collect_text.DATA / "lm_corpus.json").read_text())
    told = {name: (one["version"], one["licence"]) for name, one in about["packages"].items()}
    assert told == {name: (pins[name], licence) for name, licence in collect_text.LICENCES.items()}
    licences = (collect_text.DATA / "LICENSE-lm-text.txt").read_text()
    for name in collect_text.HELD_OUT_OF:
        assert f"{name} {pins[name]}" in licences
        assert f"\n{name}\n---" in licences
        assert collect_text.LICENCES[name] == "BSD-3-Clause"
