"""Draw the three pictures of this folder anew: python docs/example-data/draw.py"""

from pathlib import Path

from PIL import Image, ImageDraw

SIDE, WHITE = 64, (255, 255, 255)
RED, BLUE = (200, 40, 40), (40, 70, 200)
SHAPES = {"red-circle": ("ellipse", RED), "blue-circle": ("ellipse", BLUE), "red-square": ("rectangle", RED)}


def draw(folder: Path) -> None:
    """Write `<name>.png` of every shape into the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (shape, colour) in SHAPES.items():
        picture = Image.new("RGB", (SIDE, SIDE), WHITE)
        getattr(ImageDraw.Draw(picture), shape)((16, 16, SIDE - 17, SIDE - 17), fill=colour)
        picture.save(folder / f"{name}.png")


if __name__ == "__main__":
    draw(Path(__file__).parent / "pictures")
