"""The site that `make docs` builds: the repository's Markdown as it stands, and an API reference from the docstrings.

The folder of sources is the repository's root, so that a link which works there works in the site.
"""

import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.matching import patfilter

ROOT = Path(__file__).resolve().parent.parent
_META = metadata.metadata("faquant")
_REPOSITORY = dict(url.split(", ") for url in _META.get_all("Project-URL") or ())["Homepage"]

project, author = "faquant", "The faquant developers"
project_copyright = f"{author}. Apache-2.0"
version = release = _META["Version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "src/**/README.md", "findings/README.md"]
exclude_patterns = [".*", "build", "dist", "tests", "benchmarks", "**/node_modules"]
# Pages after the README, which is the first page. A page is listed where it is first named.
_CONTENTS = {
    "Use": [
        *("docs/models", "docs/serving", "docs/scale-out", "docs/accuracy", "docs/performance"),
        *("docs/other_tools", "docs/format", "docs/api"),
        "CHANGELOG",
    ],
    "Develop": ["docs/architecture", "src/**/README", "CONTRIBUTING", "SECURITY", "**"],
}

myst_heading_anchors = 4
smartquotes = False
highlight_language = "none"  # of blocks that name none, as on GitHub
default_role = "literal"  # in docstrings `x` is code, as in Markdown
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config"}  # pydantic's
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["site"]
html_css_files = ["site.css"]
html_theme_options = {"top_of_page_buttons": []}

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?<!\.png)(?=[)#\s])")


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    """Point links to files outside the site at the repository, and give the first page the table of contents."""
    folder = Path(app.env.doc2path(name)).parent

    def link(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists() or target in pages:
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"{_REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}"

    pages = {Path(app.env.doc2path(page)).resolve() for page in app.env.found_docs}
    source[0] = _LINK.sub(link, source[0])
    if name == root_doc:
        left = set(app.env.found_docs) - {root_doc}
        for caption, patterns in _CONTENTS.items():
            entries = []
            for pattern in patterns:
                entries += sorted(patfilter(left, pattern))
                left -= set(entries)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(entries) + "\n```\n"


def _signature(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, text: str | None, result: str):
    """What dataclasses and pydantic write into signatures, in words that Sphinx can read."""
    if text is None:
        return None
    text = re.sub(r"Annotated\[(\w+), _PydanticGeneralMetadata\([^)]*\)\]", r"\1", text)
    return text.replace("<factory>", "..."), result


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _read)
    app.connect("autodoc-process-signature", _signature)
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True}
