"""Frozen input bases of the controllers, fitted in closed form on the training split; independent of training itself.

The useful directions of an input are those that predict outcomes, not those with the largest variance: latency tokens
vary most along budget, position and noise. Each basis is therefore a ridge regression from the inputs to the leading
principal components of the outcomes under every setting (accuracy, log latency) and, for tokens, to smooth functions
of the budget. A second part regresses the same components on random Fourier features of the inputs. The features of
training samples come from fits without these samples (cross-fitting); otherwise the controllers would rely on
features that overfit the training samples.

Start with `language.py`, then `token.py` and `budget.py`; they share `targets.py`, `folds.py`, `ridge.py` and
`fourier.py`. `controllers/bases.py` applies the result.
"""
