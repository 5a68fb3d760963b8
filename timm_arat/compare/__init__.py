"""Comparison of training methods by one protocol; `recipes/compare.py` is its command.

config     what a comparison's YAML holds, and the training runs that follow from it
prediction what a run is expected to cost, and its file
predict    the process that measures it on a few steps, before anything is trained
child      the process of one run: training, which notes what it costs
cost       the companion that notes it
run        all runs, several at a time: what is finished is kept, what was stopped goes on
outcome    what the runs came to: accuracies and costs, by row and seed
progress   held-out accuracy along the training, and the time until a level
table      outcomes to rows: Markdown, JSON and CSV
plot       accuracy against accuracy, and against time
"""
