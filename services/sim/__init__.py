"""The simulated provider: a stand-in for the real vendors and the oracle of the tests.

It shares no code with the product. What it answers and what it would charge are functions of the
request body and the seed alone, so that a bill can be compared with its log to the last token.
"""
