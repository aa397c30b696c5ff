"""What stands in files of weights: reading them safely, their names, translating these to ours; where a name of a model
leads. Never a network, nor anything that is computed with the weights.
"""
