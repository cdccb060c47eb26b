"""Pages of figures and tables, each an HTML file that needs nothing else: no script, style or picture from elsewhere.

`base.html.jinja` is the frame of them all.
"""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

DOTS_PER_INCH = 120


def render(template: Path, **values: Any) -> bytes:
    """Fill in a template that extends the frame; every value is escaped, and what is no Unicode becomes "?"."""
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(number=number, duration=duration, percent=percent)
    return environment.get_template(template.name).render(**values).encode("utf-8", errors="replace")


def number(value: float | None, decimals: int = 0) -> str:
    """A number with its thousands apart; a dash where there is none."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{round(value, decimals) + 0.0:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    """A length of time, in seconds up to two minutes, in minutes up to two hours."""
    for least, size, unit in ((7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{number(seconds / size, 0 if seconds >= 100 * size else 1)} {unit}"
    return f"{number(seconds, 0 if seconds >= 100 else 1)} s"


def percent(share: float | None, decimals: int = 0) -> str:
    """A share from 0 to 1 in percent; what is there is never 0 %."""
    if share is None:
        return number(None)
    if 0 < 100 * share < 0.5 * 10**-decimals:
        return f"under {10**-decimals:g} %"
    return f"{number(100 * share, decimals)} %"


def picture(figure: Figure) -> tuple[bytes, str]:
    """A figure as PNG, and as an address that an image of a page can have."""
    file = io.BytesIO()
    figure.savefig(file, dpi=DOTS_PER_INCH, format="png")
    return file.getvalue(), data_uri("image/png", file.getvalue())


def data_uri(media_type: str, content: bytes) -> str:
    """Content as an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
