"""A hook of MkDocs: links to files outside docs become plain text, since the site holds the pages only."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace each link to an existing file of the repository outside docs by its text and the file's path."""
    source = page.file.abs_src_path
    if source is None:  # written by a hook
        return markdown
    docs = Path(config.docs_dir).resolve()
    root = docs.parent

    def replace(link: re.Match[str]) -> str:
        text, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        file = (Path(source).parent / target.partition("#")[0]).resolve()
        if file.is_relative_to(docs) or not file.is_relative_to(root) or not file.exists():
            return link[0]  # MkDocs checks the first kind, and refuses the others
        return f"{text} (`{file.relative_to(root)}`)"

    return _LINK.sub(replace, markdown)
