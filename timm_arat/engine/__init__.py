"""The engine: a training run from its configuration to its results. accelerate is used here and nowhere else.

train         the order of events
config        what a recipe holds; accompany: its companions' sections; recipe: how it is read (free of accelerate, so
              that --help is quick)
session       the parts of a run: accelerator, model, optimizer, in files of these names
loop          the epochs
companions/   what accompanies a run, by one protocol: guard, warm start, average, weight perturbation, balance
measure       accuracies between epochs, over processes
best          which epoch is the best
checkpoint    save and resume; state: what they hold; weights: best and last
batches       augmentation that a resume repeats
log           progress for a person, rows for a machine
signals       Ctrl-C
finish        export and the final evaluation
"""
