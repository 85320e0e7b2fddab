"""Draws docs/demo.png from runs/demo: `make demo && .venv/bin/python docs/demo_picture.py`."""

import tempfile
from pathlib import Path

from PIL import Image

from ppl_align import compare

HERE = Path(__file__).parent


def main() -> None:
    """Four of the report's plots, two by two."""
    runs = HERE.parent / "runs" / "demo"
    comparison = compare({name: str(runs / f"{name}.nc") for name in ("importance", "smc", "svi", "rejection")})
    with tempfile.TemporaryDirectory() as folder:
        comparison.plots(folder)
        tiles = [Image.open(Path(folder) / f"{name}.png") for name in ("evidence", "reward_sentiment", "smc", "svi")]
        width = 900
        tiles = [tile.convert("RGB").resize((width, round(tile.height * width / tile.width))) for tile in tiles]
        height = max(tile.height for tile in tiles)
        picture = Image.new("RGB", (2 * width, 2 * height), "white")
        for i, tile in enumerate(tiles):
            picture.paste(tile, (i % 2 * width, i // 2 * height))
    picture.quantize(255).save(HERE / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
