"""Metrics of a model, by independent networks.

judge             classifiers of concept, style and colour, trained on artwork only
prompt_adherence  whether pictures show what the prompt asks for
similarity        distance of pictures to artwork; nearest and memorisation find the nearest drawings and copies
comparison        metrics of the pictures of two models
gate              a policy of bounds, and its verdict
"""
