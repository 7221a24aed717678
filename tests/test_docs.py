"""The documents stay true: files, names, commands and links exist, and every Python block runs."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest
import torch

from pathnet.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / "docs" / "benchmarks.md"  # by `pathnet bench`
BUILT = ("pathnet._C", "pathnet._cuda", "pathnet.kernels")  # by the install
DOCS = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {GENERATED})]
RUNNABLE = [file for file in DOCS if file.name != "study.md"]  # its code reads the files of a finished study
FOLDERS = ("pathnet", "csrc", "kernels", "benchmarks", "tests", "docs")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*|[\w.-]+\.(?:py|cpp|h|cuh|cu|toml|md)")
NAME = re.compile(r"(?<![\w.])pathnet(?:\.[A-Za-z_]\w*)+")
COMMAND = re.compile(r"(?:^|&& )pathnet ([a-z]+)((?: [^\s&#]+)*)")
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

every_document = pytest.mark.parametrize("document", DOCS, ids=lambda file: file.name)


def code(text: str) -> list[str]:
    """What stands in backticks, and the lines of fenced blocks."""
    inline = INLINE.findall(FENCE.sub("", text))
    return inline + [line for _, block in FENCE.findall(text) for line in block.splitlines()]


def missing_files(text: str) -> list[str]:
    """Repository files named in code that are not there; `<op>` and `*` stand for any name."""
    words = [word for piece in code(text) for word in re.split(r"[\s'\"(),:]+", piece) if not set(word) & set("<>*[]=")]
    named = [word.rstrip(".") for word in words if FILE.fullmatch(word)]
    files = {file.name for folder in FOLDERS for file in (ROOT / folder).rglob("*")} | {f.name for f in ROOT.iterdir()}
    return [word for word in named if not (_is_file(word) if "/" in word else word in files)]


def _is_file(path: str) -> bool:
    return (ROOT / path).exists() or ROOT / path == GENERATED


def missing_names(text: str) -> list[str]:
    """Dotted names of pathnet in code that neither a module nor its attributes give."""
    names = {name for piece in code(text) for name in NAME.findall(piece)}
    return sorted(name for name in names if not _resolves(name))


def _resolves(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if name in BUILT:
        return True
    for candidate in (name, module):
        try:
            found = importlib.import_module(candidate)
        except ImportError:
            continue
        return candidate == name or hasattr(found, attribute)
    return False


def wrong_commands(text: str) -> list[str]:
    """Calls of `pathnet` whose verb or whose options do not exist."""
    calls = [match for piece in code(text) for match in COMMAND.findall(piece)]
    return [f"{verb}{rest}" for verb, rest in calls if verb not in COMMANDS or not _options(rest) <= _known(verb)]


def _options(words: str) -> set[str]:
    return {word for word in words.split() if word.startswith("--")}


def _known(verb: str) -> set[str]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"pathnet.cli.{verb}").add_arguments(parser)
    return {*parser._option_string_actions}


def dead_links(text: str, folder: Path) -> list[str]:
    """Targets of relative links that are not there."""
    prose = INLINE.sub("", FENCE.sub("", text))
    return [target for target in LINK.findall(prose) if not _is_file(str(folder / target))]


@every_document
def test_files_names_and_commands_exist(document):
    text = document.read_text()
    assert missing_files(text) == [] and missing_names(text) == [] and wrong_commands(text) == []


@every_document
def test_links_lead_somewhere(document):
    assert dead_links(document.read_text(), document.parent) == []


@pytest.fixture
def one_thread():
    """These tensors are small: more threads would only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("document", RUNNABLE, ids=lambda file: file.name)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    """In one namespace, one after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": document.stem}
    for language, block in FENCE.findall(document.read_text()):
        if language == "python":
            exec(compile(block, document.name, "exec"), namespace)


def test_computed_tables_and_drawings_are_those_of_the_script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    stale = [
        path.name for path, words in importlib.import_module("drawings").written().items() if path.read_text() != words
    ]
    assert stale == [], "run `python docs/drawings.py`"


def test_the_guards_find_what_is_wrong():
    assert missing_files("`pathnet/no_such.py` and `setup.py` and `no_such.cpp`") == [
        "pathnet/no_such.py",
        "no_such.cpp",
    ]
    assert missing_files("```sh\npython tests/none.py\n```") == ["tests/none.py"]
    assert missing_names("`pathnet.samplers.KeepAll(3)`, `pathnet.samplers.KeepExactly(3)`") == [
        "pathnet.samplers.KeepAll"
    ]
    assert wrong_commands("`pathnet studie` or\n```sh\npip install -e . && pathnet study --fast\n```") == [
        "studie",
        "study --fast",
    ]
    assert dead_links("[a](no_such.md), [b](https://example.org)", ROOT) == ["no_such.md"]
