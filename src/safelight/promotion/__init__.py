"""From a trained version to an approved one: compare, audit, judge by a policy, promote, roll back."""
