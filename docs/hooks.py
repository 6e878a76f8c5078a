"""Repairs for mkdocs-click 0.9 with click from 8.3 on, which prints ``Sentinel.UNSET`` as the default of options."""

import re
from typing import Any

# the end of an option's description, where its default is said, and the cell for it
_DEFAULT = re.compile(
    r"(?:\s*\[default: ([^\]<]*)\])?</td>\s*<td><code>Sentinel\.UNSET</code></td>"
)


def on_page_content(html: str, **_: Any) -> str:
    """Puts the default from the description into the column of defaults."""
    return _DEFAULT.sub(lambda found: f"</td>\n<td>{found[1] or '–'}</td>", html)
