"""From a trained version to an approved one: compare, audit, judge by a policy, promote, roll back.

side material questions ask   the two sides, what they were trained on, and what both are asked
compare audit report          numbers, what was learnt by heart, and a page to read
promote                       the alias moves, or goes back
"""
