"""Hooks of mkdocs: decisions for the navigation, and pages for files outside of docs/.

Readers of the repository follow `../statemgr/record.py` to the file; readers of the site find a
page with its text. A link to a directory, or from such a page to a file without a page, becomes
text.

A page that would load anything from another host is refused: the site is read without a network.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
DOCS = "docs"
PLACE = "repository"  # where these pages are in the site

_link = re.compile(r"(?<!\!)\[([^\]]*)\]\(([^)\s]+)\)")
_loads = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=["']?https?://""")
_languages = {".py": "python", ".lua": "lua", ".html": "html", ".toml": "toml"}

Config = Any
Files = Any


def on_config(config: Config) -> Config:
    """Add the decisions to the navigation, each by its first line."""
    found = sorted((ROOT / DOCS / "decisions").glob("*.md"))
    titles = [file.open().readline().removeprefix("# ").strip() for file in found]
    pages = [{title: f"decisions/{file.name}"} for title, file in zip(titles, found, strict=True)]
    (last,) = config["nav"][-1].values()
    last.append({"Decisions": pages})
    return config


def on_files(files: Files, config: Config) -> Files:
    """Add a page for each file outside of docs/ that a document links to."""
    seen: set[str] = set()
    for file in list(files.documentation_pages()):
        for path in _targets(f"{DOCS}/{file.src_uri}", Path(file.abs_src_path).read_text()):
            if path not in seen and not path.startswith(f"{DOCS}/") and (ROOT / path).is_file():
                seen.add(path)
                files.append(File.generated(config, _page_of(path), content=_text_of(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to those pages."""
    source = page.file.src_uri
    if source.startswith(f"{PLACE}/"):
        return markdown

    def replace(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path = _resolved(f"{DOCS}/{source}", target)
        if path is None or path.startswith(f"{DOCS}/"):
            return match[0]
        if not (ROOT / path).is_file():
            return text
        return f"[{text}]({posixpath.relpath(_page_of(path), posixpath.dirname(source) or '.')})"

    return _link.sub(replace, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse what would need a network."""
    if found := _loads.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {found[0]}")
    return output


def _targets(document: str, text: str) -> list[str]:
    found = (_resolved(document, target) for _, target in _link.findall(text))
    return [path for path in found if path]


def _resolved(document: str, target: str) -> str | None:
    """Return a link's path from the root of the repository; None if it stays in its page."""
    target = target.partition("#")[0]
    if not target or "://" in target:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), target))


def _page_of(path: str) -> str:
    return f"{PLACE}/{path.removesuffix('.md')}.md"


def _text_of(path: str) -> str:
    text = (ROOT / path).read_text()
    if not path.endswith(".md"):
        fence = "`" * 4
        return f"# {path}\n\n{fence}{_languages.get(Path(path).suffix, 'text')}\n{text}\n{fence}\n"

    def replace(match: re.Match[str]) -> str:
        target = _resolved(path, match[2])
        if target is None:
            return match[0]
        if not target.startswith(f"{DOCS}/") or not (ROOT / target).is_file():
            return match[1]
        page = target.removeprefix(f"{DOCS}/")
        here = posixpath.dirname(_page_of(path))
        return f"[{match[1]}]({posixpath.relpath(page, here)})"

    # What it shows is not in the site, if it is not below docs/.
    return _link.sub(replace, re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text))
