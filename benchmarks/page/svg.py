"""Makes the SVG of matplotlib fit for a page: small, in the colours of the page, and alone.

While it is drawn a colour is a number that stands for a CSS variable, so that one plot serves a
light and a dark page.
"""

import io
import re
from collections.abc import Iterable
from itertools import groupby
from xml.etree import ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.page.styles import COLOURS

_VARIABLES = ("ink", "muted", "grid", "paper", *COLOURS)

_DROPPED_TAGS = ("metadata", "style", "clipPath")  # nothing is drawn outside its axes
_DROPPED = ("font-family", "stroke-linecap", "stroke-linejoin")  # page.css has them, and
_USUAL = {"font-size": "11px"}
_GEOMETRY = ("d", "x", "y", "width", "height", "transform")

_NUMBER = re.compile(r"-?\d+\.\d+")
_AROUND_COMMAND = re.compile(r" ?([A-Zz]) ?")
_STAND_IN = re.compile(r"#0101([0-9a-f]{2})")
_FONT = re.compile(r"(?:(bold|\d+) )?([\d.]+px) ")
_REFERENCE = re.compile(r"(?:url\(|^)#([\w-]+)")
_CONTROLS = dict.fromkeys([*range(32), 127], " ")


def colour(variable: str) -> str:
    """Return what to draw with to get the colour of a CSS variable."""
    return f"#0101{_VARIABLES.index(variable):02x}"


def plain(text: str) -> str:
    """Return a text without what XML cannot hold."""
    return text.translate(_CONTROLS)


def inline(figure: Figure, number: int, label: str = "") -> Markup:
    """Turn a figure into an element of a page.

    Args:
        figure: Drawn, as this is called, within `canvas.drawing`.
        number: Of the plot in its page, from which its identifiers are made: those of matplotlib
            are random, and would be the same in two plots that have something in common.
        label: What it is, for those who do not see it; empty if something beside it says so.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn = ET.fromstring(file.getvalue())  # noqa: S314 (written by matplotlib a moment ago)
    names = {name: f"p{number}-{place}" for place, name in enumerate(_referenced(drawn))}
    root = ET.Element("svg", viewBox=drawn.attrib["viewBox"])
    root.attrib |= {"role": "img", "aria-label": plain(label)} if label else {"aria-hidden": "true"}
    drawn_on_it = [clean for child in drawn for clean in _cleaned(child, names)]
    drawn_on_it.sort(key=lambda element: not _is_grid(element))  # all of it is behind the rest
    root.extend(_gathered(drawn_on_it))
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 (escaped by ElementTree)


def _referenced(root: ET.Element) -> list[str]:
    """Return the identifiers that something refers to."""
    values = (value for element in root.iter() for value in element.attrib.values())
    return list(dict.fromkeys(name for value in values for name in _REFERENCE.findall(value)))


def _cleaned(element: ET.Element, names: dict[str, str]) -> list[ET.Element]:
    """Return an element without what the page does not need, or its children in its place."""
    tag = _local(element.tag)
    if tag in _DROPPED_TAGS:
        return []
    kept = ET.Element(tag)
    kept.text = (element.text or "").strip()
    kept.extend(_gathered(clean for child in element for clean in _cleaned(child, names)))
    for attribute, value in element.attrib.items():
        name = _local(attribute)
        if name not in ("id", "clip-path") and (written := _attribute(name, value, names)):
            kept.set(name, written)
        elif name == "id" and value in names:
            kept.set(name, names[value])
    if tag in ("g", "defs") and (not len(kept) or (tag == "g" and not kept.attrib)):
        return list(kept)
    return [] if _invisible(kept) else [kept]


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _invisible(element: ET.Element) -> bool:
    return element.tag == "path" and element.get("style") == "fill:none"


def _is_grid(element: ET.Element) -> bool:
    return element.tag == "path" and "var(--grid)" in element.get("style", "")


def _gathered(elements: Iterable[ET.Element]) -> list[ET.Element]:
    """Write the style of elements that follow each other once: of lines make one line."""
    gathered = []
    for style, group in groupby(elements, key=lambda element: element.get("style")):
        alike = list(group)
        if len(alike) == 1 or not style:
            gathered += alike
        elif all(element.keys() == ["d", "style"] for element in alike):
            path = "".join(element.attrib["d"] for element in alike)
            gathered.append(ET.Element("path", d=path, style=style))
        else:
            gathered.append(ET.Element("g", style=style))
            for element in alike:
                del element.attrib["style"]
            gathered[-1].extend(alike)
    return gathered


def _attribute(name: str, value: str, names: dict[str, str]) -> str:
    if name == "style":
        return _style(value)
    if name in _GEOMETRY:
        value = " ".join(_NUMBER.sub(_rounded, value).split())
        return "" if value.startswith("rotate(-0 ") else _AROUND_COMMAND.sub(r"\1", value)
    return _REFERENCE.sub(lambda found: found[0].replace(found[1], names[found[1]]), value)


def _style(text: str) -> str:
    kept: dict[str, str] = {}
    for declaration in text.split(";"):
        name, _, value = declaration.strip().partition(": ")
        if name == "font" and (font := _FONT.match(value)):  # of matplotlib before 3.11
            kept |= {"font-weight": font[1] or "", "font-size": font[2]}
        elif name not in _DROPPED:
            kept[name] = _STAND_IN.sub(_variable, value)
    return ";".join(
        f"{name}:{value}" for name, value in kept.items() if value and value != _USUAL.get(name)
    )


def _variable(stand_in: re.Match[str]) -> str:
    return f"var(--{_VARIABLES[int(stand_in[1], 16)]})"


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")
