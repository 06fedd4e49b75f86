"""What a run would cost: memory, FLOPs, communication and time, without the chips, the weights or even the data.

The real train step is compiled for a description of the target; memory is the compiler's figure, work is counted in the
compiled program, time is a roofline estimate. Nothing is executed.
"""
