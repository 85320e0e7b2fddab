"""What rewards meet in practice, and what they forget: empty, short, long, unicode, markdown, code, line ends."""

from __future__ import annotations

TEXTS = (
    "",
    "Great",
    "a",
    " ",
    "\n",
    "The movie was a quiet, generous pleasure from the first scene to the last.",
    "I want my two hours back. Dull, loud and far too long!",
    "It is fine.",
    "It is NOT fine!!!",
    "Not bad at all, though not quite good either ;-)",
    "¿Qué tal? Una película magnífica.",
    "この映画は素晴らしかった。",
    "Фильм был скучный",
    "فيلم رائع",
    "🎬👍🏽 10/10 ❤️",
    "cafe\u0301 and café",
    "3.14159 2,718 -1e-9 0x1F",
    "???!!!...",
    "# Title\n\n* first **bold** point\n* second `code` point\n\n> a quotation, [a link](https://example.org)",
    "def area(r):\n    return 3.14159 * r**2  # of a circle\n",
    '{"review": "good", "stars": [5, null]}',
    "<p>Half-open <b>markup</p>",
    "First line.\nSecond line.\r\nThird line.\tTabbed.",
    "  leading and trailing space  ",
    "good " * 300,
    "x" * 2000,
    'The actor said: "I\'d never do it again", and left',
)
PROMPTS = ("The movie was", "Write a review:", "")
