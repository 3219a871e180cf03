"""How good a model is, in numbers that somebody else's network gives.

judge       classifiers of concept, style and colour, learnt from artwork only
obedience   whether pictures show what the prompt says
likeness    how near pictures are to a training set; nearest and memorisation say whether any is a copy
comparison  the pictures of two models, side by side
gate        a policy in numbers, and what passes it
"""
