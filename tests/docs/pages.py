"""The pages of the documentation: their blocks, and one shell script that runs a page as it is read."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, and the text."""

    page: Path
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.split(" ")[0]

    @property
    def title(self) -> str | None:
        found = re.search(r'title="([^"]+)"', self.info)
        return found and found.group(1)

    def commands(self) -> list[str]:
        """The lines after ``$ ``, each with those that continue it."""
        found: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
            elif found and found[-1].endswith("\\"):
                found[-1] += "\n" + line.removeprefix("> ")
        return found


def blocks(page: Path) -> list[Block]:
    return [
        Block(page, found["info"].strip(), textwrap.dedent(found["body"]))
        for found in _FENCE.finditer(page.read_text())
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def all_pages() -> list[Path]:
    return sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def script(page: Path, without: tuple[str, ...] = ()) -> str:
    """A bash script that writes the page's titled files and runs its commands, in order.

    Args:
        without: beginnings of commands that are left out.
    """
    # A second signal: a key server does not wait for load balancers then.
    end = "kill $(jobs -p) && kill -INT $(jobs -p)"
    parts = ["set -eu -o pipefail", f"trap '{{ {end}; }} 2>/dev/null || true' EXIT", "set -x"]
    for block in blocks(page):
        if block.language == "python" and block.title:
            parts.append(f"cat > {block.title} <<'END-OF-FILE'\n{block.text}END-OF-FILE")
        elif block.language == "console":
            parts += [command for command in block.commands() if not command.startswith(without)]
    return "\n".join(parts) + "\n"
