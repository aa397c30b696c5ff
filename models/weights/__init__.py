"""What stands in files of weights: reading them safely, their names, giving them to modules; where a name leads.

Never the definition of a network, nor a computation with one.
"""
