"""Score the choices of a question, each with its standard error.

python examples/likelihood.py
"""

from llada_plugins import Engine

PUZZLE = "12.3.3.23..1..3.="
CHOICES = {
    "a solution": "1243431234212134",
    "two cells swapped": "1243431234211234",
    "another puzzle's": "4132231412433421",
}


def main() -> None:
    """Print log p(choice | puzzle) for each choice."""
    # rows are drawn until the error is at most 0.1 nats, or the best choice is settled
    engine = Engine("llada", mc_num="auto:0.1")
    pairs = [engine.encode_pair(PUZZLE, choice) for choice in CHOICES.values()]
    estimates = dict(engine.log_likelihood(pairs))
    for number, name in enumerate(CHOICES):
        estimate = estimates[number]
        print(
            f"{name:<18} {estimate.value:8.2f} nats, standard error {estimate.stderr:.2f}, "
            f"{estimate.num_forwards} masked rows"
        )
    best = max(estimates, key=lambda number: estimates[number].value)
    print(f"best: {list(CHOICES)[best]}")


if __name__ == "__main__":
    main()
