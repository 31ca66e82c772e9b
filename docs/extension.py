"""What the site adds to Sphinx: labelled equations, source beside the text that derives it, pages of source, docstrings as they are."""
from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .pages import DOCS, LABEL, ROOT, TAG, source_of

log = logging.getLogger(__name__)
LANGUAGES = {".py": "python", ".cu": "cuda"}


# ── equations ──
class Equations(SphinxTransform):
    """\\tag{softmax.1} becomes the equation's number and its anchor."""

    default_priority = 100

    def apply(self, **kwargs: Any) -> None:
        known = self.env.minigrad_labels
        for node in self.document.findall(nodes.math_block):
            found = TAG.findall(node.rawsource or node.astext())
            if not found:
                continue
            text = TAG.sub("", node.astext()).strip()
            node.children = [nodes.Text(text)]
            if len(found) > 1:
                log.warning("an equation has one label, not %s", found, location=node)
            node["number"], node["ids"] = found[0], [anchor(found[0])]
            if (other := known.get(found[0], self.env.docname)) != self.env.docname:
                log.warning("the label %s is one of %s already", found[0], other, location=node)
            known[found[0]] = self.env.docname


def anchor(label: str) -> str:
    return f"eq-{label.replace('.', '-')}"


def link_labels(app: Any, docname: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """(softmax.1) in text, docstrings and code leads to the equation."""
    known, body = app.env.minigrad_labels, context.get("body")
    if not body:
        return

    def linked(found: re.Match[str]) -> str:
        label = found[2]
        if label not in known:
            return found[0]
        there = app.builder.get_relative_uri(docname, known[label]) if known[label] != docname else ""
        return f'{found[1]}<a class="label" href="{there}#{anchor(label)}">{label}</a>'

    context["body"] = re.sub(rf"(\([^()<>]{{0,60}}?|[,;] )({LABEL})(?=[–,;)])", linked, body)


# ── source beside text ──
class Beside(SphinxTransform):
    """A paragraph "Code: [`name`](file), …" becomes the source of these names, beside what the section says before it."""

    default_priority = 110

    def apply(self, **kwargs: Any) -> None:
        for paragraph in list(self.document.findall(nodes.paragraph)):
            if paragraph.astext().startswith("Code: ") and isinstance(paragraph.parent, (nodes.section, nodes.document)):
                self.lay_out(paragraph)

    def lay_out(self, paragraph: nodes.paragraph) -> None:
        parent = paragraph.parent
        end = parent.index(paragraph)
        start = end
        while start > 0 and not isinstance(parent[start - 1], (nodes.title, nodes.section)) \
                and "beside" not in parent[start - 1].get("classes", ()):
            start -= 1
        left = nodes.container("", *parent[start:end], classes=["prose"])
        right = nodes.container("", *self.blocks(paragraph), classes=["source"])
        both = nodes.container("", *([left] if end > start else []), right, classes=["beside"])
        parent[start:end + 1] = [both]
        self.env.metadata[self.env.docname]["hide-toc"] = "true"

    def blocks(self, paragraph: nodes.paragraph) -> Iterator[nodes.Node]:
        for link in paragraph.findall(lambda n: isinstance(n, nodes.Element) and ("refuri" in n or "reftarget" in n)):
            name, target = link.astext(), link.get("refuri") or link["reftarget"]
            path = (DOCS / Path(self.env.docname).parent / target).resolve()
            try:
                text, line = source_of(name, path)
            except (LookupError, OSError, ValueError) as error:
                log.warning("Code: %s", error, location=paragraph)
                continue
            self.env.note_dependency(str(path))
            yield nodes.paragraph("", "", to_source(self.env, path, nodes.literal("", name), line), classes=["where"])
            yield nodes.literal_block(text, text, language=LANGUAGES[path.suffix], classes=["live"])


# ── pages of source ──
def to_source(env: Any, path: Path, shown: nodes.Node, line: int | None = None) -> nodes.Node:
    """A link from the present page to the page that shows the file at `path`."""
    inside = path.relative_to(ROOT).as_posix()
    env.minigrad_files.setdefault(env.docname, set()).add(inside)
    up = "../" * env.docname.count("/")
    return nodes.reference("", "", shown, refuri=f"{up}source/{inside}.html{f'#L{line}' if line else ''}", internal=True)


class Files(SphinxTransform):
    """Links to files and folders of the repository lead to pages that show them."""

    default_priority = 120

    def apply(self, **kwargs: Any) -> None:
        kinds = (nodes.reference, addnodes.download_reference, addnodes.pending_xref)
        for node in list(self.document.findall(lambda n: isinstance(n, kinds))):
            target = node.get("reftarget") or node.get("refuri") or ""
            if re.match(r"[a-z]+:|#|source/", target) or not target:
                continue
            path = (DOCS / Path(self.env.docname).parent / target.partition("#")[0]).resolve()
            path = path if path.exists() else path.with_name(f"{path.name}.md")         # MyST leaves the ending of pages out
            if path.is_relative_to(ROOT) and path.exists() and (path.is_dir() or path.suffix != ".md" or not path.is_relative_to(DOCS)):
                node.replace_self(to_source(self.env, path, nodes.inline("", node.astext())))


def source_pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file or folder that some page links to."""
    style = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, linespans="line")
    for inside in sorted(set().union(*app.env.minigrad_files.values())):
        path = ROOT / inside
        if path.is_dir():
            files = [p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith((".", "__pycache__"))]
            body = "<ul>" + "".join(f"<li><code>{p.name}</code></li>" for p in files) + "</ul>"
        else:
            try:
                lexer = get_lexer_for_filename("x.cpp" if path.suffix == ".cu" else path.name)
                body = highlight(path.read_text("utf-8"), lexer, style).replace('id="L-', 'id="L').replace('href="#L-', 'href="#L')
            except (UnicodeDecodeError, ValueError):
                body = f"<p>{path.stat().st_size:,} bytes</p>"
        yield f"source/{inside}", {"title": inside, "body": f'<h1>{inside}</h1><div class="highlight whole">{body}</div>',
                                   "parents": [], "rellinks": []}, "page.html"


# ── the reference ──
class Api(SphinxDirective):
    """`{api} module`: what the module makes public, each with its docstring; `{api} module name name …`: these alone."""

    required_arguments, optional_arguments, final_argument_whitespace = 1, 1, True

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        names = (self.arguments[1].split() if len(self.arguments) > 1 else None) or public(module)
        lines: list[str] = []
        for name in names:
            thing = getattr(module, name)
            kind = "class" if inspect.isclass(thing) else "function" if callable(thing) else "data"
            lines += [f".. auto{kind}:: {module.__name__}.{name}", *(["   :members:"] if kind == "class" else []), ""]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]), allow_section_headings=False)


def public(module: Any) -> list[str]:
    """The public names that a module defines, in the order of its text."""
    return [name for name, thing in vars(module).items()
            if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
            and (inspect.isclass(thing) or inspect.isfunction(thing) or hasattr(thing, "signature"))]


def as_written(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A docstring is text: paragraphs stay paragraphs, what is indented stays as it is, `names` are code, and nothing else is markup."""
    out: list[str] = []
    inside = listed = False
    for line in inspect.cleandoc("\n".join(lines)).splitlines():
        indented = line.startswith("    ")
        if indented and not inside and (not out or out[-1] == ""):
            out += ["::", ""]
            inside = True
        elif inside and line.strip() and not indented:
            inside = False
            if out and out[-1]:
                out.append("")
        if inside:
            out.append(line)
        else:
            if line.strip() and out and out[-1] and re.match(r"[\w*, ]+: ", line):
                out.append("")                          # arguments, one a line
            listed = bool(re.match(r"(\d+\.|[*-]) ", line)) or (listed and line.startswith("  "))
            out.append((line[:len(line) - len(line.lstrip())] if listed else "") + escaped(line.strip(), listed))
    lines[:] = [*out, ""]


def escaped(line: str, listed: bool = False) -> str:
    if listed and line[:2] in ("* ", "- "):
        return line[:2] + escaped(line[2:])
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(f"`{p}`" if p.startswith("`") and len(p) > 2 else re.sub(r"([\\*_|`])", r"\\\1", p) for p in parts)


# ── the whole ──
def table_of_contents(app: Any, docname: str, text: list[str]) -> None:
    """index.md's own list of links is the site's table of contents."""
    if docname not in ("index", "experiments/index"):
        return
    out, caption = [], ""
    groups: dict[str, list[str]] = {}
    for line in text[0].splitlines():
        if line.startswith("## "):
            caption = line[3:]
        for target in re.findall(r"\]\(([\w/-]+)\.md\)", line) if line.startswith(("- ", "* ", "| ", "1. ")) else ():
            groups.setdefault(caption, []).append(target)
    for caption, targets in groups.items():
        out += ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption and docname == "index" else []), "", *targets, "```", ""]
    text[0] += "\n" + "\n".join(out)


def begin(app: Any, env: Any, docnames: Any) -> None:
    for name in ("minigrad_labels", "minigrad_files"):
        if not hasattr(env, name):
            setattr(env, name, {})


def forget(app: Any, env: Any, docname: str) -> None:
    begin(app, env, ())
    env.minigrad_files.pop(docname, None)
    for label in [label for label, page in env.minigrad_labels.items() if page == docname]:
        del env.minigrad_labels[label]


def bring_mathjax(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        shutil.copyfile(os.fspath(app.config.MATHJAX), Path(app.outdir) / "_static" / app.config.mathjax_path)


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("MATHJAX", None, "env", types=())
    for transform in (Equations, Beside, Files):
        app.add_transform(transform)
    app.add_directive("api", Api)
    app.connect("source-read", table_of_contents)
    app.connect("env-before-read-docs", begin)
    app.connect("env-purge-doc", forget)
    app.connect("autodoc-process-docstring", as_written)
    app.connect("html-page-context", link_labels)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", bring_mathjax)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}
