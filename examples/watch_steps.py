"""Watch an answer come out of its masks, step by step; --svg draws the picture in README.

python examples/watch_steps.py
python examples/watch_steps.py --svg docs/unmasking.svg
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llada_plugins import Engine, Step, generate

PUZZLE = "12.3.3.23..1..3.="  # a 4x4 sudoku, row by row
CELL, GAP, TOP = 22, 14, 26  # pixels


def watch(puzzle: str, steps: int) -> list[list[str]]:
    """The answer's 16 cells before the first step and after each; "" where a cell is masked."""
    engine = Engine("llada", gen_length=16, steps=steps)
    cells = [""] * 16
    boards = [list(cells)]

    def note(step: Step) -> None:
        for place, token in enumerate(step.proposal[0].tolist()):
            if step.kept[0, place]:
                cells[place] = engine.tokenizer.decode([token])
        boards.append(list(cells))

    generate(engine.model, [engine.encode(puzzle)], engine.sampler, on_step=note)
    return boards


def as_text(boards: Sequence[Sequence[str]]) -> str:
    """One line a step."""
    return "\n".join(
        f"step {number}   {''.join(cell or '░' for cell in board)}"
        for number, board in enumerate(boards)
    )


def as_svg(puzzle: str, boards: Sequence[Sequence[str]]) -> str:
    """The puzzle and every board; cells that a step unmasked are coloured."""
    side = 4 * CELL + GAP
    width, height = side * (len(boards) + 1) + GAP, TOP + side + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="monospace" font-size="14" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fdfdfd"/>',
    ]
    clues = ["" if clue == "." else clue for clue in puzzle[:16]]
    parts += board_svg(GAP, "puzzle", clues, clues, masked="#ffffff")
    for number, board in enumerate(boards):
        before = boards[max(0, number - 1)]
        title = f"step {number}" if number else "all masked"
        parts += board_svg(GAP + side * (number + 1), title, board, before, masked="#b9bec7")
    return "\n".join([*parts, "</svg>\n"])


def board_svg(
    left: int, title: str, board: Sequence[str], before: Sequence[str], masked: str
) -> list[str]:
    """A 4x4 board with its title."""
    parts = [f'<text x="{left + 2 * CELL}" y="{TOP - 9}" font-size="11" fill="#444">{title}</text>']
    for place, cell in enumerate(board):
        x, y = left + place % 4 * CELL, TOP + place // 4 * CELL
        fill = masked if not cell else "#ffffff" if cell == before[place] else "#ffd27a"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="#777"/>'
        )
        if cell:
            parts.append(f'<text x="{x + CELL / 2:g}" y="{y + 16}" fill="#111">{cell}</text>')
    return parts


def main() -> None:
    """Print the steps, or write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    boards = watch(PUZZLE, options.steps)
    if options.svg:
        options.svg.write_text(as_svg(PUZZLE, boards), encoding="utf-8")
    else:
        print(as_text(boards))


if __name__ == "__main__":
    main()
