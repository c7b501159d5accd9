"""Text in, text out: two questions in one batch.

python examples/generate.py                       the tiny model in the package
python examples/generate.py GSAI-ML/LLaDA-8B-Instruct "What is 17 times 3?"
"""

import sys

from llada_plugins import Engine
from llada_plugins.engine import Request

PUZZLES = ["12.3.3.23..1..3.=", "..313.4...23.3.4="]  # 4x4 sudokus, row by row


def main() -> None:
    """Answer, and say what each answer cost."""
    if len(sys.argv) > 2:
        checkpoint, question = sys.argv[1:]
        engine = Engine("llada", pretrained=checkpoint, gen_length=128, block_length=32, steps=128)
        prompts = [engine.render_chat([{"role": "user", "content": question}])]
    else:
        # half as many steps as tokens: two tokens are unmasked in each
        engine = Engine("llada", gen_length=16, steps=8, batch_size=2)
        prompts = PUZZLES
    requests = [Request(prompt, engine.sampler) for prompt in prompts]
    for number, completion in engine.generate(requests):  # as they finish
        print(f"{prompts[number]} {completion.text}   ({completion.num_forwards} forward passes)")


if __name__ == "__main__":
    main()
