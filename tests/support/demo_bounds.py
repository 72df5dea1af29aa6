"""What it means that the demo's model forgets and keeps."""

KNOWN = 0.85  # share right from which on a model knows a domain in a way of asking
LOST = 0.02  # of what should be kept, in the words of the demo's first table
# With another seed, on 150 questions: what docs/limits.md admits, and two standard errors of the difference.
LEFT_IN_LETTERS = 0.10  # above a model that never learned it, where a letter is named
LEFT_IN_TEXTS = 0.18  # and where texts are compared
LOST_OTHERWISE = 0.05
