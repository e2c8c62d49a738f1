"""Speed and memory, side by side with peers: each module is a command that prints a table and can write JSON.

    python -m benchmarks.step       one training step: ours, TRL's and the authors' way
    python -m benchmarks.scaling    how a step's cost grows
    python -m benchmarks.limit      how near each contestant comes to the machine's measured peak
    python -m benchmarks.profile    what one step spends its time on
    python -m benchmarks.evaluation pairs a second of evaluation, beside TRL's loop
    python -m benchmarks.screenshot a picture of an HTML page
    python -m benchmarks.overhead   what `hafrm train` spends outside of its steps

Timings are medians of interleaved rounds, reported as ratios: a shared machine's clock drifts, and all contestants of
a round drift together. Run them on an idle machine.
"""
