"""What a run would cost, without the chips, the weights or, if need be, the data.

The real train step is compiled for a described target; memory is what its compiler says, work is read off the compiled
program, time is a roofline. Nothing is executed.
"""
