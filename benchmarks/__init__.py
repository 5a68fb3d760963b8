"""Tools of the repository, which no wheel holds: they measure, and write what was measured into the documents.

Speed and memory of our training step beside the textbook's, in the same process: `python -m benchmarks`.

__main__     the command line: sections in turn, JSON out
_shapes      the networks, image sizes and batches that are measured
_timing      sides in turn, medians and ratios with their spread
_textbook    the training steps as their papers read
_sides       our step and the textbook's on the same weights
_step        section step: one training step
_attack      section attack: PGD-10 against other libraries
_evaluation  section evaluation: AutoAttack, wall time and the same robust images
_limit       section limit: the step's convolutions and nothing else
_memory      section memory: peaks, and growth of time and memory
defences     defences that do not defend, and which check speaks: `python -m benchmarks.defences`
compatibility  the oldest and the newest of every dependency: `python -m benchmarks.compatibility`
faults       kills and resumes, by the thousand: `python -m benchmarks.faults`
strength     attack strength beside other libraries, a command of its own: `python -m benchmarks.strength`
_machine     what it ran on
_plot        growth, drawn

Numbers enter documents by these commands only:

speed        `python -m benchmarks.speed`: that JSON into docs/speed.md
report       `python -m benchmarks.report`: finished training runs into docs/results.md and the README
document     the blocks of a document that these write
comparison   `python -m benchmarks.comparison`: a comparison's table into docs/comparison.md
zoo          `python -m benchmarks.zoo`: the checkpoints' folders into docs/zoo.md and the README
_words       the lists that their command lines begin with
"""
