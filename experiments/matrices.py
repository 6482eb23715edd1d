"""Which weight matrices should LoRA adapt, at one budget of parameters; and how rank and choice of matrices go together.

    python experiments/matrices.py

The first question is that of the LoRA paper's Table 5. There the budget is shared by the attention's matrices: rank 16 on one type, 8 on
two, 4 on all four have equally many parameters, here too. The two layers of the perceptron are wider, so that no rank hits the budget
exactly: rank 6 on one of them and 3 on both have 94 % of it, rank 2 on all linear layers 112 %.

The second is that of Table 6: ranks 1, 2, 8 and 64 on q, on q and v, and on q, k, v and o; all linear layers stand in methods.py.

Text to SQL; rates, seeds and questions as in experiments/methods.py, whose runs are taken over where they are the same.
"""

from __future__ import annotations

from functools import partial

from fine_tuning import ALL_LINEAR, arm_of, expected_seconds, lora, place_of, run_method
from methods import Q_V
from provenance import RESULTS
from sweep import Sweep, complete, options

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
BUDGET = (
    *(lora((target,), 16) for target in ATTENTION),
    lora(Q_V, 8),
    lora(("q_proj", "k_proj"), 8),
    lora(ATTENTION, 4),
    *(lora((target,), 6) for target in ("up_proj", "down_proj")),
    lora(("up_proj", "down_proj"), 3),
    lora(ALL_LINEAR, 2),
)
RANKS = (1, 2, 8, 64)
RANK = tuple(lora(targets, rank) for rank in RANKS for targets in (("q_proj",), Q_V, ATTENTION))


def main() -> None:
    arguments = options(__doc__, "matrices").parse_args()
    with place_of(arguments) as place:
        methods = list(dict.fromkeys(BUDGET + RANK))[: 2 if place.quick else None]
        arms = [arm_of(method, "text_to_sql", place) for method in methods]
        run = partial(run_method, place=place)
        reuse = () if place.quick else (RESULTS / "methods_text_to_sql.json",)
        command = "python experiments/matrices.py"
        complete(Sweep(command, place.path, place.settings, arms, run, expected_seconds(place.steps), reuse), arguments)


if __name__ == "__main__":
    main()
