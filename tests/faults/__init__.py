"""The campaign of faults: one small real chain, killed, starved and damaged at random from a seed.

    python -m tests.faults --seed 0 --kills 200 --damage 1000

builds the chain (`data check`, `cache`, `fit`, `finetune`, `evaluate`, `report`), disturbs copies
of it, runs commands on them, and counts the outcomes: a fault is refused by one sentence, or the
result equals the undisturbed one byte for byte, or the command names the file that is another one.
All else is a defect: another result in silence, a traceback, a hang, a crash. No part of hubretrain
is replaced; commands run in forked processes on real files, with a disk that is really full.

- `chain`: the chain's commands, and what of their files is the result.
- `damage`: damaged, swapped and missing files.
- `processes`: commands in forked processes, killed, interrupted, without room or permission.
- `disturbances`: what a command is disturbed by.
- `campaign`: the trials, and what counts as which outcome.
- `__main__`: the command, and the table of counts.
- `fuzz`: readers under atheris, which looks for inputs that reach new code.
"""
