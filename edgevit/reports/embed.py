"""What makes a page self-contained: the style sheet, the charts' JavaScript and the data inside it.

The page's Content-Security-Policy lets nothing be fetched, so it opens the same on a plane.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from errno import EISDIR
from functools import cache
from pathlib import Path
from typing import Any

from edgevit.reports.present import plural
from runtime.errors import RuntimeFault

HERE = Path(__file__).parent
EXPORT = "window.vegaEmbed = vegaEmbed;"


def render(template: str, *, data: object, plan: dict[str, Any], **more: Any) -> str:
    """The page of a template; `data` and `plan` travel in it as JSON, plan["charts"] are drawn.

    Every text in `more` is escaped. Raises RuntimeFault where the installed Altair and vl-convert
    do not fit together.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = _tight
    return environment.get_template(template).render(
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 our own file
        bundle=Markup(_bundle()) if plan["charts"] else "",  # noqa: S704 the library's own file
        data=_script_json(data),
        plan=_script_json(plan),
        charts=plan["charts"],
        plural=plural,
        **more,
    )


def write_page(text: str, path: Path) -> None:
    """Write a page, whole or not at all. Raises RuntimeFault as write_files does."""
    write_files({Path(path): text})


def write_files(texts: Mapping[Path, str]) -> None:
    """Write all files or none: each is whole beside its place before the first takes it.

    Raises RuntimeFault where one cannot be written; older ones are then left as they were.
    """
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in texts}
    path = next(iter(texts))
    try:
        for path, text in texts.items():
            if path.is_dir():
                raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
            drafts[path].write_text(text, encoding="utf-8")
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError as error:
        raise RuntimeFault(
            f"cannot write the report to {path}: {error.strerror or error}. "
            "Give a file in a folder that exists and that you may write to."
        ) from error
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink()


def _tight(text: str) -> str:
    """Running text that does not break inside 1.04–1.05, before a multiplier or before a unit."""
    text = re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", text)
    return re.sub(r" (?=×\d|ms\b|%)", "\u00a0", text)


def _script_json(value: object) -> Any:
    """JSON that cannot end the <script> it stands in, whatever the texts in it say."""
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 escaped above


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair writes for."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    try:
        bundle: str = vl_convert.javascript_bundle(EXPORT, vl_version=version)
    except (ValueError, RuntimeError) as error:
        raise RuntimeFault(
            f"Altair {altair.__version__} writes Vega-Lite {version}, which the installed "
            "vl-convert does not carry. Try: pip install --upgrade altair vl-convert-python"
        ) from error
    return bundle.replace("</script", "<\\/script")
