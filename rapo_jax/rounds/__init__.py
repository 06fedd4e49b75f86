"""Training on the model's own responses, round by round: sample, score, train, export, judge, again.

One directory holds it all (places.py), and every stage (stages.py) is done when the file or directory that it writes is whole,
so that the same command goes on wherever it was stopped or killed. The stages are the functions behind `rapo generate`,
`score`, `train` and `export`; nothing of them is repeated here.
"""
