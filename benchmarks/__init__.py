"""Speed and memory, side by side with peers: each module is a command that prints a table and can write JSON.

    python -m benchmarks.step       one training step: ours, TRL's and the authors' way
    python -m benchmarks.scaling    how a step's cost grows
    python -m benchmarks.limit      each contestant's share of the machine's measured peak
    python -m benchmarks.profile    where one step spends its time
    python -m benchmarks.evaluation pairs per second of evaluation, next to TRL's loop
    python -m benchmarks.screenshot a picture of an HTML page
    python -m benchmarks.overhead   what `hafrm train` spends outside of its steps

Timings are medians of interleaved rounds, reported as ratios: the speed of a shared machine drifts, and affects all
contestants of a round alike. Run them on an idle machine.
"""
