"""A model's life: trained, measured, compared with what it came from, promoted, rolled back.

promotion    compare, audit, judge by a policy, promote, roll back
mini         how the embedded model is made from nothing
training     fine-tuning: recipes, the loop they share, data, privacy
evaluation   numbers, prompt sets, gates
"""
