"""The engine: a training run from its configuration to its results. accelerate is used here and nowhere else.

train        the order of events
config       what a recipe holds (imports no accelerate, so that --help is quick)
prepare      data, model, method, optimizer, schedule, from their names
loop         the epochs
measure      accuracies between epochs, over processes
average      EMA and SWA, with norm statistics of their own
checkpoint   save and resume; weights: best and last
batches      augmentation that a resume repeats
guard        a watch over single-step training
warm         the perturbations that attacks start from an epoch later
log          progress for a person, rows for a machine
signals      Ctrl-C
finish       export and the final evaluation
"""
