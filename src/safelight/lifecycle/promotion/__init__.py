"""From a trained version to an approved one: compare, audit, judge by a policy, promote, roll back.

setup compared_model training_data prompt_set   the two models, their training pictures, and the prompts for both
compare audit report                            metrics, memorisation, and an HTML report
promote                                         move the alias, or roll it back
"""
